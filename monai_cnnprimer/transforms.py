# SPDX-License-Identifier: Apache-2.0
"""Between reader and network: a display-ready radiograph of any size becomes a square of known millimetres."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform


class FitSized(MapTransform):
    """Resizes a radiograph so that its longer side, in mm, fills `size` pixels; the aspect on the patient is kept.

    Pixels that are not square (row and column spacing differ) become square. Downsampling is antialiased. The
    metadata gain `network_spacing_mm`, the mm on the patient of one network pixel, or None where the spacing of the
    radiograph is unknown.

    Args:
        keys: entries `(1, rows, columns)`, float, with the reader's receipt in their metadata.
        size: pixels of the longer side at the network's input.

    Example:
        >>> image = MetaTensor(torch.rand(1, 300, 200), meta={"pixel_spacing_mm": (0.5, 0.5)})
        >>> fitted = FitSized(keys="image", size=150)({"image": image})["image"]
        >>> tuple(fitted.shape), fitted.meta["network_spacing_mm"]
        ((1, 150, 100), (1.0, 1.0))
    """

    def __init__(self, keys: KeysCollection, size: int = 224) -> None:
        super().__init__(keys)
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of `data` in which each of the keys is resized."""
        fitted = dict(data)
        for key in self.key_iterator(fitted):
            fitted[key] = self._fit(fitted[key])
        return fitted

    def _fit(self, image: MetaTensor) -> MetaTensor:
        spacing = image.meta.get("pixel_spacing_mm")
        rows, columns = image.shape[1:]
        height, width = (rows, columns) if spacing is None else (rows * spacing[0], columns * spacing[1])
        longer = max(height, width)
        shape = tuple(max(1, round(self.size * side / longer)) for side in (height, width))
        pixels = torch.nn.functional.interpolate(image.as_tensor()[None], shape, mode="bilinear", antialias=True)[0]
        known = None if spacing is None else (height / shape[0], width / shape[1])
        return MetaTensor(pixels, meta={**image.meta, "network_spacing_mm": known})
