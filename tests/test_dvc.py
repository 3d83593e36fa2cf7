"""The ledger names what the plan does: a stage for every kind, which depends on its keys and on the parents' kinds."""

import pytest
import yaml

from precfm.pipeline.experiments import configured
from precfm.pipeline.plan import KINDS, load_plan
from tests.workflow import ROOT, run

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RESULTS = "results/${item.experiment}/"


@pytest.fixture(scope="module")
def parents():
    """For every kind, the kinds of its parents in any experiment that ships."""
    found = {kind: set() for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in configured():
            for node in load_plan(name).nodes.values():
                found[node.kind] |= {parent.split("/")[0] for ids in node.parents.values() for parent in ids}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_of_a_kind_depends_on_the_kinds_of_its_parents(kind, parents):
    keys, *deps = STAGES[kind]["deps"]
    assert keys == f"keys/${{item.experiment}}/{kind}.txt"
    assert all(dep.startswith(RESULTS) for dep in deps)
    # An objective may measure errors in the decoder's metric wherever there is a flow.
    assert parents[kind] <= {dep.removeprefix(RESULTS) for dep in deps} <= parents[kind] | {"decoder_metrics"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_of_a_kind_holds_its_folder(kind):
    assert STAGES[kind]["outs"] == [{f"{RESULTS}{kind}": {"persist": True}}]
    assert STAGES[kind]["cmd"].endswith(f" --target {kind}")


def test_the_products_are_in_the_ledger_and_nothing_of_it_is_in_git():
    outs = [name for out in STAGES["products"]["outs"] for name in out]
    assert {name.removeprefix(RESULTS) for name in outs} == {
        "tables", "figures", "claims.md", "claims.json", "report.html", "manifest.json",
    }  # fmt: skip
    tracked = run(ROOT, "git", "ls-files", "results").splitlines()
    assert all(name.startswith("results/published/") for name in tracked)


def test_there_is_no_other_stage():
    assert set(STAGES) == {"keys", "raw", *KINDS, "products"}
