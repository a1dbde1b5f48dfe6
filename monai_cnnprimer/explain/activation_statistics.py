# SPDX-License-Identifier: Apache-2.0
"""Activations in numbers: the most active channels, how few units answer, and whether neighbours answer alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEVER_ACTIVE = 1e-6


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """What one layer answered to one image.

    Attributes:
        mean: `(C,)` of each channel over its cells, float32.
        maximum: `(C,)` of each channel over its cells, float32.
        zero_share: share of the layer's units that are exactly zero, which is what a ReLU leaves of a negative input.
        sparseness: of all units of the layer, as `sparseness` tells.
        autocorrelation: mean over the channels, as `autocorrelation` tells.
        channels: numbers of the most active channels `(k,)`: highest mean first, of equals the lower number.
        maps: of these channels `(k, h, w)`, float32.
    """

    mean: Tensor
    maximum: Tensor
    zero_share: float
    sparseness: float
    autocorrelation: float
    channels: Tensor
    maps: Tensor

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(self.maps.shape[1:])


class Spread(NamedTuple):
    """Mean and standard deviation over images; NaN where no image, or only one, has a value."""

    mean: float
    sd: float


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One layer over many images, each of which counts the same.

    Attributes:
        images: how many.
        grid: cells along each axis; None if that differs between images.
        channel_mean: `(C,)`, float64.
        channel_maximum: `(C,)` over all cells of all images, float32.
        zero_share: as in `LayerActivations`.
        sparseness: as in `LayerActivations`.
        autocorrelation: as in `LayerActivations`.
    """

    images: int
    grid: tuple[int, ...] | None
    channel_mean: Tensor
    channel_maximum: Tensor
    zero_share: Spread
    sparseness: Spread
    autocorrelation: Spread

    @property
    def dead_share(self) -> float:
        """Share of channels with no unit above `NEVER_ACTIVE` (1e-6) in any image; the fewer images, the higher."""
        return float((self.channel_maximum <= NEVER_ACTIVE).double().mean())

    @property
    def units(self) -> int | None:
        """Channels times cells; None if the grid differs between images."""
        return None if self.grid is None else len(self.channel_mean) * int(np.prod(self.grid))


def describe(activation: Tensor, channels: int = 16) -> LayerActivations:
    """Describes one layer's output for one image.

    Args:
        activation: `(C, h, w)`, or with any other number of spatial axes; any sign.
        channels: of how many of the most active channels to keep the map.

    Returns:
        Copies on the CPU, independent of `activation`.

    Example:
        >>> describe(torch.tensor([[[0.0, 0.0]], [[0.0, 3.0]], [[1.0, 2.0]]]), channels=2).channels
        tensor([1, 2])
    """
    values = activation.detach().as_subclass(Tensor).float()
    mean = values.flatten(1).mean(dim=1)
    most_active = mean.sort(descending=True, stable=True).indices[:channels]
    return LayerActivations(
        mean=mean.cpu(),
        maximum=values.flatten(1).amax(dim=1).cpu(),
        zero_share=1 - int(values.count_nonzero()) / values.numel(),
        sparseness=sparseness(values),
        autocorrelation=autocorrelation(values),
        channels=most_active.cpu(),
        maps=values[most_active].cpu(),
    )


def sparseness(values: Tensor) -> float:
    """How few of the units carry the activity: 0 when all answer alike, 1 when a single one answers.

    Treves and Rolls (1991, Network 2:371) in the form of Vinje and Gallant (2000, Science 287:1273), eq. 1, of the
    magnitudes: `(1 - mean(|r|)^2 / mean(r^2)) / (1 - 1/n)`. It does not depend on scale, nor on exact zeros.

    Returns:
        0..1; NaN if all units are zero.

    Example:
        >>> sparseness(torch.tensor([0.0, 0.0, 0.0, 5.0]))
        1.0
    """
    rows = values.reshape(len(values), -1)
    total, squares = (torch.linalg.vector_norm(rows, order, dim=1).cpu().double() for order in (1, 2))
    spread = squares.square().sum() * values.numel()
    return float((1 - total.sum().square() / spread) / (1 - 1 / values.numel()))


def autocorrelation(values: Tensor) -> float:
    """How alike neighbouring cells are: Moran's I (1950, Biometrika 37:17), the mean over channels `(C, h, w)`.

    Neighbours share an edge and count the same. Smooth maps come near 1; cells without order give -1/(cells - 1); a
    chessboard gives -1. Channels that are constant over the grid have no value and do not count.

    Returns:
        -1..1 or a little beyond at the borders of small grids; NaN if every channel is constant.

    Example:
        >>> autocorrelation(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        -1.0
    """
    centred = values - values.flatten(1).mean(dim=1).reshape(-1, *[1] * (values.ndim - 1))
    neighbours = [
        centred.narrow(axis, 1, length - 1) * centred.narrow(axis, 0, length - 1)
        for axis, length in enumerate(values.shape[1:], start=1)
    ]
    pairs = sum(products[0].numel() for products in neighbours)
    covariance = torch.stack([products.flatten(1).sum(dim=1) for products in neighbours]).sum(dim=0) / pairs
    variance = centred.flatten(1).square().mean(dim=1)
    # What rounding leaves of a constant map is no variance.
    varies = variance.sqrt() > 1e-6 * values.abs().flatten(1).amax(dim=1)
    return float((covariance[varies] / variance[varies]).mean())


class Tally:
    """Sums of one layer over images, whatever their number."""

    def __init__(self) -> None:
        self._images = 0
        self._grids: set[tuple[int, ...]] = set()
        self._mean = torch.zeros((), dtype=torch.float64)
        self._maximum = torch.tensor(-torch.inf)
        self._moments = np.zeros((3, 3))  # count, sum, sum of squares of each share

    def add(self, image: LayerActivations) -> None:
        """Counts one image."""
        self._images += 1
        self._grids.add(image.grid)
        self._mean = self._mean + image.mean
        self._maximum = torch.maximum(self._maximum, image.maximum)
        values = np.array([image.zero_share, image.sparseness, image.autocorrelation])
        known = np.isfinite(values)
        self._moments += np.where(known, [known, values, values**2], 0)

    def statistics(self) -> LayerStatistics:
        """What the images so far, at least one, say."""
        return LayerStatistics(
            self._images,
            next(iter(self._grids)) if len(self._grids) == 1 else None,
            self._mean / self._images,
            self._maximum,
            *(_spread(*moments) for moments in self._moments.T),
        )


def _spread(count: float, total: float, squares: float) -> Spread:
    mean = total / count if count else np.nan
    return Spread(float(mean), float(np.sqrt(max(squares - total * mean, 0) / (count - 1))) if count > 1 else np.nan)
