"""Claims: the committed file and its history, mistakes in it, and verdicts on effects whose truth is known."""

import copy
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from precfm.core.errors import PrecfmError
from precfm.flows.paths import LinearPath
from precfm.geometry.summaries import path_frame
from precfm.pipeline.experiments import load_experiment
from precfm.report.claims import missing_arms, parse_claims
from precfm.report.claims_document import PHOTOGRAPHS, merge_claims, write_claims
from precfm.report.effects import effects, frames_of
from precfm.report.frames import FRAMES
from precfm.report.verdicts import evaluate_claims, rules_of
from precfm.report.vocabulary import claim_order
from tests import report_frames

ROOT = Path(__file__).parent.parent
CLAIMS_FILE = ROOT / "config" / "claims.yaml"
CLAIMS = yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))
GOOD, BAD = [-0.5, -0.6, -0.4, -0.5, -0.55], [0.5, 0.6, 0.4, 0.5, 0.55]
VAGUE = [-0.5, 0.6, -0.9, 0.5, -0.4]


def metric_claim(direction="decrease", smallest=0.1, spaces=("classifier-0",), **changes):
    statistic = {"kind": "metric", "name": "frechet", "metric": "frechet", "spaces": list(spaces)}
    size = "margin" if direction.startswith("no_") else "smallest_effect"
    statistic |= {"effect": "difference", "direction": direction, size: smallest}
    claim = {"id": "C1", "text": "t", "whose_words": "w", "experiments": ["x"]}
    claim |= {"methods": ["m"], "baselines": ["none"]}
    return {"claims": [{**claim, "statistics": [statistic], **changes}]}


def records(
    differences, method="m", space="classifier-0", dataset="d", step=9, generated=100, baseline="none"
):
    rows = []
    for seed, difference in enumerate(differences):
        for name, value in ((baseline, 5.0 + seed), (method, 5.0 + seed + difference)):
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


def theory_frame(*rows):
    """Rows of claim, statistic, value, low, high, n and note; what else there is stays empty."""
    named = pd.DataFrame(rows, columns=["claim", "statistic", "value", "low", "high", "n", "note"])
    return named.reindex(columns=list(FRAMES["theory_statistics"].columns))


def claim_of(content, claim_id):
    return {"claims": [claim for claim in content["claims"] if claim["id"] == claim_id]}


def first(claim_id, content=CLAIMS):
    return claim_of(content, claim_id)["claims"][0]


def test_the_committed_claims_are_valid_and_complete():
    numbers = ["1", "2", "3", "4", "5a", "5b", "6", "7", "8a", "8b", "8c", "9", "10", "11"]
    ids = [claim.id for claim in parse_claims(CLAIMS).claims]
    assert [name for name in ids if "-" not in name] == [*(f"C{number}" for number in numbers), "S1"]
    assert [name for name in ids if "-score" in name] == ["C8a-score", "C8b-score", "C8c-score"]
    photographs = [name for name in ids if name.endswith(PHOTOGRAPHS)]
    assert photographs == [f"C{number}{PHOTOGRAPHS}" for number in ("6", "7", "8a", "8b", "8c")]
    others = [name for name in ids if name not in photographs]
    assert others == sorted(others, key=claim_order)


def test_every_change_of_the_claims_is_dated_with_what_was_known():
    history = (ROOT / "docs" / "claims-history.md").read_text(encoding="utf-8")
    (*_, newest) = re.findall(r"^\| (\d{4}-\d\d-\d\d) \|.*`sha256 (\w+)` \|$", history, re.MULTILINE)
    assert hashlib.sha256(CLAIMS_FILE.read_bytes()).hexdigest().startswith(newest[1]), (
        "config/claims.yaml has changed: docs/claims-history.md needs a row: what changed, which results were known"
    )
    assert len(newest[1]) >= 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: first("C8a", c)["statistics"][0].update(directoin="up"),
            r"claims\.C8a\.statistics\.0\.direct",
        ),
        (lambda c: first("C8a", c)["statistics"][0].update(metric=3), r"statistics\.0\.metric: got 3"),
        (lambda c: first("C8a", c)["statistics"][0].update(smallest_effect="1e-2"), "smallest_effect"),
        (lambda c: first("C8a", c)["statistics"][1].pop("margin"), r"C8a.*margin"),
        (lambda c: first("C8a", c)["statistics"][0].update(margin=0.1), r"C8a.*smallest_effect"),
        (lambda c: first("C2", c)["statistics"][1].update(condition="at night"), r"C2.*conditions.*at night"),
        (lambda c: first("C2", c)["conditions"].append("at night"), r"C2.*conditions.*at night"),
        (lambda c: c["claims"][0].pop("whose_words"), r"claims\.C1\.whose_words"),
        (
            lambda c: first("C11", c)["statistics"][0].update(predictor="seed"),
            r"C11\.statistics\.0\.predictor",
        ),
        (lambda c: first("C6", c).update(methods=[]), "claims.C6: .*methods"),
        (lambda c: c["claims"][1].update(id="C1"), "every id"),
        (lambda c: c["claims"][0]["statistics"][0].update(supported_range=[2.0, 1.0]), "rising"),
        (lambda c: c.update(level=0.1), "level: "),
    ],
)
def test_mistakes_in_the_file_are_named(change, message):
    content = json.loads(json.dumps(CLAIMS))  # a copy without the anchors' shared parts
    change(content)
    with pytest.raises(PrecfmError, match=message):
        parse_claims(content)


