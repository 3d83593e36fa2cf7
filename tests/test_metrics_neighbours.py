"""Precision, recall and copying: conventions, brute force, published implementation, awkward sets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.metrics import distances
from precfm.metrics.copying import copying_check
from precfm.metrics.distances import nearest
from precfm.metrics.neighbours import precision_recall


def sample(n: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def brute_force(x: Tensor, y: Tensor, k: int) -> tuple[float, float]:
    """By the definition, in float64, with numpy."""
    a, b = x.double().numpy(), y.double().numpy()

    def squares(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.asarray(((p[:, None] - q[None]) ** 2).sum(-1))

    radii = [np.sort(squares(z, z) + np.diag([np.inf] * len(z)), axis=1)[:, k - 1] for z in (a, b)]
    cross = squares(a, b)
    return float((cross <= radii[1]).any(1).mean()), float((cross <= radii[0][:, None]).any(0).mean())


@given(st.integers(5, 60), st.integers(5, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_is_the_definition(n: int, m: int, dim: int, k: int, seed: int) -> None:
    x, y = sample(n, dim, seed), sample(m, dim, seed + 1)
    shares = precision_recall(x, y, k)
    assert (shares.precision, shares.recall) == brute_force(x, y, k)
    # Values on a grid: many equal distances, many points exactly on a ball's surface.
    x, y = (2 * x).round(), (2 * y).round()
    shares = precision_recall(x, y, k)
    assert (shares.precision, shares.recall) == brute_force(x, y, k)


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(1500, 1200, 8, 3), (600, 1300, 64, 5), (900, 700, 512, 3)])
def test_agrees_with_torch_fidelity(n: int, m: int, dim: int, k: int) -> None:
    published = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = sample(n, dim, 1, 0.9), sample(m, dim, 2)
    expected = published.calculate_precision_recall_full(x.double(), y.double(), k)
    shares = precision_recall(x, y, k)
    assert shares.precision == pytest.approx(expected[0], rel=1e-6)
    assert shares.recall == pytest.approx(expected[1], rel=1e-6)
    assert 0 < shares.precision < 1 or 0 < shares.recall < 1


def test_a_dropped_mode_lowers_recall_and_not_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    modes = torch.randint(4, (1200,), generator=generator)
    centres = 20 * torch.eye(4)
    real = centres[modes] + sample(1200, 4, 1)
    dropped = centres[modes.clamp(max=2)] + sample(1200, 4, 2)
    whole = precision_recall(centres[modes] + sample(1200, 4, 3), real)
    shares = precision_recall(dropped, real)
    assert shares.precision > 0.85
    assert whole.recall - shares.recall > 0.15
    assert not bool(shares.reference_inside[modes == 3].any())


def test_a_blurred_sample_lowers_precision_and_not_recall() -> None:
    real = sample(1000, 4, 1)
    exact, blurred = sample(1000, 4, 2), sample(1000, 4, 2) + sample(1000, 4, 3, 2.0)
    sharp, soft = precision_recall(exact, real), precision_recall(blurred, real)
    assert sharp.precision - soft.precision > 0.3
    assert soft.recall > sharp.recall - 0.1


def test_identical_sets_are_all_inside_and_order_changes_nothing() -> None:
    x, y = sample(1200, 6, 1), sample(1000, 6, 2)
    same = precision_recall(x, x.clone())
    assert (same.precision, same.recall) == (1.0, 1.0)
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    shares, shuffled = precision_recall(x, y), precision_recall(x[order], y.flip(0))
    assert shares.precision == shuffled.precision
    assert shares.recall == shuffled.recall
    assert torch.equal(shares.generated_inside[order], shuffled.generated_inside)


def test_far_from_the_origin_and_with_outliers_nothing_is_lost() -> None:
    """Products in float32 alone have no digits left here; exact distances have."""
    x, y = sample(600, 3, 1), sample(500, 3, 2)
    expected = brute_force(x, y, 3)
    far = torch.tensor([4096.0, -8192.0, 2048.0], dtype=torch.float64)
    shares = precision_recall(x.double() + far, y.double() + far)
    assert (shares.precision, shares.recall) == pytest.approx(expected)
    x, y = x.clone(), y.clone()
    x[5], y[7] = 1e6, -1e6
    shares = precision_recall(x, y)
    assert (shares.precision, shares.recall) == brute_force(x, y, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_are_the_nearest_in_any_chunk(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sample(1500, 5, 1).to(dtype), sample(700, 5, 2).to(dtype)
    expected = (y.double()[:, None] - x.double()[None]).square().sum(-1).topk(4, largest=False)
    for chunk in (2**22, 10_000):
        monkeypatch.setattr(distances, "_CHUNK", chunk)
        squares, rows = nearest(y, x, 4)
        torch.testing.assert_close(squares, expected.values, rtol=1e-9, atol=1e-12)
        assert torch.equal(rows, expected.indices)
    squares, rows = nearest(y, None, 1)
    assert bool((rows[:, 0] != torch.arange(700)).all())


def test_copies_are_neighbours_at_distance_zero() -> None:
    x = sample(50, 3, 1).repeat(40, 1)
    shares = precision_recall(x, x + 1e-4)
    assert (shares.precision, shares.recall) == (0.0, 0.0)
    assert precision_recall(x, x).precision == 1.0


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(PrecfmError, match=r"^generated: 3 .*k = 3"):
        precision_recall(sample(3, 2, 1), sample(9, 2, 2))
    with pytest.raises(PrecfmError, match="k: got 0"):
        precision_recall(sample(9, 2, 1), sample(9, 2, 2), 0)
    bad = sample(9, 2, 2)
    bad[2, 1] = math.inf
    with pytest.raises(PrecfmError, match=r"^reference: row 2, column 1"):
        precision_recall(sample(9, 2, 1), bad)


def test_copies_are_told_from_new_samples() -> None:
    training, held_out = sample(700, 4, 1), sample(700, 4, 2)
    fresh = copying_check(sample(800, 4, 3), training, held_out)
    assert abs(fresh.nearer - 0.5) < 3 * fresh.standard_error < 0.1
    made = torch.cat([training[100:600] + sample(500, 4, 4, 1e-4), sample(300, 4, 5)])
    copies = copying_check(made, training, held_out)
    assert copies.nearer == pytest.approx((500 + 150) / 800, abs=0.06)
    assert copies.nearer - 0.5 > 9 * copies.standard_error
    assert torch.equal(copies.sources[:500], torch.arange(100, 600))
    unlike = copying_check(held_out, training, held_out)
    assert (unlike.nearer, unlike.standard_error) == (0.0, 0.0)


def test_the_error_of_copying_is_the_scatter_over_data_sets() -> None:
    """Few real samples decide for many generated ones, so an error for independent samples would be too small."""
    found = [
        copying_check(sample(400, 6, s), sample(40, 6, 300 + s), sample(40, 6, 600 + s)) for s in range(150)
    ]
    scatter = np.std([check.nearer for check in found], ddof=1)
    assert np.mean([check.standard_error for check in found]) == pytest.approx(scatter, rel=0.2)
    assert scatter > 1.5 * 0.5 / 400**0.5


def test_ties_count_half_and_say_nothing_of_copying() -> None:
    both = torch.tensor([[0.0], [1.0]])
    result = copying_check(torch.tensor([[0.2], [5.0], [7.0]]), both, both)
    assert (result.nearer, result.standard_error) == (0.5, 0.0)


def test_copying_needs_sets_of_one_size_and_width() -> None:
    x = torch.zeros(3, 1)
    with pytest.raises(PrecfmError, match="held_out: 2 rows"):
        copying_check(x, x, x[:2])
    with pytest.raises(PrecfmError, match="held_out has 2"):
        copying_check(x, x, torch.zeros(3, 2))
