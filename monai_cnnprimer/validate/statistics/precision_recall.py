# SPDX-License-Identifier: Apache-2.0
"""Area under the precision-recall curve, as average precision, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from monai_cnnprimer.validate.statistics.estimate import Z95, checked


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision, its interval, the number of cases and of positive ones; chance is positives / n."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int


def average_precision(y: ArrayLike, score: ArrayLike) -> AveragePrecision:
    """Average precision (AUPRC by steps, never interpolated) with the logit interval of Boyd et al. (ECML 2013).

    The interval takes the positive cases as so many independent trials; with several images a patient use the
    clustered bootstrap of `AveragePrecisionOf`. Read it beside the prevalence: that is what chance would reach.

    Args:
        y: ``(n,)`` labels, 0 or 1.
        score: ``(n,)`` finite scores.

    Returns:
        The value is None where a class is missing; the interval also where the value is 1, as a logit has none there.

    Raises:
        ValueError: as `auroc`.

    Example:
        >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value, 4)
        0.8333
    """
    labels, scores = checked(y, score)
    positives = int(labels.sum())
    if positives in (0, labels.size):
        return AveragePrecision(None, None, None, labels.size, positives)
    seen, place = np.unique(-scores, return_inverse=True)
    called = np.bincount(place, minlength=seen.size).cumsum()
    found = np.bincount(place[labels], minlength=seen.size)
    value = float(found @ (found.cumsum() / called)) / positives
    if value >= 1.0:
        return AveragePrecision(1.0, None, None, labels.size, positives)
    half = Z95 / math.sqrt(positives * value * (1 - value))
    low, high = (float(expit(logit(value) + side * half)) for side in (-1, 1))
    return AveragePrecision(value, low, high, labels.size, positives)
