# SPDX-License-Identifier: Apache-2.0
"""Reading DICOM attributes from files that may be wrong: no warning, no surprise, no patient in the message."""

from __future__ import annotations

import logging
import math
import os
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

# What pydicom 3.0.2 raises on mutated headers. ValueError stands for UnicodeError too, LookupError for KeyError and
# IndexError, ArithmeticError for decimal's errors; deep nesting ends in RecursionError.
PARSE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    BytesLengthException,
    InvalidDicomError,
)

_lock = threading.RLock()
_loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "pydicom"]


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # a lock held by another thread at the fork would never be released


class DicomRefused(ValueError):  # noqa: N818 - the public name; it is a refusal, not a fault
    """A file that cannot be read rightly; it says why without naming a patient, an identifier or a path.

    Args:
        reason: a sentence for a person, e.g. ``"colour image, not a radiograph"``.
        attribute: the DICOM keyword that decided, or nothing.

    Example:
        >>> print(DicomRefused("structured report, no image", "SOPClassUID"))
        structured report, no image (SOPClassUID)
    """

    def __init__(self, reason: str, attribute: str = "") -> None:
        super().__init__(reason, attribute)
        self.reason = reason
        self.attribute = attribute

    def __str__(self) -> str:
        return f"{self.reason} ({self.attribute})" if self.attribute else self.reason


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom and others: what they warn of and log quotes attributes, a patient's name among them.

    One thread at a time, since warning filters and levels of loggers belong to the whole process.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = [logger.disabled for logger in _loggers]
        for logger in _loggers:  # not by level: each change of one empties the caches of all loggers there are
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(_loggers, before, strict=True):
                logger.disabled = disabled


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except PARSE_ERRORS:
        return "unreadable"


def texts(dataset: Dataset, keyword: str) -> list[str]:
    """The values of an attribute as upper-case text; empty when it is absent.

    Example:
        >>> header = Dataset()
        >>> header.PatientOrientation = ["L", "F"]
        >>> texts(header, "PatientOrientation"), texts(header, "ViewPosition")
        (['L', 'F'], [])
    """
    value = _value(dataset, keyword)
    if value is None or value == "":
        return []
    if isinstance(value, str):  # the commonest; asking for MultiValue, an abstract class, costs ten times as much
        return [str(value).strip().upper()]
    return [str(item).strip().upper() for item in (value if isinstance(value, (MultiValue, list)) else [value])]


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as upper-case text, or an empty one."""
    return (texts(dataset, keyword) or [""])[0]


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The values of an attribute as numbers: NaN where one cannot be read, none when it is absent.

    Example:
        >>> header = Dataset()
        >>> header.WindowWidth = ["400", "2000"]
        >>> numbers(header, "WindowWidth"), numbers(header, "WindowCenter")
        ([400.0, 2000.0], [])
    """
    value = _value(dataset, keyword)
    if value is None or value == "":
        return []
    if isinstance(value, (int, float)):
        return [_number(value)]
    return [_number(item) for item in (value if isinstance(value, (MultiValue, list)) else [value])]


def _number(value: Any) -> float:
    try:
        return float(value)
    except PARSE_ERRORS:
        return math.nan


def number(dataset: Dataset, keyword: str, absent: float = math.nan) -> float:
    """The first value of an attribute as a number; `absent` when it is not there, NaN when it cannot be read."""
    return (numbers(dataset, keyword) or [absent])[0]


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none when it is absent or not a sequence."""
    value = _value(dataset, keyword)
    try:
        return [item for item in value if isinstance(item, Dataset)]
    except PARSE_ERRORS:
        return []
