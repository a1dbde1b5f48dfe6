# SPDX-License-Identifier: Apache-2.0
"""The operating point: what it belongs to, how it is refused elsewhere, and what a site of its own choice is called."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner
from written_runs import POINT, TRANSFORMS, WEIGHTS, manifest, write_run

from monai_cnnprimer.commands.lock import app
from monai_cnnprimer.networks import WeightsError
from monai_cnnprimer.run_directory import describe_sha256
from monai_cnnprimer.validate.operating_point import Retune, lock, read_operating_point, write_operating_point
from monai_cnnprimer.validate.runs import read_run

HASHES = {"weights_sha256": WEIGHTS, "transforms_sha256": describe_sha256(TRANSFORMS)}


@pytest.fixture(scope="module")
def internal(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "internal", count=200))


@pytest.mark.parametrize(
    ("criterion", "figure", "share"),
    [("specificity=0.90", "specificity", 0.9), ("sensitivity=0.95", "sensitivity", 0.95)],
)
def test_lock_keeps_its_promise_on_the_cases_that_chose_it(internal, criterion, figure, share):
    point = lock(internal, criterion)
    table = internal.predictions
    called = table["probability"] >= point["threshold"]
    wanted = 1 if figure == "sensitivity" else 0
    right = (called == (wanted == 1))[table["label"] == wanted]
    assert point[figure]["k"] == right.sum() >= share * len(right)
    assert (point["n"], point["patients"], point["site"]) == (200, 100, "internal")
    assert {name: point[name] for name in HASHES} == HASHES
    assert (point["bundle"], point["bundle_version"]) == ("chest_xray_resnet50", "0.1.0")


def test_youden_is_chosen_over_resampled_patients(internal):
    point = lock(internal, "youden")
    assert 0.2 < point["threshold"] < 0.8
    assert point["id"].startswith("youden-")
    assert lock(internal, "youden") == point


def test_the_id_tells_two_operating_points_apart(internal):
    ids = {lock(internal, criterion)["id"] for criterion in ("youden", "specificity=0.90", "specificity=0.95")}
    assert len(ids) == 3


def test_a_run_of_one_class_cannot_choose(tmp_path):
    with pytest.raises(ValueError, match="both classes; this run has 0 with the finding and 20 without"):
        lock(read_run(write_run(tmp_path / "well", positives=0)), "youden")


def test_a_run_without_labels_cannot_choose(tmp_path):
    with pytest.raises(ValueError, match="both classes; this run has 0 with the finding and 0 without"):
        lock(read_run(write_run(tmp_path / "unlabelled", labels=False)), "youden")


def test_a_locked_file_is_not_replaced(internal, tmp_path):
    file = tmp_path / "operating_point.json"
    write_operating_point(lock(internal, "youden"), file)
    write_operating_point(lock(internal, "youden"), file)
    with pytest.raises(ValueError, match="holds a locked operating point already"):
        write_operating_point(lock(internal, "specificity=0.90"), file)


def test_another_model_is_refused_by_the_hash_that_differs(internal, tmp_path):
    file = tmp_path / "operating_point.json"
    write_operating_point(lock(internal, "youden"), file)
    assert read_operating_point(file, **HASHES)["site"] == "internal"
    with pytest.raises(
        WeightsError, match=r"threshold of other weights \(abababab, in use are cdcdcdcd\); .*cnnprimer lock"
    ):
        read_operating_point(file, **HASHES | {"weights_sha256": "cd" * 32})
    with pytest.raises(WeightsError, match="threshold of another preprocessing .* in use is eeeeeeee"):
        read_operating_point(file, **HASHES | {"transforms_sha256": "e" * 64})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda point: json.dumps(point | {"threshold": 0.1}), "changed by hand"),
        (lambda point: json.dumps({"id": "x", "threshold": 0.1}), "has no weights_sha256"),
        (lambda point: json.dumps(point)[:30], "is not a JSON object"),
    ],
)
def test_what_is_no_operating_point_is_told(internal, tmp_path, content, message):
    file = tmp_path / "operating_point.json"
    file.write_text(content(lock(internal, "youden")))
    with pytest.raises(ValueError, match=message):
        read_operating_point(file, **HASHES)


def test_a_run_refuses_the_operating_point_of_another_preprocessing(tmp_path):
    with pytest.raises(WeightsError, match="another preprocessing"):
        write_run(tmp_path / "run", point=POINT | {"transforms_sha256": "e" * 64})
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_operating_point_and_says_what_it_does_not_know(tmp_path, internal):
    run = read_run(write_run(tmp_path / "locked", point=lock(internal, "youden")))
    assert run.operating_point == lock(internal, "youden")
    assert run.run["threshold_id"] == run.operating_point["id"]
    told = {name: value for name, value in POINT.items() if name != "transforms_sha256"}
    run = read_run(write_run(tmp_path / "old", point=told))
    assert "the operating point names no preprocessing" in " ".join(run.run["notes"])


def test_a_threshold_used_on_the_cases_that_chose_it_is_told(tmp_path, internal):
    again = write_run(tmp_path / "again", point=lock(internal, "youden"), run_manifest=manifest("internal", 200))
    assert "chosen on these very cases" in " ".join(read_run(again).run["notes"])


def test_retuning_brands_the_run(tmp_path):
    locked = read_run(write_run(tmp_path / "locked", "south", shift=2.0))
    run = read_run(write_run(tmp_path / "retuned", "south", shift=2.0, retune=Retune("specificity=0.90")))
    assert run.retuned
    assert run.metrics["retuned"] is True
    assert "retuned" not in locked.metrics
    assert run.run["locked"] == {"threshold_id": POINT["id"], "threshold": POINT["threshold"]}
    assert run.run["threshold_id"].startswith("retuned-specificity-0.90-")
    assert set(run.predictions["threshold_id"]) == {run.run["threshold_id"]}
    called = run.predictions["probability"] >= run.run["threshold"]
    assert (run.predictions["predicted"] == called).all()
    assert run.metrics["specificity"]["value"] >= 0.9 > locked.metrics["specificity"]["value"]
    assert np.array_equal(run.predictions["logit"], locked.predictions["logit"])


def test_the_command_writes_the_file_and_says_on_what_it_was_chosen(internal, tmp_path):
    file = tmp_path / "point.json"
    done = CliRunner().invoke(app, [str(internal.path), "--specificity", "0.9", "--output", str(file)])
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())["criterion"] == "specificity=0.9"
    assert "chosen on 200 labelled cases of 100 patients at internal" in done.output
    for wrong in ([], ["--youden", "--specificity", "0.9"]):
        done = CliRunner().invoke(app, [str(internal.path), *wrong, "--output", str(file)])
        assert "give one of --specificity" in str(done.exception)
