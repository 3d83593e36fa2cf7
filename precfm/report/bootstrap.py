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


class Bootstrap:
    """The replicates of every number that has some."""

    def __init__(self, rows: pd.DataFrame) -> None:
        """Take the frame `bootstrap`, or part of it; an empty one gives intervals of the scatter of seeds alone."""
        # Twice the same run and replicate: evaluation seeds, which count as their mean, as in the records.
        values = rows.astype({"value": float}).groupby([*_RUN, "replicate"])["value"].mean()
        self._wide: pd.DataFrame = values.unstack("replicate")

    def of(self, about: Mapping[str, Any], method: str, runs: pd.DataFrame) -> NDArray[np.float64] | None:
        """The replicates of one method's runs.

        Args:
            about: says the dataset, metric and space.
            method: its name.
            runs: columns seed and step.

        Returns:
            Shape (runs, B); None if one of the runs has none.
        """
        shared = [about[key] for key in ("dataset", "metric", "space")]
        keys = [(*shared, method, seed, step) for seed, step in zip(runs["seed"], runs["step"], strict=True)]
        if self._wide.empty or not keys or not all(key in self._wide.index for key in keys):
            return None
        found = self._wide.loc[keys].to_numpy()
        return None if np.isnan(found).any() else found

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
        theirs = pairs[["seed_baseline", "step_baseline"]].set_axis(["seed", "step"], axis=1)
        sides = (self.of(about, method, pairs), self.of(about, baseline, theirs))
        replicates = None
        if sides[0] is not None and sides[1] is not None:
            replicates = transform(sides[0]) - transform(sides[1])
        differences = pairs["value"] - pairs["value_baseline"]
        return joint_estimate(differences, replicates, null=null, alternative=alternative)
