# SPDX-License-Identifier: Apache-2.0
"""Classifiers with dense logits on the encoder's pyramid: FPN, BiFPN, and heads without a way between levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn

from monai_cnnprimer.networks.dense import SHARPNESS, DenseClassifier
from monai_cnnprimer.networks.resnet import CHANNELS

# Multiply-adds of the FPN's neck at 224 px: 0.25, 0.81, 2.84 billion for 64, 128, 256 channels, beside the encoder's
# 4.09. With 256, as published for detection, it would cost 1.7 times ResNet-50; with 128, 1.2 times.
WIDTH = 128
LEVELS = [CHANNELS[name] for name in ("c2", "c3", "c4", "c5")]


def initialise(network: nn.Module) -> None:
    """Kaiming normal weights for every convolution (He et al., 2015), of its own number of inputs."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # fan_out would count all groups of a depthwise convolution.
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class FpnNeck(nn.Module):
    """MONAI's feature pyramid (Lin et al., 2017, arXiv:1612.03144), then batch norm and ReLU for each level.

    Without the ReLU a level's 3x3 convolution and the 1x1 behind it would be one linear map. The way down resizes by
    the nearest neighbour to the finer level's size, whatever that is; since a coarse cell is centred on the first of
    its finer cells, what comes from C5 lies 8 + 4 + 2 = 14 pixels late at P2. With a single level there is no way down:
    a 1x1 and a 3x3 convolution remain.

    Args:
        channels: of each level, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.fusion = FeaturePyramidNetwork(2, list(channels), WIDTH)
        self.activations = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)) for _ in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of `WIDTH` channels at each level."""
        fused = self.fusion({str(level): feature for level, feature in enumerate(features)})
        return [module(feature) for module, feature in zip(self.activations, fused.values(), strict=True)]


class SeparateNeck(nn.Module):
    """What an FPN does to each level, without the way between them.

    Args:
        channels: of each level.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(FpnNeck([count]) for count in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of `WIDTH` channels at each level."""
        return [neck([feature])[0] for neck, feature in zip(self.levels, features, strict=True)]


class Fusion(nn.Module):
    """Fast normalised fusion (Tan et al., 2020, arXiv:1911.09070, section 3.3), then a separable convolution.

    `O = sum_i(w_i I_i) / (eps + sum_j(w_j))`, w = ReLU of a learnt weight, eps = 1e-4. The convolution is depthwise
    3x3, pointwise, batch norm and activation: ReLU as in the other necks, where the paper has SiLU.

    Args:
        inputs: how many maps meet.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))
        self.conv = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, groups=WIDTH, bias=False),
            nn.Conv2d(WIDTH, WIDTH, kernel_size=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(inplace=True),
        )

    def reset_parameters(self) -> None:
        """Equal shares again, as at the start; the convolutions have a reset of their own."""
        nn.init.ones_(self.weight)

    def shares(self) -> Tensor:
        """Share of each input `(inputs,)`: none negative, their sum just below 1."""
        weight = self.weight.relu()
        return weight / (weight.sum() + 1e-4)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map from several of the same shape."""
        shares = self.shares()
        fused = maps[0] * shares[0]
        for index in range(1, len(maps)):
            fused = fused + maps[index] * shares[index]
        return self.conv(fused)


class BiFpnLayer(nn.Module):
    """One way down and one way up the pyramid (Tan et al., 2020, figure 2d and section 3.3).

    To finer levels the nearest neighbour resizes, to coarser ones a 3x3 maximum of stride 2: both fit sizes rounded up.

    Args:
        levels: how many maps, three or more.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Fusion(2) for _ in range(levels - 1))
        # A node between sees its input, the way down and the finer level; the coarsest has no way down.
        self.up = nn.ModuleList([*(Fusion(3) for _ in range(levels - 2)), Fusion(2)])
        self.shrink = nn.ModuleList(nn.MaxPool2d(3, stride=2, padding=1) for _ in range(levels - 1))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fused maps, finest first, of the same shapes."""
        fused = [features[-1]]
        for node, feature in zip(self.down, features[-2::-1], strict=True):
            larger = nn.functional.interpolate(fused[0], size=feature.shape[2:], mode="nearest")
            fused.insert(0, node([feature, larger]))
        results = [fused[0]]
        for level, (node, shrink) in enumerate(zip(self.up, self.shrink, strict=True), start=1):
            middle = [] if level == len(self.up) else [fused[level]]
            results.append(node([features[level], *middle, shrink(results[-1])]))
        return results


class BiFpnNeck(nn.Module):
    """Each level to `WIDTH` channels by a 1x1 convolution and batch norm, then three `BiFpnLayer`s, as EfficientDet-D0.

    Args:
        channels: of each level, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, WIDTH, kernel_size=1, bias=False), nn.BatchNorm2d(WIDTH))
            for count in channels
        )
        self.layers = nn.Sequential(*(BiFpnLayer(len(channels)) for _ in range(3)))
        initialise(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of `WIDTH` channels at each level."""
        return self.layers([module(feature) for module, feature in zip(self.lateral, features, strict=True)])


class FpnClassifier(DenseClassifier):
    """Dense logits on P2 to P5 of a feature pyramid; see `DenseClassifier`."""

    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    channels = WIDTH

    def build_neck(self) -> nn.Module:
        """Top-down fusion."""
        return FpnNeck(LEVELS)


class BiFpnClassifier(DenseClassifier):
    """Dense logits on P2 to P5 of a weighted bidirectional pyramid; see `DenseClassifier`."""

    strides = FpnClassifier.strides
    channels = WIDTH

    def build_neck(self) -> nn.Module:
        """Fusion both ways."""
        return BiFpnNeck(LEVELS)


class LateHeadClassifier(DenseClassifier):
    """Dense logits on `layer4` alone, pooled as in the others: tells what resolution does from what pooling does."""

    strides = {"p5": 32}
    channels = WIDTH

    def build_neck(self) -> nn.Module:
        """The FPN's own convolutions, on one level."""
        return SeparateNeck(LEVELS[3:])

    def features(self, x: Tensor) -> list[Tensor]:
        """C5 of images `(N, 1, H, W)`."""
        return super().features(x)[3:]


class EarlyHeadClassifier(DenseClassifier):
    """Dense logits on `layer1` and `layer2` alone: fine cells that see 43 and 107 pixels; no deeper layer."""

    strides = {"p2": 4, "p3": 8}
    channels = WIDTH

    def __init__(self, num_classes: int = 2, sharpness: float = SHARPNESS) -> None:
        super().__init__(num_classes, sharpness)
        del self.layer3, self.layer4

    def build_neck(self) -> nn.Module:
        """The FPN's own convolutions, on each level by itself."""
        return SeparateNeck(LEVELS[:2])

    def features(self, x: Tensor) -> list[Tensor]:
        """C2 and C3 of images `(N, 1, H, W)`."""
        c2 = self.layer1(self.maxpool(self.stem(x)))
        return [c2, self.layer2(c2)]
