"""Preconditioned flow matching: the method as a library, the paper as one pipeline (arXiv:2603.02337)."""

__version__ = "0.1.0"
