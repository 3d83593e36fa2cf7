"""Data: where it comes from and how it is checked, one file per data set, how it is split, and laws that are known."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
