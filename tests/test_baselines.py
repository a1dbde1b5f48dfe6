# SPDX-License-Identifier: Apache-2.0
"""What can be scored without looking: planted leaks are found, none is found in noise, and patients stay together."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_cnnprimer.validate.baselines import ages_outside, metadata_baseline, site_baseline, site_probe

DATA = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_kermany = pytest.mark.skipif(
    not (DATA / "kermany" / "manifest.csv").exists(), reason="no images (CNNPRIMER_DATA)"
)


def _table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Cases whose acquisition says nothing of their label."""
    random = np.random.default_rng(seed)
    return pd.DataFrame({
        "label": random.integers(0, 2, n),
        "patient_key": [f"p{number}" for number in range(n)],
        "rows": pd.array(random.integers(1000, 3000, n), dtype="Int64"),
        "columns": pd.array(random.integers(1000, 3000, n), dtype="Int64"),
        "pixel_spacing_mm": np.where(random.random(n) < 0.2, np.nan, random.choice([0.1, 0.14], n)),
        "view": random.choice(["PA", "AP"], n),
        "manufacturer": "one vendor",
    })  # fmt: skip


@pytest.mark.parametrize(
    "leak",
    [
        lambda table: {"rows": 1000 + 300 * table["label"] + np.arange(len(table)) % 400},
        lambda table: {"columns": (table["rows"].astype(float) * (1.2 + 0.2 * table["label"])).astype(int)},
        lambda table: {"view": np.where(table["label"] == 1, "AP", "PA")},
        lambda table: {"pixel_spacing_mm": np.where(table["label"] == 1, np.nan, 0.1)},
    ],
    ids=["size", "aspect", "view", "missing spacing"],
)
def test_a_leak_is_found(leak):
    table = _table()
    result = metadata_baseline(table.assign(**leak(table)))
    assert result.low > 0.75
    assert (result.n, result.positives, result.folds) == (300, table["label"].sum(), 5)


def test_noise_is_chance_and_constant_columns_are_left_out():
    results = [metadata_baseline(_table(seed=seed)) for seed in range(6)]
    assert np.mean([result.value for result in results]) == pytest.approx(0.5, abs=0.05)
    assert results[0].columns == ("rows", "columns", "pixel_spacing_mm", "view")


def test_no_patient_is_scored_by_images_of_the_same_patient():
    """Each patient has one own size and label: known patients would be scored perfectly."""
    random = np.random.default_rng(3)
    label, rows = random.integers(0, 2, 40), np.exp(random.normal(size=40))
    table = pd.DataFrame({"label": np.repeat(label, 8), "patient_key": np.repeat(np.arange(40), 8)})
    table["quirks"] = [f"only {patient}" for patient in table["patient_key"]]
    assert metadata_baseline(table.assign(rows=np.repeat(rows, 8))).value < 0.75
    assert metadata_baseline(table.assign(patient_key=range(320), rows=np.repeat(rows, 8))).value > 0.95


def test_labels_may_be_missing_and_same_seed_same_figure():
    table = _table().assign(label=lambda t: pd.array(np.where(np.arange(300) < 30, -1, t["label"]), dtype="Int64"))
    table.loc[table["label"] == -1, "label"] = pd.NA
    assert metadata_baseline(table).n == 270
    assert metadata_baseline(table) == metadata_baseline(table)


def test_what_cannot_be_scored_has_a_reason():
    table = _table(60)
    assert metadata_baseline(table.assign(label=0)).reason == "a class has 0 patients, fewer than 10"
    assert (
        metadata_baseline(table.assign(patient_key=np.arange(60) % 9)).reason == "a class has 9 patients, fewer than 10"
    )
    nothing = metadata_baseline(table[["label", "patient_key", "manufacturer"]])
    assert (nothing.value, nothing.reason, nothing.n) == (None, "no acquisition column varies", 60)
    with pytest.raises(ValueError, match="no patient_key"):
        metadata_baseline(table[["label"]])


