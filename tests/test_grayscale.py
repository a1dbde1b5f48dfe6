# SPDX-License-Identifier: Apache-2.0
"""From stored bits to display values. Every expectation is a formula of the standard, written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from written_dicom import radiograph, shown, table, written

from monai_cnnprimer.dicom.header import DicomRefused

TOLERANCE = 1e-6
RAMP = np.arange(4096).reshape(64, 64)  # every value of 12 bits
SIGNED_RAMP = RAMP - 2048


def linear(x: float, center: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1, as the pseudo-code stands there, for an output from 0 to 1."""
    if x <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if x > center - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (center - 0.5)) / (width - 1) + 0.5


def linear_exact(x: float, center: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.2."""
    if x <= center - width / 2:
        return 0.0
    if x > center + width / 2:
        return 1.0
    return (x - center) / width + 0.5


def sigmoid(x: float, center: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + math.exp(-4 * (x - center) / width))


def of_each(values: np.ndarray, function: Callable[[float], float]) -> np.ndarray:
    return np.array([function(float(value)) for value in values.ravel()]).reshape(values.shape)


def cells_of(values: np.ndarray, dtype: str = "<u2") -> np.ndarray:
    """Values as they stand in 16-bit cells, negative ones in two's complement."""
    return (values & (0xFF if dtype == "u1" else 0xFFFF)).astype(dtype)


def window(center: Any, width: Any, function: str | None = None) -> dict[str, Any]:
    return {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}


def curve(size: int, top: int) -> np.ndarray:
    """A bent table that rises from 0 to `top`, so that a linear path cannot be taken for it."""
    return np.round(top * np.sqrt(np.linspace(0, 1, size))).astype(int)


SIGNED = {"PixelRepresentation": 1, "BitsStored": 12}
LUT10, LUT16 = curve(1000, 1023), curve(4096, 65535)

# name: (attributes, pixel cells, the display value of every pixel for bone stored bright, the path in the receipt)
CASES: dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray, str]] = {
    **{
        f"{bits} bits": (
            {"BitsStored": bits},
            cells_of(np.linspace(0, 2**bits - 1, 4096).astype(int).reshape(64, 64), "u1" if bits == 8 else "<u2"),
            np.linspace(0, 2**bits - 1, 4096).astype(int).reshape(64, 64) / (2**bits - 1),
            "full range",
        )
        for bits in (8, 10, 12, 14, 16)
    },
    "high bit 15 of 12": ({"BitsStored": 12, "HighBit": 15}, cells_of(RAMP << 4), RAMP / 4095, "full range"),
    "high bit 13 of 12, junk on both sides": (
        {"BitsStored": 12, "HighBit": 13},
        cells_of(RAMP << 2) | np.uint16(0x8003),
        RAMP / 4095,
        "full range",
    ),
    "overlay in unused bits": ({"BitsStored": 12}, cells_of(RAMP) | np.uint16(0x5000), RAMP / 4095, "full range"),
    "signed, sign extended": (SIGNED, cells_of(SIGNED_RAMP), RAMP / 4095, "full range"),
    "signed, not extended": (SIGNED, cells_of(SIGNED_RAMP) & np.uint16(0x0FFF), RAMP / 4095, "full range"),
    "signed, 16 bits": (
        {"PixelRepresentation": 1},
        cells_of(SIGNED_RAMP * 16),
        (SIGNED_RAMP * 16 + 32768) / 65535,
        "full range",
    ),
    "signed and windowed": (
        SIGNED | window(-100, 1000),
        cells_of(SIGNED_RAMP),
        of_each(SIGNED_RAMP, lambda x: linear(x, -100, 1000)),
        "window LINEAR",
    ),
    "rescaled and windowed": (
        {"BitsStored": 12, "RescaleSlope": "0.5", "RescaleIntercept": "-1000"} | window(-500, 800),
        cells_of(RAMP),
        of_each(RAMP * 0.5 - 1000, lambda x: linear(x, -500, 800)),
        "rescale + window LINEAR",
    ),
    "rescaled downwards, full range": (
        {"BitsStored": 12, "RescaleSlope": "-2", "RescaleIntercept": "8190"},
        cells_of(RAMP),
        1 - RAMP / 4095,
        "rescale + full range",
    ),
    "modality LUT, 16 bit": (
        {"BitsStored": 12, "ModalityLUTSequence": [table(0, LUT16, 16)]},
        cells_of(RAMP),
        LUT16[RAMP] / 65535,
        "modality LUT + full range",
    ),
    "modality LUT, 12 bit, with offset and window": (
        {"BitsStored": 12, "ModalityLUTSequence": [table(100, curve(3000, 4095), 12)]} | window(2000, 3000),
        cells_of(RAMP),
        of_each(curve(3000, 4095)[np.clip(RAMP - 100, 0, 2999)], lambda x: linear(x, 2000, 3000)),
        "modality LUT + window LINEAR",
    ),
    "modality LUT of signed pixels": (
        SIGNED | {"ModalityLUTSequence": [table(-2048, LUT16, 16, signed=True)]},
        cells_of(SIGNED_RAMP),
        LUT16[RAMP] / 65535,
        "modality LUT + full range",
    ),
    "window LINEAR": (
        {"BitsStored": 12} | window(2000.5, 1500, "LINEAR"),
        cells_of(RAMP),
        of_each(RAMP, lambda x: linear(x, 2000.5, 1500)),
        "window LINEAR",
    ),
    "window LINEAR of width 1": (
        {"BitsStored": 12} | window(2000, 1),
        cells_of(RAMP),
        of_each(RAMP, lambda x: linear(x, 2000, 1)),
        "window LINEAR",
    ),
    "window LINEAR_EXACT": (
        {"BitsStored": 12} | window(2000.5, 1500, "LINEAR_EXACT"),
        cells_of(RAMP),
        of_each(RAMP, lambda x: linear_exact(x, 2000.5, 1500)),
        "window LINEAR_EXACT",
    ),
    "window LINEAR_EXACT of a fraction": (
        {"BitsStored": 12, "RescaleSlope": "0.0001", "RescaleIntercept": "0"} | window(0.2, 0.25, "LINEAR_EXACT"),
        cells_of(RAMP),
        of_each(RAMP * 0.0001, lambda x: linear_exact(x, 0.2, 0.25)),
        "rescale + window LINEAR_EXACT",
    ),
    "window SIGMOID": (
        {"BitsStored": 12} | window(1800, 900, "SIGMOID"),
        cells_of(RAMP),
        of_each(RAMP, lambda x: sigmoid(x, 1800, 900)),
        "window SIGMOID",
    ),
    "several windows, the first counts": (
        {"BitsStored": 12} | window([1000, 3000], [900, 400]),
        cells_of(RAMP),
        of_each(RAMP, lambda x: linear(x, 1000, 900)),
        "window LINEAR",
    ),
    "VOI LUT, 10 bit, with offset": (
        {"BitsStored": 12, "VOILUTSequence": [table(500, LUT10, 10)]},
        cells_of(RAMP),
        LUT10[np.clip(RAMP - 500, 0, 999)] / 1023,
        "VOI LUT",
    ),
    "VOI LUT, 16 bit, beside a window": (
        {"BitsStored": 12, "VOILUTSequence": [table(0, LUT16, 16)]} | window(100, 50),
        cells_of(RAMP),
        LUT16[RAMP] / 65535,
        "VOI LUT",
    ),
    "VOI LUT, first mapped negative": (
        SIGNED | {"VOILUTSequence": [table(-700, LUT10, 10, signed=True)]},
        cells_of(SIGNED_RAMP),
        LUT10[np.clip(SIGNED_RAMP + 700, 0, 999)] / 1023,
        "VOI LUT",
    ),
    "VOI LUT, negative written unsigned": (
        SIGNED | {"VOILUTSequence": [table(65536 - 700, LUT10, 10)]},
        cells_of(SIGNED_RAMP),
        LUT10[np.clip(SIGNED_RAMP + 700, 0, 999)] / 1023,
        "VOI LUT",
    ),
    "VOI LUT, 40000 written signed": (
        {"VOILUTSequence": [table(40000 - 65536, LUT10, 10, signed=True)]},
        cells_of(RAMP * 16),
        LUT10[np.clip(RAMP * 16 - 40000, 0, 999)] / 1023,
        "VOI LUT",
    ),
    "VOI LUT that begins below unsigned pixels": (
        {"BitsStored": 12, "VOILUTSequence": [table(-50, LUT10, 10, signed=True)]},
        cells_of(RAMP),
        LUT10[np.clip(RAMP + 50, 0, 999)] / 1023,
        "VOI LUT",
    ),
    "VOI LUT after a rescale to negative values": (
        {"BitsStored": 12, "RescaleSlope": "1", "RescaleIntercept": "-1024"}
        | {"VOILUTSequence": [table(-1024, LUT10, 10, signed=True)]},
        cells_of(RAMP),
        LUT10[np.clip(RAMP, 0, 999)] / 1023,
        "rescale + VOI LUT",
    ),
    "VOI LUT of 65,536 entries": (
        {"VOILUTSequence": [table(0, curve(65536, 65535), 16)]},
        cells_of(RAMP * 16),
        curve(65536, 65535)[RAMP * 16] / 65535,
        "VOI LUT",
    ),
    "VOI LUT, 8-bit entries packed in words": (
        {"VOILUTSequence": [table(0, curve(256, 255).astype("u1").view("<u2"), 8, length=256)]},
        cells_of(RAMP >> 4, "u1"),
        curve(256, 255)[RAMP >> 4] / 255,
        "VOI LUT",
    ),
    "VOI LUT, 12-bit entries called 16": (
        {"BitsStored": 12, "VOILUTSequence": [table(0, curve(4096, 4095), 16)]},
        cells_of(RAMP),
        curve(4096, 4095)[RAMP] / 4095,
        "VOI LUT",
    ),
    "VOI LUT, 16-bit entries called 8": (
        {"BitsStored": 12, "VOILUTSequence": [table(0, LUT16, 8)]},
        cells_of(RAMP),
        LUT16[RAMP] / 65535,
        "VOI LUT",
    ),
    "VOI LUT, fewer entries than stated": (
        {"BitsStored": 12, "VOILUTSequence": [table(0, curve(4000, 65535), 16, length=4096)]},
        cells_of(RAMP),
        curve(4000, 65535)[np.clip(RAMP, 0, 3999)] / 65535,
        "VOI LUT",
    ),
    "window of width 0": ({"BitsStored": 12} | window(2000, 0), cells_of(RAMP), RAMP / 4095, "full range"),
    "LINEAR window below 1": ({"BitsStored": 12} | window(2000, 0.5), cells_of(RAMP), RAMP / 4095, "full range"),
    "window of width 0, then a possible one": (
        {"BitsStored": 12} | window([10, 2000], [0, 1500]),
        cells_of(RAMP),
        of_each(RAMP, lambda x: linear(x, 2000, 1500)),
        "window LINEAR",
    ),
    "centre without width": ({"BitsStored": 12} | window(7, None), cells_of(RAMP), RAMP / 4095, "full range"),
    "12-bit values in 16 bits, no window": ({}, cells_of(RAMP), RAMP / 4095, "full range"),
}
QUIRKS = {
    "high bit 15 of 12": ["high-bit"],
    "high bit 13 of 12, junk on both sides": ["high-bit", "bits-outside-stored"],
    "overlay in unused bits": ["bits-outside-stored"],
    "several windows, the first counts": ["several-windows"],
    "VOI LUT, 16 bit, beside a window": ["window-beside-voi-lut"],
    "VOI LUT, 12-bit entries called 16": ["lut-bits"],
    "VOI LUT, 16-bit entries called 8": ["lut-bits"],
    "VOI LUT, fewer entries than stated": ["lut-length"],
    "window of width 0": ["window-width-zero"],
    "LINEAR window below 1": ["window-width-below-1"],
    "window of width 0, then a possible one": ["window-width-zero", "several-windows"],
    "centre without width": ["window-incomplete"],
    "12-bit values in 16 bits, no window": ["range-narrow"],
}
POLARITIES = {
    "as stored": ({"PresentationLUTShape": "IDENTITY"}, "MONOCHROME2 as stored", False),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1 inverted", True),
    "both": (
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        "MONOCHROME1 inverted",
        True,
    ),
    "INVERSE": ({"PresentationLUTShape": "INVERSE"}, "MONOCHROME2 inverted", True),
}


