"""Intervals that join the scatter of seeds with what all seeds share: the frame `bootstrap` beside `records`.

A replicate is the value of a metric when the held-out rows are resampled, with the same resample for all methods, seeds
and settings of a data set. So differences are taken within a replicate, and what both sides share cancels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from precfm.core.statistics import Alternative, Estimate, joint_estimate

_RUN = ["dataset", "metric", "space", "method", "seed", "step"]


def unpacked(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each of the frame `bootstrap`, one column for each replicate, which a row holds as text."""
    replicates = [[float(value) for value in text.split()] for text in rows["replicates"]]
    return pd.DataFrame(replicates, index=pd.MultiIndex.from_frame(rows[_RUN]), dtype=float)


class Bootstrap:
    """The replicates of every number that has some."""

    def __init__(self, rows: pd.DataFrame) -> None:
        """Take the frame `bootstrap`, or part of it; an empty one gives intervals of the scatter of seeds alone."""
        # Twice the same run and replicate: evaluation seeds, which count as their mean, as in the records.
        self._wide = unpacked(rows).groupby(level=_RUN).mean()
        self._resampled = set(zip(rows["dataset"], rows["metric"], rows["space"], strict=True))

    def of(self, about: Mapping[str, Any], method: str, runs: pd.DataFrame) -> NDArray[np.float64] | None:
        """The replicates of one method's runs.

        Args:
            about: says the dataset, metric and space.
            method: its name.
            runs: columns seed and step.

        Returns:
            Shape (runs, B), NaN for a run that has none, so that there is no interval; None where the metric has none
            at all in this data set and space, so that the interval is that of seeds alone.
        """
        shared = tuple(about[key] for key in ("dataset", "metric", "space"))
        if shared not in self._resampled or runs.empty:
            return None
        keys = [(*shared, method, seed, step) for seed, step in zip(runs["seed"], runs["step"], strict=True)]
        return self._wide.reindex(pd.MultiIndex.from_tuples(keys, names=_RUN)).to_numpy()

    def mean(self, about: Mapping[str, Any], method: str, runs: pd.DataFrame) -> Estimate:
        """Mean over a method's runs, which have a column value too."""
        return joint_estimate(runs["value"], self.of(about, method, runs))

    def difference(
        self,
        about: Mapping[str, Any],
        method: str,
        baseline: str,
        pairs: pd.DataFrame,
        *,
        transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.asarray,
        null: float = 0.0,
        alternative: Alternative = "two-sided",
    ) -> Estimate:
        """Mean of the paired differences, method minus baseline.

        Args:
            about: says the dataset, metric and space.
            method: its name.
            baseline: what it is compared with.
            pairs: of `precfm.report.rows.pair`, values already transformed.
            transform: what the values went through, for the replicates: `np.log` for ratios.
            null: the difference under the null hypothesis.
            alternative: the side of the test.
        """
        mine, theirs = self._sides(about, method, baseline, pairs)
        replicates = None if mine is None or theirs is None else transform(mine) - transform(theirs)
        differences = pairs["value"] - pairs["value_baseline"]
        return joint_estimate(differences, replicates, null=null, alternative=alternative)

    def lack(self, about: Mapping[str, Any], method: str, baseline: str, pairs: pd.DataFrame) -> bool:
        """Whether one of the runs has no replicates, though the metric has some in this data set and space."""
        sides = self._sides(about, method, baseline, pairs)
        return any(side is not None and bool(np.isnan(side).any()) for side in sides)

    def _sides(
        self, about: Mapping[str, Any], method: str, baseline: str, pairs: pd.DataFrame
    ) -> list[NDArray[np.float64] | None]:
        theirs = pairs[["seed_baseline", "step_baseline"]].set_axis(["seed", "step"], axis=1)
        return [self.of(about, method, pairs), self.of(about, baseline, theirs)]