def test_a_verdict_is_not_asked_of_arms_that_were_not_run():
    spec = parse_claims(metric_claim(baselines=["none", "{method}-P", "alone:{method}"], settings=["tuned"]))
    missing_arms(spec, "x", {"tuned": ["m", "none", "m-P"], "ablation": ["none"]}, [])
    missing_arms(spec, "another", {"tuned": ["none"]}, [])
    missing_arms(spec, "x", {}, [])
    for lacking in ("m", "none", "m-P"):
        with pytest.raises(PrecfmError, match=rf"claims\.C1: '{lacking}'.* x;"):
            missing_arms(spec, "x", {"tuned": {"m", "none", "m-P"} - {lacking}}, [])
    with pytest.raises(PrecfmError, match=r"claims\.C1: .*tuned.* x;"):
        missing_arms(spec, "x", {"plain": ["m", "none", "m-P"]}, [])


def test_a_likelihood_that_decides_must_be_measured():
    content, arms = (
        metric_claim(settings=["tuned", "plain"]),
        {"tuned": ["m", "none"], "plain": ["m", "none"]},
    )
    statistic = content["claims"][0]["statistics"][0]
    missing_arms(parse_claims(content), "x", arms, [])
    statistic["metric"] = "nll"
    spec = parse_claims(content)
    missing_arms(spec, "x", arms, ["tuned", "plain"])
    with pytest.raises(PrecfmError, match=r"claims\.C1: 'nll'.*'plain'"):
        missing_arms(spec, "x", arms, ["tuned"])
    other = {**statistic, "name": "decides", "metric": "frechet"}
    content["claims"][0]["statistics"] = [{**statistic, "role": "reported"}, other]
    missing_arms(parse_claims(content), "x", arms, [])


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.5, -0.6, -0.4, -0.5, -0.55], "supported"),
        ([0.5, 0.6, 0.4, 0.5, 0.55], "contradicted"),  # the wrong way
        ([-0.02, -0.03, -0.02, -0.03, -0.02], "contradicted"),  # significant, but too small to matter
        ([-0.5, 0.6, -0.9, 0.5, -0.4], "open"),
        ([-0.5, -0.52, -0.51, -0.5], "indicative: supported"),
        ([0.5, 0.52, 0.51, 0.5], "indicative: contradicted"),
        ([-0.5], "open"),  # one seed has no interval
    ],
)
def test_verdicts_on_known_effects(differences, verdict):
    assert judge(metric_claim(), records(differences)).data == verdict
    mirrored = judge(metric_claim("increase"), records([-d for d in differences]))
    assert mirrored.data == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.01, -0.01, 0.0, 0.02, -0.02], "supported"),
        ([-0.5, -0.6, -0.4, -0.5, -0.55], "contradicted"),
        ([-0.5, 0.6, -0.9, 0.5, -0.4], "open"),
        ([0.5, 0.6, 0.4, 0.5, 0.55], "supported"),
    ],
)
def test_no_harm_needs_evidence_too(differences, verdict):
    assert judge(metric_claim("no_decrease"), records(differences)).data == verdict


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
    assert judge(content, records(GOOD), records(GOOD, space="classifier-1")).data == "supported"
    assert judge(content, records(GOOD), records(BAD, space="classifier-1")).data == "contradicted"
    alone = judge(content, records(GOOD))
    assert alone.data == "open"
    assert "classifier-1" in alone.reason


def test_a_data_set_is_judged_by_the_judges_that_it_has_and_all_of_them_count():
    content = metric_claim(spaces=("classifier-0-decoded", "classifier-1-decoded"))

    def of_small_sets(differences, space):
        return records(differences, space=space).assign(metric="frechet_pca64")

    good = of_small_sets(GOOD, "imagenet-decoded")
    verdict = judge(content, good, of_small_sets(GOOD, "pixels-decoded"))
    assert verdict.data == "supported"
    assert "frechet (imagenet-decoded, 64 components)" in {each.statistic for each in verdict.statistics}
    assert judge(content, good, of_small_sets(BAD, "pixels-decoded")).data == "contradicted"
    alone = judge(
        content, good, records(GOOD, space="pixels").assign(metric="kid")
    )  # by no distance of pixels
    assert alone.data == "supported"  # what is not asked for tells no judge
    more = {
        **content["claims"][0]["statistics"][0],
        "name": "kid",
        "metric": "kid",
        "spaces": ["classifier-0"],
    }
    content["claims"][0]["statistics"].append({**more, "role": "reported"})
    alone = judge(content, good, records(GOOD, space="pixels").assign(metric="kid"))
    assert alone.data == "open"
    assert "pixels-decoded" in alone.reason


def test_one_method_suffices_but_pays_for_the_others_by_holm():
    """Within a method the largest p-value counts, unadjusted; over methods it is adjusted."""
    content = metric_claim(methods=["m", "other", "third"], spaces=("classifier-0", "classifier-1"))
    good = [-0.5, -0.9, -0.2, -0.6, -0.4]
    mine = (records(good), records(GOOD, space="classifier-1"))
    rest = [
        records(VAGUE, name, space)
        for name in ("other", "third")
        for space in ("classifier-0", "classifier-1")
    ]
    many = judge(content, *mine, *rest)
    assert many.data == "supported"
    assert many.methods == ("m", "other", "third")
    p = stats.ttest_1samp(good, 0.0, alternative="less").pvalue
    of_method = [result for result in many.statistics if result.method == "m"]
    assert [result.p_holm for result in of_method] == pytest.approx([3 * p] * 2)
    assert of_method[0].p == pytest.approx(p)
    assert "other" in many.reason
    barely = [-0.5, -0.9, 0.1, -0.7, -0.2]  # p = .033: enough for one method, not for one of three
    assert judge(metric_claim(), records(barely)).data == "supported"
    three = [records(barely), records(VAGUE, "other"), records(VAGUE, "third")]
    assert judge(metric_claim(methods=["m", "other", "third"]), *three).data == "open"


