"""Trainings that are paired by seed, and their scores on rows that neither map nor flow has seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.seeds import derived_seed, generator_for
from precfm.flows.compute import flops_of
from precfm.flows.sampling import evaluation_labels, evaluation_noise
from precfm.preconditioned_flow import PreconditionedFlow
from precfm.preconditioners.fit_data import LabelledRows
from precfm.preconditioners.inputs import checked_labels, checked_rows
from precfm.selection.candidates import Entry

HELD_OUT_SHARE = 0.2  # at most this part of the data judges, where no validation rows are given

Judge: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""`judge(samples, labels)` is one number, the lower the better, for samples (n, *dim) and what they were asked for."""


@dataclass(frozen=True)
class Contest:
    """What all candidates of a selection share."""

    training: LabelledRows
    held_out: LabelledRows
    judge: Judge | None
    seeds: tuple[int, ...]
    num_samples: int
    solver_steps: int

    def fit(self, entry: Entry, seed: int) -> None:
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

    def scores(self, entry: Entry, steps: int) -> Tensor | None:
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

    def _score(self, entry: Entry, flow: PreconditionedFlow, seed: int) -> Tensor:
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


def split_rows(
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
