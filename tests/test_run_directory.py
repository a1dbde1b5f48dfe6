# SPDX-License-Identifier: Apache-2.0
"""The run directory: right at every moment, taken up after a kill, the same bytes for the same input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, SpatialPadd

from monai_cnnprimer import CaseTableHandler, RadiographReader, index_export
from monai_cnnprimer.dataset import CaseDataset, collate_cases
from monai_cnnprimer.networks import WeightsError
from monai_cnnprimer.run_directory import PREDICTION_COLUMNS, NothingToRead, RunDirectory, describe_sha256
from monai_cnnprimer.transforms import FitSized
from monai_cnnprimer.validate.summary import summary

POINT = {"id": "test", "threshold": 0.5, "weights_sha256": "w"}
BUNDLE = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50"


def transforms(size=32, divisor=0.25):
    return Compose(
        [
            LoadImaged("image", reader=RadiographReader()),
            EnsureChannelFirstd("image", channel_dim="no_channel"),
            FitSized("image", size=size),
            SpatialPadd("image", (size, size)),
            NormalizeIntensityd("image", 0.5, divisor),
        ]
    )


def manifest(export, **options):
    return index_export(export / "sites" / "birch.zip", "birch", progress=False, **options)


def evaluate(export, output, *, batch_size=2, workers=0, **options):
    """One site evaluated by a network small enough to be quick: mean brightness, one linear layer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
    run = RunDirectory(output, manifest(export, **options), BUNDLE, "w", POINT, transforms())
    dataset = CaseDataset(run.remaining(), transforms())
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate_cases)
    handler = CaseTableHandler(run, dataset, summary, progress=False)
    evaluator = SupervisedEvaluator(torch.device("cpu"), loader, network, decollate=False, val_handlers=[handler])
    evaluator.run()
    return run


def read(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_every_accepted_image_has_one_row(phantom_export, tmp_path):
    run = evaluate(phantom_export, tmp_path, labels=phantom_export / "labels" / "birch.csv")
    table = pd.read_csv(tmp_path / "predictions.csv", dtype=str)
    assert (*table.columns, "file") == PREDICTION_COLUMNS
    assert table["case_id"].tolist() == sorted(run.manifest.accepted["case_id"])
    probability, logit = table["probability"].astype(float), table["logit"].astype(float)
    assert torch.allclose(torch.tensor(logit.to_numpy()).sigmoid(), torch.tensor(probability.to_numpy()), atol=1e-5)
    assert (table["predicted"].astype(int) == (probability >= 0.5)).all()
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["status"] == "complete"
    assert told["counts"] == {"accepted": 4, "refused": len(run.manifest.refused), "predicted": 4, "errors": 0}
    assert json.loads((tmp_path / "metrics.json").read_text())["auroc"]["n"] == 4


def test_labels_of_the_export_are_those_of_the_predictions(phantom_export, tmp_path):
    evaluate(phantom_export, tmp_path, labels=phantom_export / "labels" / "birch.csv")
    labels = pd.read_csv(tmp_path / "predictions.csv")["label"]
    assert sorted(labels) == sorted(pd.read_csv(phantom_export / "labels" / "birch.csv")["label"])


def test_the_same_input_gives_the_same_bytes_whatever_the_batches_and_workers(phantom_export, tmp_path):
    evaluate(phantom_export, tmp_path / "a")
    evaluate(phantom_export, tmp_path / "b", batch_size=3, workers=2)
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_a_file_that_breaks_after_indexing_is_an_error_row_and_the_others_finish(phantom_export, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    for number, content in enumerate(_frontals(phantom_export)):
        (export / f"IM{number}").write_bytes(content)
    index = index_export(export, progress=False)
    run = RunDirectory(tmp_path / "run", index, BUNDLE, "w", POINT, transforms())
    broken = index.cases()[1]
    Path(broken["image"]).write_bytes(Path(broken["image"]).read_bytes()[:900])
    dataset = CaseDataset(run.remaining(), transforms())
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate_cases)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
    handler = CaseTableHandler(run, dataset, summary, progress=False)
    SupervisedEvaluator(torch.device("cpu"), loader, network, decollate=False, val_handlers=[handler]).run()
    errors = pd.read_csv(tmp_path / "run" / "errors.csv")
    assert errors["case_id"].tolist() == [broken["case_id"]]
    assert "truncated" in errors["reason"][0] or "ends" in errors["reason"][0] or "without" in errors["reason"][0]
    assert len(pd.read_csv(tmp_path / "run" / "predictions.csv")) == len(index.accepted) - 1


def test_a_site_whose_images_all_break_ends_with_an_error_row_each(phantom_export, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    for number, content in enumerate(_frontals(phantom_export)):
        (export / f"IM{number}").write_bytes(content)
    index = index_export(export, progress=False)
    for case in index.cases():
        Path(case["image"]).write_bytes(Path(case["image"]).read_bytes()[:900])
    run = RunDirectory(tmp_path / "run", index, BUNDLE, "w", POINT, transforms())
    dataset = CaseDataset(run.remaining(), transforms())
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate_cases)
    handler = CaseTableHandler(run, dataset, summary, progress=False)
    network = torch.nn.Linear(1, 2)
    SupervisedEvaluator(torch.device("cpu"), loader, network, decollate=False, val_handlers=[handler]).run()
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (told["status"], told["counts"]["errors"], told["counts"]["predicted"]) == ("complete", 4, 0)
    assert pd.read_csv(tmp_path / "run" / "predictions.csv").empty


def _frontals(export):
    with zipfile.ZipFile(export / "sites" / "birch.zip") as archive:
        paths = manifest(export).paths.values()
        return [archive.read(path.split("birch.zip/")[1]) for path in paths]


def test_an_export_with_nothing_to_read_is_told_and_recorded(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("nothing here")
    index = index_export(tmp_path / "export", progress=False)
    with pytest.raises(NothingToRead, match=r"none of the 1 files .* refused.csv"):
        RunDirectory(tmp_path / "run", index, BUNDLE, "w", POINT, transforms())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert len(pd.read_csv(tmp_path / "run" / "refused.csv")) == 1


def test_a_threshold_of_other_weights_is_refused(phantom_export, tmp_path):
    with pytest.raises(WeightsError, match="threshold of other weights"):
        RunDirectory(tmp_path, manifest(phantom_export), BUNDLE, "other", POINT, transforms())


def test_the_hash_of_the_transforms_tells_equal_from_different():
    assert describe_sha256(transforms()) == describe_sha256(transforms())
    assert len({describe_sha256(t) for t in (transforms(), transforms(size=64), transforms(divisor=0.3))}) == 3


def test_a_failed_run_says_so_and_keeps_what_it_had(phantom_export, tmp_path, monkeypatch):
    add, seen = RunDirectory.add, []

    def add_then_fail(self, *row):
        add(self, *row)
        seen.append(row)
        if len(seen) == 2:
            raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "add", add_then_fail)
        with pytest.raises(RuntimeError, match="the disk is full"):
            evaluate(phantom_export, tmp_path, batch_size=1)
    told = json.loads((tmp_path / "run.json").read_text())
    assert (told["status"], told["reason"], told["counts"]["predicted"]) == ("failed", "RuntimeError", 2)
    assert not (tmp_path / "predictions.csv").exists()
    run = RunDirectory(tmp_path, manifest(phantom_export), BUNDLE, "w", POINT, transforms())
    assert len(run.remaining()) == 2


def _die_halfway(export, output, signal_name):
    """The exit code of a process that evaluates the export and sends itself a signal after the second batch."""
    script = textwrap.dedent(DIE_HALFWAY).format(
        tests=str(Path(__file__).parent), export=str(export), output=str(output), signal=signal_name
    )
    return subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, check=False).returncode


