# SPDX-License-Identifier: Apache-2.0
"""The bootstrap of whole patients: from counts as from tables, and against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_cnnprimer.validate.statistics import (
    AurocOf,
    AveragePrecisionOf,
    MeanOf,
    auroc,
    clustered_bootstrap,
    clustered_bootstraps,
)
from monai_cnnprimer.validate.statistics.bootstrap import CountedStatistic


@pytest.fixture
def cases() -> pd.DataFrame:
    """300 images of about 110 patients, with ties, rows in no order."""
    random = np.random.default_rng(1)
    table = pd.DataFrame({"patient": random.integers(120, size=300), "label": random.random(300) < 0.4})
    table["score"] = np.round(random.normal(size=300) + table["label"], 1)
    table["right"] = (table["score"] > 0.5) == table["label"]
    return table.set_index(random.permutation(300))


def _area(frame):
    return roc_auc_score(frame["label"], frame["score"])


def _precision(frame):
    return average_precision_score(frame["label"], frame["score"])


def _sensitivity(frame):
    return frame["right"][frame["label"]].mean()


@pytest.mark.parametrize(
    ("counted", "plain"),
    [
        (AurocOf("label", "score"), _area),
        (AveragePrecisionOf("label", "score"), _precision),
        (MeanOf("right", where="label"), _sensitivity),
        (MeanOf("right"), lambda frame: frame["right"].mean()),
    ],
)
def test_from_counts_as_from_tables(cases, counted, plain):
    assert isinstance(counted, CountedStatistic)
    quick = clustered_bootstrap(counted, cases, "patient", n=60, seed=3)
    slow = clustered_bootstrap(plain, cases, "patient", n=60, seed=3)
    assert (quick.value, quick.low, quick.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-12)
    assert (quick.n, quick.clusters, quick.resamples) == (300, cases["patient"].nunique(), 60)


def test_areas_from_counts_without_ties(cases):
    cases["score"] = np.random.default_rng(2).normal(size=300)
    quick = clustered_bootstrap(AurocOf("label", "score"), cases, "patient", n=30)
    assert quick.low == pytest.approx(clustered_bootstrap(_area, cases, "patient", n=30).low, abs=1e-12)


def test_whole_clusters_are_drawn(cases):
    """As many as there are, each with all of its rows and in the order of the table."""
    drawn = []
    clustered_bootstrap(lambda frame: drawn.append(frame) or 1.0, cases.reset_index(names="row"), "patient", n=20)
    rows_of = cases["patient"].value_counts()
    for frame in drawn[1:]:
        counts = frame["patient"].value_counts()
        assert ((counts % rows_of[counts.index]) == 0).all()
        assert (counts // rows_of[counts.index]).sum() == cases["patient"].nunique()
        assert frame.index.is_unique
    assert drawn[0].equals(cases.reset_index(names="row"))


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    table = pd.DataFrame({"patient": range(400), "value": values})
    result = clustered_bootstrap(MeanOf("value"), table, "patient", n=4000)
    half = 1.96 * values.std() / 20
    assert (result.low, result.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_twins_widen_the_interval_by_the_root_of_two():
    """With each row there twice the rows say nothing new; drawn as patients, nothing is gained."""
    single = pd.DataFrame({"patient": range(200), "value": np.random.default_rng(0).normal(size=200)})
    doubled = pd.concat([single, single], ignore_index=True)
    honest = clustered_bootstrap(MeanOf("value"), doubled, "patient")
    naive = clustered_bootstrap(MeanOf("value"), doubled.assign(patient=range(400)), "patient")
    alone = clustered_bootstrap(MeanOf("value"), single, "patient")
    assert (honest.low, honest.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(2), rel=0.1)


def test_area_without_clusters_agrees_with_delong():
    random = np.random.default_rng(4)
    table = pd.DataFrame({"patient": range(500), "label": random.random(500) < 0.3})
    table["score"] = random.normal(size=500) + table["label"]
    drawn, formula = (
        clustered_bootstrap(AurocOf("label", "score"), table, "patient"),
        auroc(table["label"], table["score"]),
    )
    assert (drawn.low, drawn.high) == pytest.approx((formula.low, formula.high), abs=0.01)


def test_same_seed_same_interval_and_the_global_generator_is_left_alone(cases):
    before = np.random.get_state()[1].copy()
    first, again = (clustered_bootstrap(AurocOf("label", "score"), cases, "patient", 50, seed=9) for _ in range(2))
    other = clustered_bootstrap(AurocOf("label", "score"), cases, "patient", 50, seed=10)
    assert first == again != other
    assert (np.random.get_state()[1] == before).all()


def test_several_statistics_share_the_resamples(cases):
    both = clustered_bootstraps({"a": AurocOf("label", "score"), "b": MeanOf("right")}, cases, "patient", 50)
    assert both["a"] == clustered_bootstrap(AurocOf("label", "score"), cases, "patient", 50)
    assert both["b"] == clustered_bootstrap(MeanOf("right"), cases, "patient", 50)


def test_a_single_cluster_has_no_interval():
    table = pd.DataFrame({"patient": ["a"] * 4, "value": [1.0, 2.0, 3.0, 4.0]})
    result = clustered_bootstrap(MeanOf("value"), table, "patient")
    assert (result.value, result.low, result.high, result.clusters, result.resamples) == (2.5, None, None, 1, 0)


def test_an_empty_table_has_nothing():
    result = clustered_bootstrap(_area, pd.DataFrame({"patient": [], "label": [], "score": []}), "patient")
    assert (result.value, result.low, result.n, result.clusters) == (None, None, 0, 0)


def test_resamples_without_a_value_are_counted():
    """Of 40 patients 4 have the finding: (36 / 40)^40 = 1.5 % of the resamples have none, and no sensitivity."""
    table = pd.DataFrame({"patient": range(40), "label": [True] * 4 + [False] * 36, "right": [True, False] * 20})
    for statistic in (
        MeanOf("right", where="label"),
        lambda frame: _sensitivity(frame) if frame["label"].any() else None,
    ):
        result = clustered_bootstrap(statistic, table, "patient", n=400)
        assert 0 < result.undefined < 20
        assert (result.low, result.high) == (0.0, 1.0)
    one = table.assign(label=[True] + [False] * 39)  # 36 % have none
    result = clustered_bootstrap(MeanOf("right", where="label"), one, "patient", n=400)
    assert (result.value, result.low, result.high) == (1.0, None, None)
    assert result.undefined == pytest.approx(400 * 0.363, rel=0.25)


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_statistic_that_is_undefined_on_all_cases(cases, nothing):
    result = clustered_bootstrap(lambda frame: nothing, cases, "patient")
    assert (result.value, result.low, result.high, result.resamples) == (None, None, None, 0)


def test_one_class_only_has_no_area(cases):
    results = clustered_bootstraps(
        {"area": AurocOf("label", "score"), "precision": AveragePrecisionOf("label", "score")},
        cases[~cases["label"]],
        "patient",
    )
    assert [result.value for result in results.values()] == [None, None]


def test_bad_input_is_named(cases):
    with pytest.raises(ValueError, match="no column 'person'"):
        clustered_bootstrap(_area, cases, "person")
    with pytest.raises(ValueError, match="0 resamples"):
        clustered_bootstrap(_area, cases, "patient", n=0)
    with pytest.raises(ValueError, match="1 of 300 cases have no patient"):
        clustered_bootstrap(_area, cases.assign(patient=[np.nan, *cases["patient"][1:]]), "patient")
    with pytest.raises(ValueError, match="scores must be finite"):
        clustered_bootstrap(AurocOf("label", "score"), cases.assign(score=np.nan), "patient")
