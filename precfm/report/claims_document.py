"""Verdicts as documents: `claims.json` and `claims.md` of one experiment, and of all experiments together."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from precfm.core.errors import PrecfmError
from precfm.report.claims import Claim, ClaimsSpec, Side
from precfm.report.documents import markdown_cells
from precfm.report.formatting import MISSING, interval_text, number_text, p_text
from precfm.report.outcomes import StatisticResult
from precfm.report.rulings import Judged, counting, few_seeds, judged, ruled, threshold_text
from precfm.report.verdicts import Verdict, rules_of, summary
from precfm.report.vocabulary import claim_order, method_label

SIDES: tuple[Side, Side] = ("theory", "data")
PHOTOGRAPHS = "-photographs"  # how ids of claims on photographs end
THEORY = frozenset({"theory", "paper-theory"})  # experiments without a data set
_HEAD = """\
This is a conceptual replication: the settings are ours, since those of the paper are not public. Theory (controlled
experiments) and data are judged apart, and neither overrides the other.

Verdicts:

- **Supported**: one named method meets every criterion, on every data set and recipe that counts.
- **Contradicted**: every method fails, on every data set and recipe that counts. On data all of them fail in one and
  the same statistic.
- **Mixed**: of the conditions that the claim lists, one is supported and another contradicted.
- **Open**: everything else.
- *Indicative*: fewer than five seeds. Such a verdict counts only where no other experiment has more. With two seeds the
  95% intervals cover between .87 and .95 (simulated), which is one reason for the word.

Criteria:

- An effect is method minus baseline, paired by training seed at the last checkpoint.
- A claimed effect is met if it points the claimed way, is at least as large as claimed, and has a one-sided p below 5%.
  It fails if its whole 95% interval falls short of the claimed size.
- An allowed change is met if a larger one is excluded (one-sided, 5%). It fails if its whole interval is beyond.
- A claimed range (theory) is met if the whole interval is within. It fails if the whole interval is outside.
- No headroom: above the floor the baseline leaves less than the claim asks for. The floor is what a perfect flow would
  score (on data, ten draws of the train split; its own uncertainty is taken off; for ln kappa it is 0, and of
  photographs what white noise of as many rows shows). A smaller gain may be there, but the claimed one cannot be met.
  The method fails only by harm, with its whole interval on the wrong side of zero.

Numbers:

- A method's p is the largest of its criteria. On data it is adjusted by Holm over the claim's methods. Theory has
  intervals alone, which are not adjusted for its methods.
- Intervals join the scatter of training seeds with the bootstrap of the held-out rows that all seeds share. Precision,
  recall, late slopes, ln kappa, the share nearer to train and, but for photographs, KID have no bootstrap: their
  intervals hold the scatter of seeds, or of fits, alone.
- Names in `code` are statistics of the controlled experiments. The table of theory (`tables/theory.md`) describes each.
  `_to_P` and `_to_F` compare with baselines of as many parameters or training FLOPs, `_to_skip` with a Gaussian skip.

The rules stand in `config/claims.yaml`. Their history, with what was known at each change, is in
`docs/claims-history.md`."""
_EARLIER = (
    "Judged by what decided at the revision that made them, named above and dated in `docs/claims-history.md`; they "
    "count for no verdict of this page."
)


@dataclass(frozen=True)
class _Coverage:
    """The experiments that a claim names for one side.

    Attributes:
        run: those with numbers for it, by the present rules.
        without_numbers: those that are published by the present rules, but have none.
        not_run: the others.
    """

    run: list[str]
    without_numbers: list[str]
    not_run: list[str]

    @property
    def share(self) -> str:
        """How many of them the ruling rests on, where it is not all."""
        named = len(self.run) + len(self.without_numbers) + len(self.not_run)
        return f" ({len(self.run)} of {named} named experiments)" if len(self.run) < named else ""


class _Earlier(BaseModel):
    """A verdict of the rules before theory and data were judged apart."""

    model_config = ConfigDict(extra="forbid")

    claim: str
    text: str
    experiment: str
    verdict: str
    reason: str
    methods: list[str]
    statistics: list[dict[str, Any]]


class _ClaimsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    claims: list[Verdict] | list[_Earlier]


def write_claims(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The verdicts of one experiment.

    Args:
        verdicts: of `evaluate_claims`.

    Returns:
        The text of `claims.json` and of `claims.md`.
    """
    experiment = verdicts[0].experiment if verdicts else ""
    lines = [
        f"# Verdicts of the experiment {experiment}",
        _HEAD,
        _summary([v.model_dump() for v in verdicts]),
    ]
    for verdict in verdicts:
        about = _about(verdict.model_dump())
        found = _findings(verdict.groups) or verdict.reason
        lines += [f"## {verdict.claim}: {verdict.verdict}", *about, "**Found.**", found]
        if verdict.statistics:
            lines.append(_statistics(verdict.statistics))
    lines.append(f"Made by `make reproduce EXPERIMENT={experiment}`.")
    payload = {"claims": [verdict.model_dump(mode="json") for verdict in verdicts]}
    return _json(payload), "\n\n".join(lines) + "\n"


