# SPDX-License-Identifier: Apache-2.0
"""What an intervention gives: a changed radiograph, where it changed, and a control that changed as much elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


class LeftOut(ValueError):
    """This case cannot be intervened on; the message says why, in words that count cases."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A radiograph and what is known of it.

    Attributes:
        image: ``(H, W)`` float32 in [0, 1], upright, bone bright.
        masks: ``lung``, ``heart``, ``marker``, ``finding``, as far as they are known; ``(H, W)`` bool.

    Raises:
        ValueError: not such an image, or a mask of another shape.
    """

    image: Array
    masks: Mapping[str, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = self.image
        if image.ndim != 2 or image.dtype != np.float32 or not image.size:
            raise ValueError(f"an image {image.dtype} {image.shape}: interventions take float32 (H, W)")
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError("an image with values outside of [0, 1]: give it as the reader does")
        for name, mask in self.masks.items():
            if mask.shape != image.shape or mask.dtype != np.bool_:
                raise ValueError(f"mask {name!r} is {mask.dtype} {mask.shape}, not bool {image.shape} as the image")


class Changed(NamedTuple):
    """A changed radiograph.

    Attributes:
        image: float32 in [0, 1]; ``(H, W)`` as the original, but where the aspect is what changes.
        where: the same shape; false where nothing was touched.
    """

    image: Array
    where: Mask


class Pair(NamedTuple):
    """An intervention beside its control of equal area; none for what changes the whole image."""

    changed: Changed
    control: Changed | None


def within(image: Array, new: NDArray[np.floating], where: Mask) -> Changed:
    """`new` where `where` is true, the untouched image elsewhere; cut to [0, 1]."""
    return Changed(np.where(where, np.clip(new, 0, 1), image).astype(np.float32), where)


def everywhere(new: NDArray[np.floating]) -> Pair:
    """A change of the whole image, which has no elsewhere and so no control."""
    return Pair(Changed(np.clip(new, 0, 1).astype(np.float32), np.ones(new.shape, dtype=bool)), None)


def attenuated(image: Array, absorption: Array) -> Array:
    """The image behind something that absorbs: what reaches the detector is multiplied by exp(-absorption).

    In a display with bone bright, 1 - value stands for what reaches it; whatever lies beneath stays visible.
    """
    return (1 - (1 - image) * np.exp(-absorption)).astype(np.float32)


def gathered(values: Array, centre: tuple[float, float]) -> Array:
    """The same values, as many pixels and none changed, gathered about a centre (row, column), the largest inmost."""
    rows, columns = np.indices(values.shape)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    kept = np.sort(values[values > 0])[::-1]
    blob = np.zeros_like(values)
    blob.ravel()[np.argsort(distance, axis=None, kind="stable")[: kept.size]] = kept
    return blob
