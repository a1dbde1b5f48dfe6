# SPDX-License-Identifier: Apache-2.0
"""The run directory as an evaluator fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.interruption import cleanup_on_exception, raise_on_sigterm
from monai_cnnprimer.run_directory import RunDirectory


class CaseTableHandler:
    """Writes the run directory: one row a case as it is predicted, all tables at the end, with a progress bar.

    Args:
        run: the run directory.
        dataset: the cases being evaluated; those that gave no prediction are read once more to say why.
        summarise: from the table of predictions to the figures of `metrics.json`.
        progress: show a bar on the error stream.
    """

    def __init__(
        self,
        run: RunDirectory,
        dataset: CaseDataset,
        summarise: Callable[[pd.DataFrame], dict[str, Any]],
        progress: bool = True,
    ) -> None:
        self.run = run
        self.dataset = dataset
        self.summarise = summarise
        columns = (TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not progress)

    def attach(self, engine: Engine) -> None:
        """Registers the start, each forward pass, the end and failure of `engine`'s run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        cleanup_on_exception(engine, self._stop)
        raise_on_sigterm(engine)

    def __call__(self, engine: Engine) -> None:
        """Records the batch just predicted; logits `(N, 2)`: no finding, finding."""
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        logits = output["pred"].detach().double()
        finding = (logits[:, 1] - logits[:, 0]).tolist()
        self.run.add(batch["case_id"], finding, logits.softmax(1)[:, 1].tolist())
        self.bar.advance(self.task, len(finding))

    def _start(self, engine: Engine) -> None:
        self._finished = False
        self.task = self.bar.add_task("cases", total=len(self.dataset.cases))
        self.bar.start()

    def _finish(self, engine: Engine) -> None:
        self.bar.stop()
        unread = (case for case in self.dataset.cases if case["case_id"] not in self.run.rows)
        errors = [{"case_id": case["case_id"], **self._why(case)} for case in unread]
        self.run.finish(errors, self.summarise)
        self._finished = True

    def _why(self, case: dict[str, Any]) -> dict[str, str]:
        refused = self.dataset.read(case)[1]
        if refused is None:
            return {"reason": "could be read only at the second attempt; run again to predict it", "attribute": ""}
        return {"reason": refused.reason, "attribute": refused.attribute}

    def _stop(self, exception: BaseException) -> None:
        self.bar.stop()
        if self._finished:  # what fails later, such as an upload, does not undo the evaluation
            return
        killed = isinstance(exception, SystemExit | KeyboardInterrupt)
        self.run.stop("killed" if killed else "failed", type(exception).__name__)
