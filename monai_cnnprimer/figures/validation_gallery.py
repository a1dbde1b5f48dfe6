# SPDX-License-Identifier: Apache-2.0
"""A radiograph and, beside it, the same under its map: small pictures for a gallery of many."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_cnnprimer.figures.overlay import HEAT, OPACITY, full_scale

GAP = 4  # pixels
MOST_PIXELS = 256  # of a side: a gallery of 250 cases has to stay below 15 MB
QUALITY = 82


def pair_webp(image: NDArray[np.floating], heat: NDArray[np.floating]) -> bytes:
    """The radiograph on the left, on the right the radiograph under the positive part of its map, as WebP.

    Colours and scale are those of `figures.overlay.overlay_png`: full colour is the largest value of either sign.

    Args:
        image: `(H, W)`, any scale; its lowest value becomes black, its highest white.
        heat: signed map `(H, W)`, aligned with `image`.

    Raises:
        ValueError: a map of another shape than the image.
    """
    if heat.shape != image.shape:
        raise ValueError(f"map {heat.shape} on an image of {image.shape}; align it first")
    grey = np.repeat(_unit(image)[:, :, None], 3, axis=2)
    share = np.clip(heat / full_scale(heat), 0, 1)
    opacity = OPACITY * share[:, :, None]
    under = (1 - opacity) * grey + opacity * HEAT(share)[:, :, :3]
    gap = np.zeros((image.shape[0], GAP, 3))
    pair = Image.fromarray((255 * np.concatenate([grey, gap, under], axis=1)).round().astype(np.uint8))
    most = max(image.shape)
    if most > MOST_PIXELS:
        sides = (round(side * MOST_PIXELS / most) for side in pair.size)
        pair = pair.resize(tuple(sides), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pair.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _unit(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scaled to 0..1; an image of one value is black."""
    low, high = float(image.min()), float(image.max())
    return (image.astype(np.float64) - low) / ((high - low) or 1.0)
