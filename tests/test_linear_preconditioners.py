"""What the closed-form maps promise on top of the contract, against formulas computed independently."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, options_of
from precfm.geometry.spectra import condition_number, covariance
from precfm.preconditioners.base import Preconditioner
from precfm.preconditioners.channel_whitening import ChannelWhitening
from precfm.preconditioners.class_whitening import ClassWhitening
from precfm.preconditioners.kronecker import Kronecker
from precfm.preconditioners.low_rank import LowRank
from precfm.preconditioners.per_channel import PerChannel
from precfm.preconditioners.per_frequency import PerFrequency
from precfm.preconditioners.projection import Projection
from precfm.preconditioners.scalar import Scalar
from precfm.preconditioners.whitening import Whitening
from tests.preconditioner_cases import CLASSES, FEATURES, METRIC, SHAPE, ill_conditioned, make

Labelled = tuple[Tensor, Tensor]
CLOSED = (
    "scalar", "per_channel", "channel_whitening", "per_frequency", "kronecker", "low_rank", "whitening",
    "class_whitening", "projection",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Labelled:
    return ill_conditioned(450, seed=0)


@settings(max_examples=25, deadline=None)
@given(
    exponent=st.floats(-0.5, 1.0),
    shrinkage=st.floats(0.0, 1.0),
    log_kappa=st.floats(0.0, 6.0),
    seed=st.integers(0, 1000),
)
def test_whitening_is_the_matrix_power(
    exponent: float, shrinkage: float, log_kappa: float, seed: int
) -> None:
    x = ill_conditioned(60, seed, kappa=10**log_kappa)[0].flatten(1)
    cov = np.cov(x.numpy(), rowvar=False)
    shrunk = (1 - shrinkage) * cov + shrinkage * np.trace(cov) / FEATURES * np.eye(FEATURES)
    matrix = scipy.linalg.fractional_matrix_power(shrunk, -exponent)
    matrix = matrix / np.sqrt(np.trace(matrix @ cov @ matrix.T) / FEATURES)
    expected = (x.numpy() - x.numpy().mean(axis=0)) @ matrix
    z = Whitening(exponent, shrinkage).fit(x).forward(x)
    assert np.allclose(z.numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(-0.25, 0.5), log_kappa=st.floats(0.0, 5.0))
def test_tempering_takes_a_power_of_the_condition_number(exponent: float, log_kappa: float) -> None:
    x = ill_conditioned(200, seed=0, kappa=10**log_kappa)[0]
    cov = covariance(Whitening(exponent, 0).fit(x).forward(x))
    expected = condition_number(covariance(x)) ** (1 - 2 * exponent)
    assert condition_number(cov) == pytest.approx(expected, rel=1e-5)
    assert float(cov.diagonal().mean()) == pytest.approx(1, rel=1e-9)


def test_full_whitening_needs_no_rescaling(data: Labelled) -> None:
    x = data[0]
    power = scipy.linalg.fractional_matrix_power(covariance(x).numpy(), -0.5)
    assert np.allclose(Whitening(shrinkage=0).fit(x).matrix.numpy(), power, rtol=1e-6)
    assert torch.allclose(
        covariance(Whitening(shrinkage=0).fit(x).forward(x)), torch.eye(FEATURES).double(), atol=1e-9
    )


def test_shrinkage_accepts_what_whitening_refuses(data: Labelled) -> None:
    x = data[0].flatten(1).clone()
    x[:, 4] = 0.1
    with pytest.raises(PrecfmError, match="constant in feature 4"):
        Whitening(shrinkage=0).fit(x)
    shrunk = Whitening(shrinkage=1e-3).fit(x)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x)), x, atol=1e-12)
    assert any("shrunk by 0.001" in note for note in shrunk.notes)
    assert any("constant in feature 4" in note for note in shrunk.notes)
    assert not any("constant" in note for note in Whitening(shrinkage=1e-3).fit(data[0]).notes)


def test_a_channel_that_is_constant_within_one_class_is_refused_or_noted(data: Labelled) -> None:
    x, labels = data[0].flatten(1).clone(), data[1]
    x[labels == 5, 4] = 0.1
    with pytest.raises(PrecfmError, match=r"^x: class 5 .*feature 4"):
        ClassWhitening(shrinkage=0).fit(x, labels)
    shrunk = ClassWhitening(shrinkage=0.01).fit(x, labels)
    assert torch.allclose(shrunk.inverse(shrunk.forward(x, labels), labels), x, atol=1e-12)
    (note,) = [note for note in shrunk.notes if "constant" in note]
    assert "class 5" in note


@pytest.mark.parametrize("rows", [7, 100, 450])
def test_whitening_from_the_first_rows_only(data: Labelled, rows: int) -> None:
    x = data[0]
    few, cut = Whitening(rows=rows).fit(x), Whitening().fit(x[:rows])
    assert torch.equal(few.forward(x), cut.forward(x))
    assert few.flops_per_fit == cut.flops_per_fit
    first, *others = few.notes
    assert f"first {rows} of 450 rows" in first
    assert others == cut.notes


def test_whitening_from_too_few_rows_is_refused(data: Labelled) -> None:
    with pytest.raises(PrecfmError, match="rows: got 451"):
        Whitening(rows=451).fit(data[0])
    with pytest.raises(PrecfmError, match=r"^x: has fewer rows \(4\) than features \(6\)"):
        Whitening(shrinkage=0, rows=4).fit(data[0])
    with pytest.raises(PrecfmError, match="1 of 6"):
        Whitening(shrinkage=0, rows=6).fit(data[0])


def test_the_rows_of_whitening_are_left_out_of_keys_at_their_neutral_value() -> None:
    field = options_of(Whitening).model_fields["rows"]
    assert field.default is None
    assert Neutral(None) in field.metadata


def test_a_class_with_fewer_rows_than_features_is_shrunk_or_refused(data: Labelled) -> None:
    keep = torch.cat([(data[1] == 2).nonzero()[:4, 0], (data[1] != 2).nonzero()[:, 0]])
    x, labels = data[0][keep], data[1][keep]
    (note,) = ClassWhitening(shrinkage=0).fit(x, labels).notes
    assert note.startswith("class 2 ")
    assert "0.87" in note  # of the pooled covariance
    with pytest.raises(PrecfmError, match=r"^x: class 2 has fewer rows \(4\) than features \(6\)"):
        ClassWhitening(shrinkage=0, rows_per_feature=0.0).fit(x, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_features_are_refused_with_their_direction(data: Labelled, dtype: torch.dtype) -> None:
    x = data[0].flatten(1).to(dtype, copy=True)
    x[:, 3] = x[:, 0] - x[:, 5]
    with pytest.raises(PrecfmError, match=r"1 of 6 .*feature 0 .*feature 3 .*feature 5"):
        Whitening().fit(x)
    with pytest.raises(PrecfmError, match=r"^x: class 2 "):
        ClassWhitening().fit(x, data[1])


@pytest.mark.parametrize(
    "cls", [Scalar, PerChannel, Whitening, ChannelWhitening, Kronecker, PerFrequency, LowRank]
)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_data_without_variance_is_refused(cls: type[Preconditioner], value: float) -> None:
    with pytest.raises(PrecfmError, match=r"variance 0|constant"):
        cls().fit(torch.full((10, 3), value))


def test_a_scalar_keeps_the_condition_number(data: Labelled) -> None:
    x = data[0]
    cov = covariance(Scalar().fit(x).forward(x))
    assert condition_number(cov) == pytest.approx(condition_number(covariance(x)), rel=1e-9)
    assert float(cov.diagonal().mean()) == pytest.approx(1, rel=1e-12)


def test_channels_of_maps_are_their_first_axis() -> None:
    source = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    x = torch.randn(50, 3, 4, 5, generator=source) * scales + scales
    z = PerChannel().fit(x).forward(x)
    by_channel = z.transpose(0, 1).flatten(1)
    assert torch.allclose(by_channel.mean(dim=1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(by_channel.std(dim=1), torch.ones(3), atol=1e-3)
    assert PerChannel().fit(x).num_parameters == 6
    x[:, 1] = 3.0
    with pytest.raises(PrecfmError, match="constant in channel 1"):
        PerChannel().fit(x)


def test_data_of_one_number_per_row() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    for cls in (Scalar, PerChannel, Whitening, ChannelWhitening, Kronecker, PerFrequency, LowRank):
        z = cls().fit(x).forward(x)
        assert z.shape == (3,)
        assert float(z.var()) == pytest.approx(1, rel=1e-5)


def test_each_class_is_whitened_by_itself(data: Labelled) -> None:
    x, labels = data
    z = ClassWhitening(shrinkage=0).fit(x, labels).forward(x, labels)
    for label in CLASSES:
        rows = z[labels == label]
        assert torch.allclose(rows.mean(dim=0), torch.zeros(SHAPE).double(), atol=1e-9)
        assert torch.allclose(covariance(rows), torch.eye(FEATURES).double(), atol=1e-8)


@pytest.mark.parametrize("rows", [1, 2, 12, 29, 30])
def test_small_classes_lean_on_the_pooled_covariance(data: Labelled, rows: int) -> None:
    keep = torch.cat([(data[1] == CLASSES[0]).nonzero()[:rows, 0], (data[1] != CLASSES[0]).nonzero()[:, 0]])
    x, labels = data[0][keep].flatten(1), data[1][keep]
    fitted = ClassWhitening(shrinkage=0).fit(x, labels)
    own = {label: np.atleast_2d(x[labels == label].numpy()) for label in CLASSES}
    scatter = {label: (part - part.mean(0)).T @ (part - part.mean(0)) for label, part in own.items()}
    pooled = sum(scatter.values()) / (len(x) - len(CLASSES))
    weight = max(0.0, 1 - rows / (5 * FEATURES))
    mixed = weight * pooled + (1 - weight) * scatter[CLASSES[0]] / max(rows - 1, 1)
    assert np.allclose(
        fitted.matrices[0].numpy(), scipy.linalg.fractional_matrix_power(mixed, -0.5), rtol=1e-5
    )
    assert [note.startswith(f"class 2 has {rows} rows") for note in fitted.notes] == (
        [True] if weight else []
    )


def test_counts_of_the_linear_maps(data: Labelled) -> None:
    x, labels = data
    assert Scalar().fit(x).num_parameters == FEATURES + 1
    assert Whitening().fit(x).num_parameters == FEATURES + 21
    assert ClassWhitening().fit(x, labels).num_parameters == 3 * (FEATURES + 21)
    more_rows, more_features = x.repeat(4, 1, 1), torch.cat([x, x.square(), x.sin(), x.exp()], dim=1)
    assert Whitening().fit(more_rows).flops_per_fit < 4 * Whitening().fit(x).flops_per_fit
    assert Whitening().fit(more_features).flops_per_fit > 12 * Whitening().fit(x).flops_per_fit


@pytest.mark.parametrize("name", ["none", *CLOSED, "decoder_metric"])
def test_a_fit_to_batches_does_not_keep_them(name: str, data: Labelled) -> None:
    x, labels = data
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def batches() -> Iterator[Labelled]:
        nonlocal most
        for start in range(0, len(x), 30):
            batch = x[start : start + 30].clone()
            alive.append(weakref.ref(batch))
            most = max(most, sum(each() is not None for each in alive))
            yield batch, labels[start : start + 30]

    make((name, {})).fit(batches(), metric=METRIC)
    assert len(alive) == 15
    assert most <= 3


def test_projection_is_whitening_of_the_probabilistic_pca_model(data: Labelled) -> None:
    x = data[0].flatten(1)
    values, vectors = np.linalg.eigh(covariance(x).numpy())
    for rank in range(1, FEATURES + 1):
        lost = FEATURES - rank
        frame = vectors[:, lost:]
        noise = values[:lost].mean() if lost else 0.0
        model = frame @ np.diag(values[lost:] - noise) @ frame.T + noise * np.eye(FEATURES)
        fitted = Projection(rank=rank).fit(x)
        assert np.allclose(
            fitted.matrix.numpy(), scipy.linalg.fractional_matrix_power(model, -0.5), rtol=1e-6
        )
    assert torch.allclose(fitted.matrix, Whitening(shrinkage=0).fit(x).matrix)
    assert fitted.num_parameters == Whitening().fit(x).num_parameters


@pytest.mark.parametrize(("explained", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.96, 3), (1.0, 4)])
def test_projection_chooses_the_fewest_directions(explained: float, rank: int) -> None:
    x = Whitening(shrinkage=0).fit(y := ill_conditioned(100, seed=0)[0].flatten(1)).forward(y)
    x = x * torch.tensor([64.0, 30.0, 5.0, 1.0, 0.0, 0.0]).double().sqrt()
    fitted = Projection(explained=explained).fit(x)
    assert int(fitted.leading) == rank
    assert torch.allclose(fitted.inverse(fitted.forward(x)), x, atol=1e-10)
    assert any("does not vary" in note for note in fitted.notes) is (rank == 4)
    with pytest.raises(PrecfmError, match=r"rank: got 5.*only 4"):
        Projection(rank=5).fit(x)
    with pytest.raises(PrecfmError, match=r"rank: got 7.*only 6"):
        Projection(rank=7).fit(x)
