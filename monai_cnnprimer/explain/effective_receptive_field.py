# SPDX-License-Identifier: Apache-2.0
"""How far a unit of a layer really looks: the gradient of its value with respect to every pixel of the input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Module

from monai_cnnprimer.explain.bare_copy import bare_copy
from monai_cnnprimer.explain.layers import find_layers
from monai_cnnprimer.explain.receptive_field import Geometry, ReceptiveField, layer_geometries, unwatched
from monai_cnnprimer.explain.receptive_field_summary import EffectiveReceptiveField

_Unit = tuple[int, int]
_Box = tuple[_Unit, _Unit]  # first and past-the-end row, first and past-the-end column

_REDUCED = (torch.float16, torch.bfloat16)
_PIXELS_AT_ONCE = 2 * 224**2  # the graph of a ResNet-50 takes 1.7 kB a pixel
_WARM_UP = 8


def effective_receptive_field(
    network: Module,
    layer: str,
    images: Tensor,
    seeds: int = 8,
    *,
    seed: int = 0,
    unit: _Unit | None = None,
    spacing_mm: tuple[float, float] | None = None,
    crop: bool = True,
) -> EffectiveReceptiveField:
    """Sensitivity of a layer's central unit to every pixel of the input (Luo et al., 2016, arXiv:1701.04128).

    The unit's channels are summed with random signs, and the gradient of that sum is squared, summed over the channels
    of the image, and averaged over images and draws of signs: an unbiased estimate of the sum over channels of each
    one's squared gradient. One measurement, of which benchmarks count the cost, is one image and one draw.

    Each image runs forward once, only as far as the layer, and backward once for each draw. Where the theoretical field
    is smaller than the image, only that part of the image runs, which changes nothing: no unit that matters reaches
    over its edge.

    Args:
        network: in any mode, frozen or not, on any device; left as it came, without `.grad`. Hooks of others do not
            fire. Weights in half precision and autocast around the call count as float32.
        layer: name as in `network.named_modules()`, a layer of which `theoretical_receptive_field` is known.
        images: `(N, C, H, W)`, scaled as the network was trained.
        seeds: draws of signs for each image.
        seed: of the draws; the global random state is left alone.
        unit: (row, column) in the layer's grid; the one nearest to the image's centre when None.
        spacing_mm: (row, column) on the patient of one pixel of `images`; None where it is not known.
        crop: False runs the whole image, for comparison.

    Raises:
        ValueError: images or seeds that do not fit, a layer of unknown geometry, a unit outside the grid, or a gradient
            of zero everywhere (a black image).

    Example:
        >>> conv = torch.nn.Sequential(torch.nn.Conv2d(1, 1, kernel_size=3, padding=1))
        >>> field = effective_receptive_field(conv, "0", torch.rand(2, 1, 9, 9))
        >>> field.map.shape, field.map.count_nonzero().item()
        (torch.Size([9, 9]), 9)
    """
    units = {} if unit is None else {layer: unit}
    fields = effective_receptive_fields(
        network, [layer], images, seeds, seed=seed, units=units, spacing_mm=spacing_mm, crop=crop
    )
    return fields[layer]


def effective_receptive_fields(
    network: Module,
    layers: Sequence[str],
    images: Tensor,
    seeds: int = 8,
    *,
    seed: int = 0,
    units: Mapping[str, _Unit] | None = None,
    spacing_mm: tuple[float, float] | None = None,
    crop: bool = True,
) -> dict[str, EffectiveReceptiveField]:
    """As `effective_receptive_field` for several layers; those that need the same part of the image share a forward.

    Args:
        network: as for one layer.
        layers: names.
        images: `(N, C, H, W)`.
        seeds: draws of signs for each image and layer.
        seed: of the draws.
        units: layer name to (row, column), for layers where it is not to be the central one.
        spacing_mm: as for one layer.
        crop: as for one layer.

    Returns:
        Layer name to its field, in the order asked for; each as if measured alone.

    Raises:
        ValueError: as for one layer.
    """
    if images.ndim != 4 or len(images) == 0 or seeds < 1:
        raise ValueError(f"needs images (N, C, H, W) and a seed or more, got {tuple(images.shape)} and {seeds} seeds")
    names = list(find_layers(network, layers))
    height, width = images.shape[2:]
    with _differentiable(network):
        images = _as_the_network(network, images)
        geometries = _geometries(network, names, images)
        units = {name: _central_unit(geometries[name].field, (height, width)) for name in names} | dict(units or {})
        parts: dict[_Box, list[str]] = {}
        for name in names:
            box = _box(geometries[name], units[name], (height, width)) if crop else ((0, height), (0, width))
            parts.setdefault(box, []).append(name)
        generators = {name: torch.Generator().manual_seed(seed) for name in names}
        sums = {name: images.new_zeros(height, width, dtype=torch.float64) for name in names}
        for ((top, bottom), (left, right)), sharing in parts.items():
            inside = {name: _moved(units[name], geometries[name].field, (top, left)) for name in sharing}
            part = images[:, :, top:bottom, left:right]
            for batch in part.split(max(1, _PIXELS_AT_ONCE // (part.shape[2] * part.shape[3]))):
                for name, values in _unit_values(network, batch, inside).items():
                    sums[name][top:bottom, left:right] += _squared(*values, seeds, generators[name])
        maps = {name: (total / (len(images) * seeds)).float().cpu() for name, total in sums.items()}
    return {
        name: EffectiveReceptiveField(
            layer=name,
            map=maps[name],
            theoretical=geometries[name].field,
            unit=units[name],
            images=len(images),
            seeds=seeds,
            spacing_mm=spacing_mm,
        )
        for name in names
    }


def random_twin(network: Module, seed: int = 0, images: Tensor | None = None) -> Module:
    """The same architecture with random weights, to tell what training did to a receptive field.

    Every module is initialised by its own `reset_parameters`, then convolutions anew by He et al. (2015,
    arXiv:1502.01852), as MONAI's ResNet does: PyTorch's own start is so small that a ResNet's signal passes by its
    shortcuts only. With `images`, eight passes in training mode give batch norm statistics to work with, as the first
    steps of a training would; fields are narrower then. What the images show makes no difference to either.

    Args:
        network: left as it is; a copy of it is changed, without the hooks of the original.
        seed: of the weights, the same on every device; the global random state is left alone.
        images: `(N, C, H, W)`.

    Returns:
        The copy, in evaluation mode.

    Raises:
        ValueError: a module with weights but without `reset_parameters`.
    """
    device = next(network.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.no_grad():
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        twin = bare_copy(network).float().cpu()
        twin.zero_grad()
        for name, module in twin.named_modules():
            _initialise(name, module)
        twin.to(device)
        if images is not None:
            twin.train()
            images = images.detach().as_subclass(Tensor).to(device, torch.float32)
            for _ in range(_WARM_UP):
                twin(images)
    return twin.eval()


def _initialise(name: str, module: Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
    elif any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"{name or 'the network'}: {type(module).__name__} has weights but no reset_parameters()")
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        # fan_out would count all groups of a depthwise convolution.
        nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in", nonlinearity="relu")


class _Reached(Exception):
    """All wanted layers have run; the rest of the forward is not needed."""


@contextmanager
def _differentiable(network: Module) -> Iterator[None]:
    """Gradients of the input and of nothing else, in full precision, whatever is switched on or off around."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(unwatched(network))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(_parameter(network).device.type, enabled=False))
        for parameter in trained:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        yield


