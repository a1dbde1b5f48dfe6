# SPDX-License-Identifier: Apache-2.0
"""Activations in pictures: the most active channels of one image, and all layers by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.ticker import PercentFormatter, ScalarFormatter
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import Page, draw_radiograph, new_page, png

_PANEL, _MAP, _GAP, _MARGIN, _TITLE, _BAR = 3.4, 0.84, 0.06, 0.15, 0.19, 0.85  # inches
_TOP = 0.85  # inches from the upper edge to the first picture


class ChannelMaps(NamedTuple):
    """Maps `(k, h, w)` of some channels of a layer, their numbers, and what stands above them."""

    title: str
    channels: Sequence[int]
    maps: NDArray[np.floating]


class LayerDepth(NamedTuple):
    """One layer's activity over images, each (mean, standard deviation), and what single channels do over all of them.

    The label's first line names the layer; all of it stands below the layer's place.
    """

    label: str
    zero_share: tuple[float, float]
    sparseness: tuple[float, float]
    autocorrelation: tuple[float, float]
    dead_share: float
    channel_means: NDArray[np.floating]


def channel_grid_png(
    image: NDArray[np.floating], layers: Sequence[ChannelMaps], title: str, aspect: float = 1.0
) -> bytes:
    """A radiograph, and beside it a grid of each layer's maps, as many rows as columns, in the order given.

    Each cell of a map is one square of colour, nothing is smoothed. All maps of a layer share one scale, from its
    lowest value, or zero if that is lower, to its highest.

    Args:
        image: `(H, W)`, any scale.
        layers: of the same image.
        title: of the figure.
        aspect: height of a pixel by its width, in the image and in the maps.

    Raises:
        ValueError: no layers, or maps that are not `(k, h, w)` with a number for each.
    """
    for layer in layers:
        if layer.maps.ndim != 3 or len(layer.maps) != len(layer.channels):
            shape = layer.maps.shape
            raise ValueError(f"{layer.title}: maps must be ({len(layer.channels)}, h, w), one a channel; got {shape}")
    if not layers:
        raise ValueError("a figure of activations needs at least one layer")
    heights = [_block_height(layer, aspect) for layer in layers]
    height = _PANEL * image.shape[0] * aspect / image.shape[1]
    widths = [_columns(layer) * (_MAP + _GAP) + _BAR for layer in layers]
    page = new_page(2 * _MARGIN + _PANEL + sum(widths), _TOP + max(height, *heights) + 0.4, title)
    axis = page.axes(_MARGIN, _TOP, _PANEL, height)
    draw_radiograph(axis, image, aspect)
    axis.set_title("network input", fontsize=9)
    left = 2 * _MARGIN + _PANEL
    for layer, block_height, width in zip(layers, heights, widths, strict=True):
        _draw_block(page, left, block_height, layer, aspect)
        left += width
    return png(page.figure)


def depth_png(layers: Sequence[LayerDepth], title: str) -> bytes:
    """How sparse, how dead, how smooth and how strong the layers are, side by side.

    Args:
        layers: from the first to the last.
        title: of the figure; it should say over how many images.

    Raises:
        ValueError: no layers.
    """
    if not layers:
        raise ValueError("a figure of activations needs at least one layer")
    width = max(2.4, 0.85 * len(layers) + 0.6)
    page = new_page(0.55 + 4 * (width + 0.75), 3.8, title)
    left = [0.55 + i * (width + 0.75) for i in range(4)]
    sparsity, dead, smooth, means = (page.axes(start, 0.7, width, 2.2) for start in left)
    _points(sparsity, [layer.zero_share for layer in layers], "units at exactly zero", "o", -0.08)
    _points(sparsity, [layer.sparseness for layer in layers], "sparseness (Treves-Rolls)", "s", 0.08)
    sparsity.legend(fontsize=7, loc="best")
    sparsity.set_title("Sparsity of an image", fontsize=9)
    _points(smooth, [layer.autocorrelation for layer in layers], "", "o", 0.0)
    smooth.set_title("Likeness of neighbouring cells", fontsize=9)
    smooth.set_ylabel("Moran's I (0: no order in space)", fontsize=8)
    smooth.axhline(0, color="grey", linewidth=0.8)
    _draw_dead(dead, [layer.dead_share for layer in layers])
    for axis in (sparsity, dead, smooth):
        axis.set_xticks(range(len(layers)), [layer.label for layer in layers])
        axis.set_xlim(-0.5, len(layers) - 0.5)
        axis.tick_params(labelsize=7)
    _draw_means(means, layers)
    return png(page.figure)


def _columns(layer: ChannelMaps) -> int:
    return int(np.ceil(np.sqrt(len(layer.channels))))


def _block_height(layer: ChannelMaps, aspect: float) -> float:
    rows = -(-len(layer.channels) // _columns(layer))
    return rows * (_map_height(layer, aspect) + _TITLE) - _TITLE


def _map_height(layer: ChannelMaps, aspect: float) -> float:
    return _MAP * layer.maps.shape[1] * aspect / layer.maps.shape[2]


def _draw_block(page: Page, left: float, height: float, layer: ChannelMaps, aspect: float) -> None:
    columns, map_height = _columns(layer), _map_height(layer, aspect)
    low, high = min(float(layer.maps.min()), 0.0), float(layer.maps.max())
    scale = Normalize(low, high if high > low else low + 1)
    width = columns * (_MAP + _GAP) - _GAP
    # One plot in inches for all maps: one for each takes a second more a figure.
    axis = page.axes(left, _TOP, width, height)
    for i, (channel, channel_map) in enumerate(zip(layer.channels, layer.maps, strict=True)):
        row, column = divmod(i, columns)
        x, y = column * (_MAP + _GAP), row * (map_height + _TITLE)
        place = (x, x + _MAP, y + map_height, y)
        axis.imshow(channel_map, cmap="magma", norm=scale, extent=place, aspect="auto", interpolation="nearest")
        axis.text(x + _MAP / 2, y - 0.03, f"channel {channel}", fontsize=7, ha="center", va="bottom")
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_axis_off()
    middle, top = (left + width / 2) / page.width, 1 - (_TOP - 0.2) / page.height
    page.figure.text(middle, top, layer.title, fontsize=9, ha="center", va="bottom", parse_math=False)
    _draw_scale(page.axes(left + width + 0.08, _TOP, 0.12, height), scale)


def _draw_scale(axis: Axes, scale: Normalize) -> None:
    powers = ScalarFormatter()
    powers.set_powerlimits((-2, 3))
    bar = Colorbar(axis, ScalarMappable(scale, "magma"), format=powers)
    bar.set_label("activation, one scale for the layer", fontsize=7)
    axis.yaxis.get_offset_text().set_fontsize(7)
    axis.tick_params(labelsize=7)


def _points(axis: Axes, spreads: Sequence[tuple[float, float]], label: str, marker: str, shift: float) -> None:
    """Means with one standard deviation; of a single image there is none."""
    means, deviations = np.array(spreads, dtype=float).T
    places = np.arange(len(means)) + shift
    axis.errorbar(places, means, np.nan_to_num(deviations), fmt=f"{marker}-", label=label, capsize=3, markersize=5)
    axis.set_ylim(float(np.nanmin(means - np.nan_to_num(deviations), initial=0)) - 0.05, 1.05)


def _draw_dead(axis: Axes, shares: Sequence[float]) -> None:
    axis.bar(range(len(shares)), shares, width=0.5)
    for place, share in enumerate(shares):
        axis.annotate(f"{share:.1%}", (place, share), (0, 2), textcoords="offset points", fontsize=7, ha="center")
    axis.set_ylim(0, max(1.25 * max(shares), 0.05))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_title("Channels never active in any image", fontsize=9)


def _draw_means(axis: Axes, layers: Sequence[LayerDepth]) -> None:
    for layer in layers:
        means = np.sort(layer.channel_means)[::-1]
        axis.plot(np.linspace(0, 1, len(means)), means, label=layer.label.split("\n")[0])
    axis.set_title("Mean activation of each channel", fontsize=9)
    axis.set_xlabel("channels, most active first", fontsize=8)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    if all(layer.channel_means.min() >= 0 and layer.channel_means.max() > 0 for layer in layers):
        axis.set_yscale("log")
    axis.legend(fontsize=7)
    axis.tick_params(labelsize=7)
