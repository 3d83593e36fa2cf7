"""What `config/claims.yaml` may say: claims, their statistics, directions and smallest effects."""

import hashlib
import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from precfm.core.errors import PrecfmError
from precfm.core.options import Positive, Strict, complaint
from precfm.report.vocabulary import ALONE, LIKELIHOOD

Role = Literal["decides", "reported"]
Direction = Literal["decrease", "increase", "no_increase", "no_decrease"]
Side = Literal["theory", "data"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]

COMPARING = (
    "metric",
    "late_slope",
    "path_conditioning",
)  # kinds of statistics that compare methods with baselines


class _Statistic(Strict):
    """What all statistics say.

    Attributes:
        name: as verdicts write it.
        condition: which of the claim's conditions it is about; none: of all of them.
        role: whether it decides, or is reported beside the verdict.
    """

    name: str
    condition: str = ""
    role: Role = "decides"


class TheoryStatistic(_Statistic):
    """Rows of `theory_statistics`, and the range that supports the claim; it must hold for each row.

    Attributes:
        name: the rows' `statistic`.
        supported_range: lowest and highest value in favour; null for no bound.
        method: the preconditioner that it is about; none: it is about the claim as a whole.
    """

    kind: Literal["theory"]
    supported_range: tuple[float | None, float | None]
    method: str = ""

    @model_validator(mode="after")
    def _is_a_range(self) -> "TheoryStatistic":
        low, high = self.supported_range
        if (low is None and high is None) or (low is not None and high is not None and low > high):
            raise ValueError("supported_range needs two rising numbers, at most one of them null")
        return self


class EffectStatistic(_Statistic):
    """What all effects on data say.

    Attributes:
        direction: a claimed change, or a change that must not be.
        smallest_effect: of a claimed change, the smallest one that matters.
        margin: of `no_increase` and `no_decrease`, the largest one that does no harm.
        baselines: instead of the claim's.
    """

    direction: Direction
    smallest_effect: Positive | None = None
    margin: Positive | None = None
    baselines: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_its_threshold(self) -> "EffectStatistic":
        harmless = self.direction in ("no_increase", "no_decrease")
        needed, other = ("margin", "smallest_effect") if harmless else ("smallest_effect", "margin")
        if getattr(self, needed) is None or getattr(self, other) is not None:
            raise ValueError(f"{needed}: direction '{self.direction}' needs it, and no {other}")
        return self

    @property
    def sign(self) -> int:
        """Times this, the claimed way is up."""
        return 1 if self.direction in ("increase", "no_decrease") else -1

    @property
    def needed(self) -> float:
        """The least effect, measured so that the claimed way is up, that supports the claim."""
        return self.smallest_effect if self.smallest_effect is not None else -(self.margin or 0.0)

    @property
    def null(self) -> float:
        """The effect that is tested against: none, or the largest harmless change the wrong way."""
        return 0.0 if self.margin is None else -self.sign * self.margin


class MetricStatistic(EffectStatistic):
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


class LateSlopeStatistic(EffectStatistic):
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


class PathStatistic(EffectStatistic):
    """A quantity of Sigma_t averaged over the times of the path, method minus baseline.

    Attributes:
        quantity: ln kappa(Sigma_t) or the effective rank; the overall scale of every space is mean variance one.
        scope: the covariance over all classes, or the worst single class.
        floor: by data set, the mean ln kappa(Sigma_t) that white noise of as many rows shows, where that is not near 0.
    """

    kind: Literal["path_conditioning"]
    quantity: Literal["log_condition_number", "effective_rank"]
    scope: Literal["all", "worst_class"]
    # without a floor, what decides is what it was before floors were given
    floor: dict[str, Positive] = Field(default_factory=dict, exclude_if=lambda floors: not floors)


