"""Diagnosis: numbers of held-out rows alone, brackets that hold, and a recommendation that follows from them."""

import csv
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from precfm import Diagnosis, PrecfmError, PreconditionedFlow, diagnose
from precfm.diagnosis import decoder, evidence, maps, training
from precfm.diagnosis.conditioning import kappa_floor, rows_needed
from precfm.diagnosis.recommendation import LEAVE_BELOW, from_selection
from precfm.flows.settings import FlowSettings
from precfm.geometry.spectra import condition_number, covariance
from precfm.latents.reading import open_latents
from precfm.preconditioned_flow import DEFAULT_TRAINING
from precfm.preconditioners.whitening import Whitening
from precfm.selection.candidates import Candidate
from tests.workflow import ROOT

PUBLISHED = ROOT / "results/published"


def rotated(rows: int, dim: int, kappa: float, seed: int = 0) -> Tensor:
    """Gaussian rows of a known condition number, in directions that no feature is."""
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=source))[0]
    return (
        torch.randn(rows, dim, generator=source) * torch.logspace(0, 0.5 * math.log10(kappa), dim)
    ) @ basis


def pink(rows: int) -> Tensor:
    """Stationary maps (2, 16, 16) with a 1/f spectrum: condition number 128 (r from 1/16 to 2^-1/2, squared)."""
    frequency = torch.fft.fftfreq(16)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = 1 / 16
    noise = torch.randn(rows, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    return torch.fft.ifft2(torch.fft.fft2(noise) / radius).real


def by_name(found: Diagnosis) -> dict[str, Any]:
    return {each.name: each for each in found.maps}


@pytest.mark.parametrize(("kappa", "said"), [(10.0, "leave them"), (1e4, "use whitening")])
def test_with_rows_enough_the_bracket_holds_the_truth(kappa: float, said: str) -> None:
    found = diagnose(rotated(4000, 8, kappa))
    assert str(found.recommendation) == said
    assert not found.recommendation.measured
    assert found.raw.at_least < kappa < 1.15 * found.raw.kappa
    whitened = by_name(found)["whitening"]
    assert 1 < whitened.conditioning.kappa < 1.1 * whitened.floor < 2
    assert whitened.conditioning.at_least < 1.1
    assert found.raw.steps_slowest == pytest.approx(0.5 * math.log(100) * found.raw.kappa, rel=0.1)
    assert found.raw.mean_log_kappa > whitened.conditioning.mean_log_kappa
    assert (found.fit_rows, found.held_out_rows) == (2000, 2000)


def test_no_row_that_a_map_was_fitted_to_is_looked_at() -> None:
    """Whitening makes the rows that it was fitted to isotropic: the held-out ones are as far from it as fresh ones."""
    x, dim = rotated(200, 40, 100.0), 40
    found = by_name(diagnose(x))["whitening"].conditioning
    fresh = condition_number(covariance(Whitening().fit(x[:100]).forward(rotated(100, dim, 100.0, seed=2))))
    assert condition_number(covariance(Whitening(shrinkage=0.0).fit(x).forward(x))) < 1.01
    assert found.kappa > 5
    assert found.kappa == pytest.approx(kappa_floor(dim, 100, 100), rel=1.0)
    assert fresh > 5


def test_too_few_rows_are_said_to_be_too_few() -> None:
    found = diagnose(rotated(130, 64, 1e4))
    assert str(found.recommendation) == "too few rows to tell"
    needed = rows_needed(64, max(found.raw.at_least, LEAVE_BELOW) / 3)
    assert f"{needed:,} rows" in found.recommendation.reason
    assert by_name(found)["whitening"].conditioning is None or by_name(found)["whitening"].floor > 1000
    few = diagnose(rotated(60, 64, 1e4))
    assert math.isinf(few.raw.kappa)
    assert few.to_json()["raw"]["kappa"] is None
    assert "half of the rows, 30, and needs more than the 64 features" in by_name(few)["whitening"].refused
    assert kappa_floor(64, needed / 2, needed // 2) == pytest.approx(
        max(found.raw.at_least, LEAVE_BELOW) / 3, rel=0.05
    )


def test_feature_maps_are_judged_from_few_rows() -> None:
    found = diagnose(pink(200))
    assert 30 < found.raw.at_least < 128
    assert math.isinf(found.raw.kappa)
    assert str(found.recommendation) == "too few rows to tell"
    assert found.raw.spectrum == tuple(sorted(found.raw.spectrum))
    assert len(found.raw.spectrum) == found.features == 512


def test_a_map_for_few_rows_is_found_by_its_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of very different scales: what few rows show is enough for a map of few numbers."""
    x = torch.randn(60, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    x[:, 1] *= 30
    assert str(diagnose(x).recommendation) == "use per_channel"
    assert "as far as so few rows show" in " ".join(diagnose(x).recommendation.reason.split())
    for_scales = ("per_channel", "channel_whitening", "per_frequency", "kronecker")
    others = {name: each for name, each in maps.TRIED.items() if name not in for_scales}
    monkeypatch.setattr(maps, "TRIED", others)
    assert str(diagnose(x).recommendation) == "too few rows to tell"


def test_maps_for_channels_are_tried_on_channels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for_channels = {"per_channel": maps.TriedMap("per_channel", needs_channels=True)}
    monkeypatch.setattr(maps, "TRIED", for_channels)
    assert len(diagnose(pink(40)).maps) == 1
    assert len(diagnose(pink(40).flatten(1)).maps) == 0


def test_labels_give_classes_and_class_whitening() -> None:
    x, labels = torch.cat([rotated(1500, 4, 1e3), rotated(1500, 4, 1e1) + 5]), torch.arange(3000) // 1500
    found = diagnose(x, labels)
    assert found.classes == 2
    assert found.raw.class_kappas[0] == pytest.approx(1e3, rel=0.3)
    assert found.raw.class_kappas[1] == pytest.approx(1e1, rel=0.3)
    behind = by_name(found)["class_whitening"].conditioning
    assert max(behind.class_kappas.values()) < 1.5
    assert "labels)" in found.recommendation.code
    assert "class_whitening" not in by_name(diagnose(x))


def test_notes_for_each_of_many_classes_are_in_json_alone() -> None:
    found = diagnose(rotated(600, 3, 1e4), torch.arange(600) % 100)
    notes = by_name(found)["class_whitening"].notes
    assert len(notes) > 90
    assert f"class_whitening: {len(notes) - 3} more notes" in " ".join(str(found).split())
    assert found.to_json()["maps"][-1]["notes"] == list(notes)


def test_directions_that_a_decoder_does_not_use_are_counted() -> None:
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 6)
    seen = diagnose(x, decoder=lambda latents: latents[:, 3:])
    assert seen.decoder is not None
    assert (seen.decoder.unused, seen.decoder.directions) == (3, 6)
    assert str(seen.recommendation) == "leave them"
    assert "decoder hardly uses" in seen.recommendation.reason
    for refused, words in (
        (diagnose(x[:10], decoder=lambda latents: latents), "6 directions need 14 rows; 10 are there"),
        (
            diagnose(x, decoder=lambda latents: latents, dense_features=5),
            "there are 6 directions; --dense-features 6",
        ),
    ):
        assert f"decoder: not asked, since {words}" in " ".join(str(refused).split())
        assert refused.to_json()["decoder"]["kappa_used"] is None


def test_a_slow_decoder_is_asked_for_less_and_this_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 20)
    monkeypatch.setattr(decoder, "_seconds_per_image", lambda *_: 60 / 22)
    slow = diagnose(x, decoder=lambda latents: latents[:, 10:])
    assert slow.decoder is not None
    assert (slow.decoder.unused, slow.decoder.directions, slow.decoder.images) == (4, 9, 2)
    assert "2 images for each of 9 of 20 directions" in " ".join(str(slow).split())
    monkeypatch.setattr(decoder, "_seconds_per_image", lambda *_: 30.0)
    assert "an image takes 30 s" in str(diagnose(x, decoder=lambda latents: latents))


def test_shapes_that_look_otherwise_are_pointed_out() -> None:
    for shape, words in [((40, 8, 8, 3), "channels last"), ((10, 200), "the wrong way round")]:
        (note,) = diagnose(torch.randn(shape)).notes
        assert words in note
    assert diagnose(torch.randn(40, 3, 8, 8)).notes == ()


def test_files_arrays_and_tensors_give_the_same(tmp_path: Any) -> None:
    x = rotated(400, 6, 1e3)
    np.save(tmp_path / "z.npy", x.numpy())
    answers = [
        diagnose(x),
        diagnose(x.numpy()),
        diagnose(np.load(tmp_path / "z.npy", mmap_mode="r")),
        diagnose(open_latents(tmp_path / "z.npy")),
        diagnose(pd.DataFrame(x.numpy())),
    ]
    assert len({str(each) for each in answers}) == 1
    assert str(diagnose(x, seed=1)) != str(answers[0])


def test_it_is_readable_by_people_and_programs(tmp_path: Any) -> None:
    found = diagnose(rotated(2000, 8, 1e4), torch.arange(2000) % 2)
    said = str(found)
    for words in (
        "2,000 rows of 8 features",
        "▁",
        "use whitening",
        evidence.PUBLISHED[1].revision,
        "precfm fit LATENTS --map whitening",
        "wrappers=['gaussian_skip']",
        f"{'whitening':36}     17.2    0.103      6.95",
    ):
        assert words in said
    assert max(len(line) for line in said.splitlines() if not line.startswith("    flow = ")) <= 80
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["recommendation"]["verdict"] == "use whitening"
    assert plain["maps"][-1]["conditioning"]["class_kappas"].keys() == {"0", "1"}
    maps = diagnose(pink(60), torch.arange(60) % 20)
    assert max(map(len, str(maps).splitlines())) <= 80
    found.plot(tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(PrecfmError, match=r"spectra.jpgg: ends in"):
        found.plot(tmp_path / "spectra.jpgg")


@pytest.mark.parametrize("kappa", [10.0, 1e4])
def test_the_lines_to_paste_run(kappa: float, monkeypatch: pytest.MonkeyPatch) -> None:
    short = DEFAULT_TRAINING.model_copy(update={"steps": 2})
    monkeypatch.setitem(PreconditionedFlow.__init__.__kwdefaults__, "training", short)
    x, labels = rotated(400, 4, kappa), torch.arange(400) % 2
    names: dict[str, Any] = {"x": x, "labels": labels}
    exec(diagnose(x, labels).recommendation.code, names)
    assert names["samples"].shape == (1000, 4)


def test_minutes_measure_and_the_skips_are_among_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    small = FlowSettings(
        model={"name": "mlp", "width": 16, "depth": 2},
        training=DEFAULT_TRAINING.model_copy(update={"batch_size": 64, "steps": 20}),
    )
    monkeypatch.setattr(training, "DEFAULT_SETTINGS", small)
    monkeypatch.setattr(training, "FEWEST_STEPS", 1)
    monkeypatch.setattr(maps, "TRIED", {name: maps.TRIED[name] for name in ("scalar", "whitening")})
    found = diagnose(rotated(300, 3, 1e4), minutes=1)
    assert found.recommendation.measured
    assert found.selection is not None
    assert {"scalar", "whitening", "gaussian_skip", "mixture_skip"} <= found.selection["candidates"].keys()
    assert found.recommendation.candidate == found.selection["chosen"]
    assert "measured by short trainings" in str(found)
    assert "gaussian_skip: " in found.recommendation.reason
    with pytest.raises(PrecfmError, match=r"^minutes: got 1e-06; at least"):
        diagnose(rotated(300, 3, 1e4), minutes=1e-6)
    assert "The longest trainings" not in found.recommendation.reason
    many = diagnose(rotated(600, 3, 1e4), torch.arange(600) % 100, minutes=1)
    assert many.recommendation.measured, "a class of six rows has none for a random share of a few rows"


def test_trainings_that_are_too_short_to_project_from_are_said_to_be() -> None:
    record = {"steps": 5000, "rungs": [{"steps": 90, "projected_to": 180}]}
    short: Any = SimpleNamespace(chosen="scalar", summary=lambda: "scalar is the best.", record=record)
    assert "90 of 5000 steps" in from_selection(short, Candidate("scalar"), labelled=False).reason


def test_wrong_calls_are_refused_by_field() -> None:
    x = rotated(100, 4, 10.0)
    flat, bad = x.clone(), x.clone()
    flat[:, 2], bad[40, 1] = 3.0, math.nan
    wrong: list[tuple[str, Any, dict[str, Any]]] = [
        ("x: got a list", [[1.0]], {}),
        ("x: has dtype torch.int64", x.long(), {}),
        ("x: holds int64", x.long().numpy(), {}),
        ("x: holds object", pd.DataFrame({"a": ["b"] * 100, "c": x[:, 0].numpy()}), {}),
        ("labels: got a ndarray", x, {"labels": pd.Series(["a", "b"] * 50)}),
        ("x: has shape (100,)", x[:, 0], {}),
        ("x: has 7 rows", x[:7], {}),
        ("x: is constant in feature 2", flat, {}),
        ("x: holds nan in row 40, feature 1", bad, {}),
        ("x: is rank-deficient in 1 of 5", torch.cat([x, x[:, :1] + x[:, 1:2]], dim=1), {}),
        ("labels: have shape (99,)", x, {"labels": torch.zeros(99, dtype=torch.int64)}),
        ("labels: have shape (100,) and dtype torch.float32", x, {"labels": x[:, 0]}),
        ("labels: hold 100 classes in 100 rows", x, {"labels": torch.arange(100)}),
        ("seed: got -1", x, {"seed": -1}),
        ("minutes: got 0", x, {"minutes": 0.0}),
        ("dense_features: got 0", x, {"dense_features": 0}),
        ("decoder: got 3", x, {"decoder": 3}),
        ("decoder: gave a NoneType", x, {"decoder": lambda _: None}),
        ("decoder: gave shape (0, 4)", x, {"decoder": lambda latents: latents[:0]}),
        ("decoder: its image does not change", x, {"decoder": torch.zeros_like}),
        ("decoder: its image is not finite", x, {"decoder": lambda latents: latents * math.nan}),
        ("x: got the path", "z.npy", {}),
        ("x: has shape ()", x[0, 0], {}),
        ("x: is sparse", x.to_sparse(), {}),
        ("x: is a masked array", np.ma.masked_array(x.numpy()), {}),
    ]
    for field, data, options in wrong:
        with pytest.raises(PrecfmError) as refused:
            diagnose(data, **options)
        assert str(refused.value).startswith(field), refused.value


@pytest.mark.parametrize(
    "quoted", [*evidence.PUBLISHED, evidence.PHOTOGRAPHS], ids=lambda each: each.experiment
)
def test_what_is_quoted_is_what_is_published(quoted: evidence.Evidence) -> None:
    """After a new publication: bring `precfm.diagnosis.evidence` up to date, revision and numbers."""
    home = PUBLISHED / quoted.experiment
    commit = json.loads((home / "manifest.json").read_text())["revision"]["commit"]
    assert commit.startswith(quoted.revision)
    places = {
        "frechet": quoted.distance,
        "low": ("eigenvalue_log_error_low", "latent"),
        "nll": ("nll", "latent"),
    }
    with (home / "tables/sides.csv").open() as stream:
        table = {
            (row["method"], row["metric"], row["space"]): float(row["value"])
            for row in csv.DictReader(stream)
            if row["dataset"] == quoted.setting
        }
    for method, sides in quoted.sides.items():
        for field, number in sides._asdict().items():
            published = table.get((method, *places[field]))
            assert number == (None if published is None else float(f"{published:.3g}")), (method, field)
    with (home / "tables/latents.csv").open() as stream:
        (kappa,) = (
            float(row["value"]) for row in csv.DictReader(stream) if row["quantity"] == "condition_number"
        )
    assert float(f"{kappa:.3g}") == quoted.kappa
    plain, photographs = quoted.sides["scalar"], quoted is evidence.PHOTOGRAPHS
    for name in evidence.MAPS_OF_MAPS if photographs else evidence.MAPS:
        for field in ("frechet", "nll"):  # better behind every map of photographs, worse behind all others
            assert (getattr(quoted.sides[name], field) < getattr(plain, field)) == photographs, (name, field)
    if photographs:
        assert max(quoted.sides[name].low for name in evidence.MAPS_OF_MAPS) < plain.low
