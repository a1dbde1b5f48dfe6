# SPDX-License-Identifier: Apache-2.0
"""Which input pixels a unit of a layer can see, derived from the operations that the network really runs."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from monai_cnnprimer.explain.layers import find_layers
from monai_cnnprimer.explain.receptive_field_rules import RULES, Axis, Field, Grids, union

aten = torch.ops.aten
_Run = tuple[Field | str, int | None]


class ReceptiveField(NamedTuple):
    """Geometry of a layer in pixels of the network's input: unit i sees `size` pixels around `start + i * jump`."""

    size: float
    jump: float
    start: float


def theoretical_receptive_field(network: Module, layer: str, image: Tensor | None = None) -> ReceptiveField:
    """Receptive field of a layer by the rules of Araujo et al. (2019, doi 10.23915/distill.00021).

    One forward is traced operation by operation, so residual branches and functional calls count. Where branches meet,
    the field covers all of them, about the mean of their centres: how much of each a unit sees is up to the weights.
    Behind an upsampling the units of a map see different windows, in turns; the field covers every one. No convolution
    is computed, hooks do not fire, and the network is left as it came.

    Args:
        network: convolutions (transposed ones too), poolings, resizing and operations that keep the grid; in any mode.
        layer: name as in `network.named_modules()`.
        image: an input that the network accepts; zeros of 224 pixels a side when None. Its size matters where maps are
            resized to a size that is no multiple of theirs.

    Returns:
        Size, jump (the product of strides) and start (the centre of unit 0), in pixels. `size` is infinite behind what
        sees the whole image (squeeze and excitation, group norm). In a feature pyramid or U-Net the start is negative:
        doubling a map whose units stand at 0, 32, ... by the nearest neighbour puts what stood at 0 at 0 and 16.

    Raises:
        ValueError: no such layer; it has no grid or does not run once; an operation before it whose geometry is not
            known; rows and columns differ.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, padding=1))
        >>> theoretical_receptive_field(network, "1")
        ReceptiveField(size=11, jump=4, start=0)
    """
    return layer_geometries(network, [layer], _candidates(network) if image is None else [image])[layer].field


class Geometry(NamedTuple):
    """A layer's receptive field, and by how much an image can be moved so that every grid before it moves by units.

    `period` is in pixels, None where there is no such length.
    """

    field: ReceptiveField
    period: int | None


def layer_geometries(network: Module, layers: Sequence[str], images: Sequence[Tensor]) -> dict[str, Geometry]:
    """Geometry of several layers from one trace, with the first of the images that the network accepts.

    Raises:
        ValueError: as `theoretical_receptive_field`.
    """
    modules = find_layers(network, layers)
    for image in images[:-1]:
        with suppress(RuntimeError):
            return _checked(_trace(network, modules, image))
    return _checked(_trace(network, modules, images[-1]))


@contextmanager
def unwatched(network: Module) -> Iterator[None]:
    """Evaluation mode without the hooks of those who watch the network; mode and hooks come back at the end.

    Hooks of PyTorch itself stay, since weight norm and spectral norm compute the weights in one.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if module.training:
                stack.callback(setattr, module, "training", True)
            for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                hooks = getattr(module, name)
                own = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils.")}
                stack.callback(setattr, module, name, hooks)
                setattr(module, name, OrderedDict(own))
        network.eval()
        yield


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


def _checked(runs: dict[str, list[_Run]]) -> dict[str, Geometry]:
    geometries = {}
    for layer, outputs in runs.items():
        if len(outputs) != 1:
            raise ValueError(f"layer {layer!r} ran {len(outputs)} times in one forward, not once")
        field, period = outputs[0]
        if isinstance(field, str):
            raise ValueError(f"receptive field of layer {layer!r} is not known: {field}")
        if period is None and len({axis.jump for axis in field}) == 1:
            field = (union(field, cells=1),)  # rows and columns drift by different lengths
        if len(set(field)) != 1:
            raise ValueError(f"receptive field of layer {layer!r} differs between axes: {field}")
        geometries[layer] = Geometry(_around_centre(field[0]), period)
    return geometries


def _trace(network: Module, modules: Mapping[str, Module], image: Tensor) -> dict[str, list[_Run]]:
    """Geometry and period of each output of each module in one forward; a reason where it is not known."""
    runs: dict[str, list[_Run]] = {name: [] for name in modules}
    with unwatched(network), torch.inference_mode(False), torch.no_grad():
        image = image.as_subclass(Tensor).to(next(network.parameters(), image), copy=True)
        trace = _Trace(image)
        handles = [
            module.register_forward_hook(lambda module, args, output, name=name: runs[name].append(trace.run(output)))
            for name, module in modules.items()
        ]
        try:
            with trace:
                network(image)
        finally:
            for handle in handles:
                handle.remove()
    return runs


class _Trace(TorchDispatchMode):
    """Follows the geometry of every tensor that depends on the image, operation by operation."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()
        self._fields[image] = (Axis(),) * (image.ndim - 2)
        self._jumps: set[float] = {1}

    def run(self, tensor: Any) -> _Run:
        """Geometry of a tensor, and the least common multiple of all jumps so far."""
        whole = all(float(jump).is_integer() for jump in self._jumps)
        return self._field(tensor), math.lcm(*map(int, self._jumps)) if whole else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes the geometry of its results."""
        operation = func.overloadpacket
        results = _empty_convolution(func, args) if operation is aten.convolution else func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors(args) if tensor in self._fields]
        for result in _tensors([results]) if inputs else []:
            field = self._field(inputs[0])
            if operation in RULES and not isinstance(field, str):
                field = RULES[operation](field, Grids(inputs[0].shape[2:], result.shape[2:]), *args[1:])
            else:
                field = self._merged(inputs, result, str(operation))
            self._fields[result] = field
            self._jumps |= set() if isinstance(field, str) else {axis.jump for axis in field}
        return results

    def _field(self, tensor: Any) -> Field | str:
        known = isinstance(tensor, Tensor) and tensor in self._fields
        return self._fields[tensor] if known else "the layer does not see the image"

    def _merged(self, inputs: list[Tensor], result: Tensor, operation: str) -> Field | str:
        """An operation unit by unit: inputs of the result's grid meet, others (a gate) count as the whole image."""
        grid = result.shape[2:]
        local = [self._field(tensor) for tensor in inputs if grid and tensor.shape[2:] == grid]
        known = [field for field in local if not isinstance(field, str)]
        if not known or len(known) < len(local):
            reasons = [self._field(tensor) for tensor in inputs]
            return next((reason for reason in reasons if isinstance(reason, str)), f"{operation} changes the grid")
        merged = tuple(union(axes, cells) for axes, cells in zip(zip(*known, strict=True), grid, strict=True))
        return merged if len(local) == len(inputs) else tuple(axis.unbounded() for axis in merged)


def _empty_convolution(func: Any, args: Sequence[Any]) -> Tensor:
    """Zeros in the shape of the result: values do not enter the geometry, and convolutions are what costs time."""
    shapes = [arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args]
    return args[0].new_zeros(func(*shapes).shape)


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


def _around_centre(axis: Axis) -> ReceptiveField:
    reach = max(axis.high - axis.centre, axis.centre - axis.low)
    return ReceptiveField(*map(_whole, (2 * reach, axis.jump, axis.centre)))


def _whole(value: float) -> float:
    rounded = round(float(value), 9)  # jumps of resized maps are fractions
    return int(rounded) if rounded.is_integer() else rounded