def test_a_claim_is_contradicted_only_if_every_method_fails():
    content = metric_claim(methods=["m", "other"])
    assert judge(content, records(BAD), records(BAD, "other")).data == "contradicted"
    assert judge(content, records(BAD), records(VAGUE, "other")).data == "open"
    assert judge(content, records(BAD)).data == "open"  # the other was not run


def test_all_methods_must_fail_in_one_and_the_same_statistic():
    content = metric_claim(methods=["m", "other"], spaces=("classifier-0", "classifier-1"))
    (statistic,) = content["claims"][0]["statistics"]
    content["claims"][0]["statistics"].append(
        {**statistic, "name": "second", "metric": "kid", "spaces": ["classifier-0"]}
    )

    def ruling(on_d, on_e):
        """By data set and method, what fails there: a judge of the first statistic, or the second one."""
        parts = []
        for dataset, by_method in (("d", on_d), ("e", on_e)):
            for method, fails in zip(("m", "other"), by_method, strict=True):
                for space in ("classifier-0", "classifier-1"):
                    parts.append(records(BAD if fails == space else GOOD, method, space, dataset))
                parts.append(records(BAD if fails == "second" else GOOD, method, dataset=dataset))
                parts[-1] = parts[-1].replace({"metric": {"frechet": "kid"}})
        return judge(content, *parts).data

    judges = ("classifier-0", "classifier-1")
    assert ruling(judges, judges) == ruling(judges, judges[::-1]) == "contradicted"
    assert ruling(("second", "second"), ("second", "second")) == "contradicted"
    assert ruling(("classifier-0", "second"), ("classifier-0", "second")) == "open"
    assert ruling(judges, ("second", "second")) == "open"


def test_one_method_must_hold_on_every_data_set_and_recipe():
    content = metric_claim(methods=["m", "other"])

    def both(on_d, on_e):
        return [
            records(values, method, dataset=dataset)
            for dataset, pair in (("d", on_d), ("e-tuned", on_e))
            for method, values in zip(("m", "other"), pair, strict=True)
        ]

    assert judge(content, *both((GOOD, VAGUE), (GOOD, BAD))).data == "supported"
    assert judge(content, *both((GOOD, BAD), (BAD, GOOD))).data == "open"  # each time another one
    assert judge(content, *both((BAD, BAD), (GOOD, GOOD))).data == "open"
    assert judge(content, *both((BAD, BAD), (BAD, BAD))).data == "contradicted"


def two_conditions(**changes):
    content = metric_claim(conditions=["by day", "at night"], **changes)
    (statistic,) = content["claims"][0]["statistics"]
    content["claims"][0]["statistics"] = [
        {**statistic, "name": name, "condition": name, "spaces": [space]}
        for name, space in (("by day", "classifier-0"), ("at night", "classifier-1"))
    ]
    return content


@pytest.mark.parametrize(
    ("day", "night", "verdict"),
    [
        (GOOD, GOOD, "supported"),
        (BAD, BAD, "contradicted"),
        (GOOD, BAD, "mixed"),
        (GOOD, VAGUE, "open"),
        (BAD, VAGUE, "open"),
        (GOOD[:3], BAD[:3], "indicative: mixed"),
        (GOOD, [], "open"),  # a condition without numbers is not forgotten
    ],
)
def test_only_listed_conditions_make_a_verdict_mixed(day, night, verdict):
    found = judge(two_conditions(), records(day), records(night, space="classifier-1"))
    assert found.data == verdict
    _, text = merge_claims([write_claims([found])[0]], parse_claims(two_conditions()))
    (words,) = re.findall(r"By condition: (.*)\.$", text, re.MULTILINE) or [""]
    assert ("by day: supported" in words and "at night: contradicted" in words) == ("mixed" in verdict)
    assert words.count("(indicative)") == (2 if "indicative" in verdict else 0)
    same = two_conditions()
    for statistic in same["claims"][0]["statistics"]:
        statistic.pop("condition")
    del same["claims"][0]["conditions"]
    assert judge(same, records(day), records(night, space="classifier-1")).data != "mixed"


def test_conditions_must_be_met_by_one_and_the_same_method():
    content = two_conditions(methods=["m", "other"])
    parts = [records(GOOD), records(VAGUE, space="classifier-1")]
    parts += [records(VAGUE, "other"), records(GOOD, "other", "classifier-1")]
    assert judge(content, *parts).data == "open"


def replicates(frame, shift, own=0.0, count=60):
    """Of each run of `records`, with a shift that all runs share in a replicate, and scatter of its own."""
    rng = np.random.default_rng(3)
    shared, values = shift * rng.standard_normal(count), frame["value"].to_numpy()
    rows = values[:, None] + shared + own * rng.standard_normal((len(frame), count))
    return frame.assign(replicates=[report_frames.texts(row) for row in rows])[
        list(FRAMES["bootstrap"].columns)
    ]


def test_intervals_join_the_bootstrap_and_what_both_sides_share_cancels():
    frame = records(GOOD)
    plain = judge(metric_claim(), frame).statistics[0]
    shared = judge(metric_claim(), frame, bootstrap=replicates(frame, 9.0)).statistics[0]
    assert (shared.low, shared.high, shared.p) == pytest.approx((plain.low, plain.high, plain.p), rel=1e-6)
    apart = replicates(frame[frame["method"] == "m"], 1.0), replicates(frame[frame["method"] == "none"], -1.0)
    found = judge(metric_claim(), frame, bootstrap=pd.concat(apart))
    assert found.data == "open"
    wide = found.statistics[0]
    assert wide.value == plain.value
    assert wide.high - wide.low > 5 * (plain.high - plain.low)


