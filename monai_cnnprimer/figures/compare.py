# SPDX-License-Identifier: Apache-2.0
"""Two models on the same cases: differences by bin, agreement of logits, agreement of maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import Page, new_page, png

Interval = tuple[float | None, float | None, float | None]

_INK, _BLUE, _ORANGE, _GREY = "0.15", "#0072B2", "#D55E00", "0.55"
_ROW, _WIDTH = 0.27, 11.0  # inches
# Columns of the forest plot: left edge in inches, heading.
_NAME, _N, _A, _B, _AXIS, _AXIS_WIDTH, _TEXT, _P = 0.3, 2.75, 3.35, 4.05, 4.95, 3.1, 8.3, 10.05


class Difference(NamedTuple):
    """One line of a forest plot.

    Attributes:
        name: of the bin.
        cases: how many, in words.
        a: the first model's figure; None where it cannot be given.
        b: the second model's.
        interval: B minus A: value, low, high.
        p: in words.
        remark: why there is no value, or no interval, such as "too few".
    """

    name: str
    cases: str
    a: float | None
    b: float | None
    interval: Interval
    p: str = ""
    remark: str = ""


def forest_png(groups: Mapping[str, Sequence[Difference]], names: tuple[str, str], title: str, note: str = "") -> bytes:
    """Differences of figures, B minus A, with their 95 % intervals: a group of lines for each figure.

    Args:
        groups: name of a figure (AUROC, sensitivity) to its lines, all cases first.
        names: of the models A and B.
        title: of the plot.
        note: a sentence below it.

    Raises:
        ValueError: no lines.
    """
    lines = sum(len(rows) + 1 for rows in groups.values())
    if not lines:
        raise ValueError("no differences to draw")
    notes = textwrap.wrap(f"A: {names[0]};  B: {names[1]}.  {note}", 160)
    height = _ROW * lines
    title, more = _wrapped(title, _WIDTH)
    top = 0.95 + more
    page = new_page(_WIDTH, top + height + 0.75 + 0.17 * len(notes) + 0.3, title)
    axis = page.axes(_AXIS, top, _AXIS_WIDTH, height)
    limit = _draw_forest(axis, groups)
    for left, heading in (
        (_NAME, ""),
        (_N, "cases"),
        (_A, "A"),
        (_B, "B"),
        (_TEXT, "B − A (95 % interval)"),
        (_P, "p"),
    ):
        _text(page, left, top - 0.2, heading, weight="bold")
    row = 0
    for group, differences in groups.items():
        _text(page, _NAME - 0.12, top + (row + 0.5) * _ROW, group, weight="bold")
        row += 1
        for difference in differences:
            _write_line(page, top + (row + 0.5) * _ROW, difference)
            row += 1
    axis.set_xlim(-limit, limit)
    axis.set_xlabel("◂ A is better        B − A        B is better ▸", fontsize=8)
    for i, line in enumerate(notes):
        _text(page, _NAME - 0.12, top + height + 0.65 + 0.17 * i, line)
    return png(page.figure)


def agreement_png(
    logits: tuple[NDArray[np.floating], NDArray[np.floating]],
    labels: NDArray[np.floating],
    thresholds: tuple[float, float],
    figures: Mapping[str, Interval],
    names: tuple[str, str],
    title: str,
) -> bytes:
    """Both models' logits against each other, and their difference against their mean (Bland and Altman, 1986).

    Args:
        logits: of A and B, `(n,)` each, same cases.
        labels: `(n,)`, 0, 1 or not a number.
        thresholds: of A and B, on the scale of the logits.
        figures: `pearson`, `kappa`, `bias`, `lower`, `upper`: value, low, high.
        names: of the models A and B.
        title: of the figure.
    """
    a, b = logits
    title, more = _wrapped(title, 9.6)
    page = new_page(9.6, 5.1 + more, title)
    left, right = page.axes(0.75, 0.85 + more, 3.4, 3.2), page.axes(5.35, 0.85 + more, 3.4, 3.2)
    for axis, x, y in ((left, a, b), (right, (a + b) / 2, b - a)):
        for label, (word, colour, marker) in _CLASSES.items():
            chosen = np.isnan(labels) if label is None else labels == label
            if chosen.any():
                axis.plot(
                    x[chosen], y[chosen], marker, color=colour, markersize=4, alpha=0.7, label=word, mew=0.8, mfc="none"
                )
        axis.tick_params(labelsize=8)
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
    left.axvline(thresholds[0], color=_INK, linewidth=0.8, linestyle="--")
    left.axhline(thresholds[1], color=_INK, linewidth=0.8, linestyle="--")
    left.set_xlabel(f"logit of A\n{_short(names[0], 48)}", fontsize=8, parse_math=False)
    left.set_ylabel(f"logit of B\n{_short(names[1], 48)}", fontsize=8, parse_math=False)
    left.set_title(f"dashed: each model's threshold\nr = {_said(figures['pearson'])}", fontsize=8)
    left.legend(fontsize=8, frameon=False, loc="best")
    for name, style in (("bias", "-"), ("lower", ":"), ("upper", ":")):
        value, low, high = figures[name]
        if value is not None:
            right.axhline(value, color=_ORANGE, linewidth=1.2, linestyle=style)
            text = f"{'mean ' if name == 'bias' else ''}{value:.2f}".replace("-", "−")
            right.text(1.02, value, text, fontsize=8, va="center", color=_ORANGE, transform=right.get_yaxis_transform())
        if low is not None and high is not None:
            right.axhspan(low, high, color=_ORANGE, alpha=0.13, linewidth=0)
    right.set_xlabel("mean of both logits", fontsize=8)
    right.set_ylabel("B − A", fontsize=8)
    right.set_title(
        f"mean and limits of agreement, 95 % intervals shaded\nkappa of the calls {_said(figures['kappa'])}", fontsize=8
    )
    return png(page.figure)


def same_answer_png(
    values: Mapping[str, NDArray[np.floating]],
    means: Mapping[str, Interval],
    masses: Mapping[str, Mapping[str, Interval]],
    title: str,
    note: str = "",
) -> bytes:
    """How alike two models' maps are where both are right, and where each has its mass.

    Args:
        values: name of a measure, in words, to one value a case.
        means: the same names to mean, low, high.
        masses: region to the mean mass of `a` and `b`, each value, low, high; empty where none are known.
        title: of the figure.
        note: a sentence below it, such as that maps are unfit.
    """
    notes = textwrap.wrap(note, 110)
    title, more = _wrapped(title, 8.6)
    upper, lower = 0.55 * len(values), 0.36 * len(masses)
    top = 0.65 + more
    height = top + upper + 0.75 + (lower + 0.6 if masses else 0) + 0.2 * len(notes) + 0.4
    page = new_page(8.6, height, title)
    axis = page.axes(2.75, top, 3.6, upper)
    for row, (name, of_cases) in enumerate(values.items()):
        known = of_cases[~np.isnan(of_cases)]
        # Spread by rank, so that equal values stay countable and a figure is the same each time.
        spread = (np.argsort(np.argsort(known, kind="stable")) * 0.618 % 1 - 0.5) * 0.6
        axis.plot(known, row + spread, ".", color=_GREY, markersize=5, markeredgewidth=0, alpha=0.8)
        _mark(axis, row, means[name], _BLUE)
        _beside(axis, row, f"{_said(means[name])}, n = {known.size}")
    _label_rows(axis, list(values))
    axis.set_xlim(-1.05, 1.05)
    axis.axvline(0, color=_INK, linewidth=0.6)
    axis.set_xlabel("dots: cases; bar: mean with 95 % interval", fontsize=8)
    top += upper + 0.75
    if masses:
        axis = page.axes(2.75, top, 3.6, lower)
        for row, of in enumerate(masses.values()):
            _mark(axis, row - 0.17, of["a"], _BLUE)
            _mark(axis, row + 0.17, of["b"], _ORANGE)
            _beside(axis, row, f"A {_said(of['a'])}\nB {_said(of['b'])}")
        _label_rows(axis, [f"mass: {region}" for region in masses])
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(
            "share of the positive mass of A's (blue) and of B's maps (orange), mean with 95 % interval", fontsize=8
        )
        top += lower + 0.55
    for i, line in enumerate(notes):
        page.figure.text(
            0.5, 1 - (top + 0.05 + 0.2 * i) / page.height, line, fontsize=8, ha="center", va="top", parse_math=False
        )
    return png(page.figure)


_CLASSES = {
    0: ("no finding", _BLUE, "o"),
    1: ("finding", _ORANGE, "^"),
    None: ("label unknown", _GREY, "s"),
}


def _draw_forest(axis: Axes, groups: Mapping[str, Sequence[Difference]]) -> float:
    """Points and intervals; returns the largest distance from 0 that must be shown."""
    row, furthest = 0.0, [0.02]
    for differences in groups.values():
        axis.axhspan(row, row + 1, color="0.93", linewidth=0, zorder=0)
        row += 1
        for place, difference in enumerate(differences):
            value, low, high = difference.interval
            furthest += [abs(x) for x in difference.interval if x is not None]
            colour = _INK if place == 0 else _BLUE
            if low is not None and high is not None:
                axis.hlines(row + 0.5, low, high, color=colour, linewidth=1.6)
            if value is not None:
                axis.plot([value], [row + 0.5], "D" if place == 0 else "s", color=colour, markersize=5.5)
            row += 1
    axis.axvline(0, color=_INK, linewidth=0.8)
    axis.set_ylim(row, 0)
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    return 1.08 * max(furthest)


def _write_line(page: Page, top: float, difference: Difference) -> None:
    _text(page, _NAME, top, _short(difference.name, 34))
    _text(page, _N, top, difference.cases)
    for left, value in ((_A, difference.a), (_B, difference.b)):
        _text(page, left, top, "" if value is None else f"{value:.3f}")
    if difference.interval[0] is None:
        _text(page, _TEXT, top, difference.remark, color="0.4", style="italic")
        return
    told = _said(difference.interval, signed=True)
    _text(page, _TEXT, top, f"{told}, {difference.remark}" if difference.interval[1] is None else told)
    _text(page, _P, top, difference.p)


def _mark(axis: Axes, row: float, interval: Interval, colour: str) -> None:
    value, low, high = interval
    if low is not None and high is not None:
        axis.hlines(row, low, high, color=colour, linewidth=2.5)
    if value is not None:
        axis.plot([value], [row], "D", color=colour, markersize=5, markeredgecolor="white")


def _label_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def _beside(axis: Axes, row: float, text: str) -> None:
    axis.text(1.03, row, text, fontsize=7, va="center", transform=axis.get_yaxis_transform())


def _said(interval: Interval, signed: bool = False) -> str:
    value, low, high = interval
    if value is None:
        return "not known"
    form = "{:+.3f}" if signed else "{:.2f}"
    rest = "" if low is None or high is None else f" ({form.format(low)} to {form.format(high)})"
    return (form.format(value) + rest).replace("-", "−").replace("+0.000", "0.000").replace("−0.000", "0.000")


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _text(page: Page, left: float, top: float, text: str, **style: Any) -> None:
    place = left / page.width, 1 - top / page.height
    page.figure.text(*place, text, fontsize=8, va="center", parse_math=False, **style)


def _wrapped(title: str, width: float) -> tuple[str, float]:
    """A title in lines of a figure's width, and the inches that all but the first take."""
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, int(width * 12))]
    return "\n".join(lines), 0.17 * (len(lines) - 1)
