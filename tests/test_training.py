# SPDX-License-Identifier: Apache-2.0
"""No patient in two parts; a tiny training run leaves what a bundle ships; size alone is measured beside the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from monai_cnnprimer.networks import resnet50_classifier, sha256_of_file
from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.training import (
    AutocastInferer,
    TrainingRecord,
    balanced_weights,
    finish_training,
    latest_checkpoint,
    patient_split,
    size_only,
)
from monai_cnnprimer.validate.tracking import sync

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


@pytest.fixture(scope="module")
def labelled_export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tuning")
    write_export(folder, 12, sites=1, seed=3, size=128, progress=False)
    return next((folder / "sites").iterdir()), next((folder / "labels").iterdir())


class TestExport:
    """A PACS export with a table of labels, as a hospital gives it."""

    def test_every_labelled_case_is_in_one_part_by_patient(self, labelled_export, tmp_path):
        split = patient_split(labelled_export[0], WORDS, folds=2, labels=labelled_export[1], output_dir=tmp_path)
        assert min(map(len, split.values())) >= 2
        people = [_patients(cases) for cases in split.values()]
        assert sum(map(len, people)) == len(set.union(*people))
        manifest = pd.read_csv(tmp_path / "manifest.csv")
        assert sum(map(len, split.values())) == manifest["label"].notna().sum() - len(
            pd.read_csv(tmp_path / "errors.csv")
        )
        assert set.union(*people) <= set(manifest["patient_key"])

    def test_the_labels_are_those_of_the_table(self, labelled_export, tmp_path):
        split = patient_split(labelled_export[0], WORDS, folds=2, labels=labelled_export[1], output_dir=tmp_path)
        known = pd.read_csv(tmp_path / "manifest.csv").groupby("patient_key")["label"].max()
        assert all(known[case["patient_id"]] >= case["label"] for cases in split.values() for case in cases)
        assert sum(case["label"] for cases in split.values() for case in cases) == 6

    def test_pixels_that_cannot_be_read_cost_one_row(self, labelled_export, tmp_path):
        broken = tmp_path / "export"
        shutil.copytree(labelled_export[0], broken)
        whole = patient_split(broken, WORDS, folds=2, labels=labelled_export[1], output_dir=tmp_path / "whole")
        path = Path(whole["train"][0]["image"])
        path.write_bytes(path.read_bytes()[:-2000])
        split = patient_split(broken, WORDS, folds=2, labels=labelled_export[1], output_dir=tmp_path / "run")
        told = [len(pd.read_csv(tmp_path / "run" / name)) for name in ("errors.csv", "refused.csv")]
        before = [len(pd.read_csv(tmp_path / "whole" / name)) for name in ("errors.csv", "refused.csv")]
        assert sum(told) == sum(before) + 1
        assert sum(map(len, split.values())) == sum(map(len, whole.values())) - 1

    def test_too_few_patients_are_told(self, labelled_export):
        with pytest.raises(ValueError, match="two classes and 50 patients or more of each"):
            patient_split(labelled_export[0], WORDS, folds=100, labels=labelled_export[1])


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


class Steps:
    """A trainer and its validation whose AUROC, epoch by epoch, is chosen by the test."""

    def __init__(self, folder, values, patience=None):
        self.evaluator = Engine(lambda *_: None)
        self.evaluator.state.key_metric_name = "auroc"
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        self.record = TrainingRecord(folder, BUNDLE, {"seed": 3}, optimizer, self.evaluator, patience)
        self.trainer = Engine(lambda engine, loss: {"loss": torch.tensor(loss)})
        validate = lambda engine: self.evaluator.state.metrics.update(auroc=values[engine.state.epoch - 1])  # noqa: E731
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
        self.record.attach(self.trainer)

    def run(self, epochs):
        return self.trainer.run([1.0, 2.0], max_epochs=epochs).epoch


def test_curves_have_one_row_an_epoch(tmp_path):
    Steps(tmp_path, [0.5, 0.75]).run(2)
    assert (tmp_path / "curves.csv").read_text() == (
        "epoch,learning_rate,loss,validation_auroc\n1,0.5,1.5,0.5\n2,0.5,1.5,0.75\n"
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["bundle"], run["settings"]) == ("running", "chest_xray_resnet50", {"seed": 3})


@pytest.mark.parametrize(("patience", "stopped", "best"), [(None, 6, 2), (2, 4, 2), (3, 5, 2), (5, 6, 2)])
def test_training_stops_when_its_patience_has_run_out(tmp_path, patience, stopped, best):
    steps = Steps(tmp_path, [0.5, 0.9, 0.9, 0.8, 0.7, 0.6], patience)
    assert (steps.run(6), steps.record.best_epoch()) == (stopped, best)


def test_a_training_that_fails_says_so(tmp_path):
    steps = Steps(tmp_path, [])
    with pytest.raises(IndexError):
        steps.run(1)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for epoch in (2, 10):
        torch.save({"network": {"weight": torch.rand(4, 4)}}, tmp_path / f"checkpoint_epoch={epoch}.pt")
    assert latest_checkpoint(tmp_path).name == "checkpoint_epoch=10.pt"
    newest = tmp_path / "checkpoint_epoch=10.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert latest_checkpoint(tmp_path).name == "checkpoint_epoch=2.pt"


def _train(folder, output, bundle=BUNDLE, **more):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "train.yaml"]
    options = {"bundle_root": bundle, "dataset_dir": folder, "output_dir": output, "image_size": 32}
    options |= {"max_epochs": 2, "batch_size": 4, **more}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return subprocess.Popen([*map(str, [*command, *words])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """What two epochs leave behind."""
    output = tmp_path_factory.mktemp("trained") / "run"
    process = _train(image_folder, output)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors.decode()[-3000:]
    return output


def test_the_train_config_leaves_weights_threshold_and_figures(trained):
    point = json.loads((trained / "operating_point.json").read_text())
    results = json.loads((trained / "results.json").read_text())
    assert point["weights_sha256"] == results["weights_sha256"] == sha256_of_file(trained / "model.pt")
    assert point["threshold"] == results["threshold"]
    assert results["test"]["auroc"]["n"] == results["counts"]["test"]["images"] == 8
    assert results["size_only"]["n"] == 8
    assert json.loads((trained / "run.json").read_text())["status"] == "complete"
    assert not trained.with_name("run.checkpoints").exists()
    resnet50_classifier(pretrained=trained / "model.pt")


def test_the_feature_pyramid_trains_from_the_encoder_of_the_resnet(image_folder, tmp_path):
    start, output = BUNDLE / "models" / "model.pt", tmp_path / "run"
    options = {"max_epochs": 1, "learning_rate": 1e-9, "initial_weights": start}
    process = _train(image_folder, output, BUNDLE.with_name("chest_xray_fpn"), **options)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors.decode()[-3000:]
    assert json.loads((output / "results.json").read_text())["settings"]["initial_weights"] == sha256_of_file(start)
    before, after = (torch.load(path, weights_only=True) for path in (start, output / "model.pt"))
    kernels = "layer4.2.conv2.weight"
    torch.testing.assert_close(after[kernels], before[kernels], atol=1e-4, rtol=1e-3)
    assert after.keys() > {key for key in before if not key.startswith("fc.")}


def test_what_half_precision_cannot_hold_is_shipped_as_it_is(image_folder, tmp_path):
    network, split = resnet50_classifier(), patient_split(image_folder, WORDS, folds=4)
    network.bn1.running_var[3] = 1e5
    shown = torch.rand(1, 32, 32)
    about = {"bundle_root": BUNDLE, "settings": {"image_size": 32}}
    finish_training(network, split, lambda case: {"image": shown}, tmp_path, torch.device("cpu"), **about)
    shipped = torch.load(tmp_path / "model.pt", weights_only=True)
    assert shipped["bn1.running_var"][3] == 1e5
    assert shipped["bn1.weight"].dtype == torch.float16


def test_training_killed_and_taken_up_again_ends_with_the_same_weights(trained, image_folder, tmp_path):
    first = _train(image_folder, tmp_path / "run")
    second_epoch = tmp_path / "run.checkpoints" / "checkpoint_epoch=1.pt"
    while first.poll() is None and not (second_epoch.is_file() and (tmp_path / "run" / "curves.csv").is_file()):
        time.sleep(0.1)
    first.kill()
    first.communicate()
    again = _train(image_folder, tmp_path / "run")
    errors = again.communicate()[1]
    assert again.returncode == 0, errors.decode()[-3000:]
    for name in ("model.pt", "curves.csv", "results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


def test_the_curves_of_a_training_go_to_mlflow_by_epoch(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "training")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = sync(copy, uri)
    client = MlflowClient(uri)
    table = pd.read_csv(trained / "curves.csv")
    for name in ("loss", "validation_auroc", "learning_rate"):
        history = client.get_metric_history(run_id, name)
        assert {point.step: point.value for point in history} == dict(zip(table["epoch"], table[name], strict=True))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["settings.batch_size"] == "4"
    assert "test.auroc" in run.data.metrics or "test.auroc.value" in run.data.metrics
