# SPDX-License-Identifier: Apache-2.0
"""Figures with their intervals: AUROC after DeLong, proportions after Wilson, the threshold that Youden's index picks.

Labels are 0 and 1, a higher score speaks for 1, intervals are two-sided at 95 %. What the cases cannot give is None,
never NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

_Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve, its interval, the number of cases and of positive ones among them."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int


@dataclass(frozen=True)
class AurocDifference:
    """AUROC of the first score minus that of the second, on the same `n` cases, with the paired two-sided test."""

    difference: float | None
    low: float | None
    high: float | None
    z: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class Proportion:
    """`k` of `n`, with its interval."""

    value: float | None
    low: float | None
    high: float | None
    k: int
    n: int


def auroc(y: ArrayLike, score: ArrayLike) -> Auroc:
    """Area under the ROC curve with the interval of DeLong et al. (Biometrics 1988; 44:837-845).

    The interval is the plain normal one, cut to [0, 1], as pROC's ``ci.auc`` prints it. It has no width where the
    classes are perfectly apart. Ties count one half. Time is O(n log n) (Sun and Xu, IEEE SPL 2014; 21:1389-1393).

    Args:
        y: ``(n,)`` labels, 0 or 1.
        score: ``(n,)`` finite scores.

    Returns:
        The value is None where a class is missing, the interval also where a class has a single case.

    Raises:
        ValueError: other labels than 0 and 1, a score that is not finite, lengths that differ.

    Example:
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
        0.75
    """
    labels, scores = _checked(y, score)
    positives = int(labels.sum())
    if positives in (0, labels.size):
        return Auroc(None, None, None, labels.size, positives)
    value, of_positives, of_negatives = _placements(labels, scores)
    error = _standard_error(of_positives, of_negatives)
    if error is None:
        return Auroc(value, None, None, labels.size, positives)
    low, high = max(0.0, value - _Z95 * error), min(1.0, value + _Z95 * error)
    return Auroc(value, low, high, labels.size, positives)


def compare_auroc(y: ArrayLike, a: ArrayLike, b: ArrayLike) -> AurocDifference:
    """Paired test of two scores on the same cases (DeLong et al., Biometrics 1988; 44:837-845).

    Args:
        y: ``(n,)`` labels, 0 or 1.
        a: ``(n,)`` finite scores of the first model.
        b: ``(n,)`` finite scores of the second model, same cases in the same order.

    Returns:
        All figures are None where a class is missing. Where the difference has no variance, `z` and `p` are 0 and 1
        for scores that rank alike, else None.

    Raises:
        ValueError: as `auroc`.
    """
    labels, first = _checked(y, a)
    _, second = _checked(y, b)
    if labels.sum() in (0, labels.size):
        return AurocDifference(None, None, None, None, None, labels.size)
    value_a, positives_a, negatives_a = _placements(labels, first)
    value_b, positives_b, negatives_b = _placements(labels, second)
    # The variance of paired placements' differences equals var(a) + var(b) - 2 cov(a, b), without its cancellation.
    error = _standard_error(positives_a - positives_b, negatives_a - negatives_b)
    difference = value_a - value_b
    if error is None:
        return AurocDifference(difference, None, None, None, None, labels.size)
    low, high = max(-1.0, difference - _Z95 * error), min(1.0, difference + _Z95 * error)
    if error == 0.0:
        z, p = (0.0, 1.0) if difference == 0.0 else (None, None)
    else:
        z = difference / error
        p = float(2.0 * norm.sf(abs(z)))
    return AurocDifference(difference, low, high, z, p, labels.size)


def proportion(k: int, n: int) -> Proportion:
    """`k` of `n` with Wilson's score interval (JASA 1927; 22:209-212), without continuity correction.

    Raises:
        ValueError: `k` is not between 0 and `n`.

    Example:
        >>> interval = proportion(81, 263)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.2553, 0.3662)
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion: k must lie between 0 and n")
    if n == 0:
        return Proportion(None, None, None, k, n)
    share, z2 = k / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval starts or stops exactly there; rounding would leave 1e-17.
    return Proportion(share, 0.0 if k == 0 else middle - half, 1.0 if k == n else middle + half, k, n)


