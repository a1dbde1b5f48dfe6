# SPDX-License-Identifier: Apache-2.0
"""`RunHandler` and `sync` on real MLflow stores: statuses, no mixing of sites, one upload, dead servers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import ROCAUC, MLFlowHandler, from_engine

from monai_cnnprimer.interruption import Terminated
from monai_cnnprimer.validate.mlflow_store import HOST_TAG, PROCESS_TAG, this_process
from monai_cnnprimer.validate.tracking import RunHandler, TrackingFailed, record_file, sync

RUN = {
    "status": "complete",
    "bundle": "chest_xray_resnet50",
    "bundle_version": "0.1.0",
    "weights_sha256": "ab" * 32,
    "manifest_sha256": "cd" * 32,
    "site": "north",
    "seed": 0,
    "threshold": 0.4,
    "threshold_id": "youden-1",
    "versions": {"torch": "2.13.0"},
    "counts": {"accepted": 8, "refused": 1, "errors": 0, "predicted": 8},
    "command": "--dataset_dir /exports/doe_john",
}
METRICS = {
    "auroc": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8},
    "sensitivity@0.4": {"value": None, "low": None, "high": None, "n": 0},
}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store after its migrations, which take seconds: tests copy the file."""
    database = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def run_directory(tmp_path) -> Path:
    """What the other handlers leave: tables, and files of one name in two folders."""
    directory = tmp_path / "run"
    for folder in ("maps/first", "maps/second"):
        (directory / folder).mkdir(parents=True)
        (directory / folder / "map.txt").write_text(folder)
    (directory / "run.json").write_text(json.dumps(RUN))
    (directory / "metrics.json").write_text(json.dumps(METRICS))
    return directory


@pytest.fixture
def dead_server() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://doctor:secret@127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def sigterm_received() -> Iterator[list[int]]:
    """A handler of SIGTERM that stood before ours."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


class Network(torch.nn.Module):
    """The mean of an image; before the third batch it does what it is told."""

    def __init__(self, event: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.batches, self.event = 0, event

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        if self.batches == 3:
            self.event()
        return image.mean(dim=(1, 2, 3))[:, None]


def corrupt() -> None:
    raise RuntimeError("corrupt dicom")


def interrupt() -> None:
    raise KeyboardInterrupt


def evaluate(handler: MLFlowHandler, event: Callable[[], object] = lambda: None) -> SupervisedEvaluator:
    """Eight cases; of the 15 pairs of the two classes the mean orders 13 rightly."""
    labels = [0, 0, 0, 1, 0, 0, 1, 1]
    cases = [{"image": torch.full((1, 2, 2), float(i)), "label": torch.tensor([y])} for i, y in enumerate(labels)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases), batch_size=2),
        network=Network(event),
        key_val_metric={"auc": ROCAUC(output_transform=from_engine(["pred", "label"]))},
        val_handlers=[handler],
    )
    evaluator.run()
    return evaluator


def runs_in(store: str, experiment: str = "monai_cnnprimer") -> list[Any]:
    """All runs, first to last."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])


