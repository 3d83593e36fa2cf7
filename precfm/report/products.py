"""Writes registered tables and figures; what an experiment cannot fill is left out with its reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precfm.core.registry import load
from precfm.report.documents import latex, markdown
from precfm.report.reads import LeftOutError, handed
from precfm.report.tables.blocks import Table


def command(experiment: str) -> str:
    """The command that makes everything of an experiment, as captions and notes name it."""
    return f"make reproduce EXPERIMENT={experiment}"


def write_table(name: str, frames: Mapping[str, Any], folder: Path, experiment: str) -> str | None:
    """Write a registered table as `<name>.csv` (tidy numbers), `<name>.md` and `<name>.tex`.

    Args:
        name: a name of the registry's group `tables`.
        frames: by name, see `precfm.report.frames.FRAMES`; the table gets those that it declares.
        folder: where to write; must exist.
        experiment: the experiment's name, for the command in the caption.

    Returns:
        None, or the reason why the table is left out; the reason then stands in `<name>.md`.
    """
    build = load("tables", name)
    try:
        table: Table = build(handed(build, frames))
    except LeftOutError as reason:
        return _left_out(folder / f"{name}.md", "table", name, str(reason))
    table.data.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    (folder / f"{name}.md").write_text(markdown(table, command(experiment)), encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex(table, name, command(experiment)), encoding="utf-8")
    return None


def write_figure(name: str, frames: Mapping[str, Any], folder: Path, experiment: str) -> str | None:
    """Draw a registered figure as `<name>.pdf` and `<name>.png`, with its caption in `<name>.md`.

    Arguments and result are those of `write_table`.
    """
    from precfm.report.figures.style import publication, save

    draw = load("figures", name)
    try:
        with publication():
            drawing = draw(handed(draw, frames))
    except LeftOutError as reason:
        return _left_out(folder / f"{name}.md", "figure", name, str(reason))
    save(drawing.figure, folder / name)
    caption = f"{drawing.caption} Made by `{command(experiment)}`.\n"
    (folder / f"{name}.md").write_text(caption, encoding="utf-8")
    return None


def _left_out(path: Path, what: str, name: str, reason: str) -> str:
    path.write_text(f"The {what} '{name}' is left out: {reason}.\n", encoding="utf-8")
    return reason
