# SPDX-License-Identifier: Apache-2.0
"""Figures of an audit: cases before and after, how far each intervention moves the logit, and the gate's own power."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from monai_cnnprimer.figures.page import Page, draw_radiograph, new_page, png

# Colours that stay apart for most colour-blind readers (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_VERDICTS = {"fail": "#D55E00", "pass": "#009E73", "undecided": "#E69F00"}
_PLAIN = "#555555"
_PANEL, _GAP, _APART = 1.45, 0.06, 0.35  # inches
_NAME = 2.3

Interval = tuple[float | None, float | None, float | None]


class Strip(NamedTuple):
    """One case in a row: a heading, and panels of an image `(H, W)` in [0, 1], a caption, and where to outline."""

    heading: str
    panels: Sequence[tuple[NDArray[np.floating], str, NDArray[np.bool_] | None]]


class Moved(NamedTuple):
    """One line of the forest: how far an intervention and its control move the logit, in its limit's unit."""

    name: str
    effect: Interval
    control: Interval
    limit: float | None
    verdict: str
    remark: str


def strips_png(strips: Sequence[Strip], title: str, columns: int = 2) -> bytes:
    """Cases before and after beside each other; what changed is outlined.

    Raises:
        ValueError: no strips.
    """
    if not strips:
        raise ValueError("no cases to draw")
    columns = min(columns, len(strips))
    most = max(len(strip.panels) for strip in strips)
    width = columns * (most * (_PANEL + _GAP) + _APART)
    title = textwrap.fill(title, int(width * 12))
    tallest = max(image.shape[0] / image.shape[1] for strip in strips for image, _, _ in strip.panels)
    height = _PANEL * min(tallest, 1.6)
    step, top = height + 0.62, 0.3 + 0.17 * (title.count("\n") + 1)
    page = new_page(width, top + -(-len(strips) // columns) * step + 0.35, title)
    for number, strip in enumerate(strips):
        row, column = divmod(number, columns)
        _draw_strip(page, strip, 0.15 + column * (most * (_PANEL + _GAP) + _APART), top + row * step, height)
    return png(page.figure)


def effects_png(lines: Sequence[Moved], title: str, unit: str) -> bytes:
    """How far each intervention moves the network, with the interval that the gate uses, its control and its limit.

    Args:
        lines: from top to bottom.
        title: of the figure.
        unit: of the values, on the horizontal axis.

    Raises:
        ValueError: no lines.
    """
    if not lines:
        raise ValueError("no interventions to draw")
    height = 0.27 * len(lines)
    page = new_page(8.0, height + 1.55, title)
    axis = page.axes(_NAME, 0.5, 3.4, height)
    ends = [end for one in lines for end in (*one.effect, *one.control, one.limit) if end is not None]
    reach = max(ends, default=0.1)
    for row, one in enumerate(lines):
        if one.limit is not None:
            axis.plot([one.limit] * 2, [row - 0.42, row + 0.42], color="black", linewidth=1.6)
        _interval(axis, row + 0.16, one.control, "#999999", "D", 3.5)
        _interval(axis, row - 0.1, one.effect, _VERDICTS.get(one.verdict, _PLAIN), "o", 5)
        colour = _VERDICTS.get(one.verdict, _PLAIN)
        axis.text(1.03, row, f"{one.verdict}  {one.remark}", fontsize=7, va="center", color=colour,
                  transform=axis.get_yaxis_transform(), parse_math=False)  # fmt: skip
    axis.set_ylim(len(lines) - 0.5, -0.5)
    low = min(0.0, *ends) if ends else 0.0
    axis.set_xlim(low - 0.04, 1.15 * reach)
    axis.set_xscale("symlog", linthresh=1, linscale=2)  # the limits lie below 1, the other polarity at hundreds
    ticks = [tick for tick in (0, 0.25, 0.5, 1, 10, 100, 1000) if tick <= 1.15 * reach]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks(range(len(lines)), [one.name for one in lines], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.set_xlabel(unit, fontsize=8)
    handles = [
        Line2D([], [], color=_PLAIN, marker="o", label="intervention"),
        Line2D([], [], color="#999999", marker="D", markersize=4, label="control of equal area"),
        Line2D([], [], color="black", linewidth=1.6, label="limit"),
    ]
    page.figure.legend(handles=handles, loc="lower center", ncol=3, fontsize=8, frameon=False,
                       bbox_to_anchor=(0.5, 0.22 / page.height))  # fmt: skip
    return png(page.figure)


def power_png(panels: Mapping[str, Mapping[str, Sequence[tuple[str, Interval]]]], title: str) -> bytes:
    """How often the gate trips, by what was planted: one panel each, a line for each finding, Wilson's intervals.

    Args:
        panels: heading to lines, each a name to places (name on the axis, share with its interval).
        title: of the figure.

    Raises:
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("nothing was planted")
    page = new_page(0.8 + 3.1 * len(panels), 4.1, title)
    for number, (heading, lines) in enumerate(panels.items()):
        axis = page.axes(0.65 + 3.1 * number, 0.75, 2.6, 2.2)
        places = list(dict.fromkeys(place for points in lines.values() for place, _ in points))
        for turn, (name, points) in enumerate(lines.items()):
            at = [places.index(place) + 0.12 * (turn - (len(lines) - 1) / 2) for place, _ in points]
            _draw_rates(axis, at, [rate for _, rate in points], name, turn)
        axis.axhline(0.95, color="0.5", linewidth=0.8, linestyle="--")
        axis.axhline(0.05, color="0.5", linewidth=0.8, linestyle="--")
        axis.set_ylim(-0.04, 1.04)
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.set_xticks(range(len(places)), places, fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(heading, fontsize=9, parse_math=False)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        axis.legend(fontsize=7, frameon=False, loc="center right")
        if number == 0:
            axis.set_ylabel("share of runs in which the gate fails", fontsize=8)
    told = "correlation of what was planted with the label; dashed: 5 % and 95 %; 95 % intervals by Wilson"
    page.figure.text(0.5, 0.42 / page.height, told, fontsize=8, ha="center")
    return png(page.figure)


def _draw_rates(axis: Axes, at: Sequence[float], rates: Sequence[Interval], name: str, turn: int) -> None:
    colour, marker = _COLOURS[turn % len(_COLOURS)], _MARKERS[turn % len(_MARKERS)]
    values = [np.nan if value is None else value for value, _, _ in rates]
    axis.plot(at, values, color=colour, marker=marker, markersize=5, linewidth=1, label=name)
    for x, (_, low, high) in zip(at, rates, strict=True):
        if low is not None and high is not None:
            axis.vlines(x, low, high, color=colour, linewidth=1.4)


def _draw_strip(page: Page, strip: Strip, left: float, top: float, height: float) -> None:
    for place, (image, caption, where) in enumerate(strip.panels):
        axis = page.axes(left + place * (_PANEL + _GAP), top + 0.34, _PANEL, height)
        draw_radiograph(axis, image)
        axis.images[-1].set_clim(0, 1)
        if where is not None and where.any() and not where.all():
            around = binary_dilation(where, iterations=max(1, round(0.02 * max(where.shape))))
            axis.contour(around.astype(float), levels=[0.5], colors=["#4cc9f0"], linewidths=0.7)
        axis.set_xlabel(caption, fontsize=7, labelpad=2, parse_math=False)
    where_from_left = left / page.width, 1 - (top + 0.2) / page.height
    page.figure.text(*where_from_left, strip.heading, fontsize=8, va="center", parse_math=False)


def _interval(axis: Axes, row: float, interval: Interval, colour: str, marker: str, size: float) -> None:
    value, low, high = interval
    if value is None:
        return
    if low is not None and high is not None:
        axis.hlines(row, low, high, color=colour, linewidth=1.6)
    axis.plot([value], [row], marker, color=colour, markersize=size)
