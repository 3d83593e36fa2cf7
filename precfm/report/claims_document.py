"""Verdicts as documents: `claims.json` and `claims.md` of one experiment, and of all experiments together."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from precfm.core.errors import PrecfmError
from precfm.report.claims import Claim, ClaimsSpec, Side
from precfm.report.documents import markdown_cells
from precfm.report.formatting import MISSING, interval_text, number_text, p_text
from precfm.report.outcomes import StatisticResult
from precfm.report.rulings import Judged, ruled
from precfm.report.verdicts import Verdict, rules_of, summary
from precfm.report.vocabulary import claim_order, method_label

SIDES: tuple[Side, Side] = ("theory", "data")
THEORY = "theory"  # the experiment without a data set
_HEAD = (
    "This is a conceptual replication: the settings are ours, since those of the paper are not public. Theory "
    "(controlled experiments) and data are judged apart, and neither overrides the other. **Supported**: one named "
    "method meets every deciding statistic, each one-sided at 5%, on every data set and recipe that counts; on data "
    "its largest p-value is adjusted by Holm over the methods of the claim; theory has intervals alone, which are not "
    "adjusted for its methods. **Contradicted**: on each of them every method fails, that is, a whole 95% interval is"
    " below the smallest effect that matters, or beyond the margin; on data all in one and the same statistic. "
    "**Mixed**: one of the conditions that were listed before the run is supported, another contradicted. **Open**: "
    "all else. *Indicative*: fewer than five seeds, and counted only where no other experiment is. Where the baseline"
    " stands at the floor (ten draws of the train split), a statistic cannot support, and contradicts only by harm: "
    "its whole interval on the wrong side of zero. Intervals join the scatter of training seeds with the bootstrap of"
    " the held-out rows that all seeds share; those of precision, recall, KID and late slopes, which have no such "
    "replicates, hold the scatter of seeds alone. The rules stand in `config/claims.yaml`, their history, with what "
    "was known at each change, in `docs/claims-history.md`."
)
_EARLIER = (
    "Judged by what decided at the revision that made them, named above and dated in `docs/claims-history.md`; they "
    "count for no verdict of this page."
)


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
        lines += [f"## {verdict.claim}: {verdict.verdict}", *about, f"**Found.** {verdict.reason}"]
        if verdict.statistics:
            lines.append(_statistics(verdict.statistics))
    lines.append(f"Made by `make reproduce EXPERIMENT={experiment}`.")
    payload = {"claims": [verdict.model_dump(mode="json") for verdict in verdicts]}
    return _json(payload), "\n\n".join(lines) + "\n"


def merge_claims(
    documents: Sequence[str], spec: ClaimsSpec, made_by: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """All experiments together: for each claim one ruling on theory and one on data.

    Verdicts by earlier rules, on what then decided a claim, are listed with the experiment that they are of, and count
    for nothing.

    Args:
        documents: the text of each experiment's `claims.json`.
        spec: the present claims.
        made_by: by experiment, in words, which revision made it and how much of that is of the present code.

    Returns:
        The text of the merged `claims.json` and `claims.md`.

    Raises:
        PrecfmError: a document is no claims file.
    """
    fingerprints = {claim.id: claim.fingerprint for claim in spec.claims}
    present: dict[str, list[Verdict]] = {claim: [] for claim in fingerprints}
    earlier: list[Verdict | _Earlier] = []
    for verdict in (each for document in documents for each in _read(document)):
        if isinstance(verdict, Verdict) and verdict.fingerprint == fingerprints.get(verdict.claim):
            present[verdict.claim].append(verdict)
        else:
            earlier.append(verdict)
    payload, details = [], []
    for claim in sorted(spec.claims, key=lambda claim: claim_order(claim.id)):
        verdicts = sorted(present[claim.id], key=lambda verdict: verdict.experiment)
        merged = _merged(claim, verdicts)
        payload.append(merged)
        details += [f"## {claim.id}: {merged['verdict']}", *_about(merged)]
        details += [_side(side, claim, verdicts) for side in merged["rule"]]
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


def _read(document: str) -> Sequence[Verdict | _Earlier]:
    try:
        return _ClaimsFile.model_validate_json(document).claims
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise PrecfmError(
            f"claims.json: {field}: {first['msg']}; make it again with its experiment"
        ) from None


def _merged(claim: Claim, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """One claim over all experiments."""
    theory, data = (ruled(_groups(verdicts, side))[0] for side in SIDES)
    parts = {"experiment", "theory", "data", "verdict", "reason", "statistics"}
    return {
        "claim": claim.id,
        **claim.model_dump(mode="json", include={"text", "whose_words", "caveat", "experiments"}),
        "rule": dict(rules_of(claim)),
        "theory": theory,
        "data": data,
        "verdict": summary(theory, data),
        "not_run": _not_run(claim, verdicts),
        "by_experiment": [each.model_dump(mode="json", include=parts) for each in verdicts],
    }


def _of_data(claim: Claim) -> list[str]:
    """The experiments that a claim names for its side of data."""
    return [name for name in claim.experiments if name != THEORY] if claim.deciding("data") else []


def _not_run(claim: Claim, verdicts: Sequence[Verdict]) -> list[str]:
    """Those of them that have published no number on data for it, by the present rules."""
    ran = {each.experiment for each in verdicts if any(group.side == "data" for group in each.groups)}
    return [name for name in _of_data(claim) if name not in ran]


def _groups(verdicts: Sequence[Verdict], side: Side) -> list[Judged]:
    """Of all experiments, each named before its data set, since two of them may have the same."""
    return [
        group.model_copy(update={"dataset": ", ".join(filter(None, (each.experiment, group.dataset)))})
        for each in verdicts
        for group in each.groups
        if group.side == side
    ]


def _about(verdict: Mapping[str, Any]) -> list[str]:
    """The claim, whose words it is in, how it is judged and what to know of that."""
    caveat = [f"**To know.** {verdict['caveat']}"] if verdict["caveat"] else []
    rules = [f"- {side}: {rule}" for side, rule in verdict["rule"].items()]
    return [
        verdict["text"],
        f"**Whose words.** {verdict['whose_words']}.",
        "\n".join(["**Rule.**", "", *rules]),
        *caveat,
    ]


def _side(side: Side, claim: Claim, verdicts: Sequence[Verdict]) -> str:
    """One side's ruling, a line for each experiment, data set and condition, and what would change it."""
    groups = _groups(verdicts, side)
    ruling, words = ruled(groups)
    head = f"**{side.capitalize()}: {ruling}.**" + (f" By condition: {words}." if words else "")
    change = {
        "supported": "one deciding interval that leaves its range, or a p-value above 5%, with the same method",
        "contradicted": "one method that meets all that the rule asks for",
        "mixed": "a condition that rules the other way",
        "open": "more seeds, or larger effects, in the criteria named as open, lacking or failed",
        "not tested": f"a run of an experiment that counts ({', '.join(claim.experiments)})",
    }[ruling.removeprefix("indicative: ")]
    more = ", on five seeds" if ruling.startswith("indicative") else ""
    lines = [
        line for group in groups for line in (f"- {group.head}", *(f"  - {words}" for words in group.said))
    ]
    not_run = _not_run(claim, verdicts) if side == "data" else []
    left = f" Not run: {', '.join(not_run)}." if not_run else ""
    return "\n".join(
        [f"{head} What would change it: {change}{more}.{left}", *([""] if lines else []), *lines]
    )


