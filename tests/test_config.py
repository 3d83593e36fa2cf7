"""Configurations: what is right is read, what is wrong is refused in one sentence with field and value."""

import re
from datetime import date
from math import nan
from pathlib import Path

import pytest
import yaml

from precfm.core.errors import PrecfmError
from precfm.core.options import Neutral, Strict, options_of
from precfm.flows.models import base
from precfm.flows.models.mlp import MLPVelocity
from precfm.pipeline.components import FILLED_IN, component, plain
from precfm.pipeline.experiments import configured, load_experiment, merge, parts_of, read_yaml

CONFIG = Path(__file__).parent.parent / "config"
WHITENING = {"preconditioner": {"name": "whitening"}}
MISSPELT = {"name": "composition", "stages": [{"name": "whitening"}, {"name": "whitening", "exponnt": 1}]}
MAGIC = {"preconditioner": {"name": "magic"}}
SKIP = {"wrappers": [{"name": "gaussian_skip"}]}


@pytest.fixture
def folder(tmp_path):
    for file in CONFIG.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    return tmp_path


def changed(folder, change, base="smoke"):
    (folder / "mine.yaml").write_text(yaml.safe_dump({"extends": base, **change}))
    return load_experiment("mine", folder)


@pytest.mark.parametrize("name", configured(CONFIG))
def test_every_configuration_that_ships_is_valid(name):
    assert load_experiment(name, CONFIG).name == name


def test_a_list_of_experiments_is_its_parts(folder):
    (folder / "both.yaml").write_text("description: two\nparts: [quick, smoke]\n")
    assert parts_of("both", folder) == ("quick", "smoke")
    assert parts_of("both-tiny", folder) == ("quick-tiny", "smoke-tiny")
    assert parts_of("quick", folder) == ("quick",)
    assert "both" not in configured(folder)
    with pytest.raises(PrecfmError, match=r"^experiment: got 'both'.*quick, smoke"):
        load_experiment("both", folder)
    (folder / "both.yaml").write_text("description: two\nparts: []\n")
    with pytest.raises(PrecfmError, match=r"both\.yaml: parts: "):
        parts_of("both", folder)


def test_claims_name_experiments_that_exist_or_are_said_to_be_planned():
    text = (CONFIG / "claims.yaml").read_text()
    named = {name for claim in read_yaml(CONFIG / "claims.yaml")["claims"] for name in claim["experiments"]}
    planned = re.findall(r"Planned, without a file in this folder: (\w+)", text)
    assert named - {file.stem for file in CONFIG.glob("*.yaml")} == set(planned)


def test_extending_merges_replaces_and_removes(folder):
    experiment = changed(
        folder, {"methods": {"whitening": None}, "flow": {"training": {"learning_rate": 5e-4}}}
    )
    assert "whitening" not in experiment.settings["plain"].methods
    assert experiment.settings["plain"].methods["none"].flow.training.learning_rate == 5e-4
    assert (
        experiment.settings["plain"].methods["none"].flow.training.steps
        == load_experiment("smoke", folder).settings["plain"].methods["none"].flow.training.steps
    )


def test_a_component_of_another_name_does_not_inherit_options():
    assert merge({"name": "mlp", "width": 256}, {"name": "unet", "depth": 2}) == {"name": "unet", "depth": 2}
    assert merge({"name": "mlp", "width": 256}, {"width": 32}) == {"name": "mlp", "width": 32}


def test_a_method_may_change_its_own_flow_only(folder):
    wide = {"preconditioner": {"name": "none"}, "flow": {"model": {"width": 64}}}
    experiment = changed(folder, {"methods": {"wide": wide}})
    assert experiment.settings["plain"].methods["wide"].flow.model.options.width == 64
    assert experiment.settings["plain"].methods["none"].flow.model.options.width == 32


