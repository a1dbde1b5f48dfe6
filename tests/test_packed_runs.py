# SPDX-License-Identifier: Apache-2.0
"""What a site sent is read as it came, a zip like a folder, with the features and, if it chose so, the image hashes."""

from __future__ import annotations

import gc
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from test_shared_cases import pictures, site
from written_runs import write_run

from monai_cnnprimer.handlers.features import FEATURES
from monai_cnnprimer.report.validation import write_report
from monai_cnnprimer.validate import runs as runs_module
from monai_cnnprimer.validate.features import features_of
from monai_cnnprimer.validate.merge import merge_runs
from monai_cnnprimer.validate.pack import PatientDataFound, pack_run
from monai_cnnprimer.validate.pooled import pooled
from monai_cnnprimer.validate.runs import RunError, read_run
from monai_cnnprimer.validate.shared_cases import shared_cases


@pytest.fixture
def sent(tmp_path):
    """Two sites of one key, the second with two images of the first; each as a run and, by name, as a zip."""
    images = [pictures(20, 0), pictures(20, 1)]
    images[1][:2] = images[0][:2]
    random = np.random.default_rng(0)
    made = []
    for name, shown in zip(("north", "south"), images, strict=True):
        made.append(site(tmp_path / name, shown, random.normal(size=(20, 64))))
        pack_run(made[-1], tmp_path / f"{name}.zip")
        pack_run(made[-1], tmp_path / f"{name}-hashes.zip", image_hashes=True)
    return made


def test_a_zip_is_a_run_and_its_folder_goes_with_it(sent, tmp_path):
    run = read_run(tmp_path / "north.zip")
    assert run.site == "north"
    assert run.predictions.equals(sent[0].predictions)
    home = run.path
    assert home.is_dir()
    del run
    gc.collect()
    assert not home.exists()


def test_hashes_of_images_stay_unless_a_site_sends_them(sent, tmp_path):
    without, with_hashes = (read_run(tmp_path / name) for name in ("north.zip", "north-hashes.zip"))
    assert "image_hash" not in (without.path / FEATURES).read_text()
    assert set(features_of(without)["image_hash"]) == {""}
    pd.testing.assert_frame_equal(features_of(with_hashes), features_of(sent[0]))
    assert json.loads((without.path / "run.json").read_text())["packed"]["columns_left_out"] == ["file", "image_hash"]
    both = [read_run(tmp_path / f"{name}-hashes.zip") for name in ("north", "south")]
    assert shared_cases(both).pairs[0].alike == 2
    assert shared_cases([without, both[1]]).pairs[0].alike is None


def test_zips_are_merged_with_their_features(sent, tmp_path):
    packed = [read_run(tmp_path / f"{name}-hashes.zip") for name in ("north", "south")]
    notes = merge_runs(packed, tmp_path / "merged")
    assert "north and south: 2 pairs of images are nearly the same" in notes
    merged = features_of(read_run(tmp_path / "merged"))
    assert len(merged) == 40
    expected = pd.concat([features_of(run) for run in sent]).sort_values("case_id", ignore_index=True)
    pd.testing.assert_frame_equal(merged, expected)
    merge_runs([packed[1], packed[0]], tmp_path / "again")
    assert (tmp_path / "again" / FEATURES).read_bytes() == (tmp_path / "merged" / FEATURES).read_bytes()


def test_merged_hashes_of_two_keys_are_left_out(sent, tmp_path):
    other = site(tmp_path / "east", pictures(20, 3), key_id="ffffffff")
    merge_runs([sent[0], other], tmp_path / "merged")
    assert set(features_of(read_run(tmp_path / "merged"))["image_hash"]) == {""}
    merge_runs([read_run(tmp_path / "north.zip"), read_run(write_run(tmp_path / "old"))], tmp_path / "merged")
    assert len(features_of(read_run(tmp_path / "merged"))) == 20


def test_zips_are_reported_and_probed(sent, tmp_path):
    files = [tmp_path / "north.zip", tmp_path / "south.zip"]
    write_report(files, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "all sites: balanced accuracy" in text
    assert "no hashes of images" in text
    assert pooled([read_run(file) for file in files]).probe.balanced_accuracy.n == 40


def test_what_looks_like_patient_data_in_the_features_is_found(sent, tmp_path):
    file = sent[0].path / FEATURES
    file.write_text(file.read_text().replace(",layer4,", ",Doe^Jane,", 1))
    with pytest.raises(PatientDataFound, match=r"features\.csv, line 2, layer: a person's name"):
        pack_run(sent[0], tmp_path / "again.zip")
    file.write_text(file.read_text().replace("Doe^Jane,", "layer4,1956-03-21,", 1))
    with pytest.raises(PatientDataFound, match="not the form that feature_00 has"):
        pack_run(sent[0], tmp_path / "again.zip")


def archive(path, files):
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../north/run.json": "{}"}, "something else than the tables of one run"),
        ({"/etc/run.json": "{}"}, "something else than the tables of one run"),
        ({"north/run.json": "{}", "south/run.json": "{}"}, "something else than the tables of one run"),
        ({"north/run.json": "{}", "north/IM0001": ""}, "something else than the tables of one run"),
        ({"north/maps/a.csv": ""}, "something else than the tables of one run"),
        ({}, "something else than the tables of one run"),
        ({"north/manifest.csv": ""}, "there is no run.json"),
    ],
)
def test_other_zips_are_refused_and_leave_nothing(tmp_path, monkeypatch, files, message):
    monkeypatch.setattr(runs_module.tempfile, "tempdir", str(tmp_path / "homes"))
    (tmp_path / "homes").mkdir()
    with pytest.raises(RunError, match=message):
        read_run(archive(tmp_path / "sent.zip", files))
    assert list((tmp_path / "homes").iterdir()) == []


def test_a_zip_that_is_too_large_or_damaged_is_refused(sent, tmp_path, monkeypatch):
    whole = (tmp_path / "north.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"cut\.zip is no run directory, and no zip"):
        read_run(tmp_path / "cut.zip")
    middle = len(whole) // 3
    (tmp_path / "torn.zip").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(RunError, match="no zip of one that can be read"):
        read_run(tmp_path / "torn.zip")
    monkeypatch.setattr(runs_module, "MOST_BYTES", 100)
    with pytest.raises(RunError, match="unpacked it would be larger"):
        read_run(tmp_path / "north.zip")
