# SPDX-License-Identifier: Apache-2.0
"""One patient's chest: sampled measures, outlines in mm, and the thickness of each tissue along the beam.

The field is described row by row: half-widths of the thoracic cavity, of the mediastinum's right and left border and
of the body are curves over y. Lung is what the cavity holds besides mediastinum, spine and abdomen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

from monai_cnnprimer.phantom.raster import Array, F, Grid, Mask, cap, cloud, ellipsoid, step, stream, tube

RIGHT, LEFT = -1, 1
"""The patient's sides; the patient's right is at the image's left, where x is negative."""

# (y, half-width) in mm of an average adult; y = 0 at the lung apices.
CAVITY = ((0, 43), (3, 56), (10, 69), (25, 87), (50, 106), (85, 121), (125, 131), (170, 138), (215, 142), (275, 143))
CAVITY_DEPTH = ((0, 1), (4, 10), (12, 22), (30, 40), (60, 58), (105, 75), (160, 87), (210, 91), (275, 88))
MEDIASTINUM_RIGHT = (
    *((-60, 60), (-20, 50), (0, 43), (8, 34), (20, 28), (40, 24), (60, 22.5), (74, 25.5), (86, 23.5), (102, 25)),
    *((118, 26), (130, 29.5), (144, 37.5), (160, 43.5), (178, 45.5), (196, 42), (212, 33), (245, 28)),
)
MEDIASTINUM_LEFT = (
    *((-60, 60), (-20, 50), (0, 43), (8, 35), (20, 29), (36, 25), (46, 26.5), (55, 34), (64, 37), (73, 34)),
    *((82, 29.5), (91, 32), (102, 37), (113, 39), (125, 41.5), (140, 50), (157, 65), (173, 79), (188, 86.5)),
    *((201, 86), (213, 76), (228, 56), (245, 36)),
)
MEDIASTINUM_DEPTH = ((-60, 30), (20, 31), (60, 38), (100, 42), (140, 56), (180, 62), (215, 58), (260, 40))
BODY = (
    *((-95, 58), (-64, 60), (-48, 67), (-34, 86), (-20, 124), (-5, 166), (15, 205), (40, 226), (70, 222), (92, 203)),
    *((112, 182), (135, 170), (165, 165), (220, 164), (300, 168), (390, 176)),
)
BODY_DEPTH = (
    *((-95, 54), (-60, 57), (-35, 66), (-15, 78), (5, 90), (30, 101), (65, 108), (115, 112), (200, 116), (390, 114)),
)


@dataclass(frozen=True)
class Anatomy:
    """The measures of one patient, drawn from the seed; lengths in mm, the rest are factors of an average adult."""

    seed: int
    sex: str
    age: int
    width: float
    height: float
    depth: float
    heart: float
    knob: float
    density: float
    fat: float
    breast: float
    bone: float
    curve: float
    dome: float
    dome_left: float
    rib_phase: float
    rib_drop: float
    stomach: float

    @classmethod
    def sample(cls, seed: int) -> Anatomy:
        """Draw a patient; the same seed is the same patient."""
        rng = stream(seed, "anatomy")
        sex = "F" if rng.random() < 0.5 else "M"
        age = int(np.clip(rng.normal(58, 17), 18, 94))
        old = (age - 55) / 40
        slim = 0.94 if sex == "F" else 1.02
        return cls(
            seed=seed,
            sex=sex,
            age=age,
            width=slim * rng.uniform(0.92, 1.07),
            height=slim * rng.uniform(0.92, 1.06),
            depth=rng.uniform(0.88, 1.15),
            heart=rng.uniform(0.86, 1.13) + 0.06 * old,
            knob=rng.uniform(0.75, 1.15) + 0.15 * old,
            density=rng.uniform(0.20, 0.29),
            fat=rng.uniform(0.6, 1.5),
            breast=rng.uniform(0.5, 1.2) if sex == "F" else 0.0,
            bone=rng.uniform(0.85, 1.15) - 0.10 * old,
            curve=rng.uniform(-7, 7),
            dome=rng.uniform(-12, 8),
            dome_left=rng.uniform(3, 15),
            rib_phase=rng.uniform(-5, 5),
            rib_drop=rng.uniform(0.9, 1.15),
            stomach=rng.uniform(0, 1),
        )

    def along_y(self, knots: Sequence[tuple[float, float]], y: Array, scale: float) -> Array:
        """A curve of half-widths at rows `y`, both scaled to this patient."""
        at, value = np.array(knots, dtype=float).T
        at *= self.height
        return (scale * PchipInterpolator(at, value)(np.clip(y, at[0], at[-1]))).astype(F)

    def spine(self, y: Array) -> Array:
        """x in mm of the spine's middle: a slight scoliosis."""
        return (self.curve * np.sin(y / (80 * self.height))).astype(F)


