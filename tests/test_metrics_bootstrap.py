"""The bootstrap of shared held-out rows, and the floor's draws: against plain resampling and known errors."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.geometry.recovery import eigenvalue_recovery, recovery_replicates
from precfm.metrics.bootstrap import (
    frechet_against_fits,
    reference_fits,
    reference_resamples,
    resampled_means,
    shared_deviations,
)
from precfm.metrics.floor import floor_rows
from precfm.metrics.frechet import frechet_distance


def sample(n: int, dim: int, seed: int, *, spread: float = 0.0) -> Tensor:
    """Rows in rotated axes, with standard deviations from 1 down to 10^-spread."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)))[0]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator) * torch.logspace(-spread, 0, dim) @ basis + 3.0


def replicates(x: Tensor, y: Tensor, resamples: Tensor) -> Tensor:
    return frechet_against_fits(x, reference_fits(y, resamples))


def test_resamples_are_drawn_with_replacement_and_are_a_function_of_their_arguments() -> None:
    counts = reference_resamples(500, 40, seed=1)
    assert torch.equal(counts.sum(1), torch.full((40,), 500))
    # Counts are binomial with mean 1 and variance 1 - 1 / n.
    assert float(counts.double().var()) == pytest.approx(1.0, rel=0.05)
    assert torch.equal(counts, reference_resamples(500, 40, seed=1))
    assert not torch.equal(counts, reference_resamples(500, 40, seed=2))
    with pytest.raises(PrecfmError, match="replicates"):
        reference_resamples(500, 0)


@pytest.mark.parametrize(
    ("n", "dim", "spread"),
    [(300, 6, 0.0), (300, 6, 4.0), (60, 40, 1.0), (20, 40, 0.0)],
    ids=["white", "ill-conditioned", "few rows", "fewer rows than dimensions"],
)
def test_replicates_are_the_distances_to_the_repeated_rows(n: int, dim: int, spread: float) -> None:
    x, y = sample(80, dim, 1, spread=spread), sample(n, dim, 2, spread=spread)
    resamples = reference_resamples(n, 5)
    found = replicates(x, y, torch.cat([torch.ones(1, n, dtype=torch.int64), resamples]))
    sets = [y, *(y.repeat_interleave(counts, dim=0) for counts in resamples)]
    expected = [frechet_distance(x, repeated, few_samples="allow") for repeated in sets]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


def test_replicates_scatter_as_new_references_do() -> None:
    """The standard deviation of replicates, against the scatter over many held-out sets."""
    x = 1.2 * sample(150, 3, 0)
    references = [sample(200, 3, seed) for seed in range(1, 101)]
    errors = [replicates(x, y, reference_resamples(200, 60)).std() for y in references[:6]]
    values = [frechet_distance(x, y) for y in references]
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.3)


def test_differences_of_replicates_are_paired() -> None:
    x, fits = sample(120, 3, 1), reference_fits(sample(150, 3, 2), reference_resamples(150, 40))
    alone, near = frechet_against_fits(x, fits), frechet_against_fits(1.01 * x, fits)
    assert float((near - alone).std()) < 0.3 * float(alone.std())


def test_replicates_of_recovery_are_those_of_the_repeated_rows() -> None:
    x, y, resamples = sample(90, 5, 1, spread=1.0), sample(70, 5, 2, spread=1.0), reference_resamples(70, 4)
    directions = torch.linalg.qr(sample(5, 5, 3).double())[0]
    found = recovery_replicates(
        x, y, directions, torch.cat([torch.ones(1, 70, dtype=torch.int64), resamples])
    )
    sets = [y, *(y.repeat_interleave(counts, dim=0) for counts in resamples)]
    expected = [eigenvalue_recovery(x, repeated, directions) for repeated in sets]
    torch.testing.assert_close(found.ratios, torch.stack([each.ratios for each in expected]))
    assert found.log_error.tolist() == pytest.approx([each.log_error for each in expected])
    assert found.log_error_low.tolist() == pytest.approx([each.log_error_low for each in expected])


def test_resampled_means_are_those_of_the_repeated_values_and_have_the_standard_error_of_a_mean() -> None:
    values, resamples = sample(400, 1, 1)[:, 0], reference_resamples(400, 1000)
    found = resampled_means(values, resamples)
    assert float(found[3]) == pytest.approx(float(values.repeat_interleave(resamples[3]).mean()), rel=1e-6)
    assert float(found.std()) == pytest.approx(float(values.std()) / math.sqrt(400), rel=0.1)


def test_an_error_that_all_rows_share_has_the_spread_of_a_mean_over_vectors() -> None:
    estimates = sample(16, 1, 2) + 0.1 * sample(
        16, 50, 3
    )  # of 16 vectors, nearly the same for all of 50 rows
    deviations = estimates - estimates.mean(0)
    found = shared_deviations(deviations, reference_resamples(50, 2000))
    assert float(found.std()) == pytest.approx(float(deviations.mean(1).std()) / 4, rel=0.1)
    assert abs(float(found.mean())) < 0.1 * float(found.std())
    assert torch.equal(found, shared_deviations(deviations, reference_resamples(50, 2000)))  # for all methods


def test_what_does_not_fit_is_named() -> None:
    y, resamples = sample(30, 3, 1), reference_resamples(30, 2)
    with pytest.raises(PrecfmError, match=r"^resamples: .*\(2, 30\)"):
        resampled_means(torch.zeros(29), resamples)
    with pytest.raises(PrecfmError, match=r"^resamples: .*, 29\)"):
        shared_deviations(torch.zeros(16, 29), resamples)
    with pytest.raises(PrecfmError, match=r"^resamples: "):
        reference_fits(y[:20], resamples)
    with pytest.raises(PrecfmError, match=r"^resamples: "):
        recovery_replicates(y, y[:20], torch.eye(3), resamples)
    with pytest.raises(PrecfmError, match=r"^generated: got 2 "):
        frechet_against_fits(y[:, :2], reference_fits(y, resamples))


# ---- the floor


def test_draws_of_the_floor_share_no_row_until_a_class_is_used_up() -> None:
    labels = torch.arange(90) % 3
    asked = torch.tensor([2, 0, 2, 0, 2, 0, 0, 2, 0, 0])  # 6 of 30 rows of class 0, 4 of class 2
    draws = [floor_rows(asked, labels, draw) for draw in range(10)]
    for rows in draws:
        assert torch.equal(labels[rows], asked)
        assert len(rows.unique()) == 10
    assert len(torch.cat(draws[:5]).unique()) == 50
    assert len({tuple(sorted(rows.tolist())) for rows in draws}) == 10
    assert torch.equal(draws[7], floor_rows(asked, labels, 7))
    assert not torch.equal(draws[7], floor_rows(asked, labels, 7, seed=1))
    with pytest.raises(PrecfmError, match=r"^asked: .*class 1 31 times"):
        floor_rows(torch.ones(31, dtype=torch.int64), labels, 0)
