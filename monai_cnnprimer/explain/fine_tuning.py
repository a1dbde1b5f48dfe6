# SPDX-License-Identifier: Apache-2.0
"""What training moves: a short fine-tuning on a copy, and the change of each layer's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.explain.bare_copy import bare_copy


def relative_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> pd.DataFrame:
    """How far training moved each convolution and linear layer: `|after - before| / |before|`, Euclidean norms.

    Args:
        before: state dictionary at the start; any floating type, computed in float64.
        after: state dictionary at the end, of the same network. Entries that are not weights of a convolution or
            linear layer (biases, normalisation, running statistics) are left out, as are layers whose shape differs,
            for instance a classifier that was replaced.

    Returns:
        One row a layer, in the network's order: `layer`, `depth` (0 for the first), `weights` (their number),
        `norm_before`, `norm_change`, `relative_change` (infinite from zero weights), `cosine` between before and after:
        near 0 where the two do not belong to one training.

    Raises:
        ValueError: the two have no layer in common.

    Example:
        >>> before = {"conv1.weight": torch.ones(2, 1, 3, 3)}
        >>> relative_change(before, {"conv1.weight": 1.1 * torch.ones(2, 1, 3, 3)})["relative_change"].round(6).tolist()
        [0.1]
    """
    shared = [name for name, value in before.items() if name in after and _is_layer(name, value, after[name])]
    if not shared:
        raise ValueError("the state dictionaries have no convolution or linear layer in common")
    rows = [_change(name, before[name].double(), after[name].double()) for name in shared]
    return pd.DataFrame(rows).assign(depth=range(len(rows)))[
        ["layer", "depth", "weights", "norm_before", "norm_change", "relative_change", "cosine"]
    ]


def fine_tuned(
    network: Module,
    images: Tensor,
    labels: Tensor,
    optimiser: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    steps: int,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Weights after a few steps of training with cross-entropy; the network itself is left as it is.

    Batches take the images in their order, from the first again after the last. The copy trains in float32 and in
    training mode, so that batch statistics move too.

    Args:
        network: `(N, C, H, W)` to logits `(N, K)`.
        images: `(N, C, H, W)`, as the network takes them.
        labels: `(N,)` classes.
        optimiser: from the list of parameters to the optimiser.
        steps: how many batches.
        batch_size: images in each.
        seed: of layers that draw at random (dropout); the global random state is left alone.

    Returns:
        The state dictionary at the end.
    """
    copy = bare_copy(network).float().train()
    parameters = list(copy.parameters())
    for parameter in parameters:
        parameter.requires_grad_()
    descent = optimiser(parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            batch = torch.arange(step * batch_size, (step + 1) * batch_size) % len(images)
            descent.zero_grad()
            torch.nn.functional.cross_entropy(copy(images[batch]), labels[batch]).backward()
            descent.step()
    return copy.state_dict()


def _is_layer(name: str, before: Tensor, after: Tensor) -> bool:
    return name.endswith("weight") and before.ndim >= 2 and before.shape == after.shape


def _change(name: str, before: Tensor, after: Tensor) -> dict[str, float | str]:
    start, moved = before.norm(), (after - before).norm()
    return {
        "layer": name.removesuffix(".weight"),
        "weights": before.numel(),
        "norm_before": float(start),
        "norm_change": float(moved),
        "relative_change": float(moved / start),
        "cosine": float((before * after).sum() / (start * after.norm())),
    }
