# SPDX-License-Identifier: Apache-2.0
"""From stored bits to display values (PS3.3 C.7.6.3, C.11.1, C.11.2), worked out on the table of all bit patterns.

A radiograph stores 16 bits at most: what is done once for each possible pattern need not be done for each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, items, number, numbers, text

MAX_SIDE = 20_000
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class PixelFormat:
    """The size of an image and where the stored bits lie in a pixel cell (PS3.5 8.1.1)."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def shift(self) -> int:
        """How many unused bits lie below the stored ones."""
        return self.high_bit + 1 - self.stored

    @property
    def mask(self) -> int:
        """The stored bits, shifted down."""
        return (1 << self.stored) - 1

    def values(self) -> NDArray[np.int64]:
        """The value of every bit pattern, in order of the patterns.

        Example:
            >>> PixelFormat(1, 1, 8, 2, 1, signed=True).values().tolist()
            [0, 1, -2, -1]
        """
        patterns = np.arange(1 << self.stored)
        return np.where(patterns > self.mask >> 1, patterns - (1 << self.stored), patterns) if self.signed else patterns


def pixel_format(dataset: Dataset) -> PixelFormat:
    """Reads the pixel module; raises DicomRefused where it cannot be the one of a radiograph."""
    rows, columns = (_whole(dataset, keyword) for keyword in ("Rows", "Columns"))
    for keyword, side in (("Rows", rows), ("Columns", columns)):
        if not 0 < side <= MAX_SIDE:
            raise DicomRefused(f"an image side of no or more than {MAX_SIDE} pixels", keyword)
    allocated, stored = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    if allocated not in (8, 16, 32):
        raise DicomRefused("pixel cells of other than 8, 16 or 32 bits", "BitsAllocated")
    if not 0 < stored <= min(16, allocated):
        raise DicomRefused("a pixel with no bits, more bits than its cell has, or more than 16", "BitsStored")
    high = _whole(dataset, "HighBit", stored - 1)
    if not stored - 1 <= high < allocated:
        raise DicomRefused("the stored bits do not fit into the pixel cell", "HighBit")
    representation = _whole(dataset, "PixelRepresentation", 0)
    if representation not in (0, 1):
        raise DicomRefused("neither signed nor unsigned pixels", "PixelRepresentation")
    return PixelFormat(rows, columns, allocated, stored, high, signed=representation == 1)


def _whole(dataset: Dataset, keyword: str, absent: int = -1) -> int:
    value = number(dataset, keyword, absent)
    return int(value) if math.isfinite(value) else -1


@dataclass(frozen=True)
class LookupTable:
    """One item of a Modality or VOI LUT Sequence. `first` is taken as stored; which sign it has shows in `apply`."""

    first: int
    entries: NDArray[np.int64]
    bits: int
    stated_bits: int
    stated_length: int

    def apply(self, values: Values) -> Values:
        """Looks every value up; what lies beyond an end of the table gets the entry at that end.

        The first mapped value may be written signed or unsigned (PS3.3 C.11.1.1.1, C.11.2.1.1) and is often written in
        the wrong one: the reading under which the table meets more of the values' range is the right one.
        """
        low, high, size = values.min(), values.max(), len(self.entries)
        other = self.first - 65_536 if self.first >= 32_768 else self.first + 65_536
        first = max((self.first, other), key=lambda first: min(high, first + size - 1) - max(low, first))
        return self.entries[np.clip(np.rint(values) - first, 0, size - 1).astype(np.int64)].astype(np.float64)


def lookup_table(item: Dataset, big_endian: bool = False) -> LookupTable | None:
    """Reads LUTDescriptor and LUTData; None when they hold no table.

    Known departures are met: 0 stands for 65,536 entries; 8-bit entries may be packed two in a word; fewer entries may
    be there than stated; and the bits stated for an entry may be fewer than the entries need, or two or more too many.
    """
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not all(math.isfinite(value) for value in descriptor):
        return None
    length, first, stated_bits = int(descriptor[0]) & 0xFFFF or 65_536, int(descriptor[1]), int(descriptor[2])
    entries = _entries(item, length, stated_bits, big_endian)[:length]
    if not len(entries):
        return None
    needed = int(entries.max()).bit_length()
    wrong = not needed <= stated_bits <= 16 or needed < stated_bits - 1
    return LookupTable(first, entries, max(needed, 8) if wrong else stated_bits, stated_bits, length)


