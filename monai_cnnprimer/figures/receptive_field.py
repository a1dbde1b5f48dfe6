# SPDX-License-Identifier: Apache-2.0
"""Receptive fields in pictures: what a unit could see, what it looks at, and what it would without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import Page, draw_radiograph, new_page, png

_PANEL, _GAP, _MARGIN, _TOP, _STEP, _PROFILE = 2.5, 0.3, 0.2, 0.85, 0.9, 2.7  # inches
_DECADES = 4.0
# Okabe and Ito's orange and sky blue: apart for every kind of colour vision, and on grey.
_COLOURS = ("#E69F00", "#56B4E9")
_RINGS = {0.5: "-", 0.95: "--"}


class MeasuredField(NamedTuple):
    """One effective receptive field as it is drawn, lengths in pixels.

    Attributes:
        mass: `(H, W)`, not negative.
        centroid: (row, column) of the mass.
        rings: share of the mass to the half axes (row, column) of an ellipse as large as the area that holds it.
        profile: mass of each column `(W,)`.
        bell: the Gaussian fitted to it `(W,)`.
        caption: below the map.
    """

    mass: NDArray[np.floating]
    centroid: tuple[float, float]
    rings: Mapping[float, tuple[float, float]]
    profile: NDArray[np.floating]
    bell: NDArray[np.floating]
    caption: str


class LayerFields(NamedTuple):
    """A layer's theoretical field, `size` pixels around `centre` (row, column), and the measured ones by weights."""

    title: str
    centre: tuple[float, float]
    size: float
    measured: Mapping[str, MeasuredField]


def receptive_fields_png(
    image: NDArray[np.floating],
    layers: Sequence[LayerFields],
    title: str,
    spacing_mm: tuple[float, float] | None = None,
) -> bytes:
    """A row of panels for each layer: the fields on a radiograph, their maps, their profiles.

    Rings are as large as the areas that hold 50 % (line) and 95 % (dashes) of the mass; the white box is the
    theoretical window. Maps show the window, each on a logarithmic scale from its own highest value down.

    Args:
        image: `(H, W)`, any scale.
        layers: with maps of the same size, and all with the same weights, at most two.
        title: of the figure.
        spacing_mm: (row, column) of a pixel; None leaves profiles in pixels.

    Raises:
        ValueError: no layers, or a map of another size than the image.
    """
    if not layers:
        raise ValueError("a figure of receptive fields needs at least one layer")
    row, column = spacing_mm or (1.0, 1.0)
    height = _PANEL * image.shape[0] * row / (image.shape[1] * column)
    weights = list(layers[0].measured)
    pictures = _PANEL + (len(weights)) * (_PANEL + _GAP)
    width = 2 * _MARGIN + pictures + 0.65 + _PROFILE + 0.45
    page = new_page(width, _TOP + len(layers) * (height + _STEP) + 0.15, title)
    for place, layer in enumerate(layers):
        top = _TOP + place * (height + _STEP)
        axis = page.axes(_MARGIN, top, _PANEL, height)
        _draw_rings(axis, image, layer, row / column)
        if not place:
            axis.legend(fontsize=5, loc="lower left", framealpha=0.7, borderpad=0.3, handlelength=1.6)
        for number, name in enumerate(weights, start=1):
            if layer.measured[name].mass.shape != image.shape:
                raise ValueError(f"map {layer.measured[name].mass.shape} for an image of {image.shape}")
            axis = page.axes(_MARGIN + number * (_PANEL + _GAP), top, _PANEL, height)
            _draw_map(axis, layer, name, row / column)
        left = _MARGIN + pictures + 0.08
        _draw_scale(page, left, top, height)
        left += 0.85
        _draw_profiles(page.axes(left, top, _PROFILE, height), layer, None if spacing_mm is None else column)
    return png(page.figure)


def _draw_rings(axis: Axes, image: NDArray[np.floating], layer: LayerFields, aspect: float) -> None:
    draw_radiograph(axis, image, aspect)
    for (name, field), colour in zip(layer.measured.items(), _COLOURS, strict=False):
        for share, style in _RINGS.items():
            rows, columns = field.rings[share]
            ring = Ellipse(field.centroid[::-1], 2 * columns, 2 * rows, label=f"{share * 100:.0f} % {name}")
            ring.set(fill=False, edgecolor=colour, linestyle=style, linewidth=1.3)
            axis.add_patch(ring)
    _draw_window(axis, layer)
    axis.set_xlim(-0.5, image.shape[1] - 0.5)
    axis.set_ylim(image.shape[0] - 0.5, -0.5)
    axis.set_title(layer.title, fontsize=8, parse_math=False)


def _draw_window(axis: Axes, layer: LayerFields) -> None:
    if np.isfinite(layer.size):
        row, column = (place - layer.size / 2 for place in layer.centre)
        box = Rectangle((column, row), layer.size, layer.size, label="theoretical")
        box.set(fill=False, edgecolor="white", linestyle=":", linewidth=1.3)
        axis.add_patch(box)


def _draw_map(axis: Axes, layer: LayerFields, name: str, aspect: float) -> None:
    field = layer.measured[name]
    lowest = field.mass.max() * 10**-_DECADES
    decades = np.log10(np.maximum(field.mass, lowest) / field.mass.max())
    axis.imshow(decades, cmap="magma", vmin=-_DECADES, vmax=0, aspect=aspect, interpolation="nearest")
    rows, columns = _window(layer, field.mass.shape)
    axis.set_xlim(*columns)
    axis.set_ylim(*rows[::-1])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(f"{name} weights", fontsize=8, parse_math=False)
    axis.set_xlabel(field.caption, fontsize=7, parse_math=False)


def _window(layer: LayerFields, sides: tuple[int, ...]) -> list[tuple[float, float]]:
    """Edges of the rows and of the columns to show: the theoretical window, as far as it lies in the image."""
    return [
        (max(-0.5, centre - layer.size / 2), min(side - 0.5, centre + layer.size / 2))
        for centre, side in zip(layer.centre, sides, strict=True)
    ]


def _draw_scale(page: Page, left: float, top: float, height: float) -> None:
    axis = page.axes(left, top, 0.1, height)
    bar = Colorbar(axis, ScalarMappable(Normalize(-_DECADES, 0), "magma"), ticks=[-4, -3, -2, -1, 0])
    bar.set_label("squared gradient / highest, log10", fontsize=6)
    axis.tick_params(labelsize=6)


def _draw_profiles(axis: Axes, layer: LayerFields, mm: float | None) -> None:
    sides = next(iter(layer.measured.values())).mass.shape
    scale = mm or 1.0
    for (name, field), colour in zip(layer.measured.items(), _COLOURS, strict=False):
        place = (np.arange(len(field.profile)) - layer.centre[1]) * scale
        peak = field.bell.max()
        axis.plot(place, field.profile / peak, color=colour, linewidth=0.7, alpha=0.6)
        axis.plot(place, field.bell / peak, color=colour, linewidth=1.8, label=f"{name}: Gaussian fit")
    axis.set_xlim(*((edge - layer.centre[1]) * scale for edge in _window(layer, sides)[1]))
    axis.set_ylim(bottom=0)
    axis.set_yticks([0, 1])
    axis.tick_params(labelsize=6)
    unit = "px" if mm is None else "mm"
    axis.set_xlabel(f"column, {unit} from the theoretical centre", fontsize=7)
    axis.set_title("mass of each column, highest of the fit 1", fontsize=8)
    axis.legend(fontsize=6, loc="upper right")
