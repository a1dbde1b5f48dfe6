# SPDX-License-Identifier: Apache-2.0
"""What an export holds: every file ends in the manifest of accepted images, or among the refused with a reason.

Headers only, nothing decoded. The same export gives the same bytes, with any number of workers, once or twice,
killed or not; files that have not changed since an index into the same folder are not read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monai_cnnprimer.dicom.files import Source, image_table, list_sources
from monai_cnnprimer.dicom.kept import NAMES, KeptRows
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.labels import Labels, labels_of, read_labels
from monai_cnnprimer.dicom.limits import Limits, limited, limits_of
from monai_cnnprimer.dicom.rows import Row, age_band, describe, describe_all, keyed_hash, sex

COLUMNS = (
    "case_id", "patient_key", "path_sha256", "sha256", "site", "label", "file",
    "view", "laterality", "sex", "age_band", "manufacturer", "rows", "columns", "pixel_spacing_mm", "spacing_source",
    "kvp", "exposure_mas", "exposure_index",
    "polarity", "lut", "orientation", "transfer_syntax", "burned_in", "quirks",
)  # fmt: skip
NUMBERS = {"label": "Int64", "rows": "Int64", "columns": "Int64", "pixel_spacing_mm": "float64"}
NUMBERS |= dict.fromkeys(("kvp", "exposure_mas", "exposure_index"), "float64")
REFUSED_COLUMNS = ("path_sha256", "sha256", "reason", "attribute")


@dataclass(frozen=True, eq=False)
class Manifest:
    """The accepted and the refused files of one export.

    Attributes:
        accepted: the table that becomes ``manifest.csv``, one row an image, sorted by ``case_id``.
        refused: the table that becomes ``refused.csv``, sorted by the hash of the path.
        paths: where each case's image lies; in memory only, never written.
        notes: what a person should know about labels and patients; counts, no values.
        keys: of each case, keyed hashes of its identifiers by their name in a table (`labels.IDENTIFYING`); in memory
            only.
        key_id: fingerprint of the key, so that two manifests know whether their hashes can be compared.
    """

    accepted: pd.DataFrame
    refused: pd.DataFrame
    paths: dict[str, str] = field(repr=False)
    notes: list[str] = field(default_factory=list)
    keys: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    key_id: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of ``manifest.csv``."""
        return hashlib.sha256(_csv(self.accepted)).hexdigest()

    def write(self, output: str | os.PathLike[str]) -> None:
        """Writes ``refused.csv`` and ``manifest.csv`` to a folder, each complete or not at all."""
        folder = Path(output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "refused.csv", _csv(self.refused))
        _replace(folder / "manifest.csv", _csv(self.accepted))

    def cases(self) -> list[dict[str, Any]]:
        """The accepted images as a data set's items: image (its path), case_id, patient_key, site, label, file."""
        columns = ["case_id", "patient_key", "site", "label", "file"]
        rows = [dict(zip(columns, row, strict=True)) for row in self.accepted[columns].itertuples(index=False)]
        return [
            row | {"image": self.paths[row["case_id"]], "label": None if pd.isna(row["label"]) else int(row["label"])}
            for row in rows
        ]