def _unit_values(network: Module, images: Tensor, units: Mapping[str, _Unit]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name to the values `(N, C)` of its unit, and the images that they depend on; one forward."""
    images = images.clone().requires_grad_()
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        outputs[name] = output
        if len(outputs) == len(units):
            raise _Reached
        return output.clone()  # an operation in place that follows must not change what is kept

    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: keep(name, output))
        for name in units
    ]
    try:
        with suppress(_Reached):
            functional_call(network, _widened(network), (images.clone(),))
    finally:
        for handle in handles:
            handle.remove()
    for name, unit in units.items():
        grid = tuple(outputs[name].shape[2:])
        if not all(0 <= place < cells for place, cells in zip(unit, grid, strict=True)):
            raise ValueError(f"layer {name!r} has no unit {unit}, its grid is {grid}")
    return {name: (outputs[name][:, :, row, column], images) for name, (row, column) in units.items()}


def _squared(values: Tensor, images: Tensor, seeds: int, generator: torch.Generator) -> Tensor:
    """Squared gradient `(h, w)`, summed over images, their channels and draws of signs."""
    count, channels = values.shape
    # Image by image, so that the draws do not depend on how many run at once.
    signs = torch.stack([torch.randint(0, 2, (seeds, channels), generator=generator) for _ in range(count)], dim=1)
    total = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
    for drawn in (2 * signs - 1).to(values):
        (gradient,) = torch.autograd.grad(values, images, drawn, retain_graph=True)
        total += gradient.double().square().sum(dim=(0, 1))
    return total


def _geometries(network: Module, names: Sequence[str], images: Tensor) -> dict[str, Geometry]:
    """Traced on a small image, which does as long as the remainders by all strides are those of the real one."""
    image = images[:1]
    sides = [min(side, 64 + side % 64) for side in image.shape[2:]]
    geometries = layer_geometries(network, names, [image.new_zeros(*image.shape[:2], *sides), image])
    if all(geometry.period and 32 % geometry.period == 0 for geometry in geometries.values()):
        return geometries
    return layer_geometries(network, names, [image])


def _central_unit(field: ReceptiveField, sides: _Unit) -> _Unit:
    """The unit whose centre is nearest to the image's."""
    row, column = (
        min(math.floor(((side - 1) / 2 - field.start) / field.jump + 0.5), int((side - 1) // field.jump))
        for side in sides
    )
    return row, column


def _box(geometry: Geometry, unit: _Unit, sides: _Unit) -> _Box:
    """The part of the image to run: the unit's window, widened to where every grid before the layer begins anew."""
    if geometry.period is None or math.isinf(geometry.field.size):
        return (0, sides[0]), (0, sides[1])
    rows, columns = (
        _stretch(place * geometry.field.jump + geometry.field.start, geometry.field.size, geometry.period, side)
        for place, side in zip(unit, sides, strict=True)
    )
    return rows, columns


def _stretch(centre: float, size: float, period: int, side: int) -> _Unit:
    first, last = math.floor(centre - (size - 1) / 2), math.ceil(centre + (size - 1) / 2)
    return max(0, first // period * period), min(side, -(-(last + 1) // period) * period)


def _moved(unit: _Unit, field: ReceptiveField, corner: _Unit) -> _Unit:
    row, column = (place - int(first / field.jump) for place, first in zip(unit, corner, strict=True))
    return row, column


def _parameter(network: Module) -> Tensor:
    return next(network.parameters(), torch.empty(0))


def _as_the_network(network: Module, images: Tensor) -> Tensor:
    """Images without metadata, on the network's device, in its number type but at least float32."""
    like = _parameter(network)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return images.detach().as_subclass(Tensor).to(like.device, dtype)


def _widened(network: Module) -> dict[str, Tensor]:
    """Weights and buffers of half precision in float32."""
    entries = [*network.named_parameters(), *network.named_buffers()]
    return {name: value.float() for name, value in entries if value.dtype in _REDUCED}
