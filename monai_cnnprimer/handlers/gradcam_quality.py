# SPDX-License-Identifier: Apache-2.0
"""How good the maps of the chosen cases are: one row a case and layer, and their sums for `gradcam.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.dicom.masks import Regions
from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.gradcam import Target
from monai_cnnprimer.explain.quality import REGIONS, Summary, exchange_curves, map_quality, summarise_quality
from monai_cnnprimer.explain.randomisation import RandomisationCheck, cascading_randomisation
from monai_cnnprimer.explain.receptive_field import ReceptiveField
from monai_cnnprimer.handlers.maps import mm_per_cell

Masks = Callable[[str], Regions]
Row = dict[str, Any]
# Of a row that is no measure of its map.
FACTS = (
    "case_id", "chosen_as", "label", "predicted", "probability", "explained", "layer", "mm_per_cell_row",
    "mm_per_cell_column", "fit", "regions_left_out",
)  # fmt: skip


_WORDS = {True: "fit", False: "unfit", None: "unknown"}
_MARKS = {
    True: "maps change with random weights",
    False: "UNFIT: maps do not change with random weights",
    None: "not known whether maps change with random weights",
}


class Fitness(NamedTuple):
    """Whether the maps of a layer change with the weights.

    Attributes:
        fit: None where it is not known.
        reason: for `fit`, one sentence.
        check: the randomisation, where it could be done.
        cases: those that the check ran on, in its order.
    """

    fit: bool | None
    reason: str
    check: RandomisationCheck | None = None
    cases: tuple[ExplainedCase, ...] = ()

    @property
    def word(self) -> str:
        """For tables: fit, unfit or unknown."""
        return _WORDS[self.fit]

    @property
    def mark(self) -> str:
        """For figures: the same in a sentence."""
        return _MARKS[self.fit]


def fitness(
    network: Module, layers: Sequence[str], cases: Sequence[ExplainedCase], target: Target, seed: int
) -> dict[str, Fitness]:
    """Cascading randomisation of the weights, on those of the cases whose images have the size of the first one.

    Args:
        network: left as it is.
        layers: names of layers.
        cases: may be none; then nothing is known.
        target: a callable, where cases explain no class.
        seed: of the random weights.
    """
    if not cases:
        return dict.fromkeys(layers, Fitness(None, "no images to test it on"))
    alike = tuple(case for case in cases if case.image.shape == cases[0].image.shape)
    images = torch.stack([case.image for case in alike])
    columns = [column for case in alike if (column := _column(case)) is not None]
    goal = torch.tensor(columns) if len(columns) == len(alike) else target
    try:
        checks = cascading_randomisation(network, layers, _on_device(images, network), goal, seed)
    except ValueError as error:  # a module that cannot be initialised: the maps are still worth showing
        return dict.fromkeys(layers, Fitness(None, str(error)))
    return {layer: Fitness(check.fit, check.reason, check, alike) for layer, check in checks.items()}


def described(
    case: ExplainedCase,
    layer: str,
    heat: NDArray[np.float32],
    field: ReceptiveField | None,
    regions: Regions,
    found: Fitness,
) -> Row:
    """One row of `gradcam.csv`, without what the network must run for; `heat` is the aligned map `(H, W)`."""
    row, column = mm_per_cell(case, field) or (None, None)
    return {
        "case_id": case.case_id,
        "chosen_as": case.chosen_as,
        "label": case.label,
        "predicted": case.predicted,
        "probability": case.probability,
        "explained": case.explained,
        "layer": layer,
        "mm_per_cell_row": row,
        "mm_per_cell_column": column,
        "fit": found.word,
        **map_quality(heat, regions.masks),
        "regions_left_out": "; ".join(": ".join(pair) for pair in regions.left_out.items()),
    }


def causal(network: Module, case: ExplainedCase, heat: NDArray[np.float32]) -> Row:
    """Areas under the insertion and the deletion curve of the explained class; nothing where no class is explained.

    Beside them the class's probability for the blurred image and for plain grey, from where the curves start and end:
    where these are high already, the areas say nothing of the map.
    """
    if case.explained is None:
        return {}
    image = _on_device(case.image[None], network)
    curves = exchange_curves(network, image, heat, case.explained)
    insertion, deletion = curves.areas if np.ptp(heat) > 0 else (math.nan, math.nan)
    return {
        "insertion": insertion,
        "deletion": deletion,
        "probability_blurred": float(curves.insertion[0]),
        "probability_grey": float(curves.deletion[-1]),
    }


def measures(rows: Sequence[Row]) -> list[str]:
    """The measures that the rows have, region by region."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in FACTS)
    places = {key: next((i for i, region in enumerate(REGIONS) if region in key), len(REGIONS)) for key in keys}
    return sorted(keys, key=lambda key: places[key])


def summed(rows: Sequence[Row]) -> dict[str, Summary]:
    """Mean, 95 % interval and number of each measure over rows of one layer."""
    keys = measures(rows)
    return summarise_quality([{key: row[key] for key in keys if key in row} for row in rows])


def summarised(found: Fitness, sums: Mapping[str, Summary]) -> dict[str, Any]:
    """A layer in `gradcam.json`: the fitness, and each measure as `value`, `low`, `high` and `n`."""
    figures: dict[str, Any] = {"fit": found.word, "fit_reason": found.reason}
    if found.check is not None:
        figures["randomised_correlation"] = _figure(found.check.correlation, *found.check.interval, found.check.n)
    return figures | {key: _figure(*summary) for key, summary in sums.items()}


def _figure(value: float, low: float, high: float, n: int) -> dict[str, float | None]:
    """JSON has no word for what is not a number: null."""
    known = {name: round(x, 6) for name, x in (("value", value), ("low", low), ("high", high)) if not math.isnan(x)}
    return {"value": None, "low": None, "high": None, **known, "n": n}


def _column(case: ExplainedCase) -> int | None:
    """The logit of the class that a case explains; a single logit is that of class 1."""
    return 0 if len(case.logits) == 1 else case.explained


def _on_device(images: Tensor, network: Module) -> Tensor:
    parameter = next(network.parameters(), images)
    return images.to(parameter)
