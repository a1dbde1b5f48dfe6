# SPDX-License-Identifier: Apache-2.0
"""Figures of `metrics.json` in words: rounded, with interval and n, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_cnnprimer.report.page import Cell

Figure = Mapping[str, Any]
DASH = "–"
_NONE = {
    "sensitivity": "no case with the finding", "specificity": "no case without the finding",
    "ppv": "none called positive", "npv": "none called negative",
}  # fmt: skip
FINE_FROM = 1000  # cases from which on a tenth of a percent means something


def figure_of(metrics: Mapping[str, Any], name: str) -> Figure:
    """A figure by its name, `calibration.slope` for one inside another; {} where the run has none. `of` is its name.

    Where patients have several images, the interval is that of the patient-clustered bootstrap.
    """
    found: Any = metrics
    for part in name.split("."):
        found = (found or {}).get(part)
    clustered = (metrics.get("by_patient") or {}).get(name.split(".")[-1])
    # Where no resample differs, at 0 or 1, the bootstrap has no width to give; the interval by cases has.
    if found and clustered and clustered["clusters"] < clustered["n"] and _has_width(clustered):
        found = {**found, "low": clustered["low"], "high": clustered["high"], "clusters": clustered["clusters"]}
    return {**found, "of": name} if found else {}


def _has_width(figure: Figure) -> bool:
    return figure["low"] is not None and figure["high"] is not None and figure["low"] < figure["high"]


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign; a dash for None.

    Example:
        >>> decimal(-0.456), decimal(None)
        ('−0.46', '–')
    """
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None, n: int) -> str:
    """A share without its sign; never 0 or 100 by rounding alone.

    Example:
        >>> percent(0.756, 20), percent(0.9991, 20), percent(1.0, 20)
        ('76', '99.9', '100')
    """
    if value is None:
        return DASH
    rounded = f"{100 * value:.{int(n >= FINE_FROM)}f}"
    if float(rounded) in (0.0, 100.0) and value not in (0.0, 1.0):
        return f"{100 * value:.1f}" if 0.0005 <= value < 0.9995 else ("<0.1" if value < 0.5 else ">99.9")
    return f"{100 * value:.0f}" if value in (0.0, 1.0) else rounded


def with_interval(figure: Figure, digits: int = 2) -> str:
    """A value with its interval.

    Example:
        >>> with_interval({"value": 0.612, "low": 0.35, "high": 0.874})
        '0.61 (0.35 to 0.87)'
    """
    value = decimal(figure.get("value"), digits)
    if figure.get("low") is None or figure.get("high") is None:
        return value if figure.get("value") is None else f"{value} (no interval)"
    return f"{value} ({decimal(figure['low'], digits)} to {decimal(figure['high'], digits)})"


def share_with_interval(figure: Figure) -> str:
    """A share with its interval in percent, and k of n.

    Example:
        >>> share_with_interval({"value": 0.75, "low": 0.3006, "high": 0.9544, "k": 3, "n": 4})
        '75 % (30 to 95), 3 of 4'
    """
    if figure.get("value") is None:
        return DASH
    n = figure["n"]
    interval = f"({percent(figure['low'], n)} to {percent(figure['high'], n)})" if figure["low"] is not None else ""
    return f"{percent(figure['value'], n)} % {interval}".rstrip() + (
        f", {figure['k']:,} of {n:,}" if "k" in figure else ""
    )


def p_value(p: float) -> str:
    """A p value as journals print it.

    Example:
        >>> p_value(0.0002), p_value(0.0314), p_value(0.998)
        ('p < 0.001', 'p 0.031', 'p > 0.99')
    """
    return "p < 0.001" if p < 0.001 else "p > 0.99" if p > 0.99 else f"p {p:.3f}"


def value_cell(figure: Figure, digits: int = 2) -> Cell:
    """A value with interval and n below it, or the reason why there is none."""
    if figure.get("value") is None:
        return missing_cell(figure)
    n = f"n {figure['n']:,}" + (f", {figure['clusters']:,} patients" if "clusters" in figure else "")
    return Cell(f"{with_interval(figure, digits)}\n{n}", sort=figure["value"])


def share_cell(figure: Figure, star: bool = False) -> Cell:
    """A share with interval, k and n, or the reason why there is none; a star for a threshold that was re-tuned."""
    if figure.get("value") is None:
        return missing_cell(figure)
    text = share_with_interval(figure).replace("), ", ")\n") + (" *" if star else "")
    return Cell(text, sort=figure["value"], mark="bad" if star else "")


def missing_cell(figure: Figure) -> Cell:
    """A dash and why; sorted behind all values."""
    return Cell(f"{DASH} ({why_missing(figure)})", mark="soft")


def why_missing(figure: Figure) -> str:
    """Why a figure has no value, from its own counts."""
    if not figure:
        return "not in this run's metrics"
    if not figure.get("n"):
        return _NONE.get(figure.get("of", ""), "no labels")
    if "positives" in figure and figure["positives"] in (0, figure["n"]):
        return f"no case {'without' if figure['positives'] else 'with'} the finding"
    return "these cases cannot give it"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    Example:
        >>> count(1, "site"), count(1204, "image")
        ('1 site', '1,204 images')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(words: list[str]) -> str:
    """Words as a sentence lists them.

    Example:
        >>> listed(["aspen", "birch", "cedar"])
        'aspen, birch and cedar'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
