# SPDX-License-Identifier: Apache-2.0
"""Every encoding of known values gives them back; wrong pixel data are refused. The values are known by formula."""

from __future__ import annotations

from io import BytesIO

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from written_dicom import radiograph, shown, written

from monai_cnnprimer.dicom.decoders import Codestream, codestream
from monai_cnnprimer.dicom.header import DicomRefused, read_header

EXACT = 1e-6


def scene(bits: int) -> np.ndarray:
    """48 x 70 values over all of `bits`: two ramps and a wave, smooth enough for a lossy encoder."""
    rows, columns = np.mgrid[:48, :70]
    smooth = 0.4 + 0.3 * rows / 47 + 0.2 * columns / 69 + 0.1 * np.sin(rows / 5) * np.cos(columns / 7)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.round(smooth * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_pixels_are_read_in_every_syntax(syntax: str, bits: int) -> None:
    dataset = radiograph(scene(bits), BitsStored=bits)
    if syntax == ExplicitVRBigEndian and bits == 8:  # bytes in big-endian words lie in swapped pairs
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()

    result, receipt = shown(written(dataset, syntax))

    np.testing.assert_allclose(result.image, scene(bits) / (2**bits - 1), rtol=0, atol=EXACT)
    assert receipt["transfer_syntax"] == syntax.keyword


def test_cells_of_32_bits_hold_up_to_16() -> None:
    result, receipt = shown(written(radiograph(scene(16).astype("<u4"), BitsStored=16)))

    np.testing.assert_allclose(result.image, scene(16) / 65535, rtol=0, atol=EXACT)
    assert receipt["quirks"] == []


def test_an_odd_number_of_bytes_is_padded() -> None:
    values = scene(8)[:47, :69]

    result, _ = shown(written(radiograph(values)))

    np.testing.assert_allclose(result.image, values / 255, rtol=0, atol=EXACT)


# name: (transfer syntax, bits, encoder, tolerance in values of the file)
ENCODED = {
    "JPEG baseline": (JPEGBaseline8Bit, 8, lambda v: imagecodecs.jpeg8_encode(v, level=98), 3),
    "JPEG extended, 12 bit": (
        JPEGExtended12Bit,
        12,
        lambda v: imagecodecs.jpeg8_encode(v, level=98, bitspersample=12),
        24,
    ),
    **{
        f"JPEG lossless, {bits} bit": (
            syntax,
            bits,
            lambda v, bits=bits: imagecodecs.jpeg8_encode(v, lossless=True, bitspersample=bits),
            0,
        )
        for bits, syntax in ((8, JPEGLosslessSV1), (10, JPEGLossless), (14, JPEGLosslessSV1), (16, JPEGLossless))
    },
    **{f"JPEG-LS, {bits} bit": (JPEGLSLossless, bits, imagecodecs.jpegls_encode, 0) for bits in (8, 12, 16)},
    "JPEG-LS near-lossless": (JPEGLSNearLossless, 12, lambda v: imagecodecs.jpegls_encode(v, level=3), 3),
    **{
        f"JPEG 2000, {bits} bit": (
            JPEG2000Lossless,
            bits,
            lambda v, bits=bits: imagecodecs.jpeg2k_encode(v, reversible=True, codecformat="j2k", bitspersample=bits),
            0,
        )
        for bits in (8, 10, 16)
    },
    "JPEG 2000 in a JP2 box": (
        JPEG2000Lossless,
        12,
        lambda v: imagecodecs.jpeg2k_encode(v, reversible=True, codecformat="jp2", bitspersample=12),
        0,
    ),
    "JPEG 2000, lossy": (
        JPEG2000,
        12,
        lambda v: imagecodecs.jpeg2k_encode(v, level=80, reversible=False, codecformat="j2k", bitspersample=12),
        8,
    ),
    **{
        f"HTJ2K, {bits} bit": (syntax, bits, lambda v: imagecodecs.htj2k_encode(v, reversible=True), 0)
        for bits, syntax in ((8, HTJ2KLossless), (16, HTJ2KLosslessRPCL), (12, HTJ2K))
    },
    "HTJ2K, lossy": (HTJ2K, 12, lambda v: imagecodecs.htj2k_encode(v, reversible=False), 8),
    "RLE, 8 bit": (RLELossless, 8, None, 0),
    "RLE, 12 bit": (RLELossless, 12, None, 0),
}


def encoded(name: str) -> bytes:
    syntax, bits, encode, _ = ENCODED[name]
    values = scene(bits)
    if encode is not None:
        return written(radiograph(values, BitsStored=bits), syntax, encode(values))
    dataset = radiograph(values, BitsStored=bits)
    stream = RLELosslessEncoder.encode(
        values.tobytes(), rows=48, columns=70, samples_per_pixel=1, number_of_frames=1, pixel_representation=0,
        bits_allocated=values.itemsize * 8, bits_stored=bits, photometric_interpretation="MONOCHROME2",
        encoding_plugin="pydicom",
    )  # fmt: skip
    return written(dataset, syntax, stream)


@pytest.mark.parametrize("name", ENCODED)
def test_compressed_pixels_are_what_was_encoded(name: str) -> None:
    syntax, bits, _, tolerance = ENCODED[name]

    result, receipt = shown(encoded(name))

    decoded = result.image * (2**bits - 1)
    np.testing.assert_allclose(decoded, scene(bits), rtol=0, atol=tolerance + 0.01)
    assert receipt["transfer_syntax"] == syntax.keyword
    assert [quirk for quirk in receipt["quirks"] if quirk != "codestream-precision"] == []


@pytest.mark.parametrize("flag", ["signed", "unsigned"])
def test_signed_jpeg_2000_is_read_whatever_its_own_flag_says(flag: str) -> None:
    values = scene(12).astype(np.int16) - 2048
    own = values if flag == "signed" else values.view(np.uint16) & np.uint16(0xFFF)
    bits = None if flag == "signed" else 12
    stream = imagecodecs.jpeg2k_encode(own, reversible=True, codecformat="j2k", bitspersample=bits)
    header = radiograph(values.view(np.uint16), BitsStored=12, PixelRepresentation=1)

    result, _ = shown(written(header, JPEG2000Lossless, stream))

    np.testing.assert_allclose(result.image, scene(12) / 4095, rtol=0, atol=EXACT)


def test_a_frame_in_several_fragments_is_joined() -> None:
    stream = imagecodecs.jpegls_encode(scene(12))
    dataset = radiograph(scene(12), BitsStored=12)
    file = BytesIO(written(dataset, JPEGLSLossless, stream))
    whole = pydicom.dcmread(file)
    whole.PixelData = pydicom.encaps.encapsulate([stream], fragments_per_frame=3)
    whole["PixelData"].is_undefined_length = True
    file = BytesIO()
    pydicom.dcmwrite(file, whole)

    result, _ = shown(file.getvalue())

    np.testing.assert_allclose(result.image, scene(12) / 4095, rtol=0, atol=EXACT)


def test_eight_bits_under_a_header_of_twelve_are_recorded() -> None:
    stream = imagecodecs.jpeg8_encode(scene(8), lossless=True)
    file = written(radiograph(scene(12), BitsStored=12, WindowCenter=128, WindowWidth=256), JPEGLossless, stream)

    result, receipt = shown(file)

    np.testing.assert_allclose(result.image, scene(8) / 255, rtol=0, atol=EXACT)
    assert receipt["quirks"] == ["codestream-precision"]


CORNER = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)


