# SPDX-License-Identifier: Apache-2.0
"""The skeleton as thin shells of cortical bone around curves in space, projected along the beam.

Every bone is a tube: a centre line ``(bones, points, 3)`` in mm (x, y, z with z towards the front), an elliptical
section and a cortex. Points on the shell deposit the volume they stand for, so edges seen tangentially come out bright
by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_cnnprimer.phantom.anatomy import LEFT, RIGHT, Anatomy, Chest
from monai_cnnprimer.phantom.raster import Array, F, Grid, blur, cap, deposit, ellipsoid, resize, shrink, step, stream

SIDES = np.array([RIGHT, LEFT])
RIB_RADIUS = (50, 84, 108, 123, 132, 139, 144, 147, 149, 148, 138, 110)
RIB_END = (2.20, 2.45, 2.52, 2.54, 2.54, 2.50, 2.42, 2.30, 2.16, 1.98, 1.55, 1.05)
RIB_HALF_HEIGHT = 5.7
RIB_HALF_DEPTH = 3.4


@dataclass(frozen=True)
class Shell:
    """Points on bone surfaces (mm), each with its volume of cortical bone (mm^3); ``(bones, points, around)``."""

    x: NDArray
    y: NDArray
    volume: NDArray

    def only(self, bone: int) -> Shell:
        """One bone of the batch."""
        keep = slice(bone, bone + 1)
        return Shell(self.x[keep], self.y[keep], self.volume[keep])


def shell(path: NDArray, half_height: ArrayLike, half_depth: ArrayLike, cortex: ArrayLike, spacing: float) -> Shell:
    """Surface of tubes around `path` ``(bones, points, 3)``; the section's two half-axes and the cortex in mm."""
    path = np.asarray(path, F)
    height = np.broadcast_to(np.asarray(half_height, F), path.shape[:2])[..., None]
    depth = np.broadcast_to(np.asarray(half_depth, F), path.shape[:2])[..., None]
    along = np.gradient(path, axis=1)
    length = np.linalg.norm(along, axis=2, keepdims=True)
    along /= np.maximum(length, 1e-6)
    # The section's long axis is the part of "up" (y) that is square to the bone; the other is square to both.
    up = -along[..., 1:2] * along
    up[..., 1] += 1
    up /= np.maximum(np.linalg.norm(up, axis=2, keepdims=True), 1e-6)
    across = np.cross(along, up)
    around = int(np.clip(2 * np.pi * float(height.max()) / spacing, 12, 72))
    angle = ((np.arange(around) + 0.5) * (2 * np.pi / around)).astype(F)
    cosine, sine = np.cos(angle) * height, np.sin(angle) * depth
    arc = np.hypot(np.sin(angle) * height, np.cos(angle) * depth) * F(2 * np.pi / around)
    thickness = np.broadcast_to(np.asarray(cortex, F), path.shape[:2])[..., None]
    return Shell(
        path[..., 0:1] + up[..., 0:1] * cosine + across[..., 0:1] * sine,
        path[..., 1:2] + up[..., 1:2] * cosine + across[..., 1:2] * sine,
        arc * length * thickness,
    )


def _parameter(length_mm: float, grid: Grid) -> NDArray:
    """``(1, points)`` from 0 to 1, dense enough for bones of that length on the grid."""
    return np.linspace(0, 1, max(int(length_mm / min(max(0.9 * grid.spacing, 0.33), 1.2)), 24))[None]


