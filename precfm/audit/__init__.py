"""Accountability: whether results are what their records say, where a number comes from, sharing, and the doctor.

It is behind the command `precfm`, reads what the pipeline has made, and the pipeline does not know it.
"""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
