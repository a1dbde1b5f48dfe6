# SPDX-License-Identifier: Apache-2.0
"""Intervals by drawing whole patients: seeded, and fast for statistics that can be had from counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Statistic = Callable[[pd.DataFrame], float | None]
Counts = NDArray[np.int32]
AT_ONCE = 1 << 20  # counts held at once, so that they stay in the processor's cache
UNDEFINED = 0.05  # share of resamples; see `clustered_bootstrap`


@dataclass(frozen=True)
class Bootstrap:
    """A statistic of `n` cases in `clusters`, its interval, the resamples drawn, and those that left it undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    resamples: int
    undefined: int


@runtime_checkable
class CountedStatistic(Protocol):
    """A statistic that also says how it follows from how often each cluster was drawn; see `AurocOf`."""

    def __call__(self, frame: pd.DataFrame) -> float | None:
        """The statistic of a table."""

    def on_counts(self, frame: pd.DataFrame, cluster: NDArray[np.intp]) -> Callable[[Counts], NDArray[np.float64]]:
        """From counts `(resamples, clusters)` to values `(resamples,)`, NaN where undefined.

        `cluster` `(rows,)` is the number of each row's cluster.
        """


def clustered_bootstrap(
    statistic: Statistic, frame: pd.DataFrame, cluster: str, n: int = 2000, seed: int = 0
) -> Bootstrap:
    """A statistic with the percentile interval over samples of whole clusters (Efron, Ann. Statist. 1979; 7:1-26).

    Images of one patient are alike; drawing patients, each with all images, keeps the interval honest. `AurocOf`,
    `AveragePrecisionOf` and `MeanOf` are computed from counts, many resamples at once; any other callable gets a table
    for each resample, so give it only the columns it needs.

    Args:
        statistic: from a table to a number, or to None (or NaN) where it is undefined. A cluster drawn twice is there
            twice under its name; rows keep their order.
        frame: one row a case.
        cluster: the column that names the cluster, such as ``patient_key``.
        n: resamples to draw.
        seed: of the draws.

    Returns:
        The value is None where it is undefined on the table itself. The interval is None too, then, and with a single
        cluster, and where more than 5 % of the resamples are undefined: as the interval leaves out 5 % of them, it
        would not be known what it leaves out.

    Raises:
        ValueError: no such column, a case without a cluster, `n` below 1.

    Example:
        >>> table = pd.DataFrame({"patient": [1, 1, 2, 3, 4], "right": [1, 1, 0, 1, 0]})
        >>> result = clustered_bootstrap(lambda frame: frame["right"].mean(), table, "patient", n=200)
        >>> result.value, result.clusters, result.low <= 0.6 <= result.high
        (0.6, 4, True)
    """
    return clustered_bootstraps({"": statistic}, frame, cluster, n, seed)[""]


def clustered_bootstraps(
    statistics: Mapping[str, Statistic], frame: pd.DataFrame, cluster: str, n: int = 2000, seed: int = 0
) -> dict[str, Bootstrap]:
    """Several statistics by name on the same resamples, each as `clustered_bootstrap` gives it."""
    if n < 1:
        raise ValueError(f"{n} resamples: at least one is needed")
    if cluster not in frame:
        raise ValueError(f"the table has no column {cluster!r} to draw by")
    unnamed = int(frame[cluster].isna().sum())
    if unnamed:
        raise ValueError(f"{unnamed} of {len(frame)} cases have no {cluster}, so that they cannot be drawn with theirs")
    number, names = pd.factorize(frame[cluster])
    values = {name: _defined(statistic(frame)) if len(frame) else None for name, statistic in statistics.items()}
    drawn = {name: statistics[name] for name, value in values.items() if value is not None and len(names) > 1}
    samples = _samples(drawn, frame, number, len(names), n, seed)
    return {name: _result(value, samples.get(name), len(frame), len(names)) for name, value in values.items()}


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _result(value: float | None, samples: NDArray[np.float64] | None, n: int, clusters: int) -> Bootstrap:
    if samples is None:
        return Bootstrap(value, None, None, n, clusters, 0, 0)
    known = samples[~np.isnan(samples)]
    undefined = samples.size - known.size
    if undefined > UNDEFINED * samples.size:
        return Bootstrap(value, None, None, n, clusters, samples.size, undefined)
    low, high = (float(limit) for limit in np.percentile(known, [2.5, 97.5]))
    return Bootstrap(value, low, high, n, clusters, samples.size, undefined)


def _samples(
    statistics: Mapping[str, Statistic], frame: pd.DataFrame, number: NDArray[np.intp], clusters: int, n: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """The statistics' values `(n,)` over resamples."""
    if not statistics:
        return {}
    from_counts = {name: _on_counts(statistic, frame, number) for name, statistic in statistics.items()}
    blocks = _draw(clusters, n, max(1, AT_ONCE // len(frame)), np.random.default_rng(seed))
    values = [{name: compute(counts) for name, compute in from_counts.items()} for counts in blocks]
    return {name: np.concatenate([block[name] for block in values]) for name in statistics}


def _draw(clusters: int, n: int, at_once: int, random: np.random.Generator) -> Iterator[Counts]:
    """How often each cluster is drawn, `(resamples, clusters)`, in blocks of so many resamples."""
    for start in range(0, n, at_once):
        size = min(at_once, n - start)
        drawn = random.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * clusters)
        yield counts.reshape(size, clusters).astype(np.int32)


def _on_counts(
    statistic: Statistic, frame: pd.DataFrame, number: NDArray[np.intp]
) -> Callable[[Counts], NDArray[np.float64]]:
    if isinstance(statistic, CountedStatistic):
        return statistic.on_counts(frame, number)
    rows = np.arange(len(frame))

    def one_by_one(counts: Counts) -> NDArray[np.float64]:
        values = [_defined(statistic(_taken(frame, np.repeat(rows, count[number])))) for count in counts]
        return np.array([math.nan if value is None else value for value in values])

    return one_by_one


def _taken(frame: pd.DataFrame, rows: NDArray[np.intp]) -> pd.DataFrame:
    taken = frame.take(rows)
    taken.index = pd.RangeIndex(len(rows))  # no row name twice, so that columns can be joined again
    return taken