def _both_sides(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
    """``(2, points, 3)``: a bone of the left side and its mirror image."""
    sides = SIDES[:, None]
    shape = np.broadcast_shapes(x.shape, y.shape, sides.shape)
    return np.stack([np.broadcast_to(part, shape) for part in (sides * x, y, z)], 2)


def rib_paths(anatomy: Anatomy, grid: Grid) -> NDArray:
    """Centre lines ``(24, points, 3)`` of the ribs, index ``2 * rib + (side is left)``, from the spine forward."""
    a, rng = anatomy, stream(anatomy.seed, "ribs")
    rib = np.repeat(np.arange(12), 2)[:, None]
    side = np.tile(SIDES, 12)[:, None]
    end = np.array(RIB_END)[rib] + rng.normal(0, 0.03, (24, 1))
    start = np.where(rib == 0, 0.22, 0.12)
    angle = start + (end - start) * _parameter(380, grid)
    radius = (np.array(RIB_RADIUS)[rib] + 2) * a.width
    x = side * radius * np.sin(angle) ** 0.93 + a.curve * 0.4 * np.cos(angle)
    drop = (40 + 10.5 * np.minimum(rib, 6)) * a.rib_drop * a.height
    first = (a.rib_phase - 12 + 22.3 * rib + 0.2 * rib**2) * a.height + rng.normal(0, 0.9, (24, 1))
    arch = np.where(rib == 0, 3, 8.5) * np.maximum(np.sin(2 * angle), 0) * (1 - rib / 14)
    y = first + drop * (1 - np.cos(angle)) / 2 - arch + 1.2 * np.sin(3 * angle + rib)
    return np.stack([x, y, -90 * np.cos(angle) * a.depth], 2)


def rib_shells(anatomy: Anatomy, paths: NDArray, grid: Grid) -> Shell:
    """The ribs around `paths`: ends fade into cartilage in front, the flat first pair is faint."""
    rib = np.repeat(np.arange(12), 2)[:, None]
    t = np.linspace(0, 1, paths.shape[1])[None]
    fade = np.clip(t / 0.03, 0.2, 1) * np.clip((1 - t) / 0.10, 0, 1) * (1 - 0.30 * np.clip((t - 0.55) / 0.3, 0, 1))
    # Where a rib runs along the beam a real one twists and thins; a plain tube would shine as a ring.
    turn = np.argmax(np.abs(paths[..., 0]), axis=1)[:, None] / paths.shape[1]
    twist = 1 - np.where(rib < 3, 0.62, 0.40) * np.exp(-(((t - turn) / 0.13) ** 2))
    cortex = 1.12 * anatomy.bone * fade * twist * np.where(rib == 0, 0.36, 1.0)
    height = np.where(rib == 0, 7.2, RIB_HALF_HEIGHT) * np.where(rib > 9, 0.75, 1.0) * (1 + 0.12 * np.sin(5 * t))
    depth = np.where(rib == 0, 2.4, RIB_HALF_DEPTH) + 0 * t
    return shell(paths, height, depth, cortex, grid.spacing)


def _clavicles(a: Anatomy, grid: Grid) -> Shell:
    t = _parameter(190, grid)
    rng = stream(a.seed, "clavicles")
    x = (13 + 152 * t) * a.width
    y = (36 - 46 * t + 7 * np.sin(2 * np.pi * t) - 4 * np.sin(np.pi * t)) * a.height + rng.normal(0, 2.5, (2, 1))
    height = 5.0 + 4.2 * np.exp(-t / 0.07) + 2.2 * t**3
    cortex = 1.5 * a.bone * np.clip(t / 0.03, 0.3, 1) * np.clip((1 - t) / 0.03, 0.2, 1)
    return shell(_both_sides(x, y, 60 - 70 * t), height, height * 0.75, cortex, grid.spacing)


def _scapulae(a: Anatomy, grid: Grid) -> list[Shell]:
    """Borders, spine and acromion, coracoid and the glenoid's rim; the shoulders are turned forward."""
    t = _parameter(150, grid)
    bow = np.sin(np.pi * t)
    w, h = a.width, a.height
    lines = (
        # from the inferior angle up the lateral border to the glenoid: the thickest
        ((136 + 32 * t + 3 * bow) * w, (122 - 92 * t) * h, 3.4 + 2.2 * t, 3.0, 0.75 + 0 * t),
        # medial border and superior border: thin
        ((136 - 12 * t - 8 * bow) * w, (122 - 112 * t) * h, 2.2 + 0 * t, 1.6, 0.40 * np.sqrt(bow)),
        ((124 + 34 * t) * w, (10 - 2 * t + 6 * bow) * h, 2.4 + 0 * t, 1.8, 0.38 * np.sqrt(bow)),
        # spine, broadening into the acromion over the humeral head
        ((126 + 60 * t) * w, (28 - 38 * t - 4 * bow) * h, 3.4 + 3.2 * t**2, 3.2, 0.55 + 0.25 * t),
        # coracoid
        ((160 - 13 * t) * w, (12 + 7 * t - 5 * bow) * h, 4.6 - 1.2 * t, 4.0, 0.55 + 0 * t),
        # glenoid rim
        ((167 + 4 * bow) * w, (8 + 32 * t) * h, 2.0 + 0 * t, 5.0, 0.5 * np.sqrt(bow)),
    )
    return [
        shell(_both_sides(x, y, 0 * t - 70), height, depth, cortex * a.bone * np.ones_like(t), grid.spacing)
        for x, y, height, depth, cortex in lines
    ]


def _humeri(a: Anatomy, grid: Grid) -> Shell:
    """Shafts of the humeri, arms abducted; the heads are drawn as spheres."""
    t = _parameter(120, grid)
    x, y = (188 + 52 * t) * a.width, (34 + 110 * t) * a.height
    cortex = 1.3 * a.bone * np.clip(t / 0.25, 0, 1) ** 2
    return shell(_both_sides(x, y, 0 * t), 15 - 4 * np.minimum(4 * t, 1), 11, cortex, grid.spacing)


def _spine(a: Anatomy, grid: Grid) -> list[Shell]:
    """Sixteen vertebrae: end plates, side walls, pedicles, transverse and spinous processes."""
    rng = stream(a.seed, "spine")
    level = np.arange(-3, 13)[:, None]
    middle = (a.rib_phase - 15 + 22.3 * level + 0.2 * level * abs(level)) * a.height + rng.normal(0, 0.5, (16, 1))
    centre = a.spine(middle.astype(F))
    half = 13.0 + 0.4 * np.maximum(level, 0)
    tall = 9.3 * a.height
    t = _parameter(34, grid) * 2 - 1
    up = (t + 1) / 2
    ones = np.ones_like(level) * np.ones_like(t)

    def bones(x: NDArray, y: NDArray, height: ArrayLike, depth: ArrayLike, cortex: ArrayLike) -> Shell:
        return shell(np.stack([x * ones, y * ones, 0 * ones], 2), height, depth, cortex * ones * a.bone, grid.spacing)

    parts = []
    for end in (-1, 1):
        plate = 11 * np.sqrt(np.maximum(1 - (0.9 * t) ** 2, 0.05))
        parts.append(bones(centre + half * t, middle + end * (tall - 1.6 * (1 - t**2)), 1.1, plate, 0.30))
        parts.append(bones(centre + end * half * (1 - 0.12 * (1 - t**2)), middle + tall * t, 1.1, 10, 0.20))
        oval = np.pi * (t + 1)
        pedicle = centre + end * (half - 4.2) + 2.5 * np.cos(oval)
        parts.append(bones(pedicle, middle - 3 + 4.0 * np.sin(oval), 0.8, 3, 0.34))
        parts.append(bones(centre + end * (half - 1 + 15 * up), middle - 4 - 3 * up, 3.6 - 1.2 * up, 3, 0.40))
    parts.append(bones(centre + 0 * t, middle + 3 + 13 * up, 2.0 + 1.2 * up, 2, 0.42))
    return parts


def _sternum(a: Anatomy, grid: Grid) -> Shell:
    """Manubrium's side borders, which show beside the mediastinum."""
    t = _parameter(50, grid)
    path = _both_sides((25 - 9 * t) * a.width, (30 + 44 * t) * a.height, 80 + 0 * t)
    return shell(path, 2.0, 4.5, 0.3 * a.bone, grid.spacing)


def _spongy(chest: Chest) -> Array:
    """Cancellous bone inside the vertebral bodies and the humeral heads, with the heads' thin cortex."""
    a, grid = chest.anatomy, chest.grid
    bone = F(1.9 * a.bone) * cap(((grid.columns - a.spine(grid.rows)) / F(15)) ** 2)
    for side in (RIGHT, LEFT):
        centre = (side * 186 * a.width, 26 * a.height)
        outer = ellipsoid(grid, centre, (24, 26, 23), 0.3 * side)
        inner = ellipsoid(grid, centre, (23.2, 25.2, 22.2), 0.3 * side)
        bone += blur((outer - inner) * F(0.45 * a.bone), 0.7 / grid.spacing) + inner * F(0.09 * a.bone)
    return bone


def skeleton(chest: Chest) -> Array:
    """Thickness in mm of bone along the beam, as cortical bone, ``(size, size)``."""
    a, grid = chest.anatomy, chest.grid
    shells = [rib_shells(a, rib_paths(a, grid), grid), _clavicles(a, grid), *_scapulae(a, grid), _humeri(a, grid)]
    shells += [*_spine(a, grid), _sternum(a, grid)]
    x, y, volume = (np.concatenate([getattr(part, name).ravel() for part in shells]) for name in ("x", "y", "volume"))
    bone = soften(deposit(grid, x, y, volume), grid) + _spongy(chest)
    return bone * step(chest.body - 10, 3)


def soften(cortex: Array, grid: Grid) -> Array:
    """Cortex as projected shells, to bone: edges as rough as real ones, marrow spaces filled with spongy bone."""
    size = min(grid.size, 512)
    spongy = blur(shrink(cortex, size), 2.4 * size / grid.width_mm)
    return F(0.9) * blur(cortex, max(0.6, 0.42 / grid.spacing)) + F(0.5) * resize(spongy, grid.size)
