# SPDX-License-Identifier: Apache-2.0
"""One model at several sites: kept, taken up, told; the sites' processes are stand-ins, MLflow is real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from rich.console import Console
from scipy.ndimage import gaussian_filter
from test_tracking import dead_server, empty_store, runs_in, store  # noqa: F401
from typer.testing import CliRunner
from written_runs import BUNDLE, POINT, WEIGHTS, write_run

from monai_cnnprimer.commands.validate import app
from monai_cnnprimer.networks import WeightsError
from monai_cnnprimer.run_directory import mark_ended
from monai_cnnprimer.validate import validation
from monai_cnnprimer.validate.locked_model import LockedModel, locked_model
from monai_cnnprimer.validate.runs import read_run
from monai_cnnprimer.validate.sites import Site
from monai_cnnprimer.validate.tracking import record_file, sync

PROCESS = Path(__file__).parent / "site_process.py"
MODEL = LockedModel(
    BUNDLE,
    {
        "bundle": "chest_xray_resnet50",
        "bundle_version": "0.1.0",
        "weights_sha256": WEIGHTS,
        "transforms_sha256": POINT["transforms_sha256"],
        "threshold": 0.5,
        "threshold_id": POINT["id"],
    },
)


@pytest.fixture(scope="session")
def finished_sites(tmp_path_factory):
    """What the processes of two sites leave when all goes well."""
    folder = tmp_path_factory.mktemp("finished")
    return {name: write_run(folder / name, count=count) for name, count in (("north", 6), ("south", 8))}


@pytest.fixture
def sites(tmp_path, finished_sites, monkeypatch):
    """Two sites; what becomes of each is written into its export."""
    for name in finished_sites:
        (tmp_path / "exports" / name).mkdir(parents=True)
        (tmp_path / "exports" / name / "fate").write_text("complete")

    def command(bundle, site, directory, overlays, settings):
        fate = (site.export / "fate").read_text()
        return [sys.executable, str(PROCESS), fate, str(directory), str(finished_sites[site.name])]

    monkeypatch.setattr(validation, "bundle_command", command)
    return [Site(name, tmp_path / "exports" / name) for name in finished_sites]


@pytest.fixture(autouse=True)
def _store(store, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


def validate(sites, output, model=MODEL, **options):
    return validation.validate_sites(model, sites, output, console=Console(quiet=True), **options)


def becomes(site, fate):
    (site.export / "fate").write_text(fate)


def started(output):
    file = output / "started"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(line.split()[0] for line in lines)


def test_sites_end_in_one_table_and_below_one_run(sites, tmp_path, store):  # noqa: F811
    validated = validate(sites, tmp_path / "out")
    assert validated.passed
    table = pd.read_csv(tmp_path / "out" / "sites.csv")
    assert table["site"].tolist() == ["north", "south"]
    assert table["status"].tolist() == ["complete"] * 2
    assert table["accepted"].tolist() == [6, 8]
    metrics = read_run(tmp_path / "out" / "south").metrics
    assert table["auroc"][1] == pytest.approx(metrics["auroc"]["value"], abs=1e-5)
    parent, *children = sorted(runs_in(store), key=lambda run: run.data.tags.get("site", ""))
    assert [run.data.tags["site"] for run in children] == ["north", "south"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert parent.data.tags["weights.sha256"] == WEIGHTS
    assert parent.data.tags["operating_point"] == POINT["id"]
    assert parent.data.metrics["counts.complete"] == 2
    assert parent.data.metrics["south.auroc.low"] == metrics["auroc"]["low"]
    files = {item.path for item in MlflowClient(store).list_artifacts(parent.info.run_id)}
    assert files == {"validation.json", "sites.csv"}
    together = json.loads((tmp_path / "out" / "validation.json").read_text())["pooled"]
    assert together["auroc"]["n"] == 14
    assert together["site_probe"]["reason"] == "no features were kept at north, south"
    assert parent.data.metrics["all sites.auroc"] == together["auroc"]["value"]


def test_features_and_hashes_of_the_sites_are_held_against_each_other(tmp_path, finished_sites, monkeypatch, store):  # noqa: F811
    random = np.random.default_rng(0)
    images = np.stack([gaussian_filter(image, 2) for image in random.normal(size=(40, 64, 64))]).astype(np.float32)
    for shift, name in enumerate(("north", "south")):
        features = random.normal(size=(40, 64)) + 3 * shift
        made = write_run(tmp_path / "done" / name, count=40, features=features, images=images[::-1] * (1 + shift))
        monkeypatch.setitem(finished_sites, name, made)
        (tmp_path / "exports" / name).mkdir(parents=True)
    command = validation_command(finished_sites)
    monkeypatch.setattr(validation, "bundle_command", command)
    sites = [Site(name, tmp_path / "exports" / name) for name in ("north", "south")]
    validated = validate(sites, tmp_path / "out")
    assert validated.passed  # copies are told; whether they are the same patient's, a person must see
    assert "north and south: 40 pairs of images are nearly the same" in validated.notes
    told = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert "40 pairs" in told["shared"][0]
    assert told["pooled"]["site_probe"]["low"] > 0.9
    (parent,) = [run for run in runs_in(store) if "site" not in run.data.tags]
    assert parent.data.metrics["all sites.site_probe"] == told["pooled"]["site_probe"]["value"]


def validation_command(finished):
    """Each site's process copies what is finished."""

    def command(bundle, site, directory, overlays, settings):
        return [sys.executable, str(PROCESS), "complete", str(directory), str(finished[site.name])]

    return command


