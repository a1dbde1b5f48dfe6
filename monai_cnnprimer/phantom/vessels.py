# SPDX-License-Identifier: Apache-2.0
"""The pulmonary vessels: trees that reach points spread through each lung."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.phantom.anatomy import CAVITY, LEFT, MEDIASTINUM_LEFT, MEDIASTINUM_RIGHT, Anatomy, Chest
from monai_cnnprimer.phantom.raster import Array, F, Grid, blur, deposit, resize, stream

TIPS = 300
"""Points a tree reaches in one lung; arteries and veins have a tree each."""


def vessels(chest: Chest) -> Array:
    """Thickness in mm of blood vessels in the lungs, ``(size, size)``."""
    trees = [
        _tree(chest, side, kind, root)
        for side, (x, y) in chest.hila.items()
        for kind, root in (("artery", (x, y)), ("vein", (x - side * 10, y + 16)))
    ]
    return _draw(chest.grid, np.concatenate(trees))


def _tips(anatomy: Anatomy, side: int, rng: np.random.Generator) -> NDArray:
    """Points ``(n, 2)`` in mm spread evenly over one lung field, leaving a bare rim under the pleura."""
    y = rng.uniform(10, 238, TIPS * 2) * anatomy.height
    outer = anatomy.along_y(CAVITY, y, anatomy.width)
    inner = anatomy.along_y(MEDIASTINUM_LEFT if side == LEFT else MEDIASTINUM_RIGHT, y, anatomy.width) * 0.75
    x = rng.uniform(15, 138, TIPS * 2) * anatomy.width
    keep = (x > inner) & (x < outer - rng.uniform(6, 16, TIPS * 2))
    return np.stack([side * x[keep], y[keep]], 1)[:TIPS]


def _tree(chest: Chest, side: int, kind: str, root: tuple[float, float]) -> NDArray:
    """Segments ``(n, 8)``: start, control and end point, calibre (radius) at start and end, of one tree."""
    anatomy = chest.anatomy
    rng = stream(anatomy.seed, "vessels", kind, side)
    points = _tips(anatomy, side, rng)
    points = np.concatenate([[root], points[np.argsort(np.hypot(*(points - root).T))]])
    parent = _parents(points)
    leaves = np.zeros(len(points))
    childless = np.ones(len(points), bool)
    childless[parent[1:]] = False
    leaves[childless] = 1
    for child in range(len(points) - 1, 0, -1):
        leaves[parent[child]] += leaves[child]
    # Calibre by the number of tips fed: a little under Murray's law (3), near a constant cross-section (2).
    radius = 0.72 * leaves ** (1 / 2.1)
    grand = parent[parent]
    heading = points[parent] - points[grand]
    heading /= np.maximum(np.hypot(*heading.T), 1e-6)[:, None]
    length = np.hypot(*(points - points[parent]).T)
    control = points[parent] + heading * (0.45 * length)[:, None]
    start_radius = np.minimum(radius[parent], radius * 1.25)
    return np.column_stack([points[parent], control, points, start_radius, radius])[1:]


def _parents(points: NDArray) -> NDArray:
    """For each point the point nearer to the root it grows from: near, and in the direction of flow."""
    offset = points[:, None] - points[None]
    distance = np.hypot(offset[..., 0], offset[..., 1]) + 1e-6
    outward = points - points[0]
    outward /= np.maximum(np.hypot(*outward.T), 1e-6)[:, None]
    along = np.einsum("ijk,ik->ij", offset, outward) / distance
    cost = distance * (1 + 2.2 * (1 - along))
    order = np.arange(len(points))
    cost[order[None] >= order[:, None]] = np.inf
    cost[0, 0] = 0
    return np.argmin(cost, axis=1)


def _draw(grid: Grid, segments: NDArray) -> Array:
    """Deposit each calibre class on a grid fit for it, and blur it to the width of its vessels."""
    total = np.zeros((grid.size, grid.size), F)
    edges = (0.0, 0.62, 0.9, 1.3, 1.9, 2.7, 99.0)
    for low, high in zip(edges, edges[1:], strict=False):
        group = segments[(segments[:, 7] > low) & (segments[:, 7] <= high)]
        if not len(group):
            continue
        sigma = 0.5 * float(np.mean(group[:, 7]))
        size = grid.size
        while size > 128 and grid.width_mm / size < sigma / 3:
            size //= 2
        coarse = grid.resized(size)
        x, y, volume = _samples(group, coarse.spacing)
        total += resize(blur(deposit(coarse, x, y, volume), sigma / coarse.spacing), grid.size)
    return np.minimum(total, F(15))


def _samples(segments: NDArray, spacing: float) -> tuple[NDArray, NDArray, NDArray]:
    """Points along quadratic curves, each with the volume (mm^3) of vessel it stands for."""
    x0, y0, xc, yc, x1, y1, r0, r1 = (column[:, None] for column in segments.T)
    length = np.hypot(x1 - x0, y1 - y0)
    count = int(np.clip(np.percentile(length, 95) / (0.7 * spacing), 4, 160))
    t = ((np.arange(count) + 0.5) / count)[None]
    x = (1 - t) ** 2 * x0 + 2 * t * (1 - t) * xc + t**2 * x1
    y = (1 - t) ** 2 * y0 + 2 * t * (1 - t) * yc + t**2 * y1
    return x, y, np.pi * (r0 + (r1 - r0) * t) ** 2 * length / count