def test_a_sweep_becomes_one_method_per_value(folder):
    sweep = {"preconditioner": {"name": "whitening"}, "sweep": {"preconditioner.exponent": [0.25, 0.5]}}
    experiment = changed(folder, {"methods": {"tempered": sweep}})
    assert (
        experiment.settings["plain"].methods["tempered-exponent=0.25"].preconditioner.options.exponent == 0.25
    )
    assert (
        experiment.settings["plain"].methods["tempered-exponent=0.5"].preconditioner.options.exponent == 0.5
    )
    assert "tempered" not in experiment.settings["plain"].methods


def test_numbers_like_1e_minus_3_are_numbers(folder):
    (folder / "mine.yaml").write_text("extends: smoke\nflow: {training: {learning_rate: 1e-3}}\n")
    assert (
        load_experiment("mine", folder).settings["plain"].methods["none"].flow.training.learning_rate == 1e-3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 3}, ["mine.yaml: colour", "3"]),
        ({"sampling": {"stepz": 3}}, ["sampling.stepz", "3"]),
        ({"sampling": {"n": "many"}}, ["sampling.n", "'many'"]),
        ({"sampling": {"n": 0}}, ["sampling.n", "got 0"]),
        ({"sampling": {"solver": "magic"}}, ["sampling.solver", "'midpoint'"]),
        ({"methods": {"x": {"preconditioner": {"name": "magic"}}}}, ["methods.x", "'magic'", "whitening"]),
        (
            {"methods": {"x": {"preconditioner": {"name": "whitening", "shrink": 1}}}},
            ["methods.x", "shrink", "1"],
        ),
        ({"methods": {"x": {}}}, ["methods.x.preconditioner"]),
        ({"methods": {"a b": {"preconditioner": {"name": "none"}}}}, ["name 'a b'"]),
        ({"flow": {"training": {"checkpoints": [10, 900]}}}, ["checkpoints", "900", "60"]),
        ({"flow": {"training": {"checkpoints": []}}}, ["training.checkpoints", "[]", "60"]),
        ({"flow": {"training": {"steps": 90}}}, ["training.checkpoints", "[30, 60]", "90"]),
        ({"flow": {"training": {"learning_rate": -1}}}, ["flow.training.learning_rate", "-1"]),
        ({"encoders": {"L16": {"training": {"warmup_steps": 60}}}}, ["L16.training: warmup_steps", "60"]),
        ({"classifiers": {"training": {"batch_size": 0}}}, ["classifiers.training.batch_size", "got 0"]),
        (
            {"classifiers": {"training": {"patience": 2}}},
            ["classifiers.training: patience", "2", "validate_every"],
        ),
        ({"classifiers": {"training": {"ema_decay": 1.0}}}, ["classifiers.training.ema_decay", "1.0"]),
        ({"classifiers": {"training": {"validate_every": 5}}}, ["validate_every", "5", "0"]),
        ({"encoders": {"L16": {"training": None}}}, ["encoders.L16", "training", "conv_vae"]),
        ({"flow": {"wrappers": [{"name": "magic"}]}}, ["flow.wrappers.0", "'magic'", "gaussian_skip"]),
        (
            {"flow": {"wrappers": [{"name": "gaussian_skip", "path": "linear"}]}},
            ["wrappers.0: path", "linear"],
        ),
        ({"baseline": {"name": "normalizing_flow", "validate_every": 0}}, ["baseline", "patience", "5"]),
        ({"methods": ["a"]}, ["mine.yaml: methods", "['a']"]),
        ({"methods": {"x": "text"}}, ["mine.yaml: methods.x", "'text'"]),
        ({"methods": {"x": {**WHITENING, "sweep": None}}}, ["mine.yaml: methods.x.sweep", "None"]),
        ({"methods": {"x": {**WHITENING, "sweep": {"f": 0.5}}}}, ["mine.yaml: methods.x.sweep.f", "0.5"]),
        ({"methods": {"x": {**WHITENING, "sweep": {"f": []}}}}, ["mine.yaml: methods.x.sweep.f", "[]"]),
        (
            {"methods": {"x": {**WHITENING, "sweep": {"f": [1, 1]}}}},
            ["mine.yaml: methods.x.sweep.f", "[1, 1]"],
        ),
        ({"methods": {"x": {**WHITENING, "sweep": {1: [2]}}}}, ["mine.yaml: methods.x.sweep.1", "[2]"]),
        ({"flow": {"model": {"name": "mlp", "width": 1.5}}}, ["flow.model: width", "1.5"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"evaluation": {"neighbours": 400}}, ["neighbours", "400"]),
        ({"datasets": {"mnist5k": {"train": -5}}}, ["datasets.mnist5k.train", "-5"]),
        ({"datasets": {"mnist5k": {"source": {"name": "imagenet"}}}}, ["imagenet", "mnist5k"]),
        ({"classifiers": None}, ["classifiers"]),
        ({"device": "tpu"}, ["device", "'cpu'"]),
        ({"predict": ["nothing"]}, ["predict", "'nothing'"]),
        (
            {"methods": {"x": {"preconditioner": MISSPELT}}},
            ["methods.x.preconditioner: stages.1: exponnt", "1"],
        ),
        ({"flow": SKIP | {"objective": {"name": "denoising_score"}}}, ["denoising_score", "gaussian_skip"]),
        ({"settings": {"x": {"methods": ["nobody"]}}}, ["settings.x.methods", "nobody", "whitening"]),
        ({"settings": {"x": {"encoders": ["L64"]}}}, ["settings.x.encoders", "'L64'", "L16"]),
        ({"settings": {"x": {"matched": ["nobody"]}}}, ["settings.x: matched", "'nobody'"]),
        ({"settings": {"x": {"recipe": "magic"}}}, ["settings.x.recipe", "'tuned'"]),
        ({"settings": {"x": {"flow": {"path": {"name": "curved"}}}}}, ["settings.x.flow.path", "'curved'"]),
        ({"extends": "nothing"}, ["nothing.yaml", "no such file"]),
        ({"extends": "quik"}, ["mine.yaml: extends", "did you mean quick"]),
        ({"extends": ["quick"]}, ["mine.yaml: extends", "quick"]),
        ({"extends": "claims"}, ["mine.yaml: extends", "claims"]),
        ({"seeds": [-1]}, ["seeds.0", "-1"]),
        ({"seeds": [2**63]}, ["seeds.0", str(2**63)]),
        ({"seeds": [True]}, ["seeds.0", "True"]),
        ({"sampling": {"seed": 1.0}}, ["sampling.seed", "1.0"]),
        ({"datasets": {"mnist5k": {"seed": "1"}}}, ["datasets.mnist5k.seed", "'1'"]),
        ({"classifiers": {"seeds": [1, 1]}}, ["classifiers.seeds", "[1, 1]"]),
        ({"theory": {"linear_grid": {"seeds": [1, 1]}}}, ["theory.linear_grid.seeds", "[1, 1]"]),
        ({"search": {"learning_rate": [0.0]}}, ["search.learning_rate.0", "0.0"]),
        ({"search": {"time": ["uniform", "uniform"]}}, ["search.time", "uniform"]),
        ({"sampling": {"n": date(2026, 1, 1)}}, ["sampling.n", "'2026-01-01'"]),
        ({"sampling": {"n": nan}}, ["sampling.n", "nan"]),
        ({"sampling": {"guidance": 2.0}}, ["sampling.guidance", "2.0", "label_dropout"]),
        ({"sampling": 3}, ["sampling", "3"]),
        ({"flow": nan}, ["mine.yaml: flow", "nan"]),
        ({"flow": {"model": list(range(2000))}}, ["flow.model", "[0, 1"]),
        ({"sampling": {"x" * 900: 3}}, ["sampling.xxx"]),
        ({"methods": {"n" * 300: WHITENING}}, ["methods", "'nnn", "100"]),
        ({"methods": {"whitening-P": WHITENING}}, ["methods", "whitening-P"]),
        ({"methods": {f"m{i}": MAGIC for i in range(60)}}, ["methods.m0", "59 more", "..."]),
        ({"settings": {"x": {"methods": [{"a": 1}]}}}, ["settings.x.methods", "{'a': 1}"]),
        ({"datasets": {"mnist5k": {"without": [{"name": "mnist5k"}]}}}, ["datasets.mnist5k: without"]),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_sentence(folder, change, words):
    with pytest.raises(PrecfmError) as caught:
        changed(folder, change)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 550 + len(str(folder))
    assert ".yaml: " in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [", r"mine\.yaml: .*line 1"),
        (b"- 1", "mine.yaml"),
        (b"a: \xff", "mine.yaml"),
        (b"a: 1\nb: 2\na: 3", "mine.yaml: .*line 3.*'a'"),
        (b"seeds: [0]\nb: {c: 1, c: 1}", "line 2.*'c'"),
        (b"a: 1\nno: 2", "mine.yaml: .*line 2.*'no'"),
        (b"a: &x {b: *x}", "mine.yaml: .*Circular"),
        (b"a: " + b"{a: " * 300 + b"1" + b"}" * 300, "mine.yaml: .{,200}$"),
        (b"# nothing", "mine.yaml: is empty"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(PrecfmError, match=words):
        load_experiment("mine", tmp_path)


def test_a_circle_of_extensions_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b")
    (tmp_path / "b.yaml").write_text("extends: a")
    with pytest.raises(PrecfmError, match="extends: 'a'"):
        load_experiment("a", tmp_path)


def test_a_missing_file_names_those_that_exist():
    with pytest.raises(PrecfmError, match=r"absent\.yaml.*quick"):
        read_yaml(CONFIG / "absent.yaml")
    with pytest.raises(PrecfmError, match=r"quik\.yaml.*did you mean quick"):
        load_experiment("quik-tiny", CONFIG)


@pytest.mark.parametrize("name", ["n" * 300, "a/b", "a b", ".a", "-a", "", "published", "claims"])
def test_what_no_experiment_can_be_called_is_refused(folder, name):
    with pytest.raises(PrecfmError, match="experiment: got"):
        load_experiment(name, folder)


@pytest.mark.parametrize("text", ["seeds: " + "1" * 5000, "[" * 5000])
def test_yaml_that_python_cannot_hold_is_refused_in_one_sentence(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(PrecfmError, match=r"mine\.yaml"):
        read_yaml(tmp_path / "mine.yaml")


def test_numbers_with_an_exponent_are_numbers_and_text_that_begins_like_one_is_text(tmp_path):
    (tmp_path / "mine.yaml").write_text("[1e-3, 2.E4, .5e1, -1e3, 12e3abc, 1e3-a]")
    assert read_yaml(tmp_path / "mine.yaml") == [1e-3, 2e4, 5.0, -1e3, "12e3abc", "1e3-a"]


def test_options_are_those_of_the_class():
    options = options_of(MLPVelocity, FILLED_IN["models"])
    assert {"width", "depth"} <= set(options.model_fields)
    assert not FILLED_IN["models"] & set(options.model_fields)
    assert options().width == 256


def test_the_pipeline_and_the_flows_agree_on_what_is_never_configured():
    assert FILLED_IN["models"] | FILLED_IN["wrappers"] == base.FILLED_IN


def test_a_class_says_whether_its_fit_uses_the_seed():
    for name, seeded in (("normalizing_flow", True), ("whitening", False)):
        assert component("preconditioners", {"name": name}).constant("uses_seed") is seeded


def test_a_neutral_value_leaves_no_trace_in_a_key():
    from typing import Annotated

    class Before(Strict):
        width: int = 3

    class After(Strict):
        width: int = 3
        dropout: Annotated[float, Neutral(0.0)] = 0.0

    assert plain(After(), for_key=True) == plain(Before(), for_key=True)
    assert plain(After(dropout=0.1), for_key=True) == {"width": 3, "dropout": 0.1}
    assert plain(After()) == {"width": 3, "dropout": 0.0}


def test_a_setting_takes_the_files_values_but_for_its_own(folder):
    coarse = {
        "methods": ["none"],
        "seeds": [7],
        "sampling": {"steps": 3},
        "flow": {"training": {"learning_rate": 0.1}},
    }
    experiment = changed(folder, {"settings": {"coarse": coarse}})
    setting, plain_one = experiment.settings["coarse"], experiment.settings["plain"]
    assert (list(setting.methods), setting.seeds) == (["none"], (7,))
    assert (setting.sampling.steps, setting.sampling.n) == (3, plain_one.sampling.n)
    assert setting.methods["none"].flow.training.learning_rate == 0.1
    assert plain_one.methods["none"].flow.training.learning_rate == 1e-3


def test_a_sweep_reaches_into_lists(folder):
    skip = {"preconditioner": {"name": "scalar"}, "flow": SKIP}
    sweep = {"flow.wrappers.0.skip": ["mean", "classwise"]}
    methods = changed(folder, {"methods": {"skip": {**skip, "sweep": sweep}}}).settings["plain"].methods
    for value in sweep["flow.wrappers.0.skip"]:
        (wrapper,) = methods[f"skip-skip={value}"].flow.wrappers
        assert (wrapper.name, wrapper.options.skip) == ("gaussian_skip", value)


@pytest.mark.parametrize(
    ("change", "begins", "others"),
    [
        ({"flow": {"training": {"learning_rate": -1.0}}}, "flow.training.learning_rate: got -1.0; ", ""),
        (
            {"flow": {"model": {"widht": 3}, "training": {"stepz": 1}}},
            "flow.model: widht: got 3; ",
            "flow.training.stepz",
        ),
        (
            {"flow": {"model": {"width": 0}}, "sampling": {"n": 0}, "device": "tpu"},
            "device: got 'tpu'; ",
            "flow.model, sampling.n",
        ),
        (
            {"settings": {"a": {"flow": {"model": {"width": 0}}}, "b": {}}},
            "settings.a.flow.model: width: got 0; ",
            "",
        ),
        (
            {"settings": {"a": {}, "b": {}}, "methods": {"x": {"preconditioner": {"name": "no"}}}},
            "methods.x.preconditioner: preconditioners: got 'no'; ",
            "",
        ),
        (
            {"methods": {"x": {**WHITENING, "flow": {"model": {"width": 0}}}}},
            "methods.x.flow.model: width: got 0; ",
            "",
        ),
    ],
)
def test_what_many_methods_inherit_is_one_mistake(folder, change, begins, others):
    with pytest.raises(PrecfmError) as caught:
        changed(folder, change, base="quick")
    said = str(caught.value).removeprefix(f"{folder / 'mine.yaml'}: ")
    assert said.startswith(begins)
    assert said.partition("more: ")[2].rstrip(")") == others


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("preconditioners", "precfm.encoders.conv_vae:ConvVAE", "Preconditioner"),
        ("models", "torch.nn:Linear", "VelocityNetwork"),
        ("preconditioners", "precfm.preconditioners.base:Preconditioner", "Preconditioner"),
    ],
)
def test_a_class_of_another_kind_or_not_finished_is_refused_at_planning(group, name, said):
    with pytest.raises(PrecfmError, match=said):
        component(group, {"name": name})


def test_a_class_that_does_not_take_what_the_data_fill_in_is_refused_at_planning(monkeypatch):
    monkeypatch.setitem(FILLED_IN, "encoders", frozenset({"channels", "image_size", "colours"}))
    with pytest.raises(PrecfmError, match="colours"):
        component("encoders", {"name": "conv_vae"})