@dataclass(frozen=True)
class Chest:
    """One patient on one grid: every thickness map, ``(size, size)`` in mm, that the beam passes through."""

    anatomy: Anatomy
    grid: Grid
    inspiration_mm: float = 0.0
    heart_scale: float = 1.0

    @cached_property
    def cavity_half_width(self) -> Array:
        """``(size, 1)`` half-width of the thoracic cavity in each row."""
        return self.anatomy.along_y(CAVITY, self.grid.rows, self.anatomy.width)

    @cached_property
    def cavity(self) -> Array:
        """Depth of the thoracic cavity along the beam."""
        depth = self.anatomy.along_y(CAVITY_DEPTH, self.grid.rows, self.anatomy.depth)
        squared = (self.grid.columns / self.cavity_half_width) ** 2
        inside = self.grid.rows > 0
        return 2 * depth * cap(squared * (F(0.45) + F(0.55) * squared)) * inside

    @cached_property
    def borders(self) -> tuple[Array, Array]:
        """``(size, 1)`` half-widths of the mediastinum to the patient's right and left."""
        a, y = self.anatomy, self.grid.rows
        heart_part = step(y - 118 * a.height, 9)
        knob_part = np.exp(-(((y - 63 * a.height) / 15) ** 2))
        size = a.heart * self.heart_scale
        right = a.along_y(MEDIASTINUM_RIGHT, y, a.width) * (1 + heart_part * F(0.8 * (size - 1)))
        left = a.along_y(MEDIASTINUM_LEFT, y, a.width) * (1 + heart_part * F(size - 1))
        return right, left + knob_part.astype(F) * F(9 * (a.knob - 0.9))

    @cached_property
    def heart(self) -> Mask:
        """Where the heart is projected: between the mediastinal borders from its base to just under the diaphragm."""
        right, left = self.borders
        x, y = self.grid.columns, self.grid.rows
        across = (x - (left - right) / 2) / ((left + right) / 2)
        base = F(106 * self.anatomy.height) + 16 * across**2
        return (np.abs(across) < 1) & (y > base) & (y < self.dome + 9)

    @cached_property
    def mediastinum(self) -> tuple[Array, Array]:
        """Soft tissue between the lungs: heart and great vessels; and behind them aorta and the spine's prominence."""
        a, x, y = self.anatomy, self.grid.columns, self.grid.rows
        right, left = self.borders
        squared = ((x - (left - right) / 2) / ((left + right) / 2)) ** 2
        depth = a.along_y(MEDIASTINUM_DEPTH, y, a.depth)
        round_part = F(0.35) + F(0.65) * step(y - 100 * a.height, 20)
        profile = np.maximum(1 - squared, 0)
        profile = round_part * np.sqrt(profile) + (1 - round_part) * profile
        profile *= step(self.dome + 18 - y, 6)
        spine = F(46 * a.depth) * cap(((x - self.anatomy.spine(y)) / F(40)) ** 2) ** 2
        aorta_x = self.anatomy.spine(y) + F(20) - F(8) * step(y - 175 * a.height, 30)
        aorta = 2 * cap(((x - aorta_x) / F(12 * a.knob)) ** 2) * F(9) * step(y - 58 * a.height, 5)
        middle = 2 * depth * profile
        for side, hilum in self.hila.items():
            middle += F(0.5) * ellipsoid(self.grid, hilum, (14, 24, 15), -0.35 * side) * (middle < 60)
        return middle, spine + aorta

    @property
    def hila(self) -> dict[int, tuple[float, float]]:
        """Where the pulmonary vessels enter each lung; the left hilum stands higher."""
        a = self.anatomy
        return {RIGHT: (-33 * a.width, 110 * a.height), LEFT: (38 * a.width, 101 * a.height)}

    @cached_property
    def dome(self) -> Array:
        """``(size, size)`` y in mm of the diaphragm's dome above or below each pixel."""
        a, x = self.anatomy, self.grid.columns
        outward = np.abs(x) / F(a.width) - 63
        rise = (outward / np.where(outward > 0, F(81), F(112))) ** 2
        fall = 45 * rise * (1 + F(0.45) * rise * (outward > 0))
        top = 203 * a.height + a.dome + self.inspiration_mm
        return F(top) + F(a.dome_left * 0.8) * step(x, 8) + F(a.height) * fall

    @cached_property
    def lung(self) -> Array:
        """Depth of lung (air, blood and tissue of it) along the beam."""
        below = np.maximum(self.grid.rows - self.dome, 0)
        # A beam that passes at depth d under a dome of radius r runs 2 sqrt(2 r d) through the abdomen.
        abdomen = 2 * np.sqrt(F(2 * 44) * below)
        # Towards the middle the recess behind it ends at the spine, and liver and stomach fill the depth.
        inwards = np.exp(-((self.grid.columns / F(58 * self.anatomy.width)) ** 2))
        abdomen = abdomen * (1 + F(1.8) * inwards)
        middle, behind = self.mediastinum
        return np.maximum(self.cavity - np.maximum(middle, abdomen) - behind, 0)

    @cached_property
    def lung_mask(self) -> Mask:
        """The lung fields a reader would outline: above the diaphragm and beside the mediastinum."""
        right, left = self.borders
        x, y = self.grid.columns, self.grid.rows
        beside = np.where(x > 0, x > left, -x > right)
        return beside & (np.abs(x) < self.cavity_half_width) & (y > 0) & (y < self.dome) & (self.cavity > 4)

    @cached_property
    def airways(self) -> Array:
        """Air in the trachea and the main bronchi."""
        a, h, w = self.anatomy, self.anatomy.height, self.anatomy.width
        air = np.zeros_like(self.lung)
        carina = (2.0 * w, 84 * h)
        push = -3.5 * a.knob
        branches = (
            ((1.0, -120.0), (1.0, 40 * h), (8.6, 8.6)),
            ((1.0, 40 * h), (push, 64 * h), (8.6, 8.2)),
            ((push, 64 * h), carina, (8.2, 8.4)),
            (carina, (-25 * w, 110 * h), (7.4, 5.6)),
            (carina, (35 * w, 106 * h), (6.6, 5.0)),
        )
        for start, end, radii in branches:
            where, chord = tube(self.grid, start, end, radii)
            air[where] = np.maximum(air[where], F(0.8) * chord)
        return air

    @cached_property
    def body(self) -> Array:
        """Depth of the whole body along the beam: trunk, neck, shoulders, breasts, arms."""
        a, x, y = self.anatomy, self.grid.columns, self.grid.rows
        thicker = 1 + 0.05 * (a.fat - 1)
        half_width = a.along_y(BODY, y, a.width * thicker)
        half_depth = a.along_y(BODY_DEPTH, y, a.depth) + F(9 * (a.fat - 1))
        squared = (x / half_width) ** 2
        trunk = 2 * half_depth * cap(squared * (F(0.3) + F(0.7) * squared))
        muscle = 22 * np.exp(-(((np.abs(x) - 104 * a.width) / 40) ** 2) - ((y - 66) / 42) ** 2)
        trunk += muscle.astype(F) * (trunk > 0)
        if a.breast:
            trunk += self._breasts() * (trunk > 0)
        for side in (RIGHT, LEFT):
            where, arm = tube(self.grid, (side * 200 * a.width, 25), (side * 262 * a.width, 200), (44, 36))
            trunk[where] = np.maximum(trunk[where], arm)
        return trunk

    def _breasts(self) -> Array:
        a, x, y = self.anatomy, self.grid.columns, self.grid.rows
        middle, low, radius = 80 * a.width, 176 * a.height, 66 * (0.75 + 0.3 * a.breast)
        squared = ((np.abs(x) - F(middle)) / F(radius)) ** 2 + ((y - F(low)) / F(radius * 0.8)) ** 2
        return F(44 * a.breast) * np.maximum(1 - squared, 0) * step(y - F(low - 24), 11)

    @cached_property
    def gas(self) -> Array:
        """The stomach's air bubble under the left dome, in about two of three patients."""
        a = self.anatomy
        if a.stomach < 0.35:
            return np.zeros_like(self.lung)
        top = 203 * a.height + a.dome + self.inspiration_mm + 0.8 * a.dome_left
        bubble = ellipsoid(self.grid, (58 * a.width, top + 27), (17 + 16 * a.stomach, 15, 24 * a.stomach), 0.12)
        return bubble * step(self.grid.rows - self.dome - 5, 1.0)

    @cached_property
    def lung_density(self) -> Array:
        """Share of the lung that is not air; more blood at the base, uneven at every scale."""
        a = self.anatomy
        coarse = cloud(stream(a.seed, "lung", "coarse"), self.grid, 3.0, 70, 6)
        fine = cloud(stream(a.seed, "lung", "fine"), self.grid, 2.2, 16, 1.6)
        slope = 1 + F(0.10) * (self.grid.rows / F(a.height) - 120) / 120
        return F(a.density) * slope * (1 + F(0.06) * coarse + F(0.045) * fine)
