# SPDX-License-Identifier: Apache-2.0
"""What MONAI's trainer needs: bfloat16 on the CPU, an order of cases that outlives a kill, a record by epoch."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.inferers import SimpleInferer
from torch import Tensor

from monai_cnnprimer.interruption import cleanup_on_exception, raise_on_sigterm
from monai_cnnprimer.run_directory import PACKAGES, write_atomically

CHECKPOINT = "checkpoint_epoch="


class AutocastInferer(SimpleInferer):
    """The forward pass in bfloat16 and channels-last, logits in float32; `amp=True` does nothing on a CPU.

    Args:
        enabled: False computes in float32.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits `(N, K)` in float32 of `inputs` `(N, 1, H, W)`."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.enabled):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            return super().__call__(inputs, network, *args, **kwargs).float()


class SeededEpochs:
    """Seeds each epoch by its number, so that a training taken up again goes on as if it had never stopped.

    With one or more worker processes, which draw their own seeds from torch's at the start of an epoch, order and
    augmentation then depend on nothing else.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Adds the handler to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds torch for the epoch that begins."""
        torch.manual_seed(1_000_003 * self.seed + engine.state.epoch)


class TrainingRecord:
    """The run directory of a training: `run.json` with its status, `curves.csv` with one row an epoch.

    Stands after the ValidationHandler in the list, so that a row holds the validation of its own epoch. It also stops
    early, where MONAI's EarlyStopHandler would forget at a kill how long nothing got better.

    Args:
        path: the run directory; made if missing.
        bundle_root: the bundle that trains; its `configs/metadata.json` gives name and version.
        settings: what a person would want to compare between runs; goes to MLflow as parameters.
        optimizer: gives the learning rate.
        evaluator: gives the validation's metrics.
        patience: epochs without a better key metric after which training stops; None never stops early.
    """

    def __init__(
        self,
        path: str | Path,
        bundle_root: str | Path,
        settings: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        evaluator: Workflow,
        patience: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
        self.about = {"bundle": metadata["name"], "bundle_version": metadata["version"], "settings": dict(settings)}
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.patience = patience
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Registers the start, iterations, epochs and failure of the trainer's run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        cleanup_on_exception(engine, self._stop)
        raise_on_sigterm(engine)

    def __call__(self, engine: Engine) -> None:
        """Adds the row of an epoch, and ends the training when its patience has run out."""
        row = {"epoch": engine.state.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row["loss"] = sum(self._losses) / len(self._losses)
        row |= {f"validation_{name}": float(value) for name, value in self.evaluator.state.metrics.items()}
        self._losses = []
        self.rows.append(row)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, row, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in one.items()} for one in self.rows)
        write_atomically(self.path / "curves.csv", buffer.getvalue())
        if self.patience is not None and engine.state.epoch - self.best_epoch() >= self.patience:
            engine.terminate()

    def best_epoch(self) -> int:
        """The first epoch of the highest key metric."""
        name = f"validation_{self.evaluator.state.key_metric_name}"
        return int(max(self.rows, key=lambda row: row[name])["epoch"])

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes the figures to `metrics.json`, as `finish_training` measured them, and the status `complete`."""
        figures = {name: results[name] for name in ("threshold", "validation", "test", "size_only") if name in results}
        write_atomically(self.path / "metrics.json", json.dumps(figures, indent=2) + "\n")
        self._write_run("complete")

    def _start(self, engine: Engine) -> None:
        """A training taken up again keeps the rows of the epochs that its checkpoint holds."""
        curves = self.path / "curves.csv"
        if engine.state.epoch and curves.is_file():
            with curves.open(newline="") as file:
                rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            self.rows = [row | {"epoch": int(row["epoch"])} for row in rows if row["epoch"] <= engine.state.epoch]
        self._write_run("running")

    def _iteration(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self._losses.append(output["loss"].item())

    def _stop(self, exception: BaseException) -> None:
        killed = isinstance(exception, SystemExit | KeyboardInterrupt)
        self._write_run("killed" if killed else "failed", type(exception).__name__)

    def _write_run(self, status: str, reason: str = "") -> None:
        versions = {name: version(name) for name in PACKAGES}
        run = {"status": status, "reason": reason, **self.about, "versions": versions}
        write_atomically(self.path / "run.json", json.dumps(run, indent=2) + "\n")


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint in a folder that can be read; one that a kill left half-written is passed over.

    Args:
        folder: where MONAI's `CheckpointSaver` writes `checkpoint_epoch=N.pt`.

    Returns:
        Its path; None where there is none, and training starts from the beginning.
    """
    files = {int(path.stem.removeprefix(CHECKPOINT)): path for path in Path(folder).glob(f"{CHECKPOINT}*.pt")}
    return next((files[epoch] for epoch in sorted(files, reverse=True) if _is_whole(files[epoch])), None)


def _is_whole(path: Path) -> bool:
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return False
    return True
