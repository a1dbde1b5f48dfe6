# SPDX-License-Identifier: Apache-2.0
"""Which input pixels a unit of a layer can see, derived from the operations that the network really runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from monai_cnnprimer.explain.gradcam import find_layers

aten = torch.ops.aten


class ReceptiveField(NamedTuple):
    """Geometry of a layer in pixels of the network's input: unit i sees `size` pixels around `start + i * jump`."""

    size: float
    jump: float
    start: float


_Field = tuple[ReceptiveField, ...]  # one for each spatial axis


def theoretical_receptive_field(network: Module, layer: str, image: Tensor | None = None) -> ReceptiveField:
    """Receptive field of a layer by the rules of Araujo et al. (2019, doi 10.23915/distill.00021).

    One forward is traced operation by operation, so residual branches and functional calls count; where branches meet,
    the field covers all of them. The network is left as it came.

    Args:
        network: convolutions, poolings and operations that keep the grid; in any mode.
        layer: name as in `network.named_modules()`.
        image: an input that the network accepts; zeros of 224 pixels a side when None.

    Returns:
        Size, jump (the product of strides) and start (the centre of unit 0), in pixels. `size` is infinite behind a
        gate that sees the whole image (squeeze and excitation).

    Raises:
        ValueError: no such layer; it has no grid or does not run once; an operation before it whose geometry is not
            known; rows and columns differ.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, padding=1))
        >>> theoretical_receptive_field(network, "1")
        ReceptiveField(size=11, jump=4, start=0)
    """
    module = find_layers(network, layer)[layer]
    fields = _trace_first(network, module, _candidates(network) if image is None else [image.as_subclass(Tensor)])
    if len(fields) != 1:
        raise ValueError(f"layer {layer!r} ran {len(fields)} times in one forward, not once")
    field = fields[0]
    if isinstance(field, str):
        raise ValueError(f"receptive field of layer {layer!r} is not known: {field}")
    if len(set(field)) != 1:
        raise ValueError(f"receptive field of layer {layer!r} differs between axes: {field}")
    return ReceptiveField(*(_whole(value) for value in field[0]))


