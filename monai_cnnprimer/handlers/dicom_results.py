# SPDX-License-Identifier: Apache-2.0
"""The results of a complete run as DICOM objects, in a folder beside the run directory."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import Module

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.header import read_header
from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.dicom.results import (
    Model,
    fractional_segmentation,
    on_radiograph,
    outlines,
    presentation_state,
    secondary_capture,
    structured_report,
    upright_directions,
    without_turning,
)
from monai_cnnprimer.dicom.results.segmentation import MapType
from monai_cnnprimer.explain.bare_copy import bare_copy
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.layers import find_layers
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.figures.secondary_capture import secondary_capture_png
from monai_cnnprimer.handlers.maps import aligned, file_name
from monai_cnnprimer.run_directory import RunDirectory

OBJECTS = ("SC", "SEG", "PR", "SR")
TABLE = "dicom_results.csv"
_LONGER_SIDE = 900  # pixels of the radiograph in the overlay
_FINDING_CLASS = 1
_log = logging.getLogger(__name__)


class DicomResultsHandler:
    """Writes SC, SEG, PR and SR objects of the predicted cases when a run is complete, and a table of what was written.

    The cases are read once more, one by one, and a copy of the network explains them, so that other handlers notice
    nothing and a run that was killed and taken up has the objects of all its cases. `dicom_results.csv` in the run
    directory has a row for each case: the objects written, or why there are none. It names no patient; the objects do,
    which is why they may not lie in the run directory, from where MLflow would take them.

    Args:
        run: the run directory.
        dataset: what reads and preprocesses a case.
        network: the network that the run evaluated, with two classes.
        output_dir: folder for the objects, `CASE_sc.dcm` and so on.
        objects: which of `OBJECTS` to write.
        layer: name of a layer for Grad-CAM, or of a dense map (FPN, U-Net).
        level: of the outlines, as a share of the map's largest value.
        finding: what class 1 is, for the report.
        max_cases: at most so many, the first by case id; None writes all.
        made_at: moment that the objects state, as ISO 8601; None takes that of each radiograph.
        progress: show a bar on the error stream.

    Raises:
        ValueError: an unknown kind of object or layer, a level out of (0, 1), a folder within the run directory.
    """

    def __init__(
        self,
        run: RunDirectory,
        dataset: CaseDataset,
        network: Module,
        output_dir: str | Path,
        objects: Sequence[str] = OBJECTS,
        layer: str = "layer4",
        *,
        level: float = 0.5,
        finding: str = "pneumonia",
        max_cases: int | None = None,
        made_at: str | None = None,
        progress: bool = True,
    ) -> None:
        if unknown := [kind for kind in objects if kind not in OBJECTS]:
            raise ValueError(f"dicom_objects has {', '.join(unknown)}; choose among {', '.join(OBJECTS)}")
        if not 0 < level < 1:
            raise ValueError(f"dicom_level is {level}: the outlines lie at a share of the map between 0 and 1")
        self.folder = Path(output_dir).expanduser()
        if self.folder.resolve().is_relative_to(run.path.resolve()):
            raise ValueError(
                "dicom_dir lies in the run directory, which is uploaded and shared, and the objects carry the "
                "patient's identity: give a folder beside it"
            )
        if layer not in getattr(network, "strides", {}):
            find_layers(network, layer)
        if not isinstance(dataset.transform, Compose):
            raise ValueError("the map follows the preprocessing back, which must be a Compose that begins with loading")
        self.run, self.dataset, self.network, self.preprocessing = run, dataset, network, dataset.transform
        self.objects, self.layer, self.level = tuple(objects), layer, level
        self.finding, self.max_cases = finding, max_cases
        self.made_at = None if made_at is None else datetime.fromisoformat(made_at)
        columns = (TextColumn("DICOM results"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not progress)

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator, behind the one that completes the run directory."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes the objects of all cases that were predicted, and the table."""
        predictions = pd.read_csv(self.run.path / "predictions.csv", dtype={"case_id": str})[: self.max_cases]
        point = json.loads((self.run.path / "operating_point.json").read_text())
        cases = {case["case_id"]: case for case in self.run.manifest.cases()}
        rows = []
        with self._bar, _Explainer(self.network, self.layer) as explain:
            for row in self._bar.track(predictions.to_dict("records")):
                said = _Said(float(row["probability"]), point, explain.name, explain.dense)
                rows.append(self._write(cases[row["case_id"]], said, explain))
        table = pd.DataFrame(rows, columns=["case_id", "objects", "reason", "attribute"])
        write_atomically(self.run.path / TABLE, str(table.to_csv(index=False, lineterminator="\n")))
        without = int((table["objects"] == "").sum())
        if without:
            _log.warning("DICOM results: %d of %d cases have none; %s says why", without, len(table), TABLE)

    def _start(self, engine: Engine) -> None:
        """Takes away what an earlier run left, and nothing else."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = re.compile(rf".+_({'|'.join(OBJECTS).lower()})\.dcm")
        for stale in (path for path in self.folder.iterdir() if ours.fullmatch(path.name)):
            stale.unlink()
        (self.run.path / TABLE).unlink(missing_ok=True)

    def _write(self, case: Mapping[str, Any], said: _Said, explain: _Explainer) -> dict[str, str]:
        """The objects of one case as files; its row of the table."""
        try:
            shown = _shown(case, self.dataset, self.preprocessing, explain)
            built = {kind: self._build(kind, shown, said) for kind in self.objects}
        except DicomRefused as refused:
            return {"case_id": case["case_id"], "objects": "", "reason": refused.reason, "attribute": refused.attribute}
        for kind, result in built.items():
            file = io.BytesIO()
            result.save_as(file, enforce_file_format=True)
            write_atomically(self.folder / f"{file_name(case['case_id'])}_{kind.lower()}.dcm", file.getvalue())
        return {"case_id": case["case_id"], "objects": " ".join(built), "reason": "", "attribute": ""}

    def _build(self, kind: str, shown: _Shown, said: _Said) -> Dataset:
        run = self.run.identity
        model = Model(run["bundle"], run["bundle_version"], run["weights_sha256"], run["transforms_sha256"])
        what = f"{said.map_name} for {self.finding}"
        if kind == "SC":
            picture = self._picture(shown, said, model, what)
            directions = upright_directions(shown.header)
            about = f"{what} over the radiograph"
            return secondary_capture(
                shown.header, picture, model, description=about, directions=directions, made_at=self.made_at
            )
        if kind == "SEG":
            about = f"{what}; {said.meaning}"
            map_type: MapType = "dense" if said.dense else "gradcam"
            return fractional_segmentation(
                shown.header, shown.stored, model, map_type=map_type, description=about, made_at=self.made_at
            )
        if kind == "PR":
            lines, about = outlines(shown.stored, self.level), f"{what}, {self._outline(shown)}"
            return presentation_state(shown.header, lines, model, text=about, made_at=self.made_at)
        scores, hashes = {self.finding: said.probability}, {"manifest SHA-256": run["manifest_sha256"]}
        return structured_report(shown.header, scores, said.point, model, hashes=hashes, made_at=self.made_at)

    def _picture(self, shown: _Shown, said: _Said, model: Model, what: str) -> NDArray[np.uint8]:
        """The overlay `(H, W, 3)`."""
        threshold = float(said.point["threshold"])
        side = "at or above" if said.probability >= threshold else "below"
        lines = (
            f"probability of {self.finding} {said.probability:.3f}: {side} the operating point {threshold:.3f}",
            f"colour: {said.meaning}; {self._outline(shown)}",
            model.short,
        )
        row, column = shown.spacing_mm or (1.0, 1.0)
        image, share = (_reduced(array) for array in (shown.image, shown.share))
        picture = secondary_capture_png(image, share, self.level, what, lines, row / column)
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

    def _outline(self, shown: _Shown) -> str:
        return f"{'outline at' if shown.share.max() >= self.level else 'nothing reaches'} {self.level:g}"


class _Said(NamedTuple):
    """What is said of one case: the score, the operating point, and which map explains it."""

    probability: float
    point: Mapping[str, Any]
    map_name: str
    dense: bool

    @property
    def meaning(self) -> str:
        """Of a value of the map."""
        return "probability by cell" if self.dense else "share of the map's largest value, no probability"


class _Shown(NamedTuple):
    """One case as its objects show it: header, upright image and map `(rows, columns)`, the map as stored."""

    header: Dataset
    image: NDArray[np.float32]
    share: NDArray[np.float32]
    stored: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None


def _shown(case: Mapping[str, Any], dataset: CaseDataset, preprocessing: Compose, explain: _Explainer) -> _Shown:
    """Reads a case again, explains it, and puts the map on the pixels of the radiograph.

    Raises:
        DicomRefused: it is no DICOM file, or cannot be read.
    """
    if case["file"]:  # only plain images are told by their names
        raise DicomRefused("a plain image, not DICOM: it belongs to no study that results could be filed in")
    item, refused = dataset.read(dict(case))
    if refused is not None:
        raise refused
    header = read_header(case["image"])
    image, stated = read_radiograph(case["image"])
    spacing = stated["pixel_spacing_mm"]
    share = np.clip(on_radiograph(explain(item["image"]), preprocessing, image.shape, spacing), 0, 1)
    stored = without_turning(share, header)
    if stored.shape != (header.Rows, header.Columns):
        raise DicomRefused("other rows or columns than the header states: a viewer would misplace the map", "Rows")
    return _Shown(header, image, share, stored, spacing)


class _Explainer:
    """Maps of single cases in [0, 1], from a copy of the network that nobody else watches."""

    def __init__(self, network: Module, layer: str) -> None:
        self.layer = layer
        strides: dict[str, int] = getattr(network, "strides", {})
        self.dense = layer in strides
        self._stride = strides.get(layer, 0)
        self.name = f"{'Dense map' if self.dense else 'Grad-CAM'} {layer}"
        self._network = bare_copy(network).eval()
        self._device = next(network.parameters()).device
        self._cam = None if self.dense else GradCam(self._network, layer, _FINDING_CLASS)
        self._fields: dict[tuple[int, ...], ReceptiveField | None] = {}

    def __enter__(self) -> _Explainer:
        if self._cam is not None:
            self._cam.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._cam is not None:
            self._cam.__exit__(*exception)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> NDArray[np.float32]:
        """`(H, W)` at the network's input `(1, H, W)`: probabilities, or shares of the map's largest value."""
        batch, size = image[None].to(self._device), tuple(image.shape[-2:])
        if self._cam is None:
            logits = self._network.dense_maps(batch)[self.layer]  # type: ignore[operator]
            field = ReceptiveField(size=1, jump=self._stride, start=0)  # of the cells, not of what they see
            return aligned(logits.float().softmax(1)[0, _FINDING_CLASS:][:1].cpu(), size, field)
        self._network(batch)
        heat = aligned(self._cam.maps[self.layer][0].cpu(), size, self._geometry(batch))
        return np.clip(heat / (np.abs(heat).max() or 1), 0, 1)

    def _geometry(self, batch: Tensor) -> ReceptiveField | None:
        """Of the layer, for images of this size; None where it cannot be derived, and the map is stretched."""
        shape = tuple(batch.shape)
        if shape not in self._fields:
            try:
                self._fields[shape] = theoretical_receptive_field(self._network, self.layer, batch)
            except ValueError:
                self._fields[shape] = None
        return self._fields[shape]


def _reduced(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image with its longer side at most `_LONGER_SIDE`, antialiased."""
    factor = min(1.0, _LONGER_SIDE / max(image.shape))
    shape = [max(1, round(side * factor)) for side in image.shape]
    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, shape, mode="bilinear", antialias=True)[0, 0].numpy()
