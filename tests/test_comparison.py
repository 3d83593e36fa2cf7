"""How numbers of two runs are judged: by declared tolerances, by the rounding of seeds, by the scatter of seeds."""

import csv
import io
import json
import math
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from precfm.audit import comparison
from precfm.audit.comparison import AGREES, judge, size_of, sizes_in
from precfm.audit.number_tables import FROM_SEEDS, number, read_table, side_by_side
from precfm.audit.runs import run_in
from precfm.audit.tolerances import COLUMNS, STATISTICS, TABLES, tolerance_of
from precfm.core.registry import REGISTRY
from precfm.core.statistics import geometric_estimate, holm, smallest_resolvable, t_estimate
from precfm.pipeline.node import PUBLISHED
from precfm.report.claims import parse_claims
from precfm.report.tables import blocks
from precfm.report.verdicts import evaluate_claims
from precfm.report.vocabulary import METRICS, metric_text
from tests.report_frames import frames
from tests.workflow import ROOT

QUICK = ROOT / PUBLISHED / "quick"
TABLE_NAMES = sorted(REGISTRY["tables"])


def compare(here, there):
    """As `comparison.compare`, of texts."""
    return comparison.compare(
        *({name: text.encode() for name, text in side.items()} for side in (here, there))
    )


def row(value, low=None, high=None, n=1, **about):
    return {**about, "value": value, "low": low, "high": high, "n": n}


def beyond(compared):
    return [str(each) for each in compared.differences if each.judgement == "beyond"] + list(compared.only)


@pytest.mark.parametrize(
    ("mine", "other", "judgement"),
    [
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 5), "scatter"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 3), "scatter"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.1, 1.5, 2), "unjudged"),
        (row(1.0, 0.9, 1.1, 5), row(1.3, 1.2, 1.4, 5), "beyond"),
        (row(1.0, 0.8, 1.2, 5), row(1.3, 1.29, 1.31, 5), "beyond"),  # the shorter distance counts
        (row(0.9, 0.8, 1.0, 2), row(-0.9, 0.8, 1.0, 2), "beyond"),  # outside its own interval
        (row(0.9, 0.8, 1.0, 5), row(500.0, -900.0, 900.0, 5), "beyond"),
        (row(0.9, 0.8, 1.0, 5), row(90.0, -1e300, 1e300, 2), "beyond"),
        (row(0.9, math.nan, math.nan, 1), row(1.0, 0.5, 1.5, 5), "beyond"),
        (row(0.9, -math.inf, math.inf, 5), row(9.0, -math.inf, math.inf, 5), "beyond"),
        (row(0.9), row(0.9), "rounding"),
        (row(0.9), row(0.9 * (1 + 9e-6)), "rounding"),
        (row(0.9), row(0.9 * (1 + 2e-5)), "beyond"),
        (row("0.9", "", "", "1"), row("0.90000001", "", "", "1"), "rounding"),
        (row(2.0, 1.0, 9.0, 5), row(4.0, 3.9, 9.0, 5), "beyond"),  # bounds need not be symmetric
        (row(2.0, 1.9, 4.0, 5), row(4.0, 2.0, 4.1, 5), "scatter"),
        (row(math.inf), row(math.inf), "rounding"),
        (row(math.inf), row(1.0), "beyond"),
        (row(None), row(1.0), "beyond"),
    ],
)
def test_the_rule_of_the_scatter(mine, other, judgement):
    assert judge("value", mine, other)[1] == judge("value", other, mine)[1] == judgement


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.05), (5, 0.032), (10, 0.019)])
def test_how_often_two_honest_runs_are_beyond_the_scatter(seeds, share):
    draw = np.random.default_rng(0)
    half = stats.t.ppf(0.975, seeds - 1) / math.sqrt(seeds)
    found = 0
    for _ in range(4000):
        rows = []
        for sample in draw.normal(10.0, 8.0, size=(2, seeds)):
            value, width = sample.mean(), half * sample.std(ddof=1)
            rows.append(row(value, value - width, value + width, seeds))
        found += judge("value", *rows)[1] == "beyond"
    assert found / 4000 == pytest.approx(share, abs=0.008)


