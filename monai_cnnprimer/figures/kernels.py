# SPDX-License-Identifier: Apache-2.0
"""Kernels, their change in training, edges, locality, shifts and pooling, drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import draw_radiograph, new_page, png

# Okabe and Ito's colours, which remain apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_SMALL = 8


def style(axis: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels with units, small ticks, a faint grid."""
    axis.set_xlabel(xlabel, fontsize=_SMALL)
    axis.set_ylabel(ylabel, fontsize=_SMALL)
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.tick_params(labelsize=_SMALL)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)


def kernel_grids_png(grids: Mapping[str, NDArray[np.floating]], title: str) -> bytes:
    """First-layer kernels beside each other, each grid with a scale of its own, zero in the middle grey.

    Args:
        grids: panel title to kernels `(C, k, k)`.
        title: of the figure.
    """
    side, gap = 3.0, 0.95
    page = new_page(0.15 + len(grids) * (side + gap), side + 1.2, title)
    for i, (name, kernels) in enumerate(grids.items()):
        left = 0.15 + i * (side + gap)
        axis = page.axes(left, 0.75, side, side)
        scale = float(np.abs(kernels).max()) or 1.0
        axis.imshow(mosaic(kernels), cmap="gray", vmin=-scale, vmax=scale, interpolation="nearest")
        axis.set_title(name, fontsize=9, parse_math=False)
        axis.set_axis_off()
        bar = page.axes(left + side + 0.08, 0.75, 0.12, side)
        Colorbar(bar, ScalarMappable(Normalize(-scale, scale), "gray"))
        bar.tick_params(labelsize=7)
    return png(page.figure)


def mosaic(kernels: NDArray[np.floating]) -> NDArray[np.floating]:
    """Kernels `(C, k, k)` on one sheet as square as possible, a gap of one pixel (no number) between them."""
    count, height, width = kernels.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        row, column = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[row : row + height, column : column + width] = kernel
    return sheet


def change_by_depth_png(tables: Mapping[str, pd.DataFrame], title: str) -> bytes:
    """Relative change of every layer over its place in the network, on a logarithmic scale.

    Args:
        tables: name of a training to the table of `explain.kernels.relative_change`.
        title: of the figure.
    """
    page = new_page(7.6, 4.1, title)
    axis = page.axes(0.75, 0.75, 6.6, 2.5)
    for (name, table), colour, marker in zip(tables.items(), COLOURS, MARKERS, strict=False):
        percent = 100 * table["relative_change"]
        axis.semilogy(table["depth"], percent, marker, color=colour, markersize=3.5, label=name)
    first = next(iter(tables.values()))
    stages = first["layer"].str.extract(r"(layer\d|[^.]+)", expand=False)
    starts = [0, *np.flatnonzero(stages.to_numpy()[1:] != stages.to_numpy()[:-1]) + 1]
    for start in starts[1:]:
        axis.axvline(start - 0.5, color="0.8", linewidth=0.8)
    style(axis, "layer, from the image to the classifier", "change of the weights, % of their norm")
    axis.grid(visible=False, axis="x")
    axis.set_xticks(
        [start + (end - start - 1) / 2 for start, end in zip(starts, [*starts[1:], len(first)], strict=True)]
    )
    axis.set_xticklabels([stages.iloc[start] for start in starts])
    axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncol=len(tables), frameon=False)
    return png(page.figure)


def sobel_png(
    image: NDArray[np.floating],
    response: NDArray[np.floating],
    regions: Mapping[str, NDArray[np.bool_]],
    table: pd.DataFrame,
    title: str,
) -> bytes:
    """An image with its regions outlined, the absolute response of a filter, and the response by region.

    Args:
        image: `(H, W)`.
        response: `(H, W)`, signed.
        regions: name to mask `(H, W)`, outlined on the image; may be empty.
        table: of `explain.kernels.response_by_region`.
        title: of the figure.
    """
    side = 2.9
    height = side * image.shape[0] / image.shape[1]
    page = new_page(10.4, height + 1.45, title)
    shown, fired, bars = (page.axes(left, 0.75, side, height) for left in (0.15, 3.2, 7.3))
    draw_radiograph(shown, image)
    colours = dict(zip(table["region"], COLOURS, strict=False))
    for name, mask in regions.items():
        shown.contour(mask, levels=[0.5], colors=colours[name], linewidths=0.9)
    shown.set_title("network input", fontsize=9)
    draw_radiograph(fired, np.abs(response))
    fired.set_title("|Sobel-x|", fontsize=9)
    bars.barh(range(len(table)), table["p95"], color=[colours[name] for name in table["region"]], height=0.6)
    bars.plot(table["median"], range(len(table)), "|", color="black", markersize=14, label="median")
    bars.set_yticks(range(len(table)))
    bars.invert_yaxis()
    style(bars, "|response|, input units per pixel", "", "95th percentile by region")
    bars.set_yticklabels([f"{row.region}\n({row.pixels} px)" for row in table.itertuples()], fontsize=_SMALL)
    bars.grid(visible=False, axis="y")
    bars.legend(fontsize=7, loc="lower right")
    return png(page.figure)


