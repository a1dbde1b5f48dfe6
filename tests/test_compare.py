# SPDX-License-Identifier: Apache-2.0
"""Two run directories compared: what is written, what is marked, what is refused; and the command."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from monai_cnnprimer.commands.compare import app
from monai_cnnprimer.dicom.rows import keyed_hash
from monai_cnnprimer.explain.receptive_field import ReceptiveField
from monai_cnnprimer.handlers.maps import AllMaps, nifti
from monai_cnnprimer.run_directory import TABLES, write_run_json
from monai_cnnprimer.validate.compare import Settings, compare_runs
from monai_cnnprimer.validate.compare.pair import log_odds, pair_runs

KEY = b"the key of the tests"
N = 48
FIELD = {"layer4": ReceptiveField(427, 32, 0)}
FAST = {"resamples": 200, "images": 3}


def uid(number: int) -> str:
    return f"1.2.3.{number}"


def case_id(number: int) -> str:
    return keyed_hash(KEY, uid(number), 16)


def write_run(folder: Path, seed: int, numbers: Any = range(N), *, labels: Any = None, **facts: Any) -> Path:
    """A run directory as an evaluation leaves it: every second case has a finding, 40 patients."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    ids = [case_id(number) for number in numbers]
    label = [number % 2 for number in numbers] if labels is None else labels
    said = {"bundle": "chest_xray_resnet50", "weights_sha256": f"{seed:064d}", "threshold_id": "locked"}
    manifest = pd.DataFrame({"case_id": ids, "patient_key": [f"p{number % 40:02d}" for number in numbers]}).assign(
        path_sha256="p", sha256=[hashlib.sha256(name.encode()).hexdigest() for name in ids], site="aspen", label=label,
        file="", view="PA", sex=["FM"[number % 3 == 0] for number in numbers], pixel_spacing_mm=0.5, spacing_source="x",
    )  # fmt: skip
    noise = random.normal(size=len(ids))
    logit = np.array([2.0 * (number % 2) - 1 for number in numbers]) + noise
    predictions = manifest[["case_id", "patient_key", "site", "view", "label", "pixel_spacing_mm"]].assign(
        logit=logit, probability=1 / (1 + np.exp(-logit)), predicted=(logit >= 0).astype(int), **said
    )
    tables = {"manifest": manifest, "refused": pd.DataFrame(columns=["reason"]), "predictions": predictions}
    for name, table in (tables | {"errors": pd.DataFrame(columns=["case_id"])}).items():
        table.sort_values(table.columns[0]).to_csv(folder / f"{name}.csv", index=False)
    for name in ("metrics.json", "operating_point.json"):
        (folder / name).write_text("{}")
    assert all((folder / name).is_file() for name in TABLES)
    run = {"status": "complete", "reason": "", "bundle_version": "0", "site": "aspen", "threshold": 0.5, "seed": 0}
    write_run_json(folder, run | said | {"transforms_sha256": "t", "key_id": ""} | facts)
    return folder


