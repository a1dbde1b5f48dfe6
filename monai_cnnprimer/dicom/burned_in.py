# SPDX-License-Identifier: Apache-2.0
"""Text that is part of the pixels: rows of characters drawn by a machine, found without reading them.

BurnedInAnnotation says what whoever wrote the file knew. This looks at the picture: a row of text is several small
strokes side by side, all as high, on one line, of one brightness, as no anatomy is. A lead letter, a collimator's edge
or a catheter is no row. docs/dicom.md has how much of drawn text is found by its height, and how often real images
without any raise an alarm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEIGHBOURHOOD = 31  # px; a stroke is much thinner, and a line of text much longer
CONTRASTS = (0.15, 0.25, 0.4)  # of the display range, against the mean of the neighbourhood
HEIGHTS = (6, 120)  # px
FEWEST = 4  # characters of a row: a side marker with a technologist's letters has three
MOST_STROKES = 4000  # more are noise; the next contrast is tried
ALIKE = 0.06  # of the display range, by how much characters of a row differ in brightness
ANYWHERE = np.ones((3, 3), bool)


class TextRow(NamedTuple):
    """A row of characters: the box around it, in pixels of the image, and how many were seen."""

    top: int
    bottom: int
    left: int
    right: int
    characters: int


def text_rows(image: NDArray[np.float32]) -> list[TextRow]:
    """Finds rows of machine-drawn characters, lighter or darker than what is around them.

    Args:
        image: ``(rows, columns)`` in [0, 1], as `read_radiograph` gives it; in full resolution, since text is small.

    Returns:
        The rows, from the top; none where there is no text, or only text smaller than 6 px.

    Example:
        >>> from PIL import Image, ImageDraw
        >>> page = Image.new("L", (200, 60))
        >>> ImageDraw.Draw(page).text((10, 20), "DOE 1937-05-19", fill=255, font_size=16)
        >>> [row.characters > 8 for row in text_rows(np.asarray(page, np.float32) / 255)]
        [True]
    """
    image = np.asarray(image, np.float32)
    excess = image - ndimage.uniform_filter(image, NEIGHBOURHOOD, mode="nearest")
    rows = [row for sign in (1, -1) for row in _rows(np.float32(sign) * excess, np.float32(sign) * image)]
    return sorted(rows)


def _rows(excess: NDArray[np.float32], image: NDArray[np.float32]) -> list[TextRow]:
    for contrast in CONTRASTS:
        labels, count = ndimage.label(excess > contrast, ANYWHERE)
        everything = _boxes(labels)
        numbers = _characters(everything, np.bincount(labels.ravel(), minlength=count + 1)[1:])
        if len(numbers) <= MOST_STROKES:
            break
    else:
        return []
    if len(numbers) < FEWEST:
        return []
    boxes, peaks = everything[numbers - 1], np.asarray(ndimage.maximum(image, labels, numbers))
    row_of = _row_of(boxes, peaks)
    in_row = np.bincount(row_of)[row_of] >= FEWEST
    rows = [_row(boxes[row_of == row]) for row in np.unique(row_of[in_row])]
    others = np.delete(everything, numbers[in_row] - 1, axis=0)
    return [row for row in rows if not _in_clutter(row, others)]


def _row(boxes: NDArray[np.int64]) -> TextRow:
    top, bottom, left, right = boxes.T
    return TextRow(int(top.min()), int(bottom.max()), int(left.min()), int(right.max()), len(boxes))


def _in_clutter(row: TextRow, others: NDArray[np.int64]) -> bool:
    """Whether many spots that make no row lie around: in noise some stand in a line by chance."""
    margin = row.bottom - row.top
    y, x = others[:, :2].mean(axis=1), others[:, 2:].mean(axis=1)
    beside = (y > row.top - margin) & (y < row.bottom + margin) & (x > row.left - margin) & (x < row.right + margin)
    return bool(beside.sum() >= 3 * row.characters)


def _boxes(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The box (top, bottom, left, right) of each component."""
    found = ndimage.find_objects(labels)
    return np.array([(y.start, y.stop, x.start, x.stop) for y, x in found], np.int64).reshape(-1, 4)


def _characters(boxes: NDArray[np.int64], areas: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the components that have the size and filling of a character."""
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    filled = areas / np.maximum(heights * widths, 1)
    size = (heights >= HEIGHTS[0]) & (heights <= HEIGHTS[1]) & (widths <= 1.6 * heights)
    kept = size & (filled > 0.15) & ((filled < 0.85) | (widths < 0.4 * heights))
    return np.flatnonzero(kept) + 1


def _row_of(boxes: NDArray[np.int64], peaks: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Numbers the rows that the boxes make: neighbours on one line, as high and as bright as each other."""
    top, bottom, left, right = boxes.T
    height = bottom - top
    pairs_i, pairs_j = _pairs(left, right, height)
    higher = np.maximum(height[pairs_i], height[pairs_j])
    slack = np.maximum(1, 0.12 * higher)
    gap = left[pairs_j] - right[pairs_i]
    joined = (
        (abs(top[pairs_i] - top[pairs_j]) <= slack)
        & (abs(bottom[pairs_i] - bottom[pairs_j]) <= slack)
        & (gap >= -0.1 * higher)
        & (gap <= 1.6 * higher)
        & (abs(peaks[pairs_i] - peaks[pairs_j]) <= ALIKE)
    )
    graph = coo_matrix((np.ones(joined.sum()), (pairs_i[joined], pairs_j[joined])), (len(boxes), len(boxes)))
    return np.asarray(connected_components(graph, directed=False)[1])


def _pairs(
    left: NDArray[np.int64], right: NDArray[np.int64], height: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every box with each that begins to its right within twice its height."""
    order = np.argsort(left, kind="stable")
    first = np.arange(len(left)) + 1
    last = np.searchsorted(left[order], (right + 2 * height)[order], side="right")
    counts = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(left)), counts)
    j = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return order[i], order[j]
