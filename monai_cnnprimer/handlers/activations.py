# SPDX-License-Identifier: Apache-2.0
"""Activations of an evaluator's own forward pass: the most active channels of some cases, statistics by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.engines.utils import IterationEvents

from monai_cnnprimer.explain.activation_statistics import LayerActivations, LayerStatistics
from monai_cnnprimer.explain.activations import LAYERS, Activations
from monai_cnnprimer.explain.cases import ExplainedCase, batch_cases
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.figures.activations import ChannelMaps, LayerDepth, channel_grid_png, depth_png
from monai_cnnprimer.handlers.maps import file_name, mm_per_cell
from monai_cnnprimer.interruption import cleanup_on_exception
from monai_cnnprimer.run_directory import write_atomically

Fields = Mapping[str, ReceptiveField | None]
Millimetres = tuple[float, float] | None


class RecordedCase(NamedTuple):
    """A case of the sample and each layer's answer to it, by depth.

    The case has no Grad-CAM maps, and empty logits where the network's output is not `(N, K)`.
    """

    case: ExplainedCase
    layers: Mapping[str, LayerActivations]


class ActivationHandler:
    """Statistics of layers, and the most active channels of a few cases, from an evaluator's own forward pass.

    Every run starts afresh. At its end `output_dir`, if given, holds `activations.csv` with a row for each layer,
    `figures/activations.png` with all layers by depth, and a figure for each case of the sample,
    `figures/activations_CASE.png`. The columns of the table:

    - `grid`, `cell_px`, `cell_height_mm`, `cell_width_mm`: cells along each axis and from one to the next, at the
      network's input and on the patient (median of the sample); empty where it is not known or differs;
    - `channels`, `units` (channels times cells), `images` (how many count), `mean` (over all units);
    - `dead_share`: of channels with no unit above 1e-6 in any of the images;
    - `zero_share`, `sparseness`, `autocorrelation`, each with its standard deviation over the images (`_sd`), as
      `activation_statistics` defines them.

    Args:
        network: the network that the evaluator runs, once for each batch.
        layers: as in `Activations`.
        max_images: size of the sample.
        channels: how many maps of a case to keep and draw: those of its most active channels.
        output_dir: the run directory; None writes nothing.
        all_images: whether the statistics count every image, not only the sample. Of few images many channels look
            dead; counting all costs a few percent of the forward on a CPU.
        seed: draws the sample at random among all cases; None takes the first.
        threshold: probability of class 1 from which it is predicted, where there are two classes.

    Raises:
        ValueError: in the run, when a batch's images and the network's calls do not match (sliding windows).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        layers: str | Sequence[str] = LAYERS,
        max_images: int = 8,
        channels: int = 16,
        output_dir: str | Path | None = None,
        all_images: bool = False,
        seed: int | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.threshold = threshold
        self._activations = Activations(network, layers, max_images, channels, all_images, seed)
        self._cases: dict[int, ExplainedCase] = {}
        self._iteration = 0

    @property
    def cases(self) -> list[RecordedCase]:
        """The sample of the latest run, in the order in which the cases came."""
        return [RecordedCase(self._cases[image.number], image.layers) for image in self._activations.images]

    @property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Each layer over the images of the latest run, by depth."""
        return self._activations.statistics

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._listen)
        if isinstance(engine, Workflow):
            # Later the batch is split and changed by postprocessing; engines with an update of their own may skip this.
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)
        cleanup_on_exception(engine, self._stop)

    def __call__(self, engine: Engine) -> None:
        """Notes which cases the recorded images are, once an iteration."""
        if self._iteration == engine.state.iteration:
            return
        self._iteration = engine.state.iteration
        self._activations.paused = True  # other handlers may run the network too
        forwards, self._activations.forwards = self._activations.forwards, 0
        if forwards != 1:
            raise ValueError(f"the network given to ActivationHandler ran {forwards} times for one batch, not once")
        logits = self._activations.logits
        first = self._activations.seen - len(logits)
        cases = dict(enumerate(batch_cases(engine.state.batch, {}, logits, first, self.threshold), start=first))
        sample = [image.number for image in self._activations.images]
        self._cases = {number: cases[number].kept() if number in cases else self._cases[number] for number in sample}

    def _start(self, engine: Engine) -> None:
        self._cases, self._iteration = {}, 0
        self._stop()  # a run that was interrupted fires no event at its end
        if self.output_dir is not None:
            _clear(self.output_dir)
        self._activations.__enter__()
        self._activations.paused = True

    def _listen(self, engine: Engine) -> None:
        self._activations.paused = False

    def _stop(self, exception: BaseException | None = None) -> None:
        self._activations.__exit__(None, None, None)

    def _report(self, engine: Engine) -> None:
        self._stop()
        if self.output_dir is not None and self.statistics:
            _write(self.output_dir, self._activations, self.cases)


def _clear(output_dir: Path) -> None:
    """Takes away what an earlier run left."""
    for stale in (*output_dir.glob("activations.csv"), *(output_dir / "figures").glob("activations*.png")):
        stale.unlink()


def _write(output_dir: Path, activations: Activations, cases: Sequence[RecordedCase]) -> None:
    """Writes table and figures."""
    figures, statistics = output_dir / "figures", activations.statistics
    fields = {layer: _field(activations.network, layer, cases) for layer in statistics}
    cells = {layer: _median([mm_per_cell(kept.case, field) for kept in cases]) for layer, field in fields.items()}
    table = pd.DataFrame([_row(layer, statistics[layer], field, cells[layer]) for layer, field in fields.items()])
    write_atomically(
        output_dir / "activations.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    )
    images = next(iter(statistics.values())).images
    title = f"Activations of {images} images by depth; bars are one standard deviation over the images"
    depths = [_depth(layer, said, cells[layer]) for layer, said in statistics.items()]
    write_atomically(figures / "activations.png", depth_png(depths, title))
    for case, layers in cases:
        maps = [_maps(layer, recorded, case, fields[layer]) for layer, recorded in layers.items()]
        row, column = case.network_spacing_mm or (1.0, 1.0)
        figure = channel_grid_png(case.image.mean(dim=0).numpy(), maps, _caption(case), row / column)
        write_atomically(figures / f"activations_{file_name(case.case_id)}.png", figure)


def _field(network: torch.nn.Module, layer: str, cases: Sequence[RecordedCase]) -> ReceptiveField | None:
    """Geometry of a layer; None where it cannot be derived, which table and figures then say."""
    if not cases:
        return None
    image = cases[0].case.image
    try:
        return theoretical_receptive_field(network, layer, image[None].to(next(network.parameters(), image)))
    except ValueError:
        return None


def _median(cells: Sequence[Millimetres]) -> Millimetres:
    known = [cell for cell in cells if cell is not None]
    if not known:
        return None
    row, column = np.median(known, axis=0)
    return float(row), float(column)


def _row(layer: str, said: LayerStatistics, field: ReceptiveField | None, cell: Millimetres) -> dict[str, Any]:
    height, width = cell or (None, None)
    return {
        "layer": layer,
        "grid": _grid(said.grid, "x"),
        "cell_px": None if field is None else field.jump,
        "cell_height_mm": height,
        "cell_width_mm": width,
        "channels": len(said.channel_mean),
        "units": said.units,
        "images": said.images,
        "mean": float(said.channel_mean.mean()),
        "dead_share": said.dead_share,
        "zero_share": said.zero_share.mean,
        "zero_share_sd": said.zero_share.sd,
        "sparseness": said.sparseness.mean,
        "sparseness_sd": said.sparseness.sd,
        "autocorrelation": said.autocorrelation.mean,
        "autocorrelation_sd": said.autocorrelation.sd,
    }


def _depth(layer: str, said: LayerStatistics, cell: Millimetres) -> LayerDepth:
    lines = [layer, _grid(said.grid) or "grid differs", "mm unknown" if cell is None else _mm(cell)]
    means = said.channel_mean.numpy()
    return LayerDepth("\n".join(lines), said.zero_share, said.sparseness, said.autocorrelation, said.dead_share, means)


def _maps(layer: str, recorded: LayerActivations, case: ExplainedCase, field: ReceptiveField | None) -> ChannelMaps:
    cell = mm_per_cell(case, field)
    told = ["cell size unknown" if field is None else f"cell {field.jump} px", *([] if cell is None else [_mm(cell)])]
    title = f"{layer}: {_grid(recorded.grid)} cells, {', '.join(told)}"
    return ChannelMaps(title, recorded.channels.tolist(), recorded.maps.numpy())


def _caption(case: ExplainedCase) -> str:
    label = "unknown" if case.label is None else str(case.label)
    told = f"predicted {case.predicted} (p = {case.probability:.3f}), " if len(case.logits) else ""
    return f"{case.case_id}   {told}label {label}; most active channels by mean activation"


def _grid(grid: Sequence[int] | None, sign: str = " × ") -> str:
    return "" if grid is None else sign.join(str(cells) for cells in grid)


def _mm(cell: tuple[float, float]) -> str:
    return f"{cell[0]:.0f} × {cell[1]:.0f} mm"
