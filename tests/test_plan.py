"""The plan: keys change exactly downstream of what changes, and of nothing else."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from PIL import Image

from precfm.core.errors import PrecfmError
from precfm.core.registry import REGISTRY
from precfm.datasets.manifest import add_source, files_checksum, source_manifest
from precfm.pipeline.components import component
from precfm.pipeline.experiments import CLAIMS, configured, load_experiment, read_yaml
from precfm.pipeline.fingerprints import SCRIPTS
from precfm.pipeline.plan import KINDS, Plan, load_plan
from precfm.pipeline.theory_yields import statistics_of
from precfm.report.claims import parse_claims
from precfm.theory.claim_statistics import theory_statistics
from tests import theory_frames


def changed_ids(before, after):
    return {node_id for node_id in after.nodes if node_id not in before.nodes}


def kinds(ids):
    return {node_id.split("/")[0] for node_id in ids}


REPORTS = {"frames", "table_files", "figure_files", "verdicts", "pages"}


def test_a_plan_is_deterministic(planned):
    assert planned().nodes.keys() == planned().nodes.keys()
    assert planned().key == planned().key


def test_parents_come_before_children_and_exist(planned):
    seen = set()
    for node in planned().nodes.values():
        for ids in node.parents.values():
            assert seen.issuperset(ids)
        seen.add(node.id)
    assert kinds(seen) == set(KINDS)


@pytest.mark.parametrize(
    ("source", "sizes", "sentence"),
    [
        ("mnist5k", (3500, 500, 1000), ""),
        ("mnist5k", (3501, 500, 1000), "train + validation + heldout: got 5001"),
        ("mnist", (50_000, 10_000, 10_000), ""),
        ("mnist", (50_001, 10_000, 10_000), "train + validation: got 60001"),
        ("fashion_mnist", (500, 10, 10_001), "heldout: got 10001"),
        ("own", (4, 2, 4), ""),
        ("own", (5, 2, 4), "train + validation + heldout: got 11"),
        ("zipped", (1000, 1000, 1000), ""),  # how many images it holds, only the job can see
    ],
)
def test_splits_larger_than_the_source_are_refused(planned, project, source, sizes, sentence):
    for label in ("daisy", "tulip"):
        (project / "own" / label).mkdir(parents=True)
        for index in range(5):
            Image.new("L", (4, 4), index).save(project / "own" / label / f"{index}.png")
    add_source("own", project / "own", project / "data/sources.yaml")
    with zipfile.ZipFile(project / "zipped.zip", "w") as archive:
        archive.write(project / "own/daisy/1.png", "daisy/1.png")
    add_source("zipped", project / "zipped.zip", project / "data/sources.yaml")
    published = source not in ("own", "zipped")
    spec = {"name": source} if published else {"name": "imagefolder", "source": source}
    counts = dict(zip(("train", "validation", "heldout"), sizes, strict=True))
    change = {
        "datasets": {"mnist5k": None, "mine": {"source": spec, **counts}},
        "sampling": {"n": 10},
        "evaluation": {"neighbours": 1},
    }
    if not sentence:
        assert planned(change).of("data")
        return
    with pytest.raises(PrecfmError) as caught:
        planned(change)
    assert str(caught.value).startswith(f"datasets.mine: {sentence}")


@pytest.mark.parametrize(
    ("roses", "sizes", "sentence"),
    [
        (1, (20, 4, 8), "source: class 'rose' of 'own' has one image"),
        (3, (4, 4, 30), "train: got 4, of which a class gets none; class 'rose' has 3 of 43 images"),
        (2, (20, 4, 8), "heldout: got 8, of which class 'rose', 2 of 42 images, gets 0; at least 2 "),
        (4, (20, 4, 8), "heldout: got 8, of which class 'rose', 4 of 44 images, gets 1; at least 2 "),
        (4, (20, 4, 20), ""),
    ],
)
def test_classes_that_are_too_rare_are_refused(planned, project, roses, sizes, sentence):
    for label, images in {"daisy": 20, "rose": roses, "tulip": 20}.items():
        (project / "own" / label).mkdir(parents=True)
        for index in range(images):
            Image.new("L", (4, 4), index).save(project / "own" / label / f"{index}.png")
    add_source("own", project / "own", project / "data/sources.yaml")
    counts = dict(zip(("train", "validation", "heldout"), sizes, strict=True))
    mine = {"source": {"name": "imagefolder", "source": "own"}, **counts}
    change = {"datasets": {"mnist5k": None, "mine": mine}, "sampling": {"n": 10}}
    if not sentence:
        assert planned(change).of("data")
        return
    with pytest.raises(PrecfmError, match=rf"^datasets\.mine\.{re.escape(sentence)}"):
        planned(change)


def test_a_changed_parameter_of_one_method_changes_that_method_alone(planned):
    before = planned()
    after = planned({"methods": {"whitening": {"preconditioner": {"exponent": 0.25}}}})
    changed = changed_ids(before, after)
    made = {"preconditioners", "diagnostics", "kernels", "flows", "samples", "evaluations"}
    assert kinds(changed) == made | REPORTS
    assert all("-whitening" in node_id for node_id in changed if node_id.split("/")[0] not in REPORTS)


def test_a_changed_metric_option_leaves_flows_and_samples(planned):
    changed = changed_ids(planned(), planned({"evaluation": {"neighbours": 5}}))
    assert kinds(changed) == {"evaluations"} | REPORTS


def test_a_changed_seed_of_the_encoder_changes_all_that_lies_below(planned):
    changed = kinds(changed_ids(planned(), planned({"encoders": {"L16": {"seed": 7}}})))
    assert "classifiers" not in changed
    assert "data" not in changed
    assert {"encoders", "latents", "features", "flows"} <= changed


def test_a_further_seed_keeps_what_exists(planned):
    before, after = planned(), planned({"seeds": [0, 1, 2]})
    kept = {node_id for node_id in before.nodes if node_id.split("/")[0] not in REPORTS}
    assert kept < after.nodes.keys()
    assert len(after.of("flows")) == len(before.of("flows")) * 3 // 2


@pytest.mark.parametrize("method", ["normalizing_flow", "mixture_skip"])
def test_what_is_fitted_brings_matched_baselines_without_it(planned, method):
    plan = planned({"settings": {"plain": {"matched": None}}, "seeds": [0]})
    budgets = {node.label: node for node in plan.of("budgets")}
    flows = {node.label: node for node in plan.of("flows")}
    assert set(budgets) == {"mnist5k-L16-normalizing_flow-s0", "mnist5k-L16-mixture_skip-s0"}
    for match in "PF":
        flow = flows[f"mnist5k-L16-{method}-{match}-s0"]
        assert flow.params["match"] == match
        assert flow.params["flow"]["wrappers"] == []
        assert flow.parents["budget"] == (budgets[f"mnist5k-L16-{method}-s0"].id,)
        fitted = plan.node(flow.parents["preconditioner"][0])
        assert fitted.params["preconditioner"]["name"] == "scalar"
    assert not planned({"settings": {"plain": {"matched": []}}}).of("budgets")


def test_a_skip_is_fitted_once_for_all_its_trainings_and_judged_alone(planned):
    plan = planned({"seeds": [0]})
    skips = {node.id for node in plan.of("skips")}
    assert skips
    for flow in plan.of("flows"):
        assert set(flow.parents.get("skip", ())) <= skips
        assert bool(flow.params["flow"]["wrappers"]) == ("skip" in flow.parents)
    alone = [
        about for about in plan.of("frames")[0].params["about"]["evaluations"] if "alone" in about["method"]
    ]
    assert "alone:mixture_skip" in {about["method"] for about in alone}


def test_a_flow_may_be_trained_behind_one_map_after_the_other(planned):
    maps = [{"name": "whitening", "exponent": exponent} for exponent in (0.1, 0.3)]
    turns = {"preconditioner": {"name": "whitening"}, "through": maps}
    plan = planned({"methods": {"turns": turns}, "seeds": [0]})
    (flow,) = [node for node in plan.of("flows") if node.label.endswith("-turns-s0")]
    fitted = [plan.node(parent).params["preconditioner"]["exponent"] for parent in flow.parents["through"]]
    assert fitted == [0.1, 0.3]
    wrapped = {**turns, "flow": {"wrappers": [{"name": "gaussian_skip"}]}}
    with pytest.raises(PrecfmError, match=r"turns: through: got 2 maps"):
        planned({"methods": {"turns": wrapped}})


def composed(*stages):
    return {"name": "composition", "stages": [{"name": "scalar"}, *stages]}


def with_components(count):
    """By field, a change of `smoke` that asks for so many components there; 30 are half the rows of a class."""
    mixture = {"name": "mixture_flow", "components": count}
    skips = [{"name": "gaussian_skip"}, {"name": "mixture_skip", "components": count}]
    methods = {
        "preconditioner": {"preconditioner": mixture},
        "preconditioner.stages.1": {"preconditioner": composed(mixture)},
        "preconditioner.stages.1.stages.1": {"preconditioner": composed(composed(mixture))},
        "through.1": {"preconditioner": {"name": "none"}, "through": [{"name": "scalar"}, mixture]},
        "through.0.stages.1": {"preconditioner": {"name": "none"}, "through": [composed(mixture)]},
        "flow.wrappers.1": {"preconditioner": {"name": "none"}, "flow": {"wrappers": skips}},
    }
    changes = {f"methods.x.{field}": {"methods": {"x": method}} for field, method in methods.items()}
    return {
        **changes,
        "baseline": {"baseline": mixture},
        "baseline.stages.1": {"baseline": composed(mixture)},
    }


@pytest.mark.parametrize("field", with_components(1))
def test_more_components_than_half_the_rows_of_a_class_are_refused(planned, field):
    assert planned(with_components(30)[field]).nodes
    with pytest.raises(PrecfmError, match=rf"^{re.escape(field)}\.components: got 31"):
        planned(with_components(31)[field])


@pytest.mark.parametrize("name", ["low_rank", "projection"])
def test_a_rank_above_the_dimension_is_refused(planned, name):
    stages = {"name": "composition", "stages": [{"name": "scalar"}, {"name": name, "rank": 17}]}
    for method in ({"preconditioner": stages}, {"preconditioner": {"name": "scalar"}, "through": [stages]}):
        with pytest.raises(PrecfmError, match=r"methods\.x\..*stages\.1\.rank: got 17.*at most 16 "):
            planned({"methods": {"x": method}})  # of a trained encoder
    stages["stages"][1]["rank"] = 16
    assert planned({"methods": {"x": {"preconditioner": stages}}}).nodes


@pytest.mark.parametrize(
    ("encoder", "model", "reason"),
    [
        ({"name": "pca", "components": 8}, {"name": "unet"}, r"\(8\): latents with another number of axes"),
        (
            {"name": "block_dct", "block": 7, "keep": 3},
            {"name": "dit", "patch": 3},
            r"\(3 x 4 x 4\): patch: got 3",
        ),
        (
            {"name": "block_dct", "block": 14, "keep": 3},
            {"name": "unet", "multipliers": [1, 2, 2]},
            r"\(3 x 2 x 2\): multipliers: got 3 levels",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_latents_is_refused(planned, encoder, model, reason):
    pytest.importorskip("diffusers")
    change = {
        "encoders": {"L16": {"model": encoder, "training": None}},
        "methods": {"none": {"preconditioner": {"name": "none"}, "flow": {"model": model}}},
        "predict": [],
    }
    with pytest.raises(PrecfmError, match=rf"^methods\.none\.flow\.model: got '{model['name']}'.*{reason}"):
        planned(change)
    change["methods"]["none"]["flow"]["model"] = {
        "name": "dit",
        "patch": 2,
        "width": 8,
        "depth": 1,
        "heads": 2,
    }
    if encoder["name"] != "pca":
        assert planned(change).of("flows")


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"name": "conv_vae", "latent_dim": 10**12}, "latent_dim"),
        ({"name": "conv_vae", "latent_dim": 2**70}, "latent_dim"),
        ({"name": "pca", "components": 10**12}, "components"),
        ({"name": "pca", "components": 785}, "components"),
        ({"name": "pca", "components": 600}, "components"),  # as many as images
        ({"name": "block_dct", "block": 7, "keep": 10**12}, "keep"),
    ],
)
def test_an_encoder_that_is_too_large_is_refused(planned, model, field):
    training = {"training": None} if model["name"] != "conv_vae" else {}
    with pytest.raises(PrecfmError, match=rf"encoders\.L16.*{field}: |encoders\.L16.*'{field}': "):
        planned({"encoders": {"L16": {"model": model, **training}}})


def test_names_that_make_one_label_or_too_long_a_one_are_refused(planned):
    images = {"source": {"name": "mnist5k"}, "train": 600, "validation": 200, "heldout": 300}
    pca = {"model": {"name": "pca", "components": 4}}
    change = {"methods": {"scalar": {"preconditioner": {"name": "scalar"}}}, "settings": None, "predict": []}
    for datasets, encoders in ((("a", "a-b"), ("b-c", "c")), (("d" * 100,), ("e" * 100,))):
        change["datasets"] = dict.fromkeys(datasets, images)
        change["encoders"] = {"L16": None, **dict.fromkeys(encoders, pca)}
        with pytest.raises(PrecfmError, match=r"^names: "):
            planned(change)


def test_guidance_has_a_null_class_in_skips_too_and_is_in_no_key_where_it_is_not_used(planned):
    neutral = {"sampling": {"guidance": 1.0}, "flow": {"model": {"label_dropout": 0.0}}}
    assert planned(neutral).nodes.keys() == planned().nodes.keys()
    wrapper = {"name": "mixture_skip", "directions": "patches", "patch": 2}  # of feature maps
    plan = planned(
        {
            "encoders": {"L16": {"model": {"name": "block_dct", "block": 7, "keep": 3}, "training": None}},
            "sampling": {"guidance": 2.0},
            "flow": {"model": {"name": "unet", "width": 8, "label_dropout": 0.1}},
            "methods": {"mixture_skip": {"flow": {"wrappers": [wrapper]}}},
        }
    )
    assert {node.params["label_dropout"] for node in plan.of("skips")} == {0.1}
    assert {node.params["sampling"]["guidance"] for node in plan.of("samples")} == {2.0}
    assert any("alone-mixture_skip" in node.label for node in plan.of("samples"))


def test_a_baseline_that_nothing_is_matched_with_is_not_judged(planned):
    unmatched = {"settings": {"plain": {"matched": []}}, **with_components(31)["baseline"]}
    assert planned(unmatched).nodes


def theory_of(project, experiment, jobs):
    """Give jobs of a shipped experiment other options; `None` takes the job out."""
    file = project / "config" / f"{experiment}.yaml"
    content = read_yaml(file)
    for job, options in jobs.items():
        if options is None:
            del content["theory"][job]
        else:
            content["theory"].setdefault(job, {"run": {"name": job}, "seeds": [0]})["run"].update(options)
    file.write_text(json.dumps(content))
    return load_plan(experiment)


GRIDS = ("linear_grid_linear", "linear_grid_variance_preserving")
BUDGETS = ("trained_budgets_constant", "trained_budgets_cosine")
THREE = ["whitening", "class_whitening", "normalizing_flow"]


@pytest.mark.parametrize(
    ("experiment", "jobs", "field"),
    [
        ("theory", dict.fromkeys(GRIDS), "C1: 'identity_relative_error'"),
        ("theory", {job: {"targets": ["score"]} for job in GRIDS}, "C2: 'descent_relative_error'"),
        (
            "theory",
            {"steps_to_accuracy": {"paths": ["linear"]}},
            "C2: 'descent_total_steps_slope_variance_preserving'.*theory.steps_to_accuracy ",
        ),
        ("theory", {"steps_to_accuracy": {"targets": ["velocity"]}}, "C4: 'score_descent_steps_slope'"),
        ("theory", {"mixture_ablations": {"methods": ["class_whitening"]}}, "C5b: 'conditioning_varied"),
        ("theory", {"mixture_ablations": {"control_condition_number": None}}, "C5b: 'scale_control_kappa"),
        (
            "theory",
            {job: {"methods": ["none"]} for job in BUDGETS},
            "C7: 'controlled_final_log_error_low_difference'.*_constant and theory.trained_budgets_cosine ",
        ),
        ("theory", {"trained_budgets_cosine": None}, "C9: 'horizon_gain_difference_cosine'"),
        (
            "theory",
            {"mixture_networks": {"preconditioners": THREE}},
            "C10: 'controlled_matched_difference_labels_low_capacity_flow_to_P'.*theory.mixture_networks ",
        ),
        (
            "theory",
            {"mixture_networks": {"matched": ["class_whitening", "low_capacity_flow"]}},
            "C10: 'controlled_matched_difference_labels_normalizing_flow_to_P'",
        ),
        (
            "theory",
            {"mixture_networks": {"regimes": ["labels"]}},
            "C10: 'controlled_matched_difference_unlabelled_normalizing_flow_to_P'",
        ),
        ("theory", {"mixture_networks": None}, "C10: 'controlled_matched_difference_labels"),
        ("quick", {"linear_grid": None}, "C1: 'identity_relative_error'"),
        ("quick", {"trained_budgets": {"methods": ["whitening"]}}, "C7: 'controlled_final_log_error_low"),
    ],
)
def test_a_claim_is_not_to_be_decided_by_statistics_that_no_job_yields(project, experiment, jobs, field):
    with pytest.raises(PrecfmError, match=rf"^claims\.{field}"):
        theory_of(project, experiment, jobs)


def test_a_claim_may_name_an_experiment_for_its_data_alone(project):
    """C7 is decided in theory by `trained_budgets`, of which `quick` has none and need have none."""
    plan = load_plan("quick")
    assert {node.params["run"]["name"] for node in plan.of("theory")}.isdisjoint({"trained_budgets"})
    assert theory_of(project, "quick", {"trained_budgets": {}}).of("theory")


def theory_names():
    claims = parse_claims(read_yaml(CLAIMS)).claims
    return {each.name for claim in claims for each in claim.statistics if each.kind == "theory"}


def matching(names, name, options):
    patterns = statistics_of(component("theory", {"name": name, **options}))
    return {each for each in names if any(fnmatchcase(each, pattern) for pattern in patterns)}


def test_every_statistic_that_a_claim_asks_for_is_yielded_by_default(project):
    names = theory_names()
    assert set().union(*(matching(names, name, {}) for name in REGISTRY["theory"])) == names


@pytest.mark.xdist_group("theory frames")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in theory_frames.TOY),
        ("linear_grid", {"targets": ("score",)}),
        ("steps_to_accuracy", {"paths": ("linear",), "targets": ("score",)}),
        ("mixture_networks", {"preconditioners": ("class_whitening", "low_capacity_flow"), "matched": ()}),
        ("mixture_networks", {"regimes": ("unlabelled",), "preconditioners": ("class_whitening",)}),
        ("mixture_ablations", {"methods": ("class_whitening",)}),
        ("mixture_ablations", {"methods": ("none",), "control_condition_number": None}),
        ("mixture_ablations", {"worst_weights": ()}),
        ("mixture_ablations", {"worst_weights": (), "control_condition_number": None}),
        ("mixture_ablations", {"worst_weights": (0.8,), "worst_condition_numbers": ()}),
        ("trained_budgets", {"checkpoints": ()}),
        ("trained_budgets", {"horizons": ()}),
    ],
)
def test_the_plan_knows_which_statistics_a_job_yields(project, name, changes):
    names = theory_names()
    tables = theory_frames.run(name, 0, **changes)
    found = theory_statistics({f"{name}.{table}": frame for table, frame in tables.items()})
    options = {**theory_frames.TOY[name], **changes}
    assert matching(names, name, options) == names & set(found["statistic"])


def test_a_setting_changes_what_it_says_and_shares_the_rest(planned):
    solver = {"methods": ["none"], "matched": [], "sampling": {"steps": 3}}
    before, after = planned({"seeds": [0]}), planned({"seeds": [0], "settings": {"coarse": solver}})
    assert kinds(changed_ids(before, after)) == {"samples", "evaluations"} | REPORTS
    assert {about["dataset"] for about in after.of("frames")[0].params["about"]["evaluations"]} == {
        "mnist5k-L16",
        "mnist5k-L16-tuned",
        "mnist5k-L16-coarse",
    }


def test_only_plain_flow_matching_by_a_plain_network_is_foretold(planned):
    cure = {"preconditioner": {"name": "scalar"}, "flow": {"objective": {"time": "logit_normal"}}}
    skip = {"preconditioner": {"name": "scalar"}, "flow": {"wrappers": [{"name": "gaussian_skip"}]}}
    before, after = planned(), planned({"methods": {"cure": cure, "skip": skip}})
    assert len(after.of("kernels")) == len(before.of("kernels")) == 3


def test_a_recipe_is_searched_once_for_all_seeds(planned):
    plan = planned({"settings": {"tuned": {"seeds": [0, 1, 2]}}})
    (recipe,) = plan.of("recipes")
    tuned = [node for node in plan.of("flows") if node.parents.get("recipe") == (recipe.id,)]
    assert len(tuned) == 3
    assert "heldout" not in json.dumps(recipe.params)


def test_a_tiny_experiment_has_every_artifact_of_the_whole_one(project):
    whole, cut = load_plan("paper-mnist"), load_plan("paper-mnist-tiny")
    assert {node.kind for node in cut.nodes.values()} == {node.kind for node in whole.nodes.values()}
    assert all(node.params["flow"]["training"]["steps"] <= 12 for node in cut.of("flows"))
    settings, cut_settings = (load_experiment(name).settings for name in ("paper-mnist", "paper-mnist-tiny"))
    assert {name: list(setting.methods) for name, setting in settings.items()} == {
        name: list(setting.methods) for name, setting in cut_settings.items()
    }


def test_a_renamed_method_keeps_its_keys(planned):
    before = planned()
    renamed = planned(
        {"methods": {"whitening": None, "white": {"preconditioner": {"name": "whitening", "shrinkage": 0}}}}
    )
    assert {node.key for node in before.of("flows")} == {node.key for node in renamed.of("flows")}


def test_a_device_is_no_part_of_the_key(planned):
    assert planned({"device": "cuda"}).nodes.keys() == planned().nodes.keys()


def test_seeds_of_small_networks_train_side_by_side_on_a_gpu_alone(planned):
    methods = {
        "none": {"preconditioner": {"name": "none"}},
        "paired": {
            "preconditioner": {"name": "none"},
            "flow": {"objective": {"name": "flow_matching", "coupling": "optimal_transport"}},
        },
        "weighed": {
            "preconditioner": {"name": "none"},
            "flow": {"objective": {"name": "flow_matching", "metric": "inverse_variance"}},
        },
        "turns": {"preconditioner": {"name": "whitening"}, "through": [{"name": "none"}]},
    }
    settings = {"plain": {"encoders": ["L16"], "methods": list(methods), "matched": ["none"]}}
    settings |= {"tuned": None, "autoencoder": None}

    def flows(**more):
        return planned({"methods": methods, "settings": settings, "seeds": [0, 1, 2], **more}).of("flows")

    batched = [node for node in flows(device="cuda") if node.batch]
    assert [node.label for node in batched] == [f"{batched[0].batch}-s{seed}" for seed in range(3)]
    assert "none" in batched[0].batch
    assert not any(node.batch for node in flows())
    assert not any(node.batch for node in flows(device="cuda", seeds=[0]))
    settings["plain"]["methods"].remove("paired")  # which several devices could not train
    assert not any(node.batch for node in flows(device="cuda", devices=2))


def test_a_changed_source_changes_everything_made_from_it(planned, project):
    before = planned()
    file = project / "data/sources.yaml"
    files = source_manifest("mnist5k", file).files
    other = tuple(replace(source, sha256="0" * 64) for source in files)
    text = file.read_text().replace(files[0].sha256, "0" * 64)
    file.write_text(text.replace(files_checksum(files), files_checksum(other)))
    assert kinds(before.nodes.keys() & planned().nodes.keys()) == {"theory"}


def test_fits_without_randomness_are_shared_between_seeds(planned):
    labels = [node.label for node in planned().of("preconditioners")]
    assert len([label for label in labels if "-whitening" in label]) == 1
    assert len([label for label in labels if "normalizing_flow" in label]) == 2


def test_equal_methods_are_one_artifact(planned):
    twin = planned({"methods": {"twin": {"preconditioner": {"name": "whitening", "shrinkage": 0}}}})
    assert len(twin.of("flows")) == len(planned().of("flows"))


def test_a_node_that_does_not_exist_is_refused(planned):
    with pytest.raises(PrecfmError, match="precfm ls mine"):
        planned().node("flows/nobody-123")


def test_a_kind_that_the_plan_has_none_of_is_refused(planned):
    assert planned().required("flows") == planned().of("flows")
    with pytest.raises(PrecfmError, match="'norms': "):
        planned().required("norms")


def test_every_script_exists():
    assert all((SCRIPTS / f"{kind}.py").is_file() for kind in KINDS)


ASK = """
import json, sys
from precfm.pipeline.plan import load_plan
plan = load_plan(sys.argv[1])
print(json.dumps({"torch": "torch" in sys.modules, "plan": plan.to_json()}))
"""


def in_a_fresh_interpreter(name):
    said = subprocess.run([sys.executable, "-c", ASK, name], capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def kept(project, name="mine"):
    return list((project / "results/.work/plans").glob(f"{name}.*.json"))


def test_a_kept_plan_is_equal_and_needs_no_torch(planned):
    plan = planned()
    again = in_a_fresh_interpreter("mine")
    assert again["torch"] is False
    assert Plan.from_json(again["plan"]) == plan
    assert load_plan("mine") == plan


def test_what_a_plan_depends_on_makes_it_anew(planned, project, monkeypatch):
    before = planned()
    (file,) = kept(project)
    for name in ("config/smoke.yaml", "config/claims.yaml", "data/sources.yaml"):
        path = project / name
        path.write_text(path.read_text() + "\n# changed\n")
        assert load_plan("mine") == before  # made anew, and the same
        assert kept(project) != [file]
        (file,) = kept(project)
    assert planned({"seeds": [5]}) != before
    monkeypatch.setattr("pydantic.VERSION", "0.0")
    assert load_plan("mine").nodes
    assert len(kept(project)) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda text: text.replace("flows", "flowz"), lambda _: "", lambda _: "{}", lambda text: text[80:]],
)
def test_a_damaged_kept_plan_is_made_anew(planned, project, damage):
    plan = planned()
    (file,) = kept(project)
    right = file.read_text()
    file.write_text(damage(right))
    assert load_plan("mine") == plan
    assert file.read_text() == right


def test_where_plans_cannot_be_kept_they_are_made_all_the_same(planned, project):
    (project / "results").write_text("a file")
    assert planned().nodes


def test_a_plan_of_thousands_is_made(planned):
    plan = planned({"seeds": list(range(300))})
    assert len(plan.nodes) > 3000


def test_every_experiment_that_ships_has_a_plan(project):
    for name in configured():
        assert load_plan(name).nodes


def test_what_is_asked_for_brings_what_it_needs_and_lacks(planned):
    plan = planned({"seeds": [0]})
    (latents,) = plan.of("latents")
    wanted = plan.with_missing_parents([latents.id])
    assert [node.kind for node in wanted] == ["data", "encoders", "latents"]
    (data,) = plan.of("data")
    data.folder.mkdir(parents=True)
    (data.folder / "artifact.json").write_text("{}")
    assert [node.kind for node in plan.with_missing_parents([latents.id])] == ["encoders", "latents"]
