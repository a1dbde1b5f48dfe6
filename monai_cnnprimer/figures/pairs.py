# SPDX-License-Identifier: Apache-2.0
"""Cases under the maps of two models, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.figures.overlay import Masks, draw_map, draw_regions, region_legend
from monai_cnnprimer.figures.page import Page, draw_radiograph, new_page, png

_PANEL, _GAP = 1.75, 0.08  # inches


class Pair(NamedTuple):
    """One case under the maps of both models.

    Attributes:
        image: `(H, W)`.
        heats: signed maps `(H, W)` of A and B, aligned with the image; None where there is none.
        caption: of the case.
        calls: what A and B said, one caption each.
        masks: regions `(H, W)` by name.
    """

    image: NDArray[np.floating]
    heats: tuple[NDArray[np.floating] | None, NDArray[np.floating] | None]
    caption: str
    calls: tuple[str, str]
    masks: Masks


def pairs_png(pairs: Sequence[Pair], names: tuple[str, str], title: str, note: str = "") -> bytes:
    """Cases beside each other: the radiograph, the same under A's map, the same under B's; two cases a row.

    Each map is on its own scale, only its positive part is drawn, as in `overlay_png`.

    Raises:
        ValueError: no pairs, or a map of another shape than its image.
    """
    if not pairs:
        raise ValueError("no cases to draw")
    columns = min(2, len(pairs))
    case = 3 * _PANEL + 2 * _GAP
    width = max(columns * case + (columns - 1) * 0.3 + 0.3, 6.0)
    shape = max(pair.image.shape[0] / pair.image.shape[1] for pair in pairs)
    height, rows = _PANEL * shape, -(-len(pairs) // columns)
    heads = textwrap.wrap(f"A: {names[0]};  B: {names[1]}.  {note}", int(width * 13))
    title = "\n".join(textwrap.fill(part, int(width * 12)) for part in title.split("\n"))
    top = 0.3 + 0.17 * (title.count("\n") + 1) + 0.17 * len(heads)
    step = height + 0.68
    page = new_page(width, top + rows * step + 0.45, title)
    for i, line in enumerate(heads):
        place = 1 - (top - 0.05 - 0.17 * (len(heads) - i)) / page.height
        page.figure.text(0.5, place, line, fontsize=8, ha="center", va="top", parse_math=False)
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        _draw_pair(page, pair, 0.15 + column * (case + 0.3), top + 0.45 + row * step, height)
    region_legend(page.figure, {name: mask for pair in pairs for name, mask in pair.masks.items()})
    return png(page.figure)


def _draw_pair(page: Page, pair: Pair, left: float, top: float, height: float) -> None:
    for i, (heat, heading) in enumerate(zip((None, *pair.heats), (pair.caption, *pair.calls), strict=True)):
        axis = page.axes(left + i * (_PANEL + _GAP), top, _PANEL, height)
        draw_radiograph(axis, pair.image)
        if heat is not None:
            draw_map(axis, pair.image, heat)
        elif i:
            axis.set_xlabel("no map", fontsize=7)
        draw_regions(axis, pair.image, pair.masks)
        axis.set_title(heading, fontsize=7, parse_math=False)
