# SPDX-License-Identifier: Apache-2.0
"""The primer's results as one self-contained HTML page, as a table, and as a page of the documentation."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_cnnprimer.figures.page import FOOTER
from monai_cnnprimer.report.primer_verdicts import CLAIMS, Verdict

TITLE = "Kernels, pooling, receptive fields: what the primer claims and what was measured"
HOW = (
    "Thresholds were set before measuring. After a first look three measurements were refined and their thresholds "
    "left: ribs are compared with the lung between them, no longer with the heart; profiles of receptive fields are "
    "averaged over 4 px; a marker is not judged beside a finding that cannot itself be told from 0."
)
# A number and its unit stay on one line.
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|×|px|mm|SD)|(?<=×) (?=\d)")


@dataclass(frozen=True)
class Result:
    """One claim of `CLAIMS`, by its name, with what was measured in words and the verdict."""

    claim: str
    measured: str
    verdict: Verdict

    @property
    def text(self) -> str:
        """The claim."""
        return CLAIMS[self.claim].text

    @property
    def rule(self) -> str:
        """How the verdict follows from the measurement."""
        return CLAIMS[self.claim].rule


@dataclass(frozen=True)
class Shown:
    """A figure: PNG bytes, and the caption that says what is drawn, of what, with which settings."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The picture itself as a data address, so that the page needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A chapter of the page: what was done in `method`, one paragraph each, sources in `references`."""

    title: str
    method: Sequence[str]
    results: Sequence[Result]
    figures: Sequence[Shown]
    references: Sequence[str] = field(default=())

    @property
    def anchor(self) -> str:
        """Its title as the end of an address."""
        return "-".join(self.title.lower().replace(",", "").split())


def page_html(sections: Sequence[Section], setting: Mapping[str, str]) -> str:
    """The page; it needs no script and no other file.

    Args:
        sections: in order.
        setting: what the numbers depend on (image, bundle, weights, seed, versions), name to value.
    """
    loader = PackageLoader("monai_cnnprimer.report", package_path="")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bound"] = lambda text: _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)
    template = environment.get_template("primer.html.j2")
    return template.render(title=TITLE, footer=FOOTER, how=HOW, sections=sections, setting=setting) + "\n"


def verdict_table(sections: Sequence[Section]) -> pd.DataFrame:
    """One row a claim: `section`, `claim`, `measured`, `verdict`, `rule`."""
    rows = [
        {"section": section.title, "claim": result.text, "measured": result.measured}
        | {"verdict": result.verdict, "rule": result.rule}
        for section in sections
        for result in section.results
    ]
    return pd.DataFrame(rows)


def verdicts_markdown(sections: Sequence[Section], setting: Mapping[str, str]) -> str:
    """The table as a page of the documentation; written by the same run as the HTML page."""
    lines = [f"# {TITLE}", "", "Written by `cnnprimer primer`; do not edit.", "", f"**{FOOTER}.**", ""]
    lines += ["| claim | measured | verdict |", "|---|---|---|"]
    results = [result for section in sections for result in section.results]
    lines += [f"| {_cell(result.text)} | {_cell(result.measured)} | *{result.verdict}* |" for result in results]
    lines += ["", "## How each verdict was reached", ""]
    lines += [HOW, ""]
    lines += [f"- {result.text} *Rule*: {result.rule}." for result in results]
    lines += ["", "## What the numbers depend on", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in setting.items()]
    references = dict.fromkeys(reference for section in sections for reference in section.references)
    lines += ["", "## Sources", "", *(f"- {reference}" for reference in references)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
