# SPDX-License-Identifier: Apache-2.0
"""Radiographs that are not DICOM: PNG, JPEG and TIFF (Pillow), NIfTI (nibabel), MHA and NRRD (SimpleITK).

They come with the receipt of a DICOM image. What the format cannot say, such as the view, is ``unknown`` in it.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image, ImageOps

from monai_cnnprimer.dicom.attributes import DicomRefused, quiet
from monai_cnnprimer.dicom.grayscale import MAX_SIDE
from monai_cnnprimer.dicom.header import MAX_BYTES, open_source

# What Pillow 13, nibabel 5.4 and SimpleITK 2.5 raise on mutated files (Pillow's UnidentifiedImageError is an OSError).
FORMAT_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImageFileError,
    HeaderDataError,
)
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def image_format(file: BinaryIO, path: str | os.PathLike[str]) -> str:
    """Names the format, by content where it has a mark and by suffix otherwise; empty when it can only be DICOM.

    Example:
        >>> from io import BytesIO
        >>> image_format(BytesIO(b"NRRD0004"), "image.nrrd"), image_format(BytesIO(bytes(132)), "IM0001")
        ('NRRD', '')
    """
    start = file.read(132)
    file.seek(0)
    if start[128:] == b"DICM":
        return ""
    marks = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"NRRD": "NRRD"}
    suffixes = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".mha": "MetaImage", ".mhd": "MetaImage"}
    name = Path(path).name.lower()
    by_mark = (found for mark, found in marks.items() if start.startswith(mark))
    by_suffix = (found for suffix, found in suffixes.items() if name.endswith(suffix))
    return next(by_mark, "") or next(by_suffix, "")


def read_image(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Reads a plain image to ``(rows, columns)`` in [0, 1] and its receipt (with ``padding_mask``).

    8-bit values are divided by 255 and 16-bit values of PNG and TIFF by 65535; others are scaled by their own range.

    Raises:
        DicomRefused: when it cannot be read, is no single 2-D image, or is too large.
    """
    with open_source(path) as file:
        found = image_format(file, path)
        try:
            if found in ("PNG", "JPEG", "TIFF"):
                return _picture(file, found)
            return _nifti(file) if found == "NIfTI" else _itk(path, found)
        except DicomRefused:
            raise
        except FORMAT_ERRORS:
            raise DicomRefused(f"a damaged {found or 'image'} file") from None


