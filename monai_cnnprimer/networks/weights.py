# SPDX-License-Identifier: Apache-2.0
"""Weights files: whole checkpoints of a network, and ResNet-50 encoders that start any of the classifiers."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor

from monai_cnnprimer.networks.resnet import encoder_shapes

# The published ImageNet-1k weights of ResNet-50 carry the first eight digits of their SHA-256 in the file name.
PUBLISHED_ENCODERS = {
    "19c8e357": "resnet50-19c8e357.pth",
    "0676ba61": "resnet50-0676ba61.pth",
    "11ad3fa6": "resnet50-11ad3fa6.pth",
}


class WeightsError(ValueError):
    """Weights that do not belong to the network: says which file, what differs and what to do."""


def load_weights(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Loads a whole checkpoint strictly: every entry of the network and no other.

    Args:
        network: what the weights are for; half-precision weights are widened to the network's own type.
        path: a state dictionary saved with `torch.save`.

    Returns:
        The same `network`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read or is of another architecture.
    """
    path = Path(path)
    _load(network, _read_state(path), path, "Give the weights that belong to this bundle's network_def.")
    return network


def load_pretrained(network: torch.nn.Module, path: str | Path) -> torch.nn.Module:
    """Loads a whole checkpoint of the network, or a ResNet-50 encoder into it, strictly either way.

    An encoder is the published ImageNet file (its SHA-256 is checked), a checkpoint of `resnet50_classifier`, or one
    of these without `fc`. All of the encoder that the network has is then replaced; its head and decoder stay as they
    are. An `fc` in the file is left out, unless the network has one: then it must fit, but for the thousand classes
    of ImageNet.

    Args:
        network: one of this package's classifiers.
        path: a state dictionary saved with `torch.save`.

    Returns:
        The same `network`.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file cannot be read, was changed since it was published, or is of another architecture.
    """
    path = Path(path)
    state, own = _read_state(path), network.state_dict()
    if _has_imagenet_classes(state):
        _check_published(path)
        state = _without_fc(state)
        # The first published file predates num_batches_tracked, which does not enter the output.
        state = {key: torch.tensor(0) for key in encoder_shapes() if key.endswith("num_batches_tracked")} | state
    elif "fc.weight" not in own:
        state = _without_fc(state)
    if _is_encoder(state):
        state = own | {key: value for key, value in state.items() if key in own}
    _load(network, state, path, "Give a checkpoint of this network, or a ResNet-50 for its encoder.")
    return network


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(network: torch.nn.Module, state: Mapping[str, Tensor], path: Path, advice: str) -> None:
    own = network.state_dict()
    different = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if different:
        raise WeightsError(
            f"{path.name}: weights of another architecture than {type(network).__name__}; {len(different)} entries "
            f"differ, first {different[0]!r}. {advice}"
        )
    network.load_state_dict(state, strict=True)


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


def _without_fc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def _is_encoder(state: Mapping[str, Tensor]) -> bool:
    return {key: value.shape for key, value in state.items()} == encoder_shapes()


def _has_imagenet_classes(state: Mapping[str, Tensor]) -> bool:
    return "fc.weight" in state and state["fc.weight"].shape[0] == 1000


def _check_published(path: Path) -> None:
    digest = sha256_of_file(path)
    if digest[:8] not in PUBLISHED_ENCODERS:
        raise WeightsError(
            f"{path.name}: a thousand-class ResNet-50 whose SHA-256 {digest[:8]}… is none of the published "
            f"({', '.join(PUBLISHED_ENCODERS.values())}); fetch the file again"
        )