def _json(payload: Any) -> str:
    return json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        {
            "claim": row["claim"],
            "whose words": row["whose_words"],
            "theory": f"**{row['theory']}**" if "theory" in row["rule"] else MISSING,
            "data": f"**{row['data']}**{_share_run(row)}" if "data" in row["rule"] else MISSING,
            "text": row["text"],
        }
        for row in rows
    ]
    return markdown_cells(pd.DataFrame(cells), numbers=False)


def _share_run(row: Mapping[str, Any]) -> str:
    """How many of the named experiments a ruling on data rests on, where it is not all."""
    if not row.get("not_run"):
        return ""
    named = len([name for name in row["experiments"] if name != THEORY])
    return f" ({named - len(row['not_run'])} of {named} named experiments)"


def _statistics(results: Sequence[StatisticResult]) -> str:
    frame = pd.DataFrame([result.model_dump() for result in results])
    reported = frame["role"].map({"decides": "", "reported": " (reported)"})
    sides = zip(frame["method"], frame["baseline"], strict=True)
    thresholds = zip(_floats(frame["smallest_effect"]), _floats(frame["margin"]), strict=True)
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
            "claimed": [
                direction.replace("_", " ")
                + (f" by {smallest:g}" if smallest == smallest else "")
                + (f" beyond {margin:g}" if margin == margin else "")
                for direction, (smallest, margin) in zip(frame["direction"], thresholds, strict=True)
            ],
            "outcome": frame["outcome"],
            "note": frame["note"],
        }
    )
    empty = [column for column in ("condition", "data", "comparison", "note") if not table[column].any()]
    return markdown_cells(table.drop(columns=empty))


def _floats(values: "pd.Series[Any]") -> "pd.Series[float]":
    """Numbers; null becomes NaN."""
    return values.astype("float64")
