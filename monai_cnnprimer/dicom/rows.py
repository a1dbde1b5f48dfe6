# SPDX-License-Identifier: Apache-2.0
"""From one file of an export to one row of its manifest, in this process or in a few others.

What leaves this module holds no identifier: keyed hashes, the receipt, and coarse facts such as an age band.
"""

from __future__ import annotations

import hashlib
import hmac
import lzma
import queue
import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from io import BufferedIOBase
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet
from monai_cnnprimer.dicom.exposure import exposure
from monai_cnnprimer.dicom.files import Source, has_changed, name_bytes
from monai_cnnprimer.dicom.header import is_ordinary, open_source, read_header, receipt
from monai_cnnprimer.dicom.isolation import Worker, call

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
AGE_BANDS = ((4, "0-4"), (17, "5-17"), (39, "18-39"), (64, "40-64"), (89, "65-89"), (130, "90+"))
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}  # the units of an AS value, PS3.5 table 6.2-1
FEW = 64  # files; below this, starting other processes takes longer than reading
BATCH = 16  # files for one question to another process; with fewer, asking costs nearly as much as reading

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
        if has_changed(source):  # no hash: what it is the hash of is not known, and the next index reads it again
            row |= {"reason": "changed while it was read: index again when the export is complete", "sha256": ""}
    except DicomRefused as refused:
        row |= {"reason": refused.reason, "attribute": refused.attribute}
    except MemoryError:
        raise
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
    row |= exposure(dataset)


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
    """Describes each file, in order; more than a few, and with two workers or more, in that many other processes.

    Otherwise only those go to another process that `is_ordinary` does not pass: the rows are the same in either case.
    """
    if workers < 2 or len(sources) < FEW:
        yield from (_describe_few(source, key, views) for source in sources)
        return
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    started = [Worker() for _ in range(workers)]
    for worker in started:
        idle.put(worker)

    def describe_elsewhere(batch: Sequence[Source]) -> list[Row]:
        worker = idle.get()
        try:
            return _describe_there(worker.call, batch, key, views)
        finally:
            idle.put(worker)

    batches = [sources[start : start + BATCH] for start in range(0, len(sources), BATCH)]
    with ThreadPoolExecutor(workers) as threads:
        try:
            for rows in threads.map(describe_elsewhere, batches):
                yield from rows
        finally:
            threads.shutdown(cancel_futures=True)
            for worker in started:
                worker.stop()


def _describe_few(source: Source, key: bytes, views: Sequence[str] | None) -> Row:
    try:
        with open(source.path, "rb") as file:
            here = is_ordinary(file)
    except NotADirectoryError:  # a member of an archive
        here = False
    except OSError:  # whatever it is, describing it meets it again
        here = True
    return describe(source, key, views) if here or source.refusal else _describe_there(call, [source], key, views)[0]


def _describe_there(
    ask: Callable[[str, dict[str, Any]], tuple[Any, Any]],
    batch: Sequence[Source],
    key: bytes,
    views: Sequence[str] | None,
) -> list[Row]:
    """Rows from another process; a file that ends that process, or asks too much of it, is refused."""
    # The key goes through a pipe: arguments and environment of a process can be seen by others.
    question = {"sources": [asdict(one) for one in batch], "key": key.hex(), "views": views and list(views)}
    try:
        rows: list[Row] = ask(f"{__name__}:describe_here", question)[0]
    except DicomRefused as refused:
        if len(batch) > 1:  # which one it was shows when each is read by itself, under the limits of one file
            return [row for source in batch for row in _describe_there(ask, [source], key, views)]
        return [describe(replace(batch[0], refusal=batch[0].refusal or refused.reason), key, views)]
    return rows


def describe_here(
    sources: Sequence[dict[str, Any]], key: str, views: Sequence[str] | None
) -> tuple[list[Row], list[NDArray[Any]]]:
    """Describes files in this process, which is the other one; see `isolation.call`."""
    return [describe(Source(**source), bytes.fromhex(key), views) for source in sources], []