def test_a_run_without_the_replicates_that_others_have_leaves_its_effects_open():
    frame = pd.concat([records(GOOD), records(GOOD, dataset="e")])
    resampled = replicates(frame, 0.1)
    assert judge(metric_claim(), frame, bootstrap=resampled).data == "supported"
    for method, seed in (("m", 4), ("none", 0)):
        run = (resampled["method"] == method) & (resampled["seed"] == seed) & (resampled["dataset"] == "e")
        found = judge(metric_claim(), frame, bootstrap=resampled[~run])
        whole, lacking = found.statistics
        assert (whole.outcome, whole.note) == ("supports", "")
        assert (lacking.outcome, lacking.low, lacking.p) == ("unresolved", None, None)
        assert "replicates" in lacking.note
        assert found.data == "open"
    of_e = resampled[resampled["dataset"] == "d"]  # none at all in a data set: seeds alone
    assert judge(metric_claim(), frame, bootstrap=of_e).data == "supported"


def test_what_a_map_does_alone_is_no_merit_of_the_flow_behind_it():
    content = metric_claim(baselines=["alone:{method}"])
    base = records(GOOD).query("method == 'm'")
    once = base.iloc[:1].assign(method="alone:m", step=0)  # without randomness: one row for all seeds
    better = judge(content, base, once.assign(value=12.0))
    assert (better.data, better.statistics[0].n) == ("supported", 5)
    assert better.statistics[0].note == "6.49 against 12.0 alone"
    assert better.statistics[0].note in better.reason
    assert judge(content, base, once.assign(value=3.0)).data == "contradicted"
    listed = base.assign(
        method="alone:m", step=0, value=12.0, artifact="one"
    )  # under every seed, and yet one
    same = judge(content, base.assign(artifact=[f"of-{seed}" for seed in base["seed"]]), listed)
    assert same.statistics[0] == better.statistics[0]
    each = base.assign(method="alone:m", step=0, value=base["value"] + 1.0)
    assert judge(content, base, each).statistics[0].value == pytest.approx(-1.0)


def test_what_is_reported_decides_nothing_and_costs_nothing():
    content = metric_claim()
    content["claims"][0]["statistics"].append(
        {**content["claims"][0]["statistics"][0], "name": "also", "direction": "increase", "role": "reported"}
    )
    verdict = judge(content, records(GOOD))
    assert verdict.data == "supported"
    assert verdict.statistics[0].p_holm == verdict.statistics[0].p
    assert verdict.statistics[1].outcome == "contradicts"
    assert verdict.statistics[1].p_holm is None


def test_numbers_under_different_protocols_are_not_compared():
    ours, theirs = records([-0.5] * 5), records([0.0] * 5, generated=999)
    mixed = pd.concat([ours[ours["method"] == "m"], theirs[theirs["method"] == "none"]])
    assert judge(metric_claim(), mixed).data == "not tested"


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
        resampled = set(everything["bootstrap"]["metric"])
        for name in declared:  # none is declared in vain; not every metric has replicates
            if name == "bootstrap" and statistic.metric not in resampled:
                continue
            assert not found or list(effects(alone, {**declared, name: everything[name].iloc[:0]})) != found


def test_other_experiments_and_missing_numbers_are_not_tested():
    elsewhere = judge(metric_claim(), records([-0.5] * 5), experiment="smoke")
    assert elsewhere.verdict == "not tested"
    assert judge(metric_claim()).verdict == "not tested"


def test_matched_baselines_must_both_be_there():
    content = metric_claim(baselines=["{method}-P", "{method}-F"])
    base = records(GOOD)
    assert judge(content, base).data == "not tested"
    wider = base.replace({"method": {"none": "m-P"}})
    assert "longer flow" in judge(content, wider).reason
    longer = base[base["method"] == "none"].assign(method="m-F")
    longer["step"] = 30 + longer["seed"]  # every seed ends at its own
    early = base.assign(step=5)
    checkpoints = [early, early.replace({"method": {"none": "m-P"}}), longer.assign(step=5, value=0.0)]
    for parts in ([wider, longer], [wider, longer, *checkpoints]):
        frame = pd.concat(parts)
        found = judge(content, frame, bootstrap=replicates(frame[frame["step"] > 5], 1.0, 0.1))
        assert found.data == "supported"
        assert [result.value for result in found.statistics] == pytest.approx([np.mean(GOOD)] * 2)


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
        (2.0, 5, "indicative: contradicted"),
        (0.4, 1, "open"),  # one seed does not show that there is no randomness
    ],
)
def test_a_comparison_without_randomness_counts_as_one_seed(smallest, seeds, verdict):
    frames = path_frames({"none": [(1.0, 100.0)], "m": [(1.0, 10.0)]}, seeds)
    found = judge(path_claim(smallest), **frames)
    (result,) = found.statistics
    assert result.value == pytest.approx(-math.log(10) / 2)
    assert (found.data, result.n, result.low, result.p) == (verdict, 1, None, None)
    assert result.note == ("exact: no randomness" if seeds > 1 else "")


def test_ln_kappa_cannot_fall_below_zero():
    """Beside a mean ln kappa of .35 a fall of .4 has no room: a method fails there only by being worse."""
    near = [(1.0, 2.0)]
    better, worse = ([(1.0, kappa + k / 100) for k in range(5)] for kappa in (1.1, 3.0))
    for learned, verdict in ((better, "open"), (worse, "contradicted")):
        found = judge(path_claim(), **path_frames({"none": near, "m": learned}))
        assert (found.data, found.statistics[0].note) == (verdict, "no headroom above the floor")


