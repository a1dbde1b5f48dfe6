# SPDX-License-Identifier: Apache-2.0
"""Sites beside each other, as SVG in the colours of the page: forest plots, ROC, PR, reliability, decision curves."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import new_page

Array = NDArray[np.floating]

# Drawn with these colours, which no figure needs otherwise; the page says what they are, light or dark.
INK, FAINT, BACK = "#010101", "#020202", "#030303"
SERIES = ("#100001", "#100002", "#100003", "#100004", "#100005")
_VARIABLES = {INK: "text", FAINT: "line", BACK: "back"} | {colour: f"site-{i}" for i, colour in enumerate(SERIES, 1)}
_DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v")
_WIDTH, _SIDE, _LEFT, _TOP = 3.9, 3.1, 0.62, 0.42  # inches
_MOST_POINTS = 400


class Estimate(NamedTuple):
    """A value with its interval; None where it cannot be given."""

    value: float | None
    low: float | None
    high: float | None


class Curve(NamedTuple):
    """One site's line `(n,)`, and the point on it that the locked threshold reaches, if there is one."""

    x: Array
    y: Array
    point: tuple[float, float] | None = None


class Reliability(NamedTuple):
    """One site's bins `(b,)`: mean predicted probability, observed share of positives, its interval."""

    predicted: Array
    observed: Array
    low: Array
    high: Array


class _Look(NamedTuple):
    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    marker: str


Drawn = TypeVar("Drawn")


def forest_svg(rows: Mapping[str, Estimate], title: str, reference: float | None = None) -> str:
    """A line for each site: the estimate and its interval between 0 and 1; a site without one keeps its line.

    Args:
        rows: site to estimate, drawn from the top.
        title: what is estimated.
        reference: a value to compare with, drawn as a line, such as 0.5 for an AUROC.
    """
    height = 0.3 * len(rows)
    with _drawing():
        page = new_page(_WIDTH, height + 1.15, title)
        axis = page.axes(1.15, 0.42, _WIDTH - 1.35, height)
        for row, (value, low, high) in enumerate(rows.values()):
            colour, _, marker = _look(row)
            if value is None:
                axis.text(0.5, row, "cannot be given", fontsize=8, ha="center", va="center", style="italic")
                continue
            if low is not None and high is not None:
                axis.hlines(row, low, high, color=colour, linewidth=1.8)
            axis.plot([value], [row], marker, color=colour, markersize=6, clip_on=False)
        if reference is not None:
            axis.axvline(reference, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        _style(axis, "", "")
        axis.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axis.set_xticks(np.linspace(0, 1, 6))
        axis.set_xlim(0, 1)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        return _svg(page.figure, f"forest {title}")


def roc_svg(curves: Mapping[str, Curve | None], title: str = "ROC") -> str:
    """Receiver operating characteristic: `x` false positive rate, `y` sensitivity; the diagonal is chance.

    Here and below, None stands for a site without a curve: it is left out, and the others keep their colours.
    """

    def draw(axis: Axes) -> None:
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        _draw_curves(axis, curves)
        _unit(axis, "1 − specificity", "sensitivity")

    return _square(draw, curves, title, dots="the locked threshold")


def precision_recall_svg(curves: Mapping[str, Curve | None], prevalence: Mapping[str, float], title: str) -> str:
    """Precision against recall: `x` sensitivity, `y` positive predictive value; dotted: each site's prevalence."""

    def draw(axis: Axes) -> None:
        for look, name, _ in _drawn(curves):
            axis.axhline(prevalence[name], color=look.colour, linewidth=0.8, linestyle=(0, (1, 2)))
        _draw_curves(axis, curves)
        _unit(axis, "sensitivity", "positive predictive value")

    return _square(draw, curves, title, dots="the locked threshold")


def reliability_svg(curves: Mapping[str, Reliability | None], title: str = "Reliability") -> str:
    """Observed share of positives against the predicted probability, with 95 % intervals; the diagonal is right."""

    def draw(axis: Axes) -> None:
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        for look, _, curve in _drawn(curves):
            axis.vlines(curve.predicted, curve.low, curve.high, color=look.colour, linewidth=1)
            line: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "linewidth": 1}
            axis.plot(curve.predicted, curve.observed, look.marker, markersize=4.5, **line)
        _unit(axis, "predicted probability", "observed share with the finding")

    return _square(draw, curves, title)


