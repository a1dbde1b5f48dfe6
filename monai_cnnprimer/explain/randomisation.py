# SPDX-License-Identifier: Apache-2.0
"""Whether a map shows what the network has learnt: then it must change when the weights are made random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.explain.bare_copy import bare_copy
from monai_cnnprimer.explain.gradcam import GradCam, Target
from monai_cnnprimer.explain.layers import find_layers

LIMIT = 0.5
MIN_IMAGES = 8
_BATCH = 8


class Verdict(NamedTuple):
    """Whether maps depend on the weights; fields as in `RandomisationCheck`."""

    fit: bool | None
    correlation: float
    interval: tuple[float, float]
    reason: str


@dataclass(frozen=True, eq=False)
class RandomisationCheck:
    """A layer's maps along the cascade: D draws of random weights, S steps, n images.

    Attributes:
        layer: where the maps come from.
        blocks: what became random at each step, beside all before it; S names, from the head downwards.
        images: index of the images judged, `(n,)`; those whose original map has one value only are left out.
        maps: raw maps of the images judged, `(1 + S, n, h, w)`: the original, then after each step of the first draw.
        signed: Spearman correlation of the raw maps with the original ones, `(D, S, n)`.
        absolute: the same of the maps' absolute values.
        ssim: structural similarity, each map scaled to 0..1 by its largest absolute value, zero at 0.5, `(D, S, n)`.
        other_image: mean signed correlation with the original maps of the other images, `(D, S)`: what the maps have in
            common whatever the image, such as a place.
        fit: True when the maps depend on the weights, False when they do not, None when that cannot be told.
        correlation: mean over draws and images after the last step, signed or absolute, whichever is higher.
        interval: its 95 % interval.
        reason: for `fit`, one sentence.
    """

    layer: str
    blocks: tuple[str, ...]
    images: NDArray[np.int64]
    maps: NDArray[np.float32]
    signed: NDArray[np.float64]
    absolute: NDArray[np.float64]
    ssim: NDArray[np.float64]
    other_image: NDArray[np.float64]
    fit: bool | None
    correlation: float
    interval: tuple[float, float]
    reason: str

    @property
    def n(self) -> int:
        """How many images were judged."""
        return len(self.images)

    def rows(self) -> list[dict[str, Any]]:
        """One row a step, for a table: means over draws and images, with 95 % intervals of the correlations."""
        rows = []
        for step, block in enumerate(self.blocks):
            row: dict[str, Any] = {"layer": self.layer, "step": step + 1, "block": block, "images": self.n}
            for name, values in [("signed", self.signed[:, step]), ("absolute", self.absolute[:, step])]:
                low, high = mean_interval(values)
                row |= {name: _mean(values), f"{name}_low": low, f"{name}_high": high}
            row |= {"ssim": _mean(self.ssim[:, step]), "other_image": _mean(self.other_image[:, step])}
            rows.append(row | {"fit": self.fit})
        return rows


def cascading_randomisation(
    network: Module,
    layers: str | Sequence[str],
    images: Tensor,
    target: Target = "predicted",
    seed: int = 0,
    draws: int = 3,
) -> dict[str, RandomisationCheck]:
    """Compares Grad-CAM before and after weights are made random, block by block from the head downwards.

    The cascading randomisation of Adebayo et al. (2018, arXiv:1810.03292), with their rank correlations of signed and
    of absolute maps and their structural similarity. A block is a child of the network, opened where it holds one of
    the layers; it is initialised by each module's own `reset_parameters`, batch statistics included.

    The sign and the shape of a random network's map are chance, the same for all images. So the cascade is repeated
    with fresh weights (`draws`), and the interval is over draws and images.

    Args:
        network: `(N, C, H, W)` to logits `(N, K)`, or whatever a callable `target` takes. A copy of it is changed; it
            runs in evaluation mode, in float32 and without hooks.
        layers: as in `GradCam`.
        images: `(N, C, H, W)`, as the network takes them; at least 8 for a verdict.
        target: as in `GradCam`. Predicted classes are those of the network as it came, along the whole cascade.
        seed: of the random weights; the global random state is left alone.
        draws: how often the cascade is repeated.

    Returns:
        Layer name to its check. `judge` says by which rule.

    Raises:
        ValueError: no images; layers or target do not fit; a module with weights but without `reset_parameters`.
    """
    if len(images) == 0:
        raise ValueError("no images to check maps on")
    network = bare_copy(network).float().eval()
    names = list(find_layers(network, layers))
    images = images.detach().as_subclass(Tensor).float()
    original = _maps(network, names, images, target)
    if isinstance(target, str):
        with torch.no_grad():
            target = torch.cat([network(part).argmax(dim=1) for part in images.split(_BATCH)])
    blocks = _blocks(network, names, images[:1])
    state = {key: value.clone() for key, value in network.state_dict().items()}
    cascades = []
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for _ in range(draws):
            network.load_state_dict(state)
            for modules in blocks.values():
                _reset(modules)
                cascades.append(_maps(network, names, images, target))
    checks = {}
    for layer in names:
        steps = np.stack([maps[layer] for maps in cascades])
        steps = steps.reshape(draws, len(blocks), *steps.shape[1:])
        checks[layer] = _check(layer, tuple(blocks), original[layer], steps)
    return checks


def judge(signed: NDArray[np.float64], absolute: NDArray[np.float64]) -> Verdict:
    """Whether maps depend on the weights, from their correlations `(D, n)` with those of wholly random networks.

    Unrelated maps correlate by 0, unchanged ones by 1. Maps that stay nearer to themselves than to unrelated ones do
    not depend on the weights: they are unfit when the whole 95 % interval of the mean correlation, signed or absolute,
    reaches 0.5 or more; fit when both intervals end below. The absolute one counts, since a random network can show
    the same pattern with the sign turned. Fewer than 8 images give no verdict.

    The limit is fixed, not taken from pairs of different images: a pattern that is the same for all images and survives
    the randomisation would lift such a limit and pass.

    Example:
        >>> judge(np.full((5, 8), 0.9), np.full((5, 8), 0.8)).fit
        False
    """
    kinds = {
        kind: (_mean(values), mean_interval(values)) for kind, values in (("signed", signed), ("absolute", absolute))
    }
    kind = max(kinds, key=lambda kind: kinds[kind][0])
    correlation, interval = kinds[kind]
    found = f"{kind} rank correlation {correlation:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    n = signed.shape[1]
    if n < MIN_IMAGES:
        return Verdict(None, correlation, interval, f"{n} images with a map, fewer than {MIN_IMAGES}, do not tell")
    if any(low >= LIMIT for _, (low, _) in kinds.values()):
        return Verdict(False, correlation, interval, f"with random weights the maps stay alike: {found}")
    if all(high < LIMIT for _, (_, high) in kinds.values()):
        return Verdict(True, correlation, interval, f"with random weights the maps change: {found}")
    return Verdict(None, correlation, interval, f"with random weights the maps may stay alike: {found}")


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of `(D, n)` values, both draws and images resampled (Owen, 2007, pigeonhole bootstrap).

    Example:
        >>> mean_interval(np.full((2, 3), 0.5))
        (0.5, 0.5)
    """
    if not values.size:
        return math.nan, math.nan
    random, (draws, n) = np.random.default_rng(0), values.shape
    rows = random.integers(draws, size=(2000, draws, 1))
    columns = random.integers(n, size=(2000, 1, n))
    low, high = np.percentile(values[rows, columns].mean(axis=(1, 2)), [2.5, 97.5])
    return float(low), float(high)


