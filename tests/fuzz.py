# SPDX-License-Identifier: Apache-2.0
"""Mutates small radiographs of every transfer syntax and reads them: each must be a right image, or `DicomRefused`.

``python tests/fuzz.py --mutants 20000 --seed 0``; `test_fuzz.py` runs a few hundred. Mutant k of seed s is the same on
every machine with the same encoders.
"""

from __future__ import annotations

import argparse
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from rich.console import Console
from rich.progress import Progress
from test_pixels import ENCODED, encoded, scene
from written_dicom import item, radiograph, table, written

from monai_cnnprimer.dicom import rows
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.files import list_sources
from monai_cnnprimer.dicom.header import read_header
from monai_cnnprimer.dicom.limits import Limits, limited
from monai_cnnprimer.dicom.radiograph import read_radiograph

LIMITS = Limits(memory_bytes=512 << 20, seconds=10)
GROWTH = 256 << 10  # KiB by which this process may grow over all mutants
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
FORMATS = [f"{syntax.keyword}, {bits} bit" for syntax in NATIVE for bits in (8, 12)] + list(ENCODED)
REPRESENTATIONS = b"AE AS AT CS DA DS DT FL FD IS LO LT OB OW OF PN SH SL SQ SS ST TM UI UL UN US UT ZZ".split()
SHORT_LENGTHS = (0, 1, 2, 3, 7, 255, 0x7FFF, 0xFFFE, 0xFFFF)
LONG_LENGTHS = (*SHORT_LENGTHS, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
NUMBERS = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 31, 32, 64, 255, 256, 4096, 19_999, 32_767, 32_768, 40_000, 65_535)
# SamplesPerPixel, PlanarConfiguration, Rows, Columns, and BitsAllocated to PixelRepresentation.
SHAPE = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
SYNTAX = b"1.2.840.10008.1.2"
UIDS = [b"", b".1", b".2", b".5", b".1.99"] + [f".4.{n}".encode() for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 203)]


class Element(NamedTuple):
    """Where an element lies: its head, the length in its head and how many bytes that has, its value and its end."""

    tag: int
    head: int
    length: int
    width: int
    value: int
    end: int


@dataclass
class Sample:
    """A file to mutate, with the outline of what it holds."""

    data: bytes
    elements: list[Element]
    order: str
    implicit: bool
    stream: int
    """Where the pixels begin."""


@cache
def sample(name: str) -> Sample:
    """A small radiograph of one format, with a VOI LUT, a window, nested sequences and private elements."""
    data = encoded(name) if name in ENCODED else _native(name)
    implicit, order = name.startswith("Implicit"), ">" if "BigEndian" in name else "<"
    elements = list(_elements(data, implicit, order))
    pixels = next((element.value for element in elements if element.tag == 0x7FE00010), elements[-1].value)
    return Sample(data, elements, order, implicit, pixels)


def _native(name: str) -> bytes:
    keyword, bits = name.split(", ")[0], int(name.split()[-2])
    syntax = next(syntax for syntax in NATIVE if syntax.keyword == keyword)
    view = item(CodeValue="272479007", CodingSchemeDesignator="SCT", CodeMeaning="PA")
    view.ViewModifierCodeSequence = [item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="x")]
    lut = table(0, np.arange(16) * 4096, 16)
    image = radiograph(scene(bits), BitsStored=bits, VOILUTSequence=[lut], ViewCodeSequence=[view], WindowCenter="5")
    image.WindowWidth, image.PixelSpacing, image.PixelPaddingValue, image.PatientAge = "9", [0.1, 0.1], 3, "050Y"
    image["ViewCodeSequence"].is_undefined_length = True
    image.private_block(0x0029, "X", create=True).add_new(1, "OB", bytes(24))
    if keyword == DeflatedExplicitVRLittleEndian.keyword:
        return written(image, ExplicitVRLittleEndian)  # mutated as it is, and then deflated
    return written(image, syntax)


def _elements(data: bytes, implicit: bool, order: str) -> Iterator[Element]:
    """The elements at the top level of a file that is right."""
    place, syntax_end = 132, 144 + int.from_bytes(data[140:144], "little")
    while place + 8 <= len(data):
        bare, ends = (implicit, order) if place >= syntax_end else (False, "<")
        group, number = struct.unpack_from(f"{ends}HH", data, place)
        length, width = (place + 4, 4) if bare else (place + 6, 2)
        if not bare and data[place + 4 : place + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"):
            length, width = place + 8, 4
        count = int.from_bytes(data[length : length + width], "little" if ends == "<" else "big")
        value = length + width
        end = value + count if count != 0xFFFFFFFF else _end_of_undefined(data, value, order)
        yield Element(group << 16 | number, place, length, width, value, min(end, len(data)))
        place = end


def _end_of_undefined(data: bytes, value: int, order: str) -> int:
    return data.index(struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0), value) + 8


