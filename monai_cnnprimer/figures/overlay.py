# SPDX-License-Identifier: Apache-2.0
"""Radiographs under maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import draw_radiograph, new_page, png

# Without its dark end, which looks like air, and its yellow, which turns green over grey.
_HEAT = ListedColormap(colormaps["inferno"](np.linspace(0.25, 0.8, 256)))
_OPACITY = 0.65
_PANEL, _TILE, _BAR, _MARGIN = 3.2, 2.4, 0.85, 0.12  # inches


class Tile(NamedTuple):
    """One picture of a contact sheet: image `(H, W)`, signed map `(H, W)`, caption."""

    image: NDArray[np.floating]
    heat: NDArray[np.floating]
    caption: str


def overlay_png(
    image: NDArray[np.floating], heats: Mapping[str, NDArray[np.floating]], title: str, aspect: float = 1.0
) -> bytes:
    """A radiograph, and beside it the same radiograph under each map.

    Only the positive part of a map is shown: what raised the score. Full colour is the largest value of either sign, so
    a faint positive rest beside strong negative evidence stays faint, and a map of zeros leaves the radiograph bare.

    Args:
        image: `(H, W)`, any scale.
        heats: panel title to signed map `(H, W)`, aligned with `image`.
        title: of the figure.
        aspect: height of a pixel by its width.

    Raises:
        ValueError: a map of another shape than the image.
    """
    height = _PANEL * image.shape[0] * aspect / image.shape[1]
    left = _MARGIN + _PANEL + _MARGIN
    step = _PANEL + _BAR
    page = new_page(left + len(heats) * step, height + 1.3, title)
    axis = page.axes(_MARGIN, 0.8, _PANEL, height)
    draw_radiograph(axis, image, aspect)
    axis.set_title("network input", fontsize=9)
    for i, (name, heat) in enumerate(heats.items()):
        axis = page.axes(left + i * step, 0.8, _PANEL, height)
        draw_radiograph(axis, image, aspect)
        _overlay(axis, image, heat, aspect)
        axis.set_title(name, fontsize=9, parse_math=False)
        if heat.max() > 0:
            _color_bar(page.axes(left + i * step + _PANEL + 0.08, 0.8, 0.12, height), _full_scale(heat))
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
    height = _TILE * max(tile.image.shape[0] / tile.image.shape[1] for tile in tiles)
    step = height + 0.55
    page = new_page(_MARGIN + columns * (_TILE + _MARGIN), 0.4 + rows * step + 0.4, title)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        axis = page.axes(_MARGIN + column * (_TILE + _MARGIN), 0.4 + row * step + 0.4, _TILE, height)
        draw_radiograph(axis, tile.image)
        _overlay(axis, tile.image, tile.heat)
        caption = "\n".join(_shortened(line) for line in tile.caption.split("\n"))
        axis.set_title(caption, fontsize=7, parse_math=False)
    return png(page.figure)


def _shortened(line: str, most: int = 44) -> str:
    """The end of a long line, which tells files apart better than their folder."""
    return line if len(line) <= most else f"…{line[1 - most :]}"


def _overlay(axis: Axes, image: NDArray[np.floating], heat: NDArray[np.floating], aspect: float = 1.0) -> None:
    if heat.shape != image.shape:
        raise ValueError(f"map {heat.shape} on an image of {image.shape}; align it first")
    share = np.clip(heat / _full_scale(heat), 0, 1)
    axis.imshow(share, cmap=_HEAT, vmin=0, vmax=1, alpha=_OPACITY * share, aspect=aspect, interpolation="nearest")
    if not share.any():
        axis.set_xlabel("nothing raised the score" if heat.any() else "the map is zero", fontsize=7)


def _color_bar(axis: Axes, full_scale: float) -> None:
    powers = ScalarFormatter()
    powers.set_powerlimits((-2, 3))
    bar = Colorbar(axis, ScalarMappable(Normalize(0, full_scale), _HEAT), format=powers)
    bar.set_label("Grad-CAM, raw", fontsize=7)
    axis.yaxis.get_offset_text().set_fontsize(7)
    axis.tick_params(labelsize=7)


def _full_scale(heat: NDArray[np.floating]) -> float:
    """The largest value of either sign; 1 for a map of zeros, which stays at zero."""
    return float(np.abs(heat).max()) or 1.0
