"""The tolerance with which published numbers of two runs are compared, and what cannot be compared at all."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from precfm.audit import comparison
from precfm.audit.comparison import judge, numbers_here, numbers_there
from precfm.audit.integrity import audit
from precfm.core.errors import PrecfmError
from precfm.pipeline.node import PUBLISHED
from tests.workflow import git, run


def compare(here, there):
    """As `comparison.compare`, of texts."""
    return comparison.compare(
        *({name: text.encode() for name, text in side.items()} for side in (here, there))
    )


def row(value, low, high, n):
    return {"value": value, "low": low, "high": high, "n": n}


@pytest.mark.parametrize(
    ("mine", "other", "judgement"),
    [
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 5), "interval"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 3), "interval"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 2), "unjudged"),
        (row(1.0, 0.9, 1.1, 5), row(1.3, 1.2, 1.4, 5), "beyond"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.29, 1.31, 5), "beyond"),  # the shorter distance counts
        (row(0.9, 0.8, 1.0, 2), row(-0.9, 0.8, 1.0, 2), "beyond"),  # outside its own interval
        (row(0.9, 0.8, 1.0, 5), row(500.0, -900.0, 900.0, 5), "beyond"),
        (row(0.9, 0.8, 1.0, 5), row(90.0, -1e300, 1e300, 2), "beyond"),
        (row(0.9, math.nan, math.nan, 1), row(1.0, 0.5, 1.5, 5), "beyond"),
        (row(0.9, -math.inf, math.inf, 5), row(9.0, -math.inf, math.inf, 5), "beyond"),
        (row(0.9, None, None, 1), row(0.9, None, None, 1), "equal"),
        (row(0.9, None, None, 1), row(0.93, None, None, 1), "near"),
        (row(2.0, 1.0, 9.0, 5), row(4.0, 3.9, 9.0, 5), "beyond"),  # bounds need not be symmetric
        (row(2.0, 1.9, 4.0, 5), row(4.0, 2.0, 4.1, 5), "interval"),
    ],
)
def test_the_rule_of_the_tolerance(mine, other, judgement):
    assert judge("value", mine, other)[1] == judge("value", other, mine)[1] == judgement


@pytest.mark.parametrize(("seeds", "beyond"), [(3, 0.05), (5, 0.032), (10, 0.019)])
def test_how_often_two_honest_runs_are_beyond_the_tolerance(seeds, beyond):
    draw = np.random.default_rng(0)
    half = stats.t.ppf(0.975, seeds - 1) / math.sqrt(seeds)
    found = 0
    for _ in range(4000):
        rows = []
        for sample in draw.normal(10.0, 8.0, size=(2, seeds)):
            value, width = sample.mean(), half * sample.std(ddof=1)
            rows.append(row(value, value - width, value + width, seeds))
        found += judge("value", *rows)[1] == "beyond"
    assert found / 4000 == pytest.approx(beyond, abs=0.008)


def test_verdicts_and_keys_of_classifiers_are_compared_as_what_they_are():
    def claims(verdict, value):
        statistic = {"statistic": "gap", "method": "a", "value": value, "low": None, "high": None, "n": 5}
        return json.dumps({"claims": [{"claim": "C1", "verdict": verdict, "statistics": [statistic]}]})

    (same,) = compare({"claims.json": claims("supported", 1.0)}, {"claims.json": claims("supported", 1.01)})
    assert same.beyond == ()
    (other,) = compare(
        {"claims.json": claims("supported", 1.0)}, {"claims.json": claims("inconclusive", 1.0)}
    )
    assert "inconclusive" in other.beyond[0]
    rows = [f"extractor,value\nclassifier-0@{key * 12},1.0\n" for key in "ab"]
    (renamed,) = compare({"t.csv": rows[0]}, {"t.csv": rows[1]})
    assert (renamed.rows, renamed.beyond) == (1, ())


@pytest.mark.parametrize(
    ("mine", "other", "agrees"),
    [
        (1e-12, 1e-11, False),
        (8e-11, 9e-12, False),
        (1.05e-6, 1e-7, False),
        (0.0, 1e-7, False),
        (1e-12, 3e-12, True),
        (-2e-12, 3e-12, True),
        (5e-6, 4.5e-6, True),
        (0.0, 4e-15, True),
        (3e-16, 8e-15, True),
        (1e-6, 3e-6, False),
    ],
)
def test_small_errors_are_held_against_one_another(mine, other, agrees):
    for pair in ((mine, other), (other, mine)):
        (one,) = compare(*({"t.csv": f"statistic,value\nerror,{value!r}\n"} for value in pair))
        assert (one.beyond == ()) is agrees


@pytest.mark.parametrize(
    ("mine", "difference"),
    [
        ("method,value\na,1.0\nb,1.0\n", "the row b is only here"),
        ("method,value\na,1.0\na,1.0\n", "the row a #2 is only here"),
        ("method,value,share\na,1.0,0.5\n", "the column share is only here"),
        ("method,share\na,0.5\n", "the column value is only there"),
        (None, "it is only there"),
    ],
)
def test_what_only_one_run_has_is_a_difference(mine, difference):
    here, there = {} if mine is None else {"t.csv": mine}, {"t.csv": "method,value\na,1.0\n"}
    (one,) = compare(here, there)
    assert difference in one.beyond
    (turned,) = compare(there, here)
    swapped = {"here": "there", "there": "here"}
    assert " ".join([*difference.split()[:-1], swapped[difference.split()[-1]]]) in turned.beyond


WIDE = "method,step,value,note\n" + "".join(f"m{index},5,{index}.5,\n" for index in range(50))


@pytest.mark.parametrize(
    ("there", "beyond"),
    [
        (WIDE, ()),
        ("\n".join(",".join(line.split(",")[::-1]) for line in WIDE.splitlines()) + "\n", ()),
        (WIDE.replace("m7,5,7.5", "m7,5,high"), ("m7 5, value: 7.5 here, high there",)),
        (WIDE.replace("m7,", "m70,"), ("the row m7 5 is only here", "the row m70 5 is only there")),
        (WIDE.replace("m7,5,7.5,", "m7,5,7.5,see below"), ()),
    ],
)
def test_one_cell_is_one_difference(there, beyond):
    (one,) = compare({"t.csv": WIDE}, {"t.csv": there})
    assert one.beyond == beyond
    assert one.rows == 50 - (len(beyond) == 2)


def test_tables_without_rows_are_equal_and_nonsense_cannot_be_read():
    (one,) = compare({"t.csv": "method,value\n"}, {"t.csv": "method,value\n"})
    assert (one.rows, one.beyond) == (0, ())
    (one,) = compare({"t.csv": "method,value\n"}, {"t.csv": "method,value\na,1.0\n"})
    assert one.beyond == ("the row a is only there",)
    for nonsense in ("[" * 200_000, "[]", "{", '{"claims": [1]}'):
        (one,) = compare({"claims.json": '{"claims": []}'}, {"claims.json": nonsense})
        assert "cannot be read" in one.beyond[0]


@pytest.mark.parametrize("file", ["t.csv", "claims.json"])
def test_what_is_no_text_cannot_be_read(file):
    whole = b"method,value\na,1.0\n" if file == "t.csv" else b'{"claims": []}'
    for here, there in ((whole, whole[:8] + b"\xff" + whole[9:]), (b"\xff" + whole, whole)):
        (one,) = comparison.compare({file: here}, {file: there})
        assert "cannot be read" in one.beyond[0]


ROWS = {"none": "2.0,1.0,3.0,2", "whitening": "1.0,,,1"}


def table(rows):
    return "method,value,low,high,n\n" + "".join(f"{name},{row}\n" for name, row in rows.items())


@pytest.mark.parametrize(
    ("rows", "agrees", "largest"),
    [
        ({"whitening": "1.04,,,1"}, True, 0.04 / 1.04),
        ({"whitening": "1.2,,,1"}, False, 0.2 / 1.2),
        ({"none": "2.9,2.0,4.0,2"}, True, 0.9 / 2.9),  # within the stated intervals
        ({"none": "2.9,2.5,3.5,2"}, False, 0.9 / 2.9),
        ({"none": "2.0,1.0,3.0,3"}, False, 1 / 3),  # another number of seeds
        ({"none": "2.0,1.0,9.0,2"}, False, 0.0),  # of the same trainings
        ({"none": "2.0,1.0,3.1,2"}, True, 0.0),
        ({"whitening": ",,,1"}, False, math.inf),
        ({"whitening": "1.0000001,,,1"}, True, 0.0),
    ],
)
def test_tables_are_compared_with_the_tolerance(rows, agrees, largest):
    (one,) = compare({"t.csv": table(ROWS)}, {"t.csv": table(ROWS | rows)})
    assert (one.beyond == ()) is agrees
    assert one.largest == pytest.approx(largest)
    assert one.unjudged == (agrees and largest > 0.05)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A project with local and published numbers, and another checkout that differs."""
    monkeypatch.chdir(tmp_path)
    for home, value in (
        ("results/mine", "1.0"),
        ("results/published/mine", "1.1"),
        ("other/results/mine", "1.2"),
    ):
        (tmp_path / home / "tables").mkdir(parents=True)
        (tmp_path / home / "tables/t.csv").write_text(table({"a": f"{value},,,1"}))
        (tmp_path / home / "claims.json").write_text('{"claims": []}')
    run(tmp_path, "git", "init", "-q")
    git(tmp_path, "add", "results/published")
    git(tmp_path, "commit", "-q", "-m", "published")
    return tmp_path


