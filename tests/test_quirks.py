# SPDX-License-Identifier: Apache-2.0
"""Each row of the table is met by the smallest header that shows it, and by no ordinary one; real files show theirs."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from written_dicom import item, radiograph, shown, table, written

from monai_cnnprimer.dicom.grayscale import PixelFormat
from monai_cnnprimer.dicom.header import DicomRefused, read_header, receipt
from monai_cnnprimer.dicom.quirks import QUIRKS, quirks, values_wrap

CELLS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RISING, FALLING = np.arange(4096) * 16, np.arange(4095, -1, -1) * 16
MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1"}


def met(**attributes: Any) -> list[str]:
    dataset = read_header(BytesIO(written(radiograph(CELLS, BitsStored=12, **attributes))))
    return [quirk.name for quirk in quirks(dataset)]


def coded(value: str) -> list[Dataset]:
    return [item(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning="a view")]


ROWS: dict[str, dict[str, Any]] = {
    "window-width-zero": {"WindowCenter": 100, "WindowWidth": 0},
    "window-width-below-1": {"WindowCenter": 100, "WindowWidth": 0.5},
    "window-incomplete": {"WindowCenter": 100},
    "several-windows": {"WindowCenter": [100, 200], "WindowWidth": [50, 60]},
    "several-voi-luts": {"VOILUTSequence": [table(0, RISING, 16), table(0, RISING, 16)]},
    "window-beside-voi-lut": {"VOILUTSequence": [table(0, RISING, 16)], "WindowCenter": 100, "WindowWidth": 50},
    "voi-function-unknown": {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "CUBIC"},
    "lut-bits": {"VOILUTSequence": [table(0, RISING, 8)]},
    "lut-length": {"VOILUTSequence": [table(0, RISING, 16, length=5000)]},
    "voi-lut-unreadable": {"VOILUTSequence": [item(LUTExplanation="empty")]},
    "presentation-lut-contradicts": MONOCHROME1 | {"PresentationLUTShape": "IDENTITY"},
    "second-inversion": MONOCHROME1 | {"VOILUTSequence": [table(0, FALLING, 16)]},
    "intensity-sign-contradicts": {"PixelIntensityRelationshipSign": 1},
    "for-processing": {"PresentationIntentType": "FOR PROCESSING"},
    "high-bit": {"HighBit": 13},
    "window-beside-values": {"WindowCenter": 30000, "WindowWidth": 20000},
    "spacing-impossible": {"PixelSpacing": ["0.000", "0.000"]},
    "spatial-resolution-only": {"SpatialResolution": "0.2"},
    "magnification-impossible": {
        "ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 0.5
    },
    "view-not-understood": {"ViewPosition": "SMILE"},
    "view-contradicts-code": {"ViewPosition": "AP", "ViewCodeSequence": coded("272479007")},
    "rows-run-to-the-right": {"PatientOrientation": ["R", "F"], "ViewPosition": "AP"},
    "orientation-not-understood": {"PatientOrientation": ["L", "P"]},
    "body-part-not-chest": {"BodyPartExamined": "KNEE"},
    "secondary-capture": {"Modality": "CR", "SOPClassUID": SecondaryCaptureImageStorage},
    "age-without-unit": {"PatientAge": "62"},
    "dates-with-periods": {"AcquisitionDate": "1993.02.24"},
    "animal": {"PatientSpeciesDescription": "Canis lupus familiaris"},
}  # fmt: skip


def test_every_row_has_its_header() -> None:
    assert [quirk.name for quirk in QUIRKS] == ["no-file-meta", *ROWS]  # test_header has the one without meta header


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:Invalid value for VR AS:UserWarning", "ignore:Invalid value for VR DA:UserWarning")
def test_a_row_is_met_by_its_header_alone(name: str) -> None:
    assert met(**ROWS[name]) == [name]


@pytest.mark.parametrize(
    "ordinary",
    [
        {},
        MONOCHROME1 | {"PresentationLUTShape": "INVERSE", "PixelIntensityRelationshipSign": 1},
        MONOCHROME1 | {"VOILUTSequence": [table(0, RISING, 16)]},
        {"VOILUTSequence": [table(0, FALLING, 16)]},
        {"RescaleSlope": -1, "RescaleIntercept": 4095},
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": -1000, "WindowWidth": 2200},  # all but a corner is white, as some consoles mean it
        {"SpatialResolution": "0.2", "PixelSpacing": [0.2, 0.2]},
        {"PatientOrientation": ["P", "F"], "ViewPosition": "LL"},
        {"PatientAge": "062Y", "StudyDate": "19930224", "BodyPartExamined": "CHEST", "ViewPosition": "PA"},
    ],
)
def test_an_ordinary_header_meets_none(ordinary: dict[str, Any]) -> None:
    assert met(**ordinary) == []


# --- what is done ---------------------------------------------------------------------------------------------------


def test_a_second_inversion_is_applied_and_told() -> None:
    """MONOCHROME1 and a falling slope: 4095 - x, inverted, is x again."""
    stated = MONOCHROME1 | {"RescaleSlope": "-1", "RescaleIntercept": "4095"}

    result, told = shown(written(radiograph(CELLS, BitsStored=12, **stated)))

    np.testing.assert_allclose(result.image, CELLS / 4095, atol=1e-6)
    assert told["quirks"] == ["second-inversion"]


def test_rows_to_the_right_are_mirrored_and_told() -> None:
    result, told = shown(written(radiograph(CELLS, BitsStored=12, PatientOrientation=["R", "F"])))

    np.testing.assert_allclose(result.image, CELLS[:, ::-1] / 4095, atol=1e-6)
    assert (told["orientation"], told["quirks"]) == ("upright (from R/F)", ["rows-run-to-the-right"])


@pytest.mark.parametrize("spacing", [["0.000", "0.000"], ["0.2", "0", "0.20000"], ["0.2"]])
def test_an_impossible_spacing_is_no_spacing(spacing: list[str]) -> None:
    _, told = shown(written(radiograph(CELLS, BitsStored=12, PixelSpacing=spacing)))

    assert (told["pixel_spacing_mm"], told["spacing_source"]) == (None, "unknown")
    assert told["quirks"] == ["spacing-impossible"]


def test_the_resolution_of_a_plate_is_no_spacing() -> None:
    _, told = shown(written(radiograph(CELLS, BitsStored=12, SpatialResolution="0.2")))

    assert told["pixel_spacing_mm"] is None


# --- BitsStored that is false ---------------------------------------------------------------------------------------

STATED = PixelFormat(64, 64, 16, 12, 11, signed=False)
ROWS_OF, COLUMNS_OF = np.mgrid[:64, :64]
SMOOTH = (4000 + 1500 * np.sin(ROWS_OF / 9) * np.cos(COLUMNS_OF / 7)).astype(np.uint16)


def test_values_that_go_on_above_the_stored_bits_wrap() -> None:
    assert SMOOTH.max() > 4095
    assert values_wrap(SMOOTH, STATED)


@pytest.mark.parametrize("bit", [0x1000, 0x4000, 0x8000])
def test_an_overlay_above_the_stored_bits_does_not(bit: int) -> None:
    letters = ((ROWS_OF // 5 + COLUMNS_OF // 3) % 4 == 0).astype(np.uint16)
    picture = (SMOOTH // 2) & 0xFFF

    assert not values_wrap(picture | letters * np.uint16(bit), STATED)
    assert not values_wrap(picture | np.uint16(bit), STATED)


def test_the_sign_above_signed_values_is_no_lie() -> None:
    assert not values_wrap(SMOOTH, PixelFormat(64, 64, 16, 12, 11, signed=True))


# --- real files -----------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data")) / "dicom"
REAL = {
    "fuji_cr_pa_mono1_10bit": ["spatial-resolution-only", "dates-with-periods"],
    "konica_cr_mono1_jpeg": [],
    "philips_cr_pa_mono1_j2k": ["spacing-impossible"],
    "rsna_cr_pa_jpeg": ["secondary-capture", "age-without-unit"],
    "rsna_cr_pa_jpeg_mono1": ["secondary-capture", "age-without-unit"],
}


@pytest.mark.skipif(not DATA.is_dir(), reason="no real DICOM files: set CNNPRIMER_DATA to their folder")
@pytest.mark.parametrize("name", REAL)
def test_real_files_show_theirs(name: str) -> None:
    assert receipt(read_header(DATA / f"{name}.dcm"))["quirks"] == REAL[name]


@pytest.mark.skipif(not DATA.is_dir(), reason="no real DICOM files: set CNNPRIMER_DATA to their folder")
def test_the_real_animal_is_refused() -> None:
    header = read_header(DATA / "fujifilm_dx_dog_thorax.dcm")

    assert "animal" in [quirk.name for quirk in quirks(header)]
    with pytest.raises(DicomRefused, match="an animal"):
        receipt(header)
