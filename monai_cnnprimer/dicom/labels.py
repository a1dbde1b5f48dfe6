# SPDX-License-Identifier: Apache-2.0
"""Labels from a table: which case has which class. Identifiers are hashed as they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
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
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such table of labels")
    columns, rows = read_csv(file)
    identifier = next((name for name in IDENTIFYING if name in columns), None)
    if identifier is None or "label" not in columns:
        raise ValueError(f"the table of labels needs the column 'label' and one of {', '.join(IDENTIFYING)}")
    return labels_of(rows, identifier, key, label_map)


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
        name = normal_name(row[identifier]) if identifier == "path" and row[identifier] else row[identifier]
        nameless += not name
        if name:
            found.setdefault(keyed_hash(key, name), set()).add(classes.get(row["label"]))
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