def decision_svg(curves: Mapping[str, Curve | None], everyone: Mapping[str, Curve], title: str) -> str:
    """Net benefit against the threshold probability; thin: calling everyone positive; 0: calling no one."""
    best = max((float(curve.y.max()) for curve in (*curves.values(), *everyone.values()) if curve), default=0.0)

    def draw(axis: Axes) -> None:
        for look, name, _ in _drawn(curves):
            line = everyone[name]
            axis.plot(line.x, line.y, color=look.colour, linewidth=0.8, linestyle=(0, (1, 2)))
        axis.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        _draw_curves(axis, curves)
        _style(axis, "threshold probability", "net benefit")
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.25 * max(best, 0.1), 1.08 * max(best, 0.1))

    return _square(draw, curves, title)


def _square(draw: Callable[[Axes], None], curves: Mapping[str, object], title: str, dots: str = "") -> str:
    """A square of axes with the legend below it, two sites a line."""
    drawn = _drawn(curves)
    lines = -(-(len(drawn) + bool(dots)) // 2)
    with _drawing():
        page = new_page(_WIDTH, _TOP + _SIDE + 0.75 + 0.2 * lines, title)
        axis = page.axes(_LEFT, _TOP, _SIDE, _SIDE)
        draw(axis)
        for look, name, _ in drawn:
            line: dict[str, Any] = {"color": look.colour, "linestyle": look.dash, "marker": look.marker}
            axis.plot([], [], markersize=4.5, label=_short(name), **line)
        if dots:
            axis.plot([], [], "o", color=INK, markersize=6, markerfacecolor="none", label=dots)
        below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.46 / _SIDE)}
        axis.legend(ncols=2, fontsize=8, frameon=False, borderaxespad=0, handlelength=3, **below)
        return _svg(page.figure, title)


def _drawn(curves: Mapping[str, Drawn | None]) -> list[tuple[_Look, str, Drawn]]:
    """The sites that have a curve, each with the look of its place in the whole list."""
    return [(_look(place), name, curve) for place, (name, curve) in enumerate(curves.items()) if curve is not None]


def _look(place: int) -> _Look:
    """Colours, dashes and markers in step; after five sites the dashes go on by one, so that none are alike."""
    turn, number = divmod(place, len(SERIES))
    return _Look(SERIES[number], _DASHES[(number + turn) % len(_DASHES)], _MARKERS[(number + turn) % len(_MARKERS)])


def _draw_curves(axis: Axes, curves: Mapping[str, Curve | None]) -> None:
    for look, _, curve in _drawn(curves):
        kept = _thinned(len(curve.x))
        axis.plot(curve.x[kept], curve.y[kept], color=look.colour, linewidth=1.5, linestyle=look.dash)
        if curve.point is not None:
            dot: dict[str, Any] = {
                "color": look.colour,
                "markersize": 7,
                "markeredgecolor": INK,
                "clip_on": False,
                "zorder": 5,
            }
            axis.plot(*curve.point, look.marker, **dot)


def _thinned(count: int) -> NDArray[np.intp]:
    """Evenly spaced places among `count`, first and last included: more points than pixels only cost bytes."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.intp))


def _unit(axis: Axes, xlabel: str, ylabel: str) -> None:
    _style(axis, xlabel, ylabel)
    for limits, ticks in ((axis.set_xlim, axis.set_xticks), (axis.set_ylim, axis.set_yticks)):
        limits(0, 1)
        ticks(np.linspace(0, 1, 6))


def _style(axis: Axes, xlabel: str, ylabel: str) -> None:
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


@contextmanager
def _drawing() -> Iterator[None]:
    """Text stays text, and everything that has no colour of its own gets the page's."""
    ink: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    plain: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
    }
    with mpl.rc_context({**ink, **plain, "font.family": "DejaVu Sans"}):
        yield


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page of HTML: ids by `name`, colours as the page's variables."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.id": None}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    # Its style sheet would reach the whole page, which has the same rules for its figures.
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    return _with_own_ids(_with_colours(text), name)


def _with_colours(text: str) -> str:
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var(--{variable})")
    return text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def _with_own_ids(text: str, name: str) -> str:
    """Ids that no other figure of the page has."""
    start = re.sub(r"[^a-z0-9]+", "-", name.lower())
    text = re.sub(r'\bid="([^"]+)"', rf'id="{start}-\1"', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{start}-", text)
