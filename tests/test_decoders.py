# SPDX-License-Identifier: Apache-2.0
"""Each decoder gives what another library gives, bit for bit; spoilt streams are told; JPEG 2000 can be had smaller."""

from __future__ import annotations

import sys
from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from written_dicom import radiograph, written

from monai_cnnprimer.dicom import decoders
from monai_cnnprimer.dicom.decoders import DECODERS, PLUGIN, decoded_cells, halvings_to, is_available, reduced_size
from monai_cnnprimer.dicom.grayscale import PixelFormat
from monai_cnnprimer.dicom.header import DicomRefused, read_header, receipt
from monai_cnnprimer.dicom.pixels import show

SIDES = (96, 141)


def scene(bits: int, *, signed: bool = False) -> np.ndarray:
    """Ramps, a wave and a sharp edge over all values of `bits`."""
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]]
    smooth = rows / 95 + columns / 140 + 0.3 * np.sin(rows / 9) * np.cos(columns / 7) + 0.3 * (rows > columns)
    values = np.round((smooth - smooth.min()) / np.ptp(smooth) * (2**bits - 1)).astype(np.int64)
    kind = "i" if signed else "u"
    return (values - (1 << bits - 1) * signed).astype(f"{kind}{1 if bits <= 8 else 2}")


def pixel_format(bits: int, *, signed: bool = False) -> PixelFormat:
    return PixelFormat(*SIDES, 8 if bits <= 8 else 16, bits, bits - 1, signed)


def rle(values: np.ndarray, bits: int) -> bytes:
    return RLELosslessEncoder.encode(
        values.tobytes(), rows=SIDES[0], columns=SIDES[1], samples_per_pixel=1, number_of_frames=1,
        pixel_representation=int(values.dtype.kind == "i"), bits_allocated=values.itemsize * 8, bits_stored=bits,
        photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
    )  # fmt: skip


# name: transfer syntax, encoder of values and bits, pydicom's usual plugin (none that is permissive for lossless JPEG)
ENCODERS = {
    "RLE": (RLELossless, rle, "pydicom"),
    "JPEG lossless": (
        JPEGLossless,
        lambda v, bits: imagecodecs.jpeg8_encode(v.view(f"u{v.itemsize}"), lossless=True, bitspersample=bits),
        "",
    ),
    "JPEG-LS": (JPEGLSLossless, lambda v, bits: imagecodecs.jpegls_encode(v.view(f"u{v.itemsize}")), "pyjpegls"),
    "JPEG-LS, near": (
        JPEGLSNearLossless,
        lambda v, bits: imagecodecs.jpegls_encode(v.view(f"u{v.itemsize}"), level=2),
        "pyjpegls",
    ),
    "JPEG 2000": (
        JPEG2000Lossless,
        lambda v, bits: imagecodecs.jpeg2k_encode(v, reversible=True, codecformat="j2k", bitspersample=bits),
        "pylibjpeg",
    ),
    "HTJ2K": (HTJ2KLossless, lambda v, bits: imagecodecs.htj2k_encode(v, reversible=True), "pylibjpeg"),
    "HTJ2K, lossy": (HTJ2K, lambda v, bits: imagecodecs.htj2k_encode(v, reversible=False), "pylibjpeg"),
}
CASES = [
    (name, bits, signed, fragments)
    for name in ENCODERS
    for bits in (8, 10, 12, 16)
    for signed in (False, True)
    for fragments in (1, 3)
    # A signed 8-bit image has no use; lossless JPEG and JPEG-LS have no sign, and their cells no room for one.
    if not signed or (bits > 8 and (name in ("RLE", "JPEG 2000", "HTJ2K") or bits == 16))
    if fragments == 1 or name != "RLE"  # whose frame is one fragment (PS3.5 A.4.2)
]


def file_of(name: str, bits: int, signed: bool, fragments: int) -> pydicom.FileDataset:
    syntax, encode, _ = ENCODERS[name]
    values = scene(bits, signed=signed)
    header = radiograph(values.view(f"u{values.itemsize}"), BitsStored=bits, PixelRepresentation=int(signed))
    dataset = pydicom.dcmread(BytesIO(written(header, syntax, encode(values, bits))))
    if fragments > 1:
        dataset.PixelData = encapsulate([encode(values, bits)], fragments_per_frame=fragments)
    return dataset


@pytest.mark.parametrize(("name", "bits", "signed", "fragments"), CASES)
def test_pydicom_reads_the_same_by_this_plugin_as_by_its_own(
    name: str, bits: int, signed: bool, fragments: int
) -> None:
    dataset = file_of(name, bits, signed, fragments)
    dataset.pixel_array_options(decoding_plugin=PLUGIN)
    ours, other = dataset.pixel_array, ENCODERS[name][2]
    if other:
        dataset.pixel_array_options(decoding_plugin=other)
        np.testing.assert_array_equal(dataset.pixel_array, ours)
    if name not in ("JPEG-LS, near", "HTJ2K, lossy"):
        np.testing.assert_array_equal(ours, scene(bits, signed=signed))


