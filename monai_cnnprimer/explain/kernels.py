# SPDX-License-Identifier: Apache-2.0
"""What convolutions are and do: first kernels, shared weights, Sobel edges, locality, shifts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import sobel
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.explain.layers import find_layers
from monai_cnnprimer.explain.receptive_field import ReceptiveField

Features = Callable[[Tensor], Tensor]


class WeightCounts(NamedTuple):
    """Weights of one dense layer on the whole image, of the network's first convolution, of the whole network."""

    dense: int
    first_layer: int
    network: int


def first_convolution(network: Module) -> torch.nn.Conv2d:
    """The network's first 2-D convolution in the order of its modules.

    Raises:
        ValueError: there is none.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            return module
    raise ValueError(f"{type(network).__name__} has no 2-D convolution, so it has no kernels to show")


def layer_output(network: Module, layer: str) -> Features:
    """The network up to a layer: from images to that layer's output; what comes after does not run.

    Args:
        network: runs in the mode that it is in.
        layer: name as in `network.named_modules()`.

    Raises:
        ValueError: no such layer (at once); the layer does not run (in the call).

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(99, 2))
        >>> layer_output(network, "0")(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4, 6, 6])
    """
    module = find_layers(network, layer)[layer]

    def features(images: Tensor) -> Tensor:
        handle = module.register_forward_hook(_stop)
        try:
            network(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise ValueError(f"layer {layer!r} does not run in a forward of {type(network).__name__}")

    return features


def grey_kernels(network: Module) -> NDArray[np.float32]:
    """The first convolution's kernels `(C, k, k)` as a grey image meets them: summed over the input channels.

    A network that repeats a grey image to three channels answers it with the sum of a kernel's three planes.

    Raises:
        ValueError: the network has no 2-D convolution.
    """
    return first_convolution(network).weight.detach().float().sum(dim=1).cpu().numpy()


def weight_counts(network: Module, size: Sequence[int] = (224, 224), units: int = 1024) -> WeightCounts:
    """What weight sharing saves: a dense layer from every pixel of a grey image to `units` units, beside convolutions.

    Args:
        network: whose weights are counted; all parameters, biases and normalisation too.
        size: `(H, W)` of the image.
        units: of the dense layer; its biases are not counted.

    Raises:
        ValueError: the network has no 2-D convolution.

    Example:
        >>> weight_counts(torch.nn.Sequential(torch.nn.Conv2d(1, 64, 7)))
        WeightCounts(dense=51380224, first_layer=3136, network=3200)
    """
    whole = sum(parameter.numel() for parameter in network.parameters())
    return WeightCounts(math.prod(size) * units, first_convolution(network).weight.numel(), whole)


def sobel_x(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Grey levels per pixel from left to right `(H, W)`, by the Sobel kernel divided by 8; borders repeat.

    Example:
        >>> ramp = np.tile(np.arange(5, dtype=np.float32), (3, 1))
        >>> sobel_x(ramp)[1].tolist()
        [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    return sobel(np.asarray(image, np.float32), axis=1, mode="nearest") / np.float32(8)


def response_by_region(
    response: NDArray[np.floating], regions: Mapping[str, NDArray[np.bool_]], share: float = 0.05
) -> pd.DataFrame:
    """How strongly a filter answers in each region.

    Args:
        response: `(H, W)`, signed.
        regions: name to mask `(H, W)`.
        share: of all pixels, counted as firing: those of the largest absolute response.

    Returns:
        One row a region: `region`, `pixels`, `median` and `p95` of the absolute response, `firing` (share of the region
        among the strongest).

    Raises:
        ValueError: a region is empty or of another shape.
    """
    size = np.abs(response)
    least = np.quantile(size, 1 - share)
    rows = []
    for name, mask in regions.items():
        if mask.shape != size.shape or not mask.any():
            raise ValueError(f"region {name!r} is empty or not of the response's shape {size.shape}")
        inside = size[mask]
        median, p95 = np.quantile(inside, (0.5, 0.95))
        firing = (inside >= least).mean()
        rows.append({"region": name, "pixels": inside.size, "median": median, "p95": p95, "firing": firing})
    return pd.DataFrame(rows)


@torch.no_grad()
def touched_units(features: Features, image: Tensor, row: int, column: int) -> NDArray[np.bool_]:
    """Which units `(h, w)` of a layer change when one pixel does: a convolution is local if they are few.

    Args:
        features: from image to feature map, `(1, 1, H, W) -> (1, C, h, w)`.
        image: `(1, 1, H, W)`.
        row: of the pixel, which is raised by 1.
        column: of the pixel.

    Returns:
        True where any channel changes by more than 1e-5 of the largest change; fast convolutions round in tiles.
    """
    changed = image.clone()
    changed[..., row, column] += 1
    size = (features(changed) - features(image)).abs().flatten(0, 1).amax(dim=0)
    return (size > 1e-5 * size.max()).cpu().numpy()


@torch.no_grad()
def shift_errors(features: Features, image: Tensor, shifts: Sequence[int], field: ReceptiveField) -> pd.DataFrame:
    """How far a layer is from shifting with its input (Azulay and Weiss, 2019, JMLR 20; Zhang, 2019, arXiv:1904.11486).

    A window slides over the image, so that real content enters and nothing is padded or rolled. After a shift of s
    pixels the layer should show its unshifted map moved by `s / jump` units, read linearly between units where that is
    no whole number. Only units whose theoretical field lies inside the window count: borders cannot enter.

    Args:
        features: from image to feature map, `(1, 1, H, W) -> (1, C, h, w)`.
        image: `(1, 1, H, W)`; the window is narrower by the largest shift.
        shifts: to the right, in pixels, not negative.
        field: of the layer.

    Returns:
        One row a shift: `shift`, `error`, the Euclidean norm of the difference by that of the map expected.

    Raises:
        ValueError: a negative shift; no unit whose field lies inside the window.

    Example:
        >>> average = torch.nn.AvgPool2d(3, stride=1)
        >>> table = shift_errors(average, torch.rand(1, 1, 9, 12), [0, 1, 2], ReceptiveField(3, 1, 1))
        >>> table["error"].round(5).tolist()
        [0.0, 0.0, 0.0]
    """
    most, width = max(shifts), image.shape[-1]
    if min(shifts) < 0:
        raise ValueError("shifts run to the right; give numbers of pixels that are not negative")
    still = features(image[..., most:])
    rows = _inner(image.shape[-2], still.shape[-2], field)
    columns = _inner(width - most, still.shape[-1], field)
    if not len(rows) or len(columns) <= math.ceil(most / field.jump):
        raise ValueError(f"no unit sees only the image at shift {most}; give a larger image or an earlier layer")
    errors = []
    for shift in shifts:
        moved = features(image[..., most - shift : width - shift])
        seen = columns[math.ceil(shift / field.jump) :]
        place = seen - shift / field.jump
        left = np.floor(place).astype(int)
        right = np.minimum(left + 1, columns[-1])
        part = torch.as_tensor(place - left, dtype=still.dtype)
        expected = (still[..., left] * (1 - part) + still[..., right] * part)[..., rows, :]
        difference = moved[..., rows, :][..., seen] - expected
        errors.append(float(difference.norm() / expected.norm()))
    return pd.DataFrame({"shift": list(shifts), "error": errors})


class _Reached(Exception):  # noqa: N818  (no error: it ends the forward where the rest is not needed)
    def __init__(self, output: Tensor) -> None:
        self.output = output


def _stop(module: Module, args: Any, output: Tensor) -> None:
    raise _Reached(output)


def _inner(pixels: int, units: int, field: ReceptiveField) -> NDArray[np.intp]:
    """Units along one axis whose field lies wholly inside `pixels`."""
    centres = field.start + field.jump * np.arange(units)
    reach = (field.size - 1) / 2
    return np.flatnonzero((centres - reach >= 0) & (centres + reach <= pixels - 1))