class RankCorrelationStatistic(EffectStatistic):
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
        id: C1 to C11, with a part (`C8a`) and a setting (`C8a-score`); S1 for claims of our own.
        text: the claim in one sentence.
        whose_words: who says so, and where.
        caveat: what a reader of the verdict has to know of how it was tested.
        methods: the preconditioners it is about; it holds if one of them meets every deciding statistic.
        baselines: what each is compared with, all of them; `{method}` stands for the method's name.
        conditions: under which it may hold or not; only where they are listed can a verdict be mixed.
        statistics: the numbers that decide it, or are reported beside.
        experiments: the experiments that count.
        settings: the settings that count, where an experiment has several; all of them if none is named.
    """

    id: Annotated[str, Field(pattern=r"^[CS]\d+[a-z]?(-[a-z]+)?$")]
    text: str
    whose_words: str
    caveat: str = ""
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1)]
    experiments: Names
    settings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_decided(self) -> "Claim":
        for statistic in self.statistics:
            if statistic.kind in COMPARING and not (self.methods and self.baselines_of(statistic)):
                raise ValueError("statistics that compare need methods and baselines")
            if statistic.condition and statistic.condition not in self.conditions:
                raise ValueError(
                    f"conditions: {statistic.name!r} is about {statistic.condition!r}, which is not listed"
                )
        deciding = [statistic for statistic in self.statistics if statistic.role == "decides"]
        if not deciding:
            raise ValueError("statistics: at least one must decide")
        idle = set(self.conditions) - {statistic.condition for statistic in deciding}
        if idle:
            raise ValueError(f"conditions: no statistic decides under {min(idle)!r}")
        names = [statistic.name for statistic in self.statistics]
        if len(set(names)) < len(names):
            raise ValueError("statistics: every name may stand there once")
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of what decides; texts and what is only reported are not in it."""
        content = self.model_dump(
            mode="json", include={"methods", "baselines", "conditions", "experiments", "settings"}
        )
        content["statistics"] = [s.model_dump(mode="json") for s in self.statistics if s.role == "decides"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def deciding(self, side: Side) -> list[Statistic]:
        """The statistics that decide on one side."""
        theory = side == "theory"
        return [s for s in self.statistics if s.role == "decides" and (s.kind == "theory") == theory]

    def conditions_of(self, side: Side) -> tuple[str, ...]:
        """The conditions that are told apart on one side; a single one without a name if none is."""
        named = {statistic.condition for statistic in self.deciding(side)}
        return tuple(name for name in self.conditions if name in named) or ("",)

    def criteria(self, side: Side, condition: str) -> dict[str, list[Statistic]]:
        """By method, the statistics that decide on one side under one condition; by no name what is of no method."""
        found = [s for s in self.deciding(side) if s.condition in ("", condition)]
        if side == "data":
            names = self.methods if any(s.kind in COMPARING for s in found) else ("",)
            return dict.fromkeys(names, found)
        named = [s.method for s in found if isinstance(s, TheoryStatistic)]
        names = tuple(dict.fromkeys(filter(None, named))) or ("",)
        return {name: [s for s, of in zip(found, named, strict=True) if of in ("", name)] for name in names}

    def baselines_of(self, statistic: Statistic, method: str = "{method}") -> tuple[str, ...]:
        """What a method is compared with: by the statistic, else by the claim; nothing where nothing is compared."""
        if statistic.kind not in COMPARING:
            return ()
        names = getattr(statistic, "baselines", ()) or self.baselines
        return tuple(name.format(method=method) for name in names)


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


def missing_arms(
    spec: ClaimsSpec,
    experiment: str,
    arms: Mapping[str, Collection[str]],
    likelihoods: Collection[str],
) -> None:
    """Refuse an experiment that a claim names, but that does not run what the verdict would be asked of.

    Args:
        spec: the claims.
        experiment: its name; what only extends it, or a tiny copy, is named by no claim.
        arms: by setting, the names of its methods, matched baselines (`-P`, `-F`) among them; empty for controlled
            experiments alone.
        likelihoods: the settings with likelihoods.

    Raises:
        PrecfmError: none of the claim's settings is there, or one lacks a method, a baseline or the likelihood; names
            it and the claim. Maps alone are never lacking: every map and skip has its row.
    """

    def refused(claim: Claim, what: str) -> PrecfmError:
        return PrecfmError(
            f"claims.{claim.id}: {what}; run it there, or take the experiment out of the claim"
        )

    for claim in spec.claims:
        deciding = claim.deciding("data")
        if experiment not in claim.experiments or not deciding or not arms:
            continue
        counting = [name for name in arms if not claim.settings or name in claim.settings]
        if not counting:
            raise refused(claim, f"none of the settings {', '.join(claim.settings)} is one of {experiment}")
        for setting in counting:
            for statistic in deciding:
                needed = getattr(statistic, "metric", "") == LIKELIHOOD
                if needed and setting not in likelihoods:
                    raise refused(
                        claim, f"{LIKELIHOOD!r} decides, but the setting '{setting}' of {experiment} has none"
                    )
                for name in _compared(claim, statistic):
                    if name not in arms[setting]:
                        raise refused(
                            claim,
                            f"{name!r} is not among the methods of the setting '{setting}' of {experiment}",
                        )


def missing_statistics(
    spec: ClaimsSpec,
    experiment: str,
    yielded: Mapping[str, Collection[str]],
    possible: Mapping[str, Collection[str]],
    *,
    has_data: bool,
) -> None:
    """Refuse an experiment that is to decide a claim in theory, but whose jobs do not yield a statistic that decides.

    It is to decide where one of its jobs is of an experiment that yields any of the claim's statistics. So that a claim
    may name it for its data alone, it need have no such job if it has data and the claim is decided on data, too.

    Args:
        spec: the claims.
        experiment: its name; what only extends it, or a tiny copy, is named by no claim.
        yielded: by theory job, patterns of the statistics' names.
        possible: the same for the options' defaults, with which a job leaves nothing out.
        has_data: whether it has data, and not controlled experiments alone.

    Raises:
        PrecfmError: a statistic is yielded by no job; names it and the claim.
    """

    def of(jobs: Mapping[str, Collection[str]], name: str) -> list[str]:
        return [job for job, patterns in jobs.items() if any(fnmatchcase(name, each) for each in patterns)]

    for claim in spec.claims:
        names = [statistic.name for statistic in claim.deciding("theory")]
        for_data = has_data and claim.deciding("data") and not any(of(possible, name) for name in names)
        if experiment not in claim.experiments or for_data:
            continue
        for name in names:
            if not of(yielded, name):
                jobs = [f"theory.{job}" for job in of(possible, name)]
                where = (
                    f"the options of {' and '.join(jobs)} leave it out" if jobs else "no theory job yields it"
                )
                raise PrecfmError(
                    f"claims.{claim.id}: {name!r} decides, but in {experiment} {where}; run it there (the default "
                    "options of its job do), or take the experiment out of the claim"
                )


def _compared(claim: Claim, statistic: Statistic) -> list[str]:
    """The trained flows that a statistic compares."""
    methods = claim.methods if statistic.kind in COMPARING else ()
    names = [name for method in methods for name in (method, *claim.baselines_of(statistic, method))]
    return [name for name in names if not name.startswith(ALONE)]


def _field(content: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """The place of a mistake as a reader would say it: `claims.C6.statistics.0.direction`."""
    parts = list(location)
    if len(parts) > 4 and parts[2] == "statistics":
        del parts[4]  # the kind of the statistic, which is no field of the file
    if len(parts) > 1 and isinstance(parts[1], int):
        claim = content["claims"][parts[1]]
        parts[1] = claim.get("id", parts[1]) if isinstance(claim, Mapping) else parts[1]
    return ".".join(map(str, parts)) or "the whole file"