def tidy_tables():
    """Every table of the reports, of toy frames."""
    return {name: import_module(f"precfm.report.tables.{name}") for name in TABLE_NAMES}


@pytest.fixture(scope="module")
def known():
    """Every column, and every metric, quantity and statistic, that a table or a verdict can have."""
    names = {"columns": set(), "tables": set(TABLE_NAMES), "statistics": set()}
    tables = [module.tidy(frames()) for name, module in tidy_tables().items() if name != "theory"]
    for experiment in ("theory", "quick"):
        tables += [pd.read_csv(file) for file in sorted((ROOT / PUBLISHED / experiment).glob("tables/*.csv"))]
    for table in tables:
        names["columns"] |= set(table.columns)
        for column in {"metric", "quantity", "statistic"} & set(table.columns):
            names["statistics"] |= set(table[column])
    names["statistics"] |= set(METRICS)  # of maps and photographs, too
    for module in tidy_tables().values():
        names["statistics"] |= set(vars(module).get("_QUANTITIES", ()))
    for claim in yaml.safe_load((ROOT / "config/claims.yaml").read_text())["claims"]:
        names["statistics"] |= {statistic["name"] for statistic in claim["statistics"]}
        names["columns"] |= {name for statistic in claim["statistics"] for name in statistic}
    return names


@pytest.mark.parametrize(
    ("group", "declared"), [("columns", COLUMNS), ("tables", TABLES), ("statistics", STATISTICS)]
)
def test_a_tolerance_is_of_something_that_a_table_has(known, group, declared):
    patterns = [pattern for tolerance in declared for pattern in tolerance.names]
    unknown = [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in known[group])
    ]
    assert unknown == []
    assert all(tolerance.reason for tolerance in declared)


def test_what_is_averaged_on_the_log_scale_is_known_as_that(known):
    quantities = {
        name: each.multiplicative
        for module in tidy_tables().values()
        for name, each in vars(module).get("_QUANTITIES", {}).items()
        if isinstance(each, blocks.Quantity)
    }
    metrics = {name: metric_text(name).multiplicative for name in known["statistics"]}
    for name in known["statistics"]:
        row = {"quantity": name}
        assert tolerance_of("value", row).multiplicative == quantities.get(name, metrics[name]), name


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("null", [0.0, -0.02])
def test_what_is_computed_from_seeds_may_move_as_their_rounding_explains(seeds, null):
    """Every seed of a difference is moved by up to the tolerance, the worst way; nothing else is computed anew."""
    draw, size = np.random.default_rng(seeds), 10.0
    about = {"direction": "no_decrease", "smallest_effect": -null, "method": "a", "baseline": "none"}
    for _ in range(100):
        values = draw.normal(draw.choice([0.0, 0.01, 1.0]), draw.choice([1e-3, 0.1]), seeds)
        moves = draw.choice([-0.9, 0.9], seeds) * comparison.RELATIVE * size
        rows = []
        for sample in (values, values + moves):
            found = t_estimate(sample, null=null)
            rows.append(
                row(
                    found.value,
                    found.low,
                    found.high,
                    seeds,
                    p=found.p,
                    resolvable=smallest_resolvable(sample),
                )
                | about
            )
        for column in ("value", "low", "high", "resolvable"):
            assert judge(column, *rows, table="paired", size=size)[1] in AGREES, (column, rows)
        if (
            abs(values.mean() - null) > 1e-3 and np.ptp(values) > 1e-2
        ):  # the p-value is held to its first order
            assert judge("p", *rows, table="paired", size=size)[1] in AGREES, rows


