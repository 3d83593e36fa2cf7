"""Maps and flows on files of latents, batch by batch, so that no file has to fit into memory."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