def value(numbers):
    return numbers["tables/t.csv"].split(b"\n")[1].split(b",")[1]


def test_numbers_are_those_made_here_or_the_published_ones_and_others_of_a_place(runs):
    assert value(numbers_here("mine")) == b"1.0"
    for place, expected in (
        ("git:HEAD", b"1.1"),
        ("results/published", b"1.1"),
        ("other", b"1.2"),
        ("other/results", b"1.2"),
    ):
        there = numbers_there(place, "mine")
        assert (value(there), there.keys()) == (expected, {"tables/t.csv", "claims.json"})
        assert numbers_there(place, "another") == {}
    for home in (runs / "results/mine", runs / "other/results/mine"):
        home.rename(home.with_name("kept"))
    assert value(numbers_here("mine")) == b"1.1"
    for wrong in ("git:nothing", "git:--all", "nowhere", "", ".", "results"):
        with pytest.raises(PrecfmError, match="against"):
            numbers_there(wrong, "mine")


def test_without_git_there_is_no_revision(runs, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PrecfmError, match="no revision"):
        numbers_there("git:HEAD", "mine")


def test_what_the_other_run_lacks_is_an_error_only_if_it_was_asked_for(runs):
    (runs / PUBLISHED / "newer").mkdir()
    report = audit((), "other")
    assert any(note.startswith("newer") for note in report.notes)
    assert [finding.file for finding in report.errors if finding.check == "against"] == ["mine/tables/t.csv"]
    for names, place in ((["newer"], "other"), (["mine"], "config"), ([], "config")):
        (runs / "config").mkdir(exist_ok=True)
        with pytest.raises(PrecfmError, match="no numbers"):
            audit(names, place)
