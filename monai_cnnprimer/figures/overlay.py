# SPDX-License-Identifier: Apache-2.0
"""Radiographs under maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import draw_radiograph, new_page, png

# Without its dark end, which looks like air, and its yellow, which turns green over grey.
HEAT = ListedColormap(colormaps["inferno"](np.linspace(0.25, 0.8, 256)))
OPACITY = 0.65
_PANEL, _TILE, _BAR, _MARGIN = 3.2, 2.4, 0.85, 0.12  # inches
# Outlines of regions, in colours that neither the radiograph nor the heat has.
_OUTLINES = {"lung": "#4cc9f0", "heart": "#3a86ff", "marker": "#ffff3f", "finding": "#38e54d"}

Masks = Mapping[str, NDArray[np.bool_]]
_NO_MASKS: Masks = MappingProxyType({})


class Tile(NamedTuple):
    """One picture of a contact sheet: image `(H, W)`, signed map `(H, W)`, caption, masks `(H, W)` by region."""

    image: NDArray[np.floating]
    heat: NDArray[np.floating]
    caption: str
    masks: Masks = _NO_MASKS


def overlay_png(
    image: NDArray[np.floating],
    heats: Mapping[str, NDArray[np.floating]],
    title: str,
    aspect: float = 1.0,
    masks: Masks = _NO_MASKS,
) -> bytes:
    """A radiograph, and beside it the same radiograph under each map; regions as outlines.

    Only the positive part of a map is shown: what raised the score. Full colour is the largest value of either sign, so
    a faint positive rest beside strong negative evidence stays faint, and a map of zeros leaves the radiograph bare.

    Args:
        image: `(H, W)`, any scale.
        heats: panel title to signed map `(H, W)`, aligned with `image`.
        title: of the figure.
        aspect: height of a pixel by its width.
        masks: region (lung, heart, marker, finding) to bool mask `(H, W)`.

    Raises:
        ValueError: a map or a mask of another shape than the image.
    """
    height = _PANEL * image.shape[0] * aspect / image.shape[1]
    left = _MARGIN + _PANEL + _MARGIN
    step = _PANEL + _BAR
    page = new_page(left + len(heats) * step, height + 1.3, title)
    axis = page.axes(_MARGIN, 0.8, _PANEL, height)
    draw_radiograph(axis, image, aspect)
    draw_regions(axis, image, masks)
    region_legend(axis, masks)
    axis.set_title("network input", fontsize=8)
    for i, (name, heat) in enumerate(heats.items()):
        axis = page.axes(left + i * step, 0.8, _PANEL, height)
        draw_radiograph(axis, image, aspect)
        draw_map(axis, image, heat, aspect)
        draw_regions(axis, image, masks)
        axis.set_title(name, fontsize=8, parse_math=False)
        if heat.max() > 0:
            _color_bar(page.axes(left + i * step + _PANEL + 0.08, 0.8, 0.12, height), full_scale(heat))
    return png(page.figure)


def contact_sheet_png(tiles: Sequence[Tile], title: str, columns: int = 4) -> bytes:
    """All tiles on one sheet, row by row, each map scaled by itself as in `overlay_png`.

    Raises:
        ValueError: no tiles, or a map of another shape than its image.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width = _MARGIN + columns * (_TILE + _MARGIN)
    title = textwrap.fill(title, int(width * 12))  # an inch holds about 12 signs
    top = 0.25 + 0.17 * (title.count("\n") + 1)
    captions = 0.15 * (max(tile.caption.count("\n") for tile in tiles) + 1)
    height = _TILE * max(tile.image.shape[0] / tile.image.shape[1] for tile in tiles)
    step = captions + height + 0.25
    page = new_page(width, top + rows * step + 0.4, title)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        axis = page.axes(_MARGIN + column * (_TILE + _MARGIN), top + row * step + captions, _TILE, height)
        draw_radiograph(axis, tile.image)
        draw_map(axis, tile.image, tile.heat)
        draw_regions(axis, tile.image, tile.masks)
        caption = "\n".join(_shortened(line) for line in tile.caption.split("\n"))
        axis.set_title(caption, fontsize=7, parse_math=False)
    region_legend(page.figure, {name: mask for tile in tiles for name, mask in tile.masks.items()})
    return png(page.figure)


def _shortened(line: str, most: int = 44) -> str:
    """The end of a long line, which tells files apart better than their folder."""
    return line if len(line) <= most else f"…{line[1 - most :]}"


def draw_map(axis: Axes, image: NDArray[np.floating], heat: NDArray[np.floating], aspect: float = 1.0) -> None:
    """The positive part of a map over its image, by its own largest value; errors where the two do not fit."""
    if heat.shape != image.shape:
        raise ValueError(f"map {heat.shape} on an image of {image.shape}; align it first")
    share = np.clip(heat / full_scale(heat), 0, 1)
    axis.imshow(share, cmap=HEAT, vmin=0, vmax=1, alpha=OPACITY * share, aspect=aspect, interpolation="nearest")
    if not share.any():
        axis.set_xlabel("nothing raised the score" if heat.any() else "the map is zero", fontsize=7)


def draw_regions(axis: Axes, image: NDArray[np.floating], masks: Masks) -> None:
    """The outlines of region masks over an image; errors where the two do not fit."""
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise ValueError(f"mask {name!r} {mask.shape} on an image of {image.shape}")
        if mask.any():
            # A border of one pixel, which closes outlines at the edge of the image.
            rows, columns = (np.arange(-1, side + 1) for side in mask.shape)
            axis.contour(columns, rows, np.pad(mask, 1), levels=[0.5], colors=_OUTLINES[name], linewidths=0.9)


def region_legend(parent: Axes | Figure, masks: Masks) -> None:
    """The colours of the outlines, below axes or at the foot of a figure."""
    lines = [Line2D([], [], color=_OUTLINES[name], label=name) for name in _OUTLINES if name in masks]
    if not lines:
        return
    below = isinstance(parent, Axes)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)} if below else {"loc": "lower left"}
    parent.legend(handles=lines, ncols=len(lines), fontsize=7, frameon=False, borderaxespad=0.4, **place)


def _color_bar(axis: Axes, full_scale: float) -> None:
    powers = ScalarFormatter()
    powers.set_powerlimits((-2, 3))
    bar = Colorbar(axis, ScalarMappable(Normalize(0, full_scale), HEAT), format=powers)
    bar.set_label("Grad-CAM, raw", fontsize=7)
    axis.yaxis.get_offset_text().set_fontsize(7)
    axis.tick_params(labelsize=7)


def full_scale(heat: NDArray[np.floating]) -> float:
    """The largest value of either sign; 1 for a map of zeros, which stays at zero."""
    return float(np.abs(heat).max()) or 1.0