def merge_claims(
    documents: Sequence[str],
    spec: ClaimsSpec,
    made_by: Mapping[str, str] | None = None,
    planned: Collection[str] = (),
) -> tuple[str, str]:
    """All experiments together: for each claim one ruling on theory and one on data.

    Rulings are made anew of the published statistics. Verdicts by earlier rules, on what then decided a claim, are
    listed with the experiment that they are of, and count for nothing.

    Args:
        documents: the text of each experiment's `claims.json`.
        spec: the present claims.
        made_by: by experiment, in words, which revision made it and how much of that is of the present code.
        planned: the experiments that claims name, but that have no configuration yet; they are marked as planned.

    Returns:
        The text of the merged `claims.json` and `claims.md`.

    Raises:
        PrecfmError: a document is no claims file.
    """
    claims, earlier = sorted_verdicts(documents, spec)
    payload, details = [], []
    for each in claims:
        merged = _merged(each)
        payload.append(merged)
        details += [f"## {each.claim.id}: {merged['verdict']}", *_about(merged)]
        details += [_side(side, each.groups[side], each.coverage[side], planned) for side in each.groups]
    lines = ["# Verdicts on the claims of the paper", _HEAD, _summary(payload)]
    revisions = dict(sorted((made_by or {}).items()))
    lines.append("\n".join(f"- {experiment}: {words}." for experiment, words in revisions.items()))
    lines += details
    tested = sorted(
        (each for each in earlier if each.verdict != "not tested"),
        key=lambda each: (each.experiment, claim_order(each.claim)),
    )
    if tested:
        rows = [
            {name: getattr(each, name) for name in ("experiment", "claim", "verdict", "text")}
            for each in tested
        ]
        lines += ["## By earlier rules", _EARLIER, markdown_cells(pd.DataFrame(rows), numbers=False)]
    lines.append("Numbers: `results/published/<experiment>/claims.md`. Made by `precfm publish`.")
    said = {"claim", "text", "experiment", "verdict", "reason"}
    by_earlier_rules = [each.model_dump(mode="json", include=said) for each in tested]
    content = {"claims": payload, "by_earlier_rules": by_earlier_rules, "made_by": revisions}
    return _json(content), "\n\n".join(filter(None, lines)) + "\n"


@dataclass(frozen=True)
class MergedClaim:
    """A claim with the verdicts of all experiments that judge it by what decides at present.

    Attributes:
        claim: of the claims file.
        verdicts: one for each experiment, sorted.
        groups: by side that the claim has, what the ruling is made of.
        coverage: by side, the experiments that it rests on.
    """

    claim: Claim
    verdicts: list[Verdict]
    groups: Mapping[Side, list[Judged]]
    coverage: Mapping[Side, _Coverage]

    def would_change(self, side: Side, planned: Collection[str]) -> str:
        """What a reader would have to see for another ruling."""
        left = _names(self.coverage[side].not_run, planned)
        return what_would_change(ruled(self.groups[side])[0], self.groups[side], left)


