# SPDX-License-Identifier: Apache-2.0
"""The arms of the small-finding benchmark: classifiers on one encoder, asked alike for a logit and dense maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from monai_cnnprimer import networks
from monai_cnnprimer.networks.dense import DenseClassifier, DenseLogits
from monai_cnnprimer.networks.pyramid import initialise
from monai_cnnprimer.networks.unet import UNetDecoder, UpStep

# Levels of the encoder that each arm's head reads, in the order in which it takes them.
READS: dict[str, tuple[int, ...]] = {
    "resnet50": (5,),
    "late_head": (5,),
    "fpn": (2, 3, 4, 5),
    "bifpn": (2, 3, 4, 5),
    "early_head": (2, 3),
    "unet": (5, 4, 3, 2, 1),
}
LAYERS = {2: "layer1", 3: "layer2", 4: "layer3", 5: "layer4"}
FEWEST_CHANNELS = 16


class ArmOutput(NamedTuple):
    """What an arm says of a batch, as log-odds of a finding.

    Attributes:
        logit: of each image `(N,)`.
        maps: name to the cells `(N, h, w)`.
    """

    logit: Tensor
    maps: dict[str, Tensor]


class Arm(nn.Module):
    """One architecture of the experiment.

    The global-pool arm has no dense map of its own: it gets its class activation map, `fc` applied to every cell of
    `layer4` (Zhou et al., 2016, arXiv:1512.04150), whose mean is the image's log-odds exactly.

    Args:
        name: a key of `READS`.
        network: the classifier of that name, with two classes.

    Attributes:
        strides: name of each dense map to the pixels of the input from cell to cell.
    """

    def __init__(self, name: str, network: networks.RadiographResNet) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.strides = network.strides if isinstance(network, DenseClassifier) else {"cam": 32}

    def encode(self, x: Tensor) -> dict[int, Tensor]:
        """C1 to the deepest level that the network has, of images `(N, 1, H, W)`."""
        features = {1: self.network.stem(x)}
        deeper = self.network.maxpool(features[1])
        for level, layer in LAYERS.items():
            if hasattr(self.network, layer):
                features[level] = deeper = getattr(self.network, layer)(deeper)
        return features

    def head(self, features: Mapping[int, Tensor], x: Tensor) -> ArmOutput:
        """The arm's answer from the levels it reads; of `x` only the size counts."""
        read = [features[level] for level in READS[self.name]]
        network = self.network
        if not isinstance(network, DenseClassifier):
            assert network.fc is not None  # MONAI's may leave it out
            cells = nn.functional.conv2d(read[0], network.fc.weight[:, :, None, None], network.fc.bias)
            evidence = _log_odds(cells)
            return ArmOutput(evidence.mean((1, 2)), {"cam": evidence})
        # nn.Module's attributes are modules or tensors to a type checker.
        neck, pool = cast(nn.Module, network.neck), cast(nn.Module, network.pool)
        levels = neck([*read, x[:, :0]] if self.name == "unet" else read)
        maps = {name: head(some) for (name, head), some in zip(network.dense.items(), levels, strict=True)}
        pooled = pool(list(maps.values()))
        return ArmOutput(_log_odds(pooled), {name: _log_odds(logits) for name, logits in maps.items()})

    def forward(self, x: Tensor) -> ArmOutput:
        """The arm's answer to images `(N, 1, H, W)`."""
        return self.head(self.encode(x), x)


