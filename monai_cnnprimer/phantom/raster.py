# SPDX-License-Identifier: Apache-2.0
"""Drawing on a millimetre grid: coordinates, smooth shapes, deposits of volume, random clouds."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
F = np.float32


def stream(seed: int, *component: object) -> np.random.Generator:
    """The random stream of one component: changing one component never changes another.

    Example:
        >>> bool(stream(1, "ribs").random() == stream(1, "ribs").random())
        True
        >>> bool(stream(1, "ribs").random() == stream(1, "noise").random())
        False
    """
    name = "/".join(str(part) for part in component)
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


@dataclass(frozen=True)
class Grid:
    """Pixels over the patient: x in mm from the midline to the image's right, y in mm down from the lung apices."""

    size: int
    width_mm: float
    shift_x: float = 0.0
    shift_y: float = 0.0
    lean: float = 0.0

    TOP_MM = 62.0
    PIVOT_MM = 120.0

    @property
    def spacing(self) -> float:
        """Size of a pixel in mm, in the patient."""
        return self.width_mm / self.size

    def resized(self, size: int) -> Grid:
        """The same field of view with other pixels."""
        return Grid(size, self.width_mm, self.shift_x, self.shift_y, self.lean)

    @cached_property
    def rows(self) -> Array:
        """``(size, 1)`` y in mm of each row."""
        y = (np.arange(self.size) + 0.5) * self.spacing - self.TOP_MM + self.shift_y
        return y.astype(F)[:, None]

    @cached_property
    def columns(self) -> Array:
        """``(size, size)`` x in mm of each pixel; a leaning patient shifts row by row."""
        x = ((np.arange(self.size) + 0.5) * self.spacing - self.width_mm / 2 + self.shift_x).astype(F)
        return x[None, :] + F(self.lean) * (self.rows - F(self.PIVOT_MM))

    def pixels(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
        """Column and row (0 = centre of the first pixel) of points in mm."""
        column = (x - self.lean * (y - self.PIVOT_MM) + self.width_mm / 2 - self.shift_x) / self.spacing - 0.5
        return column, (y + self.TOP_MM - self.shift_y) / self.spacing - 0.5

    def window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        """Rows and columns that hold a box given in mm, clipped to the image."""
        corners_x, corners_y = np.array([x0, x1, x0, x1]), np.array([y0, y0, y1, y1])
        column, row = self.pixels(corners_x, corners_y)

        def span(values: NDArray) -> slice:
            low, high = math.floor(values.min()), math.ceil(values.max()) + 1
            return slice(min(max(low, 0), self.size), min(max(high, 0), self.size))

        return span(row), span(column)


def step(distance: NDArray, width: float) -> Array:
    """Smooth step from 0 to 1 over about 4 `width`, 0.5 at 0."""
    return F(0.5) * (F(1) + np.tanh(distance * F(0.5 / width)))


def cap(squared: NDArray) -> Array:
    """Height of the unit sphere over squared radius: sqrt(1 - r^2), 0 outside."""
    return np.sqrt(np.maximum(F(1) - squared, F(0)))


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur, `sigma` in pixels."""
    return gaussian_filter(image, sigma, mode="nearest", truncate=3.0) if sigma > 0.15 else image


def resize(image: Array, size: int) -> Array:
    """Bilinear resampling of a square image."""
    have = image.shape[0]
    if have == size:
        return image
    centre = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
    low = np.minimum(centre.astype(np.intp), have - 2)
    part = (centre - low).astype(F)
    rows = image[low] * (1 - part)[:, None] + image[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def shrink(image: Array, size: int) -> Array:
    """Mean over blocks where the size divides, else bilinear: a cheap small copy."""
    factor = image.shape[0] // size
    if factor <= 1 or image.shape[0] % size:
        return resize(image, size)
    return image.reshape(size, factor, size, factor).mean(axis=(1, 3))


def cloud(rng: np.random.Generator, grid: Grid, slope: float, coarse_mm: float, fine_mm: float) -> Array:
    """Random texture with a power-law spectrum, mean 0, standard deviation 1, the same at every image size.

    Args:
        rng: stream of this texture.
        grid: where it is drawn.
        slope: exponent of the power spectrum; 3 looks like tissue.
        coarse_mm: no structure much larger than this.
        fine_mm: no structure smaller than this.
    """
    size = 128 if fine_mm >= 5 else 256 if fine_mm >= 2.5 else 512
    pixel = grid.width_mm / size
    squared = np.fft.fftfreq(size, pixel)[:, None] ** 2 + np.fft.rfftfreq(size, pixel)[None] ** 2
    shape = (squared + coarse_mm**-2.0) ** (-slope / 4) * np.exp(-squared * (fine_mm / 2) ** 2)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=F)) * shape
    field = np.fft.irfft2(spectrum, s=(size, size)).astype(F)
    return resize((field - field.mean()) / field.std(), grid.size)


def deposit(grid: Grid, x: NDArray, y: NDArray, volume: NDArray) -> Array:
    """Spread volumes (mm^3) at points (mm) over the pixels: thickness along the beam in mm."""
    column, row = grid.pixels(x.ravel(), y.ravel())
    inside = (column > 0) & (column < grid.size - 1) & (row > 0) & (row < grid.size - 1)
    column, row, volume = column[inside], row[inside], volume.ravel()[inside]
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_part, low_part = column - left, row - top
    first = top * grid.size + left
    total = np.zeros(grid.size**2)
    for down, row_part in ((0, 1 - low_part), (1, low_part)):
        for across, column_part in ((0, 1 - right_part), (1, right_part)):
            total += np.bincount(first + down * grid.size + across, volume * row_part * column_part, grid.size**2)
    return (total / grid.spacing**2).reshape(grid.size, grid.size).astype(F)


def segment_distance(
    grid: Grid, start: tuple[float, float], end: tuple[float, float], reach: float
) -> tuple[tuple[slice, slice], Array, Array]:
    """Distance (mm) to a segment and position along it (0 to 1), in the window within `reach` of it."""
    (x0, y0), (x1, y1) = start, end
    box = (min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach)
    where = grid.window(*box)
    x, y = grid.columns[where], grid.rows[where[0]]
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = np.clip(((x - F(x0)) * F(x1 - x0) + (y - F(y0)) * F(y1 - y0)) / F(length), 0, 1)
    across = np.hypot(x - F(x0) - along * F(x1 - x0), y - F(y0) - along * F(y1 - y0))
    return where, across, along


def tube(
    grid: Grid, start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float]
) -> tuple[tuple[slice, slice], Array]:
    """Chord in mm through a round-ended tube seen from the side, in the window that holds it."""
    where, across, along = segment_distance(grid, start, end, max(radii) + 1)
    radius = F(radii[0]) + F(radii[1] - radii[0]) * along
    return where, 2 * radius * cap((across / radius) ** 2)


def ellipsoid(grid: Grid, centre: tuple[float, float], radii: tuple[float, float, float], turn: float = 0.0) -> Array:
    """Chord in mm through an ellipsoid of half-axes (x, y, depth), turned by `turn` radians in the image plane."""
    out = np.zeros((grid.size, grid.size), F)
    reach = max(radii[:2])
    where = grid.window(centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
    x, y = grid.columns[where] - F(centre[0]), grid.rows[where[0]] - F(centre[1])
    u, v = x * F(math.cos(turn)) + y * F(math.sin(turn)), y * F(math.cos(turn)) - x * F(math.sin(turn))
    out[where] = 2 * F(radii[2]) * cap((u / F(radii[0])) ** 2 + (v / F(radii[1])) ** 2)
    return out
