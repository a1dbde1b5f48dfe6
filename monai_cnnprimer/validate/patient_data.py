# SPDX-License-Identifier: Apache-2.0
"""Looks in tables for what a run directory must not hold: names, dates, ids, UIDs, paths.

Two ways: what stands in a column that is known must have that column's form; all other text is searched for what has
the form of patient data. A name that is written without ``^`` looks like any other words and is not found.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID_dictionary

from monai_cnnprimer.dicom.rows import AGE_BANDS
from monai_cnnprimer.handlers.features import NAMES


@dataclass(frozen=True)
class Finding:
    """What was found, without repeating it: line of the file (0 where lines do not count), kind, column or entry."""

    line: int
    kind: str
    column: str


_NUMBER = r"[-+]?\d*\.?\d+(e[-+]?\d+)?|nan|"
# Forms of the columns and entries that hold identifiers by design: pseudonyms, hashes, well-known UIDs.
_FORMS = {
    "case_id": r"[0-9a-f]{16}",
    "patient_key": r"[0-9a-f]{16}",
    "sha256": r"([0-9a-f]{64})?",
    "key_id": r"([0-9a-f]{8})?",
    "transfer_syntax": "|".join(["", "unknown", *(keyword for *_, keyword in UID_dictionary.values() if keyword)]),
    "units": r"\d+",  # how many activations a layer has
    "age_band": "|".join(["", *(re.escape(band) for _, band in AGE_BANDS)]),
    "sex": "[MFO]?",
    "logit": _NUMBER,
    "probability": _NUMBER,
    "pixel_spacing_mm": _NUMBER,
    "kvp": _NUMBER,
    "exposure_mas": _NUMBER,
    "exposure_index": _NUMBER,
    "image_hash": r"([0-9a-f]{64})?",
    **dict.fromkeys(NAMES, _NUMBER),
}
# Forms that are right where they stand, and would look like something else; other text there is searched.
_RIGHT = {
    "threshold_id": r"[a-z][a-z0-9.-]*-[0-9a-f]{8}",
    "id": r"[a-z][a-z0-9.-]*-[0-9a-f]{8}",
    "versions": r"\d+(\.\w+)*(\+\w+)?",
    "bundle_version": r"\d+(\.\w+)*",
}
_KINDS = {
    "a person's name": re.compile(r"[^\W\d_]\^"),
    "a date": re.compile(
        r"(?<![\w.])(?:(?:19|20)\d\d([-/.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
        r"|(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)\d\d)(?![\w]|\.\d)"
    ),
    "a UID": re.compile(r"(?<![\w.])(?:[012](?:\.\d+){4,}|2\.25\.\d{6,})"),
    "an id": re.compile(r"(?<![\w.])[A-Za-z]{0,4}[-_ ]?\d{6,}(?![\w.]|-\d)"),
    "a path": re.compile(
        r"(?:^|[\s\"'=(,;:])~?/[\w.-]|[A-Za-z]:[\\/]|\\\\\w|(?:[\w.-]+[\\/]){2,}[\w.-]"
        r"|[\w-]\.(?:dcm|dicom|jpe?g|png|tiff?|nii|gz|mha|mhd|nrrd|zip)\b",
        re.IGNORECASE,
    ),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.\w"),
}
_LARGEST_COUNT = 10**7  # a whole number above is no count of cases


def scan_csv(text: str) -> list[Finding]:
    """What looks like patient data in a CSV table; its columns' names are searched too."""
    rows = csv.reader(io.StringIO(text))
    columns = next(rows, [])
    found = [Finding(1, kind, "the header") for name in columns for kind in _kinds(name)]
    for row in rows:
        if len(row) != len(columns):
            found.append(Finding(rows.line_num, "a row of another length", ""))
        found += [
            Finding(rows.line_num, kind, column)
            for column, cell in zip(columns, row, strict=False)
            for kind in _in_entry(column, cell)
        ]
    return found


def scan_json(text: str) -> list[Finding]:
    """What looks like patient data in a JSON document; its keys are searched too."""
    return [Finding(0, kind, entry) for entry, kind in _in_value(json.loads(text), "")]


def _in_value(value: Any, entry: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((f"a key of {entry or 'the document'}", kind) for kind in _kinds(key))
            yield from _in_value(inner, entry if entry in ("versions", "files") else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _in_value(inner, entry)
    elif isinstance(value, str):
        yield from ((entry, kind) for kind in _in_entry(entry, value))
    elif isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        yield entry, "an id"


def _in_entry(name: str, text: str) -> list[str]:
    """The kinds of patient data that the text of a column or entry looks like."""
    form = _FORMS.get("sha256" if name.endswith("sha256") or name in ("files", "request") else name)
    if form is not None:
        return [] if re.fullmatch(form, text) else [f"not the form that {name} has"]
    if re.fullmatch(_RIGHT.get(name, "(?!)"), text):
        return []
    return _kinds(text)


def _kinds(text: str) -> list[str]:
    return [kind for kind, pattern in _KINDS.items() if pattern.search(text)]
