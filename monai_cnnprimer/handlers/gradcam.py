# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM of the cases worth a look, from an evaluator's own forward pass."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.engines.utils import IterationEvents

from monai_cnnprimer.explain.cases import ChosenCases, ExplainedCase, batch_cases, errors_first
from monai_cnnprimer.explain.gradcam import GradCam, Target
from monai_cnnprimer.explain.receptive_field import ReceptiveField, align_map, theoretical_receptive_field
from monai_cnnprimer.figures.overlay import Tile, contact_sheet_png, overlay_png
from monai_cnnprimer.interruption import cleanup_on_exception
from monai_cnnprimer.run_directory import write_atomically


class GradCamHandler:
    """Grad-CAM of an evaluator's own forward pass, kept for the cases worth a look: errors first, never all of them.

    Every run starts afresh. At its end `output_dir`, if given, holds `maps/CASE.npz` (raw signed maps), a figure for
    each case, `figures/gradcam_CASE.png`, and all of them on one sheet, `figures/gradcam.png`.

    Args:
        network: the network that the evaluator runs, once for each batch.
        layers: as in `GradCam`; the sheet shows the last one.
        max_images: how many cases to keep, whatever the number evaluated.
        target: as in `GradCam`.
        output_dir: the run directory; None writes nothing.
        priority: ranks a case, the highest kept; by default the most confident errors, then the most confident cases.
        threshold: probability of class 1 from which it is predicted, where there are two classes.

    Attributes:
        cases: the chosen cases of the latest run with their maps, highest priority first; batch size does not matter.

    Raises:
        ValueError: in the run, when a batch's images and the network's calls do not match (sliding windows).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        layers: str | Sequence[str],
        max_images: int = 16,
        target: Target = "predicted",
        output_dir: str | Path | None = None,
        priority: Callable[[ExplainedCase], tuple[float, ...]] | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.threshold = threshold
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._cam = GradCam(network, layers, target)
        self._chosen = ChosenCases(max_images, priority or errors_first)
        self._seen = self._iteration = 0

    @property
    def cases(self) -> list[ExplainedCase]:
        """The chosen cases of the latest run."""
        return self._chosen.cases

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        if isinstance(engine, Workflow):
            # Later the batch is split and changed by postprocessing; engines with an update of their own may skip this.
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)
        cleanup_on_exception(engine, self._stop)

    def __call__(self, engine: Engine) -> None:
        """Offers the cases of the batch to the selection, once an iteration."""
        if self._iteration == engine.state.iteration:
            return
        self._iteration = engine.state.iteration
        forwards, self._cam.forwards = self._cam.forwards, 0
        if forwards != 1:
            raise ValueError(f"the network given to GradCamHandler ran {forwards} times for one batch, not once")
        cases = batch_cases(engine.state.batch, self._cam.maps, self._cam.logits, self._seen, self.threshold)
        self._seen += len(cases)
        for case in cases:
            self._chosen.offer(case)

    def _start(self, engine: Engine) -> None:
        self._chosen = ChosenCases(self._chosen.max_images, self._chosen.priority)
        self._seen = self._iteration = self._cam.forwards = 0
        self._stop()  # a run that was interrupted fires no event at its end
        self._cam.__enter__()

    def _stop(self, exception: BaseException | None = None) -> None:
        self._cam.__exit__(None, None, None)

    def _report(self, engine: Engine) -> None:
        self._stop()
        if self.output_dir is not None:
            _write_gradcam(self.output_dir, self._cam, self.cases)


def _write_gradcam(output_dir: Path, cam: GradCam, cases: Sequence[ExplainedCase]) -> None:
    """Writes maps and figures; those of an earlier run are taken away."""
    maps, figures = output_dir / "maps", output_dir / "figures"
    for stale in (*maps.glob("*.npz"), *figures.glob("gradcam*.png")):
        stale.unlink()
    if not cases:
        return
    fields = {layer: _field(cam.network, layer, cases[0].image) for layer in cam.layers}
    tiles = []
    for case in cases:
        name = _file_name(case.case_id)
        image = case.image.mean(dim=0).numpy()
        heats = {layer: _aligned(case.maps[layer], case.image, fields[layer]) for layer in cam.layers}
        titled = {_cell_title(layer, case, fields[layer]): heat for layer, heat in heats.items()}
        write_atomically(maps / f"{name}.npz", _npz(case, fields))
        write_atomically(figures / f"gradcam_{name}.png", overlay_png(image, titled, _caption(case), _aspect(case)))
        tiles.append(Tile(image, list(heats.values())[-1], _caption(case, "\n")))
    title = f"Grad-CAM at {list(cam.layers)[-1]}, each map on its own scale"
    write_atomically(figures / "gradcam.png", contact_sheet_png(tiles, title))


def _field(network: torch.nn.Module, layer: str, image: torch.Tensor) -> ReceptiveField | None:
    """Geometry of a layer; None where it cannot be derived, which the figures then say."""
    parameter = next(network.parameters(), image)
    try:
        return theoretical_receptive_field(network, layer, image[None].to(parameter))
    except ValueError:
        return None


def _aligned(layer_map: torch.Tensor, image: torch.Tensor, field: ReceptiveField | None) -> np.ndarray:
    size = image.shape[-2:]
    if field is None:
        return torch.nn.functional.interpolate(layer_map[None], size, mode="bilinear")[0, 0].numpy()
    return align_map(layer_map[None], size, field)[0, 0].numpy()


def _mm_per_cell(case: ExplainedCase, field: ReceptiveField | None) -> tuple[float, float] | None:
    if field is None or case.network_spacing_mm is None:
        return None
    row, column = case.network_spacing_mm
    return field.jump * row, field.jump * column


def _cell_title(layer: str, case: ExplainedCase, field: ReceptiveField | None) -> str:
    if field is None:
        return f"{layer}: receptive field unknown, map stretched to fit"
    mm = _mm_per_cell(case, field)
    return f"{layer}: cell {field.jump} px, " + ("mm unknown" if mm is None else f"{mm[0]:.0f} × {mm[1]:.0f} mm")


def _caption(case: ExplainedCase, separator: str = "   ") -> str:
    label = "unknown" if case.label is None else f"{case.label}{', ERROR' if case.is_error else ''}"
    return f"{case.case_id}{separator}predicted {case.predicted} (p = {case.probability:.3f}), label {label}"


def _aspect(case: ExplainedCase) -> float:
    row, column = case.network_spacing_mm or (1.0, 1.0)
    return row / column


def _npz(case: ExplainedCase, fields: dict[str, ReceptiveField | None]) -> bytes:
    """Raw maps `(h, w)` by layer, with `LAYER.receptive_field` (size, jump, start) and `LAYER.mm_per_cell` if known."""
    arrays: dict[str, Any] = {}
    for layer, field in fields.items():
        arrays[layer] = case.maps[layer][0].numpy()
        if field is not None:
            arrays[f"{layer}.receptive_field"] = np.array(field, dtype=np.float64)
        if (mm := _mm_per_cell(case, field)) is not None:
            arrays[f"{layer}.mm_per_cell"] = np.array(mm)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _file_name(case_id: str) -> str:
    """A case id as a file name; one with other signs than letters, digits, `.`, `_`, `-` gets a hash to stay unique."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", case_id).lstrip(".")[:100]
    return name if name == case_id else f"{name}-{hashlib.sha256(case_id.encode()).hexdigest()[:8]}"