DIE_HALFWAY = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from monai_cnnprimer.run_directory import RunDirectory
    from test_run_directory import evaluate

    add, seen = RunDirectory.add, []

    def add_then_die(self, *row):
        add(self, *row)
        seen.append(row)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.{signal})

    RunDirectory.add = add_then_die
    evaluate(Path({export!r}), {output!r}, batch_size=1)
"""


def test_a_killed_run_is_taken_up_and_ends_like_one_that_was_not(phantom_export, tmp_path):
    output = tmp_path / "killed"
    assert _die_halfway(phantom_export, output, "SIGKILL") == -signal.SIGKILL
    assert json.loads((output / "run.json").read_text())["status"] == "running"
    with (output / ".predictions.partial.csv").open("a") as spool:
        spool.write("half a li")
    assert len(RunDirectory(output, manifest(phantom_export), BUNDLE, "w", POINT, transforms()).remaining()) == 2
    evaluate(phantom_export, output, batch_size=1)
    evaluate(phantom_export, tmp_path / "whole", batch_size=1)
    assert read(output) == read(tmp_path / "whole")


def test_a_terminated_run_says_that_it_was_killed(phantom_export, tmp_path):
    assert _die_halfway(phantom_export, tmp_path, "SIGTERM") == 128 + signal.SIGTERM
    told = json.loads((tmp_path / "run.json").read_text())
    assert (told["status"], told["counts"]["predicted"]) == ("killed", 2)


def test_a_full_disk_says_what_to_do_and_leaves_the_directory_intact(phantom_export, tmp_path):
    run = RunDirectory(tmp_path, manifest(phantom_export), BUNDLE, "w", POINT, transforms())
    os.symlink("/dev/full", tmp_path / ".predictions.partial.csv")
    with pytest.raises(OSError, match="full; free some space and give the same command again"):
        run.add(["a" * 16], [0.5], [0.6])
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_folder_of_images_names_its_files(image_folder, tmp_path):
    index = index_export(image_folder, split="test", progress=False)
    run = RunDirectory(tmp_path, index, BUNDLE, "w", POINT, transforms())
    run.add([case["case_id"] for case in index.cases()], [0.0] * 8, [0.5] * 8)
    run.finish([], summary)
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert tuple(table.columns) == PREDICTION_COLUMNS
    assert sorted(table["file"]) == [f"{number:02d}.png" for number in range(8)]


def test_predictions_of_other_weights_are_not_taken_up(phantom_export, tmp_path):
    index = manifest(phantom_export)
    run = RunDirectory(tmp_path, index, BUNDLE, "w", POINT, transforms())
    run.add([index.cases()[0]["case_id"]], [0.5], [0.6])
    other = RunDirectory(tmp_path, index, BUNDLE, "v", POINT | {"weights_sha256": "v"}, transforms())
    assert len(other.remaining()) == 4
