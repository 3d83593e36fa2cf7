"""Claims: the committed file, mistakes in it, and verdicts on effects whose truth is known."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from precfm.core.errors import PrecfmError
from precfm.report.claims import parse_claims
from precfm.report.claims_document import merge_claims, write_claims
from precfm.report.effects import effects, frames_of
from precfm.report.frames import FRAMES
from precfm.report.verdicts import evaluate_claims
from tests import report_frames

CLAIMS = yaml.safe_load((Path(__file__).parent.parent / "config" / "claims.yaml").read_text(encoding="utf-8"))


def metric_claim(direction="decrease", smallest=0.1, spaces=("classifier-0",), **changes):
    statistic = {"kind": "metric", "name": "frechet", "metric": "frechet", "spaces": list(spaces)}
    statistic |= {"effect": "difference", "direction": direction, "smallest_effect": smallest}
    claim = {"id": "C1", "text": "t", "experiments": ["x"], "methods": ["m"], "baselines": ["none"]}
    return {"claims": [{**claim, "statistics": [statistic], **changes}]}


def records(differences, method="m", space="classifier-0", dataset="d", step=9, generated=100):
    rows = []
    for seed, difference in enumerate(differences):
        for name, value in (("none", 5.0 + seed), (method, 5.0 + seed + difference)):
            rows.append(
                (dataset, name, seed, step, "frechet", space, value, 50, generated, "heldout", 0, "abc")
            )
    columns = (
        "dataset method seed step metric space value n_real n_generated reference evaluation_seed extractor"
    )
    return pd.DataFrame(rows, columns=columns.split())


def judge(content, *frames, experiment="x", **others):
    everything = {"records": pd.concat(frames).drop_duplicates()} if frames else {}
    (verdict,) = evaluate_claims(parse_claims(content), {**everything, **others}, experiment)
    return verdict


def test_the_committed_claims_are_valid_and_complete():
    spec = parse_claims(CLAIMS)
    assert [claim.id for claim in spec.claims] == [f"C{i}" for i in range(1, 12)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["claims"][6]["statistics"][0].update(directoin="up"),
            "claims.C7.statistics.0.directoin",
        ),
        (
            lambda c: c["claims"][6]["statistics"][0].update(direction="up"),
            "claims.C7.statistics.0.direction",
        ),
        (lambda c: c["claims"][6]["statistics"][0].update(metric=3), r"statistics\.0\.metric: got 3"),
        (lambda c: c["claims"][6]["statistics"][0].update(smallest_effect="1e-2"), "smallest_effect"),
        (lambda c: c["claims"][0].pop("text"), r"claims\.C1\.text"),
        (
            lambda c: c["claims"][10]["statistics"][0].update(predictor="seed"),
            r"C11\.statistics\.0\.predictor",
        ),
        (lambda c: c["claims"][5].update(methods=[]), "claims.C6: .*methods"),
        (lambda c: c["claims"][1].update(id="C1"), "every id"),
        (lambda c: c["claims"][0]["statistics"][0].update(supported_range=[2.0, 1.0]), "rising"),
        (lambda c: c.update(level=0.1), "level: "),
    ],
)
def test_mistakes_in_the_file_are_named(change, message):
    content = copy.deepcopy(CLAIMS)
    change(content)
    with pytest.raises(PrecfmError, match=message):
        parse_claims(content)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.5, -0.6, -0.4, -0.5, -0.55], "supported"),
        ([0.5, 0.6, 0.4, 0.5, 0.55], "not supported"),  # the wrong way
        ([-0.02, -0.03, -0.02, -0.03, -0.02], "not supported"),  # significant, but too small to matter
        ([-0.5, 0.6, -0.9, 0.5, -0.4], "inconclusive"),
        ([-0.5, -0.52, -0.51, -0.5], "indicative: supported"),
        ([0.5, 0.52, 0.51, 0.5], "indicative: not supported"),
        ([-0.5], "inconclusive"),  # one seed has no interval
    ],
)
def test_verdicts_on_known_effects(differences, verdict):
    assert judge(metric_claim(), records(differences)).verdict == verdict
    mirrored = judge(metric_claim("increase"), records([-d for d in differences]))
    assert mirrored.verdict == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.01, -0.01, 0.0, 0.02, -0.02], "supported"),
        ([-0.5, -0.6, -0.4, -0.5, -0.55], "not supported"),
        ([-0.5, 0.6, -0.9, 0.5, -0.4], "inconclusive"),
        ([0.5, 0.6, 0.4, 0.5, 0.55], "supported"),
    ],
)
def test_no_harm_needs_evidence_too(differences, verdict):
    assert judge(metric_claim("no_decrease"), records(differences)).verdict == verdict


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8))
def test_an_effect_is_never_both_for_and_against(differences):
    claimed = judge(metric_claim(), records(differences)).statistics[0].outcome
    opposite = judge(metric_claim("increase"), records(differences)).statistics[0].outcome
    assert not (claimed == "supports" and opposite == "supports")
    if claimed == "supports":
        assert opposite == "contradicts"


def test_both_classifiers_must_agree():
    content = metric_claim(spaces=("classifier-0", "classifier-1"))
    good, bad = [-0.5, -0.6, -0.4, -0.5, -0.55], [0.5, 0.6, 0.4, 0.5, 0.55]
    first, second = records(good), records(good, space="classifier-1")
    assert judge(content, first, second).verdict == "supported"
    assert judge(content, first, records(bad, space="classifier-1")).verdict == "not supported"
    alone = judge(content, first)
    assert alone.verdict == "inconclusive"
    assert "classifier-1" in alone.reason


def test_one_method_suffices_but_pays_for_the_others_by_holm():
    content = metric_claim(methods=["m", "other", "third"])
    good, none = records([-0.5, -0.9, -0.2, -0.6, -0.4]), [-0.5, 0.6, -0.9, 0.5, -0.4]
    single = judge(content, good)
    assert single.verdict == "supported"
    many = judge(content, good, records(none, "other"), records(none, "third"))
    assert many.verdict == "supported"
    assert many.methods == ("m", "other", "third")
    assert many.statistics[0].p_holm == pytest.approx(3 * single.statistics[0].p)
    assert "other" in many.reason


def test_what_is_reported_decides_nothing_and_costs_nothing():
    content = metric_claim()
    content["claims"][0]["statistics"].append(
        {**content["claims"][0]["statistics"][0], "name": "also", "direction": "increase", "role": "reported"}
    )
    verdict = judge(content, records([-0.5, -0.6, -0.4, -0.5, -0.55]))
    assert verdict.verdict == "supported"
    assert verdict.statistics[0].p_holm == verdict.statistics[0].p
    assert verdict.statistics[1].outcome == "contradicts"
    assert verdict.statistics[1].p_holm is None


def test_numbers_under_different_protocols_are_not_compared():
    ours, theirs = records([-0.5] * 5), records([0.0] * 5, generated=999)
    mixed = pd.concat([ours[ours["method"] == "m"], theirs[theirs["method"] == "none"]])
    assert judge(metric_claim(), mixed).verdict == "not tested"


@pytest.mark.parametrize(
    "claim", [claim for claim in parse_claims(CLAIMS).claims if claim.methods or claim.id == "C11"]
)
def test_statistics_are_computed_from_the_frames_that_they_declare(claim):
    everything = report_frames.frames(seeds=2)
    for statistic in claim.statistics:
        alone = claim.model_copy(update={"statistics": (statistic,)})
        declared = {name: everything[name] for name in frames_of(statistic) if name in everything}
        found, expected = (list(effects(alone, frames)) for frames in (declared, everything))
        assert found == expected
        for name in declared:  # none is declared in vain
            assert not list(effects(alone, {**declared, name: everything[name].iloc[:0]})) or len(found) == 0


def test_other_experiments_and_missing_numbers_are_not_tested():
    elsewhere = judge(metric_claim(), records([-0.5] * 5), experiment="smoke")
    assert elsewhere.verdict == "not tested"
    empty = judge(metric_claim())
    assert empty.verdict == "not tested"
    assert "m beside none" in empty.reason


def test_matched_baselines_must_both_be_there():
    content = metric_claim(baselines=["{method}-P", "{method}-F"])
    base = records([-0.5, -0.6, -0.4, -0.5, -0.55])
    assert judge(content, base).verdict == "not tested"
    wider = base.replace({"method": {"none": "m-P"}})
    assert "m-F" in judge(content, wider).reason
    longer = base[base["method"] == "none"].assign(method="m-F", step=30)
    assert judge(content, wider, longer).verdict == "supported"


def path_frames(values, seeds=5):
    """Kappas over two times, the same for every class; `values` by method, one list per artifact."""
    rows = [
        ("d", method, seed, scope, t, kappa, 2.0, f"{method}-{seed % len(artifacts)}")
        for method, artifacts in values.items()
        for seed in range(seeds)
        for scope in ("all", "class-0")
        for t, kappa in enumerate(artifacts[seed % len(artifacts)])
    ]
    return {"path_conditioning": pd.DataFrame(rows, columns=list(FRAMES["path_conditioning"].columns))}


def path_claim(smallest=0.4):
    content = metric_claim(smallest=smallest)
    path = {"kind": "path_conditioning", "name": "p", "quantity": "log_condition_number", "scope": "all"}
    content["claims"][0]["statistics"] = [{**path, "direction": "decrease", "smallest_effect": smallest}]
    return content


@pytest.mark.parametrize(
    ("smallest", "seeds", "verdict"),
    [
        (0.4, 5, "indicative: supported"),
        (2.0, 5, "indicative: not supported"),
        (0.4, 1, "inconclusive"),  # one seed does not show that there is no randomness
    ],
)
def test_a_comparison_without_randomness_counts_as_one_seed(smallest, seeds, verdict):
    frames = path_frames({"none": [(1.0, 100.0)], "m": [(1.0, 10.0)]}, seeds)
    found = judge(path_claim(smallest), **frames)
    (result,) = found.statistics
    assert result.value == pytest.approx(-math.log(10) / 2)
    assert (found.verdict, result.n, result.low, result.p) == (verdict, 1, None, None)
    assert result.note == ("exact: no randomness" if seeds > 1 else "")


def test_a_learned_map_against_one_without_randomness_counts_its_fits():
    learned = [(1.0, 10.0 + k) for k in range(5)]
    frames = path_frames({"none": [(1.0, 100.0)], "m": learned}, seeds=5)
    found = judge(path_claim(), **frames)
    assert (found.verdict, found.statistics[0].n, found.statistics[0].note) == ("supported", 5, "")
    twice = judge(path_claim(), **path_frames({"none": [(1.0, 100.0)], "m": learned[:2]}, seeds=6))
    assert twice.statistics[0].n == 2


def with_floor(frame, value):
    floor = frame.iloc[:1].assign(method="floor", step=0, value=value, n_generated=999)
    return pd.concat([frame, floor])


def test_no_headroom_above_the_floor_is_never_against_the_claim():
    content = metric_claim(smallest=0.05)
    content["claims"][0]["statistics"][0] |= {"effect": "log_ratio"}
    worse = records([0.5, 0.6, 0.4, 0.5, 0.55])  # the baseline is at 7 in geometric mean
    assert judge(content, with_floor(worse, 4.0)).verdict == "not supported"
    at_floor = judge(content, with_floor(worse, 6.8))
    assert at_floor.verdict == "inconclusive"
    assert at_floor.statistics[0].outcome == "unresolved"
    assert at_floor.statistics[0].note == "no headroom above the floor"


def test_theory_and_data_are_judged_by_what_each_can_have():
    content = metric_claim()
    content["claims"][0]["statistics"].append(
        {"kind": "theory", "name": "s", "supported_range": [None, -0.05]}
    )
    theory = pd.DataFrame(
        [("C1", "s", -1.0, -1.1, -0.9, 5, "")], columns=list(FRAMES["theory_statistics"].columns)
    )
    good, bad = records([-0.5, -0.6, -0.4, -0.5, -0.55]), records([0.5, 0.6, 0.4, 0.5, 0.55])
    assert judge(content, good).verdict == "supported"
    assert judge(content, theory_statistics=theory).verdict == "supported"
    assert judge(content, good, theory_statistics=theory).verdict == "supported"
    assert judge(content, bad, theory_statistics=theory).verdict == "inconclusive"
    empty = theory.assign(value=math.nan, low=math.nan, high=math.nan)
    assert judge(content, theory_statistics=empty).verdict == "inconclusive"


def test_the_path_statistic_is_the_mean_over_t_of_ln_kappa():
    frames = report_frames.frames(seeds=5)
    content = {"claims": [claim for claim in CLAIMS["claims"] if claim["id"] == "C6"]}
    (verdict,) = evaluate_claims(parse_claims(content), frames, "mnist-pca64")
    paths = frames["path_conditioning"]
    logs = paths.assign(ln=np.log(paths["condition_number"])).groupby(["scope", "method"])["ln"].mean()
    overall, classes = logs["all"], logs.drop("all")
    assert verdict.statistics[0].value == pytest.approx(overall["normalizing_flow"] - overall["scalar"])
    assert verdict.statistics[1].value < 0
    assert classes.groupby("method").max()["normalizing_flow"] < classes.groupby("method").max()["scalar"]
    assert (verdict.verdict, verdict.methods) == ("supported", ("normalizing_flow",))


def plateau(method_slope, seeds=5, checkpoints=(100, 1000, 3000, 10000)):
    rng = np.random.default_rng(5)
    rows = []
    for seed in range(seeds):
        for method, gradient in (("none", -0.05), ("scalar", -0.05), ("whitening", method_slope)):
            for step in checkpoints:
                value = math.exp(
                    gradient * math.log10(step) - 0.3 * (method == "whitening") + 0.002 * rng.normal()
                )
                for space in ("classifier-0", "classifier-1"):
                    rows.append(
                        ("d", method, seed, step, "frechet", space, value, 50, 50, "heldout", 0, space)
                    )
    return {"records": pd.DataFrame(rows, columns=list(FRAMES["records"].columns))}


def test_the_late_plateau_is_a_difference_of_slopes():
    content = {"claims": [claim for claim in CLAIMS["claims"] if claim["id"] == "C9"]}
    content["claims"][0]["statistics"][1] |= {"late_from": 0.05, "role": "decides"}
    (steeper,) = evaluate_claims(parse_claims(content), plateau(-0.25), "mnist-long")
    assert steeper.verdict == "supported"
    assert steeper.statistics[-1].value == pytest.approx(-0.2, abs=0.02)
    (parallel,) = evaluate_claims(parse_claims(content), plateau(-0.05), "mnist-long")
    assert parallel.verdict == "not supported"  # lower throughout, but the plateau is the same
    (short,) = evaluate_claims(parse_claims(content), plateau(-0.25, checkpoints=(100, 10000)), "mnist-long")
    assert "lacks slope" in short.reason


def test_rank_correlation_of_quality_and_result():
    content = {"claims": [claim for claim in CLAIMS["claims"] if claim["id"] == "C11"]}
    frames = report_frames.frames(seeds=5)
    (verdict,) = evaluate_claims(parse_claims(content), frames, "mnist-ablations")
    assert {result.n for result in verdict.statistics} == {len(report_frames.METHODS)}
    assert verdict.verdict == "supported"
    seven = report_frames.frames(seeds=5, methods=report_frames.METHODS[:7])
    (few,) = evaluate_claims(parse_claims(content), seven, "mnist-ablations")
    assert few.verdict == "not tested"
    turned = frames["preconditioners"].assign(
        residual_condition_number=1 / frames["preconditioners"]["residual_condition_number"]
    )
    (against,) = evaluate_claims(
        parse_claims(content), {**frames, "preconditioners": turned}, "mnist-ablations"
    )
    assert against.verdict == "not supported"


def test_rival_predictors_are_reported_and_may_be_missing():
    content = {"claims": [claim for claim in CLAIMS["claims"] if claim["id"] == "C11"]}
    frames = report_frames.frames(seeds=5)
    (verdict,) = evaluate_claims(parse_claims(content), frames, "mnist-ablations")
    roles = [(result.statistic.split(" and ")[0], result.role) for result in verdict.statistics]
    assert roles == [
        *[("Spearman correlation of residual kappa", "decides")] * 2,
        *[("Spearman correlation of mean ln kappa(Sigma_t)", "reported")] * 2,
        *[("Spearman correlation of predicted steps", "reported")] * 2,
    ]
    turned = frames["predictors"].assign(predicted_steps=1 / frames["predictors"]["predicted_steps"])
    (against,) = evaluate_claims(parse_claims(content), {**frames, "predictors": turned}, "mnist-ablations")
    assert against.verdict == verdict.verdict
    assert against.statistics[4].value == pytest.approx(-verdict.statistics[4].value)
    without = {name: rows for name, rows in frames.items() if name != "predictors"}
    (fewer,) = evaluate_claims(parse_claims(content), without, "mnist-ablations")
    assert (fewer.verdict, len(fewer.statistics)) == (verdict.verdict, 4)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ((1.0, 0.95, 1.05, 6), "supported"),
        ((1.3, 1.2, 1.4, 6), "not supported"),
        ((1.1, 0.95, 1.25, 6), "inconclusive"),
        ((1.0, math.nan, math.nan, 6), "supported"),  # exact
        ((1.0, 0.95, 1.05, 3), "indicative: supported"),
    ],
)
def test_theory_statistics_against_their_range(row, verdict):
    statistic = {"kind": "theory", "name": "slope", "supported_range": [0.9, 1.1]}
    claim = {"id": "C2", "text": "t", "experiments": ["x"], "statistics": [statistic]}
    rows = [("C2", "slope", *row, "why"), ("C3", "slope", 9.0, 9.0, 9.0, 9, "another claim's")]
    theory = pd.DataFrame(rows, columns=["claim", "statistic", "value", "low", "high", "n", "note"])
    found = judge({"claims": [claim]}, theory_statistics=theory)
    assert found.verdict == verdict
    assert found.statistics[0].note == "why"


def test_documents_hold_the_verdicts_and_merge():
    spec = parse_claims(CLAIMS)
    documents = [
        write_claims(evaluate_claims(spec, report_frames.frames(seeds), name))
        for seeds, name in ((2, "quick"), (5, "mnist-pca64"))
    ]
    payload = json.loads(documents[1][0])
    assert [claim["claim"] for claim in payload["claims"]] == [f"C{i}" for i in range(1, 12)]
    by_claim = {claim["claim"]: claim for claim in payload["claims"]}
    assert {"value", "low", "high", "n", "p", "p_holm", "smallest_effect"} <= set(
        by_claim["C7"]["statistics"][0]
    )
    assert "| C7 | **supported** |" in documents[1][1]
    text, markdown = merge_claims([document for document, _ in documents])
    assert merge_claims([document for document, _ in reversed(documents)]) == (text, markdown)
    merged = {claim["claim"]: claim for claim in json.loads(text)["claims"]}
    assert merged["C7"]["verdict"] == "supported"
    assert [part["experiment"] for part in merged["C7"]["experiments"]] == ["mnist-pca64", "quick"]
    assert merged["C10"]["verdict"] == "not tested"
    assert "mnist-pca64: supported" in markdown


def test_a_file_that_holds_no_verdicts_is_refused():
    with pytest.raises(PrecfmError, match=r"claims\.json: .*"):
        merge_claims(['{"claims": [{"claim": "C1"}]}'])


def test_settings_that_do_not_count_decide_nothing_and_those_that_do_must_agree():
    gain, nothing = [-1.0, -1.1, -0.9, -1.05, -0.95, -1.02], [-0.2, 0.3, -0.1, 0.2, 0.1, -0.3]
    plain = records(gain).assign(setting="plain")
    ablation = records(nothing, dataset="d-sgd").assign(setting="sgd")
    open_question = records(nothing, dataset="d-tuned").assign(setting="tuned")
    same = records(gain, dataset="d-tuned").assign(setting="tuned")

    def ruling(*parts):
        spec = parse_claims(metric_claim(settings=["plain", "tuned"]))
        (verdict,) = evaluate_claims(spec, {"records": pd.concat(parts, ignore_index=True)}, "x")
        return verdict.verdict

    assert ruling(plain) == ruling(plain, ablation) == ruling(plain, same) == "supported"
    assert ruling(plain, open_question) == "inconclusive"
