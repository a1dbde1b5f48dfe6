# SPDX-License-Identifier: Apache-2.0
"""Between reader and network: a display-ready radiograph of any size becomes a square of known millimetres."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, Zoom


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


class RandAspectd(RandomizableTransform, MapTransform):
    """Draws the aspect that squashed anatomy seems to have come from, so that it cannot tell the label.

    Images of a data set whose originals had all aspects, resized to one shape, carry that aspect in the anatomy: a wide
    original gives narrow ribs. Here an aspect is drawn whatever the original's was, the anatomy is stretched to look
    squashed from it, and what then overlaps is cropped, so that no border tells either.

    Args:
        keys: entries `(1, rows, columns)`.
        aspects: range of width by height to draw from, evenly in the logarithm.
        size_keys: entries of the original's width and height; a case without them counts as not squashed.

    Example:
        >>> case = {"image": torch.rand(1, 100, 100), "original_width": 1500, "original_height": 1000}
        >>> tuple(RandAspectd("image", aspects=(1.2, 1.6))(case)["image"].shape)
        (1, 100, 100)
    """

    def __init__(
        self,
        keys: KeysCollection,
        aspects: tuple[float, float],
        size_keys: tuple[str, str] = ("original_width", "original_height"),
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.aspects = aspects
        self.size_keys = size_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of `data` in which each of the keys is stretched by the same factor."""
        drawn = np.exp(self.R.uniform(*np.log(self.aspects)))
        stretched = dict(data)
        for key in self.key_iterator(stretched):
            rows, columns = stretched[key].shape[1:]
            widen = self._squashed_by(data, columns / rows) / drawn
            zoom = Zoom((max(1.0, 1 / widen), max(1.0, widen)), mode="bilinear")
            stretched[key] = zoom(stretched[key])
        return stretched

    def _squashed_by(self, data: Mapping[Hashable, Any], aspect: float) -> float:
        width, height = (data.get(key) for key in self.size_keys)
        return 1.0 if width is None or height is None else float(width) / float(height) / aspect
