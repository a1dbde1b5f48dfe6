# SPDX-License-Identifier: Apache-2.0
"""The pre-flight's picture: what the network sees by size, beside the scales that its geometry sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from monai_cnnprimer.figures.page import new_page, png

Point = tuple[float, float, float | None, float | None]
_COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9")
_MARKERS = "osD^vP"


def detection_png(
    curves: Mapping[str, Sequence[Point]], scales: Mapping[str, float], seen: float, not_seen: float, title: str
) -> bytes:
    """AUROC of inserted nodules by their size in mm, a curve for each contrast, and lengths of the geometry as lines.

    Args:
        curves: name of the contrast to (mm, AUROC, low, high), in order of size.
        scales: name of a length to mm, such as the stride of a layer.
        seen: AUROC above which a size is seen.
        not_seen: AUROC below which it is not.
        title: of the figure.

    Raises:
        ValueError: there is no point to draw.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("there is nothing to draw: no nodule could be inserted")
    page = new_page(7.8, 4.6, title)
    axis = page.axes(0.75, 0.55, 4.3, 3.3)
    for (name, curve), colour, marker in zip(curves.items(), _COLOURS, _MARKERS, strict=False):
        sizes, values = [point[0] for point in curve], [point[1] for point in curve]
        reach = [
            [value - (value if low is None else low) for _, value, low, _ in curve],
            [(value if high is None else high) - value for _, value, _, high in curve],
        ]
        axis.errorbar(sizes, values, reach, color=colour, marker=marker, ms=4, lw=1.2, capsize=2, label=name)
    axis.axhspan(seen, 1.0, color="#009E73", alpha=0.08, lw=0)
    axis.axhspan(0.0, not_seen, color="#D55E00", alpha=0.08, lw=0)
    axis.axhline(0.5, color="grey", lw=0.8, ls=":")
    axis.set_ylim(min(0.35, min(point[1] if point[2] is None else point[2] for point in points) - 0.02), 1.02)
    _sizes(axis, [point[0] for point in points], list(scales.values()))
    for style, (name, mm) in zip(("-", "--", "-.", ":", (0, (1, 3))), scales.items(), strict=False):
        axis.axvline(mm, color="#777777", lw=1, ls=style, label=f"{name}: {mm:.1f} mm")
    axis.set_ylabel("AUROC, with the nodule against without", fontsize=8)
    axis.set_xlabel("diameter of the nodule, mm", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, title="peak contrast, nepers")
    return png(page.figure)


def _sizes(axis: Axes, sizes: Sequence[float], lengths: Sequence[float]) -> None:
    """A logarithmic axis of mm with a tick at each size measured."""
    axis.set_xscale("log")
    axis.set_xlim(min([*sizes, *lengths]) / 1.2, max([*sizes, *lengths]) * 1.2)
    axis.xaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
