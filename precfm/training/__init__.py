"""Training of any module: one loop that can be killed at any moment and goes on to the same bytes."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
