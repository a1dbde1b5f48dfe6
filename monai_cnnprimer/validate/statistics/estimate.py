# SPDX-License-Identifier: Apache-2.0
"""What all figures share: an estimate with its interval, and labels and scores that were checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """A figure from `n` cases, with its interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def estimate_of_mean(values: NDArray[np.float64], lowest: float = -math.inf) -> Estimate:
    """The mean with its normal interval, cut at `lowest`; None for what no case, or a single one, can give.

    Example:
        >>> estimate_of_mean(np.array([1.0, 2.0, 3.0])).value
        2.0
    """
    if not values.size:
        return Estimate(None, None, None, 0)
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, None, None, 1)
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Estimate(mean, max(lowest, mean - half), mean + half, values.size)


def checked(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and scores as arrays `(n,)`, true for the finding.

    Raises:
        ValueError: other labels than 0 and 1, a score that is missing or not finite, lengths that differ.
    """
    labels, scores = np.asarray(y), _numbers(score, "scores must be finite; leave out the cases without one")
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two lists of one length")
    if labels.dtype != np.bool_:
        told = "labels must be 0 or 1; leave out the cases without one"
        labels = _numbers(labels, told)
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError(told)
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; leave out the cases without one")
    return labels.astype(np.bool_), scores


def checked_probabilities(y: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and probabilities, as `checked`.

    Raises:
        ValueError: as `checked`; a probability below 0 or above 1.
    """
    labels, probabilities = checked(y, probability)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie between 0 and 1")
    return labels, probabilities


def _numbers(values: ArrayLike, told: str) -> NDArray[np.float64]:
    """Floats; a missing value of pandas, or a word, is told as what it is: no label, no score."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(told) from error
