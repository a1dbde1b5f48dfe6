# SPDX-License-Identifier: Apache-2.0
"""Proportions after Wilson, their differences after Newcombe, and predictive values, also at another prevalence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import expit
from scipy.stats import fisher_exact

from monai_cnnprimer.validate.statistics.estimate import Z95, Estimate


@dataclass(frozen=True)
class Proportion:
    """`k` of `n`, with its interval."""

    value: float | None
    low: float | None
    high: float | None
    k: int
    n: int


@dataclass(frozen=True)
class ProportionDifference:
    """One proportion minus another, with its interval and the two-sided test that they are equal."""

    difference: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class PredictiveValues:
    """Positive and negative predictive value at a stated prevalence."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


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
    share, z2 = k / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval starts or stops exactly there; rounding would leave 1e-17.
    return Proportion(share, 0.0 if k == 0 else middle - half, 1.0 if k == n else middle + half, k, n)


def compare_proportions(first: Proportion, second: Proportion) -> ProportionDifference:
    """Two proportions of different cases: Newcombe's hybrid score interval (Statist. Med. 1998; 17:873-890, method 10).

    The test is Fisher's exact one. All is None where one of them has no case.

    Example:
        >>> result = compare_proportions(proportion(56, 70), proportion(48, 80))
        >>> round(result.low, 4), round(result.high, 4)
        (0.0524, 0.3339)
    """
    if first.value is None or first.low is None or first.high is None:
        return ProportionDifference(None, None, None, None)
    if second.value is None or second.low is None or second.high is None:
        return ProportionDifference(None, None, None, None)
    difference = first.value - second.value
    low = difference - math.hypot(first.value - first.low, second.high - second.value)
    high = difference + math.hypot(first.high - first.value, second.value - second.low)
    p = fisher_exact([[first.k, first.n - first.k], [second.k, second.n - second.k]]).pvalue
    return ProportionDifference(difference, low, high, float(p))


def predictive_values(sensitivity: Proportion, specificity: Proportion, prevalence: float) -> PredictiveValues:
    """Predictive values by Bayes' theorem, with the logit interval of Mercaldo et al. (Statist. Med. 2007; 26:2170-83).

    Where a cell of the table is empty the logit has no variance; then, as in their adjusted interval, half of 1.96
    squared is added to each cell of that class. The interval is that of sensitivity and specificity: the prevalence is
    taken as known.

    Args:
        sensitivity: among the cases with the finding.
        specificity: among those without.
        prevalence: where the values are to hold, above 0 and below 1.

    Raises:
        ValueError: a prevalence that is not above 0 and below 1.

    Example:
        >>> values = predictive_values(proportion(90, 100), proportion(80, 100), prevalence=0.1)
        >>> round(values.ppv.value, 4), round(values.npv.value, 4)
        (0.3333, 0.9863)
    """
    if not 0 < prevalence < 1:
        raise ValueError(f"a prevalence of {prevalence}: it must lie above 0 and below 1")
    n, odds = sensitivity.n + specificity.n, prevalence / (1 - prevalence)
    missed, alarms = _opposite(sensitivity), _opposite(specificity)
    ppv = _bayes(sensitivity, alarms, odds, n)
    npv = _bayes(specificity, missed, 1 / odds, n)
    return PredictiveValues(prevalence, ppv, npv)


def _opposite(share: Proportion) -> Proportion:
    return proportion(share.n - share.k, share.n)


def _bayes(right: Proportion, wrong: Proportion, odds: float, n: int) -> Estimate:
    """What share of a call is right: `right` and `wrong` are called so, among those where that is true and not true."""
    if right.value is None or wrong.value is None or right.k + wrong.k == 0:
        return Estimate(None, None, None, n)
    value = right.value * odds / (right.value * odds + wrong.value)
    (share_a, variance_a), (share_b, variance_b) = _log_share(right), _log_share(wrong)
    logit, half = math.log(share_a * odds / share_b), Z95 * math.sqrt(variance_a + variance_b)
    low, high = float(expit(logit - half)), float(expit(logit + half))
    return Estimate(value, min(low, value), max(high, value), n)


def _log_share(share: Proportion) -> tuple[float, float]:
    """A share, and the variance of its logarithm by the delta method; adjusted where a cell is empty."""
    more = Z95**2 / 2 if share.k in (0, share.n) else 0.0
    k, n = share.k + more, share.n + 2 * more
    return k / n, (1 - k / n) / k
