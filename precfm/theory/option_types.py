"""What the options of the controlled experiments may be, beside the types of `precfm.core.options`."""

from typing import Annotated, TypeVar

from pydantic import Field

Value = TypeVar("Value")

ConditionNumber = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Several = Annotated[tuple[Value, ...], Field(min_length=1, strict=False)]  # a configuration gives lists
Levels = Annotated[tuple[Value, ...], Field(strict=False)]
"""Values of what is varied; none leaves the ablation out."""