def _entries(item: Dataset, length: int, bits: int, big_endian: bool) -> NDArray[np.int64]:
    try:
        data = item["LUTData"].value
        if isinstance(data, bytes):
            words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2").astype(np.int64)
        else:
            words = np.asarray(list(data) if isinstance(data, (MultiValue, Sequence)) else [data], np.int64) & 0xFFFF
    except PARSE_ERRORS:
        return np.empty(0, np.int64)
    packed = length > 2 and len(words) == (length + 1) // 2  # 8-bit entries, the first in the low byte (PS3.5 8.1.1)
    return np.stack([words & 0xFF, words >> 8], axis=1).ravel() if packed else words


@dataclass(frozen=True)
class Window:
    """A window and its function (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: str

    @property
    def possible(self) -> bool:
        """Whether the standard allows this width: at least 1 for LINEAR, more than 0 for the others."""
        finite = math.isfinite(self.center) and math.isfinite(self.width)
        return finite and (self.width >= 1 if self.function == "LINEAR" else self.width > 0)

    def apply(self, values: Values) -> Values:
        """Maps values to [0, 1].

        Example:
            >>> Window(2048, 4096, "LINEAR").apply(np.array([0.0, 4095.0])).tolist()
            [0.0, 1.0]
        """
        if self.function == "SIGMOID":
            return cast(Values, 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700))))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        offset = values - (self.center - 0.5)
        if self.width == 1:
            return (offset > 0).astype(np.float64)
        return np.clip(offset / (self.width - 1) + 0.5, 0, 1)


def windows(dataset: Dataset) -> list[Window]:
    """All windows of an image, possible or not; a centre without a width, or a width alone, is NaN in the other."""
    centers, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    stated = text(dataset, "VOILUTFunction")
    function = stated if stated in FUNCTIONS else "LINEAR"
    count = max(len(centers), len(widths))
    centers, widths = (values + [math.nan] * (count - len(values)) for values in (centers, widths))
    return [Window(*pair, function) for pair in zip(centers, widths, strict=True)]


def is_big_endian(dataset: Dataset) -> bool:
    """Whether words without a representation of their own, as LUTData in OW, are in big-endian order."""
    return getattr(dataset, "original_encoding", (None, True))[1] is False


def modality_lut(dataset: Dataset) -> LookupTable | None:
    """The Modality LUT, if there is one; raises DicomRefused for one that holds nothing."""
    sequence = items(dataset, "ModalityLUTSequence")
    if not sequence:
        return None
    table = lookup_table(sequence[0], is_big_endian(dataset))
    if table is None:
        raise DicomRefused("a Modality LUT without readable entries", "ModalityLUTSequence")
    return table


def rescale(dataset: Dataset) -> tuple[float, float]:
    """Slope and intercept; raises DicomRefused for what no value can be computed with."""
    slope, intercept = number(dataset, "RescaleSlope", 1), number(dataset, "RescaleIntercept", 0)
    if not math.isfinite(slope) or slope == 0:
        raise DicomRefused("a rescale slope that is zero or not a number", "RescaleSlope")
    if not math.isfinite(intercept):
        raise DicomRefused("a rescale intercept that is not a number", "RescaleIntercept")
    return slope, intercept


def voi(dataset: Dataset) -> LookupTable | Window | None:
    """What an image wants to be shown by: its first readable VOI LUT, else its first possible window, else nothing."""
    tables = (lookup_table(item, is_big_endian(dataset)) for item in items(dataset, "VOILUTSequence"))
    readable = next((table for table in tables if table is not None), None)
    return readable or next((window for window in windows(dataset) if window.possible), None)


def lut_path(dataset: Dataset) -> str:
    """Names the path of `display_table` from the header, e.g. ``rescale + window LINEAR`` or ``full range``."""
    chosen = voi(dataset)
    last = "VOI LUT" if isinstance(chosen, LookupTable) else f"window {chosen.function}" if chosen else "full range"
    if modality_lut(dataset) is not None:
        return f"modality LUT + {last}"
    return last if rescale(dataset) == (1, 0) else f"rescale + {last}"


def is_inverted(dataset: Dataset) -> bool:
    """Whether low values are to be shown bright: by MONOCHROME1 or PresentationLUTShape, and by both only once."""
    shape = text(dataset, "PresentationLUTShape")
    return text(dataset, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE"


def padding(dataset: Dataset, pixels: PixelFormat) -> NDArray[np.bool_] | None:
    """Which bit patterns are padding (PS3.3 C.7.5.1.1.2), or None when the image names none.

    The attributes have the representation of the pixels; written in the wrong one, the bits are still the same.
    """
    value = numbers(dataset, "PixelPaddingValue")[:1]
    limits = value + numbers(dataset, "PixelPaddingRangeLimit")[:1]
    if not value or not all(math.isfinite(limit) for limit in limits):
        return None
    values = pixels.values()
    low, high = (f(int(values[int(limit) & pixels.mask]) for limit in limits) for f in (min, max))
    return (values >= low) & (values <= high)


def display_table(
    dataset: Dataset, pixels: PixelFormat, limits: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """What every bit pattern is shown as: float32 in [0, 1], 1 the brightest; padding is not treated here.

    Args:
        dataset: the header.
        pixels: its format.
        limits: what to show when there is neither VOI LUT nor window; the full range that the stored bits can express
            when None.

    Returns:
        ``(2 ** BitsStored,)``.

    Example:
        >>> table = display_table(Dataset(), PixelFormat(1, 1, 8, 2, 1, signed=False))
        >>> [round(float(value), 2) for value in table]
        [0.0, 0.33, 0.67, 1.0]
    """
    values = modality_values(dataset, pixels)
    chosen = voi(dataset)
    if isinstance(chosen, LookupTable):
        shown = chosen.apply(values) / ((1 << chosen.bits) - 1)
    elif chosen is not None:
        shown = chosen.apply(values)
    else:
        low, high = limits or (values.min(), values.max())
        shown = np.clip((values - low) / ((high - low) or 1), 0, 1)
    return (1 - shown if is_inverted(dataset) else shown).astype(np.float32)


def narrow_range(
    dataset: Dataset, pixels: PixelFormat, patterns: NDArray[Any], padded: NDArray[np.bool_] | None
) -> tuple[float, float] | None:
    """The limits of an image whose pixels span less than a quarter of what its bits can express; None for any other.

    With neither VOI LUT nor window the standard shows the full range, and such an image, as 12-bit values stored in 16
    bits, nearly black. Its own range is shown instead, and the receipt says ``range-narrow``.

    Args:
        dataset: the header.
        pixels: its format.
        patterns: ``(Rows, Columns)``, the bit pattern of every pixel.
        padded: which patterns are padding, and do not count.
    """
    if voi(dataset) is not None:
        return None
    values = modality_values(dataset, pixels)
    own = values[:0]
    for part in (patterns[::16, ::16], patterns):  # mostly a few pixels already span enough
        used = np.zeros(len(values), dtype=bool)
        used[part] = True
        own = values[used if padded is None else used & ~padded]
        if own.size and np.ptp(own) >= np.ptp(values) / 4:
            return None
    return (float(own.min()), float(own.max())) if own.size and np.ptp(own) > 0 else None


def modality_values(dataset: Dataset, pixels: PixelFormat) -> Values:
    """The output of Modality LUT or rescale for every bit pattern."""
    values = pixels.values().astype(np.float64)
    table = modality_lut(dataset)
    if table is not None:
        return table.apply(values)
    slope, intercept = rescale(dataset)
    return values * slope + intercept
