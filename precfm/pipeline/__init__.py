"""The pipeline: from a configuration to a plan, from a plan to artifacts with content keys, and to what is published.

It names the library's classes and imports none; Snakemake and DVC run it and are not known here.
"""

from precfm._front_door import front_door

__getattr__, __dir__, __all__ = front_door(__name__, __file__)
