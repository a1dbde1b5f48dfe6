# SPDX-License-Identifier: Apache-2.0
"""An effective receptive field in numbers: how wide, where, of which shape, against the theoretical one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from monai_cnnprimer.explain.receptive_field import ReceptiveField

SHARES = (0.2, 0.3, 0.5, 0.95, 0.99)
_Pair = tuple[float, float]


class GaussianFit(NamedTuple):
    """The Gaussian nearest to a map by least squares, its axes along rows and columns.

    `sigma` and `centre` are (row, column) in pixels, `height` is in units of the map. `error` is the root of the summed
    squared differences by the root of the map's summed squares: 0 for a Gaussian, 1 for what has nothing of one. Pixel
    by pixel it is large where images and seeds are few, since n independent draws leave a square with a scatter of
    sqrt(2 / n) of its mean.
    """

    sigma: _Pair
    centre: _Pair
    height: float
    error: float


@dataclass(frozen=True, eq=False)
class EffectiveReceptiveField:
    """What one unit of a layer looks at; lengths in pixels of the network's input.

    Attributes:
        layer: name.
        map: mean squared gradient `(H, W)`, float32, not scaled.
        theoretical: geometry of the layer.
        unit: (row, column) in the layer's grid.
        images: how many were averaged.
        seeds: draws of signs for each image.
        spacing_mm: (row, column) on the patient of one pixel; None where it is not known.
        power: of the gradient in `map`. Widths depend on it: for a Gaussian, sigma of the absolute gradient is sqrt(2)
            times that of the squared one.
    """

    layer: str
    map: Tensor
    theoretical: ReceptiveField
    unit: tuple[int, int]
    images: int
    seeds: int
    spacing_mm: _Pair | None = None
    power: int = 2

    def __post_init__(self) -> None:
        mass = float(self.map.double().sum())
        if not mass > 0 or not math.isfinite(mass):
            raise ValueError(f"layer {self.layer!r}: the squared gradient sums to {mass}; are the images black?")
        if self.spacing_mm is not None and not min(self.spacing_mm) > 0:
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}; None where it is not known")

    @cached_property
    def mass(self) -> NDArray[np.float64]:
        """The map scaled to a sum of 1, `(H, W)`."""
        values = self.map.double().numpy()
        return values / values.sum()

    @cached_property
    def centroid(self) -> _Pair:
        """Mean (row, column) of the mass."""
        row, column = ((np.arange(len(profile)) * profile).sum() for profile in self.profiles)
        return float(row), float(column)

    @property
    def centre(self) -> _Pair:
        """(Row, column) where the theoretical field has its centre, `start + unit * jump`."""
        row, column = (self.theoretical.start + place * self.theoretical.jump for place in self.unit)
        return row, column

    @property
    def offset(self) -> _Pair:
        """From the theoretical centre to the centroid, (row, column)."""
        return self.centroid[0] - self.centre[0], self.centroid[1] - self.centre[1]

    @cached_property
    def profiles(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mass of each row `(H,)` and of each column `(W,)`."""
        return self.mass.sum(axis=1), self.mass.sum(axis=0)

    @cached_property
    def sigma_axes(self) -> _Pair:
        """Standard deviation of the mass along (row, column)."""
        row, column = (
            math.sqrt(((np.arange(len(profile)) - mean) ** 2 * profile).sum())
            for profile, mean in zip(self.profiles, self.centroid, strict=True)
        )
        return row, column

    @property
    def sigma(self) -> float:
        """Geometric mean of `sigma_axes`."""
        return math.sqrt(self.sigma_axes[0] * self.sigma_axes[1])

    @cached_property
    def areas(self) -> dict[float, int]:
        """Share of the mass (0.2, 0.3, 0.5, 0.95, 0.99) to the fewest pixels that hold it."""
        held = np.sort(self.mass, axis=None)[::-1].cumsum()
        return {share: int(np.searchsorted(held, share * held[-1])) + 1 for share in SHARES}

    @property
    def ratio(self) -> float:
        """Side of a square as large as the 95 % area, by the theoretical size."""
        return math.sqrt(self.areas[0.95]) / self.theoretical.size

    @property
    def clipped(self) -> bool:
        """Whether the theoretical window reaches over an edge of the image, so that the map is a part of the field."""
        reach = (self.theoretical.size - 1) / 2
        return any(
            centre - reach < 0 or centre + reach > side - 1
            for centre, side in zip(self.centre, self.map.shape, strict=True)
        )

    @cached_property
    def gaussian(self) -> GaussianFit:
        """The Gaussian fitted to `map`, pixel by pixel."""
        return _fitted(self.map.double().numpy(), self.centroid, self.sigma_axes)

    @cached_property
    def profile_gaussian(self) -> GaussianFit:
        """The Gaussian fitted to the product of `profiles`, in which strides and the scatter of draws average out."""
        return _fitted(np.outer(*self.profiles), self.centroid, self.sigma_axes)

    def in_mm(self, length: float) -> float | None:
        """A length in pixels on the patient, by the geometric mean of both spacings; None where they are not known.

        Exact for `sigma` and for the root of an area.
        """
        return None if self.spacing_mm is None else length * math.sqrt(self.spacing_mm[0] * self.spacing_mm[1])


def _fitted(values: NDArray[np.float64], centre: _Pair, sigma: _Pair) -> GaussianFit:
    """The Gaussian nearest to values `(H, W)`, sought from centre and sigma."""
    norm = np.linalg.norm(values)
    start = [*centre, *(math.log(max(width, 0.3)) for width in sigma)]
    # With the best height the error is the sine of the angle between both, so only that is sought.
    fit = minimize(lambda bell: -_cosine(values / norm, bell), start, method="Nelder-Mead")
    row, column = _bell(values.shape, fit.x)
    widths = np.exp(fit.x[2:])
    return GaussianFit(
        sigma=(float(widths[0]), float(widths[1])),
        centre=(float(fit.x[0]), float(fit.x[1])),
        height=float(row @ values @ column / ((row @ row) * (column @ column))),
        error=math.sqrt(max(0.0, 1 - fit.fun**2)),
    )


def _bell(shape: tuple[int, ...], bell: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The factors along rows and columns of a Gaussian of height 1 with centre and log sigma of (row, column)."""
    row, column = (
        np.exp(-0.5 * ((np.arange(side) - centre) / math.exp(width)) ** 2)
        for side, centre, width in zip(shape, bell[:2], bell[2:], strict=True)
    )
    return row, column


def _cosine(values: NDArray[np.float64], bell: NDArray[np.float64]) -> float:
    row, column = _bell(values.shape, bell)
    return float(row @ values @ column / (np.linalg.norm(row) * np.linalg.norm(column)))