def test_bounds_of_ratios_move_relatively():
    draw = np.random.default_rng(1)
    for _ in range(300):
        values = np.exp(draw.normal(0.0, 2.0, 2))
        moved = values * (1 + draw.choice([-1.0, 1.0], 2) * 0.9 * comparison.RELATIVE)
        rows = []
        for sample in (values, moved):
            found = geometric_estimate(sample)
            rows.append(row(found.value, found.low, found.high, 2, metric="eigenvalue_ratio_low"))
        assert all(judge(column, *rows)[1] in AGREES for column in ("value", "low", "high"))
        worse = {**rows[0], "low": rows[0]["low"] * 1.01}
        assert judge("low", worse, rows[1])[1] == "beyond"


def shares(*counts):
    """A row of `paired`, of shares of a thousand samples in each seed."""
    found = t_estimate(np.array(counts) / 1000)
    numbers = {"p": found.p, "resolvable": smallest_resolvable(np.array(counts) / 1000)}
    return row(found.value, found.low, found.high, len(counts), metric="precision") | numbers


@pytest.mark.parametrize(
    ("mine", "other", "agree"),
    [
        ((-3, 12, 5), (-3, 13, 5), True),
        ((-3, 12), (-3, 13), True),
        ((-6, -6), (-6, -7), True),  # seeds that tie have no interval
        ((-3, 12, 5), (-3, 16, 5), False),
        ((-3, 12, 5), (12, -3, 9), False),
    ],
)
def test_one_sample_of_a_thousand_may_fall_on_the_other_side(mine, other, agree):
    mine, other = shares(*mine), shares(*other)
    columns = ("value", "low", "high", "p", "resolvable")
    for pair in ((mine, other), (other, mine)):
        assert all(judge(column, *pair)[1] in AGREES for column in columns) == agree
    changed = {**mine, "high": (mine["high"] if mine["high"] == mine["high"] else 0.0) + 1e-3}
    assert judge("high", changed, mine)[1] == "beyond"  # the value has not jumped


def test_where_a_sample_has_jumped_all_adjusted_p_values_may_follow():
    def table(tied):
        rows = [shares(-6, -6 if tied else -7), shares(3, 9), shares(2, 8)]
        adjusted = holm([each["p"] for each in rows])
        lines = [
            f"m{place},precision,{each['value']!r},{each['low']!r},{each['high']!r},2,{each['p']!r},{p!r}"
            for place, (each, p) in enumerate(zip(rows, adjusted, strict=True))
        ]
        return "\n".join(["method,metric,value,low,high,n,p,p_holm", *lines]) + "\n"

    texts = [table(tied).replace("nan", "") for tied in (True, False)]
    (one,) = compare(*({"tables/paired.csv": text} for text in texts))
    assert (one.differences, one.only) == ((), ())
    (other,) = compare({"tables/paired.csv": texts[0]}, {"tables/paired.csv": spoiled(texts[0], "p_holm")})
    assert [each.where.split()[-1] for each in other.differences] == ["p_holm"]


def spoiled(text, column, factor=1.01):
    """A table whose last row has another number in one column."""
    header, *rows = [line.split(",") for line in text.splitlines()]
    place = header.index(column)
    rows[-1][place] = repr(float(rows[-1][place]) * factor)
    return "\n".join(",".join(line) for line in [header, *rows]) + "\n"


# What is not held to 1%, whatever the number: rounding errors, of which the order of magnitude counts, and differences
# of shares, which a sample may change by more.
NOT_HELD = {
    ("*", "*", "*round_trip_error"),
    ("*", "*", "*_relative_error"),
    ("paired", "value", "precision"),
    ("paired", "value", "recall"),
    ("claims", "value", "precision*"),
    ("claims", "value", "recall*"),
}
# Where a number may be too small beside what it is a difference of, so that 1% of it is rounding.
SMALL = {*FROM_SEEDS, "value"}
# Of two seeds; of all other columns a tenth.
SMALL_SHARE = {"p": 0.11, "p_holm": 0.11}
SMALL_SHARE_IN = {("tables/paired.csv", "value"): 0.11}


