# SPDX-License-Identifier: Apache-2.0
"""Real findings in place of the simulation: JSRT, NODE21, or any table of boxes, centres or masks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.dicom.rows import keyed_hash
from monai_cnnprimer.validate.findings.annotations import Entry, Finding, read_tables
from monai_cnnprimer.validate.findings.cases import CASE_COLUMNS, MM_BINS, PX_BINS, FindingCases, bin_of
from monai_cnnprimer.validate.findings.sources import padded

JSRT_SIDE, JSRT_LARGEST = 2048, 4095
"""JSRT (Shiraishi et al., AJR 2000; 174:71-74): 12 of 16 bits, big-endian, no header, linear in film density."""

_Case = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


def read_findings(
    path: str | os.PathLike[str], size: int = 224, key: bytes | str | os.PathLike[str] | None = None
) -> FindingCases:
    """Images with known findings, and without, brought to the network's input.

    `path` is one of:

    - a folder of **NODE21**: `metadata.csv` with `img_name, label, x, y, width, height` (a row for each nodule; left,
      top, width and height in pixels), its images beside it or in `images/`;
    - a folder of **JSRT**: `CLNDAT_EN.txt` and, if there, `CNNDAT_EN.TXT` (tab-separated, no header: name, subtlety,
      size in mm, age, sex, x, y, ...), images beside them or below: 2048 x 2048 raw, or PNG under the same name;
    - any **CSV** with `file` (below its folder) and, where there is a finding, `x, y, width, height`; or `x_centre,
      y_centre` with `diameter_px` or `diameter_mm`; or `mask` (an image file, true above half of its largest value).
      Also: `diameter_mm`, `mm_per_px`, `patient_id`, `lungs` (a mask file). Several rows of a file are its findings.

    Images are read as everywhere (`read_radiograph`). mm follow from the table, else from the file's spacing, else they
    are ``unknown`` and only bins in pixels hold. A finding's diameter is that of the circle as large as it; of several
    in an image the largest counts, and its mask holds all. Names and patients become keyed hashes.

    Args:
        path: folder or CSV file.
        size: rows and columns of the input; the aspect is kept, the rest is black.
        key: of the pseudonyms; see `pseudonym_key`.

    Returns:
        Cases of the split ``test``, each its own pair. What cannot be used is a row of `refused` with its reason:
        unreadable files, findings outside the image or the lungs, or under a pixel of the input.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is none of the three, or nothing in it can be used.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    secret = pseudonym_key(key)
    entries, kept, refused = read_tables(source), [], []
    for entry in entries:
        row = _row(entry, secret)
        try:
            kept.append(_case(entry, row, size))
        except DicomRefused as refusal:
            refused.append({**row, "reason": refusal.reason})
    if not kept:
        raise ValueError(f"none of {len(entries)} images can be used: {refused[0]['reason'] if refused else 'none'}")
    images, masks, lungs, rows = zip(*kept, strict=True)
    several = sum(len(entry.findings) > 1 for entry in entries)
    notes = [f"{len(refused)} of {len(entries)} images were refused: see refused"] if refused else []
    notes += [f"{several} images have several findings: the largest gives their size"] if several else []
    table = pd.DataFrame(rows, columns=list(CASE_COLUMNS))
    unknown = int((table["spacing"] == "unknown").sum())
    notes += [f"{unknown} images have no spacing: only bins in pixels hold for them"] if unknown else []
    left_out = pd.DataFrame(refused, columns=[*CASE_COLUMNS, "reason"])
    return FindingCases(np.stack(images), np.stack(masks), np.stack(lungs), table, left_out, notes)


def _row(entry: Entry, key: bytes) -> dict[str, Any]:
    case_id = f"{entry.source}-{keyed_hash(key, entry.name, 16)}"
    return {
        **dict.fromkeys(CASE_COLUMNS, math.nan),
        "case_id": case_id,
        "pair_id": case_id,
        "patient_key": keyed_hash(key, entry.patient, 16),
        "source": entry.source,
        "split": "test",
        "label": int(bool(entry.findings)),
        "size_bin": "unknown" if entry.findings else "none",
        "size_bin_px": "unknown" if entry.findings else "none",
        "spacing": "unknown",
    }


