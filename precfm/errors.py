"""The exception for mistakes that a user can mend; the command line prints it without a traceback."""


class PrecfmError(ValueError):
    """A user's mistake, told in one sentence: the field or file, its value, and what would be right."""


class DivergenceError(PrecfmError):
    """A training whose loss or weights are no longer finite."""
