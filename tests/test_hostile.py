# SPDX-License-Identifier: Apache-2.0
"""Files made to exhaust, crash or mislead their reader are refused with a reason; each is made here, small on disk."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from written_dicom import radiograph, written

from monai_cnnprimer.dicom import radiograph as reading
from monai_cnnprimer.dicom import rows
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.files import Source, archive_members, has_changed, list_sources
from monai_cnnprimer.dicom.limits import Limits, limited
from monai_cnnprimer.dicom.radiograph import read_radiograph

VALUES = np.arange(64, dtype=np.uint8).reshape(8, 8)
PLAIN = written(radiograph(VALUES))
PIXELS = PLAIN.index(b"\xe0\x7f\x10\0OW")
META = 144 + int.from_bytes(PLAIN[140:144], "little")  # where the data set begins, by the group length
UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\0\xe0"
OFFSETS = ITEM + b"\4\0\0\0" + bytes(4)
MIB = 1 << 20


def with_element(element: bytes) -> bytes:
    """The plain file with another element before its pixels."""
    return PLAIN[:PIXELS] + element + PLAIN[PIXELS:]


def deflated(*parts: tuple[bytes, int]) -> bytes:
    """A deflated file whose data set is made of these parts, each so many times, without ever holding it unpacked."""
    meta = written(radiograph(VALUES), DeflatedExplicitVRLittleEndian)
    packed = meta[: 144 + int.from_bytes(meta[140:144], "little")]
    for part, times in parts:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed += (deflater.compress(part) + deflater.flush(zlib.Z_FULL_FLUSH)) * times
    return packed + zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()


def deflate_bomb() -> bytes:
    """1.5 GB in a private element of the header."""
    element = struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 96 * 16 * MIB)
    return deflated((PLAIN[META:PIXELS] + element, 1), (bytes(16 * MIB), 96), (PLAIN[PIXELS:], 1))


def many_elements() -> bytes:
    """Two million empty elements, which take seconds to read."""
    element = struct.pack("<HH2sH", 0x0029, 0x1001, b"LO", 0)
    return deflated((PLAIN[META:PIXELS], 1), (element * 20_000, 100), (PLAIN[PIXELS:], 1))


def nested(depth: int, representation: bytes = b"SQ") -> bytes:
    return with_element((b"\x40\0\x30\xa7" + representation + b"\0\0" + UNDEFINED + ITEM + UNDEFINED) * depth)


def compressed(rows: int, columns: int, syntax: str = RLELossless, **attributes: object) -> bytes:
    """A stream of some bytes that claims to be so large."""
    stream = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 30
    if syntax == JPEGLSLossless:
        stream = imagecodecs.jpegls_encode(VALUES)
        place = stream.index(b"\xff\xf7")
        stream = stream[: place + 5] + struct.pack(">HH", rows, columns) + stream[place + 9 :]
    if syntax == JPEG2000Lossless:
        stream = bytearray(imagecodecs.jpeg2k_encode(VALUES, codecformat="j2k", reversible=True))
        place = stream.index(b"\xff\x51") + 6
        struct.pack_into(">II", stream, place, columns, rows)
    return written(radiograph(VALUES, Rows=rows, Columns=columns, **attributes), syntax, bytes(stream))


def rle_beyond_its_end() -> bytes:
    """The second of two segments begins behind the last byte; the decoder reads on (fuzz: seed 0, mutant 5944)."""
    stream = struct.pack("<16I", 2, 64, 1 << 24, *[0] * 13) + b"\x81\0" * 60
    return written(radiograph(VALUES.astype(np.uint16)), RLELossless, stream)


def tiles_of_no_width() -> bytes:
    """A decoder of HTJ2K divides by the width of a tile (fuzz: seed 0, mutant 6956)."""
    stream = bytearray(imagecodecs.htj2k_encode(VALUES, reversible=True))
    struct.pack_into(">I", stream, stream.index(b"\xff\x51") + 22, 0)
    return written(radiograph(VALUES), HTJ2KLossless, bytes(stream))


def replaced(file: bytes, old: bytes, new: bytes) -> bytes:
    assert file.count(old) == 1
    return file.replace(old, new)


# The one or the other: a later version of the decoder may find the fault itself.
CRASHED = r"ended the process that read it \(SIG|cannot be decoded"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflate bomb": (deflate_bomb, "unpacks to more than any radiograph holds"),
    "deflated, cut off": (lambda: deflated((PLAIN[META:], 1))[:-2], "cut off: the deflated file has no end"),
    "deflated under a damaged meta header": (
        lambda: replaced(deflated((PLAIN[META:], 1)), b"\x02\0\x10\0UI", b"\x02\0\x10\0\x07I"),
        "a damaged DICOM header",
    ),
    "5,000 nested sequences": (lambda: nested(5000), "deeper in each other than those of any radiograph"),
    "40 nested sequences": (lambda: nested(40), "deeper in each other than those of any radiograph"),
    "5,000 nested without a representation": (lambda: nested(5000, b"UN"), "deeper in each other"),
    "RLE of 40,000 x 40,000": (lambda: compressed(40_000, 40_000), "more than 20000 pixels"),
    "RLE of 65,535 x 65,535": (lambda: compressed(65_535, 65_535), "more than 20000 pixels"),
    "RLE of 20,000 x 20,000": (lambda: compressed(20_000, 20_000), "more pixels than any radiograph has"),
    "RLE of 11,000 x 11,000": (lambda: compressed(11_000, 11_000), "compressed pixels that cannot be decoded"),
    "JPEG-LS of 11,000 x 11,000": (lambda: compressed(11_000, 11_000, JPEGLSLossless), r"\(PixelData\)"),
    "JPEG 2000 of 11,000 x 11,000": (lambda: compressed(11_000, 11_000, JPEG2000Lossless), r"\(PixelData\)"),
    "RLE that leads beyond its end": (rle_beyond_its_end, CRASHED),
    "HTJ2K with tiles of no width": (tiles_of_no_width, CRASHED),
    "two billion frames": (lambda: compressed(8, 8, NumberOfFrames="2000000000"), "several frames"),
    "an element of 4 GB": (
        lambda: with_element(struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 0xFFFFFFF0)),
        "cut off: the file ends before its pixels",
    ),
    "an element of 4 GB in a private sequence": (
        lambda: with_element(struct.pack("<HH2sHI", 0x0029, 0x1010, b"SQ", 0, 0xFFFFFFF0)),
        "cut off: the file ends before its pixels",
    ),
    "pixels of 4 GB": (
        lambda: PLAIN[: PIXELS + 8] + struct.pack("<I", 0xFFFFFFF0) + PLAIN[PIXELS + 12 :],
        "cut off: the file ends within its pixels",
    ),
    "a fragment of 4 GB": (
        lambda: replaced(compressed(8, 8), OFFSETS + ITEM + b"\x7c\0\0\0", OFFSETS + ITEM + b"\xf0\xff\xff\xff"),
        "cut off: the file ends within its pixels",
    ),
    "an offset table of 4 GB": (
        lambda: replaced(compressed(8, 8), OFFSETS, ITEM + b"\xf0\xff\xff\xff" + bytes(4)),
        "cut off: the file ends within its pixels",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_for_what_it_is(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / "IM1"
    path.write_bytes(make())
    assert path.stat().st_size < 2 * MIB
    (source,) = list_sources(path)

    with pytest.raises(DicomRefused, match=message) as refusal:
        read_radiograph(path)
    (row,) = rows.describe_all([source], b"key", None, workers=1)

    seen_in_the_header = "decoded" not in message and message != r"\(PixelData\)"
    assert (row["reason"] == refusal.value.reason) == seen_in_the_header


@pytest.mark.parametrize(
    "preamble", [b"MZ\x90\0", b"\x7fELF", b"#!/bin/sh\n", b"PK\x03\x04", b"II*\0", b"\xff\xd8\xff\xe0"]
)
def test_a_preamble_that_is_another_kind_of_file_is_not_looked_at(tmp_path: Path, preamble: bytes) -> None:
    """PS3.10, 7.1: its content is free. Nothing of it is run, copied or written, so the image is as good as any."""
    path = tmp_path / "IM1.png"
    path.write_bytes(preamble.ljust(128, b"\x90") + PLAIN[128:])
    sources = list_sources(path)

    image, _ = read_radiograph(path)

    assert image.shape == (8, 8)
    assert np.ptp(image) == 1
    assert [row["reason"] for row in rows.describe_all(sources, b"key", None, workers=1)] == [""]


# --- an index goes on


@pytest.fixture
def besieged(tmp_path: Path) -> Path:
    """Three good files and one that ends its reader by reaching the time limit."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        image = radiograph(VALUES, SOPInstanceUID=f"1.2.826.0.1.3680043.8.498.{number}")
        (folder / f"IM{number}").write_bytes(
            written(image, DeflatedExplicitVRLittleEndian if number else "1.2.840.10008.1.2.1")
        )
    (folder / "IM0a").write_bytes(many_elements())
    return folder


