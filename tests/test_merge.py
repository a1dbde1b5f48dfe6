# SPDX-License-Identifier: Apache-2.0
"""Run directories pooled: every case once, with its site, and nothing that does not belong together."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner
from written_runs import POINT, write_run

from monai_cnnprimer.commands.merge import app
from monai_cnnprimer.run_directory import mark_ended
from monai_cnnprimer.validate.merge import merge_runs
from monai_cnnprimer.validate.operating_point import Retune
from monai_cnnprimer.validate.runs import RunError, read_run
from monai_cnnprimer.validate.statistics import auroc


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(folder / name, count=count)) for name, count in (("north", 20), ("south", 30))]


def test_every_case_stands_once_with_its_site_and_the_figures_are_those_of_all(runs, tmp_path):
    notes = merge_runs(runs, tmp_path)
    merged = read_run(tmp_path)
    assert merged.predictions["site"].value_counts().to_dict() == {"north": 20, "south": 30}
    assert merged.predictions["case_id"].is_unique
    together = pd.concat([run.predictions for run in runs])
    expected = auroc(together["label"].astype(int), together["logit"])
    assert merged.metrics["auroc"]["value"] == pytest.approx(expected.value)
    assert merged.metrics["auroc"]["n"] == 50
    assert merged.run["counts"] == {"accepted": 50, "refused": 2, "predicted": 50, "errors": 0}
    assert merged.run["key_id"] == "0123abcd"
    assert [part["site"] for part in merged.run["merged"]] == ["north", "south"]
    assert merged.operating_point == runs[0].operating_point
    assert notes == [f"{name}: a note on its labels" for name in ("north", "south")]
    sites = pd.read_csv(tmp_path / "sites.csv")
    assert sites["site"].tolist() == ["north", "south"]
    assert sites["auroc"].tolist() == pytest.approx([run.metrics["auroc"]["value"] for run in runs], abs=1e-5)


def test_the_order_of_the_runs_changes_no_table(runs, tmp_path):
    merge_runs(runs, tmp_path / "a")
    merge_runs(runs[::-1], tmp_path / "b")
    for name in ("predictions.csv", "manifest.csv", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_merged_run_is_merged_again(runs, tmp_path):
    merge_runs(runs, tmp_path / "first")
    third = read_run(write_run(tmp_path / "east", count=10))
    merge_runs([read_run(tmp_path / "first"), third], tmp_path / "second")
    assert set(read_run(tmp_path / "second").predictions["site"]) == {"north", "south", "east"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "cd" * 32}, "north and other have different weights: abababab and cdcdcdcd"),
        (
            {"point": POINT | {"id": "youden-12345678"}},
            "different operating point: youden-abababab and youden-12345678",
        ),
        ({"point": POINT | {"threshold": 0.4}}, r"different threshold: 0\.5 and 0\.4"),
        ({"retune": Retune("youden")}, "other: its threshold was chosen on its own cases"),
        ({"prefix": "north"}, "north and other: 20 images stand at both sites: each would be counted twice"),
        ({"site": "north", "prefix": "other"}, "two runs are of a site named north"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path, options, message):
    other = read_run(write_run(tmp_path / "other", **options))
    with pytest.raises(RunError, match=message):
        merge_runs([runs[0], other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_patient_at_two_sites_is_told(runs, tmp_path):
    other = read_run(write_run(tmp_path / "other", patients="north", count=10))
    notes = merge_runs([runs[0], other], tmp_path / "merged")
    assert "north and other: 5 patients have images at both sites" in notes


def test_two_keys_say_what_cannot_be_known(runs, tmp_path):
    other = read_run(write_run(tmp_path / "other", patients="north", key_id="ffffffff"))
    (unknown,) = [note for note in merge_runs([runs[0], other], tmp_path / "merged") if "cannot be told" in note]
    assert unknown.startswith("north and other: their pseudonyms are not known to have one key")
    assert read_run(tmp_path / "merged").run["key_id"] == ""


def test_a_site_without_labels_is_pooled_with_its_calls(runs, tmp_path):
    merge_runs([runs[0], read_run(write_run(tmp_path / "bare", labels=False))], tmp_path / "merged")
    metrics = read_run(tmp_path / "merged").metrics
    assert (metrics["auroc"]["n"], metrics["called_positive"]["n"]) == (20, 40)


def test_the_command_prints_the_table_and_refuses_half_a_run(runs, tmp_path):
    folders = [str(run.path) for run in runs]
    done = CliRunner().invoke(app, [*folders, "--output", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert "merged" in done.output
    half = write_run(tmp_path / "half")
    mark_ended(half, "killed", "ended by SIGKILL")
    done = CliRunner().invoke(app, [folders[0], str(half), "--output", str(tmp_path / "none")])
    assert isinstance(done.exception, RunError)
    assert not (tmp_path / "none").exists()
