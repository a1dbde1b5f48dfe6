# SPDX-License-Identifier: Apache-2.0
"""A normal stands with and without a nodule of each size; what cannot be made is a row that says why."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from monai_cnnprimer.validate.findings import MM_BINS, NoPlace, Normals, bin_of, draw, physical_contrast, simulated


def made_normals(count: int = 6, side: int = 96, mm_per_px: float = 2.0, width: int = 30) -> Normals:
    random = np.random.default_rng(0)
    # Radiographs differ more from each other than a nodule changes one; lungs are dark, but not the darkest.
    level, spread = random.uniform(0.35, 0.65, (count, 1, 1)), random.uniform(0.1, 0.35, (count, 1, 1))
    images = (level + spread * random.uniform(-1, 1, (count, side, side))).astype(np.float32)
    lungs = np.zeros(images.shape, bool)
    lungs[:, 15:80, 10 : 10 + width] = lungs[:, 15:80, 52 : 52 + width] = True
    images[lungs] *= 0.5
    images[:, :4, :4] *= 0.1
    names = [f"n{number}" for number in range(count)]
    table = pd.DataFrame({"case_id": names, "patient_key": [f"p{name}" for name in names], "source": "phantom"})
    return Normals(images, lungs, table.assign(mm_per_px=mm_per_px, spacing="exact", split="test"), ["a note"])


def test_each_normal_stands_once_without_and_once_with_a_nodule_of_each_size():
    normals = made_normals()
    cases = simulated(normals, MM_BINS, 0.3, seed=1, per_bin=4)
    table = cases.table
    assert len(cases) == len(cases.images) == len(cases.masks) == len(cases.lungs) == 4 * 6
    assert table["pair_id"].nunique() == 4
    assert table["case_id"].is_unique
    sizes = ["none", "3-5 mm", "5-8 mm", "8-13 mm", "13-22 mm", "22-40 mm"]
    for pair, rows in table.groupby("pair_id"):
        assert rows["size_bin"].tolist() == sizes
        normal = normals.images[int(str(pair)[1:])]
        for at in rows.index:
            inside = cases.masks[at]
            changed = cases.images[at] != normal
            assert changed.any() == (table["label"][at] == 1) == inside.any()
            assert not (inside & ~changed).any()
    positive = table[table["label"] == 1]
    limits = dict(zip(sizes[1:], zip(MM_BINS[:-1], MM_BINS[1:], strict=True), strict=True))
    for _, row in positive.iterrows():
        low, high = limits[row["size_bin"]]
        assert low <= row["diameter_mm"] < high
        assert row["diameter_px"] == row["diameter_mm"] / 2
        assert row["size_bin_px"] == bin_of(row["diameter_px"], (1, 2, 4, 8, 16, 32), "px")
    assert table.loc[table["label"] == 0, ["diameter_mm", "contrast"]].isna().all(axis=None)
    assert (positive["contrast"] == 0.3).all()
    assert cases.refused.empty
    assert cases.notes == ["a note"]


def test_a_case_depends_on_its_normal_its_bin_and_the_seed_only():
    normals = made_normals()
    few, many = simulated(normals, MM_BINS, 0.3, 1, 2), simulated(normals, MM_BINS, 0.3, 1, 6)
    at = [many.table["case_id"].tolist().index(name) for name in few.table["case_id"]]
    assert few.images.tobytes() == many.images[at].tobytes()
    other = simulated(normals, MM_BINS, 0.3, 2, 6)
    assert (other.table["diameter_mm"].dropna() != many.table["diameter_mm"].dropna()).all()
    # Contrast changes the brightness, not the nodule.
    fainter = simulated(normals, MM_BINS, 0.1, 1, 6)
    assert fainter.masks.tobytes() == many.masks.tobytes()


def test_diameters_are_even_in_the_logarithm():
    cases = simulated(made_normals(80), (4.0, 16.0), 0.3, 0, 80)
    octaves = np.log2(cases.table["diameter_mm"].dropna())
    assert octaves.mean() == pytest.approx(3.0, abs=0.2)
    assert octaves.std() == pytest.approx(2 / math.sqrt(12), rel=0.2)


def test_physical_contrast_follows_the_diameter():
    table = simulated(made_normals(), MM_BINS, "physical", 0, 6).table
    positive = table[table["label"] == 1]
    assert positive["contrast"].tolist() == [physical_contrast(mm) for mm in positive["diameter_mm"]]


def test_what_is_under_a_pixel_or_does_not_fit_is_refused_by_name():
    cases = simulated(made_normals(mm_per_px=6.0, width=12), (3.0, 5.0, 20.0, 200.0, 220.0), 0.3, 0, 6)
    assert len(cases.refused) + (cases.table["label"] == 1).sum() == 24
    reasons = cases.refused.set_index("size_bin")["reason"]
    assert reasons["3-5 mm"].str.contains("under one pixel").all()
    assert reasons["200-220 mm"].str.contains("fits nowhere").all()
    assert (cases.table["size_bin"] == "none").sum() == 6
    assert f"{len(cases.refused)} of 24 nodules could not be placed: see refused" in cases.notes
    assert "reason" not in cases.table


def test_fewer_normals_than_asked_for_is_noted():
    assert "phantom: 6 normals, 9 were asked for" in simulated(made_normals(), MM_BINS, 0.3, 0, 9).notes


def test_cases_can_be_taken_by_mask_and_by_place():
    cases = simulated(made_normals(), MM_BINS, 0.3, 0, 3)
    small = cases.take((cases.table["size_bin"] == "3-5 mm").to_numpy())
    assert small.table["size_bin"].unique().tolist() == ["3-5 mm"]
    assert small.images.tobytes() == cases.take([1, 7, 13]).images.tobytes()


@pytest.mark.parametrize("bins", [(5.0,), (5.0, 5.0), (8.0, 5.0), (0.0, 5.0)])
def test_limits_must_rise(bins):
    with pytest.raises(ValueError, match="must rise from above 0 mm"):
        simulated(made_normals(), bins, 0.3, 0, 1)
    with pytest.raises(ValueError, match="must rise from above 0 mm"):
        draw(made_normals(), 0, bins, 0.3, 0)


def test_a_set_needs_normals():
    with pytest.raises(ValueError, match="0 normals, 5 cases a bin"):
        simulated(made_normals().only(split="train"), MM_BINS, 0.3, 0, 5)


def test_training_examples_are_drawn_anew_with_each_seed_and_each_bin_as_often():
    normals = made_normals()
    first, again, next_epoch = (draw(normals, 2, MM_BINS, 0.3, seed) for seed in (0, 0, 6))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[0].tobytes() != next_epoch[0].tobytes()
    assert (first[0] != normals.images[2]).any()
    bins = [bin_of(draw(normals, seed % 6, MM_BINS, 0.3, seed)[2], MM_BINS, "mm") for seed in range(120)]
    counts = pd.Series(bins).value_counts()
    assert len(counts) == 5
    assert counts.min() > 10


def test_a_draw_that_cannot_fit_says_so():
    with pytest.raises(NoPlace, match="n0: none of 20 nodules of 100 to 120 mm fits"):
        draw(made_normals(), 0, (100.0, 120.0), 0.3, 0)


def test_sizes_at_the_limits_of_bins():
    assert [bin_of(mm, MM_BINS, "mm") for mm in (2.99, 3.0, 39.99, 40.0)] == [
        "outside",
        "3-5 mm",
        "22-40 mm",
        "outside",
    ]
