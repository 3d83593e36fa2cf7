"""What users hand in where a tensor is meant: anything else is refused, with how to make one of it."""

from torch import Tensor

from precfm.core.errors import PrecfmError


def require_tensor(value: object, name: str, *, floating: bool = False) -> None:
    """Refuse an array, a list or nothing where a tensor is needed.

    Args:
        value: what was handed in.
        name: what to call it in the message.
        floating: whether its numbers must be floating point numbers.

    Raises:
        PrecfmError: it is no tensor, or one of other numbers.

    Example:
        >>> require_tensor([1.0, 2.0], "x")
        Traceback (most recent call last):
        precfm.core.errors.PrecfmError: x: got a list, but a torch tensor is needed; torch.as_tensor makes one
    """
    if not isinstance(value, Tensor):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise PrecfmError(f"{name}: got {kind}, but a torch tensor is needed; torch.as_tensor makes one")
    if floating and not value.is_floating_point():
        raise PrecfmError(f"{name}: has dtype {value.dtype}, but floating point numbers are needed")