def _check(
    layer: str, blocks: tuple[str, ...], original: NDArray[np.float32], steps: NDArray[np.float32]
) -> RandomisationCheck:
    """The check of original maps `(N, h, w)` against `(D, S, N, h, w)`."""
    images = np.flatnonzero(np.ptp(original, axis=(1, 2)) > 0)
    original, steps = original[images], steps[:, :, images]
    signed = [[_spearman(original, maps) for maps in draw] for draw in steps]
    absolute = [[_spearman(np.abs(original), np.abs(maps)).diagonal() for maps in draw] for draw in steps]
    matched = np.array([[pairs.diagonal() for pairs in draw] for draw in signed])
    others = ~np.eye(len(images), dtype=bool)
    verdict = judge(matched[:, -1], np.array(absolute)[:, -1])
    return RandomisationCheck(
        layer=layer,
        blocks=blocks,
        images=images,
        maps=np.concatenate([original[None], steps[0]]),
        signed=matched,
        absolute=np.array(absolute),
        ssim=np.array([[_ssim(original, maps) for maps in draw] for draw in steps]),
        other_image=np.array([[_mean(pairs[others]) for pairs in draw] for draw in signed]),
        **verdict._asdict(),
    )


def _maps(network: Module, layers: list[str], images: Tensor, target: Target) -> dict[str, NDArray[np.float32]]:
    """Raw maps of all images by layer, `(N, h, w)`."""
    classes = target if isinstance(target, Tensor) and target.ndim == 1 else None
    parts = []
    with torch.no_grad(), GradCam(network, layers, target) as cam:
        for first in range(0, len(images), _BATCH):
            if classes is not None:
                cam.target = classes[first : first + _BATCH]
            network(images[first : first + _BATCH])
            parts.append(cam.maps)
    return {layer: torch.cat([maps[layer][:, 0] for maps in parts]).cpu().numpy() for layer in layers}


