# SPDX-License-Identifier: Apache-2.0
"""A self-contained HTML page of sections with paragraphs, tables, figures and picture grids; needs no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from monai_cnnprimer.figures.page import FOOTER

# A number and its unit stay on one line, as do an interval and "n 20".
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|×|px|mm|of \d|to −?\d)|(?<=×) (?=\d)|(?<=\bto) (?=−?\d)|(?<=\bn) (?=\d)")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says; a line break stays one.
        sort: the number it is sorted by; None: by its text.
        href: where it links to, such as `#flow`.
        mark: a CSS class: `good`, `bad`, `open`, `soft` or empty.
    """

    text: str
    sort: float | None = None
    href: str = ""
    mark: str = ""


Row = list[Cell | str]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Attributes:
        caption: says what the numbers are, of what, with their n.
        columns: heads.
        rows: cells, or plain texts.
        stack: on a narrow screen each row becomes a card; otherwise the table is scrolled sideways.
        sorts: a script may offer to sort the rows.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    stack: bool = True
    sorts: bool = True
    kind: str = field(default="table", init=False)

    def cells(self) -> list[list[Cell]]:
        """The rows, each text as a cell."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A drawing that takes its colours from the page: SVG of `figures.validation`, its description and caption."""

    svg: str
    alt: str
    caption: str
    kind: str = field(default="figure", init=False)

    @property
    def markup(self) -> Markup:
        """The SVG element as it is; matplotlib wrote it and escaped the texts in it."""
        return Markup(self.svg)


@dataclass(frozen=True)
class Picture:
    """A PNG, JPEG or WebP by its bytes, with its description; no bytes: `caption` says why there is none."""

    data: bytes
    alt: str
    caption: str
    mark: str = ""
    kind: str = field(default="picture", init=False)

    @property
    def source(self) -> str:
        """The picture as a data address."""
        known = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpeg", b"RIFF": "webp"}
        return f"data:image/{known[self.data[:4]]};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Figures:
    """Figures beside each other where the screen is wide enough."""

    figures: Sequence[Figure]
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures, the same rows for every column, so that columns can be compared."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture]]]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Words:
    """A paragraph; `mark` as in `Cell`."""

    text: str
    mark: str = ""
    kind: str = field(default="words", init=False)


@dataclass(frozen=True)
class Points:
    """A list of short sentences."""

    texts: Sequence[str]
    kind: str = field(default="points", init=False)


@dataclass(frozen=True)
class Details:
    """What is folded away until it is asked for; printed all the same."""

    title: str
    blocks: Sequence[Table | Figures | Words | Points]
    kind: str = field(default="details", init=False)


Block = Table | Figure | Figures | Picture | Gallery | Words | Points | Details


@dataclass(frozen=True)
class Section:
    """A chapter: `anchor` is the end of its address."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def page_html(title: str, subtitle: str, first: Sequence[Block], sections: Sequence[Section], brand: str = "") -> str:
    """The page; the same arguments give the same bytes.

    It works without scripts: those only sort tables and switch between light and dark. Its own security policy lets it
    ask for nothing outside.

    Args:
        title: heading.
        subtitle: one line below it.
        first: what stands before the contents, on the first screen.
        sections: in order.
        brand: a warning beside *research use only*, such as that a threshold was re-tuned.
    """
    environment = Environment(
        loader=PackageLoader("monai_cnnprimer.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bound"] = lambda text: _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)
    script = environment.get_template("page.js.j2").render().strip()
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = {"title": title, "subtitle": subtitle, "first": first, "sections": sections, "brand": brand}
    template = environment.get_template("page.html.j2")
    return template.render(**page, footer=FOOTER, script=Markup(script), script_sha256=policy) + "\n"