def _receipt(found: str, lut: str, quirks: Sequence[str], mask: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    return {
        "pixel_spacing_mm": None,
        "spacing_source": "unknown",
        "polarity": "as stored",
        "lut": lut,
        "orientation": "unknown",
        "transfer_syntax": found,
        "view": "unknown",
        "laterality": "unknown",
        "burned_in": "unknown",
        "quirks": [*quirks, *([] if mask is None else ["nan-padding"])],
        "padding_mask": mask,
    }


def _picture(file: BinaryIO, found: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    with quiet():
        image = Image.open(file, formats=[found])
        _check_size(image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise DicomRefused("an image of several frames, not a radiograph")
        image.load()
        upright = ImageOps.exif_transpose(image)
    return _shown_picture(upright, found)


def _shown_picture(image: Image.Image, found: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        return _grey(np.asarray(image), found)
    if image.mode in ("1", "L"):
        return _grey(np.asarray(image.convert("L")), found)
    quirks = ["alpha-dropped"] if "A" in image.mode or "transparency" in image.info else []
    colours = np.asarray(image.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return _grey(colours[..., 0], found, quirks)
    luminance = (colours @ LUMINANCE).astype(np.float32) / np.float32(255)
    return luminance, _receipt(found, "full range", [*quirks, "colour"])


def _grey(pixels: NDArray[Any], found: str, quirks: Sequence[str] = ()) -> tuple[NDArray[np.float32], dict[str, Any]]:
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 1 and pixels.min() >= 0 and pixels.max() <= 65_535:
        return pixels.astype(np.float32) / np.float32(65_535), _receipt(found, "full range", quirks)
    shown, lut, mask = _scaled(pixels)
    return shown, _receipt(found, lut, quirks, mask)


def _scaled(values: NDArray[Any]) -> tuple[NDArray[np.float32], str, NDArray[np.bool_] | None]:
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255), "full range", None
    if values.dtype.kind not in "iufb":
        raise DicomRefused("pixels that are colours or no numbers")
    wide = values.astype(np.float64)
    mask = np.isnan(wide)
    if mask.all() or np.isinf(wide).any():
        raise DicomRefused("pixels that are not finite")
    low, high = np.nanmin(wide), np.nanmax(wide)
    shown = np.where(mask, 0, (wide - low) / ((high - low) or 1)).astype(np.float32)
    return shown, "own range", mask if mask.any() else None


def _check_size(sides: tuple[int, ...]) -> None:
    if not all(0 < side <= MAX_SIDE for side in sides):
        raise DicomRefused(f"an image side of no or more than {MAX_SIDE} pixels")


def _nifti(file: BinaryIO) -> tuple[NDArray[np.float32], dict[str, Any]]:
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    data = (gzip.GzipFile(fileobj=file) if compressed else file).read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DicomRefused("larger than any radiograph")
    second = data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540, the size of its header
    with quiet():
        image = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(data)
        _check_size(image.shape)
        known = bool(image.header["sform_code"] or image.header["qform_code"])
        values = np.asanyarray(image.dataobj)
        unit = {"meter": 1000.0, "micron": 0.001}.get(image.header.get_xyzt_units()[0], 1.0)
    return _placed(values, image.affine * unit, known, "NIfTI")


def _itk(path: str | os.PathLike[str], found: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
    if not Path(path).is_file():
        raise DicomRefused("MHA and NRRD files are not read inside an archive; unpack it")
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if found == "MetaImage" else "NrrdImageIO")
    reader.SetFileName(os.fspath(path))
    reader.ReadImageInformation()
    _check_size(reader.GetSize())
    if reader.GetNumberOfComponents() != 1:
        raise DicomRefused("pixels that are colours or no numbers")
    image = reader.Execute()
    count = image.GetDimension()
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (count, count))
    affine[:count, :count] = directions * image.GetSpacing()
    affine[:2] *= -1  # ITK's axes run to the left and back, those of nibabel to the right and front
    return _placed(SimpleITK.GetArrayFromImage(image).T, affine, True, found)


def _placed(
    values: NDArray[Any], affine: NDArray[np.float64], known: bool, found: str
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Lays an array ``(x, y[, z])`` out as a picture: columns to the patient's left, rows down (else: to the back)."""
    values = values.reshape(values.shape + (1,) * (3 - values.ndim)) if values.ndim < 3 else values
    if values.ndim > 3 and all(side == 1 for side in values.shape[3:]):
        values = values.reshape(values.shape[:3])
    if values.ndim != 3 or 1 not in values.shape:
        raise DicomRefused("a volume, not a 2-D image")
    axes = io_orientation(affine)
    known = known and not np.isnan(axes).any()
    turn = ornt_transform(axes, axcodes2ornt(("L", "P", "I"))) if known else np.array([[0, 1], [1, 1], [2, 1]])
    values = apply_orientation(values, turn)
    thin = max(axis for axis in range(3) if values.shape[axis] == 1)
    shown, lut, mask = _scaled(np.squeeze(values, thin).T)
    lengths = np.empty(3)
    lengths[turn[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    receipt = _receipt(found, lut, (), mask)
    if known:
        receipt["orientation"] = "upright" if thin == 1 else "by affine"
        _state_spacing(receipt, np.delete(lengths, thin)[::-1].tolist())
    return np.ascontiguousarray(shown), receipt


def _state_spacing(receipt: dict[str, Any], spacing: list[float]) -> None:
    if spacing == [1.0, 1.0]:  # what a library writes when it was told nothing; no radiograph has pixels of 1 mm
        receipt["quirks"].append("spacing-default")
    elif all(np.isfinite(spacing)) and min(spacing) > 0:
        receipt["pixel_spacing_mm"], receipt["spacing_source"] = (spacing[0], spacing[1]), "file"