@pytest.mark.parametrize(
    ("directions", "label", "expected"),
    [
        (["L", "F"], "upright", CORNER),
        (["R", "F"], "upright (from R/F)", CORNER[:, ::-1]),
        (["L", "H"], "upright (from L/H)", CORNER[::-1]),
        (["R", "H"], "upright (from R/H)", CORNER[::-1, ::-1]),
        (["F", "L"], "upright (from F/L)", CORNER.T),
        (["F", "R"], "upright (from F/R)", CORNER.T[:, ::-1]),
        (["H", "L"], "upright (from H/L)", CORNER.T[::-1]),
        (["H", "R"], "upright (from H/R)", CORNER.T[::-1, ::-1]),
        (["LF", "FR"], "upright", CORNER),
        (["P", "F"], "upright", CORNER),
        (["A", "H"], "upright (from A/H)", CORNER[::-1]),
        (["L", "P"], "unknown", CORNER),
        (["L"], "unknown", CORNER),
        (["LE", "DI"], "unknown", CORNER),
        (None, "unknown", CORNER),
    ],
)
def test_the_image_is_put_upright(directions: list[str] | None, label: str, expected: np.ndarray) -> None:
    attributes = {"PatientOrientation": directions, "PixelPaddingValue": 2, "PixelSpacing": [0.1, 0.2]}
    attributes |= {"WindowCenter": 128, "WindowWidth": 256}

    result, receipt = shown(written(radiograph(CORNER, **attributes)))

    np.testing.assert_allclose(result.image, np.where(expected == 2, 0, expected / 255), rtol=0, atol=EXACT)
    np.testing.assert_array_equal(result.padding, expected == 2)
    assert receipt["orientation"] == label
    assert receipt["pixel_spacing_mm"] == ((0.1, 0.2) if expected.shape == CORNER.shape else (0.2, 0.1))


def test_a_frontal_view_that_runs_to_the_front_is_flagged() -> None:
    _, receipt = shown(written(radiograph(scene(8), PatientOrientation=["A", "F"], ViewPosition="PA")))

    assert (receipt["orientation"], receipt["view"]) == ("unknown", "PA")
    assert receipt["quirks"] == ["orientation-not-understood"]


