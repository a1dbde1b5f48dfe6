# SPDX-License-Identifier: Apache-2.0
"""Labels from a table: which case has which class. Identifiers are hashed as they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_cnnprimer.dicom.files import normal_name, read_csv
from monai_cnnprimer.dicom.rows import keyed_hash

LABEL_MAP = {"NORMAL": 0, "PNEUMONIA": 1}
# The narrowest comes first: a table with several of them is read by the first one it has.
IDENTIFYING = ("SOPInstanceUID", "path", "AccessionNumber", "StudyInstanceUID", "PatientID")


@dataclass
class Labels:
    """Labels by keyed hash.

    Attributes:
        identifier: what the hashes are of, one of `IDENTIFYING`.
        known: label by keyed hash.
        unclear: hashes whose label is no word of the label map, or is contradicted by another row.
        notes: what a person should know about the table; no values of it.
    """

    identifier: str
    known: dict[str, int] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def of(self, row: Mapping[str, Any]) -> int | None:
        """The label of a described file (see `rows.describe`), None when it has none."""
        return self.known.get(self._hash(row))

    def unmatched(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Notes on labels without a case and cases without a label."""
        present = [self._hash(row) for row in rows]
        strangers = len((self.known.keys() | self.unclear) - set(present))
        bare = sum(name not in self.known and name not in self.unclear for name in present)
        return _notes({"labels belong to no accepted image": strangers, "accepted images have no label": bare})

    def _hash(self, row: Mapping[str, Any]) -> str:
        return str(row["path_sha256"] if self.identifier == "path" else row["keys"].get(self.identifier, ""))


def read_labels(path: str | os.PathLike[str], key: bytes, label_map: Mapping[str, int] | None = None) -> Labels:
    """Labels from a CSV file with a column ``label`` and one of `IDENTIFYING`.

    Args:
        path: the CSV file.
        key: of the pseudonyms.
        label_map: class of each word, by default ``{"NORMAL": 0, "PNEUMONIA": 1}``; the numbers are understood too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table with these columns.
    """
    columns, rows = read_table(path, "labels")
    identifier = identifying_column(columns)
    if identifier is None or "label" not in columns:
        raise ValueError(f"the table of labels needs the column 'label' and one of {', '.join(IDENTIFYING)}")
    return labels_of(rows, identifier, key, label_map)


def read_table(path: str | os.PathLike[str], what: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table given by a person, see `files.read_csv`.

    Raises:
        FileNotFoundError: there is no such file; the message says of what it is the table.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such table of {what}")
    return read_csv(file)


def identifying_column(columns: Sequence[str]) -> str | None:
    """The narrowest of `IDENTIFYING` that a table has."""
    return next((name for name in IDENTIFYING if name in columns), None)


def identifier_hash(row: Mapping[str, str], identifier: str, key: bytes) -> str:
    """The keyed hash of what identifies a row; "" where its cell is empty."""
    name = row[identifier]
    if not name:
        return ""
    return keyed_hash(key, normal_name(name) if identifier == "path" else name)


def labels_of(
    rows: Iterable[Mapping[str, str]], identifier: str, key: bytes, label_map: Mapping[str, int] | None = None
) -> Labels:
    """Labels from rows with a column ``label`` and the column `identifier`; empty cells are no labels."""
    words = LABEL_MAP if label_map is None else label_map
    classes = {str(number): number for number in words.values()}
    classes |= {f"{number}.0": number for number in words.values()} | dict(words)
    found: dict[str, set[int | None]] = {}
    nameless = 0
    for row in rows:
        if not row["label"]:
            continue
        name = identifier_hash(row, identifier, key)
        nameless += not name
        if name:
            found.setdefault(name, set()).add(classes.get(row["label"]))
    known = {name: label for name, (label, *others) in found.items() if label is not None and not others}
    odd = sum(None in labels for labels in found.values())
    counts = {
        f"labels have no {identifier}: left aside": nameless,
        f"cases have a label that is not one of {', '.join(words)}: left without": odd,
        "cases have contradictory labels: left without": len(found) - len(known) - odd,
    }
    return Labels(identifier, known, found.keys() - known.keys(), _notes(counts))


def _notes(counts: Mapping[str, int]) -> list[str]:
    return [f"{count} {what}" for what, count in counts.items() if count]