def _case(entry: Entry, row: dict[str, Any], size: int) -> _Case:
    """Image, mask, lungs and completed row of one entry."""
    image, spacing = _read(entry)
    rows, columns = image.shape
    down, across = spacing or (1.0, 1.0)
    aspect = columns * across / (rows * down)
    high, wide = size / max(aspect, 1), size * min(aspect, 1)
    whole, largest = _outlined(entry.findings, image.shape)
    mask = _covered(whole, aspect, size) if entry.findings else np.zeros((size, size), bool)
    lungs = (
        np.zeros((size, size), bool) if entry.lungs is None else padded(_mask(entry.lungs, image), aspect, size) > 0.5
    )
    if entry.lungs is not None and entry.findings and not (mask & lungs).any():
        raise DicomRefused("a finding outside the lungs")
    row = {**row, "mm_per_px": rows * down / high if spacing else math.nan}
    if spacing:
        row["spacing"] = "exact"
    if entry.findings:
        row |= _sizes(largest * math.sqrt(high / rows * wide / columns), row["mm_per_px"], entry.findings)
    return padded(image, aspect, size).clip(0, 1), mask, lungs, row


def _sizes(pixels: float, mm_per_px: float, findings: Sequence[Finding]) -> dict[str, Any]:
    """Diameters and bins of a finding of so many pixels of the input."""
    if pixels < 1:
        raise DicomRefused("a finding under a pixel of the input")
    told = [finding.diameter_mm for finding in findings if not math.isnan(finding.diameter_mm)]
    mm = max(told) if told else pixels * mm_per_px
    return {
        "diameter_mm": mm,
        "diameter_px": pixels,
        "size_bin": bin_of(mm, MM_BINS, "mm"),
        "size_bin_px": bin_of(pixels, PX_BINS, "px"),
    }


def _outlined(findings: Sequence[Finding], shape: tuple[int, ...]) -> tuple[NDArray[np.float32], float]:
    """The union of the findings in the image's own pixels, and the diameter of the largest in them."""
    whole, largest = np.zeros(shape, np.float32), 0.0
    for finding in findings:
        one = _ellipse(finding.box, shape) if finding.box is not None else _mask(finding.mask, whole)
        area = math.pi / 4 * finding.box[2] * finding.box[3] if finding.box is not None else float(one.sum())
        largest = max(largest, 2 * math.sqrt(area / math.pi))
        np.maximum(whole, one, out=whole)
    return whole, largest


def _ellipse(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The ellipse that fills a box; at least the pixel in its middle."""
    left, top, width, height = box
    if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
        raise DicomRefused("a finding without place or size")
    # Boxes of whole pixels may end at the last one's far edge.
    if left < -1 or top < -1 or left + width > shape[1] + 1 or top + height > shape[0] + 1:
        raise DicomRefused("a finding outside the image")
    y, x = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None] + 0.5
    middle_x, middle_y = left + width / 2, top + height / 2
    inside = ((x - middle_x) / (width / 2)) ** 2 + ((y - middle_y) / (height / 2)) ** 2 <= 1
    inside[min(int(middle_y), shape[0] - 1), min(int(middle_x), shape[1] - 1)] = True
    return inside.astype(np.float32)


def _covered(whole: NDArray[np.float32], aspect: float, size: int) -> NDArray[np.bool_]:
    """Pixels of the input at least half covered, or the one that is covered most."""
    share = padded(whole, aspect, size)
    return share >= min(0.5, share.max())


def _mask(file: Path | None, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A mask file of the image's rows and columns."""
    mask = _opened(file or Path())[0]
    if mask.shape != image.shape:
        raise DicomRefused("the mask has other rows or columns than the radiograph")
    if not mask.any():
        raise DicomRefused("the mask is empty")
    return (mask > mask.max() / 2).astype(np.float32)


def _read(entry: Entry) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    """The image, bone bright, and the mm between its rows and columns, None where unknown."""
    raw = entry.source == "jsrt" and entry.file.suffix.upper() == ".IMG"
    image, spacing = (_jsrt_raw(_there(entry.file)), None) if raw else _opened(entry.file)
    if entry.source == "jsrt" and image.shape != (JSRT_SIDE, JSRT_SIDE):
        raise DicomRefused(f"not {JSRT_SIDE} x {JSRT_SIDE} pixels, to which JSRT's coordinates belong")
    return image, spacing if math.isnan(entry.mm_per_px) else (entry.mm_per_px, entry.mm_per_px)


def _opened(file: Path) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    image, receipt = read_radiograph(_there(file))
    return image, receipt["pixel_spacing_mm"]


def _there(file: Path) -> Path:
    if not file.is_file():
        raise DicomRefused("the file is not there, or not below the folder of the table")
    return file


def _jsrt_raw(file: Path) -> NDArray[np.float32]:
    """JSRT's own format; its values rise with the film's blackening, so they are turned about."""
    stored = np.fromfile(file, dtype=">u2")
    if stored.size != JSRT_SIDE**2 or stored.max() > JSRT_LARGEST:
        raise DicomRefused(f"not {JSRT_SIDE} x {JSRT_SIDE} big-endian values of 12 bits")
    return (1 - stored.reshape(JSRT_SIDE, JSRT_SIDE) / np.float32(JSRT_LARGEST)).astype(np.float32)
