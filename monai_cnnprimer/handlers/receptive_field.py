# SPDX-License-Identifier: Apache-2.0
"""Receptive fields of the network that an evaluator runs, on its own images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.engines.utils import IterationEvents

from monai_cnnprimer.explain.cases import ExplainedCase, batch_cases
from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_fields, random_twin
from monai_cnnprimer.explain.gradcam import find_layers
from monai_cnnprimer.explain.receptive_field import layer_geometries
from monai_cnnprimer.explain.receptive_field_summary import EffectiveReceptiveField
from monai_cnnprimer.figures.receptive_field import LayerFields, MeasuredField, receptive_fields_png
from monai_cnnprimer.run_directory import write_atomically

Fields = dict[str, EffectiveReceptiveField]


class ReceptiveFieldHandler:
    """Theoretical and effective receptive fields of layers, trained and with random weights, on an evaluation's images.

    The first images are kept as they pass. All is measured when the run is over, so that no forward but the
    evaluator's own falls into an iteration, and without firing the hooks of other handlers. It costs one forward and
    `seeds` backward passes for each image and layer, twice (a layer whose field is smaller than the image less).

    Every run starts afresh. At its end `output_dir`, if given, holds `receptive_fields.csv` with two rows a layer,
    `weights` trained and random, and `figures/receptive_fields.png`. The columns of the table:

    - `jump`, `size`, `start` of the theoretical field; `unit_row`, `unit_column`: the unit measured;
    - `sigma` (and along rows and columns), `offset_row`, `offset_column` (from the theoretical centre to the centroid),
      `area20` to `area99` (fewest pixels that hold so many percent of the mass), `side20` to `side99` (their roots),
      `ratio` (`side95` by `size`), `gaussian_error` (of the fit pixel by pixel), `profile_error` (to the profiles),
      `clipped` (the theoretical field reaches over the image's edge), all as `EffectiveReceptiveField` defines them;
    - `power` of the gradient, `images`, `seeds`;
    - `spacing_known`: of how many images the mm are known, `spacing_row_mm`, `spacing_column_mm`: their median, by
      which lengths in `_px` are given in `_mm` too; empty where it is known of none.

    Args:
        network: the network that the evaluator runs.
        layers: names as in `network.named_modules()`, of known geometry.
        max_images: how many images to measure: the first of the evaluation that have the size of the very first.
        seeds: draws of channel signs for each image.
        output_dir: the run directory; None writes nothing.
        seed: of the signs and of the random weights.

    Attributes:
        fields: layer name to its field in the latest run.
        random_fields: the same with random weights.

    Raises:
        ValueError: no such layer (at once); a layer of unknown geometry (with the first batch).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        layers: str | Sequence[str],
        max_images: int = 8,
        seeds: int = 8,
        output_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if max_images < 1 or seeds < 1:
            raise ValueError(f"max_images and seeds must be positive, got {max_images} and {seeds}")
        self.network = network
        self.layers = list(find_layers(network, layers))
        self.max_images = max_images
        self.seeds = seeds
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.seed = seed
        self.fields: Fields = {}
        self.random_fields: Fields = {}
        self._cases: list[ExplainedCase] = []
        self._iteration = 0

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        if isinstance(engine, Workflow):
            # Later the batch is split and changed by postprocessing; engines with an update of their own may skip this.
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Engine) -> None:
        """Keeps images of the batch while there are too few, once an iteration."""
        if self._iteration == engine.state.iteration or len(self._cases) == self.max_images:
            return
        self._iteration = engine.state.iteration
        batch = engine.state.batch
        cases = batch_cases(batch, {}, torch.zeros(_count(batch), 1))
        if not self._cases:
            layer_geometries(self.network, self.layers, [cases[0].image[None]])  # fails now rather than at the end
        size = (self._cases or cases)[0].image.shape
        fitting = [case for case in cases if case.image.shape == size]
        self._cases += [case.kept() for case in fitting[: self.max_images - len(self._cases)]]

    def _start(self, engine: Engine) -> None:
        self.fields, self.random_fields = {}, {}
        self._cases, self._iteration = [], 0

    def _report(self, engine: Engine) -> None:
        if self._cases:
            images = torch.stack([case.image for case in self._cases])
            spacing = _median_spacing(self._cases)
            self.fields = self._measured(self.network, images, spacing)
            self.random_fields = self._measured(random_twin(self.network, self.seed, images), images, spacing)
        if self.output_dir is not None:
            _write(self.output_dir, {"trained": self.fields, "random": self.random_fields}, self._cases)

    def _measured(
        self, network: torch.nn.Module, images: torch.Tensor, spacing_mm: tuple[float, float] | None
    ) -> Fields:
        return effective_receptive_fields(
            network, self.layers, images, self.seeds, seed=self.seed, spacing_mm=spacing_mm
        )


