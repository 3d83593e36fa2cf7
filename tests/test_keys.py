"""One changed line changes the keys of exactly the artifacts whose code runs it: kind by kind, for every package."""

import shutil

import pytest

from precfm.core.errors import PrecfmError
from precfm.pipeline import fingerprints
from precfm.pipeline.fingerprints import fingerprint, own_fingerprint
from precfm.pipeline.plan import load_plan
from tests.workflow import ROOT

# By file, the kinds of artifact of `quick` whose own code changes with it; what is made from them follows.
CHANGES = {
    "precfm/core/serialization.py": {"encoders", "evaluations", "features", "latents"},
    "precfm/core/errors.py": set(),
    "precfm/geometry/recovery.py": {"diagnostics", "evaluations", "preconditioners", "samples"},
    "precfm/training/trainer.py": {"flows", "preconditioners", "samples", "skips"},
    "precfm/training/negative_elbo.py": set(),
    "precfm/flows/sampling.py": {"evaluations", "flows", "preconditioners", "samples", "skips"},
    "precfm/flows/models/mlp.py": {"flows", "preconditioners", "samples", "skips"},
    "precfm/preconditioners/base.py": {"diagnostics", "flows", "preconditioners", "samples", "skips"},
    "precfm/preconditioners/scalar.py": {"preconditioners", "samples"},
    "precfm/preconditioned_flow.py": {"flows", "samples", "skips"},
    "precfm/encoders/conv_vae.py": {"encoders"},
    "precfm/encoders/pca.py": {"encoders"},
    "precfm/metrics/extractors/classifier.py": {"classifiers"},
    "precfm/datasets/splits.py": {"data"},
    "precfm/datasets/sources.py": set(),
    "precfm/metrics/frechet.py": {"evaluations", "features"},
    "precfm/theory/linear_regression.py": {"theory"},
    "precfm/report/tables/recovery.py": {"table_files"},
    "precfm/report/figures/spectra.py": {"figure_files"},
    "precfm/report/verdicts.py": {"pages", "verdicts"},
    "precfm/report/page/order.py": {"pages"},
    "precfm/report/page/page.css": {"pages"},
    "precfm/report/page/experiment.html": {"pages"},
    "precfm/pipeline/build.py": set(),
    "precfm/audit/lineage.py": set(),
    "precfm/cli/checking.py": set(),
    "precfm/__init__.py": set(),
    "precfm/flows/__init__.py": set(),
    "workflow_scripts/latents.py": {"latents"},
    "workflow_scripts/pinned.py": {"classifiers", "encoders"},
}
# Of `smoke`, which trains its encoder and its classifiers; those of `quick` are pinned.
CHANGES_WHERE_TRAINED = {
    "precfm/training/trainer.py": {
        "budgets",
        "classifiers",
        "encoders",
        "flows",
        "kernels",
        "likelihoods",
        "preconditioners",
        "recipes",
        "samples",
        "skips",
    },
    "precfm/training/negative_elbo.py": {"encoders"},
    "precfm/training/shifted_cross_entropy.py": {"classifiers"},
    "workflow_scripts/pinned.py": set(),
}


def makers_of(experiment):
    """By kind, what makes the artifacts of an experiment: script and targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        nodes = load_plan(experiment).nodes.values()
    return {(node.kind, node.script, node.targets) for node in nodes}


@pytest.fixture(scope="module")
def makers():
    return makers_of("quick")


@pytest.fixture(scope="module")
def makers_that_train():
    return makers_of("smoke")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of all code, of which fingerprints are taken."""
    for name in ("precfm", "workflow_scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "precfm")
    return tmp_path


def changed_by(tree, makers, file):
    """The makers whose fingerprint is another once a line was added to a file."""

    def prints():
        return {maker: own_fingerprint(tree / "workflow_scripts" / maker[1], maker[2]) for maker in makers}

    before = prints()
    text = (tree / file).read_text()
    (tree / file).write_text(text + "\nCHANGED = 1\n")
    after = prints()
    return {maker for maker in makers if after[maker] != before[maker]}


@pytest.mark.parametrize("file", CHANGES)
def test_a_changed_line_changes_exactly_these_kinds(tree, makers, file):
    assert {kind for kind, _, _ in changed_by(tree, makers, file)} == CHANGES[file]


@pytest.mark.parametrize("file", CHANGES_WHERE_TRAINED)
def test_code_that_trains_changes_what_is_trained(tree, makers_that_train, file):
    changed = changed_by(tree, makers_that_train, file)
    assert {kind for kind, _, _ in changed} == CHANGES_WHERE_TRAINED[file]


def test_a_changed_preconditioner_leaves_the_others_alone(tree, makers):
    changed = changed_by(tree, makers, "precfm/preconditioners/scalar.py")
    scalar = "precfm.preconditioners.scalar:Scalar"
    assert {targets for kind, _, targets in changed if kind == "preconditioners"} == {(scalar,)}
    assert all(scalar in targets for _, _, targets in changed)


def test_a_changed_front_door_changes_nothing_and_nothing_may_pass_through_it(tree, makers):
    """A name that is imported from it would be hidden from the key."""
    script = tree / "workflow_scripts/latents.py"
    script.write_text("from precfm.flows import LinearPath\n" + script.read_text())
    with pytest.raises(PrecfmError, match=r"latents\.py:1: imports from the package precfm\.flows"):
        fingerprint(script)
