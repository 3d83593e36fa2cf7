"""What `config/claims.yaml` may say: claims, their statistics, directions and smallest effects."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Positive, Strict, complaint

Role = Literal["decides", "reported"]
Direction = Literal["decrease", "increase", "no_increase", "no_decrease"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class TheoryStatistic(Strict):
    """A row of `theory_statistics`, and the range that supports the claim.

    Attributes:
        name: the row's `statistic`.
        supported_range: lowest and highest value in favour; null for no bound.
        role: whether it decides, or is reported beside the verdict.
    """

    kind: Literal["theory"]
    name: str
    supported_range: tuple[float | None, float | None]
    role: Role = "decides"

    @model_validator(mode="after")
    def _is_a_range(self) -> "TheoryStatistic":
        low, high = self.supported_range
        if (low is None and high is None) or (low is not None and high is not None and low > high):
            raise ValueError("supported_range needs two rising numbers, at most one of them null")
        return self


class _Effect(Strict):
    name: str
    direction: Direction
    smallest_effect: Positive
    role: Role = "decides"


class MetricStatistic(_Effect):
    """A metric at the checkpoint that two methods share, in each of the spaces.

    Attributes:
        metric: as in the records.
        spaces: one effect for each; all count.
        effect: method minus baseline, or ln(method / baseline).
    """

    kind: Literal["metric"]
    metric: str
    spaces: Names
    effect: Literal["difference", "log_ratio"]


class LateSlopeStatistic(_Effect):
    """Slope of ln(metric) per decade of training steps over the late checkpoints, method minus baseline.

    Attributes:
        metric: as in the records.
        spaces: one effect for each; all count.
        late_from: late checkpoints are those from this share of the shared last step on; three are needed.
    """

    kind: Literal["late_slope"]
    metric: str
    spaces: Names
    late_from: Annotated[float, Field(ge=0, lt=1)]


class PathStatistic(_Effect):
    """A quantity of Sigma_t averaged over the times of the path, method minus baseline.

    Attributes:
        quantity: ln kappa(Sigma_t) or the effective rank; the overall scale of every space is mean variance one.
        scope: the covariance over all classes, or the worst single class.
    """

    kind: Literal["path_conditioning"]
    quantity: Literal["log_condition_number", "effective_rank"]
    scope: Literal["all", "worst_class"]


class RankCorrelationStatistic(_Effect):
    """Spearman correlation of a preconditioner's quality and a final metric, over methods.

    Of the means over seeds, since seeds of one method are no independent observations of its quality.

    Attributes:
        predictor: one of `precfm.report.predictor_values.PREDICTORS`; an experiment without its frame has no effect.
        metric: as in the records.
        spaces: all count.
    """

    kind: Literal["rank_correlation"]
    predictor: Literal["residual_condition_number", "path_log_condition_number", "predicted_steps"]
    metric: str
    spaces: Names


Statistic = Annotated[
    TheoryStatistic | MetricStatistic | LateSlopeStatistic | PathStatistic | RankCorrelationStatistic,
    Field(discriminator="kind"),
]


class Claim(Strict):
    """One claim of the paper and what decides it.

    Attributes:
        id: C1 to C11.
        text: the claim in one sentence.
        methods: the preconditioners it is about; it holds if one of them meets every deciding statistic.
        baselines: what each is compared with, all of them; `{method}` stands for the method's name.
        statistics: the numbers that decide it, or are reported beside.
        experiments: the experiments that count.
        settings: the settings that count, where an experiment has several; all of them if none is named.
    """

    id: Annotated[str, Field(pattern=r"^C\d+$")]
    text: str
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1)]
    experiments: Names
    settings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_decided(self) -> "Claim":
        compares = [s for s in self.statistics if s.kind in ("metric", "late_slope", "path_conditioning")]
        if compares and not (self.methods and self.baselines):
            raise ValueError("statistics that compare need methods and baselines")
        if not any(statistic.role == "decides" for statistic in self.statistics):
            raise ValueError("statistics: at least one must decide")
        names = [statistic.name for statistic in self.statistics]
        if len(set(names)) < len(names):
            raise ValueError("statistics: every name may stand there once")
        return self


class ClaimsSpec(Strict):
    """The whole of `config/claims.yaml`."""

    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "ClaimsSpec":
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) < len(ids):
            raise ValueError("claims: every id may stand there once")
        return self


def parse_claims(content: Mapping[str, Any], source: str = "config/claims.yaml") -> ClaimsSpec:
    """Check the parsed content of a claims file.

    Args:
        content: what the YAML file holds.
        source: the file's name, for the error.

    Raises:
        PrecfmError: an unknown key, a wrong type or an impossible combination; names the field and the value.
    """
    try:
        return ClaimsSpec.model_validate_json(json.dumps(content))  # as JSON, a list may stand for a tuple
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise PrecfmError(f"{source}: {_field(content, first['loc'])}: {complaint(first)}") from None


def _field(content: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """The place of a mistake as a reader would say it: `claims.C6.statistics.0.direction`."""
    parts = list(location)
    if len(parts) > 4 and parts[2] == "statistics":
        del parts[4]  # the kind of the statistic, which is no field of the file
    if len(parts) > 1 and isinstance(parts[1], int):
        claim = content["claims"][parts[1]]
        parts[1] = claim.get("id", parts[1]) if isinstance(claim, Mapping) else parts[1]
    return ".".join(map(str, parts)) or "the whole file"
