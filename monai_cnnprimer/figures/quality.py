# SPDX-License-Identifier: Apache-2.0
"""How far maps can be trusted: a cascade of random weights, and where the mass of maps lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import Page, draw_radiograph, new_page, png

_PANEL, _GAP, _LEFT, _TOP, _CURVE, _ROW, _WIDTH = 1.45, 0.12, 0.95, 0.75, 2.1, 0.36, 7.8  # inches
_SIGNED = colormaps["RdBu_r"]
# Two colours that stay apart for most colour-blind readers (Okabe and Ito, 2008).
_CURVES = {"signed": ("signed maps", "#D55E00", "o"), "absolute": ("absolute values of the maps", "#0072B2", "s")}
_VERDICTS = {
    True: ("PASSES THIS CHECK", "#00694B"),
    False: ("UNFIT", "#B00020"),
    None: ("CANNOT TELL", "#7A5200"),
}
_LABELS = {
    "finding_mass_per_area": "finding",
    "lung_mass_per_area": "lungs",
    "heart_mass_per_area": "heart",
    "marker_mass_per_area": "side marker",
    "outside_lung_mass_per_area": "outside the lungs",
    "finding_pointing": "maximum in the finding",
    "lung_pointing": "maximum in the lungs",
    "heart_pointing": "maximum in the heart",
    "marker_pointing": "maximum on the side marker",
    "finding_mass": "mass in the finding",
    "lung_mass": "mass in the lungs",
    "heart_mass": "mass in the heart",
    "marker_mass": "mass on the side marker",
    "finding_iou": "overlap with the finding (IoU, Otsu)",
    "insertion": "area under insertion",
    "deletion": "area under deletion",
}


class RandomisedCase(NamedTuple):
    """One case along a cascade.

    Attributes:
        image: `(H, W)`.
        heats: signed maps `(H, W)`, aligned with the image: the original, then one a step.
        correlations: of each step's map with the original.
    """

    image: NDArray[np.floating]
    heats: Sequence[NDArray[np.floating]]
    correlations: Sequence[float]


def randomisation_png(
    case: RandomisedCase, rows: Sequence[Mapping[str, Any]], title: str, fit: bool | None, reason: str, limit: float
) -> bytes:
    """One case's maps while weights become random from left to right, and below them the correlation over all cases.

    Args:
        case: the maps to show.
        rows: one a step: `block`, and `signed` and `absolute`, each with `_low` and `_high`.
        title: of the figure.
        fit: the verdict; None when it cannot be told.
        reason: for the verdict, one sentence.
        limit: correlation that the verdict turns on.

    Raises:
        ValueError: maps or correlations that are not one a step, or of another shape than the image.
    """
    steps = len(rows)
    if len(case.heats) != steps + 1 or len(case.correlations) != steps:
        raise ValueError(f"{len(case.heats)} maps and {len(case.correlations)} correlations for {steps} steps")
    height = _PANEL * case.image.shape[0] / case.image.shape[1]
    width = (steps + 1) * (_PANEL + _GAP) - _GAP
    page = new_page(max(_WIDTH, _LEFT + width + 0.2), _TOP + height + _CURVE + 1.9, title)
    left = max(_LEFT, (page.width - width) / 2)
    for i, (name, heat) in enumerate(zip(_steps(rows), case.heats, strict=True)):
        axis = page.axes(left + i * (_PANEL + _GAP), _TOP, _PANEL, height)
        _draw_signed(axis, case.image, heat)
        found = f"r = {case.correlations[i - 1]:.2f}" if i else "r of this case:"
        axis.set_title(f"{name}\n{found}", fontsize=8, parse_math=False)
    _note(page, _TOP + height + 0.1, "red raises the score, blue lowers it; each map on its own scale")
    _draw_curves(page.axes(left, _TOP + height + 0.45, width, _CURVE), rows, limit)
    word, colour = _VERDICTS[fit]
    top = _TOP + height + _CURVE + 1.0
    _note(page, top, word, fontsize=10, color=colour, fontweight="bold")
    _note(page, top + 0.22, reason, fontsize=9, color=colour)
    return png(page.figure)


def quality_png(
    cases: Sequence[Mapping[str, float]], summaries: Mapping[str, tuple[float, float, float, int]], title: str
) -> bytes:
    """Measures of maps by region: a dot for each case, the mean with its 95 % interval.

    Args:
        cases: the measures of each case; those that are not numbers have no dot.
        summaries: key to mean, lower and upper end of its interval, and number of cases, in the order of drawing.
            Keys that end in `_per_area` are ratios, all others shares 0..1; the mean of `REGION_area` is not drawn but
            marked as chance at the region's mass and maximum.
        title: of the figure.

    Raises:
        ValueError: no measures.
    """
    if not summaries:
        raise ValueError("no measures to draw")
    measures = [key for key in summaries if not key.endswith("_area") or key.endswith("_per_area")]
    ratios = [key for key in measures if key.endswith("_per_area")]
    panels = [keys for keys in (ratios, [key for key in measures if key not in ratios]) if keys]
    page = new_page(_WIDTH, 0.6 + sum(0.75 + _ROW * len(keys) for keys in panels) + 0.1, title)
    top = 0.6
    for keys in panels:
        axis = page.axes(2.45, top, 3.6, _ROW * len(keys))
        values = {key: np.array([case[key] for case in cases if key in case]) for key in keys}
        _draw_dots(axis, values, summaries)
        if keys is ratios:
            _ratio_axis(axis, values)
        else:
            _share_axis(axis, keys, summaries)
        top += _ROW * len(keys) + 0.75
    return png(page.figure)


def _draw_signed(axis: Axes, image: NDArray[np.floating], heat: NDArray[np.floating]) -> None:
    if heat.shape != image.shape:
        raise ValueError(f"map {heat.shape} on an image of {image.shape}; align it first")
    share = heat / (np.abs(heat).max() or 1.0)
    draw_radiograph(axis, image)
    axis.imshow(share, cmap=_SIGNED, vmin=-1, vmax=1, alpha=0.75 * np.abs(share), interpolation="nearest")
    if not share.any():
        axis.set_xlabel("the map is zero", fontsize=7)


def _draw_curves(axis: Axes, rows: Sequence[Mapping[str, Any]], limit: float) -> None:
    steps = np.arange(1, len(rows) + 1)
    for offset, (name, (label, colour, marker)) in zip((-0.06, 0.06), _CURVES.items(), strict=True):
        mean, low, high = (np.array([row[f"{name}{end}"] for row in rows]) for end in ("", "_low", "_high"))
        axis.vlines(steps + offset, low, high, color=colour, linewidth=1.5)
        axis.plot(
            [0, *(steps + offset)], [1, *mean], color=colour, marker=marker, markersize=5, linewidth=1, label=label
        )
    axis.axhline(limit, color="black", linewidth=0.8, linestyle="--")
    axis.text(len(rows) + 0.47, limit + 0.03, "limit", fontsize=8, ha="right", va="bottom")
    axis.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    axis.set_xlim(-0.5, len(rows) + 0.5)
    axis.set_ylim(-1.05, 1.1)
    axis.set_xticks(range(len(rows) + 1), _steps(rows), fontsize=8)
    axis.set_xlabel("weights made random so far, from the head downwards", fontsize=8)
    axis.set_ylabel("rank correlation\nwith the trained map", fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(fontsize=8, loc="lower left", title="all cases: mean, 95 % interval", title_fontsize=8, frameon=False)


def _draw_dots(
    axis: Axes,
    values: Mapping[str, NDArray[np.floating]],
    summaries: Mapping[str, tuple[float, float, float, int]],
) -> None:
    for row, (key, points) in enumerate(values.items()):
        mean, low, high, n = summaries[key]
        shown = points[~np.isnan(points)]
        # Spread by rank, so that equal values stay countable and a figure is the same each time.
        spread = (np.argsort(np.argsort(shown, kind="stable")) * 0.618 % 1 - 0.5) * 0.5
        axis.plot(shown, row + spread, ".", color="0.55", markersize=5.5, markeredgewidth=0)
        axis.hlines(row, low, high, color="#0072B2", linewidth=2.5)
        axis.plot([mean], [row], "D", color="#0072B2", markersize=6, markeredgecolor="white")
        text = f"{mean:.2f} ({low:.2f} to {high:.2f}), n = {n}" if n > 1 else f"n = {n}"
        axis.text(1.03, row, text, fontsize=7, va="center", transform=axis.get_yaxis_transform())
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_yticks(range(len(values)), [_LABELS.get(key, key) for key in values], fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def _ratio_axis(axis: Axes, values: Mapping[str, NDArray[np.floating]]) -> None:
    highest = max((float(np.nanmax(points)) for points in values.values() if not np.isnan(points).all()), default=1.0)
    axis.set_xscale("symlog", base=2, linthresh=1)
    powers = [0.0, 0.5, *(2.0**power for power in range(max(3, int(np.ceil(np.log2(max(highest, 1)))) + 1)))]
    axis.set_xlim(-0.05, powers[-1] * 1.05)
    axis.xaxis.set_major_locator(FixedLocator(powers))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}×")
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_xlabel("share of the map's mass by share of the image's area; 1× has no preference", fontsize=8)


def _share_axis(axis: Axes, keys: Sequence[str], summaries: Mapping[str, tuple[float, float, float, int]]) -> None:
    for row, key in enumerate(keys):
        region, _, measure = key.partition("_")
        if measure in ("pointing", "mass") and f"{region}_area" in summaries:
            axis.plot([summaries[f"{region}_area"][0]], [row], "|", color="black", markersize=17)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of the maps (maximum) or of their mass; black stroke: by chance", fontsize=8)


def _steps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["trained", *(f"+ {row['block']}" for row in rows)]


def _note(page: Page, top: float, text: str, **style: Any) -> None:
    page.figure.text(
        0.5, 1 - top / page.height, text, ha="center", va="top", parse_math=False, **{"fontsize": 8, **style}
    )