@needs_kermany
def test_the_size_of_kermanys_images_tells_the_label():
    rows = list(csv.DictReader((DATA / "kermany" / "manifest.csv").read_text().splitlines()))
    table = pd.DataFrame([row for row in rows if row["split"] == "test"])
    table = table.assign(label=(table["label"] == "PNEUMONIA").astype(int), patient_key=table["patient_id"])
    table = table.assign(rows=table["original_height"].astype(int), columns=table["original_width"].astype(int))
    assert metadata_baseline(table).low > 0.896  # what a line through the area reaches


def test_a_site_with_more_disease_tells_the_label():
    random = np.random.default_rng(0)
    site = np.repeat(["a", "b", "c"], 300)
    prevalence = np.repeat([0.1, 0.5, 0.9], 300)
    label = (random.random(900) < prevalence).astype(int)
    result = site_baseline(label, site, np.arange(900))
    # P(score of a positive case is higher) + half of P(equal), over three equally large sites.
    found, spared = np.array([0.1, 0.5, 0.9]) / 1.5, np.array([0.9, 0.5, 0.1]) / 1.5
    expected = sum(found[i] * (spared[:i].sum() + spared[i] / 2) for i in range(3))
    assert result.value == pytest.approx(expected, abs=0.03)
    assert result.low < expected < result.high


def test_sites_of_one_prevalence_tell_nothing():
    random = np.random.default_rng(1)
    values = [
        site_baseline(random.integers(0, 2, 400), np.arange(400) % 3, np.arange(400), seed=seed).value
        for seed in range(10)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)
    assert site_baseline([0, 1] * 20, ["a"] * 40, range(40)).reason == "a single site"
    assert site_baseline([1] * 40, ["a", "b"] * 20, range(40)).value is None


def test_features_that_carry_the_site_are_found_by_the_probe():
    random = np.random.default_rng(0)
    site = np.array(["a", "b", "c"])[np.arange(240) % 3]
    noise = random.normal(size=(240, 80))
    blind = site_probe(noise, site, np.arange(240))
    assert blind.chance == pytest.approx(1 / 3)
    assert blind.balanced_accuracy.low < 1 / 3 < blind.balanced_accuracy.high
    seen = site_probe(noise + 4 * (site == "a")[:, None] * random.normal(size=80), site, np.arange(240))
    assert seen.sites["a"].value > 0.99
    assert 0.6 < seen.balanced_accuracy.value < 0.8  # a surely, b and c by chance
    assert (seen.balanced_accuracy.n, seen.balanced_accuracy.clusters) == (240, 240)


def test_the_probe_keeps_patients_together():
    """Features are the patient's alone: told apart by patient, not by site."""
    random = np.random.default_rng(2)
    person = np.repeat(np.arange(40), 6)
    features = random.normal(size=(40, 30))[person] + 0.01 * random.normal(size=(240, 30))
    site = np.where(person % 2, "a", "b")
    assert site_probe(features, site, person).balanced_accuracy.value < 0.75
    assert site_probe(features, site, np.arange(240)).balanced_accuracy.value > 0.9


def test_the_probe_needs_sites_with_patients_and_finite_features():
    with pytest.raises(ValueError, match="two sites of 10 patients are needed"):
        site_probe(np.zeros((30, 2)), ["a"] * 25 + ["b"] * 5, range(30))
    with pytest.raises(ValueError, match="two sites of 10 patients are needed"):
        site_probe(np.zeros((30, 2)), ["a"] * 30, range(30))
    with pytest.raises(ValueError, match="must be finite, one row for each of 30 cases"):
        site_probe(np.full((30, 2), np.nan), ["a", "b"] * 15, range(30))


def test_ages_outside_the_training():
    result = ages_outside(pd.Series(["0-4", "18-39", None, "65-89", "", "5-17"]), trained=("0-4", "5-17"))
    assert (result.k, result.n, result.unknown, result.value) == (2, 4, 2, 0.5)
    assert ages_outside(["", ""], trained=["0-4"]).value is None