def artifacts(store: str, run_id: str, path: str | None = None) -> set[str]:
    found = set()
    for entry in MlflowClient(store).list_artifacts(run_id, path):
        found |= artifacts(store, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def test_sites_are_never_mixed(store):
    # MONAI's handler makes one run of these: FINISHED, site A, the AUROC of B.
    with pytest.raises(RuntimeError, match="corrupt dicom"):
        evaluate(RunHandler(store, "external", {"site": "A"}), corrupt)
    evaluate(RunHandler(store, "external", {"site": "B"}))
    first, second = runs_in(store, "external")
    assert (first.info.status, first.data.tags["site"], first.data.metrics) == ("FAILED", "A", {})
    assert (second.info.status, second.data.tags["site"]) == ("FINISHED", "B")
    assert second.data.metrics == {"auc": pytest.approx(13 / 15)}
    assert first.data.tags["exception"] == "RuntimeError"
    assert "exception" not in second.data.tags


def test_one_handler_used_twice_makes_two_runs(store):
    handler = RunHandler(store)
    with pytest.raises(RuntimeError, match="corrupt dicom"):
        evaluate(handler, corrupt)
    evaluate(handler)
    failed, finished = runs_in(store)
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert "exception" not in finished.data.tags
    handler.close()
    assert [run.info.status for run in runs_in(store)] == ["FAILED", "FINISHED"]


def test_run_directory_is_mirrored(store, run_directory):
    evaluate(RunHandler(store, tags={"operating_point": "locked"}, output_dir=run_directory))
    (run,) = runs_in(store)
    expected = {
        "site": "north",
        "bundle": "chest_xray_resnet50",
        "bundle.version": "0.1.0",
        "weights.sha256": "ab" * 32,
        "manifest.sha256": "cd" * 32,
        "operating_point": "locked",
        "mlflow.runName": "north",
    }
    assert run.data.tags == expected | this_process()
    assert run.data.params == {"seed": "0", "threshold": "0.4", "versions.torch": "2.13.0"}
    assert run.data.metrics == {
        "auroc": 0.75,
        "auroc.low": 0.5,
        "auroc.high": 1.0,
        "auroc.n": 8,
        "sensitivity_0.4.n": 0,
        "counts.accepted": 8,
        "counts.refused": 1,
        "counts.errors": 0,
        "counts.predicted": 8,
    }
    files = {"run.json", "metrics.json", "maps/first/map.txt", "maps/second/map.txt"}
    assert artifacts(store, run.info.run_id) >= files


def test_failed_run_leaves_its_directory_too(store, run_directory):
    with pytest.raises(RuntimeError, match="corrupt dicom"):
        evaluate(RunHandler(store, output_dir=run_directory), corrupt)
    (run,) = runs_in(store)
    assert run.info.status == "FAILED"
    assert "maps/second/map.txt" in artifacts(store, run.info.run_id)
    assert not [name for name in artifacts(store, run.info.run_id) if "mlflow" in name]
    assert json.loads(record_file(run_directory).read_text())["uploaded"] is True


def test_hidden_files_stay_at_home(store, run_directory):
    (run_directory / ".index-0.jsonl").write_text("{}")
    handler = RunHandler(store, output_dir=run_directory)
    evaluate(handler)
    names = artifacts(store, handler.run_id)
    assert "run.json" in names
    assert not [name for name in names if "index-" in name]


@pytest.mark.parametrize("event", [lambda: None, corrupt])
def test_everything_goes_in_one_batch(store, run_directory, monkeypatch, event):
    calls = []
    for name in ("log_batch", "log_artifacts", "log_metric", "log_param", "set_tag", "log_artifact"):
        real = getattr(MlflowClient, name)
        monkeypatch.setattr(MlflowClient, name, lambda *a, real=real, **k: calls.append(real.__name__) or real(*a, **k))
    try:
        evaluate(RunHandler(store, output_dir=run_directory), event)
    except RuntimeError:
        assert event is corrupt
    assert calls == ["log_artifacts", "log_batch"]


def test_sigterm_kills_the_run_and_is_handed_on(store, sigterm_received):
    ours = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stopped:
        evaluate(RunHandler(store), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.value.code == 143
    assert [run.info.status for run in runs_in(store)] == ["KILLED"]
    assert sigterm_received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is ours


def test_sigterm_is_left_as_it_was_after_a_run(store, sigterm_received):
    ours = signal.getsignal(signal.SIGTERM)
    seen = []
    evaluate(RunHandler(store), lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    assert seen[0] is not ours
    assert signal.getsignal(signal.SIGTERM) is ours


def test_sigterm_during_the_upload_kills_the_run(store, run_directory, monkeypatch):
    real = MlflowClient.log_batch

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(MlflowClient, "log_batch", real)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MlflowClient, "log_batch", interrupted)
    with pytest.raises(Terminated):
        evaluate(RunHandler(store, output_dir=run_directory))
    assert [run.info.status for run in runs_in(store)] == ["KILLED"]


def test_control_c_kills_the_run(store):
    with pytest.raises(KeyboardInterrupt):
        evaluate(RunHandler(store), interrupt)
    assert [run.info.status for run in runs_in(store)] == ["KILLED"]


@pytest.mark.timeout(900)  # two more processes import torch and MLflow: minutes on a machine that is busy
def test_signals_to_other_processes(store, tmp_path):
    """SIGTERM ends one with 143, its run KILLED; what kill -9 left RUNNING is closed when the next run starts."""
    script = (
        "import sys, time; from pathlib import Path; from test_tracking import RunHandler, evaluate\n"
        "def wait(): Path(sys.argv[2]).touch(); time.sleep(600)\n"
        "evaluate(RunHandler(sys.argv[1], tags={'site': Path(sys.argv[2]).name}), wait)\n"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    with ExitStack() as at_the_end:
        processes = {}
        for name in ("terminated", "killed"):
            command = [sys.executable, "-c", script, store, str(tmp_path / name)]
            processes[name] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            at_the_end.callback(processes[name].kill)
        while not all((tmp_path / name).exists() for name in processes):
            assert [process.poll() for process in processes.values()] == [None, None], "a process did not start"
            time.sleep(0.1)
        processes["terminated"].send_signal(signal.SIGTERM)
        processes["killed"].kill()
        assert processes["terminated"].wait(120) == 143
        assert processes["killed"].wait(120) == -signal.SIGKILL
    assert {run.data.tags["site"]: run.info.status for run in runs_in(store)} == {
        "terminated": "KILLED",
        "killed": "RUNNING",
    }
    evaluate(RunHandler(store, tags={"site": "next"}))
    assert {run.data.tags["site"]: run.info.status for run in runs_in(store)} == {
        "terminated": "KILLED",
        "killed": "KILLED",
        "next": "FINISHED",
    }


def test_only_our_dead_runs_are_closed(store):
    client = MlflowClient(store)
    experiment = client.create_experiment("monai_cnnprimer")
    here = this_process()
    pid, start, namespace, boot = here[PROCESS_TAG].split()
    left_running = {
        "alive": here,
        "number used again": here | {PROCESS_TAG: f"{pid} {int(start) - 1} {namespace} {boot}"},
        "before a restart": here | {PROCESS_TAG: f"{pid} {start} {namespace} 00000000"},
        "other container": here | {PROCESS_TAG: f"999999 {start} pid:[1] {boot}"},
        "other machine": here | {HOST_TAG: "0" * 16, PROCESS_TAG: f"999999 {start} {namespace} {boot}"},
        "not ours": {},
    }
    for name, tags in left_running.items():
        client.create_run(experiment, run_name=name, tags=tags)
    evaluate(RunHandler(store, run_name="new"))
    closed = {run.info.run_name for run in runs_in(store) if run.info.status == "KILLED"}
    assert closed == {"number used again", "before a restart"}


def test_dead_server_costs_a_warning(dead_server, store, run_directory, caplog):
    before = time.monotonic()
    evaluator = evaluate(RunHandler(dead_server, output_dir=run_directory))
    assert time.monotonic() - before < 15
    assert evaluator.state.metrics["auc"] == pytest.approx(13 / 15)
    assert f"upload it later with: cnnprimer sync {run_directory}" in caplog.text
    record = record_file(run_directory).read_text()
    assert json.loads(record)["uploaded"] is False
    assert "secret" not in record + caplog.text

    run_id = sync(run_directory, store)
    assert sync(run_directory, store) == run_id
    (run,) = runs_in(store)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert (run.data.metrics["auroc.low"], run.data.tags["site"]) == (0.5, "north")
    assert "maps/first/map.txt" in artifacts(store, run_id)


def test_silent_server_costs_a_warning(run_directory, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        evaluate(RunHandler(f"http://127.0.0.1:{silent.getsockname()[1]}", output_dir=run_directory))
    assert time.monotonic() - before < 15
    assert "does not answer" in caplog.text


def test_dead_server_hides_no_failure(dead_server):
    with pytest.raises(RuntimeError, match="corrupt dicom"):
        evaluate(RunHandler(dead_server), corrupt)


def test_database_that_is_none_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "mlflow.db").write_text("this is not a database, but it is long enough to be read as one " * 20)
    evaluate(RunHandler(f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert "file is not a database" in caplog.text
    assert "without an output_dir nothing can be" in caplog.text


def test_sync_completes_the_run_that_was_begun(store, run_directory, monkeypatch, caplog):
    def disk_full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", disk_full)
        handler = RunHandler(store, output_dir=run_directory)
        evaluate(handler)
    assert "No space left on device" in caplog.text
    assert sync(run_directory) == handler.run_id
    (run,) = runs_in(store)
    assert (run.info.status, run.data.metrics["auroc"]) == ("FINISHED", 0.75)


@pytest.mark.parametrize(("status", "in_mlflow"), [("failed", "FAILED"), ("killed", "KILLED")])
def test_sync_tells_how_the_run_ended(store, run_directory, status, in_mlflow):
    (run_directory / "run.json").write_text(json.dumps(RUN | {"status": status}))
    sync(run_directory, store, "later")
    (run,) = runs_in(store, "later")
    assert run.info.status == in_mlflow


def test_sync_waits_for_a_run_that_goes_on(store, run_directory):
    (run_directory / "run.json").write_text(json.dumps(RUN | {"status": "running"}))
    with pytest.raises(TrackingFailed, match="has not ended"):
        sync(run_directory, store)
    pid, start, *rest = this_process()[PROCESS_TAG].split()
    gone = this_process() | {PROCESS_TAG: " ".join([pid, str(int(start) - 1), *rest])}
    record_file(run_directory).write_text(json.dumps({"process": gone}))
    sync(run_directory, store)
    assert [run.info.status for run in runs_in(store)] == ["KILLED"]


def test_sync_names_what_is_wrong(store, tmp_path, run_directory, dead_server):
    with pytest.raises(TrackingFailed, match=r"no run\.json in this folder"):
        sync(tmp_path, store)
    with pytest.raises(TrackingFailed, match="does not answer"):
        sync(run_directory, dead_server)
    (run_directory / "run.json").write_text('{"status": "comp')
    with pytest.raises(TrackingFailed, match=r"run\.json in the run directory is not a JSON object"):
        sync(run_directory, store)


def test_run_inside_a_run_is_its_child(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    experiment = MlflowClient(store).create_experiment("locked model")
    with mlflow.start_run(experiment_id=experiment) as parent:
        evaluate(RunHandler(tags={"site": "A"}))
        with pytest.raises(RuntimeError, match="corrupt dicom"):
            evaluate(RunHandler(tags={"site": "B"}), corrupt)
        assert mlflow.active_run().info.run_id == parent.info.run_id
        untouched = MlflowClient(store).get_run(parent.info.run_id)
        assert (untouched.info.status, untouched.data.metrics, untouched.data.params) == ("RUNNING", {}, {})
        assert "site" not in untouched.data.tags
    children = [run for run in runs_in(store, "locked model") if run.info.run_id != parent.info.run_id]
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 2
    assert [run.info.status for run in children] == ["FINISHED", "FAILED"]


def test_run_of_another_store_is_no_parent(store, empty_store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}")
    with mlflow.start_run():
        evaluate(RunHandler(store))
    (run,) = runs_in(store)
    assert "mlflow.parentRunId" not in run.data.tags


def test_environment_names_the_store(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    evaluate(RunHandler())
    assert len(runs_in(store)) == 1
    assert dict(os.environ) == before


def test_without_address_the_store_is_the_one_mlflow_shows(store, tmp_path, monkeypatch, run_directory):
    monkeypatch.chdir(tmp_path)
    evaluate(RunHandler(output_dir=run_directory))
    (run,) = runs_in(mlflow.get_tracking_uri())
    assert (tmp_path / "mlruns" / run.info.run_id / "artifacts" / "maps" / "first" / "map.txt").exists()


@pytest.mark.parametrize("address", ["file:///mlruns", "mlruns", "./runs"])
def test_folders_are_refused(address):
    with pytest.raises(ValueError, match="name a database file, sqlite:///mlflow.db, or a server"):
        RunHandler(address)


def test_deleted_experiment_costs_a_warning(store, caplog):
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("gone"))
    evaluate(RunHandler(store, "gone"))
    assert "restore it or give another experiment_name" in caplog.text


def test_long_values_are_cut_and_say_so(store):
    evaluate(RunHandler(store, tags={"note": "n" * 9000}, experiment_param={"sites": "s" * 7000, "short": 3}))
    (run,) = runs_in(store)
    assert (len(run.data.params["sites"]), len(run.data.tags["note"])) == (6000, 8000)
    assert "[cut, 7000 characters, sha256 " in run.data.params["sites"]
    assert run.data.params["short"] == "3"


def test_metrics_keep_their_nesting_and_leave_out_what_is_none(store):
    class Extra(RunHandler):
        def finish(self, engine):
            engine.state.metrics |= {
                "rate": float("nan"),
                "odds": float("inf"),
                "flag": True,
                "none": None,
                "by_sex": {"F": {"auc": torch.tensor(0.5)}, "M": {"auc": 0.25}},
                "per class": torch.tensor([0.5, 1.0]),
                "f1[0], %": 1,
                "f1(0); %": 2,
                "../up": 3,
            }
            super().finish(engine)

    evaluate(Extra(store))
    metrics = runs_in(store)[0].data.metrics
    # Two names become one when cleaned: the later one is told apart by its hash.
    second = "f1_0__ __" + hashlib.sha256(b"f1(0); %").hexdigest()[:8]
    assert metrics == {
        "auc": pytest.approx(13 / 15),
        "by_sex.F.auc": 0.5,
        "by_sex.M.auc": 0.25,
        "per class.0": 0.5,
        "per class.1": 1.0,
        "f1_0__ _": 1,
        second: 2,
        "up": 3,
    }


def test_constructing_opens_nothing(tmp_path, dead_server):
    handler = RunHandler(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", output_dir=tmp_path / "run")
    assert isinstance(handler, MLFlowHandler)
    assert list(tmp_path.iterdir()) == []
    RunHandler(dead_server)
