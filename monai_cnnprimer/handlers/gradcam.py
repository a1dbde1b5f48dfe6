# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM of the cases worth a look, from an evaluator's own forward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.engines.utils import IterationEvents
from torch import Tensor

from monai_cnnprimer.explain.cases import ChosenCases, ExplainedCase, batch_cases, predicted_classes
from monai_cnnprimer.explain.gradcam import GradCam, Target
from monai_cnnprimer.handlers.gradcam_quality import Masks
from monai_cnnprimer.handlers.gradcam_report import GradCamReport
from monai_cnnprimer.handlers.maps import AllMaps
from monai_cnnprimer.interruption import cleanup_on_exception

_log = logging.getLogger(__name__)


class GradCamHandler:
    """Grad-CAM of an evaluator's own forward pass, kept with its image for the cases worth a look, never for all.

    A quarter each are errors, the least confident, the most confident and a random sample, as `ChosenCases` says.
    Every run starts afresh. At its end `output_dir`, if given, holds figures, maps (raw, and as NIfTI over the image)
    and tables of how good they are, as `GradCamReport` says; that runs copies of the network. The small raw maps of all
    cases go there too, so that two runs can be compared.

    Args:
        network: the network that the evaluator runs, once for each batch.
        layers: as in `GradCam`; the sheet of all cases shows the last one.
        max_images: how many cases to keep, whatever the number evaluated.
        target: as in `GradCam`, but `"predicted"` is the class predicted at `threshold`.
        output_dir: the run directory; None writes nothing.
        threshold: probability of class 1 from which it is predicted, where there are two classes.
        masks: from a case id to its regions at the network's input, as `RegionMasks`; None where none are known.
        quality_images: of how many cases the quality is measured that takes further runs, as in `GradCamReport`.
        max_bytes: of the cases held, as in `ChosenCases`.
        seed: of the random sample and of the random weights.

    Attributes:
        cases: the chosen cases of the latest run with their maps, in the order of choice; batch size does not matter.

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
        *,
        threshold: float = 0.5,
        masks: Masks | None = None,
        quality_images: int = 8,
        max_bytes: int = 2**28,
        seed: int = 0,
    ) -> None:
        self.threshold = threshold
        self.target = target
        moved = isinstance(target, str) and target == "predicted" and threshold != 0.5
        self._cam = GradCam(network, layers, partial(_predicted_score, threshold) if moved else target)
        self._choose = partial(ChosenCases, max_images, max_bytes, seed)
        self._chosen = self._choose()
        self._report: GradCamReport | None = None
        if output_dir is not None:
            names = tuple(self._cam.layers)
            folder = Path(output_dir)
            self._report = GradCamReport(folder, network, names, self._cam.target, masks, quality_images, seed)
        self._all = AllMaps(list(self._cam.layers))
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
        engine.add_event_handler(Events.COMPLETED, self._finish)
        cleanup_on_exception(engine, self._stop)

    def __call__(self, engine: Engine) -> None:
        """Offers the cases of the batch to the selection, once an iteration."""
        if self._iteration == engine.state.iteration:
            return
        self._iteration = engine.state.iteration
        forwards, self._cam.forwards = self._cam.forwards, 0
        if forwards != 1:
            raise ValueError(f"the network given to GradCamHandler ran {forwards} times for one batch, not once")
        logits = self._cam.logits
        explained = _explained_classes(logits, self.target, self.threshold)
        cases = batch_cases(engine.state.batch, self._cam.maps, logits, self._seen, self.threshold, explained)
        self._seen += len(cases)
        for case in cases:
            self._chosen.offer(case)
        if self._report is not None:
            self._all.add([case.case_id for case in cases], self._cam.maps, cases[0].image.shape[-2:], explained)

    def _start(self, engine: Engine) -> None:
        self._chosen = self._choose()
        self._all = AllMaps(list(self._cam.layers))
        self._seen = self._iteration = self._cam.forwards = 0
        self._stop()  # a run that was interrupted fires no event at its end
        if self._report is not None:
            self._report.clear()
        self._cam.__enter__()

    def _stop(self, exception: BaseException | None = None) -> None:
        self._cam.__exit__(None, None, None)

    def _finish(self, engine: Engine) -> None:
        self._stop()
        if self._chosen.too_large:
            _log.warning("Grad-CAM: %d cases take more than a quarter of max_bytes each", self._chosen.too_large)
        if self._all.left_out:
            _log.warning("Grad-CAM: %d cases have another size than the first; no maps kept", self._all.left_out)
        if self._report is not None:
            self._report.write(self.cases, self._seen, self._all)


def _predicted_score(threshold: float, logits: Tensor) -> Tensor:
    """Each case's logit of the class predicted at the operating point, `(N,)`; a single logit as it is."""
    columns = predicted_classes(logits, threshold) if logits.shape[1] > 1 else logits.new_zeros(len(logits)).long()
    return logits.gather(1, columns[:, None])[:, 0]


def _explained_classes(logits: Tensor, target: Target, threshold: float) -> list[int] | None:
    """The class that each case's map explains; None where the target is a score of one's own."""
    if callable(target):
        return None
    if logits.shape[1] == 1:
        return [1] * len(logits)
    if isinstance(target, str):
        return predicted_classes(logits, threshold).tolist()
    return torch.as_tensor(target).expand(len(logits)).tolist()