def test_ln_kappa_cannot_fall_below_what_white_noise_shows():
    """Of a mean ln kappa of .90 nothing of .405 is to be had above .5, and all of it above .49."""
    frames = path_frames({"none": [(1.0, 6.05)], "m": [(1.0, 2.6 + k / 100) for k in range(5)]})
    floors = {0.49: ("supported", ""), 0.5: ("open", "no headroom above the floor")}
    for floor, (verdict, note) in floors.items():
        content = path_claim(0.405)
        content["claims"][0]["statistics"][0]["floor"] = {"d": floor}
        found = judge(content, **frames)
        assert (found.data, found.statistics[0].note) == (verdict, note)


@pytest.mark.parametrize(
    ("experiment", "dataset", "channels", "side"),
    [
        ("flowers", "flowers", 18, 8),
        pytest.param("flowers512", "flowers102", 4, 64, marks=pytest.mark.slow),
        pytest.param("afhq512", "afhq", 4, 64, marks=pytest.mark.slow),
        pytest.param("church256", "church", 4, 32, marks=pytest.mark.slow),
    ],
)
def test_the_floors_of_photographs_are_those_of_white_noise(experiment, dataset, channels, side):
    rows = load_experiment(experiment, CLAIMS_FILE.parent).datasets[dataset].heldout
    noise = torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(0))
    kappa = path_frame(noise, torch.zeros(rows, dtype=torch.int64), LinearPath())
    kappa = kappa.loc[kappa["scope"] == "all", "condition_number"].to_numpy(float)
    (claim,) = [each for each in parse_claims(CLAIMS).claims if each.id == "C6-photographs"]
    assert np.log(kappa).mean() == pytest.approx(claim.statistics[0].floor[dataset], abs=0.02)


def test_a_learned_map_against_one_without_randomness_counts_its_fits():
    learned = [(1.0, 10.0 + k) for k in range(5)]
    frames = path_frames({"none": [(1.0, 100.0)], "m": learned}, seeds=5)
    found = judge(path_claim(), **frames)
    assert (found.data, found.statistics[0].n, found.statistics[0].note) == ("supported", 5, "")
    twice = judge(path_claim(), **path_frames({"none": [(1.0, 100.0)], "m": learned[:2]}, seeds=6))
    assert twice.statistics[0].n == 2


def with_floor(frame, values, **changes):
    floor = [
        frame.iloc[:1].assign(method="floor", seed=draw, step=0, value=value, n_generated=999, **changes)
        for draw, value in enumerate(values)
    ]
    return pd.concat([frame, *floor])


def test_at_the_floor_a_statistic_cannot_support_but_contradict():
    content = metric_claim(smallest=0.05)
    content["claims"][0]["statistics"][0] |= {"effect": "log_ratio"}
    better, worse = records(GOOD), records(BAD)  # the baseline is at 7 in geometric mean
    draws = 4.0 + 0.1 * np.arange(10)
    assert judge(content, with_floor(better, draws)).data == "supported"
    close = judge(content, with_floor(better, 2.4 + draws))
    assert (close.data, close.statistics[0].note) == ("open", "no headroom above the floor")
    assert "no headroom" in close.reason
    assert judge(content, with_floor(worse, 2.4 + draws)).data == "contradicted"
    alike = records([1e-3 * each for each in GOOD])  # no gain is excluded, but there was none to be had
    assert judge(content, with_floor(alike, draws)).data == "contradicted"
    assert judge(content, with_floor(alike, 2.9 + draws)).data == "open"
    scattered = [2.0, 9.0] * 5  # its mean is as low, but its interval is not
    assert judge(content, with_floor(better, scattered)).data == "open"
    assert judge(content, with_floor(better, [6.8])).data == "open"  # one draw: its value


def test_the_room_above_the_floor_is_measured_in_the_statistics_own_space():
    content = metric_claim(smallest=0.05)
    statistic = content["claims"][0]["statistics"][0]
    statistic["effect"] = "log_ratio"
    low_floor = with_floor(records(GOOD, space="classifier-1"), [0.1] * 10)
    high_floor = with_floor(records(GOOD), [6.8] * 10)
    assert judge(content, high_floor, low_floor).data == "open"
    statistic["spaces"] = ["classifier-1"]
    assert judge(content, high_floor, low_floor).data == "supported"


def test_theory_and_data_are_judged_apart_and_neither_overrides():
    content = metric_claim()
    content["claims"][0]["statistics"].append(
        {"kind": "theory", "name": "s", "supported_range": [None, -0.05]}
    )
    theory = theory_frame(("C1", "s", -1.0, -1.1, -0.9, 5, ""))

    def both(*parts, **others):
        found = judge(content, *parts, **others)
        return found.theory, found.data

    assert both(records(GOOD)) == ("not tested", "supported")
    assert both(theory_statistics=theory) == ("supported", "not tested")
    assert both(records(BAD), theory_statistics=theory) == ("supported", "contradicted")
    empty = theory.assign(value=math.nan, low=math.nan, high=math.nan)
    assert both(theory_statistics=empty) == ("open", "not tested")
    verdict = judge(content, records(BAD), theory_statistics=theory)
    assert verdict.verdict == "theory supported, data contradicted"


def test_the_path_statistic_is_the_mean_over_t_of_ln_kappa():
    frames = report_frames.frames(seeds=5)
    (verdict,) = evaluate_claims(parse_claims(claim_of(CLAIMS, "C6")), frames, "mnist-pca64")
    paths = frames["path_conditioning"]
    logs = paths.assign(ln=np.log(paths["condition_number"])).groupby(["scope", "method"])["ln"].mean()
    overall, classes = logs["all"], logs.drop("all")
    assert verdict.statistics[0].value == pytest.approx(overall["normalizing_flow"] - overall["scalar"])
    assert classes.groupby("method").max()["normalizing_flow"] < classes.groupby("method").max()["scalar"]
    (reported,) = [r for r in verdict.statistics if r.role == "reported" and "worst" in r.statistic]
    assert (reported.outcome, reported.baseline) == ("supports", "scalar")  # by construction
    assert verdict.groups[0].methods[0].outcome == "contradicts"  # beyond whitening per class
    assert verdict.methods == ("normalizing_flow",)
    assert verdict.data == "open"  # the low-capacity flow was not run