def index_export(
    path: str | os.PathLike[str],
    site: str = "site",
    key: bytes | str | os.PathLike[str] | None = None,
    *,
    views: Sequence[str] | None = ("PA", "AP"),
    labels: str | os.PathLike[str] | None = None,
    label_map: Mapping[str, int] | None = None,
    split: str | None = None,
    output: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    verify: bool = False,
    limits: Limits | Mapping[str, float] | None = None,
) -> Manifest:
    """Looks at every file of an export and says which images it holds.

    An export is a folder (every file in it, and in zip archives in it), a file named DICOMDIR (the files it lists),
    a zip, or one file. A folder of plain images is one with a ``manifest.csv`` that has a column ``path`` (those files
    are the export; ``patient_id``, ``label``, ``view``, ``sex`` and ``age`` in years are understood), or one with
    images and no DICOM file.

    Args:
        path: the export.
        site: pseudonym of the site, written to every row.
        key: key of the pseudonyms, see `monai_cnnprimer.dicom.key.pseudonym_key`.
        views: accepted views; None accepts every one.
        labels: CSV file, see `monai_cnnprimer.dicom.labels.read_labels`.
        label_map: class of each label word, by default ``{"NORMAL": 0, "PNEUMONIA": 1}``.
        split: only those rows of a plain folder's ``manifest.csv`` that have this in their column ``split``.
        output: folder that gets ``manifest.csv`` and ``refused.csv``. Rows are kept there too (`kept.KeptRows`), so
            that a killed index is taken up where it stopped, and the next one reads only what has changed.
        workers: processes that read headers, by default one a processor and 4 at most; 1 reads in this process.
        progress: show a bar on the error stream.
        verify: read every file again and hash its bytes anew, whatever is kept.
        limits: what reading a file may cost, see `monai_cnnprimer.dicom.limits.Limits`; some by name, the others stay.

    Raises:
        FileNotFoundError: there is no such export, table of labels or key file.
        ValueError: the export holds no file, a table cannot be used, or `output` would overwrite a file of the export.
    """
    export = Path(path).expanduser().resolve()
    if not os.fspath(path) or not export.exists():
        raise FileNotFoundError(f"{path}: no such export; give a folder, a DICOMDIR, or a zip")
    secret = pseudonym_key(key)
    table = image_table(export) if export.is_dir() else None
    if split is not None:
        table = [row for row in table or [] if row.get("split") == split]
        if not table:
            raise ValueError(f"no row of manifest.csv has {split!r} in its column split; leave it out to take all")
    known = _labels(labels, table, secret, label_map)
    names = None if table is None else [row["path"] for row in table]
    folder = None if output is None else Path(output).expanduser()
    if workers is None:
        workers = min(4, os.cpu_count() or 1)
    with limited(limits_of(limits)):
        sources = list_sources(export, names, _ours(export, output))
        if not sources:
            raise ValueError("the export holds no files: give the folder, DICOMDIR or zip that the images lie in")
        kept = KeptRows(folder, secret, [str(export), views and list(views)], trusted=not verify)
        rows = _rows(sources, secret, views, workers, kept, progress)
    people = {keyed_hash(secret, row["path"]): row for row in table or []}
    _decide_plain_images(rows, people, listed=table is not None, views=views, key=secret)
    manifest = _manifest(sources, rows, site, known, keyed_hash(secret, "fingerprint of the key", 8))
    if folder is not None:
        manifest.write(folder)
        kept.tidy()
    return manifest


def _labels(
    labels: str | os.PathLike[str] | None,
    table: list[dict[str, str]] | None,
    key: bytes,
    label_map: Mapping[str, int] | None,
) -> Labels | None:
    """The labels given, else those of the folder's own table."""
    if labels is not None:
        return read_labels(labels, key, label_map)
    if table and "label" in table[0]:
        return labels_of(table, "path", key, label_map)
    return None


def _ours(export: Path, output: str | os.PathLike[str] | None) -> frozenset[Path]:
    """What lies in the export's folder because this index, or an earlier one, writes there."""
    if output is None:
        return frozenset()
    folder = Path(output).expanduser().resolve()
    if folder != export:
        return frozenset([folder])
    written = {folder / "manifest.csv": COLUMNS, folder / "refused.csv": REFUSED_COLUMNS}
    for file, columns in written.items():
        if file.is_file() and not file.read_bytes().startswith(",".join(columns).encode()):
            raise ValueError(f"the export has its own {file.name}, which would be overwritten: give another output")
    return frozenset(written) | frozenset(folder.glob(NAMES))