class SharedArms(nn.Module):
    """Several arms on one encoder, which runs once for all of them: how they are warmed up together.

    Args:
        arms: their encoders are replaced by that of the first with all layers.

    Attributes:
        strides: of each arm's dense maps, by the arm's name.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        super().__init__()
        self.arms = nn.ModuleDict({arm.name: arm for arm in arms})
        self.strides = {arm.name: arm.strides for arm in arms}
        self.whole = next((arm.name for arm in arms if hasattr(arm.network, "layer4")), arms[0].name)
        for arm in arms:
            for name in ("conv1", "bn1", *LAYERS.values()):
                if hasattr(arm.network, name):
                    setattr(arm.network, name, getattr(self.arms[self.whole].network, name))

    def forward(self, x: Tensor) -> dict[str, ArmOutput]:
        """The answer of each arm to images `(N, 1, H, W)`."""
        arms = {name: cast(Arm, arm) for name, arm in self.arms.items()}
        features = arms[self.whole].encode(x)
        return {name: arm.head(features, x) for name, arm in arms.items()}


def build_arm(name: str, seed: int, width: float = 1.0, pretrained: str | Path | None = None) -> Arm:
    """An arm with random weights of a seed; the encoder is the same for all arms of one seed and width.

    Args:
        name: a key of `READS`.
        seed: of the weights; torch's own random numbers stay as they were.
        width: share of the channels that every layer keeps, see `narrow`.
        pretrained: weights of a ResNet-50 for the encoder, only at full width.

    Raises:
        ValueError: an unknown name, a width out of range, or weights for a narrow encoder.
    """
    if name not in READS:
        raise ValueError(f"unknown arm {name!r}: choose from {', '.join(READS)}")
    if width != 1 and pretrained is not None:
        raise ValueError(f"initial_weights with width {width}: published encoders have the full width, 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(networks, f"{name}_classifier")(pretrained=pretrained)
        if width != 1:
            narrow(network, width)
    return Arm(name, network)


def narrow(network: nn.Module, width: float) -> nn.Module:
    """Keeps a share of the channels of every layer of a classifier, in place, so that all arms shrink alike.

    The weights kept are scaled to the variance that a layer of this size starts with. Images and classes keep their
    channels, and the U-Net's last steps the 16 that they have: no block of layers ends with fewer.

    Args:
        network: one of this package's classifiers, with random weights and two classes.
        width: such that the encoder's 64 channels become a whole number, 16 or more.

    Returns:
        The same network.

    Raises:
        ValueError: a width that leaves fewer channels, or more than there are.

    Example:
        >>> narrow(networks.resnet50_classifier(), 0.25).layer4[0].conv1
        Conv2d(256, 128, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """
    if not (FEWEST_CHANNELS <= 64 * width <= 64 and (16 * width).is_integer()):
        raise ValueError(f"width {width}: choose a multiple of 1/16 from 0.25 to 1")
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                setattr(parent, name, _narrowed(module, width))
    if isinstance(network, DenseClassifier) and isinstance(network.neck, UNetDecoder):
        _widen_last_steps(network, width)
    return network


def _narrowed(layer: nn.Conv2d | nn.BatchNorm2d | nn.Linear, width: float) -> nn.Module:
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(_count(layer.num_features, width), layer.eps, layer.momentum)
    bias = layer.bias is not None
    narrower: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        narrower = nn.Linear(_count(layer.in_features, width), layer.out_features, bias)
    else:
        groups = _count(layer.groups, width) if layer.groups > 1 else 1
        inputs, outputs = _count(layer.in_channels, width), _count(layer.out_channels, width)
        narrower = nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding, groups=groups, bias=bias)  # type: ignore[arg-type]
    rows, columns = narrower.weight.shape[:2]
    # The variance of a random layer is inverse to its fans; a depthwise kernel and the last layer's 0.01 have none.
    fixed = isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.out_channels <= 3)
    with torch.no_grad():
        narrower.weight.copy_(layer.weight[:rows, :columns] * (1 if fixed else width**-0.5))
        if narrower.bias is not None:
            assert layer.bias is not None
            narrower.bias.copy_(layer.bias[:rows])
    return narrower


def _widen_last_steps(network: DenseClassifier, width: float) -> None:
    """A decoder of the U-Net with at least 16 channels at each step."""
    skips = [_count(channels, width) for channels in (1024, 512, 256, 64, 0)]
    outputs = [max(FEWEST_CHANNELS, _count(channels, width)) for channels in (256, 128, 64, 32, 16)]
    inputs = [_count(2048, width), *outputs[:-1]]
    network.neck.blocks = nn.ModuleList(UpStep(*counts) for counts in zip(inputs, skips, outputs, strict=True))
    initialise(network.neck)
    network.dense["full"] = DenseLogits(outputs[-1], 2)


def _count(channels: int, width: float) -> int:
    """Channels that are left; those of an image (3, 1) and of the classes (2) stay."""
    return channels if channels <= 3 else round(channels * width)


def _log_odds(logits: Tensor) -> Tensor:
    return (logits[:, 1] - logits[:, 0]).float()
