"""The theory table: every statistic of the controlled experiments, claim by claim, beside what would support it."""

import pandas as pd

from precfm.report.formatting import interval_text, number_text
from precfm.report.frames import STATISTICS, Frames, sources_of
from precfm.report.reads import needed, reads
from precfm.report.tables.blocks import Block, Table
from precfm.report.vocabulary import claim_order


def tidy(frames: Frames) -> pd.DataFrame:
    """The statistics as the experiments state them.

    Returns:
        Columns claim, statistic, value, low, high, n, room, note, and `frame`, the table that it was computed from.
    """
    rows = needed(frames, STATISTICS)
    columns = [name for name in (*sources_of(STATISTICS).columns, "frame") if name in rows]
    return rows[columns].reset_index(drop=True)


@reads(STATISTICS)
def build(frames: Frames) -> Table:
    """The table as it is printed, one block per claim."""
    data = tidy(frames)
    blocks = []
    for claim in sorted(data["claim"].unique(), key=claim_order):
        rows = data[data["claim"] == claim]
        cells = pd.DataFrame(
            {
                "statistic": rows["statistic"].str.replace("_", " "),
                "value": [number_text(value) for value in rows["value"]],
                "95% interval": list(map(interval_text, rows["low"], rows["high"])),
                "n": rows["n"].astype(int).astype(str),
                "what": rows["note"].fillna(""),
            }
        )
        blocks.append(Block(f"Claim {claim}", cells))
    caption = (
        "Statistics of the controlled experiments with closed forms, by claim. A value without an interval rests on "
        "one observation, or on several that agree; a worst case over all cells has one of no width. The ranges that "
        "support a claim stand in `config/claims.yaml`; verdicts in `claims.md`."
    )
    return Table(data, blocks, caption)
