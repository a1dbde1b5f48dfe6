# SPDX-License-Identifier: Apache-2.0
"""Where the Grad-CAM maps of all cases of a run lie, by parts of the image that need no masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_cnnprimer.handlers.maps import ALL_MAPS, StoredMaps, aligned, read_all_maps
from monai_cnnprimer.validate.runs import Run
from monai_cnnprimer.validate.statistics import Bootstrap, MeanOf, clustered_bootstraps

BORDER = 0.1  # of a side
PARTS = {
    "border": ("the outer tenth along each side ({share} of the image)", 1 - (1 - 2 * BORDER) ** 2),
    "middle": ("the middle half of either side ({share})", 0.25),
    "upper left": ("upper left quarter ({share})", 0.25),
    "upper right": ("upper right quarter ({share})", 0.25),
    "lower left": ("lower left quarter ({share})", 0.25),
    "lower right": ("lower right quarter ({share})", 0.25),
}
"""Parts of the network's input: what to call each, with the place of its share of the image, and that share."""


@dataclass(frozen=True)
class Lying:
    """Where the maps of a layer lie.

    Attributes:
        layer: its name.
        parts: by name of `PARTS`, the mean over cases of the share of a map's positive part in it, by its share of the
            image: 1 is chance. Intervals by patient.
    """

    layer: str
    parts: dict[str, Bootstrap]


def where_maps_lie(run: Run, seed: int = 0) -> Lying | None:
    """Where the maps lie that the run keeps of all its cases; None where it keeps none, as a packed run.

    Negative cells count as nothing, and a map without a positive one is left out. Each cell is spread over the image
    as the map is when it is shown.

    Args:
        run: a complete run.
        seed: of the intervals.

    Raises:
        ValueError: see `read_all_maps`.
    """
    file = run.path / ALL_MAPS
    if not file.is_file():
        return None
    stored = read_all_maps(file)
    patients = run.predictions.set_index("case_id")["patient_key"]
    known = [case_id for case_id in stored.maps if case_id in patients.index]
    positive = {case_id: cells for case_id in known if (cells := stored.maps[case_id].clip(min=0)).any()}
    if not positive:
        return None
    cells = np.stack(list(positive.values())).reshape(len(positive), -1).astype(np.float64)
    inside, whole = _spread(stored)
    table = pd.DataFrame((cells @ inside) / (cells @ whole)[:, None], columns=list(PARTS))
    table["patient"] = patients[list(positive)].to_numpy()
    return Lying(
        stored.layer, clustered_bootstraps({part: MeanOf(part) for part in PARTS}, table, "patient", seed=seed)
    )


def _spread(stored: StoredMaps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much of each cell lies in each part of the image, by the part's share of it, `(cells, parts)`; and in all."""
    height, width = next(iter(stored.maps.values())).shape
    single = torch.eye(height * width).reshape(-1, 1, height, width)
    images = np.stack([aligned(cell, stored.image_size, stored.field) for cell in single]).astype(np.float64)
    masks = _masks(*stored.image_size)
    inside = [(images * mask).sum(axis=(1, 2)) / mask.mean() for mask in masks.values()]
    return np.stack(inside, axis=1), images.sum(axis=(1, 2))


def _masks(height: int, width: int) -> dict[str, NDArray[np.float64]]:
    """Each part as weights of the pixels; a line between two pixels counts by halves."""
    y, x = (_inside(length, BORDER, 1 - BORDER) for length in (height, width))
    middle_y, middle_x = (_inside(length, 0.25, 0.75) for length in (height, width))
    upper, left = (_inside(length, 0.0, 0.5) for length in (height, width))
    return {
        "border": 1 - np.outer(y, x),
        "middle": np.outer(middle_y, middle_x),
        "upper left": np.outer(upper, left),
        "upper right": np.outer(upper, 1 - left),
        "lower left": np.outer(1 - upper, left),
        "lower right": np.outer(1 - upper, 1 - left),
    }


def _inside(length: int, first: float, last: float) -> NDArray[np.float64]:
    """How much of each of `length` pixels lies between two shares of the side."""
    edges = np.arange(length + 1) / length
    overlap = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
    return np.clip(overlap, 0, None) * length