def _rows(
    sources: Sequence[Source], key: bytes, views: Sequence[str] | None, workers: int, kept: KeptRows, progress: bool
) -> list[Row]:
    """A row for each file: a kept one where the file is unchanged since, else from the file."""
    rows = [describe(source, key, views) if source.refusal else kept.find(source) for source in sources]
    waiting = [place for place, row in enumerate(rows) if row is None]
    columns = (TextColumn("index"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress)
    described = closing(describe_all([sources[place] for place in waiting], key, views, workers))  # ended on Ctrl-C too
    with bar, described as found, kept:
        task = bar.add_task("index", total=len(sources), completed=len(sources) - len(waiting))
        for place, row in zip(waiting, found, strict=True):
            rows[place] = row
            kept.add(sources[place], row)
            bar.advance(task)
    return [row for row in rows if row is not None]


def _decide_plain_images(
    rows: Sequence[Row],
    people: Mapping[str, Mapping[str, str]],
    *,
    listed: bool,
    views: Sequence[str] | None,
    key: bytes,
) -> None:
    """Accepts plain images where they are the export, and refuses them beside DICOM files."""
    wanted = listed or not any(row["kind"] == "dicom" for row in rows)
    for row in rows:
        if row["kind"] == "image" and not wanted:
            row |= {"reason": "not DICOM", "attribute": ""}
        elif row["kind"] == "image" and not row["reason"]:
            row |= _person(people.get(row["path_sha256"], {}), key)
            if views and row.get("view") and row["view"] not in views:
                row |= {"reason": f"another view than {' or '.join(views)}", "attribute": "view"}


def _person(said: Mapping[str, str], key: bytes) -> Row:
    """What a folder's own table says about an image, in the manifest's terms."""
    years = said.get("age", "").removesuffix(".0")
    columns: Row = {"sex": sex(said.get("sex", "")), "age_band": age_band(int(years) if years.isdecimal() else None)}
    if said.get("view", "").isalnum():
        columns["view"] = said["view"].upper()[:16]
    if said.get("patient_id"):
        columns["patient_key"] = keyed_hash(key, said["patient_id"], 16)
        columns["keys"] = {"PatientID": keyed_hash(key, said["patient_id"])}
    return columns


def _manifest(
    sources: Sequence[Source], rows: Sequence[Row], site: str, labels: Labels | None, key_id: str
) -> Manifest:
    """Keeps the first, by name, of several files with one identifier, and sorts all into the two tables."""
    accepted: dict[str, Row] = {}
    paths: dict[str, str] = {}
    for source, row in zip(sources, rows, strict=True):
        row |= {"site": site, "file": source.name if row["kind"] == "image" else ""}
        row["reason"] = row["reason"] or _why_not_kept(row, accepted)
        if not row["reason"]:
            accepted[row["case_id"]] = row | {"label": labels.of(row) if labels else None}
            paths[row["case_id"]] = source.path
    refused = sorted((row for row in rows if row["reason"]), key=lambda row: [row[name] for name in REFUSED_COLUMNS])
    kept = [accepted[case_id] for case_id in sorted(accepted)]
    notes = labels.notes + labels.unmatched(kept) if labels else []
    by_study = sum(row["by_study"] for row in kept)
    if by_study:
        notes.append(f"{by_study} accepted images name no patient: each study is taken for one patient")
    keys = {row["case_id"]: row["keys"] | {"path": row["path_sha256"]} for row in kept}
    return Manifest(_table(kept, COLUMNS), _table(refused, REFUSED_COLUMNS), paths, notes, keys, key_id)


def _why_not_kept(row: Row, accepted: Mapping[str, Row]) -> str:
    earlier = accepted.get(row["case_id"])
    if earlier is not None:
        row["attribute"] = "SOPInstanceUID" if row["kind"] == "dicom" else "path"
        if earlier["sha256"] == row["sha256"]:
            return "a duplicate of an accepted image"
        return "another image with the identifier of an accepted one"
    try:
        row["file"].encode("utf-8")
    except UnicodeEncodeError:
        return "a file name that is not valid UTF-8: rename it"
    return ""


def _table(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    cells = {name: [row.get(name, None if name in NUMBERS else "") for row in rows] for name in columns}
    return pd.DataFrame({name: pd.Series(cells[name], dtype=NUMBERS.get(name, "str")) for name in columns})


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode("utf-8")


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that, whenever the process ends, either the old or the new one is there."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
