# SPDX-License-Identifier: Apache-2.0
"""One radiograph of any format to an array and its receipt, read here or, where a decoder is needed, in isolation."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.dicom import isolation
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.header import is_ordinary, open_source, read_header, receipt
from monai_cnnprimer.dicom.limits import Limits, limited, limits_of
from monai_cnnprimer.dicom.pixels import show

CHANGED = "changed while it was read: read it again when the export is complete"

Path = str | os.PathLike[str]
Read = tuple[NDArray[np.float32], dict[str, Any]]


def read_radiograph(
    path: Path,
    views: Sequence[str] | None = None,
    limits: Limits | Mapping[str, float] | None = None,
    reduce_to: int | None = None,
) -> Read:
    """Reads one radiograph of any format, without MONAI's metadata.

    Args:
        path: as for `monai_cnnprimer.dicom.header.open_source`.
        views: the views to accept.
        limits: what reading it may cost; the limits in force when None.
        reduce_to: how many pixels the shorter side needs at least, see `monai_cnnprimer.dicom.pixels.show`.

    Returns:
        ``(rows, columns)`` float32 in [0, 1], and the receipt with ``padding_mask``; its spacing is the image's own.

    Raises:
        DicomRefused: when it cannot be read rightly, or not within the limits.
    """
    with limited(limits_of(limits)):
        if os.path.isfile(path):  # else it may be a member of an archive, which is unpacked elsewhere
            with open_source(path) as file:
                if is_ordinary(file):
                    return _dicom(file, views, reduce_to)
        place = os.path.join(os.getcwd(), path)  # the other process may have started in another folder
        asked = {"path": place, "views": views and list(views), "reduce_to": reduce_to}
        stated, arrays = isolation.call(f"{__name__}:read_here", asked)
    spacing = stated["pixel_spacing_mm"]
    stated["pixel_spacing_mm"] = None if spacing is None else tuple(spacing)
    stated["padding_mask"] = arrays[1] if len(arrays) > 1 else None
    return arrays[0], stated


def read_here(
    path: str, views: Sequence[str] | None, reduce_to: int | None = None
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Reads one radiograph of any format in this process, which is the other one: the receipt, and image and mask."""
    with open_source(path) as file:
        whole = BytesIO(_unpacked(file)) if isinstance(file, zipfile.ZipExtFile) else file
        image, stated = _plain(path) if _is_plain(whole, path) else _dicom(whole, views, reduce_to)
    mask = stated.pop("padding_mask")
    return stated, [image] if mask is None else [image, mask]


def _unpacked(member: zipfile.ZipExtFile) -> bytes:
    try:
        return member.read()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        raise DicomRefused("the archive, or this member of it, is damaged") from None


def _is_plain(file: BinaryIO, path: str) -> bool:
    start = file.read(132)
    file.seek(0)
    if start[128:] == b"DICM":
        return False
    from monai_cnnprimer.dicom.images import image_format  # with libraries that DICOM files do not need

    return image_format(file, path) != ""


def _plain(path: str) -> Read:
    from monai_cnnprimer.dicom.images import read_image

    return read_image(path)


def _dicom(file: BinaryIO, views: Sequence[str] | None, reduce_to: int | None) -> Read:
    before = _state(file)
    dataset = read_header(file)
    stated = receipt(dataset, views)
    shown = show(file, dataset, reduce_to)
    if _state(file) != before:
        raise DicomRefused(CHANGED)
    stated["quirks"] += shown.quirks
    spacing = stated["pixel_spacing_mm"]
    stated["pixel_spacing_mm"] = None if spacing is None else tuple(length * shown.reduction for length in spacing)
    return shown.image, stated | {"padding_mask": shown.padding}


def _state(file: BinaryIO) -> tuple[int, int] | None:
    """Size and time of change of a file on a disk; None of one in memory."""
    if isinstance(file, BytesIO):
        return None
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
