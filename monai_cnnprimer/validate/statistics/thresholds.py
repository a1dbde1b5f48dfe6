# SPDX-License-Identifier: Apache-2.0
"""The threshold that a criterion picks on labelled cases."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from monai_cnnprimer.validate.statistics.estimate import checked

Ints = NDArray[np.int64]


def threshold_for(y: ArrayLike, score: ArrayLike, criterion: str = "youden") -> float:
    """The threshold that a criterion picks; a case counts as positive where ``score >= threshold``.

    ``youden`` maximises sensitivity + specificity - 1 (Cancer 1950; 3:32-35); of several it takes the highest, the most
    specific. ``specificity=0.90`` takes the lowest threshold at which at least 90 % of the negative cases given are
    called negative, so the most sensitive that keeps the promise; ``sensitivity=0.95`` the highest at which at least
    95 % of the positive ones are called positive. The threshold lies midway between two scores seen, as in pROC, so
    that rounding moves no case across it.

    Args:
        y: ``(n,)`` labels, 0 or 1, both present.
        score: ``(n,)`` finite scores.
        criterion: ``youden``, ``specificity=S`` or ``sensitivity=S`` with S above 0 and at most 1.

    Raises:
        ValueError: an unknown criterion, one class only, a specificity or sensitivity that only calling every case
            negative or positive would reach, and as `auroc`.

    Example:
        >>> threshold_for([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])
        0.4
        >>> threshold_for([0, 1, 0, 1], [1, 2, 3, 4], "sensitivity=0.95")
        1.5
    """
    name, wanted = _criterion(criterion)
    labels, scores = checked(y, score)
    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError("a threshold needs cases of both classes")
    seen, position = np.unique(scores, return_inverse=True)
    below_positive = np.bincount(position[labels], minlength=seen.size).cumsum()[:-1]
    below_negative = np.bincount(position[~labels], minlength=seen.size).cumsum()[:-1]
    if name == "specificity":
        return _between(seen, _first(below_negative >= math.ceil(wanted * negatives), criterion, "negative"))
    if name == "sensitivity":
        kept = positives - below_positive >= math.ceil(wanted * positives)
        return _between(seen, seen.size - 2 - _first(kept[::-1], criterion, "positive"))
    if seen.size == 1:
        return float(seen[0])
    # Youden's index times both class sizes, in integers: ties stay ties.
    index = below_negative * positives - below_positive * negatives
    return _between(seen, int(np.flatnonzero(index == index.max())[-1]))


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
    labels, scores = checked(y, score)
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


def _criterion(text: str) -> tuple[str, Fraction]:
    """Name and wanted share; a fraction, since 0.9 of 10 cases as floats is more than 9."""
    if text == "youden":
        return text, Fraction(0)
    name, _, number = text.partition("=")
    try:
        wanted = Fraction(number.strip())
    except (ValueError, ZeroDivisionError):
        wanted = Fraction(0)
    if name.strip() not in ("specificity", "sensitivity") or not 0 < wanted <= 1:
        raise ValueError(f"unknown criterion {text!r}: known are 'youden', 'specificity=0.90' and 'sensitivity=0.95'")
    return name.strip(), wanted


def _first(holds: NDArray[np.bool_], criterion: str, every: str) -> int:
    found = np.flatnonzero(holds)
    if not found.size:
        raise ValueError(
            f"{criterion} cannot be had on these cases but by calling every one {every}: "
            "ask for less, or give more cases"
        )
    return int(found[0])


def _between(seen: NDArray[np.float64], gap: int) -> float:
    """Midway between a score seen and the next; of two neighbouring floats the upper, for there is nothing between."""
    low, high = float(seen[gap]), float(seen[gap + 1])
    middle = low / 2 + high / 2
    return middle if low < middle else high