def plateau(method_slope, seeds=5, checkpoints=(100, 1000, 3000, 10000)):
    rng = np.random.default_rng(5)
    rows = []
    for seed in range(seeds):
        for method, gradient in (("none", -0.05), ("scalar", -0.05), ("whitening", method_slope)):
            for step in checkpoints:
                value = math.exp(
                    gradient * math.log10(step) - 0.3 * (method == "whitening") + 0.002 * rng.normal()
                )
                for space in (*report_frames.CLASSIFIERS, *report_frames.DECODED):
                    rows.append(
                        ("d", method, seed, step, "frechet", space, value, 50, 50, "heldout", 0, space)
                    )
    return {"records": pd.DataFrame(rows, columns=list(FRAMES["records"].columns))}


def test_the_late_plateau_is_a_difference_of_slopes():
    content = copy.deepcopy(claim_of(CLAIMS, "C9"))
    content["claims"][0]["statistics"][-1] |= {"late_from": 0.05, "role": "decides"}
    (steeper,) = evaluate_claims(parse_claims(content), plateau(-0.25), "mnist-long")
    assert steeper.data == "supported"
    assert steeper.statistics[-1].value == pytest.approx(-0.2, abs=0.02)
    (parallel,) = evaluate_claims(parse_claims(content), plateau(-0.05), "mnist-long")
    assert parallel.data == "contradicted"  # lower throughout, but the plateau is the same
    (short,) = evaluate_claims(parse_claims(content), plateau(-0.25, checkpoints=(100, 10000)), "mnist-long")
    assert "lacks 4 of 8 criteria (slope" in short.reason


def test_rank_correlation_of_quality_and_result():
    content = claim_of(CLAIMS, "C11")
    frames = report_frames.frames(seeds=5)
    (verdict,) = evaluate_claims(parse_claims(content), frames, "mnist-ablations")
    assert {result.n for result in verdict.statistics} == {len(report_frames.METHODS)}
    assert verdict.data == "supported"
    seven = report_frames.frames(seeds=5, methods=report_frames.METHODS[:7])
    (few,) = evaluate_claims(parse_claims(content), seven, "mnist-ablations")
    assert few.data == "not tested"
    turned = frames["preconditioners"].assign(
        residual_condition_number=1 / frames["preconditioners"]["residual_condition_number"]
    )
    (against,) = evaluate_claims(
        parse_claims(content), {**frames, "preconditioners": turned}, "mnist-ablations"
    )
    assert against.data == "contradicted"


def test_rival_predictors_are_reported_and_may_be_missing():
    content = claim_of(CLAIMS, "C11")
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
    assert against.data == verdict.data
    assert against.statistics[4].value == pytest.approx(-verdict.statistics[4].value)
    without = {name: rows for name, rows in frames.items() if name != "predictors"}
    (fewer,) = evaluate_claims(parse_claims(content), without, "mnist-ablations")
    assert (fewer.data, len(fewer.statistics)) == (verdict.data, 4)


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ((1.0, 0.95, 1.05, 6), "supported"),
        ((1.3, 1.2, 1.4, 6), "contradicted"),
        ((1.1, 0.95, 1.25, 6), "open"),
        ((1.0, math.nan, math.nan, 6), "supported"),  # exact
        ((1.0, 0.95, 1.05, 3), "indicative: supported"),
    ],
)
def test_theory_statistics_against_their_range(row, verdict):
    statistic = {"kind": "theory", "name": "slope", "supported_range": [0.9, 1.1]}
    claim = {"id": "C2", "text": "t", "whose_words": "w", "experiments": ["x"], "statistics": [statistic]}
    rows = [("C2", "slope", *row, "why"), ("C3", "slope", 9.0, 9.0, 9.0, 9, "another claim's")]
    theory = theory_frame(*rows)
    found = judge({"claims": [claim]}, theory_statistics=theory)
    assert found.theory == verdict
    worse = theory.iloc[:1].assign(value=5.0, low=4.9, high=5.1)
    both = judge({"claims": [claim]}, theory_statistics=pd.concat([theory, worse]))
    assert both.theory.removeprefix("indicative: ") == "contradicted"  # the range must hold for each row
    assert found.statistics[0].note == "why"


def test_theory_of_several_methods_needs_one_that_meets_all_under_every_condition():
    names = [("a", "day"), ("a", "night"), ("b", "day"), ("b", "night")]
    statistics = [
        {"kind": "theory", "name": f"{m} {c}", "method": m, "condition": c, "supported_range": [None, -0.05]}
        for m, c in names
    ]
    claim = {
        "id": "C10",
        "text": "t",
        "whose_words": "w",
        "experiments": ["x"],
        "conditions": ["day", "night"],
    }

    def ruling(*values):
        rows = [
            ("C10", f"{m} {c}", v, v - 0.01, v + 0.01, 5, "") for (m, c), v in zip(names, values, strict=True)
        ]
        theory = theory_frame(*rows)
        return judge({"claims": [{**claim, "statistics": statistics}]}, theory_statistics=theory).theory

    assert ruling(-1, -1, 1, 1) == "supported"
    assert ruling(-1, 1, 1, -1) == "open"
    assert ruling(-1, 1, 1, 1) == "mixed"
    assert ruling(1, 1, 1, 1) == "contradicted"


