"""Preconditioners: invertible maps from data space to one where a flow learns more easily, one file each."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
