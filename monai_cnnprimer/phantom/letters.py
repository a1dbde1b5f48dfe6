# SPDX-License-Identifier: Apache-2.0
"""Lead letters: strokes of the few characters that side markers use."""

from __future__ import annotations

import numpy as np

from monai_cnnprimer.phantom.raster import Array, F, Grid, segment_distance

BOWL = ((0.0, 0.0), (0.34, 0.0), (0.52, 0.07), (0.58, 0.25), (0.52, 0.43), (0.34, 0.50), (0.0, 0.50))
# Each character: polylines in units of its height, y downwards.
STROKES = {
    "A": (((0.0, 1.0), (0.31, 0.0), (0.62, 1.0)), ((0.12, 0.65), (0.50, 0.65))),
    "L": (((0.0, 0.0), (0.0, 1.0), (0.55, 1.0)),),
    "P": (((0.0, 1.0), (0.0, 0.0)), BOWL),
    "R": (((0.0, 1.0), (0.0, 0.0)), BOWL, ((0.26, 0.50), (0.62, 1.0))),
}


def draw_marker(grid: Grid, text: str, rng: np.random.Generator) -> Array:
    """Ink in [0, 1] ``(size, size)`` of a marker in the upper corner of the side it names (L: image's right).

    Raises:
        ValueError: a letter that no marker has.
    """
    unknown = sorted(set(text) - set(STROKES))
    if unknown:
        raise ValueError(f"marker {text!r}: choose letters of {' '.join(STROKES)}")
    upright = Grid(grid.size, grid.width_mm)
    height = rng.uniform(14, 18)
    width = 0.9 * height * len(text)
    edge = grid.width_mm * 0.05 + rng.uniform(0, 12)
    left = grid.width_mm / 2 - edge - width if text[0] == "L" else edge - grid.width_mm / 2
    top = grid.width_mm * 0.05 + rng.uniform(0, 16) - Grid.TOP_MM
    ink = np.zeros((grid.size, grid.size), F)
    for place, letter in enumerate(text):
        for line in STROKES[letter]:
            points = [(left + height * (x + 0.9 * place), top + height * y) for x, y in line]
            for start, end in zip(points, points[1:], strict=False):
                where, across, _ = segment_distance(upright, start, end, 4.0)
                stroke = np.clip((F(1.35) - across) / F(grid.spacing) + F(0.5), 0, 1)
                ink[where] = np.maximum(ink[where], stroke)
    return ink
