# SPDX-License-Identifier: Apache-2.0
"""How each operation of a network changes the geometry of its units, by the names that PyTorch gives to operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch

aten = torch.ops.aten


class Axis(NamedTuple):
    """Geometry along one axis of a map, in pixels of the network's input.

    Unit i sees from `low + i * jump` to `high + i * jump`, edges of pixels, about the centre `centre + i * jump`.
    """

    low: float = -0.5
    high: float = 0.5
    centre: float = 0
    jump: float = 1

    def moved(self, low: float, high: float, jump: float) -> Axis:
        """Windows that begin `low` and end `high` pixels after these, in the middle of which lies the new centre."""
        return Axis(self.low + low, self.high + high, self.centre + (low + high) / 2, jump)

    def unbounded(self) -> Axis:
        """The same units, each of which sees the whole image."""
        return self._replace(low=-math.inf, high=math.inf)


Field = tuple[Axis, ...]  # one for each spatial axis
Sources = Callable[[Any], tuple[int, int]]
_HALF = Fraction(1, 2)


class Grids(NamedTuple):
    """Cells along each spatial axis before and after an operation."""

    before: Sequence[int]
    after: Sequence[int]


def union(axes: Sequence[Axis], cells: int) -> Axis:
    """The smallest window that covers those of several branches, in each of so many cells.

    The centre is the mean of theirs: how much of each branch a unit sees is up to the weights. Jumps differ where a map
    was resized to a size that is no multiple of its own: then the branch of the smallest window, which was not resized,
    gives the jump, and the others' drift against it is covered.

    Example:
        >>> union([Axis(-1.5, 1.5, 0, 4), Axis(-3.5, 3.5, 0, 4)], cells=9)
        Axis(low=-3.5, high=3.5, centre=0.0, jump=4)
    """
    jump = min(axes, key=lambda axis: axis.high - axis.low).jump
    lags = [(axis, cell * (axis.jump - jump)) for axis in axes for cell in (0, cells - 1)]
    return Axis(
        low=min(axis.low + lag for axis, lag in lags),
        high=max(axis.high + lag for axis, lag in lags),
        centre=sum(axis.centre + lag for axis, lag in lags) / len(lags),
        jump=jump,
    )


def _convolution(field: Field, grids: Grids, *args: Any) -> Field:
    weight, _, stride, padding, dilation, transposed = args[:6]
    if not transposed:
        return _windows(field, weight.shape[2:], stride, padding, dilation)
    settings = zip(weight.shape[2:], *_each_axis(len(field), stride, padding, dilation), strict=True)
    return tuple(
        _resampled(axis, axis.jump / step, _transposed(cells, kernel, step, low, spread))
        for axis, cells, (kernel, step, low, spread) in zip(field, grids.after, settings, strict=True)
    )


def _transposed(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> Iterable[tuple[int, int, int]]:
    for cell in range(cells):
        first = -((dilation * (kernel - 1) - cell - padding) // stride)
        last = (cell + padding) // stride
        if first <= last:  # else the kernel is shorter than the stride, and the cell holds the bias alone
            yield cell, first, last


def _max_pool(
    field: Field, grids: Grids, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *rest: Any
) -> Field:
    return _windows(field, kernel, stride or kernel, padding, dilation)


def _average_pool(field: Field, grids: Grids, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Field:
    return _windows(field, kernel, stride or kernel, padding, 1)


def _padding(field: Field, grids: Grids, pad: Sequence[int], value: float = 0) -> Field:
    # `pad` runs from the last axis to the first, low side before high side. Mirrored and repeated cells count as if
    # they lay outside: what they hold comes from nearer by.
    before = list(pad[0::2])[::-1]
    before = [0] * (len(field) - len(before)) + before
    return tuple(
        axis.moved(-low * axis.jump, -low * axis.jump, axis.jump)
        for axis, low in zip(field, before[-len(field) :], strict=True)
    )


def _slice(
    field: Field, grids: Grids, dim: int = 0, first: int | None = None, last: int | None = None, step: int = 1
) -> Field:
    place = dim % (len(field) + 2) - 2
    if place < 0:
        return field
    axis, skipped = field[place], range(grids.before[place])[first or 0 :].start
    cut = axis.moved(skipped * axis.jump, skipped * axis.jump, axis.jump * step)
    return (*field[:place], cut, *field[place + 1 :])


def _nearest(field: Field, grids: Grids, size: Any, *scales: float | None) -> Field:
    return _resized(field, grids, _ratios(grids, scales), 0, lambda place: (math.floor(place),) * 2)


def _nearest_exact(field: Field, grids: Grids, size: Any, *scales: float | None) -> Field:
    return _resized(field, grids, _ratios(grids, scales), _HALF, lambda place: (math.floor(place + _HALF),) * 2)


def _linear(field: Field, grids: Grids, size: Any, corners: bool, *scales: float | None) -> Field:
    return _interpolated(field, grids, corners, scales, lambda place: (math.floor(place), math.ceil(place)))


def _cubic(field: Field, grids: Grids, size: Any, corners: bool, *scales: float | None) -> Field:
    return _interpolated(field, grids, corners, scales, lambda place: (math.floor(place) - 1, math.floor(place) + 2))


def _interpolated(field: Field, grids: Grids, corners: bool, scales: Sequence[float | None], sources: Sources) -> Field:
    if not corners:
        return _resized(field, grids, _ratios(grids, scales), _HALF, sources)
    ratios = [Fraction(before - 1, max(after - 1, 1)) for before, after in zip(*grids, strict=True)]
    return _resized(field, grids, ratios, 0, sources)


def _shuffle(field: Field, grids: Grids, factor: int) -> Field:
    return _nearest(field, grids, None)


def _unshuffle(field: Field, grids: Grids, factor: int) -> Field:
    return _windows(field, factor, factor, 0, 1)


def _batch_norm(field: Field, grids: Grids, *args: Any) -> Field:
    return _whole_image(field) if args[4] else field  # statistics of this batch, not of the training


def _norm(field: Field, grids: Grids, *args: Any) -> Field:
    return _whole_image(field)


def _softmax(field: Field, grids: Grids, dim: int, *args: Any) -> Field:
    return field if dim % (len(field) + 2) < 2 else _whole_image(field)


def _moved(field: Field, grids: Grids, *args: Any) -> str:
    return "an operation that moves units (flip, roll, transpose)"


RULES: dict[Any, Callable[..., Field | str]] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _max_pool,
    aten.max_pool3d_with_indices: _max_pool,
    aten.avg_pool2d: _average_pool,
    aten.avg_pool3d: _average_pool,
    aten.constant_pad_nd: _padding,
    aten.reflection_pad2d: _padding,
    aten.reflection_pad3d: _padding,
    aten.replication_pad2d: _padding,
    aten.replication_pad3d: _padding,
    aten.slice: _slice,
    aten.upsample_nearest2d: _nearest,
    aten.upsample_nearest3d: _nearest,
    aten._upsample_nearest_exact2d: _nearest_exact,
    aten._upsample_nearest_exact3d: _nearest_exact,
    aten.upsample_bilinear2d: _linear,
    aten.upsample_trilinear3d: _linear,
    aten.upsample_bicubic2d: _cubic,
    aten.pixel_shuffle: _shuffle,
    aten.pixel_unshuffle: _unshuffle,
    aten.native_batch_norm: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten.native_group_norm: _norm,
    aten.native_layer_norm: _norm,
    aten._softmax: _softmax,
    aten._log_softmax: _softmax,
    aten.flip: _moved,
    aten.roll: _moved,
    aten.permute: _moved,
    aten.transpose: _moved,
}


def _windows(field: Field, *settings: Any) -> Field:
    """Windows of kernel, stride, padding and dilation, each one number or one for each axis."""
    return tuple(
        _window(axis, *values)
        for axis, values in zip(field, zip(*_each_axis(len(field), *settings), strict=True), strict=True)
    )


def _window(axis: Axis, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    low, high = -padding, dilation * (kernel - 1) - padding
    return axis.moved(low * axis.jump, high * axis.jump, axis.jump * stride)


def _resized(field: Field, grids: Grids, ratios: Sequence[Fraction], shift: Fraction | int, sources: Sources) -> Field:
    """Cell i stands at place `(i + shift) * ratio - shift` among those before, and is made of `sources(place)`."""
    return tuple(
        _resampled(axis, float(axis.jump * ratio), [(i, *sources((i + shift) * ratio - shift)) for i in range(cells)])
        for axis, ratio, cells in zip(field, ratios, grids.after, strict=True)
    )


def _resampled(axis: Axis, jump: float, made_of: Iterable[tuple[int, int, int]]) -> Axis:
    """The window that covers every cell, given as (cell, first, last) of the cells before that it is made of.

    Cells of one resized map lie differently over what they are made of, in turns; the window covers all.
    """
    ends = [(first * axis.jump - cell * jump, last * axis.jump - cell * jump) for cell, first, last in made_of]
    return axis.moved(min(first for first, _ in ends), max(last for _, last in ends), jump)


def _ratios(grids: Grids, scales: Sequence[float | None]) -> list[Fraction]:
    """Cells before for one after; by the scale where one was given, as PyTorch does."""
    given = [*scales, *[None] * (len(grids.before) - len(scales))]
    return [
        Fraction(before, after) if scale is None else 1 / Fraction(scale)
        for before, after, scale in zip(*grids, given, strict=True)
    ]


def _whole_image(field: Field) -> Field:
    return tuple(axis.unbounded() for axis in field)


def _each_axis(axes: int, *settings: Any) -> list[list[int]]:
    values = [list(value) if isinstance(value, Sequence) else [value] for value in settings]
    return [value * axes if len(value) == 1 else value for value in values]