@pytest.mark.parametrize("polarity", POLARITIES)
@pytest.mark.parametrize("name", CASES)
def test_display_is_the_formula_of_the_standard(name: str, polarity: str) -> None:
    attributes, cells, expected, path = CASES[name]
    stated, label, inverted = POLARITIES[polarity]

    result, receipt = shown(written(radiograph(cells, **attributes, **stated)))

    np.testing.assert_allclose(result.image, 1 - expected if inverted else expected, rtol=0, atol=TOLERANCE)
    assert result.image.dtype == np.float32
    assert (receipt["lut"], receipt["polarity"]) == (path, label)
    assert [
        q for q in receipt["quirks"] if q not in ("presentation-lut-contradicts", "second-inversion")
    ] == QUIRKS.get(name, [])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("words", ["LUTData as OW", "LUTData as US"])
def test_tables_are_read_in_every_byte_order(syntax: str, words: str) -> None:
    lut = table(-700, LUT10, 10, signed=True)
    if words == "LUTData as US":
        lut.add_new("LUTData", "US", LUT10.tolist())
    elif syntax == ExplicitVRBigEndian:
        lut.LUTData = LUT10.astype(">u2").tobytes()

    result, _ = shown(written(radiograph(cells_of(SIGNED_RAMP), **SIGNED, VOILUTSequence=[lut]), syntax))

    np.testing.assert_allclose(result.image, LUT10[np.clip(SIGNED_RAMP + 700, 0, 999)] / 1023, rtol=0, atol=TOLERANCE)


