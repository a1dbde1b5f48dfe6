# SPDX-License-Identifier: Apache-2.0
"""The primer's section on kernels: edges and markers, and what fine-tuning moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from monai_cnnprimer.explain.fine_tuning import fine_tuned, relative_change
from monai_cnnprimer.explain.kernels import grey_kernels, response_by_region, sobel_x
from monai_cnnprimer.figures.kernels import change_by_depth_png, kernel_grids_png, sobel_png
from monai_cnnprimer.networks import load_pretrained
from monai_cnnprimer.report import primer_verdicts as verdicts
from monai_cnnprimer.report.primer_page import Result, Section, Shown
from monai_cnnprimer.report.primer_subject import Picture, Study

STEPS, BATCH = 6, 8
TRAININGS: dict[str, Callable[[list[torch.nn.Parameter]], Optimizer]] = {
    "AdamW, learning rate 1e-4": lambda parameters: AdamW(parameters, lr=1e-4),
    "SGD, momentum 0.9, learning rate 1e-2": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9),
}


def kernel_section(study: Study) -> Section:
    """Edges and markers; what fine-tuning moves."""
    sobel, sobel_figure = _sobel(study.picture)
    before = study.model.network.state_dict()
    after = {name: _trained(study, name) for name in TRAININGS}
    changes = {name: relative_change(before, state) for name, state in after.items()}
    name, conv1 = next(iter(TRAININGS)), study.model.layer("conv1")
    kernels, moved = grey_kernels(study.model.network), _grey(after[name], conv1)
    panels = {"bundle": kernels, f"after {STEPS} steps": moved, "change": moved - kernels}
    if study.pretrained is not None:
        start = weights_from_file(study.model.new_network(), study.pretrained)
        changes["pretrained file to bundle"] = relative_change(start, before)
        panels = {"pretrained file": _grey(start, conv1)} | panels
    results = [
        sobel,
        Result("first", _first_in_words(changes), verdicts.judge_first(changes)),
        Result("depth", _depth_in_words(changes), verdicts.judge_depth(changes)),
    ]
    figures = [
        sobel_figure,
        Shown(
            kernel_grids_png(panels, "First kernels, planes summed as a grey image meets them"),
            f"Weights of the bundle's conv1, before and after {STEPS} steps of {name}, and their difference; each "
            "panel has its own scale.",
        ),
        Shown(
            change_by_depth_png(changes, "How far each layer moves"),
            f"Relative change of each convolution and of the classifier: {STEPS} steps of {BATCH} phantoms each.",
        ),
    ]
    method = (
        f"Fine-tuning here is real but short: the bundle's weights, {STEPS} steps of {BATCH} phantoms (half with a "
        "consolidation), cross-entropy, batch statistics in training mode, with two optimisers. It is not the "
        "primer's: its 0.5 % relative change of conv1 was for ImageNet weights after 10 epochs on radiographs. So "
        "the absolute size is not compared, only the layers among each other. AdamW moves every weight by about the "
        "learning rate in each step whatever its gradient, so under it small weights change most, relatively.",
        "With --pretrained FILE the weights before the bundle's own training are compared too; they count only if "
        f"they still point the bundle's way (median cosine at least {verdicts.SAME_TRAINING:g}).",
    )
    references = ("Raghu et al., 2019, NeurIPS, arXiv:1902.07208, on which layers move in transfer to medical images",)
    return Section("Kernels", method, results, figures, references)


def _sobel(picture: Picture) -> tuple[Result, Shown]:
    response = sobel_x(picture.pixels)
    whole = np.ones(response.shape, bool)
    regions = _sobel_regions(picture) if "ribs" in picture.masks else {}
    table = response_by_region(response, {**regions, "whole image": whole})
    p95 = table.set_index("region")["p95"]
    outlined = {name: mask for name, mask in regions.items() if name != "between ribs"}
    figure = Shown(
        sobel_png(picture.pixels, response, outlined, table, "Sobel-x on the network's input"),
        "Grey levels of the network's input per pixel from left to right. Bars: 95th percentile of the absolute "
        "response; black: median."
        + (
            " Ribs, and lung between them, inside the lungs without their borders (3 px); the marker with 1 px around."
            if regions
            else ""
        ),
    )
    if not regions:
        words = f"On the whole image the median response is {table['median'].iloc[0]:.3f}, the 95th percentile "
        words += f"{p95.iloc[0]:.3f} input units per pixel; without masks ribs and marker are not told apart."
        return Result("sobel", words, "not measured here"), figure
    ribs, between, marker = (p95[name] for name in ("ribs", "between ribs", "marker"))
    turned = response_by_region(sobel_x(picture.pixels.T).T, regions).set_index("region")["p95"]
    words = (
        f"95th percentile of |response|: marker {marker / ribs:.1f} × the ribs, ribs {ribs / between:.2f} × the lung "
        f"between them. Ribs run across the image: turned by 90° the kernel gives "
        f"{turned['ribs'] / turned['between ribs']:.2f} ×. An edge is an edge; the kernel knows no anatomy."
    )
    return Result("sobel", words, verdicts.judge_sobel(ribs, marker, between)), figure


def _sobel_regions(picture: Picture) -> dict[str, NDArray[np.bool_]]:
    """Inside the lungs, so that their outlines do not count, and the marker with its edge."""
    inside, ribs = binary_erosion(picture.masks["lung"], iterations=3), picture.masks["ribs"]
    marker = binary_dilation(picture.masks["marker"])
    return {"ribs": inside & ribs, "between ribs": inside & ~ribs, "marker": marker}


def _trained(study: Study, name: str) -> dict[str, Tensor]:
    """Weights after the short training, healthy phantoms and those with a finding in turn."""
    images = torch.stack([study.images("healthy"), study.images("finding")], dim=1).flatten(0, 1)
    labels = torch.arange(len(images)) % 2
    return fine_tuned(study.model.network, images, labels, TRAININGS[name], STEPS, BATCH, study.seed)


def weights_from_file(network: torch.nn.Module, path: Path) -> dict[str, Tensor]:
    """The entries that a weights file replaces: a head or a decoder that it lacks stays random and tells nothing."""
    own = {name: value.clone() for name, value in network.state_dict().items()}
    loaded = load_pretrained(network, path).state_dict()
    return {name: value for name, value in loaded.items() if not torch.equal(value, own[name])}


def _grey(state: dict[str, Tensor], layer: str) -> NDArray[np.float32]:
    return state[f"{layer}.weight"].float().sum(dim=1).numpy()


def _first_in_words(changes: dict[str, pd.DataFrame]) -> str:
    parts = [
        f"{name}: conv1 {100 * table['relative_change'].iloc[0]:.2f} %, median layer "
        f"{100 * table['relative_change'].median():.2f} %"
        for name, table in verdicts.of_one_training(changes).items()
    ]
    return f"Relative change. {'; '.join(parts)}.{_left_out(changes)}"


def _depth_in_words(changes: dict[str, pd.DataFrame]) -> str:
    counted = verdicts.of_one_training(changes)
    parts = [f"{name}: {verdicts.depth_correlation(table):+.2f}" for name, table in counted.items()]
    return f"Rank correlation of change with depth. {'; '.join(parts)}.{_left_out(changes)}"


def _left_out(changes: dict[str, pd.DataFrame]) -> str:
    """Says which weights do not come from one training, so that nobody reads their difference as fine-tuning."""
    names = changes.keys() - verdicts.of_one_training(changes).keys()
    return f" Not counted, since not before and after one training: {', '.join(sorted(names))}." if names else ""
