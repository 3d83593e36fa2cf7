"""Selection: which map, or which skip, for these data, by short trainings that are paired by seed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from precfm.core.components import component, spec_of
from precfm.core.errors import PrecfmError
from precfm.core.options import Count, checked
from precfm.core.seeds import derived_seed, generator_for
from precfm.flows.compute import flops_of
from precfm.flows.description import flow_spec
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.flows.settings import FlowSettings, Spec
from precfm.preconditioned_flow import DEFAULT_TRAINING, PreconditionedFlow
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.inputs import checked_labels, checked_rows

DEFAULT = "scalar"  # kept unless another candidate beats it
# Share of the full length from which scores are projected. Earlier each doubling changes scores less than the one
# before: of 64 features with condition number 4e4, a projection from 213 of 5,000 steps put the plain flow first.
PROJECTED_FROM = 0.25
HELD_OUT_SHARE = 0.2  # at most this part of the data judges, where no validation rows are given
FEATURE_MAPS = ("channel_whitening", "per_frequency", "kronecker", "low_rank")  # from few numbers to many
DEFAULT_SETTINGS = FlowSettings(training=DEFAULT_TRAINING)

Judge = Callable[[Tensor, Tensor | None], Tensor]
"""`judge(samples, labels)` is one number, the lower the better, for samples (n, *dim) and what they were asked for."""


@dataclass(frozen=True)
class Candidate:
    """A map and what goes around the network, as `PreconditionedFlow` takes them.

    Attributes:
        preconditioner: a registered name, or a name with options.
        wrappers: the innermost first.
    """

    preconditioner: str | Spec
    wrappers: tuple[str | Spec, ...] = ()


def default_candidates(*, labelled: bool = True, event_shape: tuple[int, ...] = ()) -> dict[str, Candidate]:
    """The candidates of `select`, from simple to complex.

    Args:
        labelled: whether the data have labels; without them learned maps are unconditional.
        event_shape: shape of one datum; of (channels, height, width), the maps of feature maps are candidates, too.
    """
    learned = {} if labelled else {"conditional": False}
    structured = FEATURE_MAPS if len(event_shape) == 3 else ()
    return {
        DEFAULT: Candidate(DEFAULT),
        **{name: Candidate(name) for name in structured},
        "tempered_whitening": Candidate({"name": "whitening", "exponent": 0.25}),
        "whitening": Candidate("whitening"),
        "gaussian_skip": Candidate("scalar", ("gaussian_skip",)),
        "class_whitening": Candidate("class_whitening"),
        "normalizing_flow": Candidate({"name": "normalizing_flow", **learned}),
        "low_capacity_flow": Candidate({"name": "low_capacity_flow", **learned}),
    }


@dataclass(frozen=True)
class Selection:
    """What `select` has chosen, and why.

    Attributes:
        chosen: name of the candidate.
        preconditioner: its map, fitted to the rows that did not judge.
        settings: of a flow in full length, with the candidate's wrappers.
        record: all that was found, as plain JSON data: `chosen`, `reason`, `score` (what the scores are), `rows`,
            `validation_rows`, `steps` (of a flow in full length), `seeds`, `flops` (of all fits, trainings and
            scores), `candidates` (for each `preconditioner`, `wrappers`, `flops` and `out`, why it could not be used,
            or None) and `rungs` (for each `steps`, `projected_to`, `best`, and `candidates`: for each the fields of
            `Standing`, and whether it was `kept`).
    """

    chosen: str
    preconditioner: Preconditioner
    settings: FlowSettings
    record: dict[str, Any]

    @property
    def wrappers(self) -> tuple[dict[str, Any], ...]:
        """What goes around the network, the innermost first."""
        return self.settings.wrappers

    def flow(self) -> PreconditionedFlow:
        """The flow that was chosen, to be fitted in full length; its map is fitted already and stays as it is."""
        return PreconditionedFlow.from_settings(self.settings, self.preconditioner)

    def summary(self) -> str:
        """The reason, and a line for each candidate."""
        last: dict[str, str] = {}
        for rung in self.record["rungs"]:
            for name, row in rung["candidates"].items():
                mean = sum(row["scores"]) / len(row["scores"])
                projected = f", {row['projected']:.4g} projected to {rung['projected_to']}"
                last[name] = (
                    f"{mean:.4g} after {rung['steps']} steps{projected * (rung['projected_to'] > rung['steps'])}, "
                    f"{row['difference']:.3g} above {rung['best']} (standard error {row['standard_error']:.2g})"
                )
        lines = [
            f"{self.record['reason']}.",
            f"Score: {self.record['score']}, the lower the better; full length is {self.record['steps']} steps.",
        ]
        for name, entry in self.record["candidates"].items():
            lines.append(f"{name}: {last[name] if entry['out'] is None else 'out, ' + entry['out']}")
        return "\n".join(lines)


@checked
def select(
    x: Tensor,
    labels: Tensor | None = None,
    *,
    candidates: Mapping[str, Candidate] | None = None,
    settings: FlowSettings = DEFAULT_SETTINGS,
    validation: tuple[Tensor, Tensor | None] | None = None,
    judge: Judge | None = None,
    budget_steps: Count | None = None,
    num_seeds: Annotated[int, Field(ge=3)] = 3,
    validation_rows: Annotated[int, Field(ge=10)] = 500,
    num_samples: Count = 2000,
    solver_steps: Count = 32,
    seed: int = 0,
) -> Selection:
    """Choose a preconditioner, or a skip, for data by short trainings that differ in nothing else.

    Each map is fitted once; behind it a flow is trained from the same seeds, hence with the same draws, and scored on
    rows that neither map nor flow has seen: by the negative log-likelihood in data space, which no map can lower by
    changing units, or by a judge of samples. What leads early need not lead late, since a map that is good by itself
    leaves little to learn: so the scores count as they are projected to twice the steps (at most those of `settings`),
    by what the last doubling has changed; trainings shorter than a quarter of that length count as they are. By
    successive halving the better half of the challengers, and always the default `scalar`, are trained anew for twice
    as long, until at most three challengers are left; the shortest trainings drop nobody. Then the one-standard-error
    rule decides: of the candidates whose mean paired difference to the best is within one standard error, the simplest
    is chosen. The standard error joins the scatter over seeds with that over validation rows, which all candidates
    share. A candidate that is refused, diverges, or has no likelihood where one is needed, is out.

    Measured on 64 principal components of MNIST (MLP 256 x 3, one seed, nats): class whitening leads the Gaussian skip
    by 6.0 at 1,000 steps and loses to it by 3.1 at 2,000, by 8.4 at 4,000; projected from 500 and 1,000 to 2,000 it
    loses by 4.4. One doubling is as far as this was seen to hold.

    Args:
        x: data, shape (n, *dim).
        labels: classes from 0, int64, shape (n,), or None.
        candidates: by name, from simple to complex; None for `default_candidates`. `scalar` is put first if missing.
        settings: of the flow, without wrappers, which come from the candidates.
        validation: rows and labels that judge; None holds out a fifth of each class of `x`, or less.
        judge: of samples instead of the likelihood, such as a Frechet distance; never one that reports results, too.
        budget_steps: of the longest trainings, at most those of `settings`; None for half of them, from where the
            projection reaches the full length. With fewer, the winner may lose beyond.
        num_seeds: trainings of each candidate.
        validation_rows: most rows that judge; drawn at random from more.
        num_samples: that a judge sees.
        solver_steps: of the likelihood and of sampling.
        seed: of everything random.

    Returns:
        The choice, with its fitted map and its record; a function of the arguments.

    Raises:
        PrecfmError: data, settings or a candidate's options are wrong, a candidate is called `scalar` and is another
            map, or no candidate can be used.

    References:
        | Non-stochastic Best Arm Identification and Hyperparameter Optimization (Jamieson & Talwalkar, 2016),
        | https://arxiv.org/abs/1502.07943
        | Classification and Regression Trees (Breiman et al., 1984), section 3.4.3, for the rule

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0])
        >>> small = FlowSettings(model={"name": "mlp", "width": 16})
        >>> chosen = select(x, candidates={"whitening": Candidate("whitening")}, settings=small, budget_steps=40)
        >>> chosen.chosen
        'whitening'
        >>> flow = chosen.flow()  # .fit(x) trains it in full length
    """
    training, held_out = _split(x, labels, validation, validation_rows, seed)
    contest = _Contest(
        training=training,
        held_out=held_out,
        judge=judge,
        seeds=tuple(derived_seed(seed, "selection", position) for position in range(num_seeds)),
        num_samples=num_samples,
        solver_steps=solver_steps,
    )
    given = candidates
    if given is None:
        given = default_candidates(labelled=labels is not None, event_shape=tuple(x.shape[1:]))
    entries = _entries(given, settings)
    for entry in entries:
        contest.fit(entry, seed)

    left = [entry for entry in entries if entry.out is None]
    rungs: list[dict[str, Any]] = []
    table: dict[str, Standing] = {}
    before: dict[str, Tensor] = {}
    full = settings.training.steps
    most = max(1, full // 2) if budget_steps is None else min(budget_steps, full)
    lengths = rung_steps(sum(entry.name != DEFAULT for entry in left), most)
    for steps in lengths:
        tried = {entry.name: contest.scores(entry, steps) for entry in left}
        scores = {name: each for name, each in tried.items() if each is not None}
        late = bool(before) and steps >= PROJECTED_FROM * full
        doublings = min(1.0, math.log2(full / steps)) if late else 0.0
        table = standings(scores, before, doublings)
        if not table:
            break
        last = steps == lengths[-1] or len(table) == 1
        kept = {preferred(table)[0]} if last else _better_half(table) if before else set(table)
        rungs.append(
            {
                "steps": steps,
                "projected_to": round(steps * 2**doublings),
                "best": _best(table),
                "candidates": {
                    name: {**standing._asdict(), "kept": name in kept} for name, standing in table.items()
                },
            }
        )
        left, before = [entry for entry in left if entry.name in kept], scores
        if last:
            break
    if not table:
        reasons = "; ".join(f"{entry.name} ({entry.out})" for entry in entries)
        raise PrecfmError(f"candidates: none can be used, but one is needed: {reasons}")
    (chosen,) = left
    return Selection(
        chosen=chosen.name,
        preconditioner=chosen.preconditioner,
        settings=chosen.settings,
        record=_plain(
            {
                "chosen": chosen.name,
                "reason": preferred(table)[1],
                "score": "negative log-likelihood of validation rows in nats"
                if judge is None
                else "the judge's",
                "rows": len(training[0]),
                "validation_rows": len(held_out[0]),
                "steps": full,
                "seeds": list(contest.seeds),
                "flops": sum(entry.flops for entry in entries),
                "candidates": {entry.name: entry.record() for entry in entries},
                "rungs": rungs,
            }
        ),
    )


class Standing(NamedTuple):
    """Where a candidate stands in a rung.

    Attributes:
        scores: by seed, the lower the better.
        projected: mean over seeds, if the next steps change as much as the last ones did.
        difference: mean paired difference to the best, projected; at least 0.
        standard_error: of the difference.
    """

    scores: list[float]
    projected: float
    difference: float
    standard_error: float


def standings(
    scores: Mapping[str, Tensor], before: Mapping[str, Tensor] | None = None, doublings: float = 0.0
) -> dict[str, Standing]:
    """Each candidate against the best of them.

    The variance of a mean paired difference is that of the means over rows, over the number of seeds, and that of the
    means over seeds, over the number of rows: the rows are the same for all seeds, so that more seeds do not lower it.

    Args:
        scores: by name, shape (seeds, rows), paired in both; one column where rows are not scored one by one.
        before: the same after half of the steps; where it is missing, nothing is projected.
        doublings: of the steps, by which the scores are projected, linearly in the logarithm of the steps.
    """
    ahead = {name: now + doublings * (now - before[name]) if before else now for name, now in scores.items()}
    best = min(ahead, key=lambda name: float(ahead[name].mean()), default="")
    found = {}
    for name, each in ahead.items():
        difference = each - ahead[best]
        variance = sum(
            float(difference.mean(dim=1 - axis).var()) / difference.shape[axis]
            for axis in (0, 1)
            if difference.shape[axis] > 1
        )
        found[name] = Standing(
            scores[name].mean(dim=1).tolist(),
            float(each.mean()),
            float(difference.mean()),
            math.sqrt(variance),
        )
    return found


def preferred(table: Mapping[str, Standing]) -> tuple[str, str]:
    """The first candidate within one standard error of the best.

    Args:
        table: from simple to complex.

    Returns:
        Its name, and the reason.
    """
    best = _best(table)
    chosen = next(name for name, each in table.items() if each.difference <= each.standard_error)

    def behind(name: str) -> str:
        return f"{table[name].difference:.3g} (standard error {table[name].standard_error:.2g})"

    if chosen != best:
        return chosen, (
            f"{chosen} is the simplest within one standard error of the best, {best}, which is better by "
            f"{behind(chosen)}"
        )
    reason = f"{best} is the best"
    if best != DEFAULT and DEFAULT in table:
        reason += f", better than {DEFAULT}, the default, by {behind(DEFAULT)}"
    return chosen, reason


def _best(table: Mapping[str, Standing]) -> str:
    return min(table, key=lambda name: table[name].projected)


@dataclass
class _Entry:
    """A candidate in a contest."""

    name: str
    preconditioner: Preconditioner
    settings: FlowSettings
    wrapper_state: dict[str, Tensor] = field(default_factory=dict)
    flops: int = 0
    flops_per_step: int = 0
    flops_per_score: int = 0
    out: str | None = None

    def record(self) -> dict[str, Any]:
        spec = spec_of("preconditioners", self.preconditioner, Preconditioner)
        return {
            "preconditioner": spec,
            "wrappers": list(self.settings.wrappers),
            "flops": self.flops,
            "out": self.out,
        }


@dataclass(frozen=True)
class _Contest:
    """What all candidates of a selection share."""

    training: LabelledRows
    held_out: LabelledRows
    judge: Judge | None
    seeds: tuple[int, ...]
    num_samples: int
    solver_steps: int

    def fit(self, entry: _Entry, seed: int) -> None:
        """Fit a candidate's map and wrappers, to training rows alone, so that no validation row is seen twice."""
        try:
            if self.judge is None and not entry.preconditioner.has_log_det:
                raise PrecfmError(
                    "has no closed-form Jacobian determinant, hence no likelihood; a judge is needed"
                )
            entry.preconditioner.fit(*self.training, seed=derived_seed(seed, "preconditioner"))
            flow = PreconditionedFlow.from_settings(entry.settings, entry.preconditioner)
            flow.prepare(*self.training, seed=seed)
            entry.wrapper_state, entry.flops_per_step = flow.wrapper_state(), flow.flops_per_step
            entry.flops = flow.wrapper_facts()["flops_per_fit"]
        except PrecfmError as error:
            entry.out = str(error)
        entry.flops += (
            entry.preconditioner.flops_per_fit
        )  # a training that was refused at its end was paid for

    def scores(self, entry: _Entry, steps: int) -> Tensor | None:
        """Scores of fresh trainings, float64, shape (seeds, rows), or (seeds, 1) by a judge; None if one failed."""
        found = []
        for position, seed in enumerate(self.seeds):
            flow = PreconditionedFlow.from_settings(entry.settings.shortened(steps), entry.preconditioner)
            try:
                flow.prepare(*self.training, seed=seed, fitted_wrappers=entry.wrapper_state)
                entry.flops += entry.flops_per_step * steps
                flow.train(seed=seed, name=f"{entry.name}, {steps} steps, seed {position}")
                score = self._score(entry, flow, seed)
                if not bool(score.isfinite().all()):
                    raise PrecfmError(f"the score after {steps} steps is not finite")
            except PrecfmError as error:
                entry.out = str(error)
                return None
            found.append(score)
        return torch.stack(found)

    def _score(self, entry: _Entry, flow: PreconditionedFlow, seed: int) -> Tensor:
        x, labels = self.held_out
        if self.judge is None:

            def negative_log_likelihood(rows: int) -> Tensor:
                asked = None if labels is None else labels[:rows]
                return -flow.log_prob(x[:rows], asked, steps=self.solver_steps, seed=seed)

            score, rows, probe = negative_log_likelihood(len(x)), len(x), negative_log_likelihood
        else:
            known = self.training[1]
            asked = None if known is None else evaluation_labels(self.num_samples, known.cpu(), seed)
            noise = evaluation_noise(self.num_samples, tuple(x.shape[1:]), seed)

            def samples(rows: int) -> Tensor:
                return flow.transport(
                    noise[:rows], None if asked is None else asked[:rows], steps=self.solver_steps
                )

            score = torch.as_tensor(self.judge(samples(self.num_samples), asked)).reshape(-1)
            if len(score) != 1:
                raise PrecfmError(f"judge: gave {len(score)} numbers; one is needed")
            rows, probe = self.num_samples, samples
        if not entry.flops_per_score:  # counted once, of one row
            entry.flops_per_score = rows * flops_of(lambda: probe(1))
        entry.flops += entry.flops_per_score
        return score.detach().double().cpu()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a file would give it back."""
    plain: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
    return plain


def _entries(candidates: Mapping[str, Candidate], settings: FlowSettings) -> list[_Entry]:
    """The candidates in their order, the default among them; wrong names and options are refused here."""
    if settings.wrappers:
        raise PrecfmError(
            f"settings.wrappers: got {settings.wrappers[0]['name']!r}; () is needed, since candidates bring their own"
        )
    PreconditionedFlow.from_settings(settings, component("preconditioners", DEFAULT, Preconditioner))
    default = default_candidates()[DEFAULT]
    if candidates.get(DEFAULT, default) != default:
        raise PrecfmError(
            f"candidates.{DEFAULT}: got {candidates[DEFAULT]}; this name is that of the default, {default}"
        )
    found = []
    for name, candidate in {DEFAULT: default, **candidates}.items():
        try:
            wrappers = tuple(flow_spec("wrappers", wrapper) for wrapper in candidate.wrappers)
            preconditioner = component("preconditioners", candidate.preconditioner, Preconditioner)
        except PrecfmError as error:
            raise PrecfmError(f"candidates.{name}: {error}") from None
        found.append(_Entry(name, preconditioner, settings.model_copy(update={"wrappers": wrappers})))
    return found


def rung_steps(challengers: int, most: int) -> list[int]:
    """Steps of each rung, doubling up to `most`: one that drops nobody, one for each halving to three, the last."""
    halvings = max(0, math.ceil(math.log2(max(challengers, 1) / 3)))
    return sorted({max(1, most // 2**rung) for rung in range(halvings + 2)})


def _better_half(table: Mapping[str, Standing]) -> set[str]:
    """The default, and the better half of its challengers."""
    challengers = sorted((name for name in table if name != DEFAULT), key=lambda name: table[name].projected)
    return {*challengers[: -(-len(challengers) // 2)], *({DEFAULT} & set(table))}


def _split(
    x: Tensor, labels: Tensor | None, validation: LabelledRows | None, most: int, seed: int
) -> tuple[LabelledRows, LabelledRows]:
    """Rows that train and rows that judge, checked: the given ones, or a share of each class of `x`."""
    generator = generator_for(seed, "validation rows")
    x, labels = _checked(x, labels, "x")
    if validation is not None:
        rows, known = _checked(*validation, "validation")
        if (known is None) != (labels is None):
            raise PrecfmError(
                "validation: got labels on one side only; both x and validation need them, or neither"
            )
        chosen = torch.randperm(len(rows), generator=generator)[:most].to(rows.device)
        held_out = rows[chosen], None if known is None else known[chosen]
    else:
        classes = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels.cpu()
        order, mask = torch.randperm(len(x), generator=generator), torch.zeros(len(x), dtype=torch.bool)
        share = min(HELD_OUT_SHARE, most / max(len(x), 1))
        for label in torch.unique(classes).tolist():  # by class, so that none is lost to the fit
            members = order[classes[order] == label]
            mask[members[: int(share * len(members))]] = True
        mask = mask.to(x.device)
        held_out = x[mask], None if labels is None else labels[mask]
        x, labels = x[~mask], None if labels is None else labels[~mask]
    if len(held_out[0]) < 2:
        raise PrecfmError(f"validation: got {len(held_out[0])} rows; at least 2 are needed to judge")
    return (x, labels), held_out


def _checked(x: Tensor, labels: Tensor | None, name: str) -> LabelledRows:
    checked_rows(x, name, tuple(x.shape[1:]), x.device)
    return x, None if labels is None else checked_labels(labels, len(x), x.device)
