# SPDX-License-Identifier: Apache-2.0
"""Activations of named layers in the network's own forward: which channels answer, how sparsely, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from monai_cnnprimer.explain.activation_statistics import LayerActivations, LayerStatistics, Tally, describe
from monai_cnnprimer.explain.gradcam import in_second_pass
from monai_cnnprimer.explain.layers import LayerRuns, find_layers

LAYERS = ("layer1", "layer3", "layer4")


class RecordedImage(NamedTuple):
    """One image of the sample: its running number in the recording, and each layer's answer, in order of depth."""

    number: int
    layers: dict[str, LayerActivations]


class Activations:
    """Records what layers of `network` hand on in every forward inside the `with` block; entering starts afresh.

    An output is described while the layer's hook runs, so what is recorded is the output as it left the module: an
    operation in place that follows (a ReLU) does not reach it. It is taken in the precision of the caller's forward,
    under autocast too, and described in float32. Logits, gradients and modes are as without. A `GradCam` may record
    the same network; its second pass under autocast is not recorded.

    Memory holds `max_images` images with `channels` maps each, and a few numbers for each channel.

    Args:
        network: the network that will be called.
        layers: names as in `network.named_modules()`, one or several, each run once in a forward and with an output
            `(N, C, h, w)`.
        max_images: size of the sample of which maps are kept.
        channels: how many maps of an image to keep: those of its most active channels.
        all_images: whether the statistics count every image, not only the sample.
        seed: draws the sample at random among all images, whatever the batch size; None takes the first ones.

    Attributes:
        seen: images that ran so far.
        forwards: forwards recorded so far.
        paused: set it to let forwards pass unrecorded; entering sets it to False.
        logits: output `(N, K)` of the latest forward, without graph; `(N, 0)` where the output is something else.

    Raises:
        ValueError: a layer does not exist (at once); a layer did not run, ran twice, has no spatial extent or another
            number of images than the first one (all of these in the forward).

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> with torch.no_grad(), Activations(network, ["1", "2"], channels=2) as activations:
        ...     output = network(torch.rand(5, 1, 8, 10))
        >>> activations.images[0].layers["1"].maps.shape
        torch.Size([2, 6, 8])
        >>> activations.statistics["2"].grid
        (3, 4)
    """

    def __init__(
        self,
        network: Module,
        layers: str | Sequence[str] = LAYERS,
        max_images: int = 8,
        channels: int = 16,
        all_images: bool = False,
        seed: int | None = None,
    ) -> None:
        if max_images < 0 or channels < 1:
            raise ValueError(f"max_images must not be negative, channels at least 1; got {max_images} and {channels}")
        self.network = network
        self.layers = find_layers(network, layers)
        self.max_images = max_images
        self.channels = channels
        self.all_images = all_images
        self.seed = seed
        self.seen = self.forwards = 0
        self.paused = False
        self.logits = torch.empty(0, 0)
        self._sample: dict[int, dict[str, LayerActivations]] = {}
        self._tallies: dict[str, Tally] = {}
        self._forward: _Forward | None = None
        self._handles: list[RemovableHandle] = []
        self._survey: list[RemovableHandle] = []

    @property
    def images(self) -> list[RecordedImage]:
        """The sample, in the order in which the images came."""
        return [RecordedImage(number, self._sample[number]) for number in sorted(self._sample)]

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Each layer over the sample, or over all images so far; the layers in the order in which they ran."""
        tallies = self._tallies
        if not self.all_images:
            tallies = {}
            _count(tallies, (image.layers for image in self.images))
        return {layer: tally.statistics() for layer, tally in tallies.items()}

    def __enter__(self) -> Self:
        self.seen = self.forwards = 0
        self.paused = False
        self._sample, self._tallies = {}, {}
        for name, module in self.network.named_modules():
            # The first forward surveys all modules, so that an error can name those that would do.
            handles = self._handles if name in self.layers else self._survey
            if name:
                handles.append(module.register_forward_hook(partial(self._layer_ran, name)))
        self._handles.append(self.network.register_forward_pre_hook(self._begin))
        self._handles.append(self.network.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forward = None
        for handles in (self._handles, self._survey):
            while handles:
                handles.pop().remove()

    def _begin(self, network: Module, args: Any) -> None:
        if not in_second_pass():
            self._forward = None if self.paused else _Forward()

    def _layer_ran(self, name: str, module: Module, args: Any, output: Any) -> None:
        forward = self._forward
        if forward is None or in_second_pass():
            return
        forward.runs.note(name, output)
        if name not in self.layers or forward.runs.fault(name):
            return
        if forward.images is None:
            forward.images, forward.sampled = len(output), self._sampled(len(output))
        if len(output) != forward.images:
            raise ValueError(f"layer {name!r} has {len(output)} images, a layer before it {forward.images}")
        rows = range(forward.images) if self.all_images else forward.sampled
        # GradCam may have switched gradients on; what is kept must be of use outside inference mode too.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            forward.described[name] = {
                row: describe(output[row], self.channels if row in forward.sampled else 0) for row in rows
            }

    def _end(self, network: Module, args: Any, output: Any) -> None:
        if self._forward is None or in_second_pass():
            return
        forward, self._forward = self._forward, None
        forward.runs.check(self.layers)
        while self._survey:
            self._survey.pop().remove()
        described = forward.by_row()
        if self.all_images:
            _count(self._tallies, described.values())
        kept = self._sample | {self.seen + row: described[row] for row in forward.sampled}
        self._sample = {number: kept[number] for number in sorted(kept, key=self._rank)[: self.max_images]}
        self.seen += forward.images or 0
        is_logits = isinstance(output, Tensor) and output.ndim == 2 and len(output) == forward.images
        self.logits = output.detach().as_subclass(Tensor) if is_logits else torch.empty(forward.images or 0, 0)
        self.forwards += 1

    def _sampled(self, coming: int) -> list[int]:
        """Which of the coming images join the sample."""
        numbers = sorted([*self._sample, *range(self.seen, self.seen + coming)], key=self._rank)[: self.max_images]
        return [number - self.seen for number in numbers if number >= self.seen]

    def _rank(self, number: int) -> tuple[float, int]:
        # One generator an image: what is drawn does not depend on which forwards came, or failed, before.
        return 0.0 if self.seed is None else np.random.default_rng((self.seed, number)).random(), number


class _Forward:
    """One forward so far."""

    def __init__(self) -> None:
        self.runs = LayerRuns()
        self.images: int | None = None
        self.sampled: list[int] = []
        self.described: dict[str, dict[int, LayerActivations]] = {}

    def by_row(self) -> dict[int, dict[str, LayerActivations]]:
        """From layers of rows to rows of layers."""
        rows = next(iter(self.described.values()))
        return {row: {layer: described[row] for layer, described in self.described.items()} for row in rows}


def _count(tallies: dict[str, Tally], images: Iterable[dict[str, LayerActivations]]) -> None:
    for image in images:
        for layer, activations in image.items():
            tallies.setdefault(layer, Tally()).add(activations)
