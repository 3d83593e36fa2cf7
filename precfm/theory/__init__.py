"""The paper's theory: closed forms, measurements that share no code with them, trained networks, experiments."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
