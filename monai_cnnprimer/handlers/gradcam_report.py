# SPDX-License-Identifier: Apache-2.0
"""What a run leaves of its Grad-CAM: figures, maps, and tables of how good the maps are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn import Module

from monai_cnnprimer.dicom.masks import RegionMasks, Regions
from monai_cnnprimer.explain.bare_copy import bare_copy
from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.gradcam import Target
from monai_cnnprimer.explain.quality import REGIONS, Summary
from monai_cnnprimer.explain.randomisation import LIMIT
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.figures.overlay import Tile, contact_sheet_png, overlay_png
from monai_cnnprimer.figures.quality import RandomisedCase, quality_png, randomisation_png
from monai_cnnprimer.handlers.gradcam_quality import (
    FACTS,
    Fitness,
    Masks,
    Row,
    causal,
    described,
    fitness,
    measures,
    summarised,
    summed,
)
from monai_cnnprimer.handlers.maps import ALL_MAPS, AllMaps, aligned, file_name, mm_per_cell, nifti, npz
from monai_cnnprimer.run_directory import write_atomically

Heats = dict[str, NDArray[np.float32]]
Fields = dict[str, ReceptiveField | None]


@dataclass(frozen=True, eq=False)
class GradCamReport:
    """Writes the chosen cases to a run directory: `figures/gradcam*.png`, `maps/`, and three tables.

    `gradcam.csv` has a row for each case and layer: `fit` (whether the layer's maps change with the weights), the
    measures of `map_quality` for the regions with a mask, `insertion` and `deletion` (areas under the curves), and the
    regions left out with the reason. `gradcam_randomisation.csv` has the steps of the randomisation. `gradcam.json`
    sums up; its figures describe the chosen cases, which are no sample of all.

    `gradcam_maps.npz` holds the raw signed maps of all cases of the run, compactly and without images, as `AllMaps`
    says; `maps/CASE.npz` those of a chosen case in full. `maps/CASE.nii.gz` is the network's input,
    `maps/CASE_LAYER.nii.gz` the signed map aligned with it; both have the pixels of the network's input, not those of
    the original radiograph.

    Args:
        output_dir: the run directory.
        network: left as it is; copies of it run.
        layers: names; the sheet shows the last one.
        target: as in `GradCam`.
        masks: from a case id to its regions at the network's input.
        quality_images: how many cases, the first ones chosen, serve for what must run the network again: insertion and
            deletion, and the randomisation, which gives a verdict from 8 on. 0 leaves both out.
        seed: of the random weights.
    """

    output_dir: Path
    network: Module
    layers: tuple[str, ...]
    target: Target
    masks: Masks | None = None
    quality_images: int = 8
    seed: int = 0

    def clear(self) -> None:
        """Takes away what an earlier run left."""
        patterns = ("maps/*.npz", "maps/*.nii.gz", "figures/gradcam*.png", "gradcam*.csv", "gradcam.json", ALL_MAPS)
        for pattern in patterns:
            for stale in self.output_dir.glob(pattern):
                stale.unlink()

    def write(self, cases: Sequence[ExplainedCase], seen: int, all_maps: AllMaps | None = None) -> None:
        """Writes everything; of no cases, tables without rows.

        Args:
            cases: the chosen ones.
            seen: of how many.
            all_maps: the raw maps of those that were seen; not written where none is chosen, or None.
        """
        found = fitness(self.network, self.layers, cases[: self.quality_images], self.target, self.seed)
        fields = _fields(self.network, self.layers, cases)
        rows: list[Row] = []
        tiles: list[Tile] = []
        for number, case in enumerate(cases):
            size = case.image.shape[-2:]
            heats = {layer: aligned(case.maps[layer], size, field) for layer, field in fields.items()}
            regions = self._regions(case)
            self._write_case(case, heats, fields, regions, found)
            tiles.append(Tile(_grey(case), heats[self.layers[-1]], _caption(case, "\n"), regions.masks))
            for layer, heat in heats.items():
                row = described(case, layer, heat, fields[layer], regions, found[layer])
                rows.append(row | (causal(self.network, case, heat) if number < self.quality_images else {}))
        if tiles:
            title = f"Grad-CAM at {self.layers[-1]}, each map on its own scale; {found[self.layers[-1]].mark}"
            self._write_figure("gradcam", contact_sheet_png(tiles, title))
        if cases and all_maps is not None:  # the geometry of layers is that of a chosen case
            write_atomically(self.output_dir / ALL_MAPS, all_maps.npz(fields))
        notes = self.masks.notes if isinstance(self.masks, RegionMasks) else []
        summary: dict[str, Any] = {"chosen": len(cases), "seen": seen, "notes": notes}
        for layer, said in found.items():
            of_layer = [row for row in rows if row["layer"] == layer]
            sums = summed(of_layer)
            summary[layer] = summarised(said, sums)
            self._write_randomisation(layer, said, fields.get(layer))
            self._write_quality(layer, said, of_layer, sums)
        self._write_tables(rows, found, summary)

    def _regions(self, case: ExplainedCase) -> Regions:
        """The regions of a case; those of another size than its image are left out."""
        regions = Regions({}, {}) if self.masks is None else self.masks(case.case_id)
        size = tuple(case.image.shape[-2:])
        masks = {name: mask for name, mask in regions.masks.items() if mask.shape == size}
        misfits = (name for name in regions.masks if name not in masks)
        left_out = dict.fromkeys(misfits, "the mask has another size than the network's input")
        return Regions(masks, regions.left_out | left_out)

    def _write_case(
        self, case: ExplainedCase, heats: Heats, fields: Fields, regions: Regions, found: Mapping[str, Fitness]
    ) -> None:
        maps, name, spacing = self.output_dir / "maps", file_name(case.case_id), case.network_spacing_mm
        start = f"{'mm unknown; ' if spacing is None else ''}research use only, not for clinical use"
        write_atomically(maps / f"{name}.npz", npz(case, fields))
        write_atomically(maps / f"{name}.nii.gz", nifti(_grey(case), spacing, f"{start}; network input"))
        for layer, heat in heats.items():
            of = f"{'UNFIT ' if found[layer].fit is False else ''}Grad-CAM"
            of += f", {layer}" if case.explained is None else f" class {case.explained}, {layer}"
            write_atomically(maps / f"{name}_{file_name(layer)}.nii.gz", nifti(heat, spacing, f"{start}; {of}"))
        panels = {f"{_cell(case, layer, fields[layer])}\n{found[layer].mark}": heat for layer, heat in heats.items()}
        figure = overlay_png(_grey(case), panels, _caption(case), _aspect(case), regions.masks)
        self._write_figure(f"gradcam_{name}", figure)

    def _write_figure(self, name: str, figure: bytes) -> None:
        write_atomically(self.output_dir / "figures" / f"{name}.png", figure)

    def _write_randomisation(self, layer: str, found: Fitness, field: ReceptiveField | None) -> None:
        """The cascade of random weights, on the first of the cases that have a map."""
        check = found.check
        if check is None or not check.n:
            return
        case = found.cases[check.images[0]]
        heats = [aligned(torch.from_numpy(maps[:1]), case.image.shape[-2:], field) for maps in check.maps]
        shown = RandomisedCase(_grey(case), heats, check.signed[0, :, 0].tolist())
        title = f"Grad-CAM at {layer} while weights become random, {check.n} cases; shown: {case.case_id}"
        figure = randomisation_png(shown, check.rows(), title, check.fit, check.reason, LIMIT)
        self._write_figure(f"gradcam_randomisation_{file_name(layer)}", figure)

    def _write_quality(self, layer: str, found: Fitness, rows: Sequence[Row], sums: Mapping[str, Summary]) -> None:
        """Where the maps of a layer lie; nothing where no region is known."""
        regional = {key: of for key, of in sums.items() if any(region in key for region in REGIONS)}
        if regional:
            cases = [{key: row[key] for key in regional if key in row} for row in rows]
            title = f"Grad-CAM at {layer}: where the maps of {len(cases)} chosen cases lie; {found.mark}"
            self._write_figure(f"gradcam_quality_{file_name(layer)}", quality_png(cases, regional, title))

    def _write_tables(self, rows: Sequence[Row], found: Mapping[str, Fitness], summary: Mapping[str, Any]) -> None:
        table = pd.DataFrame(rows, columns=[*FACTS[:-1], *measures(rows), FACTS[-1]])
        write_atomically(self.output_dir / "gradcam.csv", _csv(table.astype({"label": "Int64", "explained": "Int64"})))
        steps = [row for said in found.values() if said.check is not None for row in said.check.rows()]
        if steps:
            write_atomically(self.output_dir / "gradcam_randomisation.csv", _csv(pd.DataFrame(steps)))
        text = json.dumps({"gradcam": summary}, indent=2, allow_nan=False)
        write_atomically(self.output_dir / "gradcam.json", f"{text}\n")


def _fields(network: Module, layers: Sequence[str], cases: Sequence[ExplainedCase]) -> Fields:
    """Geometry of each layer; None where it cannot be derived, which the figures then say."""
    fields: Fields = {}
    copy = bare_copy(network)
    for layer in layers if cases else ():
        image = cases[0].image[None]
        try:
            fields[layer] = theoretical_receptive_field(copy, layer, image.to(next(copy.parameters(), image)))
        except ValueError:
            fields[layer] = None
    return fields


def _grey(case: ExplainedCase) -> NDArray[np.float32]:
    return case.image.mean(dim=0).numpy()


def _aspect(case: ExplainedCase) -> float:
    row, column = case.network_spacing_mm or (1.0, 1.0)
    return row / column


def _cell(case: ExplainedCase, layer: str, field: ReceptiveField | None) -> str:
    if field is None:
        return f"{layer}: receptive field unknown, map stretched to fit"
    mm = mm_per_cell(case, field)
    return f"{layer}: cell {field.jump} px, " + ("mm unknown" if mm is None else f"{mm[0]:.0f} × {mm[1]:.0f} mm")


def _caption(case: ExplainedCase, separator: str = "   ") -> str:
    label = "unknown" if case.label is None else f"{case.label}{', ERROR' if case.is_error else ''}"
    predicted = f"{_explained(case)}predicted {case.predicted} (p = {case.probability:.3f}), label {label}"
    return separator.join((case.case_id, f"chosen as {case.chosen_as}", predicted))


def _explained(case: ExplainedCase) -> str:
    """Which class the map explains, where that is not the one predicted."""
    return "" if case.explained in (None, case.predicted) else f"map of class {case.explained}, "


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