def sorted_verdicts(
    documents: Sequence[str], spec: ClaimsSpec
) -> tuple[list[MergedClaim], list[Verdict | _Earlier]]:
    """The verdicts of all experiments by claim, in the order of all reports; and those by earlier rules.

    Arguments and errors are those of `merge_claims`.
    """
    fingerprints = {claim.id: claim.fingerprint for claim in spec.claims}
    present: dict[str, list[Verdict]] = {claim: [] for claim in fingerprints}
    earlier: list[Verdict | _Earlier] = []
    for verdict in (each for document in documents for each in _read(document)):
        if isinstance(verdict, Verdict) and verdict.fingerprint == fingerprints.get(verdict.claim):
            present[verdict.claim].append(verdict)
        else:
            earlier.append(verdict)
    merged = []
    for claim in sorted(spec.claims, key=lambda claim: claim_order(claim.id)):
        verdicts = sorted(present[claim.id], key=lambda verdict: verdict.experiment)
        groups = {side: _groups(claim, verdicts, side) for side in SIDES if claim.deciding(side)}
        coverage = {side: _coverage(claim, side, verdicts, spec) for side in groups}
        merged.append(MergedClaim(claim, verdicts, groups, coverage))
    return merged, earlier


def _read(document: str) -> Sequence[Verdict | _Earlier]:
    try:
        return _ClaimsFile.model_validate_json(document).claims
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise PrecfmError(
            f"claims.json: {field}: {first['msg']}; make it again with its experiment"
        ) from None


def _merged(each: MergedClaim) -> dict[str, Any]:
    """One claim over all experiments."""
    claim = each.claim
    theory, data = (ruled(each.groups.get(side, []))[0] for side in SIDES)
    parts = {"experiment", "theory", "data", "verdict", "reason", "statistics"}
    return {
        "claim": claim.id,
        **claim.model_dump(mode="json", include={"text", "whose_words", "caveat", "experiments"}),
        "rule": dict(rules_of(claim)),
        "theory": theory,
        "data": data,
        "verdict": summary(theory, data),
        "coverage": {side: {**asdict(found), "share": found.share} for side, found in each.coverage.items()},
        "by_experiment": [verdict.model_dump(mode="json", include=parts) for verdict in each.verdicts],
    }


def _coverage(claim: Claim, side: Side, verdicts: Sequence[Verdict], spec: ClaimsSpec) -> _Coverage:
    """Which of the experiments that can bear on one side of a claim have done so.

    All but `theory` and `paper-theory` have data. Those have controlled experiments, too, that some claim of theory
    alone names.
    """
    run = {each.experiment for each in verdicts if any(group.side == side for group in each.groups)}
    theory_alone = [each for each in spec.claims if not each.deciding("data")]
    with_theory = {*THEORY, *(name for each in theory_alone for name in each.experiments)}
    able = run | (with_theory if side == "theory" else set(claim.experiments) - THEORY)
    named = [name for name in claim.experiments if name in able]
    published = {each.experiment for each in verdicts}
    return _Coverage(
        run=[name for name in named if name in run],
        without_numbers=[name for name in named if name in published - run],
        not_run=[name for name in named if name not in published],
    )


def _groups(claim: Claim, verdicts: Sequence[Verdict], side: Side) -> list[Judged]:
    """Of all experiments, each named before its data set, since two of them may have the same."""
    return [
        group.model_copy(update={"dataset": ", ".join(filter(None, (each.experiment, group.dataset)))})
        for each in verdicts
        for group in judged(claim, each.statistics)
        if group.side == side
    ]


def _about(verdict: Mapping[str, Any]) -> list[str]:
    """The claim, whose words it is in, how it is judged and what to know of that."""
    caveat = [f"**To know.** {verdict['caveat']}"] if verdict["caveat"] else []
    rules = [f"**Rule, {side}.** {rule}" for side, rule in verdict["rule"].items()]
    return [verdict["text"], f"**Whose words.** {verdict['whose_words']}.", *rules, *caveat]


def _side(side: Side, groups: Sequence[Judged], coverage: _Coverage, planned: Collection[str]) -> str:
    """One side's ruling, what would change it, which experiments it rests on, and what these found."""
    ruling, words = ruled(groups)
    left = _names(coverage.not_run, planned)
    experiments = {
        "Run": ", ".join(coverage.run),
        "Run, but without a number for it": ", ".join(coverage.without_numbers),
        "Not run by the present rules": left if groups else "",
    }
    parts = [
        f"**{side.capitalize()}: {ruling}**{coverage.share}." + (f" By condition: {words}." if words else ""),
        f"What would change it: {what_would_change(ruling, groups, left)}.",
        " ".join(f"{what}: {names}." for what, names in experiments.items() if names),
        _findings(groups),
    ]
    return "\n\n".join(filter(None, parts))


