# SPDX-License-Identifier: Apache-2.0
"""Where a map crosses a level, as lines in the coordinates of a presentation state."""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

# A map is smooth: contours of one that is thinned to 512 samples a side are as good, and short enough for GraphicData,
# which in explicit transfer syntaxes holds at most 65,534 bytes (PS3.5, 7.1.2).
_SAMPLES = 512
_MOST_POINTS = 8000


def outlines(share: NDArray[np.floating], level: float) -> list[NDArray[np.float64]]:
    """Closed lines around the parts of a map that reach a level.

    Args:
        share: `(Rows, Columns)` on the source's stored pixels.
        level: the value at the line.

    Returns:
        Lines `(n, 2)` of (column, row), the upper left corner of the image at (0, 0), the centre of its first pixel at
        (0.5, 0.5) (PS3.3 C.10.5.1.2); the longest first.

    Example:
        >>> line, = outlines(np.pad(np.ones((1, 1)), 2), 0.5)
        >>> sorted(set(map(tuple, line.tolist())))
        [(2.0, 2.5), (2.5, 2.0), (2.5, 3.0), (3.0, 2.5)]
    """
    rows, columns = (_samples(side) for side in share.shape)
    # A border below the level closes the lines at the edge of the image.
    framed = np.pad(share[np.ix_(rows, columns)].astype(np.float64), 1, constant_values=min(0.0, 2 * level - 1))
    y, x = (_framed(places, side) for places, side in zip((rows, columns), share.shape, strict=True))
    lines = contour_generator(x, y, framed).lines(level)
    thinned = [np.asarray(line)[_kept(len(line))] for line in lines]
    return sorted(thinned, key=lambda line: (-len(line), line.tolist()))


def _samples(side: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, side - 1, min(side, _SAMPLES)).round().astype(np.int64))


def _framed(places: NDArray[np.int64], side: int) -> NDArray[np.float64]:
    """Coordinates of samples, and of the border: at the edge of the image, not beyond it."""
    return np.concatenate([[0.0], places + 0.5, [float(side)]])


def _kept(points: int) -> NDArray[np.int64]:
    """All points of a line, or every so many of a long one, its end with its beginning."""
    step = -(-points // _MOST_POINTS)
    return np.append(np.arange(0, points - 1, step), points - 1)
