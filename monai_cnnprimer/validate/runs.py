# SPDX-License-Identifier: Apache-2.0
"""A run directory, or the zip that a site sent of one, read back: complete, unchanged, its tables with their types."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.dicom.export import NUMBERS
from monai_cnnprimer.run_directory import TABLES, digest_of, with_manifest

MOST_BYTES = 1 << 32  # of a zip's tables; those of a million cases are smaller
_NUMBERS = NUMBERS | {"logit": "float64", "probability": "float64", "predicted": "Int64"}


class RunError(ValueError):
    """A folder that is no run directory, is half written, or was changed by hand; says which file."""


@dataclass(frozen=True, eq=False)
class Run:
    """One site's run, as it stands in its run directory.

    Attributes:
        path: the folder.
        run: `run.json`.
        manifest: `manifest.csv`, one row an accepted image; label as Int64, missing where unknown.
        refused: `refused.csv`, one row a file that was not accepted.
        predictions: `predictions.csv`, one row a case; empty for a run that is not complete.
        errors: `errors.csv`, one row an accepted case without a prediction.
        metrics: `metrics.json`.
        operating_point: `operating_point.json`.
    """

    path: Path
    run: dict[str, Any]
    manifest: pd.DataFrame
    refused: pd.DataFrame
    predictions: pd.DataFrame
    errors: pd.DataFrame
    metrics: dict[str, Any]
    operating_point: dict[str, Any]

    @property
    def site(self) -> str:
        """The site's pseudonym."""
        return str(self.run["site"] or self.path.name)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end; if not, `run["status"]` and `run["reason"]` say how it ended."""
        return bool(self.run["status"] == "complete")

    @property
    def retuned(self) -> bool:
        """Whether the threshold was chosen on this site's own cases, and not locked before."""
        return bool(self.run.get("retuned"))

    def table(self) -> pd.DataFrame:
        """The predictions with the manifest's other columns beside: sex, age_band, manufacturer, rows, columns, ..."""
        return with_manifest(self.predictions, self.manifest)


def read_run(path: str | Path, *, unfinished: bool = False) -> Run:
    """Reads a run directory and checks it against the hashes that it was closed with.

    Args:
        path: the folder, or a zip of `pack_run`. That is unpacked into a temporary folder, which `Run.path` then is; it
            goes when the run does.
        unfinished: read also a run that failed or was killed, with empty tables where it has none.

    Raises:
        FileNotFoundError: there is no such folder.
        RunError: it is no run directory, is half written, or a file of it was changed since; a zip that holds anything
            else than the tables of one run.
    """
    folder = Path(path).expanduser()
    if not folder.is_file():
        return _read_folder(folder, unfinished)
    home = tempfile.mkdtemp(prefix="cnnprimer-")
    try:
        run = _read_folder(_unpacked(folder, Path(home)), unfinished)
    except BaseException:
        shutil.rmtree(home)
        raise
    weakref.finalize(run, shutil.rmtree, home, ignore_errors=True)
    return run


def _unpacked(archive: Path, home: Path) -> Path:
    """The folder of the one run that a zip holds; nothing is written but its tables, and no more than they may be."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = [
                re.fullmatch(r"([A-Za-z0-9][\w.-]*)/[A-Za-z0-9_]+\.(?:csv|json)", name) for name in packed.namelist()
            ]
            sites = {match[1] for match in names if match}
            if len(sites) != 1 or not all(names):
                raise RunError(
                    f"{archive.name}: it holds something else than the tables of one run; see cnnprimer pack"
                )
            if sum(entry.file_size for entry in packed.infolist()) > MOST_BYTES:
                raise RunError(f"{archive.name}: unpacked it would be larger than {MOST_BYTES >> 30} GiB")
            packed.extractall(home)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
        raise RunError(f"{archive.name} is no run directory, and no zip of one that can be read") from None
    return home / sites.pop()


def _read_folder(folder: Path, unfinished: bool) -> Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run directory")
    run = _json_object(folder, "run.json")
    if "status" not in run or run.get("sha256") != digest_of(run):
        raise _changed(folder, "run.json")
    complete = run["status"] == "complete"
    if not (complete or unfinished):
        why = f" ({run['reason']})" if run.get("reason") else ""
        raise RunError(
            f"{folder.name}: this run is not complete, its status is {run['status']}{why}; give the command that "
            "began it again, and it goes on from the predictions it has"
        )
    if complete:
        _verify(folder, run.get("files", {}))
    manifest, refused, predictions, errors = (
        _table(folder / f"{name}.csv") for name in ("manifest", "refused", "predictions", "errors")
    )
    if predictions.get("case_id", pd.Series(dtype=str)).duplicated().any():
        raise RunError(f"{folder.name}: predictions.csv has a case twice; run the site again")
    metrics, operating_point = (
        _json_object(folder, name) if (folder / name).is_file() else {}
        for name in ("metrics.json", "operating_point.json")
    )
    return Run(folder, run, manifest, refused, predictions, errors, metrics, operating_point)


def _verify(folder: Path, files: dict[str, str]) -> None:
    for name in dict.fromkeys((*TABLES, *files)):
        file = folder / name
        if name not in files or not file.is_file():
            raise RunError(f"{folder.name}: {name} is missing, the folder is half written or half copied")
        if hashlib.sha256(file.read_bytes()).hexdigest() != files[name]:
            raise _changed(folder, name)


def _changed(folder: Path, name: str) -> RunError:
    return RunError(
        f"{folder.name}: {name} is not as the run wrote it (its SHA-256 tells); take the folder from where it was "
        "written, or run the site again"
    )


def _json_object(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        raise RunError(f"{folder.name}: there is no {name}, so this is no run directory; name the output of a run")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise RunError(f"{folder.name}: {name} is half written; run the site again") from None


def _table(file: Path) -> pd.DataFrame:
    """Numbers as numbers, all else as text with "" for what is not known; empty where there is no such file."""
    if not file.is_file() or not file.stat().st_size:
        return pd.DataFrame()
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    numbers = {name: pd.to_numeric(table[name].replace("", None)) for name in _NUMBERS.keys() & set(table.columns)}
    return table.assign(**numbers).astype({name: _NUMBERS[name] for name in numbers})