def threshold_for(y: ArrayLike, score: ArrayLike, criterion: str = "youden") -> float:
    """The threshold that a criterion picks; a case counts as positive where ``score >= threshold``.

    ``youden`` maximises sensitivity + specificity - 1 (Cancer 1950; 3:32-35); of several it takes the highest, the most
    specific. The threshold lies midway between two scores seen, as in pROC, so that rounding moves no case across it.

    Args:
        y: ``(n,)`` labels, 0 or 1, both present.
        score: ``(n,)`` finite scores.
        criterion: ``youden``.

    Raises:
        ValueError: an unknown criterion, one class only, and as `auroc`.

    Example:
        >>> threshold_for([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])
        0.4
    """
    if criterion != "youden":
        raise ValueError(f"unknown criterion {criterion!r}: known is 'youden'")
    labels, scores = _checked(y, score)
    positives = int(labels.sum())
    if positives in (0, labels.size):
        raise ValueError("a threshold needs cases of both classes")
    seen, position = np.unique(scores, return_inverse=True)
    if seen.size == 1:
        return float(seen[0])
    below_positive = np.bincount(position[labels], minlength=seen.size).cumsum()[:-1]
    below_negative = np.bincount(position[~labels], minlength=seen.size).cumsum()[:-1]
    # Youden's index times both class sizes, in integers: ties stay ties.
    index = below_negative * positives - below_positive * (labels.size - positives)
    best = int(np.flatnonzero(index == index.max())[-1])
    return float((seen[best] + seen[best + 1]) / 2)


def bagged_threshold(y: ArrayLike, score: ArrayLike, groups: ArrayLike, resamples: int = 1000, seed: int = 0) -> float:
    """Youden's threshold, averaged over bootstrap samples of patients.

    Where two classes hardly overlap, Youden's index is nearly flat over a wide range and its maximum hangs on single
    cases. The mean over resamples (bagging: Breiman, Machine Learning 1996; 24:123-140), of the thresholds' log-odds,
    moves less from one set of patients to the next.

    Args:
        y: ``(n,)`` labels, 0 or 1, both present.
        score: ``(n,)`` probabilities, between 0 and 1 exclusive.
        groups: ``(n,)`` the patient of each case.
        resamples: number of bootstrap samples; those of one class only are drawn again.
        seed: of the samples.

    Raises:
        ValueError: as `threshold_for`; a score that is no probability.

    Example:
        >>> round(bagged_threshold([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.4, 0.3, 0.8, 0.9], range(6)), 3)
        0.448
    """
    labels, scores = _checked(y, score)
    threshold_for(labels, scores)
    if not ((scores > 0) & (scores < 1)).all():
        raise ValueError("scores must be probabilities, above 0 and below 1")
    _, patient = np.unique(np.asarray(groups), return_inverse=True)
    cases = [np.flatnonzero(patient == number) for number in range(patient.max() + 1)]
    random = np.random.default_rng(seed)
    thresholds: list[float] = []
    while len(thresholds) < resamples:
        drawn = np.concatenate([cases[number] for number in random.integers(len(cases), size=len(cases))])
        if 0 < labels[drawn].sum() < drawn.size:
            thresholds.append(threshold_for(labels[drawn], scores[drawn]))
    return float(expit(logit(thresholds).mean()))


def _checked(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    labels, scores = np.asarray(y), np.asarray(score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two lists of one length")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1; leave out the cases without one")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; leave out the cases without one")
    return labels.astype(bool), scores


def _placements(
    labels: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """AUROC; for each positive the share of negatives below it; for each negative the share of positives above it."""
    ranks = rankdata(scores)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    of_positives = (ranks[labels] - rankdata(scores[labels])) / negatives
    of_negatives = 1.0 - (ranks[~labels] - rankdata(scores[~labels])) / positives
    return float(of_positives.mean()), of_positives, of_negatives


def _standard_error(of_positives: NDArray[np.float64], of_negatives: NDArray[np.float64]) -> float | None:
    """DeLong's standard error, or None where a class of one case leaves its variance unknown."""
    if min(of_positives.size, of_negatives.size) < 2:
        return None
    variance = of_positives.var(ddof=1) / of_positives.size + of_negatives.var(ddof=1) / of_negatives.size
    return math.sqrt(variance)
