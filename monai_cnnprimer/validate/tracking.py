# SPDX-License-Identifier: Apache-2.0
"""MLflow mirrors the run directory: a new run each time, closed whatever happens, uploaded in one batch, now or later.

A server that does not answer costs a warning and at most 15 seconds; `sync` uploads the directory when it is back.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from ignite.engine import Engine, Events
from mlflow.entities import LifecycleStage, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from monai.handlers import MLFlowHandler

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.interruption import cleanup_on_exception, raise_on_sigterm
from monai_cnnprimer.run_directory import digest_of
from monai_cnnprimer.validate.mlflow_content import curves_of, dataset_of, metrics_of, params_of, read_json, tags_of
from monai_cnnprimer.validate.mlflow_store import (
    HOST_TAG,
    TrackingFailed,
    artifacts_beside,
    calls,
    creation_lock,
    is_dead,
    probe,
    public,
    store_uri,
    this_process,
)

DEFAULT_EXPERIMENT = "monai_cnnprimer"
PARENT_RUN = "CNNPRIMER_PARENT_RUN"
"""Environment variable: the MLflow run that a run of this process is a child of, where the same store has it."""
_IDENTITY = (
    "site",
    "bundle",
    "bundle_version",
    "weights_sha256",
    "transforms_sha256",
    "manifest_sha256",
    "threshold_id",
)
_STATUS_OF_RUN_JSON = {"complete": "FINISHED", "failed": "FAILED", "killed": "KILLED"}

_log = logging.getLogger(__name__)


class RunHandler(MLFlowHandler):
    """One new MLflow run for one run of an evaluator: FINISHED, FAILED or KILLED, never left open, never shared.

    Stands last in the list of handlers, so that the run directory is complete when it is uploaded. Where MLflow cannot
    be had, the evaluation goes on with a warning. Runs that a killed process of this machine left RUNNING in the
    experiment are closed as KILLED. Inside an active MLflow run of the same store the new run is its child, and so it
    is of the run that the environment variable ``CNNPRIMER_PARENT_RUN`` names.

    Unlike its parent class it opens no store before the run starts, and an explicit `tracking_uri` stands above the
    environment variable.

    Args:
        tracking_uri: server or database; default is ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
        experiment_name: default is the active MLflow run's experiment, else ``monai_cnnprimer``.
        tags: added to those that `output_dir` gives (site, bundle, hashes, operating point), and above them.
        output_dir: the run directory: ``run.json``, ``metrics.json`` and all files in it. Without one, the engine's
            own metrics are logged.
        run_name: default is the site.
        experiment_param: parameters to log beside seed, threshold and versions.
        artifact_location: for a new experiment; default for SQLite is ``mlruns`` beside the database.

    Raises:
        ValueError: `tracking_uri` is a folder, which MLflow 3.13 and newer refuse.
    """

    client: Any
    experiment: Any
    cur_run: Any

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        run_name: str | None = None,
        experiment_param: Mapping[str, Any] | None = None,
        artifact_location: str | None = None,
    ) -> None:
        # The parent's constructor opens the store: migrations, or minutes on a dead database. `_connect` calls it.
        self.store_uri = store_uri(tracking_uri)
        self.experiment_name = experiment_name or DEFAULT_EXPERIMENT
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.run_id: str | None = None
        self.client = self.experiment = self.cur_run = None
        self._joins_experiment_of_parent = experiment_name is None
        self._given_tags = dict(tags or {})
        self._tags = dict(self._given_tags)
        self._run_name = run_name
        self._params = dict(experiment_param or {})
        self._artifact_location = artifact_location
        self._ended = False

    def attach(self, engine: Engine) -> None:
        """Registers the start, the end, failure and SIGTERM of `engine`'s run."""
        engine.add_event_handler(Events.COMPLETED, self.finish)
        cleanup_on_exception(engine, self.fail)
        # Between them, so that SIGTERM is heard of from before the start until after the upload.
        raise_on_sigterm(engine)
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Opens a new run; a store that cannot be reached is tried once more at the end."""
        self.cur_run, self.run_id, self._ended = None, None, False
        self._tags = dict(self._given_tags)
        with self._warning("tried once more at the end"):
            self._open()

    def finish(self, engine: Engine) -> None:
        """Uploads the run and closes it as FINISHED."""
        self._end("FINISHED", engine.state.metrics)

    def fail(self, exception: BaseException) -> None:
        """Uploads what there is and closes the run as FAILED, or KILLED after SIGTERM or Ctrl-C."""
        self._tags.setdefault("exception", type(exception).__name__)
        self._end("KILLED" if isinstance(exception, SystemExit | KeyboardInterrupt) else "FAILED", {})

    def _end(self, status: str, metrics: Mapping[str, Any]) -> None:
        # ignite raises EXCEPTION_RAISED twice for an exception inside an iteration.
        if self._ended:
            return
        with self._warning(self._remedy()):
            self._upload(self.cur_run or self._open(), status, metrics)
        # After the upload: a SIGTERM in the midst of it is still to be heard of.
        self._ended = True
        # The parent's `close` would set whatever stands here to FINISHED.
        self.cur_run = None

    @contextmanager
    def _warning(self, remedy: str) -> Iterator[None]:
        try:
            yield
        except TrackingFailed as error:
            _log.warning("%s; the evaluation itself is not affected; %s", error, remedy)

    def _remedy(self) -> str:
        if self.output_dir is None:
            return "nothing was uploaded, and without an output_dir nothing can be later"
        return f"upload it later with: cnnprimer sync {shlex.quote(str(self.output_dir))}"

    def _open(self, run_id: str | None = None) -> Run:
        """Takes up the run that this very directory began, `run_id`, or creates one."""
        self.run_id = run_id
        with calls(self.store_uri):
            # Also when nothing answers: `sync` is to know where this belongs.
            self._record(uploaded=False)
            probe(self.store_uri)
            self._connect()
            self._close_stale_runs()
            self.cur_run = self._known_run(run_id) or self._create_run()
            self.run_id = self.cur_run.info.run_id
            self._record(uploaded=False)
            # No open connection is carried into the loader's worker processes.
            self._dispose_sqlite_store()
            return self.cur_run

    def _connect(self) -> None:
        with creation_lock(self.store_uri):
            super().__init__(
                tracking_uri=self.store_uri,
                experiment_name=self.experiment_name,
                iteration_log=False,
                epoch_log=False,
                artifact_location=self._artifact_location or artifacts_beside(self.store_uri),
            )
        parent = self._active_parent()
        if parent is not None:
            self._tags.setdefault(MLFLOW_PARENT_RUN_ID, parent.info.run_id)
            if self._joins_experiment_of_parent:
                self.experiment = self.client.get_experiment(parent.info.experiment_id)
                self.experiment_name = self.experiment.name
        try:
            self._set_experiment()
        except ValueError as error:
            raise TrackingFailed(f"MLflow: {error}; restore it or give another experiment_name") from None

    def _active_parent(self) -> Run | None:
        active = mlflow.active_run()
        return self._known_run(os.environ.get(PARENT_RUN) if active is None else active.info.run_id)

    def _known_run(self, run_id: str | None) -> Run | None:
        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None

    def _create_run(self) -> Run:
        tags = self._all_tags() | this_process()
        return self.client.create_run(
            self.experiment.experiment_id, run_name=self._run_name or tags.get("site"), tags=tags
        )

    def _close_stale_runs(self) -> None:
        ours = f"attributes.status = 'RUNNING' AND tags.`{HOST_TAG}` = '{this_process().get(HOST_TAG)}'"
        for run in self.client.search_runs([self.experiment.experiment_id], ours):
            if is_dead(run.data.tags):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _upload(self, run: Run, status: str, metrics: Mapping[str, Any]) -> None:
        """One `log_artifacts`, one `log_batch`; FINISHED is said last, FAILED and KILLED while there is time."""
        with calls(self.store_uri):
            probe(self.store_uri)
            if status != "FINISHED":
                self.client.set_terminated(self.run_id, status)
            self._log_files()
            if datasets := dataset_of(self._read("run.json")):
                self.client.log_inputs(self.run_id, datasets)
            self.client.log_batch(
                self.run_id,
                # The run's own start as time: uploading again writes the same points, not a second series.
                metrics=self._all_metrics(metrics, run.info.start_time),
                params=params_of(self._read("run.json"), self._params),
                tags=[RunTag(key, value) for key, value in self._all_tags().items()],
            )
            if status == "FINISHED":
                self.client.set_terminated(self.run_id, status)
            self._record(uploaded=True)
            self._dispose_sqlite_store()

    def _log_files(self) -> None:
        """Uploads the run directory but for its hidden files, such as the rows kept for the next index."""
        if self.output_dir is None:
            return
        with TemporaryDirectory() as shown:
            for path in sorted(self.output_dir.rglob("[!.]*")):
                if path.is_file():
                    link = Path(shown, path.relative_to(self.output_dir))
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path.resolve())
            self.client.log_artifacts(self.run_id, shown)

    def _all_tags(self) -> dict[str, str]:
        return tags_of(self._read("run.json"), self._tags)

    def _all_metrics(self, of_engine: Mapping[str, Any], time: int) -> list[Metric]:
        figures = dict(self._read("metrics.json") or of_engine) | self._read("gradcam.json")
        metrics = metrics_of(self._read("run.json"), figures, time)
        return metrics if self.output_dir is None else metrics + curves_of(self.output_dir / "curves.csv", time)

    def _read(self, name: str) -> dict[str, Any]:
        return {} if self.output_dir is None else read_json(self.output_dir / name)

    def begun(self) -> dict[str, Any]:
        """What is known of the run that the directory began in this store and experiment; empty where there is none."""
        assert self.output_dir is not None
        record = read_json(record_file(self.output_dir))
        target = {"tracking_uri": public(self.store_uri), "experiment": self.experiment_name}
        return record if record.items() >= (target | {"identity": self._identity()}).items() else {}

    def _identity(self) -> str:
        """A hash of what was run on what: a run of MLflow is never completed with another's results."""
        run = self._read("run.json")
        told = {name: run.get(name) for name in _IDENTITY} | run.get("locked", {})
        return digest_of({name: told[name] for name in _IDENTITY})

    def _record(self, uploaded: bool) -> None:
        if self.output_dir is None:
            return
        record = {
            "experiment": self.experiment_name,
            "identity": self._identity(),
            "run": _content(self._read("run.json")),
            "gate": self._read("run.json").get("gate_shortcut"),
            "parent": self._tags.get(MLFLOW_PARENT_RUN_ID),
            "process": this_process(),
            "run_id": self.run_id,
            "tracking_uri": public(self.store_uri),
            "uploaded": uploaded,
        }
        write_atomically(record_file(self.output_dir), json.dumps(record, indent=2) + "\n")


