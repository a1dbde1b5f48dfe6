# SPDX-License-Identifier: Apache-2.0
"""Areas, shares, thresholds and tests against pROC, scikit-learn, printed figures, counting by hand, closed forms."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from monai_cnnprimer.validate.statistics import (
    auroc,
    auroc_against_rest,
    average_precision,
    bagged_threshold,
    compare_auroc,
    compare_proportions,
    holm,
    mcnemar,
    predictive_values,
    proportion,
    threshold_for,
)

DATA = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "aSAH.csv").exists(), reason="aSAH.csv of pROC is not here (CNNPRIMER_DATA)"
)


@pytest.fixture(scope="module")
def asah() -> dict[str, np.ndarray]:
    rows = list(csv.DictReader((DATA / "aSAH.csv").read_text().splitlines()))
    markers = {name: np.array([float(row[name]) for row in rows]) for name in ("wfns", "s100b", "ndka")}
    return {"poor": np.array([row["outcome"] == "Poor" for row in rows]), **markers}


@pytest.fixture(scope="module")
def proc() -> dict[str, float]:
    return json.loads((DATA / "reference.json").read_text())["proc_asah"]


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two scores of 400 cases, rounded so that many tie."""
    random = np.random.default_rng(7)
    labels = random.random(400) < 0.3
    first = np.round(random.normal(size=400) + labels, 1)
    return labels.astype(int), first, np.round(0.5 * first + random.normal(size=400), 1)


@needs_data
def test_areas_are_those_of_proc(asah, proc):
    assert auroc(asah["poor"], asah["wfns"]).value == pytest.approx(proc["auc_wfns"], abs=1e-5)
    result = auroc(asah["poor"], asah["s100b"])
    assert result.value == pytest.approx(proc["auc_s100b"], abs=1e-5)
    assert (result.n, result.positives) == (proc["n"], proc["poor"])


@needs_data
def test_interval_is_the_one_proc_prints(asah):
    # Robin et al., BMC Bioinformatics 2011; 12:77: "95% CI: 0.6301-0.8326 (DeLong)" for s100b.
    result = auroc(asah["poor"], asah["s100b"])
    assert (result.low, result.high) == (pytest.approx(0.6301, abs=5e-5), pytest.approx(0.8326, abs=5e-5))


@needs_data
def test_paired_comparison_is_that_of_proc(asah, proc):
    result = compare_auroc(asah["poor"], asah["wfns"], asah["s100b"])
    assert result.z == pytest.approx(proc["delong_z_wfns_s100b"], abs=1e-5)
    assert result.p == pytest.approx(proc["delong_p_wfns_s100b"], abs=1e-5)
    assert result.difference == pytest.approx(proc["auc_wfns"] - proc["auc_s100b"], abs=1e-5)


@needs_data
def test_threshold_is_the_best_one_of_proc(asah):
    # coords(roc, "best") of s100b: threshold 0.205, specificity 0.8055556, sensitivity 0.6341463.
    threshold = threshold_for(asah["poor"], asah["s100b"])
    positive = asah["s100b"] >= threshold
    assert threshold == pytest.approx(0.205, abs=1e-9)
    assert (~positive[~asah["poor"]]).mean() == pytest.approx(0.8055556, abs=1e-6)
    assert positive[asah["poor"]].mean() == pytest.approx(0.6341463, abs=1e-6)


def test_area_with_ties_is_that_of_scikit_learn(scores):
    labels, first, second = scores
    assert auroc(labels, first).value == pytest.approx(roc_auc_score(labels, first), abs=1e-12)
    assert auroc(labels, second).value == pytest.approx(roc_auc_score(labels, second), abs=1e-12)