def numbers_of_quick():
    """Every number of the published tables of `quick`: file, column, the row, its table, and what it subtracts."""
    run = run_in(QUICK)
    sizes = sizes_in(run.numbers)
    for file, content in run.numbers.items():
        read, table = read_table(file, content), Path(file).stem
        sides = side_by_side(read, read)
        for _, mine, _ in sides.rows:
            for column in sides.numbers:
                if isinstance(mine[column], float) and mine[column] and math.isfinite(mine[column]):
                    yield file, column, mine, table, size_of(mine, table, sizes)


@pytest.mark.parametrize(("smaller", "agree"), [(1e-12, True), (8e-7, True), (2e-6, False)])
def test_p_values_below_one_in_a_million_say_the_same(smaller, agree):
    rows = [row(0.5, 0.4, 0.6, 5, p=each, metric="frechet") for each in (9e-7 if agree else 4e-6, smaller)]
    assert (judge("p", *rows, table="paired")[1] in AGREES) == agree


def test_one_per_cent_of_one_number_is_noticed():
    noticed = {}
    for file, column, mine, table, size in numbers_of_quick():
        if column in comparison.P_VALUES and mine[column] < comparison.NO_CHANCE:
            continue
        changed = [{**mine, column: factor * mine[column]} for factor in (0.99, 1.01)]
        judged = [judge(column, each, mine, table=table, size=size)[1] for each in changed]
        about = next(str(mine[key]) for key in ("metric", "quantity", "statistic") if mine.get(key))
        names = (table, column, about)
        if not any(all(map(fnmatchcase, names, patterns)) for patterns in NOT_HELD):
            noticed.setdefault((file, column), []).append(not set(judged) & set(AGREES))
    assert len(noticed) > 40
    for (file, column), each in noticed.items():
        share = SMALL_SHARE_IN.get((file, column), SMALL_SHARE.get(column, 0.1))
        needed = 1 - share if column in SMALL else 1.0
        assert sum(each) >= needed * len(each), (file, column, f"{sum(each)} of {len(each)}")


def test_every_column_of_the_files_is_compared():
    """By `compare` itself: one number of each column, larger by 1%."""
    files, tried = run_in(QUICK).numbers, set()
    for file, column, mine, table, size in numbers_of_quick():
        changed = {**mine, column: 1.01 * mine[column]}
        if (file, column) in tried or judge(column, changed, mine, table=table, size=size)[1] in AGREES:
            continue
        tried.add((file, column))
        spoilt = {**files, file: spoiled_cell(file, files[file], mine, column)}
        (found,) = [each for each in comparison.compare(spoilt, files) if each.differences or each.only]
        assert (found.file, found.only) == (file, ())
        assert column in {each.where.split(", ")[-1] for each in found.differences}
    assert len(tried) > 40


def spoiled_cell(file, content, row, column):
    """The file with one number larger by 1%."""
    if file.endswith(".json"):
        claims = json.loads(content)
        statistics = [
            {"claim": verdict["claim"]} | each
            for verdict in claims["claims"]
            for each in verdict["statistics"]
        ]
        place = [{name: number(cell) for name, cell in each.items()} for each in statistics].index(dict(row))
        flat = [each for verdict in claims["claims"] for each in verdict["statistics"]]
        flat[place][column] *= 1.01
        return json.dumps(claims).encode()
    rows = list(csv.reader(io.StringIO(content.decode())))
    place = read_table(file, content).rows.index(row)
    rows[1 + place][rows[0].index(column)] = repr(row[column] * 1.01)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def moved(frame, draw, *columns):
    """A frame whose numbers are moved as between two sets of vector instructions; shares of samples stay."""
    changed, shares = frame.copy(), ("precision", "recall")
    kept = frame["metric"].isin(shares).to_numpy() if "metric" in frame else np.zeros(len(frame), dtype=bool)
    for column in columns:
        moves = np.where(kept, 0.0, 7e-7 * draw.uniform(-1.0, 1.0, len(frame)))
        changed[column] = frame[column].astype(float) * (1 + moves)
    return changed