def sync(
    run_directory: str | os.PathLike[str], tracking_uri: str | None = None, experiment_name: str | None = None
) -> str:
    """Uploads a run directory that has ended; one that is uploaded already is left alone.

    The run that the directory began in MLflow is completed; where there is none in that store and experiment, a new
    one is created. The folder of a validation of several sites is uploaded with all of them.

    Args:
        run_directory: holds ``run.json``, or ``validation.json``.
        tracking_uri: default is ``MLFLOW_TRACKING_URI``, else the store the run was meant for.
        experiment_name: default is the experiment the run was meant for, else ``monai_cnnprimer``.

    Returns:
        The id of the MLflow run.

    Raises:
        TrackingFailed: not a run directory, its run goes on, or MLflow cannot be had.
        ValueError: as `RunHandler`.
    """
    directory = Path(run_directory)
    if (directory / "validation.json").is_file():
        from monai_cnnprimer.validate.model_run import sync_validation

        return sync_validation(directory, tracking_uri, experiment_name)
    return sync_run(directory, tracking_uri, experiment_name)


def sync_run(
    directory: Path, tracking_uri: str | None = None, experiment_name: str | None = None, parent: str | None = None
) -> str:
    """As `sync`, for one run directory, as a child of the run `parent` of the same experiment."""
    run, record = read_json(directory / "run.json"), read_json(record_file(directory))
    if not run:
        raise TrackingFailed("there is no run.json in this folder: name the output_dir of a run")
    status = _STATUS_OF_RUN_JSON.get(run.get("status", ""))
    if status is None and not is_dead(record.get("process", {})):
        raise TrackingFailed(f"the run has not ended (status {run.get('status')!r}): wait, or run it again")
    handler = RunHandler(
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or record.get("tracking_uri"),
        experiment_name or record.get("experiment"),
        {} if parent is None else {MLFLOW_PARENT_RUN_ID: parent},
        output_dir=directory,
    )
    begun = handler.begun()
    if begun.get("uploaded"):
        if begun.get("run") != _content(run):
            begun = {}  # another run was in the folder then
        elif parent in (None, begun.get("parent")) and begun.get("gate") == run.get("gate_shortcut"):
            return str(begun["run_id"])
    opened = handler._open(begun.get("run_id"))
    handler._upload(opened, status or "KILLED", {})
    return opened.info.run_id


def _content(run: Mapping[str, Any]) -> str:
    """A hash of what was run; an audit adds its verdict to it later."""
    return digest_of({name: value for name, value in run.items() if name not in ("sha256", "gate_shortcut")})


def record_file(run_directory: Path) -> Path:
    """Where a run directory went in MLflow: beside it, since the address of a database names folders of the machine."""
    directory = run_directory.resolve()
    return directory.with_name(f"{directory.name}.mlflow.json")
