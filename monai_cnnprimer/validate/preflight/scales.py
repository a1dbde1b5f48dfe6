# SPDX-License-Identifier: Apache-2.0
"""What a network resolves, in mm on the patient: one pixel of its input, one cell of each map that its head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_fields
from monai_cnnprimer.networks.dense import DenseClassifier

LONGER_PX = 2500  # of a 2500 x 2048 matrix, as storage phosphor plates of 35 x 43 cm have at 0.168 mm
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class LayerScale:
    """How coarse a map is, and how far its central unit looks.

    Attributes:
        layer: name in the network.
        stride_px: input pixels from cell to cell.
        stride_mm: the same on the patient.
        erf50_mm: side of a square as large as the fewest pixels that hold half of the effective receptive field.
        erf95_mm: the same for 95 %.
        theoretical_mm: side of the theoretical field.
        clipped: whether the theoretical field reaches over the image's edge, so that the effective one is cut.
    """

    layer: str
    stride_px: float
    stride_mm: float
    erf50_mm: float
    erf95_mm: float
    theoretical_mm: float
    clipped: bool


def head_layers(network: torch.nn.Module) -> list[str]:
    """The maps that the head reads: the dense logits of a `DenseClassifier`, `layer4` of another ResNet.

    Raises:
        ValueError: the network has neither.
    """
    if isinstance(network, DenseClassifier):
        return [f"dense.{name}" for name in network.strides]
    if "layer4" in dict(network.named_modules()):
        return ["layer4"]
    raise ValueError("it is not known which layers this network's head reads: name them with --layer")


def layer_scales(
    network: torch.nn.Module, layers: Sequence[str], images: Tensor, mm_per_px: float, seed: int = 0
) -> list[LayerScale]:
    """Stride and receptive fields of layers, measured on images as the network gets them.

    Args:
        network: left as it came.
        layers: names in the network.
        images: `(N, 1, H, W)`, normalised.
        mm_per_px: mm on the patient of one pixel of `images`.
        seed: of the draws of signs, see `effective_receptive_field`.

    Raises:
        ValueError: a layer of unknown geometry, or a spacing that is not positive.
    """
    if not mm_per_px > 0:
        raise ValueError(f"a spacing of {mm_per_px} mm: give mm on the patient of one pixel")
    fields = effective_receptive_fields(network, layers, images, 4, seed=seed, spacing_mm=(mm_per_px, mm_per_px))
    return [
        LayerScale(
            layer=name,
            stride_px=float(found.theoretical.jump),
            stride_mm=found.theoretical.jump * mm_per_px,
            erf50_mm=found.areas[0.5] ** 0.5 * mm_per_px,
            erf95_mm=found.areas[0.95] ** 0.5 * mm_per_px,
            theoretical_mm=found.theoretical.size * mm_per_px,
            clipped=found.clipped,
        )
        for name, found in fields.items()
    ]


def spacing_of_input(spacing_mm: float, longer_px: int, image_size: int) -> float:
    """The mm of one pixel at the network's input, of a radiograph whose longer side becomes `image_size` pixels.

    Args:
        spacing_mm: of one pixel of the radiograph.
        longer_px: pixels of its longer side.
        image_size: pixels of the input.

    Raises:
        ValueError: one of them is not positive.

    Example:
        >>> spacing_of_input(0.168, 2500, 160)
        2.625
    """
    if not spacing_mm > 0 or longer_px < 1 or image_size < 1:
        raise ValueError(f"spacing {spacing_mm} mm, {longer_px} pixels, input {image_size}: each must be positive")
    return spacing_mm * longer_px / image_size


def spacings_of_export(manifest: pd.DataFrame, image_size: int) -> tuple[list[float], int]:
    """The 5th, 50th and 95th percentile of mm a pixel at the input, over an export, and the images without spacing.

    Args:
        manifest: as `index_export` gives it, of which `rows`, `columns` and `pixel_spacing_mm` are read.
        image_size: pixels of the input.

    Raises:
        ValueError: no image of the export states its spacing.
    """
    known = manifest[manifest["pixel_spacing_mm"].notna()]
    if known.empty:
        raise ValueError(f"none of {len(manifest)} images states its pixel spacing: give --spacing instead of --export")
    longer = known[["rows", "columns"]].astype(float).max(axis=1) * known["pixel_spacing_mm"].astype(float)
    found = np.quantile(longer.to_numpy() / image_size, QUANTILES)
    return [float(mm) for mm in found], len(manifest) - len(known)
