# SPDX-License-Identifier: Apache-2.0
"""ResNet-50 on grey images: the encoder that all classifiers share, and the classifier with a global pool."""

from __future__ import annotations

from functools import cache

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck

# Channels of the feature maps C1 to C5, at strides 2, 4, 8, 16 and 32 (`act`, `layer1` to `layer4`).
CHANNELS = {"c1": 64, "c2": 256, "c3": 512, "c4": 1024, "c5": 2048}


class RadiographResNet(ResNet):
    """MONAI's ResNet-50 that takes grey images `(N, 1, H, W)`, repeated to the three channels of the published encoder.

    `conv1_t_stride=2` and `bias_downsample=False` give the published ImageNet layout, key for key; other values of
    `conv1_t_stride` load the same file and compute something else.

    Args:
        num_classes: number of logits K.
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(
            ResNetBottleneck,
            layers=[3, 4, 6, 3],
            block_inplanes=[64, 128, 256, 512],
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            bias_downsample=False,
            num_classes=num_classes,
        )

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """C1 `(N, 64, H/2, W/2)` of images `(N, 1, H, W)`."""
        return self.act(self.bn1(self.conv1(x.expand(-1, 3, -1, -1))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` of images `(N, 1, H, W)`."""
        x = self.maxpool(self.stem(x))
        x = self.avgpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        assert self.fc is not None  # MONAI's may leave it out
        return self.fc(x.flatten(1))


@cache
def encoder_shapes() -> dict[str, torch.Size]:
    """Name and shape of each entry in the state dictionary of the encoder: ResNet-50 without `fc`."""
    with torch.device("meta"):
        state = RadiographResNet().state_dict()
    return {key: value.shape for key, value in state.items() if not key.startswith("fc.")}