def delong_by_pairs(labels: np.ndarray, *scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and their covariance as DeLong et al. write them, over all pairs (equations 4 to 8)."""
    psi = np.array([np.heaviside(s[labels == 1][:, None] - s[labels == 0][None, :], 0.5) for s in scores])
    of_positives, of_negatives = psi.mean(axis=2), psi.mean(axis=1)
    covariance = np.cov(of_positives) / of_positives.shape[1] + np.cov(of_negatives) / of_negatives.shape[1]
    return psi.mean(axis=(1, 2)), covariance


def test_paired_comparison_is_the_one_over_all_pairs(scores):
    labels, first, second = scores
    areas, covariance = delong_by_pairs(labels, first, second)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    result = compare_auroc(labels, first, second)
    assert result.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert result.z == pytest.approx((areas[0] - areas[1]) / error, rel=1e-9)
    assert result.high - result.low == pytest.approx(2 * 1.959963985 * error, rel=1e-8)
    single = auroc(labels, first)
    assert single.high - single.low == pytest.approx(2 * 1.959963985 * np.sqrt(covariance[0, 0]), rel=1e-8)


def test_interval_holds_the_true_area_as_often_as_it_says():
    # Two unit normals one apart: the true area is Phi(1/sqrt(2)) = 0.7602499.
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1], 60)
    intervals = [auroc(labels, random.normal(size=120) + labels) for _ in range(1000)]
    assert 0.925 < np.mean([i.low <= 0.7602499 <= i.high for i in intervals]) < 0.97


def test_swapping_the_models_turns_the_difference_round(scores):
    labels, first, second = scores
    there, back = compare_auroc(labels, first, second), compare_auroc(labels, second, first)
    assert (there.difference, there.z, there.p) == (-back.difference, -back.z, back.p)


def test_same_ranking_differs_by_nothing(scores):
    labels, first, _ = scores
    result = compare_auroc(labels, first, np.exp(first))
    assert (result.difference, result.low, result.high, result.z, result.p) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_opposite_perfect_rankings_have_no_test():
    result = compare_auroc([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (result.difference, result.z, result.p) == (1.0, None, None)


@pytest.mark.parametrize(("labels", "positives"), [([], 0), ([0, 0, 0], 0), ([1, 1], 2)])
def test_without_both_classes_there_is_no_area(labels, positives):
    result = auroc(labels, np.arange(len(labels)))
    assert (result.value, result.low, result.high) == (None, None, None)
    assert (result.n, result.positives) == (len(labels), positives)
    comparison = compare_auroc(labels, np.arange(len(labels)), np.arange(len(labels)))
    assert (comparison.difference, comparison.p, comparison.n) == (None, None, len(labels))


def test_one_case_of_a_class_gives_an_area_without_interval():
    result = auroc([0, 0, 0, 1], [1, 2, 3, 2.5])
    assert result.value == pytest.approx(2 / 3)
    assert (result.low, result.high) == (None, None)
    assert compare_auroc([0, 0, 1], [1, 2, 3], [3, 2, 1]).z is None


def test_constant_score_is_chance():
    assert auroc([0, 1, 0, 1], [5, 5, 5, 5]).value == 0.5


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, -1], [1, 2, 3], "labels must be 0 or 1"),
        ([0, 1], [1, float("nan")], "scores must be finite"),
        ([0, 1], [1, 2, 3], "of one length"),
        ([0, None], [1, 2], "labels must be 0 or 1"),
        (pd.array([0, None], dtype="Int64"), [1, 2], "labels must be 0 or 1"),
        (["NORMAL", "PNEUMONIA"], [1, 2], "labels must be 0 or 1"),
        ([0, 1], ["high", "low"], "scores must be finite"),
    ],
)
def test_bad_input_is_named(labels, scores, message):
    for area in (auroc, average_precision):
        with pytest.raises(ValueError, match=message):
            area(labels, scores)


def test_area_of_a_group_against_the_rest_has_the_variance_of_both(scores):
    labels, first, _ = scores
    inside = np.arange(400) % 3 == 0
    group, rest = auroc(labels[inside], first[inside]), auroc(labels[~inside], first[~inside])
    result = auroc_against_rest(labels, first, inside)
    assert result.difference == pytest.approx(group.value - rest.value, abs=1e-12)
    width = np.hypot(group.high - group.low, rest.high - rest.low)
    assert result.high - result.low == pytest.approx(width, rel=1e-9)
    assert abs(result.z) == pytest.approx(abs(result.difference) / (width / 2 / 1.959963985), rel=1e-8)
    assert auroc_against_rest(labels, first, labels == 1).difference is None


def test_average_precision_with_ties_is_that_of_scikit_learn(scores):
    labels, first, second = scores
    for score in (first, second):
        assert average_precision(labels, score).value == pytest.approx(
            average_precision_score(labels, score), abs=1e-12
        )


def test_interval_of_average_precision_holds_the_long_run_value():
    random = np.random.default_rng(5)
    many = np.repeat([0, 1], [140_000, 60_000])
    truth = average_precision_score(many, random.normal(size=many.size) + many)
    labels = np.repeat([0, 1], [140, 60])
    intervals = [average_precision(labels, random.normal(size=200) + labels) for _ in range(500)]
    assert 0.9 < np.mean([i.low <= truth <= i.high for i in intervals]) < 0.99


def test_average_precision_without_a_class_or_without_an_error():
    assert average_precision([1, 1], [0, 1]).value is None
    perfect = average_precision([0, 0, 1, 1], [1, 2, 3, 4])
    assert (perfect.value, perfect.low, perfect.n, perfect.positives) == (1.0, None, 4, 2)


@needs_data
def test_wilson_intervals_are_the_published_ones():
    for row in json.loads((DATA / "reference.json").read_text())["wilson"]:
        result = proportion(row["k"], row["n"])
        assert (result.low, result.high) == (pytest.approx(row["low"], abs=5e-5), pytest.approx(row["high"], abs=5e-5))


@pytest.mark.parametrize(("k", "n"), [(1, 3), (47, 50), (390, 624)])
def test_wilson_limits_are_where_the_score_test_just_rejects(k, n):
    # The definition: |k/n - p| = 1.96 standard errors of a proportion p.
    result = proportion(k, n)
    for limit in (result.low, result.high):
        assert abs(k / n - limit) == pytest.approx(1.959963985 * np.sqrt(limit * (1 - limit) / n), rel=1e-8)


def test_wilson_at_the_ends():
    # Closed form: n / (n + z^2) and z^2 / (n + z^2).
    none, all_of_them = proportion(0, 20), proportion(20, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(3.841459 / 23.841459, abs=1e-6))
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(20 / 23.841459, abs=1e-6), 1.0)
    empty = proportion(0, 0)
    assert (empty.value, empty.low, empty.high, empty.n) == (None, None, None, 0)


def test_more_than_all_is_no_proportion():
    with pytest.raises(ValueError, match="k must lie between 0 and n"):
        proportion(3, 2)


# Newcombe, Statist. Med. 1998; 17:873-890, table II, method 10.
@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_difference_of_proportions_has_the_printed_interval(first, second, low, high):
    result = compare_proportions(proportion(*first), proportion(*second))
    assert (result.low, result.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    back = compare_proportions(proportion(*second), proportion(*first))
    assert (back.low, back.high, back.p) == pytest.approx((-result.high, -result.low, result.p), rel=1e-9)


def test_difference_of_proportions_is_tested_exactly():
    # Fisher's tea: 3 of 4 against 1 of 4, p = 34 / 70.
    assert compare_proportions(proportion(3, 4), proportion(1, 4)).p == pytest.approx(34 / 70)
    assert compare_proportions(proportion(3, 4), proportion(0, 0)).p is None


def test_predictive_values_at_the_prevalence_of_the_cases_are_the_shares_counted():
    # 90 of 100 found, 40 of 200 called wrongly: 90 of 130 calls are right, 160 of 170 others.
    values = predictive_values(proportion(90, 100), proportion(160, 200), prevalence=100 / 300)
    assert values.ppv.value == pytest.approx(90 / 130)
    assert values.npv.value == pytest.approx(160 / 170)


def test_predictive_values_have_the_logit_interval():
    # Mercaldo et al. 2007, equations 8 and 10, written out.
    values = predictive_values(proportion(90, 100), proportion(160, 200), prevalence=0.1)
    error = np.sqrt((1 - 0.9) / 0.9 / 100 + 0.8 / (1 - 0.8) / 200)
    odds = np.log(0.9 * 0.1 / (0.2 * 0.9)) + 1.959963985 * np.array([-1, 1]) * error
    np.testing.assert_allclose([values.ppv.low, values.ppv.high], 1 / (1 + np.exp(-odds)), rtol=1e-8)
    error = np.sqrt(0.9 / (1 - 0.9) / 100 + (1 - 0.8) / 0.8 / 200)
    odds = np.log(0.8 * 0.9 / (0.1 * 0.1)) + 1.959963985 * np.array([-1, 1]) * error
    np.testing.assert_allclose([values.npv.low, values.npv.high], 1 / (1 + np.exp(-odds)), rtol=1e-8)
    assert values.ppv.n == 300


def test_predictive_values_where_a_cell_is_empty():
    values = predictive_values(proportion(20, 20), proportion(30, 30), prevalence=0.2)
    assert (values.ppv.value, values.ppv.high) == (1.0, 1.0)
    assert 0.4 < values.ppv.low < 1.0
    never = predictive_values(proportion(0, 20), proportion(30, 30), prevalence=0.2)
    assert (never.ppv.value, never.npv.value) == (None, pytest.approx(0.8))
    assert predictive_values(proportion(0, 0), proportion(30, 30), prevalence=0.2).npv.value is None


def test_predictive_values_at_an_impossible_prevalence():
    with pytest.raises(ValueError, match="must lie above 0 and below 1"):
        predictive_values(proportion(1, 2), proportion(1, 2), prevalence=30)


def test_youden_threshold_reaches_the_maximum_of_the_curve(scores):
    labels, first, _ = scores
    false_positives, true_positives, _ = roc_curve(labels, first, drop_intermediate=False)
    positive = first >= threshold_for(labels, first)
    youden = positive[labels == 1].mean() - positive[labels == 0].mean()
    assert youden == pytest.approx((true_positives - false_positives).max(), abs=1e-12)


def test_of_equal_thresholds_the_most_specific_is_taken():
    # Both 1.5 and 3.5 have an index of 1/2.
    assert threshold_for([0, 1, 0, 1], [1, 2, 3, 4]) == 3.5


def calls(labels, first, threshold):
    """Sensitivity and specificity of a threshold."""
    return (first[labels == 1] >= threshold).mean(), (first[labels == 0] < threshold).mean()


@pytest.mark.parametrize("wanted", ["0.5", "0.90", "0.95", "0.99"])
def test_threshold_at_a_specificity_is_the_most_sensitive_that_keeps_it(scores, wanted):
    labels, first, _ = scores
    threshold = threshold_for(labels, first, f"specificity={wanted}")
    possible = [calls(labels, first, value) for value in np.unique(first)]
    best = max(sensitivity for sensitivity, specificity in possible if specificity >= float(wanted))
    assert calls(labels, first, threshold) == (best, pytest.approx(calls(labels, first, threshold)[1]))
    assert calls(labels, first, threshold)[1] >= float(wanted)


@pytest.mark.parametrize("wanted", ["0.5", "0.90", "0.95", "0.99"])
def test_threshold_at_a_sensitivity_is_the_most_specific_that_keeps_it(scores, wanted):
    labels, first, _ = scores
    threshold = threshold_for(labels, first, f"sensitivity={wanted}")
    possible = [calls(labels, first, value) for value in np.unique(first)]
    best = max(specificity for sensitivity, specificity in possible if sensitivity >= float(wanted))
    assert calls(labels, first, threshold)[0] >= float(wanted)
    assert calls(labels, first, threshold)[1] == best


def test_nine_of_ten_are_ninety_percent():
    # As floats 0.9 * 10 is 9, but 0.7 * 10 is more than 7 and 0.1 * 3 more than 0.3.
    labels, scores = np.repeat([0, 1], 10), np.concatenate([np.arange(10), np.full(10, 20)])
    assert threshold_for(labels, scores, "specificity=0.7") == 6.5
    assert threshold_for(labels, scores, "specificity=0.9") == 8.5
    assert threshold_for(labels, scores, "specificity=1") == 14.5


def test_a_threshold_that_calls_every_case_alike_is_none():
    with pytest.raises(
        ValueError, match="specificity=0.90 cannot be had on these cases but by calling every one negative"
    ):
        threshold_for([0, 0, 1, 1], [1, 4, 2, 3], "specificity=0.90")
    with pytest.raises(ValueError, match="sensitivity=0.95 cannot be had .* calling every one positive"):
        threshold_for([1, 0, 1, 0], [1, 4, 2, 3], "sensitivity=0.95")


@pytest.mark.parametrize("criterion", ["specificity", "specificity=", "specificity=90", "sensitivity=0", "npv=0.9"])
def test_a_criterion_that_is_none_is_told(criterion):
    with pytest.raises(ValueError, match=f"unknown criterion '{criterion}'"):
        threshold_for([0, 1], [0, 1], criterion)


def test_between_neighbouring_floats_the_upper_one_is_taken():
    low = 1.0
    high = np.nextafter(low, 2)
    assert threshold_for([0, 1], [low, high]) == high


def test_mcnemar_is_the_binomial_one():
    for b, c in ((0, 5), (1, 7), (10, 10), (30, 12)):
        tail = binom.cdf(min(b, c), b + c, 0.5)
        assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))
        assert mcnemar(c, b) == mcnemar(b, c)
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(ValueError, match="never below 0"):
        mcnemar(-1, 2)
    with pytest.raises(ValueError, match="whole number"):
        mcnemar(1.5, 2)


def test_holm_is_the_one_of_r():
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") of R: 0.05 0.08 0.09 0.09 0.09.
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, None, 0.01, 0.9]) == [pytest.approx(0.08), None, pytest.approx(0.03), pytest.approx(0.9)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([float("nan")])


def test_threshold_needs_a_known_criterion_and_both_classes():
    with pytest.raises(ValueError, match="unknown criterion 'accuracy'"):
        threshold_for([0, 1], [0, 1], "accuracy")
    with pytest.raises(ValueError, match="cases of both classes"):
        threshold_for([1, 1], [0, 1])
    assert threshold_for([0, 1], [0.5, 0.5]) == 0.5


def _overlapping(seed, n=150):
    """Labels, and probabilities of two normal distributions of log-odds, 3 apart."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, 1 / (1 + np.exp(-random.normal(3 * labels - 1.5, 1)))


def test_bagged_thresholds_vary_less_than_youdens_and_have_the_same_centre():
    samples = [_overlapping(seed) for seed in range(30)]
    plain = np.array([threshold_for(*sample) for sample in samples])
    bagged = np.array([bagged_threshold(*sample, np.arange(150), resamples=100) for sample in samples])
    plain, bagged = (np.log(values / (1 - values)) for values in (plain, bagged))
    assert bagged.std() < 0.75 * plain.std()
    assert abs(bagged.mean()) < 0.2  # the densities cross at log-odds 0


def test_bagged_threshold_draws_patients_not_images():
    labels, scores = _overlapping(1)
    doubled = [np.repeat(values, 2) for values in (labels, scores, np.arange(150))]
    assert bagged_threshold(*doubled) == pytest.approx(bagged_threshold(labels, scores, np.arange(150)), rel=1e-12)
    assert bagged_threshold(*doubled[:2], np.arange(300)) != pytest.approx(bagged_threshold(*doubled), rel=1e-6)


def test_bagged_threshold_needs_probabilities():
    with pytest.raises(ValueError, match="above 0 and below 1"):
        bagged_threshold([0, 1], [0.0, 1.0], [0, 1])
