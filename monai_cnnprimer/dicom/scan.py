# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a usual DICOM file from its first 64 KiB; what is unusual in any way is left to pydicom."""

from __future__ import annotations

import struct
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32
from pydicom.values import convert_string, convert_value

READ = 1 << 16
DEEPEST = 8  # nested sequences; pydicom gives up at a depth that depends on who calls it
UNDEFINED = 0xFFFFFFFF
TRANSFER_SYNTAX, CHARACTER_SET, PIXEL_REPRESENTATION = 0x00020010, 0x00080005, 0x00280103
PIXELS = range(0x7FE00008, 0x7FE00011)  # of floats, of doubles, of integers, and nothing else
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# By the name of a representation: how many bytes stand before the value (PS3.5 7.1.2).
HEADS = {vr.encode(): 8 for vr in EXPLICIT_VR_LENGTH_16} | {vr.encode(): 12 for vr in EXPLICIT_VR_LENGTH_32}
# Whose value follows from its own bytes alone.
PLAIN = {"AE", "AS", "CS", "DA", "DS", "FD", "FL", "IS", "LO", "LT", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"}
# Those that pydicom reads as little endian from the file as it stands.
SYNTAXES = {
    uid.encode(): UID(uid)
    for uid, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and uid not in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
}
EXPLICIT, IMPLICIT = struct.Struct("<HH2sH"), struct.Struct("<HHI")
TAG, LENGTH = struct.Struct("<HH"), struct.Struct("<I")
_ABSENT = ...  # a singleton that copying and pickling keep


class _Unusual(Exception):
    """What only pydicom should judge."""


# Where an element lies: its head, its value, its end; and its representation, empty in an implicit syntax.
_Element = tuple[int, int, int, bytes]


class _Found(NamedTuple):
    """The bytes of a header and its elements by tag."""

    data: bytes
    elements: dict[int, _Element]
    implicit: bool
    encoding: str | list[str]


class _Scanned(Dataset):
    """A data set of which only the places of its elements are known; values are converted when they are asked for.

    Whatever `get` and `in` by keyword cannot answer makes it what pydicom reads from the same bytes, once and for all.
    """

    _found: _Found
    _seen: dict[Any, Any]

    def __init__(self, found: _Found) -> None:
        # Neither Dataset.__init__ nor its __setattr__, which cost more than the scan.
        state = {"_found": found, "_seen": {}, "_read_implicit": found.implicit, "_read_little": True}
        vars(self).update(state, _read_charset=found.encoding)

    def get(self, key: Any, default: Any = None) -> Any:
        """As `Dataset.get`; values that were asked for are kept."""
        try:
            value = self._seen[key]
        except KeyError:
            tag = _tag(key)
            if "_dict" in vars(self) or tag is None:
                return super().get(key, default)
            element = self._found.elements.get(tag)
            value = self._seen[key] = _ABSENT if element is None else self._value(tag, element, key)
        return default if value is _ABSENT else value

    def _value(self, tag: int, element: _Element, keyword: str) -> Any:
        vr = element[3].decode() or _dictionary_vr(tag)
        return _plain(self._found, tag, element, vr) if vr in PLAIN else self._other(tag, element, keyword)

    def _other(self, tag: int, element: _Element, keyword: str) -> Any:
        return _read(self._found, element).get(keyword)

    def __contains__(self, name: Any) -> bool:
        tag = _tag(name)
        if "_dict" in vars(self) or tag is None:
            return super().__contains__(name)
        return tag in self._found.elements

    def __getattr__(self, name: str) -> Any:
        state = vars(self)
        if "_dict" in state or "_found" not in state or name.startswith("__"):
            return super().__getattr__(name)
        if _tag(name) in state["_found"].elements:
            return self.get(name)
        state.update(vars(self._as_pydicom_reads()), _seen={})
        return getattr(self, name)

    def _as_pydicom_reads(self) -> Dataset:
        return pydicom.dcmread(BytesIO(self._found.data), force=True)


class ScannedHeader(_Scanned, FileDataset):
    """The header of a file, without its pixels."""

    @property
    def end(self) -> int:
        """Where the pixel data element begins, or the file ends."""
        return len(self._found.data)

    def _other(self, tag: int, element: _Element, keyword: str) -> Any:
        is_sequence = _is_sequence(tag, element[3]) and self._found.data[element[1] - 4 : element[1]] != b"\xff" * 4
        items = _items(self._found, tag, element) if is_sequence else []
        return Sequence(items) if items else super()._other(tag, element, keyword)


class ScannedMeta(_Scanned, FileMetaDataset):
    """The meta header of a file."""

    def _as_pydicom_reads(self) -> Dataset:
        return super()._as_pydicom_reads().file_meta


class ScannedItem(_Scanned):
    """An item of a sequence of the header; its own sequences, and what depends on the header, are read by pydicom."""

    def __init__(self, found: _Found, place: tuple[_Found, int, _Element, int]) -> None:
        super().__init__(found)
        vars(self)["_place"] = place

    def _other(self, tag: int, element: _Element, keyword: str) -> Any:
        return self._as_pydicom_reads().get(keyword)

    def _as_pydicom_reads(self) -> Dataset:
        found, tag, element, number = vars(self)["_place"]
        return _read(found, element)[tag].value[number]


def scan(data: bytes) -> ScannedHeader | None:
    """Reads a header as `pydicom.dcmread` with ``stop_before_pixels`` does, only faster.

    Args:
        data: the first `READ` bytes of a file, or all of a shorter one.

    Returns:
        The header, equal to pydicom's; None for a file to which the quick way does not apply: one without prefix or
        meta header, big endian, deflated, of a private transfer syntax, cut off, with elements out of order, of unknown
        representation or of undefined length (other than sequences), or with more than that before its pixels.

    Example:
        >>> scan(b"no DICOM") is None
        True
    """
    try:
        meta, place, syntax = _meta(data)
        implicit = syntax == ImplicitVRLittleEndian
        elements, end = _walk(data, place, len(data), implicit, PIXELS.start)
        high, low = TAG.unpack_from(data, end) if end < len(data) else (0, 0)
        if not elements or end == READ or (high and high << 16 | low not in PIXELS):
            return None
        found = _Found(data[:end], elements, implicit, _encoding(data, elements.get(CHARACTER_SET)))
    except (_Unusual, struct.error):
        return None
    header, file_meta = ScannedHeader(found), ScannedMeta(_Found(found.data, meta, False, default_encoding))
    vars(file_meta)["_seen"]["TransferSyntaxUID"] = syntax
    vars(header)["file_meta"] = file_meta
    return header


def _meta(data: bytes) -> tuple[dict[int, _Element], int, UID]:
    """The meta header (PS3.10 7.1): its elements, where the data set begins, and the transfer syntax of that one."""
    if data[128:132] != b"DICM" or data[132:140] != b"\2\0\0\0UL\4\0":
        raise _Unusual
    elements, place = _walk(data, 132, len(data), False, 0x00030000)
    _, value, end, vr = elements.get(TRANSFER_SYNTAX, (0, 0, 0, b""))
    name = data[value:end].rstrip(b"\0 ")
    if vr != b"UI" or name not in SYNTAXES:
        raise _Unusual
    syntax, first = SYNTAXES[name], data[place + 4 : place + 6]
    if syntax == ImplicitVRLittleEndian and first.isalpha() and first.isupper():  # pydicom takes it for explicit
        raise _Unusual
    return elements, place, syntax


def _walk(
    data: bytes, place: int, end: int, implicit: bool, limit: int, depth: int = 0
) -> tuple[dict[int, _Element], int]:
    """The elements from `place` to `end`, or to the first tag that is not below `limit`; and where that is."""
    elements: dict[int, _Element] = {}
    last, vr = -1, b""
    while place < end:
        value = place + 8
        if implicit:
            high, low, length = IMPLICIT.unpack_from(data, place)
        else:
            high, low, vr, length = EXPLICIT.unpack_from(data, place)
        tag = high << 16 | low
        if tag >= limit:
            break
        if not implicit and HEADS.get(vr) != 8:
            if vr not in HEADS:
                raise _Unusual
            (length,) = LENGTH.unpack_from(data, value)
            value += 4
        after = value + length
        if after > end:
            after = _sequence_end(data, value, implicit, depth) if length == UNDEFINED and _is_sequence(tag, vr) else 0
        if tag <= last or not place < after <= end:
            raise _Unusual
        elements[tag] = (place, value, after, vr)
        place, last = after, tag
    return elements, place


def _is_sequence(tag: int, vr: bytes) -> bool:
    return vr == b"SQ" or (not vr and _dictionary_vr(tag) == "SQ")


def _sequence_end(data: bytes, place: int, implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends (PS3.5 7.5.2), if it is made as the standard says."""
    if depth == DEEPEST:
        raise _Unusual
    while True:
        high, low, length = IMPLICIT.unpack_from(data, place)
        tag, place = high << 16 | low, place + 8
        if tag == SEQUENCE_END:
            return place
        if tag != ITEM:
            raise _Unusual
        end = len(data) if length == UNDEFINED else place + length
        _, place = _walk(data, place, end, implicit, ITEM, depth + 1)
        if length == UNDEFINED:
            high, low, _ = IMPLICIT.unpack_from(data, place)
            if high << 16 | low != ITEM_END:
                raise _Unusual
            place += 8
        elif place != end:
            raise _Unusual


@lru_cache(maxsize=4096)
def _tag(key: Any) -> int | None:
    return tag_for_keyword(key) if isinstance(key, str) else None


@lru_cache(maxsize=4096)
def _dictionary_vr(tag: int) -> str:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return ""


def _encoding(data: bytes, element: _Element | None) -> str | list[str]:
    if element is None:
        return default_encoding
    _, value, end, vr = element
    if vr not in (b"CS", b""):
        raise _Unusual
    return list(_encodings(data[value:end]))


@lru_cache(maxsize=64)
def _encodings(value: bytes) -> tuple[str, ...]:
    try:
        return tuple(convert_encodings(convert_string(value, True)))
    except (LookupError, ValueError):
        raise _Unusual from None


def _plain(found: _Found, tag: int, element: _Element, vr: str) -> Any:
    """The value of an element that follows from its own bytes, converted by pydicom, or as pydicom converts it."""
    _, value, end, _ = element
    content = found.data[value:end]
    if vr == "US" and len(content) == 2:  # this and the next are the commonest: the shortest way
        return int.from_bytes(content, "little")
    if vr in ("CS", "AS") and content and b"\\" not in content:
        return content.decode(default_encoding).rstrip(" \0")
    raw = RawDataElement(BaseTag(tag), vr, len(content), content, value, found.implicit, True)
    return convert_value(vr, raw, found.encoding)


def _read(found: _Found, element: _Element) -> Dataset:
    """One element of a header as pydicom reads it: with PixelRepresentation, which tells what is signed (PS3.5 6.2)."""
    start, _, end, _ = element
    signs = found.elements.get(PIXEL_REPRESENTATION)
    both = found.data[start:end] + (found.data[signs[0] : signs[2]] if signs and signs[0] != start else b"")
    return read_dataset(BytesIO(both), found.implicit, True, parent_encoding=found.encoding)


def _items(found: _Found, tag: int, element: _Element) -> list[ScannedItem]:
    """The items of a sequence whose length, and theirs, are stated; none where pydicom should read them."""
    _, place, end, _ = element
    items: list[ScannedItem] = []
    try:
        while place < end:
            high, low, length = IMPLICIT.unpack_from(found.data, place)
            elements, after = _walk(found.data, place + 8, place + 8 + length, found.implicit, ITEM)
            if high << 16 | low != ITEM or not elements or after != place + 8 + length or CHARACTER_SET in elements:
                return []
            items.append(ScannedItem(found._replace(elements=elements), (found, tag, element, len(items))))
            place = after
    except (_Unusual, struct.error):
        return []
    return items if place == end else []
