# SPDX-License-Identifier: Apache-2.0
"""From one file of an export to one row of its manifest, in this process or in a few others.

What leaves this module holds no identifier: keyed hashes, the receipt, and coarse facts such as an age band.
``python -m monai_cnnprimer.dicom.rows`` is the other process: a line of JSON in, a line of JSON out, until its input
ends. A file that kills it kills nothing else, it ends when its parent is killed, and it imports neither the parent's
main module nor torch.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import lzma
import os
import queue
import re
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from io import BufferedIOBase
from typing import Any, BinaryIO, cast

from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet
from monai_cnnprimer.dicom.files import Source, name_bytes
from monai_cnnprimer.dicom.header import open_source, read_header, receipt

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
AGE_BANDS = ((4, "0-4"), (17, "5-17"), (39, "18-39"), (64, "40-64"), (89, "65-89"), (130, "90+"))
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}  # the units of an AS value, PS3.5 table 6.2-1
FEW = 64  # files; below this, starting other processes takes longer than reading

Row = dict[str, Any]


def keyed_hash(key: bytes, text: str, length: int = 64) -> str:
    """HMAC-SHA256 of a text, in hexadecimal digits: the same for the same key, and of no use to those without it.

    Example:
        >>> keyed_hash(b"key", "The quick brown fox jumps over the lazy dog", 16)
        'f7bc83f430538424'
    """
    return hmac.new(key, name_bytes(text), hashlib.sha256).hexdigest()[:length]


def describe(source: Source, key: bytes, views: Sequence[str] | None) -> Row:
    """What the manifest says about one file; `reason` is "" where nothing speaks against it.

    Returns:
        The manifest's columns that follow from the file alone, and ``kind`` ("dicom", "image" or "other"), ``keys``
        (keyed hashes by which a table of labels may name the case), ``by_study`` (no PatientID: the study stands in).
    """
    row: Row = {"kind": "other", "path_sha256": keyed_hash(key, source.name), "sha256": "", "reason": source.refusal}
    row |= {"attribute": "", "keys": {}, "by_study": False}
    if source.refusal:
        return row
    try:
        with quiet(), open_source(source.path) as file:  # pydicom's warnings quote the values
            _fill(row, file, source, key, views)
        if os.path.isfile(source.path) and str(os.stat(source.path).st_mtime_ns) != source.state:
            row["reason"] = "changed while it was read: index again when the export is complete"
    except DicomRefused as refused:
        row |= {"reason": refused.reason, "attribute": refused.attribute}
    except OSError as error:
        row["reason"] = f"cannot be read ({error.strerror or 'damaged'})"
    except (*PARSE_ERRORS, lzma.LZMAError) as error:
        row["reason"] = f"the file is damaged ({type(error).__name__})"
    return row


def _fill(row: Row, file: BinaryIO, source: Source, key: bytes, views: Sequence[str] | None) -> None:
    """Fills the row in the order in which things become known, so that a refusal keeps what was known before it."""
    start = file.read(132)
    file.seek(0)
    row["sha256"] = hashlib.file_digest(cast(BufferedIOBase, file), "sha256").hexdigest()
    file.seek(0)
    if not start:
        raise DicomRefused("the file is empty")
    if source.name.lower().endswith(IMAGES) and start[128:] != b"DICM":
        row |= {"kind": "image", "case_id": keyed_hash(key, source.name, 16)}
        row |= {"patient_key": row["case_id"], **_image_size(file, source.name)}
        return
    row["kind"] = "dicom" if start[128:] == b"DICM" else "other"
    if MediaStorageDirectoryStorage.encode() in file.read(1024):  # stands in the meta header, PS3.10, 7.1
        raise DicomRefused("a directory of files, not an image", "MediaStorageSOPClassUID")
    file.seek(0)
    dataset = read_header(file)
    row["kind"] = "dicom"
    row |= _receipt_columns(receipt(dataset, views))
    row |= _identity(dataset, key)
    row |= {"rows": int(dataset.Rows), "columns": int(dataset.Columns), "sex": sex(_text(dataset, "PatientSex"))}
    row |= {"age_band": _age_band(dataset), "manufacturer": manufacturer(_text(dataset, "Manufacturer"))}


def _image_size(file: BinaryIO, name: str) -> Row:
    """Rows and columns of a PNG, JPEG or TIFF; volumes' formats are left to the reader."""
    if not name.lower().endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff")):
        return {}
    from PIL import Image

    try:
        with Image.open(file) as image:
            return {"rows": image.height, "columns": image.width}
    except Image.DecompressionBombError:
        raise DicomRefused("more pixels than a radiograph has") from None
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise DicomRefused("a damaged image file") from error


def _receipt_columns(said: dict[str, Any]) -> Row:
    spacing = said["pixel_spacing_mm"]
    columns = ("view", "laterality", "spacing_source", "polarity", "lut", "orientation", "transfer_syntax", "burned_in")
    row: Row = {column: "" if said[column] is None else str(said[column]) for column in columns}
    return row | {"pixel_spacing_mm": round(spacing[0], 6) if spacing else None, "quirks": ";".join(said["quirks"])}