def test_the_same_command_again_takes_up_only_what_is_missing(sites, tmp_path, store):  # noqa: F811
    output = tmp_path / "out"
    becomes(sites[1], "kill")
    validated = validate(sites, output)
    assert (validated.passed, started(output)) == (False, ["north", "south"])
    assert [result.status for result in validated.results] == ["complete", "killed"]
    assert json.loads((output / "south" / "run.json").read_text())["status"] == "killed"
    before = (output / "north" / "run.json").stat().st_mtime_ns
    becomes(sites[1], "complete")
    assert validate(sites, output).passed
    assert started(output) == ["south"]
    assert (output / "north" / "run.json").stat().st_mtime_ns == before
    assert validate(sites, output).passed
    assert started(output) == []
    (model,) = [run for run in runs_in(store) if "site" not in run.data.tags]
    assert (model.data.metrics["counts.complete"], model.data.metrics["counts.killed"]) == (2, 0)
    statuses = sorted((run.data.tags.get("site", "model"), run.info.status) for run in runs_in(store))
    assert statuses == [
        ("model", "FINISHED"),
        ("north", "FINISHED"),
        ("south", "FINISHED"),
        ("south", "KILLED"),
    ]


def test_a_site_is_run_again_when_its_export_model_or_result_changed(sites, tmp_path):
    output = tmp_path / "out"
    validate(sites, output)
    assert started(output) == ["north", "south"]
    (sites[0].export / "another.dcm").write_text("new")
    validate(sites, output)
    assert started(output) == ["north"]
    (output / "south" / "predictions.csv").write_text("edited\n")
    validate(sites, output)
    assert started(output) == ["south"]
    validate(sites, output, LockedModel(BUNDLE, MODEL.identity | {"threshold": 0.4}))
    assert started(output) == ["north", "south"]


def test_an_image_at_two_sites_is_told_and_does_not_pass(sites, tmp_path, finished_sites, monkeypatch):
    other = write_run(tmp_path / "other", "south", prefix="north")
    monkeypatch.setitem(finished_sites, "south", other)
    validated = validate(sites, tmp_path / "out")
    assert not validated.passed
    assert "north and south: 6 images stand at both sites" in validated.notes
    assert "north and south: 3 patients have images at both sites" in validated.notes
    told = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert (told["status"], "6 images" in told["shared"][0]) == ("complete", True)


