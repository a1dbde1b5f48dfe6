# SPDX-License-Identifier: Apache-2.0
"""The classifiers by name, each from random weights, from a checkpoint of its own, or from a ResNet-50 encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from monai_cnnprimer.networks.dense import SHARPNESS
from monai_cnnprimer.networks.pyramid import BiFpnClassifier, EarlyHeadClassifier, FpnClassifier, LateHeadClassifier
from monai_cnnprimer.networks.resnet import RadiographResNet
from monai_cnnprimer.networks.unet import UNetClassifier
from monai_cnnprimer.networks.weights import load_pretrained

Network = TypeVar("Network", bound=RadiographResNet)


def resnet50_classifier(num_classes: int = 2, pretrained: str | Path | None = None) -> RadiographResNet:
    """ResNet-50 (He et al., 2016): global average pool of `layer4`, one linear layer.

    Args:
        num_classes: number of logits K; 2 as in the bundles (no finding, finding).
        pretrained: path of a weights file: a checkpoint of this network, the published ImageNet file (its classifier
            is left out, its SHA-256 is checked), or either without `fc`. None starts from random weights.

    Returns:
        The network, `(N, 1, H, W) -> (N, K)`, in training mode.

    Raises:
        FileNotFoundError: `pretrained` does not exist.
        WeightsError: the file is damaged or of another architecture.

    Example:
        >>> import torch
        >>> network = resnet50_classifier().eval()
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 2])
    """
    return _started(RadiographResNet(num_classes), pretrained)


def fpn_classifier(
    num_classes: int = 2, pretrained: str | Path | None = None, sharpness: float = SHARPNESS
) -> FpnClassifier:
    """ResNet-50 with a feature pyramid (Lin et al., 2017): dense logits at strides 4, 8, 16 and 32, pooled.

    Args:
        num_classes: number of logits K, at least 2; class 0 is no finding.
        pretrained: path of a weights file: a checkpoint of this network, or a ResNet-50 for its encoder (of
            `resnet50_classifier` or the published ImageNet file; the classifier is left out) beside which neck and
            dense logits start from random weights. None starts all from random weights.
        sharpness: r of the pool, see `EvidencePool`; a checkpoint of this network brings its own.

    Returns:
        The network, `(N, 1, H, W) -> (N, K)`, in training mode; `dense_maps` gives the logits of every cell.

    Raises:
        FileNotFoundError: `pretrained` does not exist.
        ValueError: fewer than two classes, or a sharpness that is not positive.
        WeightsError: the file is damaged or of another architecture.

    Example:
        >>> import torch
        >>> maps = fpn_classifier().eval().dense_maps(torch.zeros(1, 1, 64, 96))
        >>> {name: tuple(logits.shape) for name, logits in maps.items()}
        {'p2': (1, 2, 16, 24), 'p3': (1, 2, 8, 12), 'p4': (1, 2, 4, 6), 'p5': (1, 2, 2, 3)}
    """
    return _started(FpnClassifier(num_classes, sharpness), pretrained)


def unet_classifier(
    num_classes: int = 2, pretrained: str | Path | None = None, sharpness: float = SHARPNESS
) -> UNetClassifier:
    """ResNet-50 with the decoder of `FlexibleUNet`: dense logits at every pixel (`full`), pooled.

    Arguments, result and errors as for `fpn_classifier`.
    """
    return _started(UNetClassifier(num_classes, sharpness), pretrained)


def bifpn_classifier(
    num_classes: int = 2, pretrained: str | Path | None = None, sharpness: float = SHARPNESS
) -> BiFpnClassifier:
    """ResNet-50 with weighted bidirectional fusion (Tan et al., 2020): dense logits on P2 to P5, pooled.

    Arguments, result and errors as for `fpn_classifier`.
    """
    return _started(BiFpnClassifier(num_classes, sharpness), pretrained)


def early_head_classifier(
    num_classes: int = 2, pretrained: str | Path | None = None, sharpness: float = SHARPNESS
) -> EarlyHeadClassifier:
    """ResNet-50 cut behind `layer2`: dense logits on `layer1` and `layer2`, pooled.

    Arguments, result and errors as for `fpn_classifier`; the deeper layers of a ResNet-50 are left out.
    """
    return _started(EarlyHeadClassifier(num_classes, sharpness), pretrained)


def late_head_classifier(
    num_classes: int = 2, pretrained: str | Path | None = None, sharpness: float = SHARPNESS
) -> LateHeadClassifier:
    """ResNet-50 with dense logits on `layer4` alone, pooled: beside FPN, what is left when resolution is taken away.

    Arguments, result and errors as for `fpn_classifier`.
    """
    return _started(LateHeadClassifier(num_classes, sharpness), pretrained)


def _started(network: Network, pretrained: str | Path | None) -> Network:
    if pretrained is not None:
        load_pretrained(network, pretrained)
    return network
