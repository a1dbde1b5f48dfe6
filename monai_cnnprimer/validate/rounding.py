# SPDX-License-Identifier: Apache-2.0
"""Numbers for files, so that bytes do not hang on the last bits of a computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def to_places(value: Any, places: int = 6) -> Any:
    """Floats within mappings and sequences with so many places behind the point; what is no number as None.

    Example:
        >>> to_places({"auroc": (0.12345678, float("nan")), "n": 3})
        {'auroc': [0.123457, None], 'n': 3}
    """
    return _each(value, lambda number: round(number, places) if math.isfinite(number) else None)


def to_digits(value: Any, digits: int = 6) -> Any:
    """Floats within mappings and sequences with so many significant digits.

    Example:
        >>> to_digits({"p": 0.000012345678, "n": 3, "passed": True})
        {'p': 1.23457e-05, 'n': 3, 'passed': True}
    """
    return _each(value, lambda number: float(f"{number:.{digits}g}"))


def _each(value: Any, change: Callable[[float], float | None]) -> Any:
    if isinstance(value, float):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    return [_each(item, change) for item in value] if isinstance(value, list | tuple) else value
