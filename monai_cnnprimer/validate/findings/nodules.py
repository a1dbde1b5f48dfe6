# SPDX-License-Identifier: Apache-2.0
"""One nodule of known size and contrast, put into a radiograph as it would have weakened the beam.

A nodule multiplies the exposure behind it by ``exp(-a)``, where ``a`` is its chord along the beam times the attenuation
it adds: it is additive in log exposure. A display-ready image is no longer log exposure but what a sigmoid tone scale
made of it (DICOM PS3.3 C.11.2.1.3.1 has the logistic function; film has the same shape). So the image ``v`` is taken
back through a logistic function, the attenuation is added, and the sum is displayed again:

    logit(v') = logit(v) + DISPLAY_SLOPE * a

Black stays black and white stays white, as where a real display is saturated; in between no value can leave [0, 1], so
nothing is ever clipped and the image's extreme pixels tell nothing of the nodule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter

from monai_cnnprimer.phantom.raster import stream

DISPLAY_SLOPE = 1.4
"""Log-odds of the displayed value for each neper of attenuation, scatter included.

Median over the three sites of the phantom, whose nodules go through Beer-Lambert, scatter and each vendor's processing.
"""
BLUR_PX = 0.5
"""Standard deviation in pixels of the system's blur beyond the area of a pixel, as left by antialiased resampling."""
MU_SOFT_TISSUE = 0.0190
"""Linear attenuation of soft tissue per mm at the mean energy of a 120 kVp beam (NIST XCOM), as in the phantom."""
LUNG_DENSITY = 0.26
"""Density of inflated lung relative to soft tissue (ICRU Report 44): what the nodule takes the place of."""

_SAMPLES = 24  # across the diameter, at least
_DENSEST = 10.0


class NoPlace(ValueError):
    """There is no place for the nodule: it fits nowhere in the lungs, or is under a pixel."""


class _Patch(NamedTuple):
    """A nodule around the pixel that holds its centre: attenuation (peak of a sharp one: 1) and coverage, `(n, n)`."""

    attenuation: NDArray[np.float64]
    coverage: NDArray[np.float64]


def physical_contrast(diameter_mm: float, mu_per_mm: float = MU_SOFT_TISSUE) -> float:
    """Peak log-attenuation, in nepers, of a solid nodule without calcium: ``(1 - 0.26) * mu * d``.

    The central ray meets `diameter_mm` of soft tissue where it met lung of 0.26 of its density (ICRU Report 44); `mu`
    after NIST XCOM. Of the primary beam: what scatter takes away stands in `DISPLAY_SLOPE`.

    Raises:
        ValueError: a number that is not above 0 and finite.

    Example:
        >>> round(physical_contrast(10), 3)
        0.141
    """
    if not (0 < diameter_mm < math.inf and 0 < mu_per_mm < math.inf):
        raise ValueError(f"diameter {diameter_mm} mm and attenuation {mu_per_mm} per mm must be above 0 and finite")
    return (1 - LUNG_DENSITY) * mu_per_mm * diameter_mm