def add_maps(run: Path, seed: int, fit: str = "fit") -> None:
    """Maps of all cases: what all have in common, what is the case's own, and noise; images of the first eight."""
    predictions = pd.read_csv(run / "predictions.csv", dtype={"case_id": str})
    random, kept = np.random.default_rng(seed), AllMaps(["layer4"])
    common = np.random.default_rng(99).normal(size=(5, 5))
    for name, predicted in zip(predictions["case_id"], predictions["predicted"], strict=True):
        own = np.random.default_rng(int(name, 16) % 2**32).normal(size=(5, 5))
        heat = torch.from_numpy(common + own + 0.3 * random.normal(size=(5, 5)))[None, None]
        kept.add([name], {"layer4": heat}, (64, 64), [int(predicted)])
    (run / "gradcam_maps.npz").write_bytes(kept.npz(FIELD))
    (run / "gradcam.json").write_text(json.dumps({"gradcam": {"layer4": {"fit": fit, "fit_reason": "measured"}}}))
    (run / "maps").mkdir()
    for name in sorted(predictions["case_id"])[:24]:
        (run / "maps" / f"{name}.nii.gz").write_bytes(nifti(np.zeros((64, 64), np.float32), None, "x"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    first, second = write_run(folder / "a", 1), write_run(folder / "b", 2, threshold=0.4)
    add_maps(first, 1)
    add_maps(second, 2, fit="unfit")
    return first, second


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> Path:
    """Sizes of findings by SOPInstanceUID: three of 5 mm, the others of 15 and 30 mm."""
    table = tmp_path_factory.mktemp("labels") / "labels.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["SOPInstanceUID", "finding_size_mm"])
        for place, number in enumerate(range(1, N, 2)):
            rows.writerow([uid(number), 5 if place < 3 else 15 if place % 2 else 30])
    return table


@pytest.fixture(scope="module")
def compared(runs, sizes, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("out")
    settings = Settings(by="finding_size_mm", edges=[3, 8, 22, 40], labels=sizes, key=KEY, few=5, **FAST)
    return output, compare_runs(*runs, output, settings).result


def test_everything_is_written_and_the_same_again(runs, sizes, compared, tmp_path):
    output, result = compared
    assert json.loads((output / "comparison.json").read_text()) == result
    figures = {path.name for path in (output / "figures").iterdir()}
    names = ("forest", "agreement", "same_answer", "differing", "discordant")
    assert figures == {f"compare_{name}.png" for name in names}
    settings = Settings(by="finding_size_mm", edges=[3, 8, 22, 40], labels=sizes, key=KEY, few=5, **FAST)
    compare_runs(*runs, tmp_path, settings)
    for path in output.rglob("*.*"):
        assert (tmp_path / path.relative_to(output)).read_bytes() == path.read_bytes()


def test_the_result_says_which_runs_and_cases(compared):
    result = compared[1]
    assert result["difference"] == "B minus A"
    assert (result["cases"]["n"], result["cases"]["patients"], result["cases"]["positives"]) == (N, 40, N // 2)
    assert result["runs"]["a"]["name"].startswith("chest_xray_resnet50, weights 0000")
    assert result["brand"] == []
    assert "48 cases are of 40 patients" in " ".join(result["notes"])
    assert sum(result["outcomes"].values()) == N


def test_three_findings_of_a_size_are_too_few(compared):
    output, result = compared
    small, *others = result["by"]["rows"]
    assert (small["bin"], small["positives"], small["sensitivity"]["too_few"]) == ("3 to 8", 3, True)
    assert [row["sensitivity"]["too_few"] for row in others] == [False, False]
    table = pd.read_csv(output / "differences.csv").set_index(["bin", "metric"])
    assert math.isnan(table.loc[("3 to 8", "sensitivity"), "difference"])
    assert table.loc[("all cases", "auroc"), "difference"] == pytest.approx(
        result["metrics"]["auroc"]["difference"]["value"], abs=1e-5
    )


def test_maps_of_the_same_case_are_more_alike_than_those_of_others_and_unfit_ones_are_marked(compared):
    maps = compared[1]["maps"]
    assert maps["compared"] == maps["both_right"] == compared[1]["outcomes"]["both_right"]
    assert maps["above_other_cases"]["low"] > 0
    assert maps["pearson"]["value"] > maps["other_cases"]["value"]
    assert (maps["a"]["layer"], maps["a"]["cells"], maps["b"]["fit"]) == ("layer4", [5, 5], "unfit")
    assert maps["marks"] == ["B: UNFIT: maps do not change with random weights"]


def test_cases_without_an_image_are_counted_not_forgotten(compared):
    shown = compared[1]["shown"]["differing"]
    calls = compared[1]["agreement"]["calls"]
    assert shown["n"] == calls["only_a"] + calls["only_b"]
    assert shown["shown"] + shown["without_image"] <= shown["n"]
    assert shown["without_image"] > 0


def test_one_row_a_case(compared):
    table = pd.read_csv(compared[0] / "cases.csv", dtype={"case_id": str})
    assert len(table) == N
    assert set(table["outcome"]) <= {"both right", "only A right", "only B right", "both wrong"}
    assert table["maps_pearson"].notna().equals(table["outcome"] == "both right")
    assert table["bin_finding_size_mm"].notna().equals(table["label"] == 1)


def test_mlflow_gets_what_it_gets_of_a_run(compared):
    from monai_cnnprimer.validate.tracking import RunHandler

    handler = RunHandler("sqlite:///not-opened.db", output_dir=compared[0])
    metrics = {metric.key: metric.value for metric in handler._all_metrics({}, 0)}
    expected = compared[1]["metrics"]["auroc"]["difference"]["value"]
    assert next(value for key, value in metrics.items() if re.match("auroc_difference(.value)?$", key)) == expected
    assert handler._all_tags()["site"] == "aspen"


def test_masses_come_from_the_tables_of_both_runs(tmp_path):
    folders = [write_run(tmp_path / name, 1) for name in "ab"]
    for folder, mass in zip(folders, (0.4, 0.7), strict=True):
        add_maps(folder, 3)
        rows = [{"case_id": case_id(n), "layer": "layer4", "lung_mass": mass, "lung_area": 0.3} for n in range(30)]
        pd.DataFrame(rows).to_csv(folder / "gradcam.csv", index=False)
    result = compare_runs(*folders, tmp_path / "out", Settings(resamples=200, images=0)).result
    lung, outside = result["maps"]["regions"]["lung"], result["maps"]["regions"]["outside lung"]
    assert lung["difference"]["value"] == pytest.approx(0.3)
    assert outside["b"]["value"] == pytest.approx(0.3)
    assert lung["a"]["n"] == sum(n in range(30) for n in right_numbers(folders[0]))
    assert "both runs used the same weights" in " ".join(result["notes"])


def right_numbers(run: Path) -> list[int]:
    table = pd.read_csv(run / "predictions.csv", dtype={"case_id": str}).set_index("case_id")
    right = table["predicted"] == table["label"]
    return [number for number in range(N) if right[case_id(number)]]


def test_only_shared_cases_are_compared_when_asked_and_the_result_says_so(runs, tmp_path):
    fewer = write_run(tmp_path / "fewer", 3, range(8, 52))
    with pytest.raises(ValueError, match="40 in both, 8 only in A, 4 only in B.*--common"):
        compare_runs(runs[0], fewer, tmp_path / "out")
    found = compare_runs(runs[0], fewer, tmp_path / "out", Settings(common=True, **FAST))
    assert found.result["brand"] == ["ONLY SHARED CASES: 40 of 48 in A and of 44 in B"]
    assert found.missing == ("run B kept no maps: evaluate it with configs/explain.yaml",)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["brand"] == found.result["brand"][0]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"numbers": range(100, 130)}, "no case in common"),
        ({"numbers": range(100, 130), "site": "birch"}, "A is of site 'aspen', B of site 'birch'"),
        ({"key_id": "other"}, "different keys"),
        ({"status": "killed"}, "not complete, its status is killed"),
        ({"labels": [1] * N}, "24 of 48 cases have different labels"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(facts, message, tmp_path):
    first = write_run(tmp_path / "first", 1, key_id="mine")
    with pytest.raises(ValueError, match=message):
        pair_runs(first, write_run(tmp_path / "other", 2, **facts), common=True)


def test_other_files_under_the_same_case_ids_are_refused(runs, tmp_path):
    other = write_run(tmp_path / "other", 2)
    manifest = pd.read_csv(other / "manifest.csv")
    manifest.loc[:4, "sha256"] = "changed"
    manifest.to_csv(other / "manifest.csv", index=False)
    write_run_json(other, json.loads((other / "run.json").read_text()))
    with pytest.raises(ValueError, match="5 of 48 cases have the same case_id but other files"):
        pair_runs(runs[0], other)
    with pytest.raises(ValueError, match="the same folder"):
        pair_runs(runs[0], runs[0])


def test_a_threshold_chosen_on_these_cases_brands_the_comparison(runs, tmp_path):
    pair = pair_runs(runs[0], write_run(tmp_path / "retuned", 2, retuned=True), names=(None, "mine"))
    assert pair.brand == ("RE-TUNED: the threshold of B was chosen on these cases",)
    assert pair.names[1] == "mine"
    assert pair.thresholds == (0, 0)
    assert log_odds(1.0) == math.inf


def test_labels_of_one_run_serve_both(runs, tmp_path):
    pair = pair_runs(runs[0], write_run(tmp_path / "bare", 2, labels=[None] * N))
    assert pair.labelled["label"].tolist() == pair_runs(*runs).labelled["label"].tolist()
    assert pair.notes == ("48 cases have no label in run B; it is taken from run A",)


def test_without_labels_there_is_agreement_and_nothing_else(tmp_path):
    folders = [write_run(tmp_path / name, seed, labels=[None] * N) for seed, name in enumerate("ab")]
    found = compare_runs(*folders, tmp_path / "out", Settings(by="sex", **FAST))
    assert found.result["metrics"] is None
    assert found.result["agreement"]["kappa"]["n"] == N
    assert "no case has a label" in found.missing[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "colour"}, "no column 'colour': choose among sex"),
        ({"by": "view", "edges": [1, 2]}, "holds words"),
        ({"edges": [1, 2]}, "give --by too"),
        ({"masks": "masks.csv"}, "give --dataset-dir too"),
        ({"layers": ("layer3", None)}, "no maps of layer 'layer3'; choose among layer4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message, runs, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare_runs(*runs, tmp_path / "out", Settings(**settings, **FAST))


def test_a_table_that_names_cases_by_what_runs_do_not_hold_is_refused(runs, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("AccessionNumber,finding_size_mm\nA1,5\n")
    with pytest.raises(ValueError, match="named by AccessionNumber, which run directories do not hold"):
        compare_runs(*runs, tmp_path / "out", Settings(by="finding_size_mm", labels=table, **FAST))
    with pytest.raises(ValueError, match="no column 'size'; it has AccessionNumber"):
        compare_runs(*runs, tmp_path / "out", Settings(by="size", labels=table, **FAST))


def test_a_run_is_not_overwritten(runs):
    with pytest.raises(ValueError, match="holds a run, not a comparison"):
        compare_runs(*runs, runs[0])


def test_the_command_says_what_it_could_not_compare(runs, tmp_path):
    bare = write_run(tmp_path / "bare", 5, labels=[1] * N)
    other = write_run(tmp_path / "other", 6, labels=[1] * N)
    done = CliRunner().invoke(app, [str(bare), str(other), "--output", str(tmp_path / "out"), "--by", "sex"])
    assert done.exit_code == 1, done.output
    assert "all 48 labelled cases are with a finding: there is no AUROC" in " ".join(done.output.split())
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Research use only" in page
    assert "There is no AUROC" in page or "there is no AUROC" in page


def test_edges_that_are_no_numbers_are_told(runs, tmp_path):
    done = CliRunner().invoke(app, [*map(str, runs), "--output", str(tmp_path), "--by", "sex", "--bins", "a,b"])
    assert isinstance(done.exception, ValueError)
    assert "such as 3,8,22" in str(done.exception)
