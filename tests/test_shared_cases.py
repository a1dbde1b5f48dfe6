# SPDX-License-Identifier: Apache-2.0
"""What sites have in common: planted patients, files and copies are counted once, and no more is claimed than known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from written_runs import manifest, write_run

from monai_cnnprimer.validate.pooled import pooled
from monai_cnnprimer.validate.runs import read_run
from monai_cnnprimer.validate.shared_cases import Shared, SharedCases, shared_cases


def pictures(count, seed):
    """Smooth random images, no two of which are alike."""
    noise = np.random.default_rng(seed).normal(size=(count, 64, 64))
    return np.stack([gaussian_filter(image, 2, mode="wrap") for image in noise]).astype(np.float32)


def site(folder, images=None, features=None, **options):
    zeros = np.zeros((options.get("count", 20), 64))
    return read_run(write_run(folder, features=zeros if features is None else features, images=images, **options))


def test_patients_cases_and_files_are_counted_once(tmp_path):
    north = read_run(write_run(tmp_path / "north"))
    same_patients = read_run(write_run(tmp_path / "south", patients="north", count=10))
    same_images = read_run(write_run(tmp_path / "east", prefix="north", count=6))
    found = shared_cases([north, same_patients, same_images])
    assert found.pairs == [
        Shared("north", "south", 0, 0, 5, True, None),
        Shared("north", "east", 6, 6, 3, True, None),
        Shared("south", "east", 0, 0, 3, True, None),
    ]
    assert found.cases == ["north and east: 6 images stand at both sites"]
    assert found.patients[0] == "north and south: 5 patients have images at both sites"
    assert (found.alike, found.unknown) == ([], [])


def test_what_is_not_stated_is_nothing_in_common(tmp_path):
    runs = []
    for name in ("north", "south"):
        made = manifest(name)
        made.accepted["sha256"] = ""
        runs.append(read_run(write_run(tmp_path / name, run_manifest=made)))
    assert shared_cases(runs).pairs[0].files == 0


def test_planted_copies_are_found_between_and_within_sites(tmp_path):
    ours, theirs = pictures(20, 0), pictures(10, 1)
    theirs[3] = 0.7 * ours[5] + 0.2  # saved anew at another site, darker
    theirs[4] = ours[6] + 0.02 * pictures(1, 2)[0]
    north = site(tmp_path / "north", ours)
    patient = north.predictions.set_index("case_id")["patient_key"]
    by_case = north.manifest["case_id"].tolist()
    other = next(n for n in range(1, 20) if patient[by_case[n]] != patient[by_case[0]])
    same = next(n for n in range(1, 20) if patient[by_case[n]] == patient[by_case[0]])
    south = site(tmp_path / "south", theirs, count=10)
    found = shared_cases([north, south])
    assert (found.pairs[0].alike, found.within) == (2, {"north": 0, "south": 0})
    assert found.alike == ["north and south: 2 pairs of images are nearly the same"]
    ours[other] = ours[same] = ours[0]
    found = shared_cases([site(tmp_path / "again", ours, site="north"), south])
    assert found.within["north"] == 2  # both images of one patient are like that of the other
    assert "north: 2 pairs of images are nearly the same, though of different patients" in found.alike


@pytest.mark.parametrize("key_id", ["ffffffff", ""])
def test_hashes_of_two_keys_are_not_compared(tmp_path, key_id):
    images = pictures(20, 0)
    north, south = site(tmp_path / "north", images), site(tmp_path / "south", images, key_id=key_id)
    found = shared_cases([north, south])
    assert found.pairs[0] == Shared("north", "south", 0, 0, 0, False, None)
    assert found.within == {"north": 0, "south": 0}
    assert found.unknown[0].startswith("north and south: their pseudonyms are not known to have one key")


def test_without_hashes_nothing_is_claimed(tmp_path):
    runs = [site(tmp_path / "north"), read_run(write_run(tmp_path / "south"))]
    found = shared_cases(runs)
    assert (found.pairs[0].alike, found.within) == (None, {"north": None, "south": None})
    assert SharedCases().alike == []


def test_one_image_many_times_over_is_told_and_ends_nothing(tmp_path):
    images = np.repeat(pictures(1, 0), 1500, axis=0)
    found = shared_cases([site(tmp_path / "north", images, count=1500)])
    assert found.alike == ["north: 1000000 pairs of images are nearly the same, though of different patients"]


def features(seed, shift=0.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(40, 64)) + shift * np.random.default_rng(9).normal(size=64)


def test_the_probe_finds_sites_that_the_features_tell_apart_and_no_others(tmp_path):
    alike = [site(tmp_path / name, features=features(seed), count=40) for seed, name in enumerate(("a", "b"))]
    blind = pooled(alike)
    assert blind.probe.balanced_accuracy.value < 0.6  # out of fold and with few cases, often below chance
    apart = pooled([alike[0], site(tmp_path / "c", features=features(3, shift=3), count=40)])
    assert apart.probe.balanced_accuracy.low > 0.9
    assert apart.probe.sites["c"].value > 0.95
    figures = apart.figures()
    assert figures["site_probe"]["chance"] == 0.5
    assert figures["site_probe"]["clusters"] == 40
    assert figures["auroc"]["n"] == 80
    assert figures["site_alone"]["columns"] == ("site",)


def test_what_the_probe_lacks_is_told(tmp_path):
    north = site(tmp_path / "north", features=features(0), count=40)
    few = site(tmp_path / "few", features=features(1)[:10], count=10)
    assert "two sites of 10 patients are needed" in pooled([north, few]).probe_reason
    old = read_run(write_run(tmp_path / "old", count=40))
    assert pooled([north, old]).figures()["site_probe"] == {"value": None, "reason": "no features were kept at old"}
    assert pooled([north]).probe_reason == "a single site"
    assert pooled([north, read_run(write_run(tmp_path / "bare", labels=False))]).model is None
