# SPDX-License-Identifier: Apache-2.0
"""What a DICOM header tells: whether the file is a radiograph that may be read, and the receipt of how it is shown."""

from __future__ import annotations

import math
import os
import stat
import struct
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, number, quiet, text
from monai_cnnprimer.dicom.geometry import orientation, pixel_spacing, view
from monai_cnnprimer.dicom.grayscale import is_inverted, lut_path, pixel_format
from monai_cnnprimer.dicom.limits import Limits, in_force
from monai_cnnprimer.dicom.quirks import quirks
from monai_cnnprimer.dicom.scan import READ, scan
from monai_cnnprimer.dicom.unusual import read_unusual

__all__ = ["DicomRefused", "is_ordinary", "open_source", "read_header", "receipt", "transfer_syntax"]

# Projection radiography. Mammography, dental and fluoroscopic images are other fields with other rules of display.
MODALITIES = ("CR", "DX", "DR", "RG")
CLASSES = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1")
MAX_BYTES = Limits.file_bytes
LONG_VRS = (b"OB", b"OW", b"UN")
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)


def open_source(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file, or a member of a zip archive named as if it were a folder (``/x/export.zip/inner/name``).

    Archives stay open, one handle for each process, and threads may read their members at the same time.

    Raises:
        DicomRefused: when there is nothing there, or it is encrypted, damaged or may not be read.
    """
    try:
        size = _file_size(path)
        if size is not None:
            if size > in_force().file_bytes:
                raise DicomRefused("larger than any radiograph")
            return open(path, "rb")
        place = Path(path)
        archive = next((parent for parent in place.parents if parent.is_file()), None)
        if archive is None:
            raise DicomRefused("the file does not exist")
        state = archive.stat()
        handle, members = _archive(str(archive), state.st_mtime_ns, os.getpid())
        member = members.get(place.relative_to(archive).as_posix())
        if member is None:
            raise DicomRefused("the archive has no such member")
        if member.file_size > in_force().file_bytes:
            raise DicomRefused("larger than any radiograph")
        return cast(BinaryIO, handle.open(member))
    except OSError:
        raise DicomRefused("the file cannot be opened") from None
    except (zipfile.BadZipFile, RuntimeError):  # RuntimeError: encrypted; its NotImplementedError: unknown compression
        raise DicomRefused("the archive, or this member of it, is encrypted or damaged") from None


def _file_size(path: str | os.PathLike[str]) -> int | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte in a name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@lru_cache(maxsize=16)
def _archive(path: str, _modified: int, _process: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The open archive and its members under the names that `pathlib` makes of theirs.

    A handle inherited through a fork shares its file position with the parent: hence one for each process.
    """
    archive = zipfile.ZipFile(path)
    return archive, {PurePosixPath(info.filename.lstrip("/")).as_posix(): info for info in archive.infolist()}


def read_header(source: str | os.PathLike[str] | BinaryIO) -> Dataset:
    """Reads a DICOM header; files without preamble or meta header are read too when they hold DICOM.

    Args:
        source: a path as for `open_source`, or an open file at its beginning, which is left at the pixel data element.

    Raises:
        DicomRefused: for an empty file, text, something else than DICOM, a damaged header, and a file that ends before
            its header or its pixels do.
    """
    if isinstance(source, (str, os.PathLike)):
        with open_source(source) as file:
            return read_header(file)
    with quiet():
        try:
            start = source.read(READ)
            _check_beginning(start[:132])
            scanned = scan(start)
            source.seek(0 if scanned is None else scanned.end)
            dataset: Dataset = read_unusual(source) if scanned is None else scanned
            if not text(dataset, "Modality") and not text(dataset, "SOPClassUID"):
                raise DicomRefused("no DICOM, or cut off within its header", "SOPClassUID")
            _check_end(source, dataset)
        except (DicomRefused, MemoryError):
            raise
        except PARSE_ERRORS:
            raise DicomRefused("a damaged DICOM header") from None
    return dataset


def is_ordinary(file: BinaryIO) -> bool:
    """Whether a file may be read by whoever asks; it is left at its beginning.

    It has a header that `scan` reads, and uncompressed pixels of a stated length: no decoder runs, and what there is to
    do has a bound however the file is made. (A member of an archive is never one: unpacking it is a decoder's work.)
    """
    try:
        with quiet():
            header = scan(file.read(READ))
            if header is None or transfer_syntax(header) not in NATIVE:
                return False
            file.seek(header.end)
            element = pixel_element(file, header)
            return element is not None and element[1] is not None
    except DicomRefused:
        return False
    finally:
        file.seek(0)


def _check_beginning(start: bytes) -> None:
    if not start:
        raise DicomRefused("the file is empty")
    if start[128:] == b"DICM" or start[:4] == b"DICM":
        return
    if not any(byte < 9 for byte in start):
        raise DicomRefused("text or another kind of file, not DICOM")
    if start[1] + start[0] not in (2, 8):  # a data set begins with group 0002 or 0008, in either order of bytes
        raise DicomRefused("no DICOM: neither its prefix nor the beginning of a data set")


def _check_end(file: BinaryIO, dataset: Dataset) -> None:
    """Refuses an image whose pixel data are not all there, without reading them; leaves `file` where it was."""
    if transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian:
        return  # inflated in memory by pydicom; its end shows when the pixels are read
    start = file.tell()
    element = pixel_element(file, dataset)
    is_image = "Rows" in dataset or "Image Storage" in UID(text(dataset, "SOPClassUID")).name
    if element is None and is_image:
        raise DicomRefused("cut off: the file ends before its pixels, or has none", "PixelData")
    if element is not None and not (_has_fragments(file) if element[1] is None else _has_bytes(file, element[1])):
        raise DicomRefused("cut off: the file ends within its pixels", "PixelData")
    if element is not None and element[1] is not None and element[1] < _native_length(dataset):
        raise DicomRefused("fewer pixels than Rows x Columns", "PixelData")
    file.seek(start)


def _native_length(dataset: Dataset) -> float:
    keywords = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    return math.prod(number(dataset, keyword, 1) for keyword in keywords) // 8


def pixel_element(file: BinaryIO, dataset: Dataset) -> tuple[bytes, int | None] | None:
    """Reads the head of the pixel data element at which `read_header` left a file.

    Returns:
        its value representation (empty in implicit syntaxes) and length in bytes (None: encapsulated fragments follow);
        None when there is no such element.
    """
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = file.read(8)
    if len(head) < 8 or struct.unpack(f"{order}HH", head[:4]) != (0x7FE0, 0x0010):
        return None
    representation = b"" if implicit else head[4:6]
    if not implicit and representation not in LONG_VRS:
        raise DicomRefused("pixel data of a representation that holds none", "PixelData")
    (length,) = struct.unpack(f"{order}I", head[4:] if implicit else file.read(4))
    return representation, None if length == 0xFFFFFFFF else length


def _has_bytes(file: BinaryIO, length: int) -> bool:
    if length:
        file.seek(length - 1, os.SEEK_CUR)
    return length == 0 or len(file.read(1)) == 1


def _has_fragments(file: BinaryIO) -> bool:
    while len(head := file.read(8)) == 8:
        if head[:4] == b"\xfe\xff\xdd\xe0":
            return True
        if head[:4] != b"\xfe\xff\x00\xe0" or not _has_bytes(file, int.from_bytes(head[4:], "little")):
            return False
    return False


def transfer_syntax(dataset: Dataset) -> UID:
    """The transfer syntax; in a file without meta header the uncompressed one by which it could be read."""
    stated = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if stated:
        return stated if isinstance(stated, UID) else UID(stated)
    implicit, little = dataset.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def receipt(dataset: Dataset, views: Sequence[str] | None = None) -> dict[str, Any]:
    """States from the header how a radiograph is shown and measured; it holds no patient attribute and no identifier.

    Args:
        dataset: as `read_header` gives it.
        views: the views asked for, e.g. ``("PA", "AP")``; an image that states none passes as ``unknown``.

    Returns:
        ``pixel_spacing_mm`` ((row, column) of the upright image, or None), ``spacing_source``, ``polarity``, ``lut``,
        ``orientation``, ``transfer_syntax`` (its keyword), ``view``, ``laterality``, ``burned_in``, ``quirks``.

    Raises:
        DicomRefused: when it is not a radiograph, or not one of these views, or nothing that can be shown rightly.
    """
    with quiet():
        _check_is_radiograph(dataset)
        _check_pixels(dataset)
        shown_view = view(dataset)
        if views is not None and shown_view not in (*views, "unknown"):
            raise DicomRefused(f"the view is {shown_view}, asked for: {', '.join(views)}", "ViewPosition")
        met = quirks(dataset)
        for quirk in met:
            if quirk.refused:
                raise DicomRefused(quirk.refused, quirk.attribute)
        turn = orientation(dataset)
        spacing, source = pixel_spacing(dataset)
        inverted = "inverted" if is_inverted(dataset) else "as stored"
        return {
            "pixel_spacing_mm": spacing[::-1] if spacing and turn.transpose else spacing,
            "spacing_source": source,
            "polarity": f"{text(dataset, 'PhotometricInterpretation')} {inverted}",
            "lut": lut_path(dataset),
            "orientation": turn.label,
            "transfer_syntax": transfer_syntax(dataset).keyword or "unknown",
            "view": shown_view,
            "laterality": _one_of(dataset, ("ImageLaterality", "Laterality"), ("R", "L", "U", "B")),
            "burned_in": _one_of(dataset, ("BurnedInAnnotation",), ("YES", "NO")),
            "quirks": [quirk.name for quirk in met],
        }


def _check_pixels(dataset: Dataset) -> None:
    pixels = pixel_format(dataset)
    if pixels.rows * pixels.columns > in_force().pixels:
        raise DicomRefused("more pixels than any radiograph has", "Rows")


def _one_of(dataset: Dataset, keywords: Sequence[str], terms: Sequence[str]) -> str:
    stated = (text(dataset, keyword) for keyword in keywords)
    return next((term for term in stated if term in terms), "unknown")


def _check_is_radiograph(dataset: Dataset) -> None:
    modality, sop_class = text(dataset, "Modality"), UID(text(dataset, "SOPClassUID"))
    if modality == "SR" or "SR" in sop_class.name.split():
        raise DicomRefused("a structured report, no image", "Modality")
    if "Rows" not in dataset:
        raise DicomRefused("an object without an image", "Rows")
    photometric = text(dataset, "PhotometricInterpretation")
    if not photometric:
        raise DicomRefused("an image that does not state whether low values are bright", "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomRefused("a colour image, as secondary captures are, not a radiograph", "PhotometricInterpretation")
    if number(dataset, "SamplesPerPixel", 1) != 1:
        raise DicomRefused("a colour image, as secondary captures are, not a radiograph", "SamplesPerPixel")
    if number(dataset, "NumberOfFrames", 1) > 1:
        raise DicomRefused("an image of several frames, not a radiograph", "NumberOfFrames")
    if modality not in MODALITIES and not (modality == "" and sop_class in CLASSES):
        raise DicomRefused("another modality than projection radiography", "Modality")
