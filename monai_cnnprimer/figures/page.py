# SPDX-License-Identifier: Apache-2.0
"""One figure: placed by inches, footed, and written as a PNG of which the same arrays give the same bytes."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

FOOTER = "Research use only, not for clinical use"


class Page(NamedTuple):
    """Places axes by inches from the upper left; a layout engine takes a second for each figure."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """New axes whose upper left corner stands at `left`, `top`."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))


def new_page(width: float, height: float, title: str) -> Page:
    """An empty figure of `width` x `height` inches with its title and the footer; leave 0.4 inches for each."""
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.12 / height, title, fontsize=10, ha="center", va="top", parse_math=False)
    figure.text(0.5, 0.08 / height, FOOTER, fontsize=7, ha="center", va="bottom")
    return Page(figure, width, height)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Matplotlib would otherwise write its own version into the file.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def draw_radiograph(axis: Axes, image: NDArray[np.floating], aspect: float = 1.0) -> None:
    """A grey image `(H, W)` without ticks; `aspect` is the height of a pixel by its width."""
    axis.imshow(image, cmap="gray", aspect=aspect, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
