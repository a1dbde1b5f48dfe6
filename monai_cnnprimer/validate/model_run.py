# SPDX-License-Identifier: Apache-2.0
"""The MLflow run of a locked model: parent of the runs of its sites, with the table of all of them and the report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run
from mlflow.utils.time import get_current_time_millis

from monai_cnnprimer.validate.mlflow_content import metrics_of, read_json
from monai_cnnprimer.validate.mlflow_store import TrackingFailed, calls, is_dead, this_process
from monai_cnnprimer.validate.tracking import RunHandler, record_file, sync_run

FILES = ("validation.json", "sites.csv", "report.html")
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class ModelRun(RunHandler):
    """The parent run of one validation, from the folder that holds `validation.json`; no evaluator is attached.

    A validation that is taken up again takes up its parent run too, so that all its sites stand below one.

    Args:
        output: the folder of the validation.
        tracking_uri: as `RunHandler`.
        experiment_name: as `RunHandler`.
    """

    def __init__(self, output: Path, tracking_uri: str | None = None, experiment_name: str | None = None) -> None:
        run = read_json(output / "validation.json")
        name = f"{run.get('bundle')}, {run.get('threshold_id')}"
        super().__init__(tracking_uri, experiment_name, output_dir=output, run_name=name)

    def open(self) -> str | None:
        """Opens the run; None, with a warning, where MLflow cannot be had."""
        with self._warning("the sites are evaluated without it"):
            self._open(self.begun().get("run_id"))
            return self.run_id
        return None

    def close(self, exception: BaseException | None = None) -> None:
        """Uploads the table and the report, completes the sites' runs, and closes the run."""
        if exception is not None:
            self.fail(exception)
            return
        with self._warning(self._remedy()):
            assert self.output_dir is not None
            sync_validation(self.output_dir, self.store_uri, self.experiment_name)

    def _open(self, run_id: str | None = None) -> Run:
        run = super()._open(run_id)
        if run.info.run_id == run_id:
            with calls(self.store_uri):
                self.client.update_run(run_id, "RUNNING")
                for key, value in this_process().items():
                    self.client.set_tag(run_id, key, value)
                if "exception" in run.data.tags:  # of the attempt that is taken up now
                    self.client.delete_tag(run_id, "exception")
        return run

    def _identity(self) -> str:
        # Sites that chose their own threshold do not stand beside sites that did not.
        return f"{super()._identity()} {self._read('run.json').get('retuned')}"

    def _read(self, name: str) -> dict[str, Any]:
        return super()._read("validation.json") if name == "run.json" else {}

    def _log_files(self) -> None:
        assert self.output_dir is not None
        for file in (self.output_dir / name for name in FILES):
            if file.is_file():
                self.client.log_artifact(self.run_id, str(file))

    def _all_metrics(self, of_engine: Mapping[str, Any], time: int) -> list[Metric]:
        told = self._read("run.json")
        # Of two values at one time MLflow shows the larger, and here a later one replaces an earlier one.
        figures = told.get("figures", {}) | {"all sites": told.get("pooled", {})}  # no site's name has a blank
        return metrics_of(told, figures, get_current_time_millis())


def sync_validation(output: Path, tracking_uri: str | None = None, experiment_name: str | None = None) -> str:
    """Uploads a validation that has ended: the model's run, and below it each site's, where that was not done before.

    Returns:
        The id of the model's run.

    Raises:
        TrackingFailed: the validation goes on, or MLflow cannot be had.
    """
    told, record = read_json(output / "validation.json"), read_json(record_file(output))
    status = _STATUS.get(told.get("status", ""))
    if status is None and not is_dead(record.get("process", {})):
        raise TrackingFailed("the validation has not ended: wait, or give its command again")
    handler = ModelRun(
        output,
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or record.get("tracking_uri"),
        experiment_name or record.get("experiment"),
    )
    parent = handler._open(handler.begun().get("run_id"))
    for site in told.get("sites", {}):
        if (output / site / "run.json").is_file():
            sync_run(output / site, handler.store_uri, handler.experiment_name, parent.info.run_id)
    handler._upload(parent, status or "KILLED", {})
    return str(parent.info.run_id)
