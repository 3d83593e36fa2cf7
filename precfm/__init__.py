"""Preconditioned flow matching: the method as a library, the paper as one pipeline (arXiv:2603.02337).

`PreconditionedFlow` is the method. What else is offered here: preconditioners, velocity networks and what goes around
them, paths and objectives, and what measures latents. The pipeline is behind the command `precfm`.
"""

from precfm._front_door import front_door

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = front_door(__name__, __file__)
