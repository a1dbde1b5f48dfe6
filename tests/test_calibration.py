# SPDX-License-Identifier: Apache-2.0
"""Calibration and net benefit against closed forms, scikit-learn, root finding and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from monai_cnnprimer.validate.statistics import calibration, decision_curve, reliability_curve


@pytest.fixture
def overconfident() -> tuple[np.ndarray, np.ndarray]:
    """500 labels whose true log-odds are 0.4 + 0.6 of the predicted ones."""
    random = np.random.default_rng(2)
    predicted = random.normal(0, 2, size=500)
    return (random.random(500) < expit(0.4 + 0.6 * predicted)).astype(int), expit(predicted)


def test_two_probabilities_have_a_closed_form():
    # 2 of 10 at 0.3, 15 of 20 at 0.6: the regression passes through both shares.
    labels = np.repeat([1, 0, 1, 0], [2, 8, 15, 5])
    result = calibration(labels, np.repeat([0.3, 0.6], [10, 20]))
    apart = logit(0.6) - logit(0.3)
    slope = (logit(0.75) - logit(0.2)) / apart
    error = np.sqrt(1 / 2 + 1 / 8 + 1 / 15 + 1 / 5) / apart
    assert result.slope.value == pytest.approx(slope, rel=1e-9)
    assert result.slope.high - result.slope.value == pytest.approx(1.959963985 * error, rel=1e-7)
    assert result.intercept.value == pytest.approx(logit(0.2) - slope * logit(0.3), rel=1e-8)
    assert result.slope.n == 30


def test_slope_and_intercept_are_those_of_scikit_learn(overconfident):
    labels, probability = overconfident
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(probability)[:, None], labels)
    result = calibration(labels, probability)
    assert result.slope.value == pytest.approx(model.coef_[0, 0], abs=1e-5)
    assert result.intercept.value == pytest.approx(model.intercept_[0], abs=1e-5)
    assert result.slope.low < 0.6 < result.slope.high


def test_in_the_large_makes_the_expected_number_the_observed_one(overconfident):
    labels, probability = overconfident
    shift = brentq(lambda a: expit(a + logit(probability)).sum() - labels.sum(), -5, 5)
    result = calibration(labels, probability).in_the_large
    assert result.value == pytest.approx(shift, abs=1e-9)
    risk = expit(shift + logit(probability))
    assert result.high - result.low == pytest.approx(2 * 1.959963985 / np.sqrt((risk * (1 - risk)).sum()), rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(8)
    held = np.zeros(3)
    for _ in range(200):
        predicted = random.normal(size=300)
        labels = random.random(300) < expit(predicted)
        result = calibration(labels, expit(predicted))
        limits = ((result.slope, 1), (result.intercept, 0), (result.in_the_large, 0))
        held += [estimate.low <= truth <= estimate.high for estimate, truth in limits]
    assert held.min() / 200 > 0.9
    assert held.max() / 200 < 0.99


def test_brier_score_is_that_of_scikit_learn(overconfident):
    labels, probability = overconfident
    result = calibration(labels, probability).brier
    assert result.value == pytest.approx(brier_score_loss(labels, probability), abs=1e-12)
    errors = (labels - probability) ** 2
    assert result.high - result.value == pytest.approx(1.959963985 * errors.std(ddof=1) / np.sqrt(500), rel=1e-9)
    assert calibration([0, 0, 1], [0.0, 0.0, 0.1]).brier.low == 0.0


def test_curve_and_error_are_those_of_scikit_learn(overconfident):
    labels, probability = overconfident
    curve = reliability_curve(labels, probability)
    observed, predicted = calibration_curve(labels, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([part.observed.value for part in curve], observed)
    np.testing.assert_allclose([part.predicted for part in curve], predicted)
    assert [part.observed.n for part in curve] == [50] * 10
    assert all(part.lowest <= part.predicted <= part.highest for part in curve)
    result = calibration(labels, probability).ece
    assert result.value == pytest.approx(np.abs(observed - predicted).mean(), abs=1e-12)
    assert result.low < result.value < result.high
    assert (result.n, result.bins) == (500, 10)


def test_error_by_chance_is_what_calibrated_models_stay_below():
    random = np.random.default_rng(3)
    probability = random.random(200)
    errors = [calibration(random.random(200) < probability, probability).ece for _ in range(100)]
    assert 0.9 < np.mean([error.value <= error.by_chance for error in errors]) <= 1.0
    far = calibration(random.random(200) < 0.5, probability).ece
    assert far.value > far.by_chance


def test_equal_probabilities_stay_in_one_bin():
    curve = reliability_curve([0, 1, 1, 0, 1], [0.5, 0.5, 0.5, 0.5, 0.9], bins=5)
    assert [(part.observed.k, part.observed.n) for part in curve] == [(2, 4), (1, 1)]
    assert calibration([0, 1], [0.5, 0.5]).ece.bins == 1


@pytest.mark.parametrize(
    ("labels", "probability"),
    [([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]), ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]), ([0, 1, 0, 1], [0.5] * 4),
     ([0, 1, 0, 1], [0.2, 0.5, 0.5, 0.9])],
)  # fmt: skip
def test_perfectly_parted_classes_have_no_slope(labels, probability):
    result = calibration(labels, probability)
    assert (result.slope.value, result.intercept.value) == (None, None)
    assert result.in_the_large.value is not None


@pytest.mark.parametrize(("labels", "value"), [([], None), ([0, 0], 0.05), ([1], 0.64)])
def test_one_class_or_none_gives_what_it_can(labels, value):
    result = calibration(labels, [0.1, 0.3][: len(labels)] if len(labels) != 1 else [0.2])
    assert (result.slope.value, result.in_the_large.value) == (None, None)
    assert result.brier.value == (None if value is None else pytest.approx(value))
    assert (result.ece.value is None) == (not labels)


def test_certain_and_wrong_probabilities_are_finite():
    labels = np.tile([0, 1], 50)
    result = calibration(labels, np.where(np.arange(100) < 4, 1.0 - labels, labels))
    assert np.isfinite([result.slope.value, result.slope.low, result.in_the_large.high]).all()


def test_bad_probabilities_are_named():
    for figure in (calibration, reliability_curve, decision_curve):
        with pytest.raises(ValueError, match="probabilities must lie between 0 and 1"):
            figure([0, 1], [0.5, 1.5])
    with pytest.raises(ValueError, match="0 bins"):
        reliability_curve([0, 1], [0.5, 0.6], bins=0)


def test_net_benefit_is_true_positives_less_weighed_false_ones(overconfident):
    labels, probability = overconfident
    for point in decision_curve(labels, probability, thresholds=[0.1, 0.5, 0.8]):
        called, weight = probability >= point.threshold, point.threshold / (1 - point.threshold)
        true, false = (called & (labels == 1)).sum(), (called & (labels == 0)).sum()
        assert point.value == pytest.approx(true / 500 - false / 500 * weight)
        assert point.everyone == pytest.approx(labels.mean() - (1 - labels.mean()) * weight)
        assert point.low < point.value < point.high
        assert point.n == 500


def test_net_benefit_of_a_perfect_model_is_the_prevalence():
    points = decision_curve([0, 0, 0, 1], [0.0, 0.0, 0.0, 1.0])
    assert [point.value for point in points] == [0.25] * 19
    assert decision_curve([], [])[0].value is None
    with pytest.raises(ValueError, match="lies above 0 and below 1"):
        decision_curve([0, 1], [0.1, 0.2], thresholds=[1.0])
