# SPDX-License-Identifier: Apache-2.0
"""Statistics of a table that can be had from how often each patient was drawn, for the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.statistics.bootstrap import Counts
from monai_cnnprimer.validate.statistics.estimate import checked
from monai_cnnprimer.validate.statistics.precision_recall import average_precision
from monai_cnnprimer.validate.statistics.roc import auroc

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AurocOf:
    """Area under the ROC curve of a column of scores, against a column of labels 0 and 1."""

    label: str
    score: str

    def __call__(self, frame: pd.DataFrame) -> float | None:
        """The statistic of a table."""
        return auroc(frame[self.label], frame[self.score]).value

    def on_counts(self, frame: pd.DataFrame, cluster: NDArray[np.intp]) -> Callable[[Counts], Floats]:
        """See `CountedStatistic`: a drawn positive case wins over the drawn negative ones below it, ties half."""
        positive, negative = _by_class(checked(frame[self.label], frame[self.score]), cluster)
        below = np.searchsorted(negative.scores, positive.scores, side="left")
        through = np.searchsorted(negative.scores, positive.scores, side="right")
        ties = not np.array_equal(below, through)

        def areas(counts: Counts) -> Floats:
            seen, weights = negative.cumulative(counts), counts[:, positive.cluster]
            wins = np.einsum("rp,rp->r", weights, seen[:, below], dtype=np.float64)
            if ties:
                wins = (wins + np.einsum("rp,rp->r", weights, seen[:, through], dtype=np.float64)) / 2
            return _quotient(wins, weights.sum(axis=1, dtype=np.float64) * seen[:, -1])

        return areas


@dataclass(frozen=True)
class AveragePrecisionOf:
    """Average precision of a column of scores, against a column of labels 0 and 1."""

    label: str
    score: str

    def __call__(self, frame: pd.DataFrame) -> float | None:
        """The statistic of a table."""
        return average_precision(frame[self.label], frame[self.score]).value

    def on_counts(self, frame: pd.DataFrame, cluster: NDArray[np.intp]) -> Callable[[Counts], Floats]:
        """See `CountedStatistic`: the mean, over drawn positive cases, of the precision at their score."""
        positive, negative = _by_class(checked(frame[self.label], frame[self.score]), cluster)
        missed = np.searchsorted(positive.scores, positive.scores, side="left")
        below = np.searchsorted(negative.scores, positive.scores, side="left")

        def precisions(counts: Counts) -> Floats:
            of_positive, of_negative = positive.cumulative(counts), negative.cumulative(counts)
            true = (of_positive[:, -1:] - of_positive[:, missed]).astype(np.float64)
            called = true + (of_negative[:, -1:] - of_negative[:, below])
            weights = counts[:, positive.cluster]
            summed = np.einsum("rp,rp->r", weights, true / np.maximum(called, 1))
            return _quotient(summed, of_positive[:, -1])

        return precisions


@dataclass(frozen=True)
class MeanOf:
    """Mean of a column over the rows where another one is true (or over all): sensitivity, PPV, Brier score."""

    value: str
    where: str | None = None

    def __call__(self, frame: pd.DataFrame) -> float | None:
        """The statistic of a table."""
        kept = frame[self.value] if self.where is None else frame.loc[frame[self.where].astype(bool), self.value]
        return float(kept.mean()) if len(kept) else None

    def on_counts(self, frame: pd.DataFrame, cluster: NDArray[np.intp]) -> Callable[[Counts], Floats]:
        """See `CountedStatistic`: sums and numbers of each cluster, times how often it was drawn."""
        kept = np.ones(len(frame)) if self.where is None else frame[self.where].to_numpy(dtype=np.float64)
        values = frame[self.value].to_numpy(dtype=np.float64)
        sums, rows = (np.bincount(cluster, weights=column) for column in (np.where(kept, values, 0.0), kept))
        return lambda counts: _quotient(counts @ sums, counts @ rows)


@dataclass(frozen=True)
class _OneClass:
    """Scores of a class in ascending order, and each one's cluster."""

    scores: Floats
    cluster: NDArray[np.intp]

    def cumulative(self, counts: Counts) -> Counts:
        """`(resamples, n + 1)`: how many drawn cases there are before each one; the last column has all of them."""
        sums = np.zeros((len(counts), self.scores.size + 1), dtype=np.int32)
        np.cumsum(counts[:, self.cluster], axis=1, out=sums[:, 1:])
        return sums


def _by_class(cases: tuple[NDArray[np.bool_], Floats], cluster: NDArray[np.intp]) -> tuple[_OneClass, _OneClass]:
    labels, scores = cases
    order = np.argsort(scores, kind="stable")
    positive, negative = order[labels[order]], order[~labels[order]]
    return _OneClass(scores[positive], cluster[positive]), _OneClass(scores[negative], cluster[negative])


def _quotient(above: NDArray[np.generic], below: NDArray[np.generic]) -> Floats:
    """NaN, without a warning, where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
