# SPDX-License-Identifier: Apache-2.0
"""Reading run directories back: what is half written or was changed by hand is refused, and says which file."""

from __future__ import annotations

import json

import pytest
from written_runs import write_run

from monai_cnnprimer.run_directory import TABLES, mark_ended
from monai_cnnprimer.validate.runs import RunError, read_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "north")


@pytest.fixture
def folder(written, tmp_path):
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_run_is_read_with_its_types(written):
    run = read_run(written)
    assert (run.site, run.complete, run.retuned) == ("north", True, False)
    assert len(run.predictions) == len(run.manifest) == run.run["counts"]["predicted"] == 20
    assert (len(run.refused), len(run.errors)) == (1, 0)
    assert str(run.predictions["label"].dtype) == "Int64"
    assert str(run.predictions["probability"].dtype) == "float64"
    assert run.metrics["auroc"]["n"] == 20
    assert run.operating_point["threshold"] == 0.5
    table = run.table()
    assert set(table["sex"]) == {"M", "F"}
    assert len(table) == 20


@pytest.mark.parametrize("name", TABLES)
def test_a_file_changed_by_hand_is_told(folder, name):
    text = (folder / name).read_text()
    changed = text.replace("0.5", "0.4") if name.endswith("json") else text + "\n"
    assert changed != text
    (folder / name).write_text(changed)
    with pytest.raises(RunError, match=rf"{name} is not as the run wrote it"):
        read_run(folder)


@pytest.mark.parametrize(
    ("entry", "value"), [("site", "south"), ("threshold", 0.1), ("status", "failed"), ("retuned", True)]
)
def test_run_json_changed_by_hand_is_told(folder, entry, value):
    told = json.loads((folder / "run.json").read_text())
    assert told[entry] != value
    (folder / "run.json").write_text(json.dumps(told | {entry: value}))
    with pytest.raises(RunError, match=r"run\.json is not as the run wrote it"):
        read_run(folder)


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "manifest.csv"])
def test_a_half_copied_folder_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        read_run(folder)


def test_half_a_run_json_is_told(folder):
    (folder / "run.json").write_text((folder / "run.json").read_text()[:100])
    with pytest.raises(RunError, match=r"run\.json is half written"):
        read_run(folder)


def test_what_is_no_run_directory_is_told(tmp_path):
    with pytest.raises(RunError, match="no run directory; name the output of a run"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        read_run(tmp_path / "nowhere")


def test_a_run_that_was_killed_is_read_only_by_those_who_ask_for_it(folder):
    (folder / "predictions.csv").unlink()
    mark_ended(folder, "killed", "ended by SIGKILL")
    with pytest.raises(RunError, match=r"not complete, its status is killed \(ended by SIGKILL\)"):
        read_run(folder)
    run = read_run(folder, unfinished=True)
    assert (run.complete, run.predictions.empty, len(run.manifest)) == (False, True, 20)
