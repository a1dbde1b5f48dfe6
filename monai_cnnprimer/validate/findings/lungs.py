# SPDX-License-Identifier: Apache-2.0
"""Lungs in a frontal radiograph without a mask: dark regions inside the body, and whether they can be lungs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_WORKING = 128
"""Pixels in which the lungs are looked for; the lengths below are of this size."""
_SMOOTH, _AROUND, _OPEN, _CLOSE, _MARGIN = 1.0, 20.0, 2, 5, 14
_SHARE = (0.03, 0.22)
_LOPSIDED, _SHORTEST, _HOLLOW = 2.5, 0.28, 0.38


def find_lungs(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The lungs of a frontal radiograph, where they are lung for certain; check with `fault_of_lungs`.

    The largest region on each side of the midline that is dark (threshold after Otsu, IEEE Trans SMC 1979; 9:62-66),
    darker than its wider surroundings, and not connected with the border; its gaps closed. Nothing is trained, so
    no test image was seen by anything fitted. Apices behind the clavicles, hila and what lies behind the heart may be
    missing: nodules need a place inside the lung, not its whole outline.

    Args:
        image: ``(S, S)``, bone bright.

    Returns:
        ``(S, S)`` bool; empty where nothing is dark enough.
    """
    small = _resized(image, _WORKING)
    smooth = ndimage.gaussian_filter(small, _SMOOTH)
    inner = smooth[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    dark = (smooth < _otsu(inner)) & (smooth < ndimage.gaussian_filter(smooth, _AROUND))
    dark = ndimage.binary_opening(dark, _disc(_OPEN))
    labels, _ = ndimage.label(dark)
    # Not the lower border: lungs with low diaphragms nearly touch it.
    outside = np.concatenate([labels[:2].ravel(), labels[:, :2].ravel(), labels[:, -2:].ravel()])
    dark &= ~np.isin(labels, outside[outside > 0])
    middle = _WORKING // 2
    lungs = np.hstack([_largest(dark[:, :middle]), _largest(dark[:, middle:])])
    lungs = ndimage.binary_erosion(lungs, _disc(1))
    return _resized(lungs.astype(np.float32), image.shape[0]) > 0.5


def fault_of_lungs(lungs: NDArray[np.bool_]) -> str:
    """Why a mask ``(S, S)`` cannot be two lungs seen from the front; empty when it can.

    Example:
        >>> fault_of_lungs(np.zeros((64, 64), bool))
        'a lung is too small'
    """
    size = lungs.shape[0]
    sides = [lungs[:, : size // 2], lungs[:, size // 2 :]]
    shares = [side.sum() / lungs.size for side in sides]
    if min(shares) < _SHARE[0]:
        return "a lung is too small"
    if max(shares) > _SHARE[1]:
        return "a lung is too large"
    if max(shares) > _LOPSIDED * min(shares):
        return "one lung is much larger than the other"
    boxes = [ndimage.find_objects(side.astype(int))[0] for side in sides]
    if min(rows.stop - rows.start for rows, _ in boxes) < _SHORTEST * size:
        return "a lung is too short"
    if min(side[box].mean() for side, box in zip(sides, boxes, strict=True)) < _HOLLOW:
        return "a lung is ragged"
    return ""


def _largest(dark: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected region, without gaps and holes."""
    labels, count = ndimage.label(dark)
    if not count:
        return dark
    largest = np.pad(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]), _CLOSE)
    closed = ndimage.binary_closing(largest, _disc(_CLOSE))[_CLOSE:-_CLOSE, _CLOSE:-_CLOSE]
    return ndimage.binary_fill_holes(closed)


def _resized(image: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    return ndimage.zoom(image, size / image.shape[0], order=1, mode="nearest", grid_mode=True)


def _otsu(values: NDArray[np.floating]) -> float:
    """The threshold between two classes of largest variance between them."""
    counts, edges = np.histogram(values, 128)
    middles = (edges[1:] + edges[:-1]) / 2
    below, moment = counts.cumsum(), (counts * middles).cumsum()
    above = below[-1] - below
    apart = moment / np.maximum(below, 1) - (moment[-1] - moment) / np.maximum(above, 1)
    return float(middles[np.argmax(below * above * apart**2)])


def _disc(radius: int) -> NDArray[np.bool_]:
    at = np.arange(-radius, radius + 1)
    return np.hypot(at[:, None], at[None]) <= radius + 0.3
