# SPDX-License-Identifier: Apache-2.0
"""Compressed frames to pixel cells by imagecodecs (BSD), whole or, from JPEG 2000, at a half or less of their size.

Once it is imported, pydicom too can decode grey frames so: ``pixel_array_options(decoding_plugin="imagecodecs")``.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import RLELossless

from monai_cnnprimer.dicom.attributes import DicomRefused, quiet
from monai_cnnprimer.dicom.grayscale import PixelFormat

PLUGIN = "imagecodecs"
# The functions of imagecodecs by transfer syntax. Each gives the stored values as they were encoded.
DECODERS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",  # baseline, 8 bits
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",  # extended, 12 bits
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",  # lossless
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",  # lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.201": "htj2k_decode",
    "1.2.840.10008.1.2.4.202": "htj2k_decode",
    "1.2.840.10008.1.2.4.203": "htj2k_decode",
}
DECODER_DEPENDENCIES = dict.fromkeys((RLELossless, *DECODERS), ("imagecodecs>=2025.3.30",))
"""What pydicom names to a person when the plugin is missing."""
# What imagecodecs 2026.3 raises on mutated streams: its own errors are RuntimeErrors, a codec missing in a build is an
# ImportError. Pillow raises OSErrors and SyntaxErrors.
DECODE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
    ImportError,
    OSError,
    SyntaxError,
)
SOT, EOC, COD = b"\xff\x90", b"\xff\xd9", b"\xff\x52"
Cells = NDArray[Any]

_lock = threading.Lock()


class Codestream(NamedTuple):
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool


def decoded_cells(data: bytes, syntax: str, pixels: PixelFormat, halvings: int = 0) -> tuple[Cells, list[str]]:
    """Decodes one compressed frame to unsigned cells ``(Rows, Columns)``, and notes where it contradicts the header.

    Args:
        data: the frame, its fragments joined.
        syntax: UID of the transfer syntax.
        pixels: the format that the header states.
        halvings: how often to halve the size, as `halvings_to` gives it.

    Raises:
        DicomRefused: when it cannot be decoded or is not what the header says.
    """
    if syntax != RLELossless and syntax not in DECODERS:
        raise DicomRefused("a transfer syntax that this package does not decode", "TransferSyntaxUID")
    noted = [] if syntax == RLELossless else _contradictions(codestream(data), pixels)
    # Without its end marker libjpeg fills up what is missing, and CharLS searches for a minute in 3 kB.
    if DECODERS.get(syntax) in ("jpeg8_decode", "jpegls_decode") and EOC not in data[-64:]:
        raise DicomRefused("cut off: the compressed pixels have no end", "PixelData")
    try:
        cells = np.asarray(_decoded(data, syntax, pixels, halvings)).reshape(reduced_size(pixels, halvings))
    except DECODE_ERRORS:
        raise DicomRefused("compressed pixels that cannot be decoded", "PixelData") from None
    if cells.dtype.kind not in "iu":
        raise DicomRefused("compressed pixels that are no integers", "PixelData")
    if cells.dtype.itemsize * 8 <= pixels.high_bit:  # a codestream of 8 bits for cells of 16
        cells = cells.astype(f"{cells.dtype.kind}{pixels.allocated // 8}")
    return cells.view(f"u{cells.dtype.itemsize}"), noted


def _decoded(data: bytes, syntax: str, pixels: PixelFormat, halvings: int) -> Cells:
    if syntax == RLELossless:
        cell = f"<u{pixels.allocated // 8}"
        return np.frombuffer(imagecodecs.dicomrle_decode(data, cell), cell)
    if halvings:
        return _reduced(data, halvings)
    if DECODERS[syntax] == "htj2k_decode":
        return _high_throughput(data)
    return getattr(imagecodecs, DECODERS[syntax])(data)


def _high_throughput(data: bytes) -> Cells:
    """HTJ2K by OpenJPH, which is the fastest; by OpenJPEG what is lossy, so that nothing is rounded in another way.

    `htj2k_decode` of imagecodecs 2026.3 gives a spoilt image as if it were good: OpenJPH fills up a stream that is cut
    off, and the exceptions that it raises on a damaged one are lost on their way (Python calls them unraisable). So
    what is not whole, or has met one, is left to OpenJPEG too.
    """
    stream = _jpeg2000(data)
    if stream.is_whole and stream.is_reversible:
        try:
            with _lost_errors() as lost:
                cells = imagecodecs.htj2k_decode(data[stream.start :] if stream.start else data)
            if not lost:
                return cells
        except DECODE_ERRORS:
            pass  # blocks of the other kind beside those of high throughput, for one
    return imagecodecs.jpeg2k_decode(data)


@contextmanager
def _lost_errors() -> Iterator[list[Any]]:
    """Collects the exceptions that Python cannot raise; one thread at a time, since the hooks are the process's."""
    lost: list[Any] = []
    with _lock:
        hooks = sys.unraisablehook, sys.excepthook
        sys.unraisablehook = lost.append
        sys.excepthook = lambda *_: None  # Cython prints each one before it gives it to the hook
        try:
            yield lost
        finally:
            sys.unraisablehook, sys.excepthook = hooks


