# SPDX-License-Identifier: Apache-2.0
"""From the pixel data of a DICOM file to an upright image in [0, 1], bone bright."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NamedTuple

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet
from monai_cnnprimer.dicom.geometry import orientation
from monai_cnnprimer.dicom.grayscale import PixelFormat, display_table, narrow_range, padding, pixel_format
from monai_cnnprimer.dicom.header import NATIVE, pixel_element, transfer_syntax

# The functions of imagecodecs (BSD) by transfer syntax. Each gives the stored values as they were encoded.
DECODERS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",  # baseline, 8 bits
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",  # extended, 12 bits
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",  # lossless
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",  # lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    # HTJ2K by OpenJPEG: htj2k_decode loses the errors of OpenJPH and gives a spoiled image as if it were good.
    "1.2.840.10008.1.2.4.201": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.202": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.203": "jpeg2k_decode",
}
# What imagecodecs 2026.3 raises on mutated streams: its own errors are RuntimeErrors, a codec missing in a build is an
# ImportError.
DECODE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, OverflowError, MemoryError, ImportError)
Cells = NDArray[Any]


class Shown(NamedTuple):
    """An upright image ``(rows, columns)`` in [0, 1], its padding (or None), and quirks that only the pixels show."""

    image: NDArray[np.float32]
    padding: NDArray[np.bool_] | None
    quirks: list[str]


class Codestream(NamedTuple):
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool


def show(file: BinaryIO, dataset: Dataset) -> Shown:
    """Decodes and displays a radiograph that `receipt` accepts.

    Args:
        file: open at the pixel data element, as `read_header` leaves it.
        dataset: its header.

    Raises:
        DicomRefused: when the pixels cannot be decoded or are not what the header says.
    """
    with quiet():
        pixels, syntax, turn = pixel_format(dataset), transfer_syntax(dataset), orientation(dataset)
        data, representation = pixel_bytes(file, dataset)
    if syntax in NATIVE:
        cells = native_cells(data, pixels, big_endian=not dataset.original_encoding[1], words=representation == b"OW")
        noted: list[str] = []
    else:
        cells, noted = decoded_cells(data, syntax, pixels)
    patterns = stored_patterns(cells, pixels)
    with quiet():
        padded = padding(dataset, pixels)
        limits = narrow_range(dataset, pixels, patterns, padded)
        table = display_table(dataset, pixels, limits)
    if junk_bits(cells, pixels):
        noted.append("bits-outside-stored")
    if limits is not None:
        noted.append("range-narrow")
    patterns = turn.apply(patterns)
    if padded is None:
        return Shown(table[patterns], None, noted)
    table[padded] = 0
    mask = padded[patterns]
    return Shown(table[patterns], mask if mask.any() else None, noted)


def stored_patterns(cells: Cells, pixels: PixelFormat) -> Cells:
    """Takes the stored bits out of pixel cells; overlays and other junk beside them are left behind.

    Example:
        >>> stored_patterns(np.array([0xF123], np.uint16), PixelFormat(1, 1, 16, 8, 11, signed=False))
        array([18], dtype=uint16)
    """
    if pixels.stored == cells.dtype.itemsize * 8:
        return cells
    shifted = cells >> pixels.shift if pixels.shift else cells
    return shifted & cells.dtype.type(pixels.mask)


def junk_bits(cells: Cells, pixels: PixelFormat) -> bool:
    """Whether bits outside the stored ones are in use, other than to repeat the sign.

    Example:
        >>> junk_bits(np.array([0x0FFF, 0xFFFF], np.uint16), PixelFormat(1, 2, 16, 12, 11, signed=True))
        False
    """
    beside = ~(pixels.mask << pixels.shift)
    if not int(np.bitwise_or.reduce(cells, axis=None)) & beside:
        return False
    if not pixels.signed or pixels.shift:
        return True
    patterns = stored_patterns(cells, pixels)
    extended = pixels.values().astype(f"i{cells.dtype.itemsize}").view(cells.dtype)[patterns]
    return bool(((cells != patterns) & (cells != extended)).any())


def pixel_bytes(file: BinaryIO, dataset: Dataset) -> tuple[bytes, bytes]:
    """Reads the pixel data: the cells of an uncompressed image, else the frame with its fragments joined; and its VR.

    More than one frame's worth of fragments never comes here: `receipt` refuses images of several frames.
    """
    if transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian:
        return _inflated(file)
    element = pixel_element(file, dataset)
    if element is None:
        raise DicomRefused("cut off: the file ends before its pixels, or has none", "PixelData")
    representation, length = element
    if (length is None) == (transfer_syntax(dataset) in NATIVE):
        raise DicomRefused("compressed pixels in an uncompressed transfer syntax, or the reverse", "TransferSyntaxUID")
    if length is not None:
        return file.read(length), representation
    fragments = []
    while (head := file.read(8))[:4] == b"\xfe\xff\x00\xe0":
        fragments.append(file.read(int.from_bytes(head[4:], "little")))
    return b"".join(fragments[1:]), representation  # the first item is the Basic Offset Table


def _inflated(file: BinaryIO) -> tuple[bytes, bytes]:
    file.seek(0)
    try:
        element = pydicom.dcmread(file, force=True)["PixelData"]
        return bytes(element.value), element.VR.encode()
    except PARSE_ERRORS:
        raise DicomRefused("cut off: the deflated file ends before its pixels, or has none", "PixelData") from None


def native_cells(data: bytes, pixels: PixelFormat, big_endian: bool = False, words: bool = True) -> Cells:
    """The pixel cells of uncompressed data, ``(Rows, Columns)``, unsigned, in the byte order of this machine.

    A few bytes too many are a filling. From a row or a column too many on it is another image, and would be askew.
    """
    size, row = pixels.allocated // 8, pixels.columns * pixels.allocated // 8
    expected = pixels.rows * row
    if len(data) < expected:
        raise DicomRefused("fewer pixels than Rows x Columns", "PixelData")
    if len(data) - expected >= max(min(row, pixels.rows * size), 2):
        raise DicomRefused("more pixels than Rows x Columns", "PixelData")
    if big_endian and size == 1 and words:  # bytes in big-endian words lie in swapped pairs (PS3.5 8.1.1)
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()[: len(data)]
    cells = np.frombuffer(data, f"{'>' if big_endian else '<'}u{size}", count=pixels.rows * pixels.columns)
    return cells.astype(f"=u{size}", copy=False).reshape(pixels.rows, pixels.columns)


def decoded_cells(data: bytes, syntax: str, pixels: PixelFormat) -> tuple[Cells, list[str]]:
    """Decodes one compressed frame to unsigned cells ``(Rows, Columns)``, and notes where it contradicts the header."""
    if syntax != RLELossless and syntax not in DECODERS:
        raise DicomRefused("a transfer syntax that this package does not decode", "TransferSyntaxUID")
    noted = [] if syntax == RLELossless else _contradictions(codestream(data), pixels)
    # Without its end marker libjpeg fills up what is missing, and CharLS searches for a minute in 3 kB.
    if DECODERS.get(syntax) in ("jpeg8_decode", "jpegls_decode") and b"\xff\xd9" not in data[-64:]:
        raise DicomRefused("cut off: the compressed pixels have no end", "PixelData")
    cell = f"<u{pixels.allocated // 8}"
    try:
        if syntax == RLELossless:
            cells = np.frombuffer(imagecodecs.dicomrle_decode(data, cell), cell)
        else:
            cells = getattr(imagecodecs, DECODERS[syntax])(data)
        cells = np.asarray(cells).reshape(pixels.rows, pixels.columns)
    except DECODE_ERRORS:
        raise DicomRefused("compressed pixels that cannot be decoded", "PixelData") from None
    if cells.dtype.kind not in "iu":
        raise DicomRefused("compressed pixels that are no integers", "PixelData")
    if cells.dtype.itemsize * 8 <= pixels.high_bit:  # a codestream of 8 bits for cells of 16
        cells = cells.astype(f"{cells.dtype.kind}{pixels.allocated // 8}")
    return cells.view(f"u{cells.dtype.itemsize}"), noted


def _contradictions(stream: Codestream, pixels: PixelFormat) -> list[str]:
    if (stream.rows, stream.columns) != (pixels.rows, pixels.columns):
        raise DicomRefused("compressed pixels of another size than Rows x Columns", "PixelData")
    if stream.components != 1:
        raise DicomRefused("compressed pixels in colour under a grey header", "PixelData")
    met = {
        "codestream-precision": stream.precision < pixels.stored,
        "codestream-sign": stream.signed and not pixels.signed,
    }
    return [name for name, is_met in met.items() if is_met]


def codestream(data: bytes) -> Codestream:
    """Reads the size from a JPEG, JPEG-LS or JPEG 2000 stream, so that a false one is refused before it is decoded.

    Raises:
        DicomRefused: when there is no such stream.
    """
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ (ISO/IEC 15444-1 A.5.1), perhaps within a JP2 box
    try:
        return _jpeg2000_size(data[start + 4 :]) if start >= 0 else _jpeg_size(data)
    except (struct.error, IndexError):
        raise DicomRefused("compressed pixels without a readable beginning", "PixelData") from None


def _jpeg2000_size(data: bytes) -> Codestream:
    _, _, right, bottom, left, top, *_, components, depth = struct.unpack_from(">HHIIIIIIIIHB", data)
    return Codestream(bottom - top, right - left, components, (depth & 0x7F) + 1, bool(depth & 0x80))


def _jpeg_size(data: bytes) -> Codestream:
    place = 2
    while True:  # segment by segment to the frame header (ITU-T T.81 B.2.2; T.87 C.2.2 for JPEG-LS)
        marker = data[place + 1]
        if data[place] != 0xFF or marker == 0xDA:
            raise IndexError(place)
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, rows, columns, components = struct.unpack_from(">BHHB", data, place + 4)
            return Codestream(rows, columns, components, precision, signed=False)
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
