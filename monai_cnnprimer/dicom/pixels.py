# SPDX-License-Identifier: Apache-2.0
"""From the pixel data of a DICOM file to an upright image in [0, 1], bone bright."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet
from monai_cnnprimer.dicom.decoders import DECODERS, Cells, decoded_cells, halvings_to
from monai_cnnprimer.dicom.geometry import orientation
from monai_cnnprimer.dicom.grayscale import PixelFormat, display_table, narrow_range, padding, pixel_format
from monai_cnnprimer.dicom.header import NATIVE, pixel_element, transfer_syntax
from monai_cnnprimer.dicom.quirks import values_wrap

__all__ = ["DECODERS", "Shown", "show"]


class Shown(NamedTuple):
    """An upright image in [0, 1], its padding, and what only the pixels show.

    Attributes:
        image: ``(rows, columns)``, float32.
        padding: ``(rows, columns)``, or None where there is none.
        quirks: departures that the header does not tell.
        reduction: pixels of the header for a pixel of the image, in each direction.
    """

    image: NDArray[np.float32]
    padding: NDArray[np.bool_] | None
    quirks: list[str]
    reduction: int = 1


def show(file: BinaryIO, dataset: Dataset, reduce_to: int | None = None) -> Shown:
    """Decodes and displays a radiograph that `receipt` accepts.

    Args:
        file: open at the pixel data element, as `read_header` leaves it.
        dataset: its header.
        reduce_to: how many pixels the shorter side needs at least. A JPEG 2000 image is then decoded at the smallest
            power of two below its size that has them, in a fourth of the time for each; images with padding, whose
            edge would be blurred, and others are shown whole.

    Raises:
        DicomRefused: when the pixels cannot be decoded or are not what the header says.
    """
    with quiet():
        pixels, syntax, turn = pixel_format(dataset), transfer_syntax(dataset), orientation(dataset)
        padded = padding(dataset, pixels)
        data, representation = pixel_bytes(file, dataset)
    halvings, noted = 0, list[str]()
    if syntax in NATIVE:
        cells = native_cells(data, pixels, big_endian=not dataset.original_encoding[1], words=representation == b"OW")
    else:
        if reduce_to is not None and padded is None:
            halvings = halvings_to(data, syntax, pixels, reduce_to)
        cells, noted = decoded_cells(data, syntax, pixels, halvings)
    patterns, has_junk = stored_patterns(cells, pixels)
    with quiet():
        limits = narrow_range(dataset, pixels, patterns, padded)
        table = display_table(dataset, pixels, limits)
    if has_junk:
        if values_wrap(cells, pixels):
            raise DicomRefused("values that go on above BitsStored, which is false", "PixelData")
        noted.append("bits-outside-stored")
    if limits is not None:
        noted.append("range-narrow")
    if halvings:
        noted.append(f"reduced-by-{1 << halvings}")
    patterns = turn.apply(patterns)
    if padded is None:
        return Shown(table.take(patterns), None, noted, 1 << halvings)
    table[padded] = 0
    mask = padded.take(patterns)
    return Shown(table.take(patterns), mask if mask.any() else None, noted)


def stored_patterns(cells: Cells, pixels: PixelFormat) -> tuple[Cells, bool]:
    """Takes the stored bits out of pixel cells, and tells whether others were in use than to repeat the sign.

    Overlays and other junk beside the stored bits are left behind.

    Example:
        >>> stored_patterns(np.array([0xF123], np.uint16), PixelFormat(1, 1, 16, 8, 11, signed=False))
        (array([18], dtype=uint16), True)
        >>> stored_patterns(np.array([0x0FFF, 0xFFFF], np.uint16), PixelFormat(1, 2, 16, 12, 11, signed=True))
        (array([4095, 4095], dtype=uint16), False)
    """
    if pixels.stored == cells.dtype.itemsize * 8:
        return cells, False
    shifted = cells >> pixels.shift if pixels.shift else cells
    if not int(np.bitwise_or.reduce(cells, axis=None)) & ~(pixels.mask << pixels.shift):
        return shifted, False
    patterns = shifted & cells.dtype.type(pixels.mask)
    if not pixels.signed or pixels.shift:
        return patterns, True
    extended = pixels.values().astype(f"i{cells.dtype.itemsize}").view(cells.dtype).take(patterns)
    return patterns, bool(((cells != patterns) & (cells != extended)).any())


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