def test_a_run_of_other_vector_instructions_agrees():
    """All tables and verdicts, made of the published frames, with every measured number moved by up to 7e-7."""
    spec = parse_claims(yaml.safe_load((ROOT / "config/claims.yaml").read_text()))
    draw, sides = np.random.default_rng(0), []
    mine = {file.stem: pd.read_csv(file) for file in sorted(QUICK.glob("frames/*.csv"))}
    measured = {
        "records": ("value",),
        "spectra": ("eigenvalue",),
        "recovery": ("ratio",),
        "path_conditioning": ("condition_number", "effective_rank"),
    }
    other = mine | {name: moved(mine[name], draw, *columns) for name, columns in measured.items()}
    for frames_of_run in (mine, other):
        files = {
            f"tables/{name}.csv": module.tidy(frames_of_run).to_csv(index=False).encode()
            for name, module in tidy_tables().items()
            if (QUICK / f"tables/{name}.csv").is_file()
        }
        verdicts = evaluate_claims(spec, frames_of_run, "quick")
        files["claims.json"] = json.dumps({"claims": [verdict.model_dump() for verdict in verdicts]}).encode()
        sides.append(files)
    for compared in comparison.compare(*sides):
        assert (compared.differences, compared.only) == ((), ()), compared.file
        assert sum(compared.counts.values()) > 0


def csv_of(*rows):
    return pd.DataFrame(rows).to_csv(index=False)


PAIR = {"value": 0.5, "low": 0.4, "high": 0.6, "p": 0.01, "p_holm": 0.02, "n": 2}


@pytest.mark.parametrize("column", ["p", "p_holm", "low"])
def test_what_seeds_say_is_judged_although_they_tie(column):
    """An interval without width, and a value at the null, explain no other p-value or bound."""
    for tied in ({"value": 0.5, "low": 0.5, "high": 0.5}, {"value": 0.0, "low": -0.1, "high": 0.1}):
        row = {"method": "a", **PAIR, **tied}
        (compared,) = compare(
            {"tables/paired.csv": csv_of(row)}, {"tables/paired.csv": csv_of({**row, column: 0.2})}
        )
        assert beyond(compared)


def test_a_row_that_differs_excuses_no_interval_of_another_one():
    rows = [{"method": "a", "metric": "frechet", **PAIR}, {"method": "b", "metric": "frechet", **PAIR}]
    other = [{**rows[0], "value": 0.55}, {**rows[1], "high": 100.0, "p": 1e-9}]
    (compared,) = compare({"tables/paired.csv": csv_of(*rows)}, {"tables/paired.csv": csv_of(*other)})
    assert sorted(text.rpartition(" ")[2] for text in beyond(compared)) == ["high", "p"]


@pytest.mark.parametrize(("samples", "moved", "agree"), [(200, 0.005, True), (10_000, 0.0008, False)])
def test_a_share_may_jump_by_one_sample_of_as_many_as_there_are(samples, moved, agree):
    mine = row(0.81, metric="precision", n_real=float(samples), n_generated=float(samples))
    assert (judge("value", mine, {**mine, "value": 0.81 + moved})[1] in AGREES) == agree


def test_verdicts_of_which_none_is_tested_are_not_counted():
    verdicts = [{"claim": "C1", "verdict": "not tested", "statistics": []}]
    for found, counted in (("not tested", (0, 0)), ("supported", (2, 2))):
        claims = json.dumps({"claims": [*verdicts, {"claim": "C2", "verdict": found, "statistics": []}]})
        (compared,) = compare({"claims.json": claims}, {"claims.json": claims})
        assert compared.verdicts == counted
