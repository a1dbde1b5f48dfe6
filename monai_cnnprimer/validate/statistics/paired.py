# SPDX-License-Identifier: Apache-2.0
"""Tests of paired calls, and of many tests at once."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test (Psychometrika 1947; 12:153-157): the discordant pairs are a fair coin's.

    Args:
        b: cases that only the first reader or model has right.
        c: cases that only the second has right.

    Raises:
        ValueError: a count below 0, or not a whole number.

    Example:
        >>> mcnemar(1, 7)
        0.0703125
    """
    if b < 0 or c < 0 or b != int(b) or c != int(c):
        raise ValueError(f"counts of {b} and {c}: a count is a whole number, never below 0")
    return 1.0 if b + c == 0 else float(binomtest(int(b), int(b + c)).pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Scand. J. Statist. 1979; 6:65-70); a test that could not be made stays None, uncounted.

    Raises:
        ValueError: a p that does not lie between 0 and 1.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    made = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, place) in enumerate(made):
        if not 0 <= value <= 1:
            raise ValueError(f"a p of {value}: it must lie between 0 and 1")
        highest = max(highest, min(1.0, (len(made) - rank) * value))
        adjusted[place] = highest
    return adjusted
