# SPDX-License-Identifier: Apache-2.0
"""Same answer, other reason: where two models are both right, whether their maps show the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_cnnprimer.dicom.masks import Regions
from monai_cnnprimer.explain.quality import map_quality
from monai_cnnprimer.handlers.maps import ALL_MAPS, StoredMaps, aligned, read_all_maps
from monai_cnnprimer.validate.compare.agreement import GRID, on_grid, similarity
from monai_cnnprimer.validate.compare.differences import Figures, clustered
from monai_cnnprimer.validate.runs import Run

MEASURES = ("pearson", "spearman", "common_mass", "other_cases", "above_other_cases")
MOST_DISCORDANT = 10
_MASSES = {"lung": "lung_mass", "heart": "heart_mass", "marker": "marker_mass", "finding": "finding_mass"}


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """One run's maps at one layer.

    Attributes:
        stored: the raw maps of all cases.
        fit: `fit`, `unfit` or `unknown`: whether the maps change when the weights are made random.
        reason: for `fit`, one sentence.
    """

    stored: StoredMaps
    fit: str
    reason: str

    @property
    def mark(self) -> str:
        """What a figure must say of these maps."""
        words = {"fit": "", "unfit": "UNFIT: maps do not change with random weights"}
        return words.get(self.fit, "not known whether maps change with random weights")

    def heat(self, case_id: str, size: Sequence[int] | None = None) -> NDArray[np.float32]:
        """The signed map over the network's input, `(H, W)`; over an image of another `size`, stretched to it."""
        raw = torch.from_numpy(self.stored.maps[case_id])[None]
        heat = aligned(raw, self.stored.image_size, self.stored.field)
        if size is None or tuple(size) == heat.shape:
            return heat
        stretched = torch.nn.functional.interpolate(torch.from_numpy(heat)[None, None], tuple(size), mode="bilinear")
        return stretched[0, 0].numpy()


@dataclass(frozen=True, eq=False)
class SameAnswer:
    """What `same_answer` found: `result` for `comparison.json`, `cases` with one row a case (index: case id)."""

    result: dict[str, Any]
    cases: pd.DataFrame


def read_layer(run: Run, layer: str | None = None) -> LayerMaps | None:
    """The maps of a run at a layer, by default the last one; None where the run kept no maps.

    Raises:
        ValueError: the run kept maps, but none of this layer.
    """
    if not (run.path / ALL_MAPS).is_file():
        return None
    stored = read_all_maps(run.path / ALL_MAPS, layer)
    file = run.path / "gradcam.json"
    told = json.loads(file.read_text())["gradcam"].get(stored.layer, {}) if file.is_file() else {}
    return LayerMaps(stored, told.get("fit", "unknown"), told.get("fit_reason", "the run has no gradcam.json"))


def same_answer(
    a: LayerMaps,
    b: LayerMaps,
    right: pd.DataFrame,
    masses: Callable[[Sequence[str]], pd.DataFrame],
    resamples: int = 2000,
    seed: int = 0,
) -> SameAnswer:
    """How far the maps of two models agree on cases that both get right.

    Maps are aligned with the input, brought to a common grid, and compared case by case as `similarity` says. Cases
    without a map in both runs, whose maps explain different classes, or of which a map has one value only, are counted
    and left out.

    Args:
        a: maps of the first model.
        b: maps of the second.
        right: the cases that both get right: `case_id`, `patient_key`, `label`.
        masses: from case ids to the mass of both maps by region, as `masses_from_masks` and `masses_from_tables` give.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    with_map = right[right["case_id"].isin(a.stored.maps) & right["case_id"].isin(b.stored.maps)]
    same_class = np.array([a.stored.explained[c] == b.stored.explained[c] for c in with_map["case_id"]], dtype=bool)
    chosen = with_map[same_class]
    maps = [np.array([on_grid(of.heat(c)) for c in chosen["case_id"]]).reshape(-1, GRID, GRID) for of in (a, b)]
    found = similarity(maps[0], maps[1], chosen["label"].tolist(), chosen["patient_key"].tolist())
    cases = pd.DataFrame(found._asdict(), index=pd.Index(chosen["case_id"], name="case_id"))
    cases["above_other_cases"] = cases["pearson"] - cases["other_cases"]
    cases["patient_key"] = chosen["patient_key"].to_numpy()
    compared = cases[cases["pearson"].notna()]
    lowest = compared["pearson"].sort_values(kind="stable").head(MOST_DISCORDANT)
    result = {
        "a": _told(a),
        "b": _told(b),
        "marks": [f"{name}: {of.mark}" for name, of in (("A", a), ("B", b)) if of.mark],
        "grid": GRID,
        "both_right": len(right),
        "without_map": len(right) - len(with_map),
        "other_class": int((~same_class).sum()),
        "without_evidence": len(cases) - len(compared),
        "compared": len(compared),
        **{measure: _mean(compared, measure, resamples, seed) for measure in MEASURES},
        "regions": _regions(masses(list(compared.index)), compared, resamples, seed),
        "most_discordant": [{"case_id": case_id, "pearson": round(value, 4)} for case_id, value in lowest.items()],
    }
    return SameAnswer(result, cases)


def masses_from_masks(
    a: LayerMaps, b: LayerMaps, regions: Callable[[str], Regions], case_ids: Sequence[str]
) -> pd.DataFrame:
    """Share of each map's positive mass in each region: columns `case_id`, `region`, `a`, `b`; measured on masks."""
    rows = []
    for case_id in case_ids:
        known = regions(case_id).masks
        size = next((mask.shape for mask in known.values()), None)
        first, second = (map_quality(of.heat(case_id, size), known) for of in (a, b))
        rows += [_mass_row(case_id, region, first[key], second[key]) for region, key in _MASSES.items() if key in first]
    return _with_outside(rows)


