# SPDX-License-Identifier: Apache-2.0
"""Whether probabilities mean what they say: logistic recalibration, Brier score, expected calibration error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import rankdata

from monai_cnnprimer.validate.statistics.estimate import Z95, Estimate, checked_probabilities, estimate_of_mean
from monai_cnnprimer.validate.statistics.proportions import Proportion, proportion

Floats = NDArray[np.float64]
BINS = 10
SIMULATIONS = 2000
# No data set of images can tell a risk of one in ten million from none; beyond, log-odds would be all leverage.
NEAREST = 1e-7
ROUNDING = 1e-12  # of a case's log-likelihood
STEPS = 100


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error over `bins` of equal mass; 95 % of calibrated models stay below `by_chance`."""

    value: float | None
    low: float | None
    high: float | None
    by_chance: float | None
    n: int
    bins: int


@dataclass(frozen=True)
class Calibration:
    """Calibration of probabilities.

    Attributes:
        slope: of the outcome's log-odds on the predicted ones; 1 is right, below 1 the predictions are too extreme.
        intercept: of the same regression; 0 is right.
        in_the_large: the intercept with the slope held at 1; above 0 the predictions are too low on the whole.
        brier: mean squared error of the probabilities; 0 is best.
        ece: mean distance of predicted and observed share over bins.
    """

    slope: Estimate
    intercept: Estimate
    in_the_large: Estimate
    brier: Estimate
    ece: CalibrationError


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases of like probability: the least, mean and highest predicted, and the share that has the finding."""

    lowest: float
    predicted: float
    highest: float
    observed: Proportion


def calibration(y: ArrayLike, probability: ArrayLike, bins: int = BINS, seed: int = 0) -> Calibration:
    """Slope and intercept of logistic recalibration (Cox, Biometrika 1958; 45:562-565), Brier score and ECE.

    Slope and intercepts are maximum-likelihood with Wald intervals. The Brier score has the normal interval of a mean.
    The ECE (Naeini et al., AAAI 2015) is over bins of equal mass; its interval and `by_chance` come from redrawing the
    labels of each bin. Redrawing adds noise, which the ECE counts as miscalibration, so the interval is shifted back by
    the mean of that excess and cut at 0. Probabilities nearer than 1e-7 to 0 or 1 are taken at that distance for the
    logarithm of their odds.

    Args:
        y: ``(n,)`` labels, 0 or 1.
        probability: ``(n,)`` of label 1, between 0 and 1.
        bins: number of bins, each with as many cases as another up to ties.
        seed: of the redrawn labels.

    Returns:
        Slope and intercepts are None where a class is missing; slope and intercept also where they are not finite: the
        classes are perfectly apart, or all probabilities are equal.

    Raises:
        ValueError: as `auroc`; a probability outside 0 to 1; fewer than one bin.

    Example:
        >>> result = calibration([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.8, 0.9])
        >>> round(result.brier.value, 4)
        0.1583
    """
    labels, probabilities = checked_probabilities(y, probability)
    logits = logit(np.clip(probabilities, NEAREST, 1 - NEAREST))
    intercept, slope = _recalibration(labels, logits)
    brier = estimate_of_mean((probabilities - labels) ** 2, lowest=0.0)
    error = _calibration_error(labels, probabilities, bins, seed)
    return Calibration(slope, intercept, _in_the_large(labels, logits), brier, error)


def reliability_curve(y: ArrayLike, probability: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """Predicted against observed, in bins of equal mass; equal probabilities are never parted, so bins may be fewer.

    Raises:
        ValueError: as `calibration`.

    Example:
        >>> curve = reliability_curve([0, 1, 1, 1], [0.25, 0.25, 0.75, 0.75], bins=2)
        >>> [(part.predicted, part.observed.k, part.observed.n) for part in curve]
        [(0.25, 1, 2), (0.75, 2, 2)]
    """
    labels, probabilities = checked_probabilities(y, probability)
    number = _bin_numbers(probabilities, bins)
    parts = [(probabilities[number == bin_], labels[number == bin_]) for bin_ in range(number.max(initial=-1) + 1)]
    return [
        ReliabilityBin(float(p.min()), float(p.mean()), float(p.max()), proportion(int(found.sum()), found.size))
        for p, found in parts
    ]


def _bin_numbers(probabilities: Floats, bins: int) -> NDArray[np.intp]:
    """Of each case the number of its bin, counted up without gaps; ties share their mean rank and so their bin."""
    if bins < 1:
        raise ValueError(f"{bins} bins: at least one is needed")
    places = (rankdata(probabilities) - 0.5) * bins // max(1, probabilities.size)
    return np.unique(places, return_inverse=True)[1]


def _calibration_error(labels: NDArray[np.bool_], probabilities: Floats, bins: int, seed: int) -> CalibrationError:
    number = _bin_numbers(probabilities, bins)
    if not labels.size:
        return CalibrationError(None, None, None, None, 0, bins)
    sizes, found = np.bincount(number), np.bincount(number, weights=labels)
    expected = np.bincount(number, weights=probabilities)
    random = np.random.default_rng(seed)
    as_seen = random.binomial(sizes, found / sizes, size=(SIMULATIONS, sizes.size))
    # Cases of one bin differ in probability, which makes their sum less variable than a binomial's: a careful bound.
    as_said = random.binomial(sizes, np.clip(expected / sizes, 0, 1), size=(SIMULATIONS, sizes.size))
    value = float(np.abs(found - expected).sum() / labels.size)
    redrawn, calibrated = (np.abs(counts - expected).sum(axis=1) / labels.size for counts in (as_seen, as_said))
    low, high = np.percentile(redrawn, [2.5, 97.5]) - (redrawn.mean() - value)
    by_chance = float(np.percentile(calibrated, 95))
    return CalibrationError(value, max(0.0, float(low)), float(high), by_chance, labels.size, sizes.size)


def _in_the_large(labels: NDArray[np.bool_], logits: Floats) -> Estimate:
    """The shift of all log-odds under which as many positive cases are expected as there are."""
    positives = int(labels.sum())
    if positives in (0, labels.size):
        return Estimate(None, None, None, labels.size)
    ends = -logits.max() - 40, -logits.min() + 40  # there all cases are expected negative, or positive
    shift = brentq(lambda moved: expit(logits + moved).sum() - positives, *ends, xtol=1e-12)
    risk = expit(logits + shift)
    return _wald(shift, 1 / float((risk * (1 - risk)).sum()), labels.size)


def _recalibration(labels: NDArray[np.bool_], logits: Floats) -> tuple[Estimate, Estimate]:
    """Intercept and slope of the outcome's log-odds on `logits`, by Newton's method with halved steps."""
    unknown = Estimate(None, None, None, labels.size)
    if not _overlap(labels, logits):
        return unknown, unknown
    middle, scale = float(logits.mean()), float(logits.std())
    design = np.column_stack([np.ones(labels.size), (logits - middle) / scale])
    beta, information = np.zeros(2), np.zeros((2, 2))
    likelihood = _log_likelihood(labels, design @ beta)
    for _ in range(STEPS):
        risk = expit(design @ beta)
        information = (design * (risk * (1 - risk))[:, None]).T @ design
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return unknown, unknown  # so nearly apart that the maximum is as good as at infinity
        step = np.linalg.solve(information, design.T @ (labels - risk))
        if np.abs(step).max() < 1e-9:
            break
        while (moved := _log_likelihood(labels, design @ (beta + step))) < likelihood - ROUNDING * labels.size:
            step /= 2
        beta, likelihood = beta + step, moved
    back = np.array([[1.0, -middle / scale], [0.0, 1 / scale]])  # to the logits as they were
    (intercept, slope), variance = back @ beta, (back @ np.linalg.inv(information) @ back.T).diagonal()
    return _wald(intercept, variance[0], labels.size), _wald(slope, variance[1], labels.size)


def _overlap(labels: NDArray[np.bool_], logits: Floats) -> bool:
    """Whether the regression on `logits` has a finite maximum (Albert and Anderson, Biometrika 1984; 71:1-10)."""
    positive, negative = logits[labels], logits[~labels]
    if not positive.size or not negative.size:
        return False
    return bool(positive.min() < negative.max() and negative.min() < positive.max())


def _log_likelihood(labels: NDArray[np.bool_], log_odds: Floats) -> float:
    return float(-np.logaddexp(0.0, np.where(labels, -log_odds, log_odds)).sum())


def _wald(value: float, variance: float, n: int) -> Estimate:
    half = Z95 * math.sqrt(variance)
    return Estimate(float(value), float(value) - half, float(value) + half, n)
