# SPDX-License-Identifier: Apache-2.0
"""Reads the headers that `scan` leaves aside, by pydicom, which alone would go as deep and unpack as much as asked."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from typing import BinaryIO, cast

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.limits import in_force

START = 1 << 18  # bytes that are searched for nested sequences; 5,000 take 100 kB
UNDEFINED = 0xFFFFFFFF
LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)  # PS3.5, 7.1.2
SHORT = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)


def read_unusual(source: BinaryIO) -> Dataset:
    """Reads a header as `pydicom.dcmread` with ``stop_before_pixels`` does, within the limits in force.

    Args:
        source: an open file at its beginning; left at the pixel data element, but not when it is deflated.

    Raises:
        DicomRefused: sequences lie too deep in each other, or a deflated file unpacks to too much or has no end.
    """
    start = source.read(START)
    source.seek(0)
    syntax, place = _meta(start)
    if not syntax and DeflatedExplicitVRLittleEndian.encode() in start:
        raise DicomRefused("a damaged DICOM header", "TransferSyntaxUID")  # pydicom might find it, and inflate it
    deflated = syntax == DeflatedExplicitVRLittleEndian
    if deflated:
        source, syntax = _inflated(source, place), ExplicitVRLittleEndian
        start = source.read(START)
        source.seek(0)
    try:
        if syntax and _nesting(start, place, syntax) > in_force().nesting:
            raise RecursionError
        dataset = pydicom.dcmread(cast(BinaryIO, _NoLonger(source)), stop_before_pixels=True, force=True)
    except RecursionError:
        raise DicomRefused("sequences that lie deeper in each other than those of any radiograph") from None
    if deflated:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dataset


class _NoLonger:
    """A file that is asked for no more than it has: `read` would set as much memory aside as a false length says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, file.seek(0, os.SEEK_END)
        self.seek, self.tell = file.seek, file.tell
        self.seek(0)

    def read(self, count: int = -1) -> bytes:
        """As of any file."""
        left = max(self._end - self.tell(), 0)
        return self._file.read(left if count < 0 else min(count, left))


def _meta(start: bytes) -> tuple[str, int]:
    """The transfer syntax that the meta header states ("" where it breaks the rules), and where that header ends."""
    place, syntax = 132 if start[128:132] == b"DICM" else 0, ""
    while start[place : place + 2] == b"\x02\x00" and place + 12 <= len(start):
        element, representation, length = struct.unpack_from("<H2sH", start, place + 2)
        place += 8
        if representation in LONG:
            (length,) = struct.unpack_from("<I", start, place)
            place += 4
        elif representation not in SHORT:
            return "", place
        if element == 0x0010:
            syntax = start[place : place + length].rstrip(b" \0").decode("ascii", "replace")
        place += length
    return syntax, place


def _inflated(source: BinaryIO, place: int) -> BinaryIO:
    """A deflated file as an uncompressed one (PS3.5, A.5): the meta header is not deflated, all behind it is."""
    plain = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
    meta = source.read(place).replace(DeflatedExplicitVRLittleEndian.encode(), plain)
    inflater, most = zlib.decompressobj(-zlib.MAX_WBITS), in_force().inflated_bytes
    content = inflater.decompress(source.read(), most)
    if not inflater.eof and len(content) < most:
        raise DicomRefused("cut off: the deflated file has no end", "TransferSyntaxUID")
    if not inflater.eof:
        raise DicomRefused("a deflated file that unpacks to more than any radiograph holds", "TransferSyntaxUID")
    return BytesIO(meta + content)


def _nesting(start: bytes, place: int, syntax: str) -> int:
    """How deep sequences of undefined length, which pydicom reads by recursion, lie in each other; UN may be one.

    The walk ends where it would have to guess; what lies behind is left to the limit of Python's own recursion.
    """
    implicit, order = syntax == ImplicitVRLittleEndian, ">" if syntax == ExplicitVRBigEndian else "<"
    head, word = struct.Struct(f"{order}HH2sH"), struct.Struct(f"{order}I")
    depth = deepest = 0
    while place + 12 <= len(start) and depth >= 0:
        group, element, representation, length = head.unpack_from(start, place)
        is_long = not implicit and representation in LONG
        if group == 0xFFFE or implicit or is_long:
            (length,) = word.unpack_from(start, place + (8 if is_long and group != 0xFFFE else 4))
        if group == 0xFFFE:  # an item, its end, or the end of a sequence (PS3.5, 7.5.1)
            depth -= element == 0xE0DD
            place += 8 + (length if element == 0xE000 and length != UNDEFINED else 0)
        elif length != UNDEFINED:
            if not implicit and not is_long and representation not in SHORT:
                break
            place += (12 if is_long else 8) + length
        elif not implicit and representation in (b"SQ", b"UN") or implicit and _is_sequence(group << 16 | element):
            depth += 1
            deepest = max(deepest, depth)
            place += 12 if is_long else 8
        else:
            break
    return deepest


def _is_sequence(tag: int) -> bool:
    return dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
