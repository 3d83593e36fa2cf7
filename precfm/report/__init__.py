"""From numbers to what a reader sees: tables, figures and verdicts, as functions of data frames."""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
