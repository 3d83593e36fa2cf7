"""Verdicts as documents: `claims.json` and `claims.md` of one experiment, and of all experiments together."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from precfm.core.errors import PrecfmError
from precfm.report.documents import markdown_cells
from precfm.report.formatting import interval_text, number_text, p_text
from precfm.report.outcomes import StatisticResult
from precfm.report.rulings import combine
from precfm.report.verdicts import Verdict
from precfm.report.vocabulary import method_label

_RULE = (
    "A claim is supported if at least one of its methods shows, on every deciding statistic, an effect of "
    "at least the smallest one that matters, with p below 5% after Holm's adjustment within claim and setting, and all "
    "settings of a data set agree; not "
    "supported if every method's 95% interval on some deciding statistic excludes that effect; inconclusive "
    "otherwise. Fewer than five seeds, or a comparison without randomness: indicative at most. A ratio to a "
    "baseline at the floor of its metric is unresolved. Statistics, directions and smallest effects stand in "
    "`config/claims.yaml`."
)


class _ClaimsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    claims: list[Verdict]


def write_claims(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The verdicts of one experiment.

    Args:
        verdicts: of `evaluate_claims`.

    Returns:
        The text of `claims.json` and of `claims.md`.
    """
    experiment = verdicts[0].experiment if verdicts else ""
    rows = [verdict.model_dump(include={"claim", "verdict", "text"}) for verdict in verdicts]
    lines = [f"# Verdicts of the experiment {experiment}", _RULE, _summary(rows)]
    for verdict in verdicts:
        lines += [f"## {verdict.claim}: {verdict.verdict}", verdict.text, verdict.reason]
        if verdict.statistics:
            lines.append(_statistics(verdict.statistics))
    lines.append(f"Made by `make reproduce EXPERIMENT={experiment}`.")
    payload = {"claims": [verdict.model_dump(mode="json") for verdict in verdicts]}
    return _json(payload), "\n\n".join(lines) + "\n"


def merge_claims(documents: Sequence[str], made_by: Mapping[str, str] | None = None) -> tuple[str, str]:
    """All experiments together: one ruling per claim, full verdicts before indicative ones.

    Args:
        documents: the text of each experiment's `claims.json`.
        made_by: by experiment, in words, which revision made it and how much of that is of the present code.

    Returns:
        The text of the merged `claims.json` and `claims.md`.

    Raises:
        PrecfmError: a document is no claims file.
    """
    by_claim: dict[str, list[Verdict]] = {}
    for document in documents:
        try:
            verdicts = _ClaimsFile.model_validate_json(document).claims
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole file"
            raise PrecfmError(
                f"claims.json: {field}: {first['msg']}; make it again with its experiment"
            ) from None
        for verdict in verdicts:
            by_claim.setdefault(verdict.claim, []).append(verdict)
    payload, rows, details = [], [], []
    for claim in sorted(by_claim, key=lambda name: int(name.removeprefix("C"))):
        verdicts = sorted(by_claim[claim], key=lambda verdict: verdict.experiment)
        text, ruling = verdicts[0].text, combine(verdict.verdict for verdict in verdicts)
        tested = [verdict for verdict in verdicts if verdict.verdict != "not tested"]
        where = ", ".join(f"{verdict.experiment}: {verdict.verdict}" for verdict in tested) or "no experiment"
        rows.append({"claim": claim, "verdict": ruling, "experiments": where, "text": text})
        details += [f"## {claim}: {ruling}", text]
        details += [f"**{v.experiment}: {v.verdict}.** {v.reason}" for v in verdicts]
        experiments = [verdict.model_dump(mode="json", exclude={"claim", "text"}) for verdict in verdicts]
        payload.append({"claim": claim, "text": text, "verdict": ruling, "experiments": experiments})
    lines = ["# Verdicts on the claims of the paper", _RULE, _summary(rows)]
    revisions = dict(sorted((made_by or {}).items()))
    lines.append("\n".join(f"- {experiment}: {words}." for experiment, words in revisions.items()))
    lines += details
    lines.append("Numbers: `results/published/<experiment>/claims.md`. Made by `precfm publish`.")
    return _json({"claims": payload, "made_by": revisions}), "\n\n".join(filter(None, lines)) + "\n"


def _json(payload: Any) -> str:
    return json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _summary(rows: Sequence[dict[str, str]]) -> str:
    columns = ["claim", "verdict", "experiments", "text"]
    table = pd.DataFrame([{**row, "verdict": f"**{row['verdict']}**"} for row in rows])
    return markdown_cells(table[[column for column in columns if column in table]], numbers=False)


def _statistics(results: Sequence[StatisticResult]) -> str:
    frame = pd.DataFrame([result.model_dump() for result in results])
    reported = frame["role"].map({"decides": "", "reported": " (reported)"})
    sides = zip(frame["method"], frame["baseline"], strict=True)
    smallest = _floats(frame["smallest_effect"]).map(
        lambda size: f" by {number_text(size)}", na_action="ignore"
    )
    table = pd.DataFrame(
        {
            "statistic": frame["statistic"] + reported,
            "data": frame["dataset"],
            "comparison": [f"{method_label(a)} to {method_label(b)}" if a else "" for a, b in sides],
            "effect": _floats(frame["value"]).map(number_text),
            "95% interval": list(map(interval_text, _floats(frame["low"]), _floats(frame["high"]))),
            "n": frame["n"].astype(str),
            "p (Holm)": _floats(frame["p_holm"]).map(p_text),
            "claimed": frame["direction"].str.replace("_", " ") + smallest.fillna(""),
            "outcome": frame["outcome"],
            "note": frame["note"],
        }
    )
    empty = [column for column in ("data", "comparison", "note") if not table[column].any()]
    return markdown_cells(table.drop(columns=empty))


def _floats(values: "pd.Series[Any]") -> "pd.Series[float]":
    """Numbers; null becomes NaN."""
    return values.astype("float64")
