# SPDX-License-Identifier: Apache-2.0
"""The main job as a user runs it: `monai.bundle run` in a process of its own, the demo, and real images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from written_dicom import radiograph, written

from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.rows import keyed_hash

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "chest_xray_resnet50"
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
EXPLAIN, MLFLOW = ROOT / "configs" / "explain.yaml", ROOT / "configs" / "mlflow.yaml"


def run_bundle(export, output, *overlays, bundle=BUNDLE, check=True, store=None, **options):
    """`python -m monai.bundle run` as the README has it; `store` is an MLflow database file."""
    words = {"bundle_root": bundle, "dataset_dir": export, "output_dir": output, **options}
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str([str(bundle / "configs" / "inference.yaml"), *map(str, overlays)])]
    command += ["--meta_file", str(bundle / "configs" / "metadata.json")]
    command += ["--logging_file", str(bundle / "configs" / "logging.conf")]
    command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
    environment = os.environ | ({"MLFLOW_TRACKING_URI": f"sqlite:///{store}"} if store else {})
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=output.parent)
    assert result.returncode == 0 or not check, result.stderr[-3000:]
    return result


def test_export_to_predictions_gradcam_and_mlflow(phantom_export, tmp_path):
    output, store = tmp_path / "run", tmp_path / "mlflow.db"
    labels = phantom_export / "labels" / "birch.csv"
    export = phantom_export / "sites" / "birch.zip"
    run_bundle(export, output, EXPLAIN, MLFLOW, store=store, labels=labels, site="birch", gradcam_images=2)
    predictions = pd.read_csv(output / "predictions.csv")
    told = json.loads((output / "run.json").read_text())
    assert told["status"] == "complete"
    assert len(predictions) == told["counts"]["accepted"] == 4
    assert len(list((output / "maps").glob("*.npz"))) == 2
    assert (output / "figures" / "gradcam.png").stat().st_size > 1000
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([client.get_experiment_by_name("monai_cnnprimer").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["site"] == "birch"
    assert run.data.tags["weights.sha256"] == told["weights_sha256"]
    assert run.data.metrics["auroc"] == json.loads((output / "metrics.json").read_text())["auroc"]["value"]
    assert "figures" in [item.path for item in client.list_artifacts(run.info.run_id)]


def test_weights_of_another_architecture_end_with_a_message_and_an_exit_code(phantom_export, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    export = phantom_export / "sites" / "birch.zip"
    result = run_bundle(export, tmp_path / "run", check=False, weights=tmp_path / "other.pt")
    assert result.returncode != 0
    assert "other.pt: weights of another architecture" in result.stderr
    assert not (tmp_path / "run").exists()


def test_demo_writes_reads_predicts_and_logs_three_sites(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "monai_cnnprimer", "demo", "--output", "demo", "--cases", "3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Research use only, not for clinical use" in result.stdout
    assert {"accepted", "refused", "AUROC", "seconds"} <= set(result.stdout.split())
    assert (tmp_path / "demo" / "runs" / "report.html").stat().st_size > 10_000
    runs = sorted((tmp_path / "demo" / "runs").glob("*/run.json"))
    assert [json.loads(path.read_text())["status"] for path in runs] == ["complete"] * 3
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'demo' / 'mlflow.db'}")
    all_runs = client.search_runs([client.get_experiment_by_name("monai_cnnprimer").experiment_id])
    logged = [run for run in all_runs if "site" in run.data.tags]  # the parent has none
    assert sorted(run.data.tags["site"] for run in logged) == [path.parent.name for path in runs]
    assert {run.info.status for run in logged} == {"FINISHED"}


@pytest.fixture(scope="module")
def kermany_test(data_folder, tmp_path_factory):
    """Predictions for the 624 test images, read as JPEG, by each bundle that is asked for."""

    @cache
    def predicted(bundle):
        output = tmp_path_factory.mktemp("kermany") / "jpeg"
        overlay = bundle / "configs" / "evaluate.yaml"
        run_bundle(data_folder / "kermany", output, overlay, bundle=bundle, batch_size=32)
        return output

    return predicted


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_card_gives_the_figures_of_the_test_images(bundle, kermany_test):
    stored = json.loads((bundle / "models" / "results.json").read_text())["test"]
    measured = json.loads((kermany_test(bundle) / "metrics.json").read_text())
    assert measured["auroc"]["n"] == 624
    for name in ("auroc", "accuracy", "sensitivity", "specificity"):
        assert measured[name]["value"] == pytest.approx(stored[name]["value"], abs=2e-3)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_bundle_meets_its_bar_on_the_test_images_and_ranks_them_better_than_their_size_does(bundle, kermany_test):
    stored = json.loads((bundle / "models" / "results.json").read_text())
    measured = json.loads((kermany_test(bundle) / "metrics.json").read_text())
    assert measured["accuracy"]["value"] >= 0.92
    assert measured["auroc"]["value"] >= 0.965
    assert measured["auroc"]["low"] > stored["size_only"]["high"]


def _as_dx(path, uid, vendor):
    """A JPEG wrapped as one of two vendors writes it: 12 bits with a window, or 14 bits stored inverted."""
    grey = np.asarray(Image.open(path).convert("L"), dtype=np.uint16)
    if vendor == 0:
        stated = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
        return written(radiograph(grey * 16, SOPInstanceUID=uid, ViewPosition="AP", **stated))
    stated = {"BitsStored": 14, "PhotometricInterpretation": "MONOCHROME1"}
    return written(radiograph(16383 - grey * 64, SOPInstanceUID=uid, ViewPosition="AP", **stated))


def test_dicom_and_jpeg_give_the_same_probabilities(data_folder, kermany_test, tmp_path):
    jpeg, key = pd.read_csv(kermany_test(BUNDLE) / "predictions.csv"), pseudonym_key()
    export, expected = tmp_path / "export", {}
    export.mkdir()
    for number, row in enumerate(jpeg.itertuples()):
        uid = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        (export / f"IM{number:04d}").write_bytes(_as_dx(data_folder / "kermany" / row.file, uid, number % 2))
        expected[keyed_hash(key, uid, 16)] = row.probability
    run_bundle(export, tmp_path / "run", batch_size=32)
    dicom = pd.read_csv(tmp_path / "run" / "predictions.csv").set_index("case_id")["probability"]
    assert len(dicom) == 624
    assert (dicom - pd.Series(expected)).abs().max() < 0.01