def reduced_size(pixels: PixelFormat, halvings: int) -> tuple[int, int]:
    """Rows and columns after a number of halvings; a last odd row or column is kept (ISO/IEC 15444-1 B.5).

    Example:
        >>> reduced_size(PixelFormat(2500, 2049, 16, 12, 11, signed=False), 2)
        (625, 513)
    """
    return -(-pixels.rows >> halvings), -(-pixels.columns >> halvings)


def halvings_to(data: bytes, syntax: str, pixels: PixelFormat, shortest_side: int) -> int:
    """How often a JPEG 2000 frame may be halved so that its shorter side keeps `shortest_side` pixels at least.

    0 for other syntaxes, for signed values (the mean of two wrapped numbers is no mean), and for a stream that is not
    whole: OpenJPEG, asked for less, does not look whether the rest is there. One or two fewer than there could be for
    some odd sizes, which Pillow 13 rounds in another way than the standard does.
    """
    if not DECODERS.get(syntax, "").endswith("2k_decode"):
        return 0
    stated, stream = codestream(data), _jpeg2000(data)
    if stated.signed or pixels.signed or stated.precision > 16 or not stream.is_whole:
        return 0
    sides = pixels.rows, pixels.columns
    possible = [
        n for n in range(stream.levels + 1) if all(side + (1 << n >> 1) >> n == -(-side >> n) for side in sides)
    ]
    return max(n for n in possible if n == 0 or min(reduced_size(pixels, n)) >= shortest_side)


def _reduced(data: bytes, halvings: int) -> Cells:
    """The low-pass image of a wavelet decomposition, by Pillow's OpenJPEG: imagecodecs has no such option."""
    from PIL import Image

    with quiet():  # Pillow warns of images over 89 million pixels
        image = Image.open(BytesIO(data), formats=["JPEG2000"])
        image.reduce = halvings  # type: ignore[assignment,method-assign] # Pillow's own way to ask for it
        cells = np.asarray(image)
    precision = codestream(data).precision  # Pillow moves the values to the upper end of the cell
    return cells >> (cells.dtype.itemsize * 8 - precision)


def _start(data: bytes) -> int:
    return data.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ (ISO/IEC 15444-1 A.5.1), perhaps within a JP2 box


class _Jpeg2000(NamedTuple):
    """What else a JPEG 2000 codestream says: where it begins, its levels, and whether its tile-parts are all there."""

    start: int
    levels: int = 0
    is_reversible: bool = False
    is_whole: bool = False


def _jpeg2000(data: bytes) -> _Jpeg2000:
    """Walks along the markers of a stream (ISO/IEC 15444-1 A.4.2 for tile-parts, A.6.1 for COD)."""
    start = _start(data)
    place, levels, is_reversible = start + 2, 0, False
    try:
        while start >= 0 and data[place : place + 2] != SOT:
            if data[place : place + 2] == COD:
                levels, is_reversible = data[place + 9], data[place + 13] == 1
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
        while data[place : place + 2] == SOT:
            (length,) = struct.unpack_from(">I", data, place + 6)  # 0: the last one, up to the end of the stream
            place = place + length if length else len(data.rstrip(b"\0")) - 2
    except (struct.error, IndexError):
        return _Jpeg2000(start)
    return _Jpeg2000(start, levels, is_reversible, is_whole=data[place : place + 2] == EOC)


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
    start = _start(data)
    try:
        return _jpeg2000_size(data[start + 4 : start + 64]) if start >= 0 else _jpeg_size(data)
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


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax can be decoded; pydicom asks this of a plugin's module."""
    function = DECODERS.get(uid, "dicomrle_decode" if uid == RLELossless else "")
    return bool(function) and getattr(imagecodecs, function.removesuffix("_decode").upper()).available


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decodes one frame for pydicom, which then tries its other plugins where this one raises.

    Raises:
        NotImplementedError: a colour frame.
        DicomRefused: a frame that cannot be decoded or is not what the header says.
    """
    if runner.samples_per_pixel != 1:
        raise NotImplementedError("only grey frames")
    stored = runner.bits_stored
    signed = runner.pixel_representation == 1
    pixels = PixelFormat(runner.rows, runner.columns, runner.bits_allocated, stored, stored - 1, signed)
    cells, _ = decoded_cells(src, runner.transfer_syntax, pixels)
    runner.set_option("bits_allocated", cells.dtype.itemsize * 8)
    return cells.tobytes()


def _register() -> None:
    """Adds the plugin behind those that pydicom has, so that nothing that worked in this process works differently."""
    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))


_register()
