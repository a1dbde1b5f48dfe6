# SPDX-License-Identifier: Apache-2.0
"""What a site may send of a run: its tables, no image, and nothing that looks like patient data."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.run_directory import digest_of
from monai_cnnprimer.validate.patient_data import scan_csv, scan_json
from monai_cnnprimer.validate.runs import Run

COLUMNS_LEFT_OUT = ("file", "image_hash")
"""Names of files in an image folder, of which the keyed hash stays; and keyed hashes of images (see `overlap`)."""
_MOST_TOLD = 10


class PatientDataFound(ValueError):
    """Something in a run directory looks like a name, date, id, UID or path; says where, and does not repeat it."""


@dataclass(frozen=True)
class Packed:
    """What is in a packed run, and what of the run directory is not: images, maps, figures, reports."""

    files: list[str]
    left_out: list[str]


def pack_run(run: Run, output: Path, image_hashes: bool = False) -> Packed:
    """Writes the zip that a site may send; `read_run` reads it as it is.

    Only tables (CSV, JSON) are taken: figures and maps show the images, or follow them. The same run gives the same
    bytes, as far as the zlib in use is the same.

    Args:
        run: a complete run.
        output: the zip.
        image_hashes: send the keyed hashes of images too, so that images that stand at two sites of one key are found;
            `validate.overlap` says what they could tell to whom.

    Raises:
        PatientDataFound: the scanner found something; no file is written.
    """
    taken = _tables(run, [name for name in COLUMNS_LEFT_OUT if name != "image_hash" or not image_hashes])
    found = [text for name, content in taken.items() for text in _found(name, content)]
    if found:
        rest = f"; and {len(found) - _MOST_TOLD} more" if len(found) > _MOST_TOLD else ""
        raise PatientDataFound(
            f"nothing was packed, since this looks like patient data: {'; '.join(found[:_MOST_TOLD])}{rest}"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(taken.items()):
            entry = zipfile.ZipInfo(f"{run.site}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    write_atomically(output, buffer.getvalue())
    present = (path for path in run.path.rglob("*") if path.is_file())
    left_out = {
        path.relative_to(run.path).parts for path in present if path.relative_to(run.path).as_posix() not in taken
    }
    return Packed(sorted(taken), sorted({parts[0] if len(parts) == 1 else f"{parts[0]}/" for parts in left_out}))


def _tables(run: Run, left_out: Sequence[str]) -> dict[str, str]:
    """The tables' text by name, without the columns that are left out, and `run.json` with the hashes of these."""
    files = [path for path in sorted(run.path.iterdir()) if path.suffix in (".csv", ".json") and path.name[0] != "."]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.name != "run.json"}
    texts = {name: _without_columns(text, left_out) if name.endswith(".csv") else text for name, text in texts.items()}
    told = {key: value for key, value in run.run.items() if key != "sha256"}
    told["files"] = {name: hashlib.sha256(texts[name].encode()).hexdigest() for name in run.run["files"]}
    told["packed"] = {"columns_left_out": list(left_out)}
    texts["run.json"] = json.dumps(told | {"sha256": digest_of(told)}, indent=2) + "\n"
    return texts


def _without_columns(text: str, left_out: Sequence[str]) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    kept = [place for place, name in enumerate(rows[0] if rows else []) if name not in left_out]
    if not rows or len(kept) == len(rows[0]):
        return text
    written = io.StringIO()
    # Cells that are not there stay so: the scanner tells rows of another length.
    csv.writer(written, lineterminator="\n").writerows([row[at] for at in kept if at < len(row)] for row in rows)
    return written.getvalue()


def _found(name: str, text: str) -> list[str]:
    try:
        found = scan_csv(text) if name.endswith(".csv") else scan_json(text)
    except ValueError:
        return [f"{name} (cannot be read)"]
    return [f"{name}{f', line {f.line}' if f.line else ''}, {f.column}: {f.kind}" for f in found]