def test_the_plugin_comes_after_those_that_are_there_and_leaves_colour_alone() -> None:
    for uid in (RLELossless, *DECODERS):
        assert list(get_decoder(uid)._available)[-1] == PLUGIN  # pydicom tries them in this order
        assert is_available(uid)
    assert not is_available("1.2.840.10008.1.2")
    colour = radiograph(np.zeros((8, 8), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    colour.PlanarConfiguration = 0
    stream = imagecodecs.jpegls_encode(np.zeros((8, 8, 3), np.uint8))
    dataset = pydicom.dcmread(BytesIO(written(colour, JPEGLSLossless, stream)))
    dataset.pixel_array_options(decoding_plugin=PLUGIN)
    with pytest.raises(RuntimeError, match="only grey frames"):
        _ = dataset.pixel_array


# --- HTJ2K: errors that are lost on their way


def after_the_headers(stream: bytes) -> int:
    return stream.index(b"\xff\x93") + 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95, 0.999])
def test_a_high_throughput_stream_that_is_cut_off_is_refused(share: float) -> None:
    stream = imagecodecs.htj2k_encode(scene(12), reversible=True)
    start = after_the_headers(stream)
    cut = stream[: start + int((len(stream) - start) * share)]
    with pytest.raises(DicomRefused, match="cannot be decoded"):
        decoded_cells(cut, HTJ2KLossless, pixel_format(12))


def test_an_error_that_is_lost_on_its_way_is_found_out(capfd: pytest.CaptureFixture[str]) -> None:
    stream = imagecodecs.htj2k_encode(scene(12), reversible=True)
    generator, lost, refused, hooks = np.random.default_rng(1), 0, 0, (sys.unraisablehook, sys.excepthook)
    for _ in range(40):
        broken = bytearray(stream)
        broken[int(generator.integers(after_the_headers(stream), len(stream) - 2))] ^= 0xFF
        with decoders._lost_errors() as errors:
            imagecodecs.htj2k_decode(bytes(broken))
        lost += bool(errors)
        try:
            decoded_cells(bytes(broken), HTJ2KLossless, pixel_format(12))
        except DicomRefused:
            refused += bool(errors)
        else:
            assert not errors
    assert 0 < lost == refused
    assert hooks == (sys.unraisablehook, sys.excepthook)
    assert capfd.readouterr() == ("", "")


# --- JPEG 2000 at less than its size

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def shown(name: str, reduce_to: int | None, **attributes: object) -> tuple[np.ndarray, list[str], int]:
    syntax, encode, _ = ENCODERS[name]
    file = BytesIO(written(radiograph(scene(12), BitsStored=12, **WINDOW | attributes), syntax, encode(scene(12), 12)))
    dataset = read_header(file)
    receipt(dataset)
    result = show(file, dataset, reduce_to)
    return result.image, result.quirks, result.reduction


@pytest.mark.parametrize("name", ["JPEG 2000", "HTJ2K"])
@pytest.mark.parametrize(("reduce_to", "reduction"), [(96, 1), (49, 1), (48, 2), (24, 2), (12, 8)])
def test_an_image_is_decoded_as_small_as_it_may_be(name: str, reduce_to: int, reduction: int) -> None:
    image, quirks, found = shown(name, reduce_to)
    whole, _, _ = shown(name, None)
    assert found == reduction
    assert image.shape == reduced_size(pixel_format(12), reduction.bit_length() - 1)
    assert [quirk for quirk in quirks if "reduced" in quirk] == ([f"reduced-by-{reduction}"] if reduction > 1 else [])
    # The low-pass of the wavelet is centred on every 2nd, 4th ... pixel.
    assert np.abs(image - whole[::reduction, ::reduction]).mean() < 0.03


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("JPEG 2000", {"PixelPaddingValue": 0}),
        ("JPEG 2000", {"PixelRepresentation": 1}),
        ("JPEG-LS", {}),
        ("RLE", {}),
    ],
)
def test_what_would_suffer_is_decoded_whole(name: str, attributes: dict[str, int]) -> None:
    image, quirks, reduction = shown(name, 24, **attributes)
    assert (image.shape, reduction) == (SIDES, 1)
    assert not [quirk for quirk in quirks if "reduced" in quirk]


def test_a_stream_that_is_not_whole_is_not_reduced() -> None:
    stream = ENCODERS["JPEG 2000"][1](scene(12), 12)
    assert halvings_to(stream, JPEG2000Lossless, pixel_format(12), 12) == 3
    assert halvings_to(stream[: len(stream) // 2], JPEG2000Lossless, pixel_format(12), 12) == 0