def align_map(maps: Tensor, size: Sequence[int], receptive_field: ReceptiveField) -> Tensor:
    """Upsamples a layer's maps so that unit i lies on its receptive field's centre, `start + i * jump`.

    Resizing to the image's size instead moves a ResNet's map by half a stride: 15.5 pixels at layer4.

    Args:
        maps: `(N, 1, h, w)`, any scale and sign.
        size: `(H, W)` of the network's input.
        receptive_field: of the layer that the maps come from.

    Returns:
        `(N, 1, H, W)` float32, linear between centres; beyond the outermost centres the nearest one's value.

    Raises:
        ValueError: `maps` or `size` are not two-dimensional images.

    Example:
        >>> field = ReceptiveField(size=7, jump=4, start=0)
        >>> align_map(torch.tensor([[[[0.0, 4.0]]]]), (1, 6), field).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]
    """
    if maps.ndim != 4 or len(size) != 2:
        raise ValueError(f"maps must be (N, 1, h, w) and size (H, W); got {tuple(maps.shape)} and {tuple(size)}")
    maps = maps.float()
    rows, columns = (
        # grid_sample without aligned corners: unit u of n stands at (2u + 1) / n - 1.
        (2 * (torch.arange(pixels, device=maps.device) - receptive_field.start) / receptive_field.jump + 1) / units - 1
        for pixels, units in zip(size, maps.shape[2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = grid.expand(len(maps), -1, -1, -1)
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _trace_first(network: Module, module: Module, images: list[Tensor]) -> list[_Field | str]:
    """Traces with the first of the images that the network accepts."""
    for image in images[:-1]:
        with suppress(RuntimeError):
            return _trace(network, module, image)
    return _trace(network, module, images[-1])


def _trace(network: Module, module: Module, image: Tensor) -> list[_Field | str]:
    """Geometry of each output of `module` in one forward; a reason where it is not known."""
    fields: list[_Field | str] = []
    trace = _Trace(image)
    training = [part for part in network.modules() if part.training]
    handle = module.register_forward_hook(lambda module, args, output: fields.append(trace.field(output)))
    network.eval()
    try:
        with torch.no_grad(), trace:
            network(image)
    finally:
        handle.remove()
        for part in training:
            part.training = True
    return fields


class _Trace(TorchDispatchMode):
    """Follows the geometry of every tensor that depends on the image, operation by operation."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()
        self._fields[image] = (ReceptiveField(1, 1, 0),) * (image.ndim - 2)

    def field(self, tensor: Any) -> _Field | str:
        """Geometry of a tensor; a reason where it is not known."""
        known = isinstance(tensor, Tensor) and tensor in self._fields
        return self._fields[tensor] if known else "the layer does not see the image"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes the geometry of its results."""
        results = func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors(args) if tensor in self._fields]
        operation = func.overloadpacket
        for result in _tensors([results]) if inputs else []:
            field = self.field(inputs[0])
            if operation in _RULES and not isinstance(field, str):
                self._fields[result] = _RULES[operation](field, *args[1:])
            else:
                self._fields[result] = self._merged(inputs, result, str(operation))
        return results

    def _merged(self, inputs: list[Tensor], result: Tensor, operation: str) -> _Field | str:
        """An operation unit by unit: inputs of the result's grid meet, others (a gate) count as the whole image."""
        grid = result.shape[2:]
        local = [self.field(tensor) for tensor in inputs if grid and tensor.shape[2:] == grid]
        known = [field for field in local if not isinstance(field, str)]
        if not known or len(known) < len(local):
            reasons = [self.field(tensor) for tensor in inputs]
            return next((reason for reason in reasons if isinstance(reason, str)), f"{operation} changes the grid")
        if len({tuple(axis.jump for axis in field) for field in known}) != 1:
            return f"{operation} joins branches of different jump"
        merged = tuple(_union(axes) for axes in zip(*known, strict=True))
        return merged if len(local) == len(inputs) else tuple(axis._replace(size=math.inf) for axis in merged)


def _convolution(field: _Field, *args: Any) -> _Field | str:
    weight, _, stride, padding, dilation, transposed = args[:6]
    if transposed:
        return "a transposed convolution"
    return _windows(field, weight.shape[2:], stride, padding, dilation)


def _max_pool(
    field: _Field, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> _Field:
    return _windows(field, kernel, stride or kernel, padding, dilation)


def _average_pool(field: _Field, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> _Field:
    return _windows(field, kernel, stride or kernel, padding, 1)


def _padding(field: _Field, pad: Sequence[int], value: float = 0) -> _Field:
    # `pad` runs from the last axis to the first, low side before high side.
    before = list(pad[0::2])[::-1]
    before = [0] * (len(field) - len(before)) + before
    return tuple(
        axis._replace(start=axis.start - low * axis.jump)
        for axis, low in zip(field, before[-len(field) :], strict=True)
    )


_RULES: dict[Any, Callable[..., _Field | str]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _max_pool,
    aten.max_pool3d_with_indices: _max_pool,
    aten.avg_pool2d: _average_pool,
    aten.avg_pool3d: _average_pool,
    aten.constant_pad_nd: _padding,
}


def _windows(field: _Field, kernel: Any, stride: Any, padding: Any, dilation: Any) -> _Field:
    axes = len(field)
    settings = zip(*(_each_axis(value, axes) for value in (kernel, stride, padding, dilation)), strict=True)
    return tuple(_window(axis, *values) for axis, values in zip(field, settings, strict=True))


def _window(axis: ReceptiveField, kernel: int, stride: int, padding: int, dilation: int) -> ReceptiveField:
    reach = dilation * (kernel - 1)
    return ReceptiveField(
        size=axis.size + reach * axis.jump,
        jump=axis.jump * stride,
        start=axis.start + (reach / 2 - padding) * axis.jump,
    )


def _union(axes: Sequence[ReceptiveField]) -> ReceptiveField:
    """The smallest field that covers those of several branches."""
    low = min(axis.start - axis.size / 2 for axis in axes)
    high = max(axis.start + axis.size / 2 for axis in axes)
    if math.isinf(high):
        return axes[0]._replace(size=math.inf)
    return ReceptiveField(high - low, axes[0].jump, (low + high) / 2)


def _candidates(network: Module, side: int = 224) -> list[Tensor]:
    """Zeros of as many channels as the first convolution takes, and of one, where the network repeats grey images."""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            axes = module.weight.ndim - 2
            return [module.weight.new_zeros(1, channels, *[side] * axes) for channels in (module.in_channels, 1)]
    raise ValueError("the network has no convolution; give an image that it accepts")


def _tensors(values: Any) -> list[Tensor]:
    """Tensors among the arguments of an operation, those in lists (`cat`) too."""
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, (list, tuple)) else []
    return found


def _each_axis(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * axes if len(values) == 1 else values


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
