# SPDX-License-Identifier: Apache-2.0
"""Filling a hole with what surrounds it: the smoothest surface between its borders, and grain as around it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve

from monai_cnnprimer.explain.shortcuts.change import Array, Mask

_MARGIN = 12  # pixels around the hole from which the grain is taken


def inpaint(image: Array, hole: Mask, rng: np.random.Generator) -> Array:
    """The image with a hole filled: Laplace's equation from the hole's border, plus noise of the surrounding's grain.

    Args:
        image: ``(H, W)``.
        hole: ``(H, W)``; neither empty nor the whole image.
        rng: of the grain.

    Raises:
        ValueError: the hole is empty, or there is nothing around it.

    Example:
        >>> slope = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1))
        >>> hole = np.zeros((40, 40), dtype=bool)
        >>> hole[16:24, 16:24] = True
        >>> bool(np.abs(inpaint(np.where(hole, 1, slope), hole, np.random.default_rng(0)) - slope).max() < 0.02)
        True
    """
    if not hole.any() or hole.all():
        raise ValueError("a hole that is empty, or the whole image, cannot be filled from what surrounds it")
    box = _box(hole)
    part, inside = image[box], hole[box]
    surface = _harmonic(part, inside)
    around = binary_dilation(inside, iterations=3) & ~inside
    detail = (surface - gaussian_filter(surface, 1.5))[around]
    grain = gaussian_filter(rng.standard_normal(part.shape), 0.6)
    noise = grain / grain.std() * float(np.median(np.abs(detail))) * 1.48  # of normal noise, its deviation
    filled = image.copy()
    filled[box] = np.where(inside, np.clip(surface + noise, 0, 1), part)
    return filled


def _box(hole: Mask) -> tuple[slice, slice]:
    rows, columns = find_objects(hole.astype(np.uint8))[0]
    return (
        slice(max(rows.start - _MARGIN, 0), rows.stop + _MARGIN),
        slice(max(columns.start - _MARGIN, 0), columns.stop + _MARGIN),
    )


def _harmonic(part: Array, inside: Mask) -> Array:
    """Each pixel of the hole the mean of its neighbours; at the image's edge of those that it has."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    here = number[inside]
    known, neighbours = np.zeros(here.size), np.zeros(here.size)
    rows, columns = [], []
    for axis in (0, 1):
        for step in (1, -1):
            there = np.roll(number, step, axis)
            values, valid = np.roll(part, step, axis), np.ones(inside.shape, dtype=bool)
            edge = 0 if step == 1 else -1
            valid[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = False
            valid, there, values = valid[inside], there[inside], values[inside]
            neighbours += valid
            unknown = valid & (there >= 0)
            known += np.where(valid & (there < 0), values, 0)
            rows.append(here[unknown])
            columns.append(there[unknown])
    row, column = np.concatenate([here, *rows]), np.concatenate([here, *columns])
    weight = np.concatenate([neighbours, -np.ones(row.size - here.size)])
    solved = part.copy()
    solved[inside] = spsolve(coo_array((weight, (row, column)), shape=(here.size,) * 2).tocsc(), known)
    return solved
