# SPDX-License-Identifier: Apache-2.0
"""No patient in two parts; a tiny training run leaves what a bundle ships; size alone is measured beside the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from monai_cnnprimer.networks import resnet50_classifier, sha256_of_file
from monai_cnnprimer.training import AutocastInferer, balanced_weights, patient_split, size_only

WORDS = {"NORMAL": 0, "PNEUMONIA": 1}
BUNDLE = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50"


def _patients(cases):
    return {case["patient_id"] for case in cases}


def test_no_patient_is_in_two_parts(image_folder):
    split = patient_split(image_folder, WORDS, folds=4)
    train, validation, test = (_patients(split[name]) for name in ("train", "validation", "test"))
    assert train.isdisjoint(validation | test)
    assert validation.isdisjoint(test)
    assert len(split["train"]) + len(split["validation"]) + len(split["test"]) == 40
    assert {case["label"] for case in split["validation"]} == {0, 1}


def test_training_images_of_a_test_patient_are_left_out(image_folder, tmp_path):
    table = pd.read_csv(image_folder / "manifest.csv")
    table.loc[table["path"] == "39.png", "patient_id"] = "p0"
    table.to_csv(tmp_path / "manifest.csv", index=False)
    split = patient_split(tmp_path, WORDS, folds=4)
    used = {Path(case["image"]).name for part in ("train", "validation") for case in split[part]}
    assert "39.png" not in used
    assert len(used) == 31


def test_another_seed_validates_on_other_patients(image_folder):
    parts = [_patients(patient_split(image_folder, WORDS, folds=4, seed=seed)["validation"]) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_a_manifest_without_patients_says_what_is_needed(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,label,split\na.png,NORMAL,train\n")
    with pytest.raises(ValueError, match=r"lacks \['patient_id'\]; training needs path, label, patient_id and split"):
        patient_split(tmp_path, WORDS)


def test_a_label_outside_the_map_is_named(image_folder):
    with pytest.raises(ValueError, match=r"labels \['PNEUMONIA'\]; label_map knows \['NORMAL'\]"):
        patient_split(image_folder, {"NORMAL": 0})


def test_weighted_classes_have_equal_shares():
    weights = balanced_weights([{"label": label} for label in (0, 1, 1, 1)])
    assert torch.allclose(weights, torch.tensor([2.0, 2 / 3]))


def _sized(n, seed, informative):
    """Cases whose width tells the label in four of five, or not at all."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    wide = np.where(random.random(n) < 0.8, labels, 1 - labels) if informative else random.integers(0, 2, n)
    widths = 1000 + 300 * wide + random.normal(0, 30, n)
    return [{"label": y, "original_width": w, "original_height": 1000} for y, w in zip(labels, widths, strict=True)]


def _labels(cases):
    return [case["label"] for case in cases]


@pytest.mark.parametrize(("informative", "low", "high"), [(True, 0.75, 0.85), (False, 0.4, 0.6)])
def test_size_alone_finds_a_label_that_is_in_the_size_and_none_that_is_not(informative, low, high):
    train, test = _sized(400, 1, informative), _sized(400, 2, informative)
    assert low <= roc_auc_score(_labels(test), size_only(train, test)) <= high


def test_autocast_computes_in_bfloat16_and_gives_float32():
    seen = []
    network = torch.nn.Conv2d(1, 2, 3)
    network.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    logits = AutocastInferer()(torch.rand(1, 1, 8, 8), network)
    assert (seen, logits.dtype) == ([torch.bfloat16], torch.float32)


def test_the_train_config_leaves_weights_threshold_and_figures(image_folder, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", BUNDLE / "configs" / "train.yaml"]
    options = {"bundle_root": BUNDLE, "dataset_dir": image_folder, "output_dir": tmp_path, "image_size": 32}
    options |= {"max_epochs": 1, "batch_size": 4, "num_workers": 0}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = subprocess.run([*map(str, [*command, *words])], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    point = json.loads((tmp_path / "operating_point.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    assert point["weights_sha256"] == results["weights_sha256"] == sha256_of_file(tmp_path / "model.pt")
    assert point["threshold"] == results["threshold"]
    assert results["test"]["auroc"]["n"] == results["counts"]["test"]["images"] == 8
    assert results["size_only"]["n"] == 8
    resnet50_classifier(pretrained=tmp_path / "model.pt")
