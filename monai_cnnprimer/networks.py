# SPDX-License-Identifier: Apache-2.0
"""Chest-radiograph classifiers on one ResNet-50 encoder: `(N, 1, H, W)` grey image to `(N, K)` logits."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor

# The published ImageNet-1k weights of ResNet-50 carry the first eight digits of their SHA-256 in the file name.
PUBLISHED_ENCODERS = {
    "19c8e357": "resnet50-19c8e357.pth",
    "0676ba61": "resnet50-0676ba61.pth",
    "11ad3fa6": "resnet50-11ad3fa6.pth",
}


class WeightsError(ValueError):
    """Weights that do not belong to the network: says which file, what differs and what to do."""


class RadiographResNet(ResNet):
    """MONAI's ResNet that takes grey images `(N, 1, H, W)`, repeated to the three channels of the published encoder.

    `conv1_t_stride=2` and `bias_downsample=False` give the published ImageNet layout, key for key; other values of
    `conv1_t_stride` load the same file and compute something else.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` of images `(N, 1, H, W)`."""
        return super().forward(x.expand(-1, 3, -1, -1))


def resnet50_classifier(num_classes: int = 2, pretrained: str | Path | None = None) -> RadiographResNet:
    """ResNet-50 (He et al., 2016): global average pool of `layer4`, one linear layer.

    Args:
        num_classes: number of logits K; 2 as in the bundles (no finding, finding).
        pretrained: path of a weights file: the published ImageNet file (its classifier is left out, its SHA-256 is
            checked) or a checkpoint of this network. None starts from random weights.

    Returns:
        The network, `(N, 1, H, W) -> (N, K)`, in training mode.

    Raises:
        FileNotFoundError: `pretrained` does not exist.
        WeightsError: the file is damaged or of another architecture.

    Example:
        >>> network = resnet50_classifier().eval()
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 2])
    """
    network = RadiographResNet(
        ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        bias_downsample=False,
        num_classes=num_classes,
    )
    if pretrained is not None:
        load_weights(network, pretrained)
    return network


def load_weights(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Loads a weights file strictly; the thousand-class layer of a published ImageNet file is left out.

    Args:
        network: what the weights are for; half-precision weights are widened to the network's own type.
        path: a state dictionary saved with `torch.save`.

    Returns:
        The same `network`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read, was changed since it was published, or is of another architecture.
    """
    path = Path(path)
    state = dict(_read_state(path))
    if "fc.weight" in state and state["fc.weight"].shape[0] == 1000:
        _check_published(path)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        state |= {key: value for key, value in network.state_dict().items() if key.startswith("fc.")}
    # The first published file predates num_batches_tracked, which does not enter the output.
    own = network.state_dict()
    state |= {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    different = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if different:
        raise WeightsError(
            f"{path.name}: weights of another architecture than {type(network).__name__}; {len(different)} entries "
            f"differ, first {different[0]!r}. Give the weights that belong to this bundle's network_def."
        )
    network.load_state_dict(state, strict=True)
    return network


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path.name}; give pretrained= the path of a weights file, or None")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile) as error:
        raise WeightsError(f"{path.name}: not a readable weights file; fetch it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path.name}: not a state dictionary of tensors; save network.state_dict()")
    return state


def _check_published(path: Path) -> None:
    digest = sha256_of_file(path)
    if digest[:8] not in PUBLISHED_ENCODERS:
        raise WeightsError(
            f"{path.name}: a thousand-class ResNet-50 whose SHA-256 {digest[:8]}… is none of the published "
            f"({', '.join(PUBLISHED_ENCODERS.values())}); fetch the file again"
        )
