# SPDX-License-Identifier: Apache-2.0
"""The leak check finds what marks positives, and finds nothing in the simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_finding_cases import made_normals

from monai_cnnprimer.validate.findings import MM_BINS, normals, simulated
from monai_cnnprimer.validate.findings.leak import EXTREMES, clustered_auroc, leak_check
from monai_cnnprimer.validate.statistics import auroc


@pytest.fixture(scope="module")
def cases():
    return simulated(made_normals(60, side=80), MM_BINS, 0.7, 0, 60)


def changed(cases, change):
    """The cases with only the positive images changed."""
    positive = (cases.table["label"] == 1).to_numpy()
    images = cases.images.copy()
    images[positive] = change(images[positive])
    return replace(cases, images=images)


def test_the_simulation_leaks_nothing(cases):
    result = leak_check(cases)
    assert result["verdict"] == "clean"
    assert result["why"] == []
    assert (result["n"], result["positives"], result["clusters"]) == (360, 300, 60)
    extremes = [figure for figure in result["figures"] if figure["figure"] in EXTREMES]
    assert {figure["size_bin"] for figure in extremes} == {"all", *cases.table["size_bin"]} - {"none"}
    assert max(abs(figure["value"] - 0.5) for figure in extremes) < 0.02


def test_nor_in_phantoms():
    found = normals(("phantom",), 64, 12, 0, shares=(0.0, 0.0, 1.0))
    result = leak_check(simulated(found, (13.0, 22.0), 0.7, 0, 12))
    extremes = [figure["value"] for figure in result["figures"] if figure["figure"] in EXTREMES]
    assert max(abs(value - 0.5) for value in extremes) < 0.06


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        # The pilot's: intensities were clipped before the nodule went in.
        (lambda images: images.clip(0.15, 0.4), "maximum"),
        (lambda images: (images * 255).round() / np.float32(255), "8-bit steps"),
        (lambda images: images - images.min((1, 2), keepdims=True), "zeros"),
    ],
)
def test_positives_that_were_treated_otherwise_are_found(cases, change, culprit):
    result = leak_check(changed(cases, change))
    assert result["verdict"] == "leaks"
    assert any(text.startswith(f"{culprit}, all: AUROC") for text in result["why"])
    found = {figure["figure"]: figure for figure in result["figures"] if figure["size_bin"] == "all"}
    assert abs(found[culprit]["value"] - 0.5) > 0.45
    assert found["logistic regression on the extremes"]["value"] > 0.95


def test_a_brighter_mean_is_told_but_does_not_count(cases):
    result = leak_check(changed(cases, lambda images: images**0.8))
    mean = next(figure for figure in result["figures"] if figure["figure"] == "mean" and figure["size_bin"] == "all")
    assert mean["verdict"] == "leaks"
    assert not mean["required"]


def test_a_size_is_compared_with_the_partners_of_its_nodules_only(cases):
    some = (cases.table["size_bin"] != "3-5 mm").to_numpy() | (np.arange(len(cases)) < 120)
    result = leak_check(cases.take(some))
    smallest = [figure for figure in result["figures"] if figure["size_bin"] == "3-5 mm"]
    assert {figure["n"] for figure in smallest} == {40}


def test_few_cases_decide_nothing(cases):
    table = cases.table
    few = cases.take(
        np.flatnonzero(table["pair_id"].isin(["n0", "n1", "n2"]) & table["size_bin"].isin(["none", "3-5 mm"]))
    )
    unpaired = replace(few, table=few.table.assign(pair_id=few.table["case_id"]))
    assert leak_check(unpaired)["verdict"] == "undecided"


def test_it_needs_both_classes_and_two_radiographs(cases):
    with pytest.raises(ValueError, match="with and without a finding"):
        leak_check(cases.take((cases.table["label"] == 1).to_numpy()))
    with pytest.raises(ValueError, match="two radiographs or more"):
        leak_check(cases.take(range(6)))


def test_with_each_case_its_own_cluster_the_interval_is_delongs():
    random = np.random.default_rng(0)
    labels = random.random(400) < 0.4
    scores = random.normal(labels * 0.7, 1).round(1)
    value, low, high = clustered_auroc(labels, scores, np.arange(400))
    expected = auroc(labels.astype(int), scores)
    assert value == pytest.approx(expected.value)
    # Obuchowski divides by clusters less one, DeLong by cases of each class less one.
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=3e-4)


def test_the_interval_of_pairs_covers_as_often_as_it_says():
    random, covered = np.random.default_rng(1), 0
    for _ in range(300):
        patient = random.normal(size=60)
        scores = np.concatenate([patient, patient + random.normal(0.3, 0.5, 60)])
        labels, clusters = np.repeat([False, True], 60), np.tile(np.arange(60), 2)
        _, low, high = clustered_auroc(labels, scores, clusters)
        # The difference of two cases of different patients is normal: mean 0.3, variance 1 + 1 + 0.25.
        covered += low <= 0.5792597 <= high
    assert covered / 300 == pytest.approx(0.95, abs=0.035)