def masses_from_tables(a: Run, b: Run, layers: tuple[str, str], case_ids: Sequence[str]) -> pd.DataFrame:
    """The same from the `gradcam.csv` of both runs, which holds the cases that each run chose to draw."""
    tables = [_gradcam_table(run, layer) for run, layer in zip((a, b), layers, strict=True)]
    rows = []
    for case_id in case_ids:
        if all(case_id in table.index for table in tables):
            first, second = (table.loc[case_id].to_dict() for table in tables)
            known = [(region, key) for region, key in _MASSES.items() if key in first and key in second]
            rows += [_mass_row(case_id, region, first[key], second[key]) for region, key in known]
    return _with_outside(rows)


def _told(of: LayerMaps) -> dict[str, Any]:
    cells = next((list(heat.shape) for heat in of.stored.maps.values()), None)
    return {"layer": of.stored.layer, "cells": cells, "fit": of.fit, "fit_reason": of.reason}


def _mean(cases: pd.DataFrame, measure: str, resamples: int, seed: int) -> Figures:
    """Mean over cases with its interval, and the quartiles of the cases."""
    known = cases[cases[measure].notna()]
    columns = {"value": known[measure].to_numpy(), "cases": np.ones(len(known))}
    mean = {"mean": lambda s: s["value"] / s["cases"]}
    figures = clustered(columns, known["patient_key"], mean, resamples, seed)["mean"]
    quartiles = np.quantile(known[measure], [0.25, 0.5, 0.75]).tolist() if len(known) else [None] * 3
    return figures | {"quartiles": quartiles}


def _regions(masses: pd.DataFrame, cases: pd.DataFrame, resamples: int, seed: int) -> dict[str, Figures]:
    """Region to the mean mass of each model's maps and of their difference, B minus A."""
    regions = {}
    for region, rows in masses.groupby("region", sort=False):
        of_region = rows.assign(difference=rows["b"] - rows["a"]).set_index("case_id")
        of_region["patient_key"] = cases["patient_key"].reindex(of_region.index)
        regions[str(region)] = {name: _mean(of_region, name, resamples, seed) for name in ("a", "b", "difference")}
    return regions


def _mass_row(case_id: str, region: str, a: float, b: float) -> dict[str, Any]:
    return {"case_id": case_id, "region": region, "a": a, "b": b}


def _with_outside(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of known mass, and for each of the lungs one of all that is outside them."""
    table = pd.DataFrame(rows, columns=["case_id", "region", "a", "b"]).dropna()
    outside = table[table["region"] == "lung"].assign(
        region="outside lung", a=lambda of: 1 - of["a"], b=lambda of: 1 - of["b"]
    )
    return pd.concat([table, outside], ignore_index=True) if len(outside) else table


def _gradcam_table(run: Run, layer: str) -> pd.DataFrame:
    file = run.path / "gradcam.csv"
    if not file.is_file():
        return pd.DataFrame()
    table = pd.read_csv(file, dtype={"case_id": str})
    return table[table["layer"] == layer].set_index("case_id")
