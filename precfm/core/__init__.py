"""What everyone stands on: errors, seeds, options, the registry of names, networks on disk, statistics."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
