# SPDX-License-Identifier: Apache-2.0
"""Area under the ROC curve, with DeLong's interval and his paired test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from monai_cnnprimer.validate.statistics.estimate import Z95, checked

Floats = NDArray[np.float64]


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
    """One AUROC minus another, from `n` cases, with the two-sided test that they are equal."""

    difference: float | None
    low: float | None
    high: float | None
    z: float | None
    p: float | None
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
    labels, scores = checked(y, score)
    positives = int(labels.sum())
    value, error = _area(labels, scores)
    if value is None or error is None:
        return Auroc(value, None, None, labels.size, positives)
    low, high = max(0.0, value - Z95 * error), min(1.0, value + Z95 * error)
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
    labels, first = checked(y, a)
    _, second = checked(y, b)
    if labels.sum() in (0, labels.size):
        return AurocDifference(None, None, None, None, None, labels.size)
    placed_a, placed_b = _Placements(labels, first), _Placements(labels, second)
    # The variance of paired placements' differences equals var(a) + var(b) - 2 cov(a, b), without its cancellation.
    apart = placed_a.of_cases() - placed_b.of_cases()
    error = _paired_error(apart[labels], apart[~labels])
    return _difference(placed_a.area - placed_b.area, error, labels.size)


def auroc_against_rest(y: ArrayLike, score: ArrayLike, group: ArrayLike) -> AurocDifference:
    """AUROC inside a group of cases minus that of the other cases, by DeLong's variance of each; no case is in both.

    Args:
        y: ``(n,)`` labels, 0 or 1.
        score: ``(n,)`` finite scores.
        group: ``(n,)`` booleans, true inside.

    Raises:
        ValueError: as `auroc`.
    """
    labels, scores = checked(y, score)
    inside = np.asarray(group, dtype=np.bool_)
    (first, error_a), (second, error_b) = (_area(labels[part], scores[part]) for part in (inside, ~inside))
    if first is None or second is None:
        return AurocDifference(None, None, None, None, None, labels.size)
    error = None if error_a is None or error_b is None else math.hypot(error_a, error_b)
    return _difference(first - second, error, labels.size)


def _difference(difference: float, error: float | None, n: int) -> AurocDifference:
    if error is None:
        return AurocDifference(difference, None, None, None, None, n)
    low, high = max(-1.0, difference - Z95 * error), min(1.0, difference + Z95 * error)
    if error == 0.0:
        z, p = (0.0, 1.0) if difference == 0.0 else (None, None)
    else:
        z = difference / error
        p = float(2.0 * norm.sf(abs(z)))
    return AurocDifference(difference, low, high, z, p, n)


class _Placements:
    """Of each positive case the share of negative ones below it, of each negative the share of positive ones above.

    Cases of one score share a placement, so all is counted by the scores seen, in one sort.
    """

    def __init__(self, labels: NDArray[np.bool_], scores: Floats) -> None:
        self.order = np.argsort(scores)
        ordered = scores[self.order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self.sizes = np.diff(starts, append=scores.size)
        self.positive = np.add.reduceat(labels[self.order].astype(np.int64), starts)
        self.negative = self.sizes - self.positive
        self.positives, self.negatives = int(self.positive.sum()), int(self.negative.sum())
        below, above = self.negative.cumsum() - self.negative, self.positives - self.positive.cumsum()
        self.of_positive = (below + self.negative / 2) / self.negatives
        self.of_negative = (above + self.positive / 2) / self.positives
        self.area = float(self.positive @ self.of_positive) / self.positives
        self._labels = labels

    def of_cases(self) -> Floats:
        """The placement of each case, `(n,)`, in the order in which the cases were given."""
        of_positive, of_negative = np.empty(self._labels.size), np.empty(self._labels.size)
        of_positive[self.order] = np.repeat(self.of_positive, self.sizes)
        of_negative[self.order] = np.repeat(self.of_negative, self.sizes)
        return np.where(self._labels, of_positive, of_negative)

    def error(self) -> float | None:
        """DeLong's standard error, or None where a class of one case leaves its variance unknown."""
        if min(self.positives, self.negatives) < 2:
            return None
        of_positives = float(self.positive @ (self.of_positive - self.area) ** 2) / (self.positives - 1)
        of_negatives = float(self.negative @ (self.of_negative - self.area) ** 2) / (self.negatives - 1)
        return math.sqrt(of_positives / self.positives + of_negatives / self.negatives)


def _area(labels: NDArray[np.bool_], scores: Floats) -> tuple[float | None, float | None]:
    if labels.sum() in (0, labels.size):
        return None, None
    placements = _Placements(labels, scores)
    return placements.area, placements.error()


def _paired_error(of_positives: Floats, of_negatives: Floats) -> float | None:
    if min(of_positives.size, of_negatives.size) < 2:
        return None
    variance = of_positives.var(ddof=1) / of_positives.size + of_negatives.var(ddof=1) / of_negatives.size
    return math.sqrt(variance)
