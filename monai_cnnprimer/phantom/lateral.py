# SPDX-License-Identifier: Apache-2.0
"""The lateral view that goes with a frontal one: simpler, for exports to hold what exports hold."""

from __future__ import annotations

import numpy as np

from monai_cnnprimer.phantom.anatomy import BODY, CAVITY, CAVITY_DEPTH, Anatomy
from monai_cnnprimer.phantom.bones import rib_paths, rib_shells, soften
from monai_cnnprimer.phantom.raster import Array, F, Grid, cap, cloud, deposit, ellipsoid, step, stream
from monai_cnnprimer.phantom.render import detect, develop, scattered
from monai_cnnprimer.phantom.sites import Site


def render_lateral(seed: int, size: int, site: Site) -> Array:
    """A left lateral radiograph ``(size, size)`` in [0, 1], bone bright, the sternum at the image's left."""
    grid = Grid(size, site.width_mm)
    anatomy = Anatomy.sample(seed)
    path = F(0.019) * _soft(anatomy, grid) + F(0.036) * _bone(anatomy, grid)
    noise = stream(seed, "noise", "lateral", site.name)
    log = detect(path, scattered(path, site), site, 1.0, noise)
    inside = log[path > 1]
    reference = float(np.percentile(inside, 10)), float(np.percentile(inside, 92))
    return develop(log, reference, site, grid.spacing)


def _soft(a: Anatomy, grid: Grid) -> Array:
    z, y = grid.columns, grid.rows
    half_width = np.minimum(a.along_y(BODY, y, a.width), 175 * a.width)
    cavity_width, cavity_depth = a.along_y(CAVITY, y, a.width), a.along_y(CAVITY_DEPTH, y, a.depth)
    trunk = 1.7 * half_width * cap((z / (cavity_depth + F(32 + 8 * a.fat))) ** 2)
    neck = 100 * cap(((z - 12) / F(58)) ** 2) * step(18 - y, 12)
    dome = 203 * a.height + a.dome + F(0.0058) * (z + 25) ** 2
    front = z + F(0.12) * (y - 60)
    lung = 1.55 * cavity_width * cap((front / cavity_depth) ** 2) * (y > 0) * step(dome - y, 1.5)
    heart = ellipsoid(grid, (-40 * a.depth, 182 * a.height), (48 * a.heart, 62 * a.heart, 34), 0.5)
    hilum = ellipsoid(grid, (2, 106 * a.height), (17, 20, 14))
    density = F(a.density) * (1 + F(0.10) * cloud(stream(a.seed, "lung", "lateral"), grid, 2.8, 40, 2))
    return np.maximum(trunk, neck) - np.maximum(lung - heart - hilum, 0) * (1 - density)


def _bone(a: Anatomy, grid: Grid) -> Array:
    # Seen from the side, depth becomes x. The frontal z points to the front; the sternum belongs at the left.
    turned = rib_paths(a, grid)[..., [2, 1, 0]] * np.array([-1, 1, 1])
    shells = rib_shells(a, turned, grid)
    ribs = F(0.6) * soften(deposit(grid, shells.x, shells.y, shells.volume), grid)
    y = grid.rows
    middle = F(64 * a.depth) + F(14) * np.cos((y - 110) / 95)
    level = np.cos(2 * np.pi * y / (22.3 * a.height))
    spine = F(3.4 * a.bone) * cap(((grid.columns - middle) / F(16)) ** 2) * (1 + F(0.35) * np.clip(level * 3, -1, 1))
    sternum = F(2.2 * a.bone) * cap(((grid.columns + 88 * a.depth + F(0.10) * (y - 110)) / F(6)) ** 2)
    return ribs + spine + sternum * step(y - 40, 3) * step(190 - y, 3)