def test_a_file_that_ends_its_reader_costs_one_row_with_any_number_of_workers(
    besieged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "FEW", 1)
    tables = []
    for workers in (1, 2):
        with limited(Limits(seconds=1)):
            output = tmp_path / f"{workers}"
            manifest = index_export(besieged, key=b"key", output=output, workers=workers, progress=False)
        assert manifest.refused["reason"].tolist() == ["reading it takes longer than the time limit"]
        assert manifest.refused["sha256"].tolist() == [""]
        assert len(manifest.accepted) == 3
        tables.append([(output / name).read_bytes() for name in ("manifest.csv", "refused.csv")])

    assert tables[0] == tables[1]


# --- archives and lists


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def claim(archive: Path, name: str, offset: int, size: int) -> None:
    """Changes a number in a member's entry of the central directory: 20 its packed size, 24 its own."""
    content = bytearray(archive.read_bytes())
    struct.pack_into("<I", content, content.rindex(name.encode()) - 46 + offset, size)
    archive.write_bytes(content)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (2 << 30, "larger than any radiograph (over 1 GiB)"),
        (100 * MIB, "packed tighter than any radiograph can be"),
        (60 * MIB, ""),  # an all-black image of 30 million pixels
    ],
)
def test_a_member_that_unpacks_too_far_is_refused(tmp_path: Path, size: int, reason: str) -> None:
    archive = zipped(tmp_path / "export.zip", IM1=PLAIN, IM2=PLAIN)
    claim(archive, "IM1", 24, size)

    assert [source.refusal for source in list_sources(archive)] == [reason, ""]


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "export.zip", IM1=PLAIN + bytes(MIB))
    claim(archive, "IM1", 24, len(PLAIN))

    with pytest.raises(DicomRefused, match="the archive, or this member of it, is damaged"):
        read_radiograph(archive / "IM1")


