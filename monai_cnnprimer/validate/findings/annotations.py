# SPDX-License-Identifier: Apache-2.0
"""What the tables of JSRT, of NODE21 and plain CSV say about findings: which file, where in it, how large."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

NODE21_COLUMNS = {"img_name", "label", "x", "y", "width", "height"}
JSRT_MM = 0.175
"""Of a pixel of JSRT (Shiraishi et al., AJR 2000; 174:71-74)."""
_SUFFIXES = (".IMG", ".PNG", ".JPG", ".MHA", ".DCM")


@dataclass(frozen=True)
class Finding:
    """A box in pixels of the image (left, top, width, height), or the file of a mask; its size in mm where told."""

    box: tuple[float, float, float, float] | None = None
    mask: Path | None = None
    diameter_mm: float = math.nan


@dataclass(frozen=True)
class Entry:
    """One image as its table describes it; `mm_per_px` as the table tells, over what the file does."""

    file: Path
    name: str
    patient: str
    source: str
    findings: tuple[Finding, ...]
    mm_per_px: float = math.nan
    lungs: Path | None = None


def read_tables(source: Path) -> list[Entry]:
    """Each image that a folder of NODE21 or JSRT, or a CSV file, describes; see `outside.read_findings`.

    Raises:
        ValueError: it is none of the three.
    """
    if source.is_dir():
        if (source / "CLNDAT_EN.txt").is_file():
            return _jsrt(source)
        if not (source / "metadata.csv").is_file():
            raise ValueError(f"{source} has neither metadata.csv (NODE21) nor CLNDAT_EN.txt (JSRT)")
        source = source / "metadata.csv"
    table = pd.read_csv(source)
    if set(table.columns) >= NODE21_COLUMNS:
        return _node21(source.parent, table)
    if "file" not in table:
        raise ValueError(
            f"{source.name} needs the column file, or those of NODE21: {', '.join(sorted(NODE21_COLUMNS))}"
        )
    return _table(source.parent, table)


def _node21(folder: Path, table: pd.DataFrame) -> list[Entry]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    entries = []
    for name, rows in table.groupby("img_name", sort=False):
        boxes = rows.loc[rows["label"] == 1, ["x", "y", "width", "height"]].astype(float)
        findings = tuple(Finding(box=tuple(box)) for box in boxes.itertuples(index=False))
        entries.append(Entry(_below(images, str(name)), str(name), str(name), "node21", findings))
    return entries


def _jsrt(folder: Path) -> list[Entry]:
    files = {file.stem.upper(): file for file in sorted(folder.rglob("JPC*")) if file.suffix.upper() in _SUFFIXES}
    entries = []
    for table in ("CLNDAT_EN.txt", "CNNDAT_EN.TXT"):
        if not (folder / table).is_file():
            continue
        for line in (folder / table).read_text("latin-1").splitlines():
            name, *cells = (cell.strip() for cell in line.split("\t"))
            if not name:
                continue
            findings: tuple[Finding, ...] = ()
            if table.startswith("CLN"):
                diameter, x, y = (_number(cells[at]) if len(cells) > at else math.nan for at in (1, 4, 5))
                side = diameter / JSRT_MM
                findings = (Finding((x - side / 2, y - side / 2, side, side), diameter_mm=diameter),)
            stem = Path(name).stem.upper()
            entries.append(Entry(files.get(stem, folder / name), stem, stem, "jsrt", findings, JSRT_MM))
    return entries


def _table(folder: Path, table: pd.DataFrame) -> list[Entry]:
    rows_of: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in table.to_dict("records"):
        rows_of[str(row["file"])].append({str(column): cell for column, cell in row.items() if not pd.isna(cell)})
    return [
        Entry(
            _below(folder, name),
            name,
            str(rows[0].get("patient_id", name)),
            "table",
            tuple(finding for row in rows if (finding := _described(folder, row)) is not None),
            _number(rows[0].get("mm_per_px", math.nan)),
            _below(folder, str(rows[0]["lungs"])) if "lungs" in rows[0] else None,
        )
        for name, rows in rows_of.items()
    ]


def _described(folder: Path, row: Mapping[str, Any]) -> Finding | None:
    """The finding of a row; None where it names none."""
    diameter_mm = _number(row.get("diameter_mm", math.nan))
    if "mask" in row:
        return Finding(mask=_below(folder, str(row["mask"])), diameter_mm=diameter_mm)
    if {"x", "y", "width", "height"} <= row.keys():
        x, y, width, height = (_number(row[name]) for name in ("x", "y", "width", "height"))
        return Finding((x, y, width, height), diameter_mm=diameter_mm)
    if {"x_centre", "y_centre"} <= row.keys():
        side = _number(row.get("diameter_px", diameter_mm / _number(row.get("mm_per_px", math.nan))))
        x, y = _number(row["x_centre"]), _number(row["y_centre"])
        return Finding((x - side / 2, y - side / 2, side, side), diameter_mm=diameter_mm)
    return None


def _number(cell: Any) -> float:
    """A cell as a number; NaN where it is none, as JSRT's ``?``."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _below(folder: Path, name: str) -> Path:
    """A file below the folder; the folder itself, which is no image, where the name leads out of it."""
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else folder
