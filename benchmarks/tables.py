# SPDX-License-Identifier: Apache-2.0
"""Tables in the documentation that a benchmark writes: they stand between two comments that name it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown(["a", "b"], [[1, 2]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"|{'|'.join(map(str, line))}|" if line[0] == "---" else _line(line) for line in lines)


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write_between(page: Path, name: str, text: str) -> None:
    """Replaces what stands between the comments ``<!-- NAME -->`` and ``<!-- end of NAME -->`` of a page."""
    before, start, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not (start and end):
        raise ValueError(f"{page.name} has no place for {name}")
    page.write_text(f"{before}{start}{text}\n{end}{after}")