# --- mutations: each changes the bytes in one way; a mutant has one to three of them


def _pick(generator: np.random.Generator, values: object) -> object:
    values = list(values)  # type: ignore[call-overload]
    return values[int(generator.integers(len(values)))]


def flip_stream(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Other bytes in the pixels: the first hundred, where a codec's own header lies, as often as all the rest."""
    last = len(data) if generator.random() < 0.5 else min(of.stream + 100, len(data))
    for _ in range(int(generator.integers(1, 9))):
        if of.stream < last:
            data[int(generator.integers(of.stream, last))] = int(generator.choice([0, 255, generator.integers(256)]))
    return data


def flip_header(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Other bytes anywhere before the pixels."""
    for _ in range(int(generator.integers(1, 5))):
        data[int(generator.integers(min(of.stream, len(data))))] = int(generator.integers(256))
    return data


def change_length(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """A length that is odd, off by a little, or enormous."""
    element = _pick(generator, of.elements)
    stated = int.from_bytes(of.data[element.length : element.length + element.width], "little")
    near = [stated + step for step in (-2, -1, 1, 2)]
    length = int(_pick(generator, near + list(LONG_LENGTHS if element.width == 4 else SHORT_LENGTHS)))
    mask = (1 << 8 * element.width) - 1
    order = "little" if of.order == "<" else "big"
    data[element.length : element.length + element.width] = (length & mask).to_bytes(element.width, order)
    return data


def change_representation(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Another value representation, known or not."""
    element = _pick(generator, of.elements)
    data[element.head + 4 : element.head + 6] = _pick(generator, REPRESENTATIONS)
    return data


def change_tag(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """The tag of another element, an item, or the pixels."""
    element, other = _pick(generator, of.elements), _pick(generator, of.elements)
    tag = int(_pick(generator, (other.tag, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010, 0x7FE00008, 0x00080005)))
    data[element.head : element.head + 4] = struct.pack(f"{of.order}HH", tag >> 16, tag & 0xFFFF)
    return data


def change_shape(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Another size, another number of bits or samples."""
    element = _pick(generator, [element for element in of.elements if element.tag in SHAPE])
    stated = struct.unpack_from(f"{of.order}H", of.data, element.value)[0]
    number = int(_pick(generator, (*NUMBERS, stated - 1, stated + 1))) & 0xFFFF
    data[element.value : element.value + 2] = struct.pack(f"{of.order}H", number)
    return data


def change_value(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Other bytes for the value of one element, or text that is none."""
    element = _pick(generator, of.elements[:-1])
    size = element.end - element.value
    filling = _pick(generator, (b"\\", b"\0", b"\xff", b"9", b"-", b"\x1b$B", generator.bytes(max(size, 1))))
    data[element.value : element.end] = (filling * size)[:size]
    return data


def change_syntax(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """The name of another transfer syntax, in the place of the true one."""
    element = next(element for element in of.elements if element.tag == 0x00020010)
    size = element.end - element.value
    data[element.value : element.end] = (SYNTAX + _pick(generator, UIDS)).ljust(size, b"\0")[:size]
    return data


def change_fragments(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Another offset table, or another length of a fragment."""
    place = data.find(b"\xfe\xff\x00\xe0", of.stream)
    if generator.random() < 0.7 and place >= 0:
        place = max(data.find(b"\xfe\xff\x00\xe0", place + 4), place)
    if place >= 0:
        data[place + 4 : place + 8] = struct.pack("<I", int(_pick(generator, (*LONG_LENGTHS, len(data) - place))))
    return data


def cut(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """The end is missing."""
    return data[: int(generator.integers(1, len(data)))]


def lengthen(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Something follows that does not belong there."""
    return data + generator.bytes(int(generator.integers(1, 3000)))


def repeat(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """An element twice, in another place, or a part of the file again."""
    element, other = _pick(generator, of.elements), _pick(generator, of.elements)
    return data[: other.head] + of.data[element.head : element.end] + data[other.head :]


def remove(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """An element less."""
    element = _pick(generator, of.elements)
    return data[: element.head] + data[element.end :]


def nest(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """Sequences within sequences, not all of them closed."""
    element, depth = _pick(generator, of.elements), int(generator.integers(1, 300))
    head = struct.pack(f"{of.order}HH", 0x0040, 0xA730) + (b"" if of.implicit else b"SQ\0\0") + b"\xff" * 4
    start = head + struct.pack(f"{of.order}HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack(f"{of.order}HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    closed = int(generator.integers(depth + 1))
    return data[: element.head] + start * depth + end * closed + data[element.head :]


Mutation = Callable[[bytearray, Sample, np.random.Generator], bytearray]
MUTATIONS: tuple[Mutation, ...] = (
    flip_stream, flip_stream, flip_stream, flip_header, change_length, change_representation, change_tag, change_shape,
    change_shape, change_value, change_syntax, change_fragments, cut, lengthen, repeat, remove, nest,
)  # fmt: skip


def mutant(number: int, seed: int) -> tuple[str, bytes]:
    """The name and the bytes of one mutant."""
    generator = np.random.default_rng([seed, number])
    name = FORMATS[number % len(FORMATS)]
    of = sample(name)
    data, done = bytearray(of.data), []
    for _ in range(int(generator.choice([1, 1, 2, 3]))):
        mutation = MUTATIONS[int(generator.integers(len(MUTATIONS)))]
        data = mutation(data, of, generator) or bytearray(1)
        done.append(mutation.__name__)
    if name.startswith("Deflated"):
        data = _deflated(data, of, generator)
    return f"{name}: {', '.join(done)}", bytes(data)


def _deflated(data: bytearray, of: Sample, generator: np.random.Generator) -> bytearray:
    """The file with its data set deflated, sometimes with a bit of that lost."""
    place = 144 + int.from_bytes(of.data[140:144], "little")
    syntax = next(element for element in of.elements if element.tag == 0x00020010)
    uid = DeflatedExplicitVRLittleEndian.encode()
    meta = data[: syntax.length] + struct.pack("<H", len(uid)) + uid + data[syntax.end : place]
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = bytearray(deflater.compress(bytes(data[place:])) + deflater.flush())
    if generator.random() < 0.3 and packed:
        packed[int(generator.integers(len(packed)))] ^= int(generator.integers(1, 256))
    meta[140:144] = struct.pack("<I", place - 144 + len(uid) - (syntax.end - syntax.value))
    return meta + packed


# --- what came of it


@dataclass
class Counts:
    """How many mutants ended how, and what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{count:8,d}  {outcome}" for outcome, count in self.outcomes.most_common()]
        return "\n".join([*lines, f"{len(self.faults):8,d}  faults", *self.faults])


def outcome(path: Path) -> str:
    """What reading a file gave: ``image``, or why it was refused.

    Raises:
        AssertionError: the image cannot be right.
    """
    try:
        image, receipt = read_radiograph(path)
    except DicomRefused as refused:
        reason = str(refused)
        assert "reading it failed" not in reason, reason  # an exception that nobody foresaw
        return reason
    with path.open("rb") as file:
        header = read_header(file)
    shape = int(header.Rows), int(header.Columns)
    assert image.shape in (shape, shape[::-1]), f"{image.shape} under a header of {shape}"
    assert image.dtype == np.float32, f"{image.dtype}"
    assert np.isfinite(image).all(), "not finite"
    assert image.min() >= 0, f"from {image.min()}"
    assert image.max() <= 1, f"to {image.max()}"
    mask = receipt["padding_mask"]
    assert mask is None or mask.shape == image.shape and mask.dtype == bool, "a mask of another shape"
    return "image"


def indexed(path: Path) -> str:
    """What an index of the file gives: ``accepted``, or ``refused``."""
    (row,) = rows.describe_all(list_sources(path), b"key", None, workers=1)
    assert "reading it failed" not in row["reason"], row["reason"]
    return "refused" if row["reason"] else "accepted"


def fuzz(mutants: int, seed: int, failures: Path, told: Callable[[], None] = lambda: None) -> Counts:
    """Reads and indexes so many mutants; those with a fault are kept in the folder `failures`."""
    counts, memory = Counts(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder, limited(LIMITS):
        path = Path(folder) / "IM1"
        for number in range(mutants):
            name, data = mutant(number, seed)
            path.write_bytes(data)
            start = time.monotonic()
            try:
                came = outcome(path)
                counts.outcomes[f"{came}, {indexed(path)}"] += 1
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
                assert grown < GROWTH, f"{grown >> 10} MiB more"
                assert time.monotonic() - start < 2 * LIMITS.wall_seconds, f"{time.monotonic() - start:.0f} s"
            except Exception as error:  # the fuzzer's own boundary: whatever comes out is what it looks for
                failures.mkdir(parents=True, exist_ok=True)
                (failures / f"{seed}-{number}").write_bytes(data)
                counts.faults.append(f"{seed}-{number}: {name}: {type(error).__name__}: {error}")
            told()
    return counts


def main() -> None:
    """The command line; its exit code says whether the invariant held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for mutants with a fault")
    options = parser.parse_args()
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("mutants", total=options.mutants)
        counts = fuzz(options.mutants, options.seed, options.failures, lambda: bar.advance(task))
    print(counts)
    if counts.faults:
        sys.exit(f"The files lie in {options.failures}: see what read_radiograph gives for one of them.")


if __name__ == "__main__":
    main()