def test_documents_hold_the_verdicts_and_merge():
    spec = parse_claims(CLAIMS)
    documents = [
        write_claims(evaluate_claims(spec, report_frames.frames(seeds), name))
        for seeds, name in ((2, "quick"), (5, "mnist-ablations"))
    ]
    payload = json.loads(documents[1][0])
    assert [claim["claim"] for claim in payload["claims"]] == [claim["id"] for claim in CLAIMS["claims"]]
    by_claim = {claim["claim"]: claim for claim in payload["claims"]}
    numbers = {"value", "low", "high", "n", "p", "p_holm", "smallest_effect", "margin"}
    assert numbers <= set(by_claim["C11"]["statistics"][0])
    assert "## C11: data supported" in documents[1][1]
    texts, made_by = [document for document, _ in documents], {"quick": "revision abc"}
    text, markdown = merge_claims(texts, spec, made_by)
    assert merge_claims(texts[::-1], spec, made_by)[0] == text
    merged = {claim["claim"]: claim for claim in json.loads(text)["claims"]}
    assert list(merged) == sorted(merged, key=claim_order)
    assert (merged["C11"]["theory"], merged["C11"]["data"]) == ("not tested", "supported")
    assert [part["experiment"] for part in merged["C11"]["by_experiment"]] == ["mnist-ablations", "quick"]
    assert merged["C8c"]["data"] == "not tested"
    assert re.search(r"\| C11 \| .* \| – \| \*\*supported\*\* \(1 of 2 named experiments\) \| – \|", markdown)
    for said in ("Whose words", "Rule", "To know", "What would change it", "the settings are ours"):
        assert said in markdown
    assert "- quick: revision abc." in markdown


def test_experiments_that_were_not_run_are_named_beside_the_ruling():
    content = metric_claim(experiments=["theory", "x", "y", "flowers"])
    spec = parse_claims(content)

    def merged(*documents):
        text, markdown = merge_claims(documents, spec, planned=["flowers"])
        claim = json.loads(text)["claims"][0]
        assert list(claim["coverage"]) == ["data"]
        return claim["data"], claim["coverage"]["data"], markdown

    of_x, of_y = (write_claims([judge(content, records(GOOD), experiment=name)])[0] for name in ("x", "y"))
    ruling, found, markdown = merged(of_x)
    assert (ruling, found["run"], found["not_run"]) == ("supported", ["x"], ["y", "flowers"])
    assert "y, flowers (planned)" in markdown
    assert "**supported** (1 of 3 named experiments)" in markdown
    empty = write_claims([judge(content, experiment="y")])[0]  # published, but nothing of this claim
    _, found, markdown = merged(of_x, empty)
    assert (found["without_numbers"], found["not_run"]) == (["y"], ["flowers"])
    assert "(1 of 3 named experiments)" in markdown
    assert merged(of_x, of_y)[1]["not_run"] == ["flowers"]
    ruling, found, markdown = merged()
    assert (ruling, found["not_run"]) == ("not tested", ["x", "y", "flowers"])
    assert "(0 of 3 named experiments)" in markdown
    content = metric_claim(experiments=["theory", "x"])
    spec = parse_claims(content)
    ruling, found, markdown = merged(write_claims([judge(content, records(GOOD))])[0])
    assert (ruling, found["not_run"]) == ("supported", [])
    assert "named experiments" not in markdown


def test_each_side_names_only_the_experiments_that_can_bear_on_it():
    """A claim of theory alone says which experiments have theory."""
    both = metric_claim(experiments=["theory", "x", "y", "paper"])["claims"][0]
    statistic = {"kind": "theory", "name": "s", "supported_range": [None, -0.05]}
    alone = {"id": "C2", "text": "t", "whose_words": "w", "statistics": [statistic]}
    alone["experiments"] = ["theory", "x", "paper"]
    spec = parse_claims({"claims": [{**both, "statistics": [*both["statistics"], statistic]}, alone]})
    frames = {
        "records": records(GOOD),
        "theory_statistics": theory_frame(("C2", "s", -1.0, -1.1, -0.9, 5, "")),
    }
    text, markdown = merge_claims([write_claims(evaluate_claims(spec, frames, "x"))[0]], spec)
    first, second = (claim["coverage"] for claim in json.loads(text)["claims"])
    assert (first["theory"]["without_numbers"], first["theory"]["not_run"]) == (["x"], ["theory", "paper"])
    assert (first["data"]["run"], first["data"]["not_run"]) == (["x"], ["y", "paper"])
    assert (second["theory"]["run"], second["theory"]["not_run"]) == (["x"], ["theory", "paper"])
    assert "| C2 | w | **supported** (1 of 3 named experiments) | – |" in markdown


def what_would_change(content, *parts, **others):
    document = write_claims([judge(content, *parts, **others)])[0]
    (words,) = re.findall("What would change it: (.*)", merge_claims([document], parse_claims(content))[1])
    return words


def test_what_would_change_a_verdict_follows_from_what_is_missing():
    content = metric_claim(smallest=0.05, experiments=["x", "y"])
    content["claims"][0]["statistics"][0] |= {"effect": "log_ratio"}
    floor = 6.4 + 0.1 * np.arange(10)
    at_floor = what_would_change(content, with_floor(records(GOOD), floor))
    assert "more room above the floor" in at_floor
    assert re.search(r"\by\b", at_floor.partition("not run")[2])
    assert "five seeds" not in at_floor
    assert "five seeds" in what_would_change(content, with_floor(records(GOOD[:2]), floor))
    assert "five seeds" in what_would_change(content, records(VAGUE[:2]))
    vague = what_would_change(content, records(VAGUE))
    assert "more seeds" in vague
    assert "floor" not in vague