@pytest.mark.parametrize("name", ENCODED)
def test_mutilated_pixels_are_refused_or_shown_but_never_fail_otherwise(name: str) -> None:
    file = encoded(name)
    start = file.index(b"\xe0\x7f\x10\x00") + 12 + 16
    generator = np.random.default_rng(3)
    for _ in range(12):
        broken = bytearray(file)
        for place in generator.integers(start, len(file) - 8, 4):
            broken[place] = generator.integers(256)
        try:
            result, _ = shown(bytes(broken))
        except DicomRefused as refusal:
            assert refusal.attribute == "PixelData"  # noqa: PT017 - either outcome is right
        else:
            assert result.image.shape == (48, 70)


@pytest.mark.parametrize(
    "name", ["JPEG baseline", "JPEG-LS, 12 bit", "JPEG 2000, 16 bit", "HTJ2K, 8 bit", "RLE, 12 bit"]
)
def test_a_stream_of_nonsense_is_refused(name: str) -> None:
    file = written(radiograph(scene(12), BitsStored=12), ENCODED[name][0], b"nonsense" * 40)

    with pytest.raises(DicomRefused, match=r"compressed pixels .* \(PixelData\)"):
        shown(file)


@pytest.mark.parametrize("name", [name for name in ENCODED if not name.startswith("RLE")])
def test_a_stream_that_was_cut_off_is_refused(name: str) -> None:
    syntax, bits, encode, _ = ENCODED[name]
    stream = encode(scene(bits))

    with pytest.raises(DicomRefused, match=r"\(PixelData\)"):
        shown(written(radiograph(scene(bits), BitsStored=bits), syntax, stream[: len(stream) * 9 // 10]))


def test_a_stream_of_another_size_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(imagecodecs, "jpegls_decode")
    stream = imagecodecs.jpegls_encode(scene(12)[:-1])

    with pytest.raises(DicomRefused, match="another size than Rows x Columns"):
        shown(written(radiograph(scene(12), BitsStored=12), JPEGLSLossless, stream))


def test_a_colour_stream_under_a_grey_header_is_refused() -> None:
    stream = imagecodecs.jpeg8_encode(np.stack([scene(8)] * 3, axis=-1))

    with pytest.raises(DicomRefused, match="in colour under a grey header"):
        shown(written(radiograph(scene(8)), JPEGBaseline8Bit, stream))


@pytest.mark.parametrize(
    ("stream", "stated"),
    [
        (imagecodecs.jpeg8_encode(scene(8)), Codestream(48, 70, 1, 8, signed=False)),
        (imagecodecs.jpegls_encode(scene(16)), Codestream(48, 70, 1, 16, signed=False)),
        (imagecodecs.jpeg2k_encode(scene(16).astype(np.int16), codecformat="jp2"), Codestream(48, 70, 1, 16, True)),
        (imagecodecs.htj2k_encode(scene(8)), Codestream(48, 70, 1, 8, signed=False)),
    ],
)
def test_the_size_is_read_from_the_stream(stream: bytes, stated: Codestream) -> None:
    assert codestream(stream) == stated


def test_an_unsupported_transfer_syntax_is_refused() -> None:
    with pytest.raises(DicomRefused, match=r"does not decode \(TransferSyntaxUID\)"):
        shown(written(radiograph(scene(8)), MPEG2MPML, b"\0\0\1\xb3"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Rows": 49}, "fewer pixels than Rows x Columns"),
        ({"Rows": 47}, "more pixels than Rows x Columns"),
        ({"Columns": 69}, "more pixels than Rows x Columns"),
    ],
)
def test_a_size_that_does_not_fit_the_pixels_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(DicomRefused, match=message):
        shown(written(radiograph(scene(12), BitsStored=12, **change)))


def test_a_deflated_file_that_is_cut_off_is_refused() -> None:
    file = written(radiograph(scene(12), BitsStored=12), DeflatedExplicitVRLittleEndian)

    with pytest.raises(DicomRefused, match="damaged|cut off"):
        shown(file[: len(file) // 2])


def test_compressed_pixels_in_an_uncompressed_syntax_are_refused() -> None:
    compressed = written(radiograph(scene(12), BitsStored=12), JPEGLSLossless, imagecodecs.jpegls_encode(scene(12)))
    uid = b"1.2.840.10008.1.2.4.80"
    file = compressed.replace(uid, b"1.2.840.10008.1.2.1\0\0\0")

    with pytest.raises(DicomRefused, match="compressed pixels in an uncompressed transfer syntax"):
        shown(file)


def test_the_header_can_be_read_without_the_pixels() -> None:
    file = BytesIO(encoded("JPEG 2000, 16 bit"))

    dataset = read_header(file)

    assert "PixelData" not in dataset
    assert file.read(4) == b"\xe0\x7f\x10\x00"
