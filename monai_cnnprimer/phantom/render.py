# SPDX-License-Identifier: Apache-2.0
"""From a patient to a radiograph: Beer-Lambert, scatter, detector, noise, the vendor's processing, a side marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_cnnprimer.phantom.anatomy import Anatomy, Chest
from monai_cnnprimer.phantom.bones import skeleton
from monai_cnnprimer.phantom.findings import Effect, Finding, effect
from monai_cnnprimer.phantom.letters import draw_marker
from monai_cnnprimer.phantom.raster import Array, F, Grid, Mask, blur, cloud, resize, shrink, stream
from monai_cnnprimer.phantom.sites import SITES, Site
from monai_cnnprimer.phantom.vessels import vessels

# Linear attenuation per mm at the mean energy of a tube voltage: soft tissue, and what cortical bone adds (NIST XCOM).
ATTENUATION = {70: (0.0215, 0.056), 90: (0.0203, 0.044), 120: (0.0190, 0.036)}
SMALLEST = 64
GEOMETRY = 1024
"""Anatomy is computed up to this size and interpolated beyond; noise and processing always have the full size."""


@dataclass(frozen=True)
class FindingTruth:
    """A finding as it stands in one image: its mask ``(size, size)`` and its centre as (column, row) in pixels."""

    kind: str
    mm: float
    contrast: float
    side: int
    column: float
    row: float
    mask: Mask


@dataclass(frozen=True)
class Radiograph:
    """An image with its truth.

    Attributes:
        image: ``(size, size)`` float32 in [0, 1], bone bright, the patient's right at the image's left.
        spacing_mm: size of a pixel in the patient.
        masks: ``body``, ``lung``, ``heart`` and, where there is one, ``marker``; ``(size, size)`` bool.
        findings: each finding's truth, in the order asked for.
        cardiothoracic_ratio: widest heart over widest inner thorax.
        marker: the letters in the image, or an empty text.
        sex: ``F`` or ``M``.
        age: in years.
        exposure: the exposure's deviation, 1 on average.
    """

    image: Array
    spacing_mm: float
    masks: dict[str, Mask]
    findings: tuple[FindingTruth, ...]
    cardiothoracic_ratio: float
    marker: str
    sex: str
    age: int
    exposure: float

    @property
    def finding_masks(self) -> tuple[Mask, ...]:
        """The findings' masks, in the order asked for."""
        return tuple(finding.mask for finding in self.findings)


def render(
    seed: int,
    size: int = 256,
    site: Site = SITES[0],
    findings: Sequence[Finding] = (),
    marker: str | None = None,
    *,
    exam: int = 0,
    view: str = "PA",
) -> Radiograph:
    """Take a frontal chest radiograph of the patient `seed`.

    Rendered again with a finding, the same seed differs only near the finding: noise, positioning, scatter and
    processing are those of the patient without it.

    Args:
        seed: the patient, 0 or more.
        size: rows and columns, at least 64.
        site: whose equipment.
        findings: what to put into the chest.
        marker: letters at the image's edge (of ``A L P R``), none when None.
        exam: number of the examination: the same patient, positioned and exposed anew.
        view: ``PA``, or ``AP`` as at the bedside (larger heart, shallower breath).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> radiograph = render(7, size=64, findings=[Finding("nodule", mm=30)])
        >>> radiograph.image.shape, sorted(radiograph.masks), len(radiograph.finding_masks)
        ((64, 64), ['body', 'heart', 'lung'], 1)
    """
    _check(seed, size, view)
    position = stream(seed, "position", exam)
    shift_x, shift_y, lean, breath = position.uniform((-8, -8, -0.035, -6), (8, 8, 0.035, 6))
    grid = Grid(size, site.width_mm, shift_x, shift_y, lean)
    bedside = view == "AP"
    chest = Chest(
        Anatomy.sample(seed), grid.resized(min(size, GEOMETRY)), breath - 13 * bedside, 1.17 if bedside else 1.0
    )
    blood = vessels(chest)
    effects = [effect(finding, chest, blood, f"{exam}/{index}") for index, finding in enumerate(findings)]
    healthy = attenuation(chest, blood, site)
    path = healthy + _change(effects, chest, site)
    noise = stream(seed, "noise", exam, site.name)
    exposure = float(np.exp(noise.normal(0, 0.15)))
    scatter = scattered(healthy, site)
    signal = detect(resize(path, size), scatter, site, exposure, noise)
    image = develop(signal, _range(healthy, scatter, chest), site, grid.spacing)
    masks = {"body": chest.body > 20, "lung": chest.lung_mask, "heart": chest.heart}
    masks = {name: _enlarge(mask, size) for name, mask in masks.items()}
    _collimate(image, site, stream(seed, "collimator", exam))
    if marker:
        ink = draw_marker(grid, marker, stream(seed, "marker", exam))
        image = image * (1 - ink) + F(0.97) * ink
        masks["marker"] = ink > 0.5
    return Radiograph(
        image=image,
        spacing_mm=grid.spacing,
        masks=masks,
        findings=tuple(_truth(f, e, grid) for f, e in zip(findings, effects, strict=True)),
        cardiothoracic_ratio=_cardiothoracic_ratio(chest),
        marker=marker or "",
        sex=chest.anatomy.sex,
        age=chest.anatomy.age,
        exposure=exposure,
    )