def test_an_archive_made_to_fill_a_disk_is_one_refusal(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "export.zip", IM1=PLAIN, IM2=PLAIN)
    too_much = "unpacks to more than any export holds"
    for limits in (Limits(zip_members=1), Limits(zip_bytes=len(PLAIN))):
        with limited(limits), pytest.raises(DicomRefused, match=too_much):
            archive_members(str(archive))
    assert len(archive_members(str(archive))[0]) == 2

    for name in ("IM1", "IM2"):
        claim(archive, name, 20, archive.stat().st_size)
    assert [source.refusal for source in list_sources(tmp_path)] == [
        "a zip archive whose members overlap, as those made to fill a disk"
    ]


def test_a_directory_of_files_may_be_a_bomb_too(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(deflate_bomb())

    with pytest.raises(ValueError, match="the DICOMDIR cannot be read: give its folder"):
        list_sources(tmp_path / "DICOMDIR")


def test_references_of_a_directory_that_climb_out_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_bytes(PLAIN)
    directory = pydicom.dcmread(tmp_path / "outside")
    records = []
    for name in ("..\\..\\outside", "..\\outside", "\\outside", "C:\\outside"):
        record = pydicom.Dataset()
        record.DirectoryRecordType = "IMAGE"
        record["ReferencedFileID"] = pydicom.DataElement("ReferencedFileID", "LO", name)
        records.append(record)
    directory.DirectoryRecordSequence = records
    directory.save_as(tmp_path / "in" / "DICOMDIR")

    found = list_sources(tmp_path / "in" / "DICOMDIR")

    assert {source.refusal for source in found} == {"a reference that leads out of the export"}
    assert len(found) == 4


# --- what lies on the disk


def test_a_file_larger_than_any_radiograph_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "IM1"
    path.write_bytes(PLAIN)
    os.truncate(path, 3 << 30)  # with a hole, so that it takes no space

    assert list_sources(path)[0].refusal == "larger than any radiograph (over 1 GiB)"
    with pytest.raises(DicomRefused, match="larger than any radiograph"):
        read_radiograph(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "IM1"
    path.write_bytes(PLAIN)
    show = reading.show

    def overtaken(*arguments: object) -> object:
        shown = show(*arguments)
        path.write_bytes(PLAIN + bytes(2))  # the export goes on writing
        return shown

    monkeypatch.setattr(reading, "show", overtaken)
    with pytest.raises(DicomRefused, match="changed while it was read"):
        read_radiograph(path)


def test_what_changed_is_seen_by_size_and_by_time(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "export.zip", IM1=PLAIN)
    (tmp_path / "IM1").write_bytes(PLAIN)
    sources = list_sources(tmp_path)
    assert not any(has_changed(source) for source in sources)

    for path in (archive, tmp_path / "IM1"):
        times = path.stat()
        with path.open("ab") as file:
            file.write(b"\0")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert all(has_changed(source) for source in sources)
    assert has_changed(Source(str(tmp_path / "gone"), "gone", 1, "1 1"))


def test_a_changed_file_is_read_again_by_the_next_index(tmp_path: Path) -> None:
    (tmp_path / "IM1").write_bytes(PLAIN)
    (source,) = list_sources(tmp_path)
    os.utime(tmp_path / "IM1", ns=(1, 1))

    row = rows.describe(source, b"key", None)

    assert row["reason"] == "changed while it was read: index again when the export is complete"
    assert row["sha256"] == ""  # rows without a hash are not kept for the next index