def _blocks(network: Module, layers: list[str], image: Tensor) -> dict[str, list[Module]]:
    """Block name to its modules with weights, in the reverse of the order in which they run."""
    learnt = {name: module for name, module in network.named_modules() if _is_learnt(name, module)}
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: order.append(name))
        for name, module in learnt.items()
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    blocks: dict[str, list[Module]] = {}
    for name in dict.fromkeys([*order, *learnt]):
        blocks.setdefault(_block(name, layers), []).append(learnt[name])
    return dict(reversed(blocks.items()))


def _is_learnt(name: str, module: Module) -> bool:
    """Whether a module holds weights or batch statistics of its own."""
    weights = any(True for _ in module.parameters(recurse=False))
    if weights and not hasattr(module, "reset_parameters"):
        raise ValueError(f"{name or 'the network'}: {type(module).__name__} has weights but no reset_parameters()")
    return weights or (hasattr(module, "reset_parameters") and any(True for _ in module.buffers(recurse=False)))


def _block(name: str, layers: list[str]) -> str:
    """The outermost module around `name` that holds none of the layers inside."""
    parts = name.split(".")
    outer = [".".join(parts[:end]) for end in range(1, len(parts))]
    return next((block for block in outer if not any(layer.startswith(f"{block}.") for layer in layers)), name)


def _reset(modules: list[Any]) -> None:
    """Initialises modules on the CPU, so that a seed gives the same weights on every device."""
    for module in modules:
        device = next(iter(module.state_dict().values())).device
        module.cpu()
        module.reset_parameters()
        module.to(device)


def _spearman(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rank correlation of each of `(n, h, w)` maps with each of the others, `(n, n)`; 0 with a map of one value."""
    first, second = (
        _standard_ranks(values.reshape(len(values), math.prod(values.shape[1:]))) for values in (maps, others)
    )
    return np.clip(first @ second.T, -1, 1)


def _standard_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    ranks = rankdata(values, axis=1) if values.size else np.empty(values.shape)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 0)


def _ssim(maps: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Structural similarity `(n,)`, in windows of 11 cells (of the largest odd number that fits, in smaller maps)."""
    window = min(11, *(side - 1 + side % 2 for side in maps.shape[1:]))
    first, second = (torch.from_numpy(_grey(values))[:, None] for values in (maps, others))
    similarity, _ = compute_ssim_and_cs(first, second, 2, (window, window), (1.5, 1.5), data_range=1.0)
    return similarity.mean(dim=(1, 2, 3)).double().numpy()


def _grey(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps in 0..1 with zero at 0.5; with values of both signs a map would be similar to its own negative."""
    full = np.abs(maps).max(axis=(1, 2), keepdims=True, initial=0)
    return 0.5 + 0.5 * np.divide(maps, full, out=np.zeros_like(maps), where=full > 0)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan
