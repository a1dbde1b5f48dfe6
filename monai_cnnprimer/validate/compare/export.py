# SPDX-License-Identifier: Apache-2.0
"""What a comparison needs beside two run directories: the columns of a table, and images from the export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from monai.bundle import ConfigParser
from monai.transforms import Compose
from numpy.typing import NDArray

from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.dicom.export import Manifest, index_export
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.labels import IDENTIFYING, identifier_hash, read_table
from monai_cnnprimer.dicom.masks import RegionMasks
from monai_cnnprimer.run_directory import describe_sha256
from monai_cnnprimer.validate.runs import Run
from monai_cnnprimer.validate.sites import find_bundle

PathLike = str | os.PathLike[str]
# The columns of a manifest that hold, in full or its first digits, what an identifier is hashed to.
_IN_MANIFEST = {"SOPInstanceUID": "case_id", "path": "path_sha256"}


class Export:
    """The export that both runs were made on, opened once more.

    Args:
        dataset_dir: as given to the runs.
        run: one of them, for the site and the cases.
        key: key of the pseudonyms, as given to the runs.

    Attributes:
        manifest: what the export holds.

    Raises:
        ValueError: cases of the run are not in it.
    """

    def __init__(self, dataset_dir: PathLike, run: Run, key: bytes | PathLike | None = None) -> None:
        self.key = key
        self.manifest: Manifest = index_export(dataset_dir, run.site, key, views=None, progress=False)
        cases = run.predictions["case_id"]
        missing = int((~cases.isin(self.manifest.paths)).sum())
        if missing:
            raise ValueError(
                f"{missing} of {len(cases)} cases of the runs are not in this export: give the one that both runs "
                "were made on, and the same key of pseudonyms"
            )

    def preprocessing(self, run: Run, image_size: Sequence[int], bundle: PathLike | None = None) -> Compose:
        """The preprocessing of a run's bundle, checked against the hash in `run.json`.

        Args:
            run: whose.
            image_size: `(H, W)` of its network's input.
            bundle: folder or name; None takes this project's own bundle of the run's name.

        Raises:
            ValueError: the bundle preprocesses in another way than the run did.
        """
        folder = find_bundle(run.run["bundle"] if bundle is None else Path(bundle))
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / "inference.yaml"))
        parser["image_size"] = image_size[0]
        transform = parser.get_parsed_content("preprocessing")
        if describe_sha256(transform) != run.run["transforms_sha256"]:
            raise ValueError(
                f"bundle {folder.name!r} preprocesses in another way than the run did, so its images would not lie "
                "under the maps: give the bundle of the run as it was, with --bundle"
            )
        return transform

    def image(self, case_id: str, transform: Compose) -> NDArray[np.float32] | None:
        """The network's input `(H, W)`; None where the image cannot be read any more."""
        case = {"image": self.manifest.paths[case_id], "case_id": case_id, "label": None}
        item, refused = CaseDataset([], transform).read(case)
        return None if refused is not None else item["image"].mean(dim=0).numpy()

    def regions(self, table: PathLike, transform: Compose) -> RegionMasks:
        """The regions of its cases by a table of masks; call it with a case id."""
        return RegionMasks(table, self.manifest, transform, self.key)


def column_of_table(
    table: PathLike, column: str, cases: pd.DataFrame, key: bytes | PathLike | None, export: Export | None
) -> tuple[pd.Series, list[str]]:
    """A column of a table given by a person, for each case.

    Args:
        table: CSV file with the column and `case_id` or one of `labels.IDENTIFYING`, which is hashed as it is read.
        column: its name.
        cases: `case_id`, `patient_key` and, where known, `path_sha256`.
        key: of the pseudonyms.
        export: knows the other identifiers of the cases; None where it was not given.

    Returns:
        The values, with the index of `cases`, "" where there is none or several different ones; and notes.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no such column, or nothing by which its rows can be told to belong to cases.
    """
    columns, rows = read_table(table, "labels")
    if column not in columns:
        raise ValueError(f"the table of labels has no column {column!r}; it has {', '.join(columns)}")
    identifiers = [name for name in ("case_id", *IDENTIFYING) if name in columns]
    usable = [name for name in identifiers if name == "case_id" or export or _IN_MANIFEST.get(name) in cases]
    if not usable:
        raise ValueError(
            f"the rows of the table of labels are named by {' and '.join(identifiers) or 'nothing'}, which run "
            "directories do not hold: give the export too (--dataset-dir), or a table with SOPInstanceUID or path"
        )
    identifier = usable[0]
    secret = b"" if identifier == "case_id" else pseudonym_key(key)
    found: dict[str, set[str]] = {}
    for row in rows:
        name = row["case_id"] if identifier == "case_id" else identifier_hash(row, identifier, secret)
        if name and row[column].strip():
            found.setdefault(name, set()).add(row[column].strip())
    names = _names(identifier, cases, export)
    digits = max((len(name) for name in names), default=0)
    by_digits = {name[:digits]: values for name, values in found.items()}
    values = [by_digits.get(name, set()) for name in names]
    counts = {
        f"rows of the table of labels with a {column} belong to no case of the runs": len(
            by_digits.keys() - set(names)
        ),
        f"cases have several different values of {column}: in no bin": sum(len(of) > 1 for of in values),
    }
    notes = [f"{count} {what}" for what, count in counts.items() if count]
    return pd.Series([next(iter(of)) if len(of) == 1 else "" for of in values], index=cases.index, dtype=str), notes


def _names(identifier: str, cases: pd.DataFrame, export: Export | None) -> list[str]:
    """By what the table names each case."""
    if identifier == "case_id":
        return cases["case_id"].tolist()
    if export is None:
        return cases[_IN_MANIFEST[identifier]].tolist()
    keys: Mapping[str, Mapping[str, str]] = export.manifest.keys
    return [keys[case_id].get(identifier, "") for case_id in cases["case_id"]]