def test_ages_that_were_not_expected_are_told(sites, tmp_path):
    adults = Site("north", sites[0].export, ages=[40, None])
    (note,) = [note for note in validate([adults], tmp_path / "out").notes if "ages" in note]
    assert note.startswith("north: 2 of 6 images are of other ages than the 40 to any expected")


def test_one_validation_at_a_time_writes_a_folder(sites, tmp_path, monkeypatch):
    script = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), 2); print(flush=True); time.sleep(60)"
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("monai_cnnprimer.atomic._LOCK_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process is writing this output folder"):
            validate(sites, tmp_path / "out")
        other.kill()
    assert validate(sites, tmp_path / "out").passed


def test_a_dead_server_costs_little_and_sync_uploads_all(sites, tmp_path, store, dead_server, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_server)
    before = time.monotonic()
    assert validate(sites, tmp_path / "out").passed
    assert time.monotonic() - before < 15
    assert f"cnnprimer sync {tmp_path / 'out'}" in caplog.text
    assert "secret" not in caplog.text + record_file(tmp_path / "out").read_text()
    parent = sync(tmp_path / "out", store)
    assert sync(tmp_path / "out", store) == parent
    runs = {run.data.tags.get("site"): run for run in runs_in(store)}
    assert runs.keys() == {None, "north", "south"}
    assert runs["north"].data.tags["mlflow.parentRunId"] == parent == runs[None].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.fixture
def server(tmp_path, empty_store):  # noqa: F811
    """A real `mlflow server` on the loopback, started anew by each call; the process and its address."""
    database = shutil.copy(empty_store, tmp_path / "server.db")
    processes = []

    def start(port):
        words = ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", *words, "--port", str(port), "--workers", "1"]
        log = (tmp_path / "server.log").open("a")
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        log.close()
        _wait_until_it_answers(processes[-1], port, tmp_path / "server.log")
        return processes[-1]

    yield start
    for process in processes:
        _kill(process)


