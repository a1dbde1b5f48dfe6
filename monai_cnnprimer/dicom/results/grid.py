# SPDX-License-Identifier: Apache-2.0
"""A map at the network's input, put back on the pixels of its radiograph, as displayed and as stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.ndimage import affine_transform, binary_erosion

from monai_cnnprimer.dicom.attributes import texts
from monai_cnnprimer.dicom.geometry import orientation
from monai_cnnprimer.dicom.masks import what_moves

_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
_EDGE = 2  # pixels of the network's input: nearer to its border, resampling bends what it moves


def on_radiograph(
    heat: NDArray[np.floating],
    preprocessing: Compose,
    shape: Sequence[int],
    spacing_mm: tuple[float, float] | None,
) -> NDArray[np.float32]:
    """Undoes the geometry of the preprocessing (resizing, padding, cropping, flips) for a map at its output.

    Which geometry that is, is measured: images of the row and the column number go through the preprocessing. So it
    holds for any steps that move pixels along straight lines.

    Args:
        heat: `(H, W)` at the network's input.
        preprocessing: as the bundle has it, beginning with the step that loads.
        shape: (rows, columns) of the radiograph, upright.
        spacing_mm: (row, column) of its pixels; None where it is not known.

    Returns:
        `(rows, columns)`, linear between the pixels of `heat`; 0 where the network did not look.

    Raises:
        ValueError: the map is not of the network's input; the preprocessing bends the image.
    """
    matrix, offset = _to_network(preprocessing, shape, spacing_mm, heat.shape)
    heat = np.asarray(heat, dtype=np.float32)
    placed = affine_transform(heat, matrix, offset, tuple(shape), order=1, mode="nearest")
    for axis, size in enumerate(heat.shape):
        seen = np.add.outer(matrix[axis, 0] * np.arange(shape[0]), matrix[axis, 1] * np.arange(shape[1])) + offset[axis]
        placed[(seen < -0.5) | (seen > size - 0.5)] = 0
    return placed


def without_turning(image: NDArray[Any], source: Dataset) -> NDArray[Any]:
    """Turns an upright image back to how its source is stored: `(Rows, Columns)`.

    Example:
        >>> header = Dataset()
        >>> header.PatientOrientation = ["R", "F"]
        >>> without_turning(np.array([[1, 2]]), header).tolist()
        [[2, 1]]
    """
    turn = orientation(source)
    image = image[:: -1 if turn.flip_rows else 1, :: -1 if turn.flip_columns else 1]
    return np.ascontiguousarray(image.T if turn.transpose else image)


def upright_directions(source: Dataset) -> list[str]:
    """Where rows and columns run in the upright image, as PatientOrientation says it; empty where it is not known.

    Example:
        >>> header = Dataset()
        >>> header.PatientOrientation = ["H", "R"]
        >>> upright_directions(header)
        ['L', 'F']
    """
    turn = orientation(source)
    if turn.label == "unknown":
        return []
    directions = [direction[0] for direction in texts(source, "PatientOrientation")]
    across, down = directions[::-1] if turn.transpose else directions
    return [_OPPOSITE[across] if turn.flip_columns else across, _OPPOSITE[down] if turn.flip_rows else down]


def _to_network(
    preprocessing: Compose, shape: Sequence[int], spacing_mm: tuple[float, float] | None, size: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix (2, 2) and offset (2,) from a pixel of the radiograph to one of the network's input, by least squares."""
    moves = what_moves(preprocessing)
    meta = {"pixel_spacing_mm": spacing_mm, "original_channel_dim": float("nan")}

    def moved(image: NDArray[np.floating]) -> NDArray[np.float64]:
        steps = moves({"image": MetaTensor(torch.from_numpy(image.astype(np.float32)), meta=dict(meta))})
        return steps["image"].as_tensor()[0].double().numpy()

    inside = moved(np.ones(shape)) > 1 - 1e-4
    if inside.shape != tuple(size):
        raise ValueError(f"the map has {tuple(size)} pixels, the network's input {inside.shape}")
    inner = binary_erosion(inside, iterations=_EDGE)
    if min(inner.any(axis=0).sum(), inner.any(axis=1).sum()) > 1:
        inside = inner
    rows, columns = (moved(axis)[inside] for axis in np.indices(shape, dtype=np.float32))
    known = np.column_stack([rows, columns, np.ones(len(rows))])
    pixels = np.argwhere(inside)
    fitted = np.linalg.lstsq(known, pixels, rcond=None)[0].T
    if np.abs(known @ fitted.T - pixels).max() > 0.5:
        raise ValueError("the preprocessing bends the image: a map cannot be put back by a straight line")
    return fitted[:, :2], fitted[:, 2]