def _check(seed: int, size: int, view: str) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or a positive number")
    if size < SMALLEST:
        raise ValueError(f"size is {size}: choose at least {SMALLEST} pixels")
    if view not in ("PA", "AP"):
        raise ValueError(f"view is {view!r}: choose PA or AP")


def _coefficients(site: Site) -> tuple[float, float]:
    soft, bone = np.transpose(list(ATTENUATION.values()))
    return float(np.interp(site.kvp, list(ATTENUATION), soft)), float(np.interp(site.kvp, list(ATTENUATION), bone))


def attenuation(chest: Chest, blood: Array, site: Site) -> Array:
    """The line integral of attenuation through a chest without findings, ``(size, size)``, no unit."""
    soft_per_mm, bone_per_mm = _coefficients(site)
    air = chest.lung * (1 - chest.lung_density) + chest.airways + chest.gas
    drawn = blood * F(0.95) * np.clip(chest.lung / 14, 0, 1)
    uneven = 1 + F(0.010) * cloud(stream(chest.anatomy.seed, "fat"), chest.grid, 3.0, 40, 6)
    soft = np.maximum(chest.body - air, 0) * uneven + drawn
    return F(soft_per_mm) * soft + F(bone_per_mm) * skeleton(chest)


def _change(effects: Sequence[Effect], chest: Chest, site: Site) -> Array | float:
    soft_per_mm, bone_per_mm = _coefficients(site)
    total: Array | float = 0.0
    for found in effects:
        total = total + F(soft_per_mm) * found.soft + F(bone_per_mm) * found.bone
    return total


def scattered(path: Array, site: Site) -> Array:
    """Scattered radiation: a wide blur of what leaves the patient, on a coarse grid."""
    primary = np.minimum(shrink(np.exp(-path), SMALLEST), F(0.35))
    return F(site.scatter) * blur(primary, 38 * SMALLEST / site.width_mm)


def detect(path: Array, scatter: Array, site: Site, exposure: float, noise: np.random.Generator) -> Array:
    """Log signal of the detector: Beer-Lambert, scatter, blur and quantum noise."""
    size = path.shape[0]
    spacing = site.width_mm / size
    signal = blur(np.exp(-path) + resize(scatter, size), site.blur_mm / spacing)
    quanta = site.quanta_per_mm2 * spacing**2 * exposure
    signal = signal + np.sqrt(signal / F(quanta)) * noise.standard_normal(signal.shape, dtype=F)
    return -np.log(np.maximum(signal, F(2e-4)))


def _range(path: Array, scatter: Array, chest: Chest) -> tuple[float, float]:
    """Log signal of the darkest lung and of dense mediastinum, which the vendor's processing finds by itself."""
    size = 128 if path.shape[0] % 128 == 0 else SMALLEST
    log = -np.log(np.exp(-shrink(path, size)) + resize(scatter, size))
    lung = shrink(chest.lung_mask.astype(F), size) > 0.9
    body = (shrink(chest.body, size) > 60) & ~lung
    return float(np.percentile(log[lung], 3)), float(np.percentile(log[body], 88))


def develop(log: Array, reference: tuple[float, float], site: Site, spacing: float) -> Array:
    """The vendor's processing: wide differences evened, fine ones raised, a sigmoid to [0, 1]; bone bright."""
    low, high = reference
    tone = (log - F(low)) / F(high - low)
    coarse = max(tone.shape[0] // 4, SMALLEST)
    base = resize(blur(shrink(tone, coarse), site.equalize_mm * coarse / (spacing * tone.shape[0])), tone.shape[0])
    middle = F(0.55)
    tone = middle + (base - middle) * F(1 - 0.6 * site.equalize) + (tone - base) * F(1 + 0.5 * site.equalize)
    fine = 1.3 / spacing
    if fine > 0.5:
        tone = tone + F(site.detail) * (tone - blur(tone, fine))
    return 1 / (1 + np.exp(F(-site.steepness) * (tone - F(site.brightness))))


def _collimate(image: Array, site: Site, rng: np.random.Generator) -> None:
    """Black borders where the collimator cut the beam."""
    size = image.shape[0]
    top, bottom, left, right = (rng.uniform(0.5, 1.5, 4) * site.border * size).astype(int)
    image[:top] = image[size - bottom :] = 0
    image[:, :left] = image[:, size - right :] = 0


def _enlarge(mask: Mask, size: int) -> Mask:
    """Nearest neighbour."""
    if mask.shape[0] == size:
        return mask
    index = ((np.arange(size) + 0.5) * mask.shape[0] / size).astype(np.intp)
    return mask[index][:, index]


def _truth(finding: Finding, found: Effect, grid: Grid) -> FindingTruth:
    column, row = (float(value) for value in grid.pixels(np.array(found.x), np.array(found.y)))
    mask = _enlarge(found.mask, grid.size)
    return FindingTruth(finding.kind, finding.mm, finding.contrast, found.side, column, row, mask)


def _cardiothoracic_ratio(chest: Chest) -> float:
    heart = chest.grid.columns[chest.heart]
    thorax = 2 * chest.cavity_half_width[chest.lung_mask.any(axis=1)].max()
    return float((heart.max() - heart.min() + chest.grid.spacing) / thorax)