def test_a_voi_lut_without_data_gives_way_to_the_window() -> None:
    lut = table(0, LUT10, 10)
    del lut.LUTData
    file = written(radiograph(cells_of(RAMP), BitsStored=12, VOILUTSequence=[lut], **window(2000, 1500)))

    result, receipt = shown(file)

    np.testing.assert_allclose(result.image, of_each(RAMP, lambda x: linear(x, 2000, 1500)), rtol=0, atol=TOLERANCE)
    assert receipt["quirks"] == ["voi-lut-unreadable"]


@pytest.mark.parametrize("polarity", POLARITIES)
@pytest.mark.parametrize(
    ("attributes", "padded"),
    [
        ({"PixelPaddingValue": 100}, RAMP == 100),
        ({"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}, RAMP >= 4000),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 10}, RAMP <= 10),
    ],
)
def test_padding_is_black_and_masked(attributes: dict[str, Any], padded: np.ndarray, polarity: str) -> None:
    stated, _, inverted = POLARITIES[polarity]

    result, _ = shown(written(radiograph(cells_of(RAMP), BitsStored=12, **attributes, **stated)))

    expected = 1 - RAMP / 4095 if inverted else RAMP / 4095
    np.testing.assert_array_equal(result.padding, padded)
    np.testing.assert_allclose(result.image, np.where(padded, 0, expected), rtol=0, atol=TOLERANCE)


def test_padding_of_signed_pixels_written_unsigned_is_found() -> None:
    dataset = radiograph(cells_of(SIGNED_RAMP), **SIGNED)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)

    result, _ = shown(written(dataset))

    np.testing.assert_array_equal(result.padding, SIGNED_RAMP == -2000)


def test_padding_does_not_widen_the_range_of_a_narrow_image() -> None:
    values = np.where(RAMP == 7, 65535, RAMP)

    result, _ = shown(written(radiograph(cells_of(values), PixelPaddingValue=65535)))

    np.testing.assert_allclose(result.image, np.where(RAMP == 7, 0, RAMP / 4095), rtol=0, atol=TOLERANCE)


def test_an_image_of_one_value_keeps_the_full_range() -> None:
    result, _ = shown(written(radiograph(np.full((40, 40), 1000, "<u2"), BitsStored=12)))

    np.testing.assert_allclose(result.image, 1000 / 4095, rtol=0, atol=TOLERANCE)


def test_one_bright_marker_anywhere_keeps_the_full_range() -> None:
    values = RAMP.copy()
    values[33, 7] = 60000

    result, receipt = shown(written(radiograph(cells_of(values))))

    np.testing.assert_allclose(result.image, values / 65535, rtol=0, atol=TOLERANCE)
    assert receipt["quirks"] == []


def test_no_pixel_of_the_padding_value_means_no_mask() -> None:
    result, _ = shown(written(radiograph(cells_of(RAMP), PixelPaddingValue=65535)))

    assert result.padding is None


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Rows": 0}, r"image side of no or more than 20000 pixels \(Rows\)"),
        ({"Columns": None}, r"image side .* \(Columns\)"),
        ({"BitsAllocated": 12}, r"cells of other than 8, 16 or 32 bits \(BitsAllocated\)"),
        ({"BitsStored": 17}, r"\(BitsStored\)"),
        ({"BitsStored": 0, "HighBit": 0}, r"\(BitsStored\)"),
        ({"BitsStored": 12, "HighBit": 16}, r"do not fit into the pixel cell \(HighBit\)"),
        ({"BitsStored": 12, "HighBit": 10}, r"do not fit into the pixel cell \(HighBit\)"),
        ({"PixelRepresentation": 2}, r"neither signed nor unsigned pixels \(PixelRepresentation\)"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, r"zero or not a number \(RescaleSlope\)"),
        ({"ModalityLUTSequence": [Dataset()]}, r"Modality LUT without readable entries \(ModalityLUTSequence\)"),
    ],
)
def test_what_cannot_be_right_is_refused(attributes: dict[str, Any], message: str) -> None:
    file = written(radiograph(np.zeros((4, 4), "<u2"), **attributes))

    with pytest.raises(DicomRefused, match=message):
        shown(file)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("nonsense", [b"NaN ", b"1,5 ", b"two "])
def test_a_rescale_that_is_no_number_is_refused(keyword: str, nonsense: bytes) -> None:
    attributes = {"RescaleSlope": "1", "RescaleIntercept": "0"} | {keyword: "4711"}
    file = written(radiograph(np.zeros((4, 4), "<u2"), PatientID="P", SOPInstanceUID="1.2", **attributes))
    assert file.count(b"4711") == 1

    with pytest.raises(DicomRefused, match=rf"not a number \({keyword}\)"):
        shown(file.replace(b"4711", nonsense))


def test_an_absurd_side_is_refused() -> None:
    file = written(radiograph(np.zeros((1, 20001), "<u2")))

    with pytest.raises(DicomRefused, match=r"image side of no or more than 20000 pixels \(Columns\)"):
        shown(file)
