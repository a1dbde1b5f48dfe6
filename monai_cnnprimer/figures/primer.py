# SPDX-License-Identifier: Apache-2.0
"""Figures of the primer that belong to no method of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.figures.kernels import COLOURS, style
from monai_cnnprimer.figures.page import new_page, png


def paired_changes_png(
    changes: Mapping[str, NDArray[np.floating]], means: Mapping[str, tuple[float, tuple[float, float]]], title: str
) -> bytes:
    """How far the log odds of the same cases move under each change, a dot for each case.

    Args:
        changes: name to the change of each case `(n,)`.
        means: name to mean and its interval.
        title: of the figure.
    """
    page = new_page(7.2, 1.45 + 0.75 * len(changes), title)
    axis = page.axes(1.9, 0.55, 5.0, 0.75 * len(changes))
    for row, (name, values) in enumerate(changes.items()):
        # In the order of the cases, so that the same case stands at the same height in each row.
        heights = row + 0.2 + 0.22 * np.linspace(-1, 1, len(values))
        axis.plot(values, heights, ".", color="0.6", markersize=5, markeredgewidth=0)
        mean, (low, high) = means[name]
        axis.hlines(row - 0.25, low, high, color=COLOURS[row], linewidth=2.5)
        axis.plot([mean], [row - 0.25], "D", color=COLOURS[row], markersize=6, markeredgecolor="white")
    axis.axvline(0, color="0.4", linewidth=0.8)
    style(axis, "change of the log odds of the finding", "")
    axis.set_yticks(range(len(changes)), list(changes))
    axis.set_ylim(len(changes) - 0.45, -0.55)
    axis.grid(visible=False, axis="y")
    return png(page.figure)