def _wait_until_it_answers(process, port, log):
    from urllib.error import URLError
    from urllib.request import urlopen

    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def _kill(process):
    """kill -9 for the server and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(900)
def test_a_server_killed_in_the_middle_loses_nothing(sites, tmp_path, server, monkeypatch, caplog):
    """Alive when the first site is done, killed with -9 before the second, started again: `sync` completes it all."""
    port = int(dead_port())
    running = server(port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    real, times = validation._Validation._ended, []

    def ended(self, result):
        real(self, result)
        if not times:
            times.append(time.monotonic())
            _kill(running)

    monkeypatch.setattr(validation._Validation, "_ended", ended)
    validated = validate(sites, tmp_path / "out", jobs=1)
    assert time.monotonic() - times[0] < 15 + 5
    assert validated.passed
    assert "cnnprimer sync" in caplog.text
    server(port)
    parent = sync(tmp_path / "out")
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("monai_cnnprimer").experiment_id
    runs = {run.data.tags.get("site"): run for run in client.search_runs([experiment])}
    assert runs.keys() == {None, "north", "south"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("north", "south")} == {parent}
    assert "predictions.csv" in {item.path for item in client.list_artifacts(runs["south"].info.run_id)}


def dead_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_what_is_interrupted_is_killed_in_mlflow_too(sites, tmp_path, store, monkeypatch):  # noqa: F811
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "run_sites", interrupt)
        with pytest.raises(KeyboardInterrupt):
            validate(sites, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "validation.json").read_text())["status"] == "killed"
    (run,) = runs_in(store)
    assert (run.info.status, run.data.tags["exception"]) == ("KILLED", "KeyboardInterrupt")
    assert validate(sites, tmp_path / "out").passed
    (run,) = [run for run in runs_in(store) if "site" not in run.data.tags]
    assert (run.info.status, "exception" in run.data.tags) == ("FINISHED", False)


def test_the_data_set_is_told_by_our_own_digest_once(sites, tmp_path, store):  # noqa: F811
    validate(sites[:1], tmp_path / "out")
    record_file(tmp_path / "out" / "north").write_text(
        json.dumps(json.loads(record_file(tmp_path / "out" / "north").read_text()) | {"uploaded": False})
    )
    sync(tmp_path / "out", store)
    (run,) = [run for run in runs_in(store) if "site" in run.data.tags]
    (entry,) = run.inputs.dataset_inputs
    sha256 = read_run(tmp_path / "out" / "north").run["manifest_sha256"]
    assert (entry.dataset.name, entry.dataset.digest) == ("north", sha256[:36])
    assert json.loads(entry.dataset.source)["sha256"] == sha256
    assert [tag.value for tag in entry.tags] == ["evaluation"]


def test_the_model_is_checked_before_anything_starts(tmp_path):
    model = locked_model("chest_xray_resnet50")
    shipped = json.loads((BUNDLE / "models" / "operating_point.json").read_text())
    assert model.identity["threshold"] == shipped["threshold"]
    del shipped["sha256"]  # with it, a change by hand is what is told
    other = shipped | {"transforms_sha256": "e" * 64}
    (tmp_path / "point.json").write_text(json.dumps(other))
    with pytest.raises(WeightsError, match="another preprocessing"):
        locked_model("chest_xray_resnet50", tmp_path / "point.json")
    (tmp_path / "point.json").write_text(json.dumps(shipped | {"weights_sha256": "e" * 64}))
    with pytest.raises(WeightsError, match="other weights"):
        locked_model("chest_xray_resnet50", tmp_path / "point.json")
    with pytest.raises(FileNotFoundError, match="no such operating point"):
        locked_model("chest_xray_resnet50", tmp_path / "none.json")


def test_views_leave_the_preprocessing_as_it_is_and_its_size_does_not():
    from monai_cnnprimer.validate.locked_model import preprocessing_sha256

    usual = preprocessing_sha256(BUNDLE)
    assert preprocessing_sha256(BUNDLE, {"views": ["PA"]}) == usual
    assert preprocessing_sha256(BUNDLE, {"image_size": 192}) != usual


def test_the_command_and_its_exit_codes(sites, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_cnnprimer.validate.locked_model.locked_model", lambda *asked: MODEL)
    words = [
        "--output",
        str(tmp_path / "out"),
        "--site",
        f"north={sites[0].export}",
        "--site",
        f"south={sites[1].export}",
    ]
    becomes(sites[1], "memory")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "south: failed, out of memory (MemoryError): give fewer jobs" in " ".join(done.output.split())
    becomes(sites[1], "complete")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "Research use only, not for clinical use" in done.output
    for wrong, message in (
        ([], "give either a YAML of the sites or --site"),
        (words[2:], "give a folder for the results"),
        (["sites.yaml", *words], "give either a YAML"),
        (["sites.yaml", "--labels", "north=x.csv"], "labels of sites in a YAML stand there"),
        ([*words, "--internal", "west"], "--internal west is none of the sites"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert message in str(done.exception)


def test_a_yaml_states_sites_and_folder(sites, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_cnnprimer.validate.locked_model.locked_model", lambda *asked: MODEL)
    (tmp_path / "sites.yaml").write_text("output: out\ninternal: north\nsites: {north: {export: exports/north}}\n")
    done = CliRunner().invoke(app, [str(tmp_path / "sites.yaml")])
    assert done.exit_code == 0, done.exception
    assert read_run(tmp_path / "out" / "north").complete
    assert "No site is named as internal" not in (tmp_path / "out" / "report.html").read_text()


def test_a_run_marked_by_hand_as_killed_is_run_again(sites, tmp_path):
    validate(sites[:1], tmp_path / "out")
    started(tmp_path / "out")
    mark_ended(tmp_path / "out" / "north", "killed", "by hand")
    assert validate(sites[:1], tmp_path / "out").passed
    assert started(tmp_path / "out") == ["north"]
