# SPDX-License-Identifier: Apache-2.0
"""Cases in bins of a column: a finding's size, the patient's age, the manufacturer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

QUANTILES = 4
_FEW_VALUES, _MOST_VALUES = 6, 20


@dataclass(frozen=True, eq=False)
class Bins:
    """Cases put into bins by a column.

    Attributes:
        column: its name.
        kind: how bins were made: `edges` given, `quantiles`, or the column's `values`.
        names: of the bins, in order.
        bin_of: name of each case's bin; missing where it has none.
        of_findings: only cases with a finding have a value; each bin is then set against all cases without a finding.
        not_stated: how many cases that should have a value have none.
        outside: how many have a value that no bin holds.
    """

    column: str
    kind: str
    names: tuple[str, ...]
    bin_of: pd.Series
    of_findings: bool
    not_stated: int
    outside: int


def bins_of(values: pd.Series, labels: pd.Series, column: str, edges: Sequence[float] | None = None) -> Bins:
    """Puts cases into bins: between the edges given, else by quarters of a numeric column, else by its values.

    A column that is empty (or 0) for all cases without a finding, such as a finding's size, describes findings; then
    only cases with one are binned. A bin holds its lower edge, not its upper one, but for the last, which holds both.

    Args:
        values: one a case; missing or "" where it is not stated.
        labels: 0 or 1, the same index.
        column: name of the column.
        edges: rising.

    Raises:
        ValueError: no value, edges that do not rise, edges for words, too many different words.

    Example:
        >>> sizes = pd.Series(["", "", "4", "9", "31"])
        >>> bins = bins_of(sizes, pd.Series([0, 0, 1, 1, 1]), "size_mm", [3, 8, 22])
        >>> bins.names, bins.bin_of.fillna("-").tolist(), bins.of_findings, bins.outside
        (('3 to 8', '8 to 22'), ['-', '-', '3 to 8', '8 to 22', '-'], True, 1)
    """
    words = values.astype("string").str.strip()
    words = words.mask(words == "")
    if words.isna().all():
        raise ValueError(f"no case has a value in column {column!r}")
    numbers = pd.to_numeric(words, errors="coerce").astype("Float64")
    numeric = bool((numbers.notna() == words.notna()).all())
    with_finding = labels == 1
    of_findings = _describes_findings(words, numbers, with_finding)
    if of_findings:
        words, numbers = words.where(with_finding), numbers.where(with_finding)
    if edges is not None:
        if not numeric:
            raise ValueError(f"column {column!r} holds words, not numbers: it cannot be cut at edges")
        kind, (names, bin_of) = "edges", _cut(numbers, _checked(edges))
    elif numeric and numbers.nunique() > _FEW_VALUES:
        kind, (names, bin_of) = "quantiles", _cut(numbers, _quantile_edges(numbers))
    else:
        kind, (names, bin_of) = "values", _by_value(words, numbers if numeric else None, column)
    due = with_finding if of_findings else labels.notna()
    stated = words.notna()
    return Bins(
        column, kind, names, bin_of, of_findings, int((due & ~stated).sum()), int((stated & bin_of.isna()).sum())
    )


def _describes_findings(words: pd.Series, numbers: pd.Series, with_finding: pd.Series) -> bool:
    """Whether no case without a finding has a value, or all have 0 and no case with one has."""
    others = words[~with_finding]
    if others.isna().all():
        return bool(with_finding.any() and len(others))
    zero = (numbers == 0).fillna(False)
    return bool((zero | words.isna())[~with_finding].all() and not zero[with_finding].any())


def _checked(edges: Sequence[float]) -> list[float]:
    if len(edges) < 2 or any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"edges of bins must rise, two or more of them; got {', '.join(f'{x:g}' for x in edges)}")
    return list(edges)


def _quantile_edges(numbers: pd.Series) -> list[float]:
    """Quarters of the cases; the inner edges to three digits, so that they can be stated."""
    known = numbers.dropna().to_numpy(dtype=float)
    inner = {float(f"{edge:.3g}") for edge in np.quantile(known, np.arange(1, QUANTILES) / QUANTILES)}
    low, high = float(known.min()), float(known.max())
    return [low, *sorted(edge for edge in inner if low < edge < high), high]


def _cut(numbers: pd.Series, edges: list[float]) -> tuple[tuple[str, ...], pd.Series]:
    pairs = list(zip(edges, edges[1:], strict=False))
    names = tuple(f"{low:.3g} to {high:.3g}" for low, high in pairs)
    if len(set(names)) < len(names):
        names = tuple(f"{low!r} to {high!r}" for low, high in pairs)
    bin_of = pd.Series(pd.NA, index=numbers.index, dtype="string")
    for name, (low, high) in zip(names, pairs, strict=True):
        upper = numbers <= high if high == edges[-1] else numbers < high
        bin_of[((numbers >= low) & upper).fillna(False)] = name
    return names, bin_of


def _by_value(words: pd.Series, numbers: pd.Series | None, column: str) -> tuple[tuple[str, ...], pd.Series]:
    if numbers is not None:
        words = numbers.map(lambda number: f"{number:g}", na_action="ignore").astype("string")
    names = sorted(words.dropna().unique(), key=(lambda name: (float(name), name)) if numbers is not None else None)
    if len(names) > _MOST_VALUES:
        raise ValueError(
            f"column {column!r} has {len(names)} different words; one bin each is too many ({_MOST_VALUES})"
        )
    return tuple(names), words