def touched_png(touched: Mapping[str, NDArray[np.bool_]], title: str) -> bytes:
    """Which units of each layer change with one pixel.

    Args:
        touched: layer to units `(h, w)`, True where changed.
        title: of the figure.
    """
    side = 1.9
    page = new_page(0.15 + len(touched) * (side + 0.15), side + 1.25, title)
    for i, (name, units) in enumerate(touched.items()):
        axis = page.axes(0.15 + i * (side + 0.15), 0.75, side, side)
        axis.imshow(units, cmap=ListedColormap(["0.93", COLOURS[1]]), vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{name}\n{units.sum()} of {units.size} units", fontsize=_SMALL, parse_math=False)
    return png(page.figure)


def translation_png(errors: Mapping[str, pd.DataFrame], answers: Mapping[str, pd.DataFrame], title: str) -> bytes:
    """How far layers are from shifting with the image, and what the network's answer does meanwhile.

    Args:
        errors: layer to the table of `explain.kernels.shift_errors`.
        answers: image to a table of `shift` and `log_odds`.
        title: of the figure.
    """
    page = new_page(9.2, 4.0, title)
    left, right = page.axes(0.75, 0.75, 4.1, 2.45), page.axes(5.65, 0.75, 3.3, 2.45)
    for (name, table), colour, marker in zip(errors.items(), COLOURS, MARKERS, strict=False):
        left.plot(table["shift"], 100 * table["error"], f"-{marker}", color=colour, markersize=3, label=name)
    style(left, "shift of the image, px", "error, % of the map's norm", "map of the shifted image against shifted map")
    left.legend(fontsize=7, loc="upper right")
    left.set_ylim(bottom=-1, top=1.45 * left.get_ylim()[1])
    for (name, table), colour, marker in zip(answers.items(), COLOURS[3:], MARKERS, strict=False):
        right.plot(table["shift"], table["log_odds"], f"-{marker}", color=colour, markersize=3, label=name)
    style(right, "shift of the image, px", "log odds of the finding", "the network's answer")
    right.legend(fontsize=7)
    return png(page.figure)


def pooling_png(lines: pd.DataFrame, spots: pd.DataFrame, false_alarms: float, title: str) -> bytes:
    """What pooling keeps: a line's height, whether it can be told from noise, and a spot in ever larger windows.

    Args:
        lines: of `explain.pooling.pooled_line`, over contrast.
        spots: of the same, over windows, at one contrast.
        false_alarms: as given there.
        title: of the figure.
    """
    page = new_page(11.4, 3.9, title)
    kept, detected, larger = (page.axes(left, 0.75, 2.9, 2.4) for left in (0.7, 4.4, 8.1))
    names = {"max": "max pooling", "average": "average pooling", "none": "before pooling, place known"}
    for (pooling, name), colour, marker in zip(names.items(), COLOURS, MARKERS, strict=False):
        rows, windows = (table[table["pooling"] == pooling] for table in (lines, spots))
        drawn = {"color": colour, "marker": marker, "markersize": 3, "label": name}
        if pooling != "none":
            kept.semilogx(rows["contrast"], 100 * rows["kept"], **drawn)
        detected.semilogx(rows["contrast"], 100 * rows["detected"], **drawn)
        larger.semilogx(windows["window"], 100 * windows["detected"], **drawn)
    style(
        kept, "contrast of the line, noise SD", "rise of the pooled value, % of contrast", "line: height that is left"
    )
    style(
        detected, "contrast of the line, noise SD", "found, %", f"line: found at {100 * false_alarms:g} % false alarms"
    )
    contrast = spots["contrast"].iloc[0]
    style(larger, "side of the window, px", "found, %", f"spot of {contrast:g} SD: found")
    for axis, ticks in ((kept, (0.25, 0.5, 1, 2, 4, 8, 16)), (detected, (0.25, 0.5, 1, 2, 4, 8, 16))):
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(0.9 * lines["contrast"].min(), 1.1 * lines["contrast"].max())
    sides = sorted(spots["window"].unique())
    larger.set_xticks(sides, [str(side) for side in sides])
    for axis in (detected, larger):
        axis.axhline(100 * false_alarms, color="0.4", linestyle=":", linewidth=1)
    for axis in (kept, detected, larger):
        axis.set_ylim(0, 105)
        axis.minorticks_off()
    detected.legend(fontsize=7, loc="lower right")
    return png(page.figure)
