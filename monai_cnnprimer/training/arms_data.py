# SPDX-License-Identifier: Apache-2.0
"""What the arms are trained and tested on: examples drawn anew, the same for every arm, and crops around each lung."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_cnnprimer.phantom.raster import stream
from monai_cnnprimer.validate.findings.cases import Contrast, draw
from monai_cnnprimer.validate.findings.normals import Normals

MEAN, DEVIATION = 0.449, 0.226  # of ImageNet's grey, as in configs/train.yaml


class Batch(NamedTuple):
    """Images `(N, 1, H, W)` float32 as the network takes them, labels `(N,)` 0 or 1, masks of findings `(N, H, W)`."""

    image: Tensor
    label: Tensor
    mask: Tensor


class Examples:
    """Batches of one pass over examples of which half have a nodule, each drawn anew; the same whenever iterated.

    Which example comes when follows from the seed only, so that every arm of a seed is taught the same.

    Args:
        normals: radiographs without findings.
        batches: how many.
        batch_size: examples in each, even.
        bins_mm: limits of the nodules' sizes, see `draw`.
        contrast: see `draw`.
        seed: of everything drawn.
        keep: holds what was made for the next pass, 3 bytes a pixel.

    Raises:
        ValueError: an odd batch size, or no normals.
    """

    def __init__(
        self,
        normals: Normals,
        batches: int,
        batch_size: int,
        bins_mm: Sequence[float],
        contrast: Contrast,
        seed: int,
        keep: bool = False,
    ) -> None:
        if batch_size < 2 or batch_size % 2 or not len(normals):
            raise ValueError(
                f"batch_size {batch_size} of {len(normals)} normals: choose an even number of some normals"
            )
        self.normals = normals
        self.batches = batches
        self.batch_size = batch_size
        self.bins_mm = bins_mm
        self.contrast = contrast
        self.seed = seed
        self.keep = keep
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        label = torch.arange(self.batch_size) % 2
        for number in range(self.batches):
            images, masks = self._made.get(number) or self._make(number)
            if self.keep:
                self._made[number] = images, masks
            yield Batch(normalised(images), label, masks)

    def _make(self, number: int) -> tuple[Tensor, Tensor]:
        size = self.normals.images.shape[1]
        images = np.empty((self.batch_size, size, size), np.float16)
        masks = np.zeros((self.batch_size, size, size), bool)
        for place in range(self.batch_size):
            at = number * self.batch_size + place
            index = self._normal(at)
            if place % 2:
                images[place], masks[place], _ = draw(
                    self.normals, index, self.bins_mm, self.contrast, self.seed * 1_000_003 + at
                )
            else:
                images[place] = self.normals.images[index]
        return torch.from_numpy(images), torch.from_numpy(masks)

    def _normal(self, at: int) -> int:
        """Each normal once, in an order of its own, before any comes again."""
        turn, place = divmod(at, len(self.normals))
        return int(stream(self.seed, "order", turn).permutation(len(self.normals))[place])


def normalised(images: Tensor) -> Tensor:
    """Images `(N, H, W)` in [0, 1] as the network takes them, `(N, 1, H, W)` float32."""
    return (images.float()[:, None] - MEAN) / DEVIATION


def lung_crops(normals: Normals, size: int) -> Normals:
    """Two squares of each radiograph, one around each lung, as radiographs of their own: pixels keep their size.

    Args:
        normals: radiographs with both lungs, one in each half.
        size: rows and columns of a square.

    Returns:
        Twice as many, `case_id` with ``-R`` (the patient's right, at the image's left) or ``-L`` behind it.

    Raises:
        ValueError: the squares are larger than the images.
    """
    whole = normals.images.shape[1]
    if not 0 < size <= whole:
        raise ValueError(f"crops of {size} pixels from images of {whole}: choose at most the images' size")
    corners = [_corner(lungs, side, size) for lungs in normals.lungs for side in (0, 1)]
    images, lungs = (
        np.stack([part[at // 2][rows, columns] for at, (rows, columns) in enumerate(corners)])
        for part in (normals.images, normals.lungs)
    )
    table = normals.table.loc[normals.table.index.repeat(2)].reset_index(drop=True)
    table["case_id"] = table["case_id"] + np.tile(["-R", "-L"], len(normals))
    return Normals(images, lungs, table, normals.notes)


def _corner(lungs: NDArray[np.bool_], side: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of a square about the middle of one lung's bounding box, moved into the image."""
    whole = lungs.shape[0]
    half = np.zeros_like(lungs)
    half[:, side * whole // 2 : (side + 1) * whole // 2] = lungs[:, side * whole // 2 : (side + 1) * whole // 2]
    starts = []
    for axis in (1, 0):
        held = np.flatnonzero(half.any(axis=axis)) if half.any() else np.array([0, whole - 1])
        starts.append(int(np.clip((held[0] + held[-1] + 1 - size) // 2, 0, whole - size)))
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)
