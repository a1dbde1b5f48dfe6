# SPDX-License-Identifier: Apache-2.0
"""Chest-radiograph classifiers on one ResNet-50 encoder: `(N, 1, H, W)` grey image to `(N, K)` logits."""

from __future__ import annotations

from monai_cnnprimer.networks.classifiers import (
    bifpn_classifier,
    early_head_classifier,
    fpn_classifier,
    late_head_classifier,
    resnet50_classifier,
    unet_classifier,
)
from monai_cnnprimer.networks.dense import DenseClassifier, log_mean_exp
from monai_cnnprimer.networks.resnet import RadiographResNet
from monai_cnnprimer.networks.weights import (
    PUBLISHED_ENCODERS,
    WeightsError,
    load_pretrained,
    load_weights,
    sha256_of_file,
)

__all__ = [
    "PUBLISHED_ENCODERS",
    "DenseClassifier",
    "RadiographResNet",
    "WeightsError",
    "bifpn_classifier",
    "early_head_classifier",
    "fpn_classifier",
    "late_head_classifier",
    "load_pretrained",
    "load_weights",
    "log_mean_exp",
    "resnet50_classifier",
    "sha256_of_file",
    "unet_classifier",
]