def _count(batch: Any) -> int:
    """How many cases a batch has, in the forms that `batch_cases` takes."""
    if isinstance(batch, Mapping):
        return len(batch["image"])
    return len(batch) if isinstance(batch[0], Mapping) else len(batch[0])


def _known_spacings(cases: Sequence[ExplainedCase]) -> list[tuple[float, float]]:
    return [case.network_spacing_mm for case in cases if case.network_spacing_mm is not None]


def _median_spacing(cases: Sequence[ExplainedCase]) -> tuple[float, float] | None:
    known = _known_spacings(cases)
    if not known:
        return None
    row, column = np.median(known, axis=0)
    return float(row), float(column)


def _write(output_dir: Path, weights: dict[str, Fields], cases: Sequence[ExplainedCase]) -> None:
    """Writes table and figure; those of an earlier run are taken away."""
    table, figure = output_dir / "receptive_fields.csv", output_dir / "figures" / "receptive_fields.png"
    for stale in (table, figure):
        stale.unlink(missing_ok=True)
    if not cases:
        return
    known = len(_known_spacings(cases))
    rows = [
        _row(field, name, known) for layer in weights["trained"] for name, field in _by_weights(weights, layer).items()
    ]
    write_atomically(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    some = weights["trained"][next(iter(weights["trained"]))]
    title = (
        f"Effective receptive fields of central units: {some.images} images, {some.seeds} draws of signs each; "
        f"mm known of {known}" + (", their median" if known else "")
    )
    drawn = [_drawn(_by_weights(weights, layer)) for layer in weights["trained"]]
    image = cases[0].image.mean(dim=0).numpy()
    write_atomically(figure, receptive_fields_png(image, drawn, title, some.spacing_mm))


def _by_weights(weights: dict[str, Fields], layer: str) -> Fields:
    return {name: fields[layer] for name, fields in weights.items()}


def _row(field: EffectiveReceptiveField, weights: str, known: int) -> dict[str, Any]:
    lengths = {"jump": field.theoretical.jump, "size": field.theoretical.size, "sigma": field.sigma}
    lengths |= {f"side{share:.0%}"[:-1]: math.sqrt(area) for share, area in field.areas.items()}
    return {
        "layer": field.layer,
        "weights": weights,
        **{f"{name}_px": length for name, length in lengths.items()},
        "start_px": field.theoretical.start,
        "unit_row": field.unit[0],
        "unit_column": field.unit[1],
        "sigma_row_px": field.sigma_axes[0],
        "sigma_column_px": field.sigma_axes[1],
        "offset_row_px": field.offset[0],
        "offset_column_px": field.offset[1],
        **{f"area{share:.0%}"[:-1] + "_px": area for share, area in field.areas.items()},
        "ratio": field.ratio,
        "gaussian_error": field.gaussian.error,
        "profile_error": field.profile_gaussian.error,
        "clipped": field.clipped,
        "power": field.power,
        "images": field.images,
        "seeds": field.seeds,
        "spacing_known": known,
        "spacing_row_mm": None if field.spacing_mm is None else field.spacing_mm[0],
        "spacing_column_mm": None if field.spacing_mm is None else field.spacing_mm[1],
        **{f"{name}_mm": field.in_mm(length) for name, length in lengths.items()},
    }


def _drawn(fields: Fields) -> LayerFields:
    field = fields["trained"]
    size = field.theoretical.size
    told = f"{size:g} px{_mm(field, size)}{', clipped' if field.clipped else ''}" if math.isfinite(size) else "no bound"
    measured = {name: _measured(each) for name, each in fields.items()}
    return LayerFields(f"{field.layer}\ntheoretical {told}", field.centre, size, measured)


def _measured(field: EffectiveReceptiveField) -> MeasuredField:
    row, column = field.sigma_axes
    rings = {
        share: (math.sqrt(area / math.pi * row / column), math.sqrt(area / math.pi * column / row))
        for share, area in field.areas.items()
    }
    side = math.sqrt(field.areas[0.95])
    fit, columns = field.profile_gaussian, np.arange(field.map.shape[1])
    bell = np.exp(-0.5 * ((columns - fit.centre[1]) / fit.sigma[1]) ** 2)
    profile = field.profiles[1]
    return MeasuredField(
        mass=field.mass,
        centroid=field.centroid,
        rings=rings,
        profile=profile,
        bell=bell * (bell @ profile) / (bell @ bell),
        caption=f"σ {field.sigma:.1f} px{_mm(field, field.sigma)}, ratio {field.ratio:.2f}\n"
        f"95 % in a square of {side:.0f} px{_mm(field, side)}",
    )


def _mm(field: EffectiveReceptiveField, length: float) -> str:
    known = field.in_mm(length)
    return "" if known is None else f" = {known:.0f} mm"
