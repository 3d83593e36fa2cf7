"""Whether given latents profit from a preconditioner, and which; what this project has measured about such cases."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
