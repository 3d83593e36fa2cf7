"""Flow matching: paths, objectives, velocity networks, sampling, likelihood, and what a training costs."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
