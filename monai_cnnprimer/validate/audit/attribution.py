# SPDX-License-Identifier: Apache-2.0
"""Where Grad-CAM says that the network looks, by region and area: what would be believed without an intervention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.quality import map_quality, summarise_quality
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.handlers.gradcam_quality import fitness
from monai_cnnprimer.handlers.maps import aligned

CHECKED = 8  # images on which maps are checked against random weights, as the check needs for a verdict
_SUFFIX = "_mass_per_area"
_BATCH = 16


class Explained(NamedTuple):
    """An input of the network `(C, H, W)` with the masks `(H, W)` of its regions."""

    case_id: str
    image: Tensor
    masks: Mapping[str, NDArray[np.bool_]]


def attribution(
    network: torch.nn.Module, layers: Sequence[str], cases: Sequence[Explained], seed: int = 0
) -> dict[str, Any]:
    """Share of the positive Grad-CAM mass of the finding by share of the area, for each layer and region; 1 is chance.

    Maps that do not change when the weights are made random say nothing of the network: their figures are left out.

    Args:
        network: `(N, C, H, W)` to logits `(N, 2)`.
        layers: as in `GradCam`.
        cases: those with masks.
        seed: of the random weights.

    Returns:
        Layer to `fit`, `fit_reason` and `regions`: name to `value`, `low`, `high`, `n`; None where maps are not fit.
        A single entry `missing` says why there is nothing.
    """
    if not cases:
        return {"missing": "no case has masks"}
    try:
        images = torch.stack([case.image for case in cases])
        maps, logits = _maps(network, layers, images)
        fields = {layer: _field(network, layer, images[:1]) for layer in layers}
    except ValueError as error:  # a network of one's own may have no such layers
        return {"missing": str(error)}
    checked = [
        ExplainedCase(case.case_id, case.image, {name: maps[name][i] for name in layers}, logits[i], explained=1)
        for i, case in enumerate(cases[:CHECKED])
    ]
    found = fitness(network, layers, checked, 1, seed)
    told: dict[str, Any] = {}
    for layer in layers:
        told[layer] = {"fit": found[layer].word, "fit_reason": found[layer].reason, "regions": None}
        if found[layer].fit:
            told[layer]["regions"] = _by_region(maps[layer], fields[layer], cases)
    return told


def _maps(network: torch.nn.Module, layers: Sequence[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    parameter = next(network.parameters(), images)
    parts, logits = [], []
    with torch.no_grad(), GradCam(network, layers, 1) as cam:
        for batch in images.split(_BATCH):
            logits.append(network(batch.to(parameter)).float().cpu())
            parts.append({name: cam.maps[name].cpu() for name in layers})
    return {name: torch.cat([part[name] for part in parts]) for name in layers}, torch.cat(logits)


def _field(network: torch.nn.Module, layer: str, image: Tensor) -> ReceptiveField | None:
    """None where the geometry cannot be derived; the map is then stretched over the image."""
    try:
        return theoretical_receptive_field(network, layer, image)
    except ValueError:
        return None


def _by_region(maps: Tensor, field: ReceptiveField | None, cases: Sequence[Explained]) -> dict[str, Any]:
    rows = []
    for heat, case in zip(maps, cases, strict=True):
        quality = map_quality(aligned(heat, case.image.shape[-2:], field), case.masks)
        rows.append({key.removesuffix(_SUFFIX): value for key, value in quality.items() if key.endswith(_SUFFIX)})
    told = {}
    for region, summary in summarise_quality(rows).items():
        values = {"value": summary.mean, "low": summary.low, "high": summary.high}
        told[region] = {name: None if math.isnan(x) else x for name, x in values.items()} | {"n": summary.n}
    return told
