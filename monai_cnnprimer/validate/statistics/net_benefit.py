# SPDX-License-Identifier: Apache-2.0
"""Decision curve: what acting on the model is worth, beside acting on everyone and on no one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_cnnprimer.validate.statistics.estimate import checked_probabilities, estimate_of_mean

THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit at a threshold probability, in true positives a case, and that of acting on everyone; no one is 0."""

    threshold: float
    value: float | None
    low: float | None
    high: float | None
    everyone: float | None
    n: int


def decision_curve(y: ArrayLike, probability: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> list[NetBenefit]:
    """Net benefit over threshold probabilities (Vickers and Elkin, Med. Decis. Making 2006; 26:565-574).

    A threshold t says that one missed finding is worth (1 - t) / t false alarms, so a case that is called has the
    benefit 1 where it has the finding, else -t / (1 - t). The net benefit is the mean over all cases, and its interval
    the normal one of a mean. It is in the prevalence of these cases, and needs calibrated probabilities.

    Args:
        y: ``(n,)`` labels, 0 or 1.
        probability: ``(n,)`` of label 1, between 0 and 1.
        thresholds: each above 0 and below 1; a case is called where its probability reaches it.

    Raises:
        ValueError: as `auroc`; a probability or threshold out of range.

    Example:
        >>> decision_curve([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], [0.5])[0].value
        0.25
    """
    labels, probabilities = checked_probabilities(y, probability)
    outside = [threshold for threshold in thresholds if not 0 < threshold < 1]
    if outside:
        raise ValueError(f"thresholds {outside}: a threshold probability lies above 0 and below 1")
    points = []
    for threshold in thresholds:
        of_acting = np.where(labels, 1.0, -threshold / (1 - threshold))
        benefit = estimate_of_mean(np.where(probabilities >= threshold, of_acting, 0.0))
        everyone = float(of_acting.mean()) if labels.size else None
        points.append(NetBenefit(threshold, benefit.value, benefit.low, benefit.high, everyone, labels.size))
    return points
