# SPDX-License-Identifier: Apache-2.0
"""Maps as files: raw as arrays with their geometry, and over the radiograph as NIfTI for any viewer."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.receptive_field import ReceptiveField

_DESCRIPTION_LENGTH = 79  # a NIfTI header has 80 bytes for it, the last of them zero


def nifti(image: NDArray[np.floating], spacing_mm: tuple[float, float] | None, description: str) -> bytes:
    """An upright radiograph, or a map over one, as a coronal slice: columns to the patient's left, rows to the feet.

    That is how a frontal view lies in the patient, so 3D Slicer and ITK-SNAP show it upright in their coronal view and
    lay several of one case over each other. Where the patient was is not known: the first pixel is the origin. (MONAI's
    `SaveImage` would write neither unit nor description.)

    Args:
        image: `(H, W)`; stored as float32.
        spacing_mm: (row, column) of a pixel; None where it is not known: then 1, without a unit.
        description: cut at 79 characters.

    Returns:
        A compressed NIfTI-1 file of shape (W, 1, H), the same bytes for the same arguments.
    """
    row, column = spacing_mm or (1.0, 1.0)
    # The world's axes run to the patient's right, front and head.
    affine = np.array([[-column, 0, 0, 0], [0, 1, 0, 0], [0, 0, -row, 0], [0, 0, 0, 1]])
    data = np.ascontiguousarray(image.T[:, None, :], dtype=np.float32)
    file = nib.Nifti1Image(data, affine)
    file.header.set_xyzt_units("unknown" if spacing_mm is None else "mm")
    file.header["descrip"] = description.encode("ascii", "replace")[:_DESCRIPTION_LENGTH]
    file.set_sform(affine, code="aligned")
    file.set_qform(affine, code="aligned")
    return gzip.compress(file.to_bytes(), mtime=0)


def npz(case: ExplainedCase, fields: Mapping[str, ReceptiveField | None]) -> bytes:
    """Raw maps `(h, w)` by layer, with `LAYER.receptive_field` (size, jump, start) and `LAYER.mm_per_cell` if known."""
    arrays: dict[str, Any] = {}
    for layer, field in fields.items():
        arrays[layer] = case.maps[layer][0].numpy()
        if field is not None:
            arrays[f"{layer}.receptive_field"] = np.array(field, dtype=np.float64)
        if (mm := mm_per_cell(case, field)) is not None:
            arrays[f"{layer}.mm_per_cell"] = np.array(mm)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def mm_per_cell(case: ExplainedCase, field: ReceptiveField | None) -> tuple[float, float] | None:
    """(row, column) on the patient from one unit of a layer to the next; None where it is not known."""
    if field is None or case.network_spacing_mm is None:
        return None
    row, column = case.network_spacing_mm
    return field.jump * row, field.jump * column


def file_name(text: str) -> str:
    """A name as part of a file's; one with other signs than letters, digits, `.`, `_`, `-` gets a hash to stay unique.

    Example:
        >>> file_name("0123456789abcdef"), file_name("a/b")
        ('0123456789abcdef', 'a_b-c14cddc0')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:100]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
