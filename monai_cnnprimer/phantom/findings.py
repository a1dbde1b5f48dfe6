# SPDX-License-Identifier: Apache-2.0
"""Findings of chosen size and contrast, each as what it adds to or takes from the beam's path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.phantom.anatomy import CAVITY, LEFT, MEDIASTINUM_RIGHT, RIGHT, Chest
from monai_cnnprimer.phantom.bones import RIB_HALF_HEIGHT, Shell, rib_paths, rib_shells, soften
from monai_cnnprimer.phantom.raster import Array, F, Mask, blur, cap, cloud, deposit, step, stream


@dataclass(frozen=True)
class Finding:
    """What to put into a chest.

    Args:
        kind: ``nodule``, ``consolidation``, ``pneumothorax`` or ``fracture``.
        mm: size in mm in the patient: diameter of a nodule, diameter of the circle as large as a consolidation, width
            of the pleural gap at its widest, displacement of a rib's fragments.
        contrast: multiplies the physical change of the beam's path; 1 is soft tissue or bone of its real density.
        side: -1 for the patient's right, 1 for the left, 0 for either.
        x: mm from the midline to the image's right; drawn at random when None (nodule, consolidation).
        y: mm below the lung apices; drawn at random when None (nodule, consolidation).

    Raises:
        ValueError: the kind is unknown, or size or contrast cannot be.

    Example:
        >>> Finding("nodule", mm=9).contrast
        1.0
    """

    kind: str
    mm: float = 12.0
    contrast: float = 1.0
    side: int = 0
    x: float | None = None
    y: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in EFFECTS:
            raise ValueError(f"unknown finding {self.kind!r}: choose one of {', '.join(EFFECTS)}")
        if not (0 < self.mm <= 150 and math.isfinite(self.mm)):
            raise ValueError(f"a {self.kind} of {self.mm} mm: choose a size above 0 and up to 150 mm")
        if not (self.contrast > 0 and math.isfinite(self.contrast)):
            raise ValueError(f"a {self.kind} of contrast {self.contrast}: choose a number above 0, 1 is physical")
        if self.side not in (RIGHT, 0, LEFT):
            raise ValueError(f"side is {self.side}: choose -1 (patient's right), 1 (left) or 0 (either)")
        if (self.x is None) != (self.y is None):
            raise ValueError("give both x and y in mm, or neither")


@dataclass(frozen=True)
class Effect:
    """What a finding does to the beam: mm of soft tissue and of bone added, where it is seen, and its centre in mm."""

    soft: Array
    bone: Array
    mask: Mask
    x: float
    y: float
    side: int


def effect(finding: Finding, chest: Chest, vessels: Array, name: str) -> Effect:
    """Put a finding into a chest; nothing else in the chest changes. Its random stream has the name given."""
    rng = stream(chest.anatomy.seed, "finding", name, finding.kind)
    return EFFECTS[finding.kind](finding, chest, vessels, rng)


def _place(finding: Finding, chest: Chest, rng: np.random.Generator, margin: float) -> tuple[float, float, int]:
    """A place in the lungs with at least `margin` mm to the chest wall and a thick lung; side follows from x."""
    if finding.x is not None and finding.y is not None:
        return finding.x, finding.y, RIGHT if finding.x < 0 else LEFT
    side = finding.side or int(rng.choice([RIGHT, LEFT]))
    a, grid = chest.anatomy, chest.grid
    best, found = -1.0, (0.0, 0.0)
    for _ in range(120):
        y = rng.uniform(35, 195) * a.height
        outer = a.along_y(CAVITY, np.array(y), a.width) - margin
        inner = a.along_y(MEDIASTINUM_RIGHT, np.array(y), a.width) + 0.6 * margin
        x = side * rng.uniform(min(inner, outer - 1), outer)
        column, row = (int(round(float(value))) for value in grid.pixels(np.array(x), np.array(y)))
        if not (0 <= row < grid.size and 0 <= column < grid.size and chest.lung_mask[row, column]):
            continue
        if chest.lung[row, column] > 70:
            return float(x), float(y), side
        if chest.lung[row, column] > best:
            best, found = float(chest.lung[row, column]), (float(x), float(y))
    return *found, side


def _nodule(finding: Finding, chest: Chest, vessels: Array, rng: np.random.Generator) -> Effect:
    """A slightly lobulated ball of soft tissue in place of lung."""
    x0, y0, side = _place(finding, chest, rng, 8 + finding.mm / 2)
    grid, radius = chest.grid, finding.mm / 2
    x, y = grid.columns - F(x0), grid.rows - F(y0)
    angle = np.arctan2(y, x)
    lobes = sum(rng.normal(0, 0.035) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5))
    squared = (np.hypot(x, y) / (F(radius) * (1 + lobes))) ** 2
    chord = blur(finding.mm * cap(squared.astype(F)), 0.4 / grid.spacing)
    soft = F(finding.contrast) * chord * (1 - chest.lung_density)
    mask = squared < 1 if finding.mm > 2 * grid.spacing else np.hypot(x, y) < max(radius, 0.75 * grid.spacing)
    return Effect(soft, np.zeros_like(soft), mask, x0, y0, side)


def _consolidation(finding: Finding, chest: Chest, vessels: Array, rng: np.random.Generator) -> Effect:
    """Airspaces filled with fluid: fluffy edges, vessels lost in it, air-filled bronchi seen in it.

    The outline is the level of a field (an ellipse roughened at all scales, cut by a fissure in half of the cases) that
    encloses, within the lung, the area of a circle of the chosen diameter.
    """
    x0, y0, side = _place(finding, chest, rng, 6 + 0.30 * finding.mm)
    grid, radius = chest.grid, F(finding.mm / 2)
    x, y = (grid.columns - F(x0)) / radius, (grid.rows - F(y0)) / radius
    turn, stretch = F(rng.uniform(0, math.pi)), F(rng.uniform(1.0, 1.35))
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    rough = cloud(rng, grid, 3.8, 0.8 * finding.mm, 7.0)
    grain = cloud(rng, grid, 2.6, 14.0, 2.5)
    field = 1 - np.hypot(along / stretch, across * stretch) + F(0.17) * rough
    if rng.random() < 0.5:
        field = np.minimum(field, 1.6 * (side * x * F(0.3) + y + F(0.55)))
    lung = chest.lung_mask
    field = np.where(np.hypot(x, y) < 2.2, field, F(-9))
    level = _level(field[lung], math.pi * float(radius) ** 2 / grid.spacing**2)
    filled = step(field - F(level) + F(0.04) * grain, 0.12) * (chest.lung > 0)
    patchy = F(0.72) + F(0.20) * np.tanh(2 * (field - F(level))) + F(0.05) * grain + F(0.06) * rough
    depth = np.minimum(chest.lung, F(0.65 * finding.mm + 14))
    fluid = filled * np.clip(patchy, 0.2, 1.1) * depth * (1 - chest.lung_density)
    bronchi = F(0.8) * filled * np.minimum(blur(vessels, 0.8 / grid.spacing), 4)
    soft = F(finding.contrast) * (fluid - bronchi)
    return Effect(soft, np.zeros_like(soft), (field > level) & lung, x0, y0, side)


def _level(values: NDArray, count: float) -> float:
    """The threshold that `count` of the values exceed."""
    wanted = int(np.clip(round(count), 1, values.size - 1))
    return float(np.partition(values, values.size - wanted)[values.size - wanted])


def _pneumothorax(finding: Finding, chest: Chest, vessels: Array, rng: np.random.Generator) -> Effect:
    """Air between lung and chest wall: a thin pleural line, and beyond it neither vessels nor lung markings."""
    side = finding.side or int(rng.choice([RIGHT, LEFT]))
    grid, a = chest.grid, chest.anatomy
    x, y = np.abs(grid.columns), grid.rows
    outer = chest.cavity_half_width
    lean = np.gradient(outer[:, 0], grid.spacing)[:, None]
    # First-order distance to the wall; over the apex the wall turns inwards.
    wall = (outer - x) / np.sqrt(1 + lean**2)
    apex = y * F(0.9) - F(0.004) * (x - 45) ** 2
    distance = np.minimum(wall, apex)
    reach = rng.uniform(95, 135) * a.height
    gap = F(finding.mm) * np.exp(-((np.maximum(y - 15, 0) / F(reach)) ** 2)) + F(0.4)
    gap = gap * (1 + F(0.10) * np.sin(y / 23 + F(rng.uniform(0, 6))))
    inward = distance - gap
    here = ((grid.columns > 0) == (side == LEFT)) & chest.lung_mask
    present = here * step(F(1.7 * reach) - y, 9)
    beyond = present * (1 - step(inward, max(0.3, 0.3 * grid.spacing)))
    lost = F(0.93) * beyond * (np.minimum(vessels, chest.lung) + chest.lung * chest.lung_density)
    width = max(0.55, 0.6 * grid.spacing)
    line = F(4.6 * 0.55 / width) * np.exp(-((inward / F(width)) ** 2)) * present * (chest.lung > 6)
    soft = F(finding.contrast) * (line - lost)
    mask = (beyond > 0.5) & here
    rows, columns = np.nonzero(mask) if mask.any() else np.nonzero(here)
    top = int(np.argmin(rows))
    x0, y0 = float(grid.columns[rows[top], columns[top]]), float(y[rows[top], 0])
    return Effect(soft, np.zeros_like(soft), mask, x0, y0, side)


def _fracture(finding: Finding, chest: Chest, vessels: Array, rng: np.random.Generator) -> Effect:
    """A rib broken beside the lung: fragments displaced by `mm`, an oblique gap between them."""
    side = finding.side or int(rng.choice([RIGHT, LEFT]))
    a, grid = chest.anatomy, chest.grid
    rib = 2 * int(rng.integers(3, 9)) + (side == LEFT)
    paths = rib_paths(a, grid)
    at = int(rng.uniform(0.17, 0.28) * paths.shape[1])
    x0, y0, _ = (float(value) for value in paths[rib, at])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(paths[rib], axis=0), axis=1))])
    length -= length[at]
    broken = paths.copy()
    direction = float(rng.choice([-1, 1]))
    broken[rib, at:, 1] += direction * finding.mm * np.exp(-length[at:] / 45)
    before, after = (rib_shells(a, path, grid).only(rib) for path in (paths, broken))
    slope = rng.uniform(0.3, 0.7) * float(rng.choice([-1, 1]))
    off = length[None, :, None] + slope * (after.y - broken[rib][None, :, None, 1])
    gap = 1.0 + 0.3 * finding.mm
    after = Shell(after.x, after.y, after.volume * (1 - np.exp(-((off / gap) ** 2))))
    cortex = deposit(grid, after.x, after.y, after.volume) - deposit(grid, before.x, before.y, before.volume)
    bone = soften(cortex, grid)
    ahead = paths[rib, min(at + 6, paths.shape[1] - 1), :2] - paths[rib, at - 6, :2]
    ahead /= np.hypot(*ahead)
    x, y = grid.columns - F(x0), grid.rows - F(y0)
    along, across = x * F(ahead[0]) + y * F(ahead[1]), y * F(ahead[0]) - x * F(ahead[1])
    near = np.abs(along) < max(2 * gap, 1.5, grid.spacing)
    mask = near & (np.abs(across) < RIB_HALF_HEIGHT * 1.1 + finding.mm)
    return Effect(np.zeros_like(bone), F(finding.contrast) * bone, mask, x0, y0, side)


EFFECTS: dict[str, Callable[[Finding, Chest, Array, np.random.Generator], Effect]] = {
    "nodule": _nodule,
    "consolidation": _consolidation,
    "pneumothorax": _pneumothorax,
    "fracture": _fracture,
}
