"""The geometry of data: spectra, conditioning along a path, recovered variances, what a decoder makes of directions."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
