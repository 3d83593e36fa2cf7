"""Distances between a generated and a real set, computed on feature matrices, each with its protocol."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