def _names(experiments: Sequence[str], planned: Collection[str]) -> str:
    return ", ".join(f"{name} (planned)" if name in planned else name for name in experiments)


def what_would_change(ruling: str, groups: Sequence[Judged], not_run: str) -> str:
    """What a reader would have to see for another ruling; `not_run` are the experiments that could show it."""
    if not groups:
        return f"a run by the present rules of {not_run}" if not_run else "an experiment with numbers for it"
    way, few = ruling.removeprefix("indicative: "), few_seeds(groups)
    seeds = ", on five seeds" if few else ""
    at_floor = dict.fromkeys(group.dataset for group in counting(groups) if not group.headroom)
    room = (
        f"an experiment with more room above the floor{seeds} (no number of seeds can show a gain on "
        f"{' and '.join(at_floor)}){f'; not run, and could have it: {not_run}' if not_run else ''}"
    )
    if way == "open":
        more = "five seeds" if few else "more seeds, or larger effects"
        return room if at_floor else f"{more}, in the criteria named as open, lacking or failed"
    change = {
        "supported": "a deciding interval that leaves its range, or a p-value above 5%, with the same method",
        "contradicted": "one method that meets every criterion",
        "mixed": "a condition that rules the other way",
    }[way]
    return f"{change}; for a gain, {room}" if at_floor and way != "supported" else change + seeds


def _findings(groups: Sequence[Judged]) -> str:
    """A list: each data set and condition, and below it what each method does there."""
    return "\n".join(
        line for group in groups for line in (f"- {group.head}", *(f"  - {words}" for words in group.said))
    )


def _json(payload: Any) -> str:
    return json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each claim; what is claimed of photographs is a column of the claim that it repeats."""
    photographs = {row["claim"]: _ruling(row, "data") for row in rows}
    cells = [
        {
            "claim": row["claim"],
            "whose words": row["whose_words"],
            **{side: _ruling(row, side) for side in SIDES},
            "photographs": photographs.get(row["claim"] + PHOTOGRAPHS, MISSING),
            "text": row["text"],
        }
        for row in rows
        if not row["claim"].endswith(PHOTOGRAPHS)
    ]
    return markdown_cells(pd.DataFrame(cells), numbers=False)


def _ruling(row: Mapping[str, Any], side: Side) -> str:
    return f"**{row[side]}**{_share_of(row, side)}" if side in row["rule"] else MISSING


def _share_of(row: Mapping[str, Any], side: Side) -> str:
    """How much a ruling of all experiments together rests on; nothing for one experiment."""
    return str(row["coverage"][side]["share"]) if "coverage" in row else ""


def _statistics(results: Sequence[StatisticResult]) -> str:
    frame = pd.DataFrame([result.model_dump() for result in results])
    reported = frame["role"].map({"decides": "", "reported": " (reported)"})
    sides = zip(frame["method"], frame["baseline"], strict=True)
    table = pd.DataFrame(
        {
            "statistic": frame["statistic"] + reported,
            "condition": frame["condition"],
            "data": frame["dataset"],
            "comparison": [
                method_label(a) + (f" to {method_label(b)}" if b else "") if a else "" for a, b in sides
            ],
            "effect": _floats(frame["value"]).map(number_text),
            "95% interval": list(map(interval_text, _floats(frame["low"]), _floats(frame["high"]))),
            "n": frame["n"].astype(str),
            "p (one-sided)": _floats(frame["p"]).map(p_text),
            "p (method, Holm)": _floats(frame["p_holm"]).map(p_text),
            "claimed": list(map(threshold_text, results)),
            "outcome": frame["outcome"],
            "note": frame["note"],
        }
    )
    empty = [column for column in ("condition", "data", "comparison", "note") if not table[column].any()]
    return markdown_cells(table.drop(columns=empty))


def _floats(values: "pd.Series[Any]") -> "pd.Series[float]":
    """Numbers; null becomes NaN."""
    return values.astype("float64")