def test_a_criterion_shows_its_threshold_and_a_method_that_fails_what_it_meets():
    content = metric_claim(smallest=0.405, baselines=["none", "scalar"])
    (statistic,) = content["claims"][0]["statistics"]
    harmless = {**statistic, "name": "kept", "direction": "no_increase", "margin": 0.05}
    content["claims"][0]["statistics"].append({**harmless, "smallest_effect": None})
    frame = pd.concat([records([-0.9, -0.8, -0.85, -0.8, -0.9]), records(BAD, baseline="scalar")])
    frame.loc[frame["method"] == "scalar", "value"] -= 2.0  # the method's own rows are those of the first
    (method,) = judge(content, frame.drop_duplicates(["method", "seed"])).groups[0].methods
    failed, met = method.words.split("; meets ")
    assert "claimed: decrease of at least 0.405" in failed
    assert "allowed: no increase beyond 0.05" in failed
    assert "scalar" in failed
    assert met == "2: frechet (classifier-0) (none) | kept (classifier-0) (none)"
    theory = {"kind": "theory", "name": "s", "supported_range": [0.9, 1.1]}
    content["claims"][0]["statistics"] = [theory]
    (method,) = (
        judge(content, theory_statistics=theory_frame(("C1", "s", 1.0, 0.95, 1.05, 5, ""))).groups[0].methods
    )
    assert "claimed range: 0.9 to 1.1" in method.words


def test_rules_name_under_each_condition_the_methods_that_have_statistics_there():
    (claim,) = parse_claims(claim_of(CLAIMS, "C10")).claims
    labels, unlabelled = re.findall(
        r"^- (?:labels|unlabelled) (.*)$", rules_of(claim)["theory"], re.MULTILINE
    )
    assert "class whitening" in labels
    assert "class whitening" not in unlabelled
    for each in parse_claims(CLAIMS).claims:
        for rule in rules_of(each).values():
            assert all(line.lstrip().startswith("- ") for line in rule.splitlines()[2:])


def test_five_seeds_of_one_experiment_are_not_outvoted_by_two_of_another():
    content = metric_claim(experiments=["x", "y"])

    def document(name, values):
        return write_claims([judge(content, records(values), experiment=name)])[0]

    def merged(*documents):
        return json.loads(merge_claims(documents, parse_claims(content))[0])["claims"][0]["data"]

    assert merged(document("x", GOOD), document("y", BAD[:2])) == "supported"
    assert merged(document("x", GOOD[:3]), document("y", [])) == "indicative: supported"
    assert merged(document("x", GOOD), document("y", BAD)) == "open"
    assert merged(document("x", GOOD), document("y", VAGUE)) == "open"


def test_verdicts_by_earlier_rules_are_shown_and_count_for_nothing():
    old = {"claim": "C8", "text": "t", "experiment": "methods", "verdict": "supported", "reason": "r"}
    earlier = json.dumps({"claims": [{**old, "methods": [], "statistics": []}]})
    now = write_claims([judge(metric_claim(), records(GOOD))])[0]
    text, markdown = merge_claims([earlier, now], parse_claims(metric_claim()))
    assert [claim["claim"] for claim in json.loads(text)["claims"]] == ["C1"]
    assert json.loads(text)["by_earlier_rules"][0]["verdict"] == "supported"
    assert "| methods | C8 | supported | t |" in markdown.partition("By earlier rules")[2]


def reworded(content):
    content["claims"][0].update(text="other words", caveat="c", whose_words="ours")
    (statistic,) = content["claims"][0]["statistics"]
    content["claims"][0]["statistics"].append({**statistic, "name": "beside", "role": "reported"})


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (reworded, True),
        (lambda c: c["claims"][0]["statistics"][0].update(smallest_effect=0.2), False),
        (lambda c: c["claims"][0]["statistics"][0].update(spaces=["classifier-1"]), False),
        (lambda c: c["claims"][0]["methods"].append("other"), False),
        (lambda c: c["claims"][0].update(baselines=["scalar"]), False),
        (lambda c: c["claims"][0].update(settings=["tuned"]), False),
        (lambda c: c["claims"][0].update(experiments=["x", "y"]), False),
        (lambda c: c["claims"][0].update(id="C2"), False),
    ],
)
def test_a_verdict_counts_only_while_the_same_content_decides_its_claim(change, counts):
    document = write_claims([judge(metric_claim(), records(GOOD))])[0]
    content = metric_claim()
    change(content)
    text, markdown = merge_claims([document], parse_claims(content))
    merged = json.loads(text)
    assert merged["claims"][0]["data"] == ("supported" if counts else "not tested")
    assert merged["claims"][0]["text"] == content["claims"][0]["text"]
    assert len(merged["by_earlier_rules"]) == (not counts)
    assert ("| x | C1 | data supported | t |" in markdown.partition("By earlier rules")[2]) != counts


def test_a_file_that_holds_no_verdicts_is_refused():
    with pytest.raises(PrecfmError, match=r"claims\.json: .*"):
        merge_claims(['{"claims": [{"claim": "C1"}]}'], parse_claims(CLAIMS))


def test_settings_that_do_not_count_decide_nothing_and_those_that_do_must_agree():
    gain, nothing = [-1.0, -1.1, -0.9, -1.05, -0.95, -1.02], [-0.2, 0.3, -0.1, 0.2, 0.1, -0.3]
    plain = records(gain).assign(setting="plain")
    ablation = records(nothing, dataset="d-sgd").assign(setting="sgd")
    open_question = records(nothing, dataset="d-tuned").assign(setting="tuned")
    same = records(gain, dataset="d-tuned").assign(setting="tuned")

    def ruling(*parts):
        spec = parse_claims(metric_claim(settings=["plain", "tuned"]))
        (verdict,) = evaluate_claims(spec, {"records": pd.concat(parts, ignore_index=True)}, "x")
        return verdict.data

    assert ruling(plain) == ruling(plain, ablation) == ruling(plain, same) == "supported"
    assert ruling(plain, open_question) == "open"
