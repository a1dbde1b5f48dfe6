# SPDX-License-Identifier: Apache-2.0
"""One radiograph under its map as a PACS viewer shows it: dark, upright, and saying what it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from monai_cnnprimer.figures.overlay import HEAT, OPACITY, draw_regions
from monai_cnnprimer.figures.page import draw_radiograph, new_page, png

_MARGIN, _TOP, _BAR, _LINE, _FOOT = 0.25, 0.5, 0.85, 0.2, 0.45  # inches
_LONGER_SIDE = 6.0
_NARROWEST = 6.0  # of the page, so that the lines of text have room
_DPI = 150


def secondary_capture_png(
    image: NDArray[np.floating],
    share: NDArray[np.floating],
    level: float,
    title: str,
    lines: Sequence[str],
    aspect: float = 1.0,
) -> bytes:
    """A radiograph under its map with the outline at one level, a colour bar, and lines of text; white on black.

    Args:
        image: `(H, W)`, any scale, upright.
        share: `(H, W)` in [0, 1].
        level: of the outline.
        title: above the image.
        lines: below it, about 80 characters each.
        aspect: height of a pixel by its width.
    """
    scale = _LONGER_SIDE / max(image.shape[0] * aspect, image.shape[1])
    height, width = image.shape[0] * aspect * scale, image.shape[1] * scale
    page_width = max(width + 2 * _MARGIN + _BAR, _NARROWEST)
    page = new_page(page_width, _TOP + height + _MARGIN + len(lines) * _LINE + _FOOT, title)
    left = (page_width - width - _BAR) / 2
    axis = page.axes(left, _TOP, width, height)
    draw_radiograph(axis, image, aspect)
    # As it is, not by its own largest value: a low probability looks low.
    axis.imshow(share, cmap=HEAT, vmin=0, vmax=1, alpha=OPACITY * share, aspect=aspect, interpolation="nearest")
    draw_regions(axis, image, {"finding": share >= level})
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))  # outlines reach beyond the image
    bar_axis = page.axes(left + width + 0.12, _TOP, 0.14, height)
    Colorbar(bar_axis, ScalarMappable(Normalize(0, 1), HEAT))
    bar_axis.tick_params(labelsize=8, colors="white")
    for number, line in enumerate(lines):
        top = _TOP + height + _MARGIN + number * _LINE
        page.figure.text(left / page.width, 1 - top / page.height, line, fontsize=8, va="top", parse_math=False)
    page.figure.set_facecolor("black")
    for text in page.figure.texts:
        text.set_color("white")
    return png(page.figure, dpi=_DPI)
