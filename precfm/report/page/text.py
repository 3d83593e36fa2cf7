"""The report's Markdown documents as HTML, and printed tables as cells: only what they use, nothing that loads."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

NOTHING = Markup("")
LEFT_OUT = " is left out: "


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return parser.disable(["image", "link", "autolink", "html_inline", "html_block", "reference"])


@dataclass(frozen=True)
class Grid:
    """One printed block of a table.

    Attributes:
        title: what all its rows share.
        head: its headings.
        rows: its cells as HTML.
        texts: the same cells as text.
        right: of each column, whether it is set to the right.
        note: its protocol.
    """

    title: str
    head: list[Markup]
    rows: list[list[Markup]]
    texts: list[list[str]]
    right: list[bool]
    note: Markup = NOTHING


@dataclass(frozen=True)
class Document:
    """What `<name>.md` of a table or a figure says.

    Attributes:
        lead: the first sentence of its caption.
        caption: the others.
        grids: the blocks of a table; none of a figure.
        notes: what stands below them.
        reason: why the experiment has no such table or figure; empty if it has.
    """

    lead: Markup
    caption: Markup = NOTHING
    grids: list[Grid] = field(default_factory=list)
    notes: Markup = NOTHING
    reason: str = ""


def inline(text: str) -> Markup:
    """A line of Markdown as HTML."""
    return Markup(_parser().renderInline(text))


def document(text: str) -> Document:
    """Read what a table or a figure has beside it."""
    caption, notes, grids, title = "", NOTHING, [], ""
    if LEFT_OUT in text and "\n" not in text.strip():
        return Document(NOTHING, reason=text.strip().partition(LEFT_OUT)[2].rstrip("."))
    for part in _parts(_parser().parse(text)):
        content = part[1].content if len(part) == 3 else ""
        if part[0].type == "table_open":
            grids.append(_grid(title, part))
        elif not caption:
            caption = content
        elif content.startswith("**") and content.endswith("**"):
            title = content.strip("*")
        elif grids and part[0].type == "paragraph_open":
            grids[-1] = Grid(**{**vars(grids[-1]), "note": inline(content)})
        else:
            notes += _rendered(part)
    return Document(*captioned(caption), grids, notes)


def captioned(caption: str) -> tuple[Markup, Markup]:
    """A caption's first sentence and the others, without the command, which the page names in its own way."""
    lead, *others = re.split(r"(?<=\.) (?=[A-Z])", re.sub(r" Made by `[^`]*`\.$", "", caption), maxsplit=1)
    return inline(lead), inline(" ".join(others))


def prose(text: str) -> Markup:
    """Markdown as HTML; every table in a box of its own, which scrolls."""
    return NOTHING.join(_rendered(part) for part in _parts(_parser().parse(text)))


def sections(text: str) -> dict[str, str]:
    """The sections of a document, by their headings of the second level; what stands before them is under ''."""
    first, *others = text.split("\n## ")
    parts = [each.partition("\n") for each in others]
    return {"": first.partition("\n")[2], **{head.strip(): body for head, _, body in parts}}


def _parts(tokens: list[Token]) -> Iterator[list[Token]]:
    """Tokens of one part of the document at a time: a paragraph, a list, a table."""
    part: list[Token] = []
    for token in tokens:
        part.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield part
            part = []


def _rendered(part: list[Token]) -> Markup:
    html = Markup(_parser().renderer.render(part, _parser().options, {}))
    if part[0].type != "table_open":
        return html
    box = '<div class="scroll" tabindex="0" role="region" aria-label="table">'
    return Markup(box) + html + Markup("</div>\n")


def _grid(title: str, part: list[Token]) -> Grid:
    head: list[str] = []
    right: list[bool] = []
    rows: list[list[str]] = []
    for before, token in pairwise(part):
        if before.type == "tr_open" and token.type == "td_open":
            rows.append([])
        if token.type == "th_open":
            right.append("right" in str(token.attrs.get("style")))
        if token.type == "inline":
            (head if before.type == "th_open" else rows[-1]).append(token.content)
    cells = [[inline(cell) for cell in row] for row in rows]
    return Grid(
        title,
        [inline(each.replace(" ↓", "\u00a0↓").replace(" ↑", "\u00a0↑")) for each in head],
        cells,
        [[c.striptags() for c in row] for row in cells],
        right,
    )
