"""Encoders: from images to the latents in which a flow is trained, and back."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
