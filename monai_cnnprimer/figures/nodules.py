# SPDX-License-Identifier: Apache-2.0
"""Inserted nodules in pictures: by diameter and contrast, with zooms and the profile that was added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from monai_cnnprimer.figures.page import draw_radiograph, new_page, png

_WHOLE, _ZOOM, _PROFILE, _GAP, _TILE = 2.3, 2.3, 2.6, 0.12, 1.25  # inches
_OUTLINE, _BEFORE, _AFTER = "#38e54d", "#4a6fa5", "#c1502e"


class Insertion(NamedTuple):
    """One nodule: the radiograph without and with it ``(H, W)`` in [0, 1], its mask, mm of a pixel, a caption."""

    before: NDArray[np.floating]
    after: NDArray[np.floating]
    mask: NDArray[np.bool_]
    mm_per_px: float
    caption: str


def insertions_png(insertions: Sequence[Insertion], title: str, field_mm: float = 80.0) -> bytes:
    """A row for each nodule: whole radiograph with the field marked, the field before and after, the profile.

    Args:
        insertions: what to show.
        title: of the figure.
        field_mm: side of the zoomed field.

    Raises:
        ValueError: nothing to show, or a mask without a pixel.
    """
    _check(insertions)
    step = _WHOLE + 0.45
    width = _GAP + _WHOLE + 2 * (_ZOOM + _GAP) + _GAP + 0.65 + _PROFILE + _GAP
    page = new_page(width, 0.5 + step * len(insertions) + 0.4, title)
    for number, shown in enumerate(insertions):
        top = 0.7 + number * step
        rows, columns = _field(shown, field_mm)
        axis = page.axes(_GAP, top, _WHOLE, _WHOLE)
        draw_radiograph(axis, shown.after)
        axis.images[0].set_clim(0, 1)
        corner = (columns.start - 0.5, rows.start - 0.5)
        axis.add_patch(Rectangle(corner, *_lengths(columns, rows), fill=False, edgecolor=_OUTLINE, linewidth=0.9))
        axis.set_title(shown.caption, fontsize=7.5, loc="left", parse_math=False)
        left = 2 * _GAP + _WHOLE
        limits = _grey_range(shown, rows, columns)
        for image, name in ((shown.before, "without"), (shown.after, "with, the same greys")):
            axis = page.axes(left, top, _ZOOM, _ZOOM)
            _draw_field(axis, image[rows, columns], limits)
            axis.set_title(name, fontsize=7.5)
            left += _ZOOM + _GAP
        _draw_profile(page.axes(left + 0.65, top, _PROFILE, _ZOOM - 0.15), shown, rows, columns, number == 0)
    return png(page.figure)


def nodule_grid_png(grid: Sequence[Sequence[Insertion | str]], title: str, field_mm: float = 60.0) -> bytes:
    """Zoomed fields around nodules, a row for each contrast and a column for each diameter.

    A text in place of an insertion says why there is none.

    Raises:
        ValueError: rows of other lengths, nothing to show, or a mask without a pixel.
    """
    if len({len(row) for row in grid}) != 1:
        raise ValueError("the rows of the grid must have one length")
    _check([shown for row in grid for shown in row if not isinstance(shown, str)])
    step = _TILE + 0.32
    columns = len(grid[0])
    page = new_page(max(_GAP + columns * (_TILE + _GAP), 4.5), 0.45 + step * len(grid) + 0.35, title)
    for i, row in enumerate(grid):
        for j, shown in enumerate(row):
            axis = page.axes(_GAP + j * (_TILE + _GAP), 0.65 + i * step, _TILE, _TILE)
            if isinstance(shown, str):
                axis.set_axis_off()
                axis.text(0.5, 0.5, shown, fontsize=7, ha="center", va="center", wrap=True, parse_math=False)
                continue
            where = _field(shown, field_mm)
            _draw_field(axis, shown.after[where], _grey_range(shown, *where))
            axis.set_title(shown.caption, fontsize=7, parse_math=False)
    return png(page.figure)


def _check(insertions: Sequence[Insertion]) -> None:
    if not insertions:
        raise ValueError("no nodule to show")
    if any(not shown.mask.any() for shown in insertions):
        raise ValueError("a mask without a pixel: there is no nodule to show")


def _field(shown: Insertion, field_mm: float) -> tuple[slice, slice]:
    """Rows and columns of the field around the nodule, moved inside the image where it would leave it."""
    centre = np.argwhere(shown.mask).mean(axis=0)
    side = min(max(8, round(field_mm / shown.mm_per_px)), *shown.mask.shape)
    spans = []
    for middle, length in zip(centre, shown.mask.shape, strict=True):
        start = int(np.clip(round(middle - side / 2), 0, length - side))
        spans.append(slice(start, start + side))
    return spans[0], spans[1]


def _lengths(*spans: slice) -> tuple[int, ...]:
    return tuple(span.stop - span.start for span in spans)


def _grey_range(shown: Insertion, rows: slice, columns: slice) -> tuple[float, float]:
    """Greys of the field before and after alike: what a reader would window to."""
    both = np.concatenate([shown.before[rows, columns], shown.after[rows, columns]])
    return float(both.min()), float(both.max())


def _draw_field(axis: Axes, image: NDArray[np.floating], limits: tuple[float, float]) -> None:
    draw_radiograph(axis, image)
    axis.images[0].set_clim(*limits)
    # Pixels of two millimetres as squares hide what the eye sees on a monitor, which interpolates as well.
    axis.images[0].set_interpolation("bicubic")


def _draw_profile(axis: Axes, shown: Insertion, rows: slice, columns: slice, named: bool) -> None:
    """Displayed values along the row through the nodule's centre."""
    row = round(np.argwhere(shown.mask).mean(axis=0)[0])
    mm = (np.arange(columns.start, columns.stop) - np.argwhere(shown.mask).mean(axis=0)[1]) * shown.mm_per_px
    axis.plot(mm, shown.before[row, columns], color=_BEFORE, linewidth=1.1, label="without")
    axis.plot(mm, shown.after[row, columns], color=_AFTER, linewidth=1.1, label="with")
    inside = np.flatnonzero(shown.mask[row, columns])
    if inside.size:
        axis.axvspan(mm[inside[0]] - shown.mm_per_px / 2, mm[inside[-1]] + shown.mm_per_px / 2, color="0.9", zorder=0)
    axis.set_xlabel("mm from the centre, along the row", fontsize=7)
    axis.set_ylabel("displayed value", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.set_xlim(mm[0], mm[-1])
    axis.spines[["top", "right"]].set_visible(False)
    if named:
        axis.legend(fontsize=7, frameon=False)