def insert_nodule(
    image: ArrayLike, lung_mask: ArrayLike, diameter_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A copy of a radiograph with one nodule, wholly inside the lungs.

    The nodule is a ball projected along the beam, of slightly elliptic and lobulated outline. It is sampled over the
    area of each pixel about a centre between pixels, so that its summed attenuation is that of the ball,
    ``2/3 * contrast * area``, at every size; then blurred by the system. Its centre is drawn evenly over all places
    from which nothing of it, blur included, leaves the mask. The outline, the centre and nothing else follow `seed`.

    Args:
        image: ``(H, W)`` in [0, 1], bone bright.
        lung_mask: ``(H, W)`` bool, or 0 and 1.
        diameter_px: diameter in pixels of the circle as large as the outline, 1 or more.
        contrast: attenuation on the central ray in nepers (natural logarithm of exposure), before blur; 0 gives a
            nodule that cannot be seen, as a control. `physical_contrast` gives that of soft tissue.
        seed: 0 or more.

    Returns:
        The image, ``(H, W)`` float32 in [0, 1], unchanged where the nodule is not; and its mask, ``(H, W)`` bool: the
        pixels of which the outline, before blur, covers at least half, or the pixel that it covers most where it covers
        half of none.

    Raises:
        NoPlace: no place of the lungs holds the nodule (a ValueError).
        ValueError: the image is not two-dimensional, not finite, or not in [0, 1]; the mask has another shape, is
            empty, or not of 0 and 1; the diameter is under a pixel; contrast or seed is negative.

    Example:
        >>> lungs = np.zeros((64, 64), bool)
        >>> lungs[8:56, 8:28] = True
        >>> image, mask = insert_nodule(np.full((64, 64), 0.25), lungs, diameter_px=6, contrast=0.3, seed=1)
        >>> int(mask.sum()), round(float(image.max()), 2), bool(mask[~lungs].any())
        (27, 0.33, False)
    """
    before, lungs = _checked(image, lung_mask)
    if not (1 <= diameter_px < math.inf):
        raise ValueError(f"a nodule of {diameter_px} pixels: under one pixel there is nothing to see")
    if not 0 <= contrast <= _DENSEST:
        raise ValueError(f"a contrast of {contrast} nepers: choose 0 to {_DENSEST:g}")
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or a positive number")
    rng = stream(seed, "nodule")
    patch = _patch(diameter_px, rng)
    where = _place(patch, lungs, diameter_px, rng)
    after, mask = before.copy(), np.zeros(before.shape, bool)
    after[where] = displayed_behind(before[where], contrast * patch.attenuation)
    mask[where] = patch.coverage >= min(0.5, patch.coverage.max())
    return after, mask


def displayed_behind(image: NDArray[np.floating], attenuation: NDArray[np.floating]) -> NDArray[np.float32]:
    """What an image in [0, 1] shows with `attenuation` (nepers, 0 or more) added in the beam; both ``(H, W)``.

    Example:
        >>> displayed_behind(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    value = np.asarray(image, np.float64)
    passed = (1 - value) * np.exp(-DISPLAY_SLOPE * np.asarray(attenuation, np.float64))
    # Both are 0 nowhere: the contrast is bounded. Where nothing is added the value keeps its bits.
    return np.where(attenuation > 0, value / (value + passed), value).astype(np.float32)


def _checked(image: ArrayLike, lung_mask: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    pixels, lungs = np.asarray(image), np.asarray(lung_mask)
    if pixels.ndim != 2:
        raise ValueError(f"the image must be (rows, columns), not {pixels.shape}")
    if lungs.shape != pixels.shape:
        raise ValueError(f"lung mask {lungs.shape} on an image of {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise ValueError("the image has values that are not finite")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(f"the image must lie in [0, 1], it has {pixels.min():g} to {pixels.max():g}")
    if lungs.dtype != bool and not np.isin(lungs, (0, 1)).all():
        raise ValueError("the lung mask must hold 0 and 1 only")
    if not lungs.any():
        raise ValueError("the lung mask is empty")
    return pixels.astype(np.float32), lungs.astype(bool)


def _outline(rng: np.random.Generator, angle: NDArray[np.floating]) -> NDArray[np.floating]:
    """Radius at each angle of an ellipse with lobes, of the area of the unit circle."""
    long, turn = rng.uniform(1.0, 1.15), rng.uniform(0, math.pi)
    waves = [(k, rng.uniform(-0.05, 0.05), rng.uniform(0, 2 * math.pi)) for k in (3, 4, 5)]

    def radius(angle: NDArray[np.floating]) -> NDArray[np.floating]:
        ellipse = 1 / np.hypot(np.cos(angle - turn) / long, np.sin(angle - turn) * long)
        return ellipse * (1 + sum(height * np.cos(k * angle + phase) for k, height, phase in waves))

    around = np.arange(720) * (math.pi / 360)
    return radius(angle) / math.sqrt(np.mean(radius(around) ** 2))


def _patch(diameter: float, rng: np.random.Generator) -> _Patch:
    """The nodule on its own pixels: chords averaged over each pixel's area, of the ball's exact sum, blurred."""
    row, column = rng.uniform(-0.5, 0.5, 2)
    tail = math.ceil(3 * BLUR_PX)
    # The longest half-axis with all lobes on it, 1.15 * 1.15 radii, about a centre up to half a pixel off.
    half = math.ceil(0.67 * diameter + 0.5) + tail
    fine = max(2, math.ceil(_SAMPLES / diameter))
    at = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    y, x = (at - row)[:, None], (at - column)[None, :]
    squared = (np.hypot(x, y) / (diameter / 2 * _outline(rng, np.arctan2(y, x)))) ** 2
    chord, coverage = (
        part.reshape(2 * half + 1, fine, 2 * half + 1, fine).mean(axis=(1, 3))
        for part in (np.sqrt(np.maximum(1 - squared, 0)), (squared < 1).astype(float))
    )
    chord *= math.pi * diameter**2 / 6 / chord.sum()
    attenuation = gaussian_filter(chord, BLUR_PX, mode="constant", truncate=tail / BLUR_PX)
    used = np.abs(np.argwhere(attenuation > 0) - half).max()
    return _Patch(
        *(part[half - used : half + used + 1, half - used : half + used + 1] for part in (attenuation, coverage))
    )


def _place(patch: _Patch, lungs: NDArray[np.bool_], diameter: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of the patch about a centre drawn from all whose distance to the nearest outside is enough."""
    half = patch.coverage.shape[0] // 2
    offset = np.arange(-half, half + 1)
    reach = np.hypot(offset[:, None], offset[None, :])[patch.attenuation > 0].max()
    (box,) = find_objects(lungs.astype(np.int8))
    # Around the box, as beyond the image, there is no lung.
    distance = distance_transform_edt(np.pad(lungs[box], 1))[1:-1, 1:-1]
    allowed = np.flatnonzero(distance > reach)
    if not allowed.size:
        widest = 2 * distance.max()
        raise NoPlace(
            f"a nodule of {diameter:.1f} pixels fits nowhere: the lungs are {widest:.0f} pixels at the widest"
        )
    row, column = divmod(int(rng.choice(allowed)), distance.shape[1])
    row, column = row + box[0].start, column + box[1].start
    return slice(row - half, row + half + 1), slice(column - half, column + half + 1)
