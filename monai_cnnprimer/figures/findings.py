# SPDX-License-Identifier: Apache-2.0
"""Figures of the small-finding benchmark: by size, localisation, paired differences, and what an arm costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from monai_cnnprimer.figures.page import Page, new_page, png

# Six colours that stay apart for most colour-blind readers (Okabe and Ito, 2008), each with a marker of its own.
_STYLES = (
    ("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "D"), ("#56B4E9", "^"), ("#009E73", "v"), ("#D55E00", "P"),
)  # fmt: skip
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP = 3.3, 2.7, 0.45, 0.75, 0.85  # inches
_FOOT = 1.25

Interval = tuple[float, float | None, float | None]


class Panel(NamedTuple):
    """One setting: its title, and for each arm a value with its interval at each place; None where there is none."""

    title: str
    values: Mapping[str, Sequence[Interval | None]]


class Row(NamedTuple):
    """One line of the forest: its name, the differences of each column, and whether a new group begins."""

    name: str
    differences: Sequence[Interval | None]
    first: bool


def by_size_png(panels: Sequence[Panel], bins: Sequence[str], measure: str, chance: float | None, title: str) -> bytes:
    """A measure by size bin, one panel a setting, all arms side by side with their intervals.

    Args:
        panels: settings; every arm has a value for each bin.
        bins: names on the horizontal axis.
        measure: name on the vertical axis.
        chance: value that guessing gives, drawn as a line; None draws none.
        title: of the figure.

    Raises:
        ValueError: no panels, or values that are not one a bin.
    """
    _check(panels, len(bins))
    page, axes = _panels(panels, title)
    held = [one for panel in panels for some in panel.values.values() for one in some if one is not None]
    lowest = min((one[0] if one[1] is None else one[1] for one in held), default=0.0)
    for axis, panel in zip(axes, panels, strict=True):
        for place, (arm, values) in enumerate(panel.values.items()):
            _draw_points(axis, place, len(panel.values), arm, values)
        if chance is not None:
            axis.axhline(chance, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
        axis.set_xticks(range(len(bins)), [name.removesuffix(" mm") for name in bins], fontsize=8)
        axis.set_xlim(-0.6, len(bins) - 0.4)
        axis.set_ylim(min(0.4, lowest - 0.05) if chance is not None else -0.03, 1.03)
        for edge in range(1, len(bins)):
            axis.axvline(edge - 0.5, color="0.92", linewidth=0.8, zorder=0)
        axis.set_xlabel("diameter of the nodule in mm", fontsize=8)
    axes[0].set_ylabel(measure, fontsize=8)
    _legend(page, list(panels[0].values))
    return png(page.figure)


def froc_png(panels: Sequence[Panel], rates: Sequence[float], title: str) -> bytes:
    """Sensitivity against false positives an image, one panel a setting.

    Args:
        panels: settings; every arm has a sensitivity for each rate.
        rates: false positives an image.
        title: of the figure.

    Raises:
        ValueError: no panels, or values that are not one a rate.
    """
    _check(panels, len(rates))
    page, axes = _panels(panels, title)
    for axis, panel in zip(axes, panels, strict=True):
        for place, (arm, values) in enumerate(panel.values.items()):
            colour, marker = _style(place)
            axis.plot(rates, [one[0] if one else np.nan for one in values], color=colour, marker=marker, label=arm,
                      markersize=4, linewidth=1.2)  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(list(rates)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticklabels([f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}" for rate in rates])
        axis.set_ylim(-0.03, 1.03)
        axis.grid(color="0.92")
        axis.set_xlabel("false positives an image", fontsize=8)
    axes[0].set_ylabel("findings hit", fontsize=8)
    _legend(page, list(panels[0].values))
    return png(page.figure)


def forest_png(rows: Sequence[Row], columns: Sequence[str], title: str, margin: float) -> bytes:
    """Paired differences with their intervals, a line each, a column for each setting.

    Args:
        rows: lines from top to bottom.
        columns: names of the settings.
        title: of the figure.
        margin: difference that would matter; drawn on either side of none.

    Raises:
        ValueError: no rows, or differences that are not one a column.
    """
    if not rows or any(len(row.differences) != len(columns) for row in rows):
        raise ValueError(f"{len(rows)} rows: a forest needs some, each with {len(columns)} differences")
    height, label, width = 0.2 * len(rows), 2.3, 2.4
    page = new_page(label + len(columns) * (width + 0.2) + 0.2, height + 1.5, title)
    ends = [end for row in rows for one in row.differences if one for end in one if end is not None]
    reach = max(0.1, 1.1 * max((abs(end) for end in ends), default=0.1))
    for place, column in enumerate(columns):
        axis = page.axes(label + place * (width + 0.2), 0.7, width, height)
        for at, row in enumerate(rows):
            _draw_difference(axis, at, row.differences[place])
            if row.first and at:
                axis.axhline(at - 0.5, color="0.8", linewidth=0.8)
        axis.axvspan(-margin, margin, color="0.93", zorder=0)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_xlim(-reach, reach)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_yticks(range(len(rows)), [row.name for row in rows] if place == 0 else [])
        axis.tick_params(labelsize=7)
        axis.set_title(column, fontsize=8, parse_math=False)
    page.figure.text(0.5, 0.3 / page.height, f"difference of AUROC, 95 % interval; grey: up to {margin:g} either way",
                     fontsize=8, ha="center")  # fmt: skip
    return png(page.figure)


def cost_png(panels: Sequence[Panel], multiply_adds: Sequence[Mapping[str, float]], measure: str, title: str) -> bytes:
    """A measure against what a forward costs, one panel a setting.

    Args:
        panels: settings; every arm has one value.
        multiply_adds: of each arm in each setting.
        measure: name on the vertical axis.
        title: of the figure.

    Raises:
        ValueError: no panels, or more than one value an arm.
    """
    _check(panels, 1)
    page, axes = _panels(panels, title)
    for axis, panel, costs in zip(axes, panels, multiply_adds, strict=True):
        for place, (arm, (one,)) in enumerate(panel.values.items()):
            if one is not None:
                _draw_interval(axis, costs[arm] / 1e9, one, place)
        axis.set_xlim(0, 1.12 * max(costs.values()) / 1e9)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.set_xlabel("multiply-adds an image, billions", fontsize=8)
    axes[0].set_ylabel(measure, fontsize=8)
    _legend(page, list(panels[0].values))
    return png(page.figure)


def _check(panels: Sequence[Panel], places: int) -> None:
    if not panels or any(len(some) != places for panel in panels for some in panel.values.values()):
        raise ValueError(f"{len(panels)} panels: a figure needs some, each with {places} values an arm")


def _panels(panels: Sequence[Panel], title: str) -> tuple[Page, list[Axes]]:
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    page = new_page(max(width, 6.5), _TOP + _HEIGHT + _FOOT, title)
    left = _LEFT + (page.width - width) / 2
    axes = [page.axes(left + place * (_WIDTH + _GAP), _TOP, _WIDTH, _HEIGHT) for place in range(len(panels))]
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel.title, fontsize=9, parse_math=False)
        axis.tick_params(labelsize=8)
    return page, axes


def _style(place: int) -> tuple[str, str]:
    return _STYLES[place % len(_STYLES)]


def _draw_points(axis: Axes, place: int, arms: int, arm: str, values: Sequence[Interval | None]) -> None:
    for at, one in enumerate(values):
        if one is not None:
            _draw_interval(axis, at + (place - (arms - 1) / 2) * 0.8 / arms, one, place)
        elif place == 0:
            axis.text(at, 0.5, "too few", fontsize=7, rotation=90, ha="center", va="center",
                      transform=axis.get_xaxis_transform())  # fmt: skip


def _draw_interval(axis: Axes, x: float, one: Interval, place: int) -> None:
    colour, marker = _style(place)
    value, low, high = one
    if low is not None and high is not None:
        axis.vlines(x, low, high, color=colour, linewidth=1.3)
    axis.plot([x], [value], marker, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.4)


def _draw_difference(axis: Axes, at: int, one: Interval | None) -> None:
    if one is None:
        axis.text(0, at, "not compared", fontsize=6.5, color="0.4", ha="center", va="center")
        return
    value, low, high = one
    clear = low is not None and high is not None and (low > 0 or high < 0)
    colour = "#0072B2" if clear else "0.35"
    if low is not None and high is not None:
        axis.hlines(at, low, high, color=colour, linewidth=1.4)
    axis.plot([value], [at], "D", color=colour, markersize=4)


def _legend(page: Page, arms: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=_style(place)[0], marker=_style(place)[1], markersize=5, linewidth=1.3, label=arm)
        for place, arm in enumerate(arms)
    ]
    page.figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.25 / page.height), ncols=len(arms), fontsize=8,
        frameon=False,
    )  # fmt: skip
