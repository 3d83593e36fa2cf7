"""The exception for a user's mistake; a command prints it as one sentence, without a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free space is needed") | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "; permission to read and write there is needed"
)


class PrecfmError(ValueError):
    """A user's mistake, in one sentence: the field or file, its value, and what would be right."""


class DivergenceError(PrecfmError):
    """A training whose loss or weights are no longer finite."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """End a command by exit code 1 and one sentence where a user or the machine made a mistake."""
    try:
        yield
    except PrecfmError as error:
        sys.exit(f"precfm: {error}")
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        what = error.strerror or str(error) or type(error).__name__
        sys.exit(f"precfm: {where}{what}{_REMEDIES.get(error.errno or 0, '')}")
