# SPDX-License-Identifier: Apache-2.0
"""A U-Net on the encoder: one dense map at the resolution of the image."""

from __future__ import annotations

import torch
from monai.networks.nets.basic_unet import TwoConv
from torch import Tensor, nn

from monai_cnnprimer.networks.dense import DenseClassifier
from monai_cnnprimer.networks.pyramid import initialise
from monai_cnnprimer.networks.resnet import CHANNELS


class UpStep(nn.Module):
    """One step of MONAI's `FlexibleUNet`: double the size, join the skip, convolve twice; any size.

    The encoder rounds odd sizes up, so doubling can give one row or column too many, always the last. Resizing to the
    skip's size by the nearest neighbour is doubling without that one, and leaves every cell on its pixels. MONAI's own
    step, `UpCat`, pads instead and fails at such sizes.

    Args:
        channels: of the coarser features.
        skip_channels: of the skip; 0 where it only tells the size.
        out_channels: of the result.
    """

    def __init__(self, channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        halved = channels // 2 if skip_channels else channels
        # Named as in UpCat, so that the weights of one fit the other.
        self.upsample = nn.Sequential()
        if skip_channels:
            self.upsample.add_module("preconv", nn.Conv2d(channels, halved, kernel_size=1))
        self.convs = TwoConv(
            2,
            skip_channels + halved,
            out_channels,
            act=("relu", {"inplace": True}),
            norm=("batch", {"eps": 1e-3, "momentum": 0.1}),
            bias=False,
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Features `(N, C', h, w)` from the coarser `x` and the skip `(N, C, h, w)`, where C may be 0."""
        larger = nn.functional.interpolate(self.upsample(x), size=skip.shape[2:], mode="nearest")
        return self.convs(torch.cat([skip, larger], dim=1) if skip.shape[1] else larger)


class UNetDecoder(nn.Module):
    """The decoder of MONAI's `FlexibleUNet`, entry by entry, for images of any size.

    Five steps with skips from C4, C3, C2 and C1; the last has none, as there. The first has half the channels that
    MONAI gives it by default, so that the weights of the whole network stay under 60 MB in half precision.
    """

    def __init__(self) -> None:
        super().__init__()
        skips = [CHANNELS["c4"], CHANNELS["c3"], CHANNELS["c2"], CHANNELS["c1"], 0]
        outputs = [128, 128, 64, 32, 16]
        inputs = [CHANNELS["c5"], *outputs[:-1]]
        self.blocks = nn.ModuleList(UpStep(*counts) for counts in zip(inputs, skips, outputs, strict=True))
        initialise(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map `(N, 16, H, W)` from C5, C4 to C1, and the image for its size."""
        x = features[0]
        for block, skip in zip(self.blocks, features[1:], strict=True):
            x = block(x, skip)
        return [x]


class UNetClassifier(DenseClassifier):
    """Dense logits at every pixel of the image; see `DenseClassifier`."""

    strides = {"full": 1}
    channels = 16

    def build_neck(self) -> nn.Module:
        """Decoder with skips."""
        return UNetDecoder()

    def features(self, x: Tensor) -> list[Tensor]:
        """C5 to C1 of images `(N, 1, H, W)`, and the image without its channel."""
        c1 = self.stem(x)
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [self.layer4(c4), c4, c3, c2, c1, x[:, :0]]