def _identity(dataset: Dataset, key: bytes) -> Row:
    """Keyed identifiers. A study has one patient (PS3.3, A.1.2), so it stands in for a missing PatientID."""
    known = {keyword: _text(dataset, keyword) for keyword in IDENTIFIERS}
    if not known["SOPInstanceUID"]:
        raise DicomRefused("no identifier of the image, so that it cannot be told from others", "SOPInstanceUID")
    if not known["PatientID"] and not known["StudyInstanceUID"]:
        raise DicomRefused("neither a patient nor a study is named, so that patients cannot be told apart", "PatientID")
    issuer = _text(dataset, "IssuerOfPatientID")
    patient = "\\".join(filter(None, (known["PatientID"], issuer))) if known["PatientID"] else known["StudyInstanceUID"]
    keys = {keyword: keyed_hash(key, value) for keyword, value in known.items() if value}
    return {
        "case_id": keyed_hash(key, known["SOPInstanceUID"], 16),
        "patient_key": keyed_hash(key, patient, 16),
        "keys": keys,
        "by_study": not known["PatientID"],
    }


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")


def sex(value: str) -> str:
    """M, F or O; anything else is not known and ""."""
    return value.upper() if value.upper() in ("M", "F", "O") else ""


def manufacturer(value: str) -> str:
    """Letters and digits of the manufacturer's name, 40 at most: the attribute is free text.

    Example:
        >>> manufacturer("GE Healthcare, <service@example.org>")
        'GE Healthcare service example org'
    """
    return re.sub(r"[\W_]+", " ", value).strip()[:40].rstrip()


def age_band(years: float | None) -> str:
    """The band of an age in years; "" for one that is not known or not possible. Ages over 89 can identify: one band.

    Example:
        >>> age_band(17.9), age_band(18), age_band(101), age_band(-1), age_band(None)
        ('5-17', '18-39', '90+', '', '')
    """
    if years is None or not 0 <= years < AGE_BANDS[-1][0]:
        return ""
    return next(band for last, band in AGE_BANDS if int(years) <= last)


def _age_band(dataset: Dataset) -> str:
    """From PatientAge, else from the dates of birth and study."""
    age = re.fullmatch(r"(\d{1,3})([DWMY])", _text(dataset, "PatientAge"))
    if age:
        return age_band(int(age[1]) * YEARS[age[2]])
    try:
        born, studied = (datetime.strptime(_text(dataset, day), "%Y%m%d") for day in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return ""
    had_birthday = (studied.month, studied.day) >= (born.month, born.day)
    return age_band(studied.year - born.year - (not had_birthday))


def describe_all(
    sources: Sequence[Source], key: bytes, views: Sequence[str] | None, workers: int
) -> Generator[Row, None, None]:
    """Describes each file, in order; more than a few, and with two workers or more, in that many other processes."""
    if workers < 2 or len(sources) < FEW:
        yield from (describe(source, key, views) for source in sources)
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker(key, views) for _ in range(workers)]
    for worker in started:
        idle.put(worker)

    def describe_elsewhere(source: Source) -> Row:
        worker = idle.get()
        try:
            return worker.describe(source)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as threads:
        try:
            yield from threads.map(describe_elsewhere, sources)
        finally:
            threads.shutdown(cancel_futures=True)
            for worker in started:
                worker.stop()


class _Worker:
    """One other process that describes files. A file that kills it costs one row."""

    def __init__(self, key: bytes, views: Sequence[str] | None) -> None:
        self._setting = {"key": key.hex(), "views": None if views is None else list(views)}
        self._key = key
        self._start()

    def describe(self, source: Source) -> Row:
        if source.refusal:
            return describe(source, self._key, None)
        answer = self._ask(asdict(source))
        if answer:
            row: Row = json.loads(answer)
            return row
        self.stop()
        self._start()
        killer = Source(source.path, source.name, refusal="reading its header ended the process that read it")
        return describe(killer, self._key, None)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        # The key goes through the pipe: arguments and environment of a process can be seen by others.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monai_cnnprimer.dicom.rows"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._ready = False

    def _ask(self, question: dict[str, Any]) -> bytes:
        """The answer's line, or nothing when the process died over the question."""
        if not self._ready:
            if not self._tell(self._setting):
                raise RuntimeError("no process can be started to read files in parallel: give workers=1")
            self._ready = True
        return self._tell(question)

    def _tell(self, message: dict[str, Any]) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return b""


def _serve(lines: Iterable[str]) -> None:
    """Answers each line. What a library prints goes to the error stream, not between the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    key, views = b"", None
    for line in lines:
        message = json.loads(line)
        if "key" in message:
            key, views = bytes.fromhex(message["key"]), message["views"]
            answer: Row = {}
        else:
            answer = describe(Source(**message), key, views)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin)
