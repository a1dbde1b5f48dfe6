# SPDX-License-Identifier: Apache-2.0
"""Files and headers: what is read, what is refused and why, and what the receipt says of size, view and side."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)
from written_dicom import item, radiograph, written

from monai_cnnprimer.dicom.header import DicomRefused, open_source, read_header, receipt

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def stated(**attributes: Any) -> dict[str, Any]:
    return receipt(read_header(BytesIO(written(radiograph(PIXELS, **attributes)))))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Dear colleague,\nplease find the images attached.\n" * 9, "text or another kind of file, not DICOM"),
        ("Überweisung".encode("utf-16"), "no DICOM"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200), "no DICOM"),
        (bytes(128) + b"DICM", "no DICOM, or cut off within its header"),
        (bytes(range(1, 255)), "no DICOM"),
        (bytes(4096), "no DICOM"),
    ],
)
def test_what_is_no_dicom_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DicomRefused, match=message):
        read_header(BytesIO(content))


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless])
def test_a_file_that_was_cut_off_is_refused(syntax: str, part: float) -> None:
    stream = bytes(900) if syntax == JPEG2000Lossless else None
    file = written(radiograph(np.zeros((30, 30), np.uint8)), syntax, stream)

    with pytest.raises(DicomRefused, match="cut off"):
        read_header(BytesIO(file[: int(len(file) * part)]))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kept", ["no preamble", "no meta header"])
def test_a_file_without_meta_header_is_read(syntax: str, kept: str) -> None:
    dataset = radiograph(PIXELS)
    if kept == "no preamble":
        file = written(dataset, syntax)[132:]
    else:
        written(dataset, syntax)
        del dataset.file_meta
        buffer = BytesIO()
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little)
        file = buffer.getvalue()

    found = receipt(read_header(BytesIO(file)))

    assert found["transfer_syntax"] == pydicom.uid.UID(syntax).keyword
    assert found["quirks"] == ([] if kept == "no preamble" else ["no-file-meta"])


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, "\0"):
        with pytest.raises(DicomRefused, match="the file does not exist"):
            open_source(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").write_bytes(b"x")
    (tmp_path / "closed").chmod(0)

    with pytest.raises(DicomRefused, match="cannot be opened"):
        open_source(tmp_path / "closed")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(20):
            file.writestr(f"DICOM/S1//./IM{number}", written(radiograph(np.full((64, 64), number, np.uint8))))
        file.writestr("/absolute", b"found")
    return path


def test_members_of_an_archive_are_read_like_files(archive: Path) -> None:
    dataset = read_header(archive / "DICOM" / "S1" / "IM3")

    assert (dataset.Rows, dataset.Modality) == (64, "DX")
    assert open_source(archive / "absolute").read() == b"found"
    with pytest.raises(DicomRefused, match="the archive has no such member"):
        open_source(archive / "DICOM" / "S1" / "IM20")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # what PyTorch's DataLoader does too
def test_threads_and_forked_processes_read_an_archive_at_once(archive: Path) -> None:
    found: dict[int, bool] = {}

    def read(number: int) -> None:
        data = open_source(f"{archive}/DICOM/S1/IM{number}").read()
        found[number] = data.endswith(bytes([number]) * 4096)

    read(0)
    child = os.fork()
    threads = [threading.Thread(target=read, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    right = len(found) == 20 and all(found.values())
    if child == 0:
        os._exit(0 if right else 1)

    assert right
    assert os.waitpid(child, 0)[1] == 0


def test_a_damaged_or_encrypted_archive_is_refused(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 nonsense")
    encrypted = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag "encrypted" of every local and central header
        place = encrypted.find(mark)
        while place >= 0:
            encrypted[place + offset] |= 1
            place = encrypted.find(mark, place + 4)
    (tmp_path / "locked.zip").write_bytes(encrypted)

    for path in (tmp_path / "no.zip" / "IM0", tmp_path / "locked.zip" / "DICOM" / "S1" / "IM0"):
        with pytest.raises(DicomRefused, match="encrypted or damaged"):
            open_source(path)


def test_mutated_headers_are_read_or_refused_without_a_sound(capfd: pytest.CaptureFixture[str]) -> None:
    lut = item(LUTDescriptor=[4, 0, 16], LUTData=[0, 5, 6, 9])
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    file = written(radiograph(PIXELS, VOILUTSequence=[lut], WindowCenter="5", ViewPosition="PA", PixelSpacing=[1, 1]))
    generator = np.random.default_rng(1)
    outcomes = set()
    for _ in range(150):
        broken = bytearray(file)
        for place in generator.integers(132, len(file) - 70, 3):
            broken[place] = generator.integers(256)
        try:
            receipt(read_header(BytesIO(bytes(broken))))
            outcomes.add("read")
        except DicomRefused as refusal:
            outcomes.add("refused")
            assert "Doe" not in str(refusal)  # noqa: PT017 - either outcome is right

    assert outcomes == {"read", "refused"}
    assert capfd.readouterr() == ("", "")


def test_nothing_of_a_patient_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    file = written(radiograph(PIXELS, StudyDate="20240101")).replace(b"20240101", b"Doe^Jane")
    caplog.set_level(logging.DEBUG)

    receipt(read_header(BytesIO(file)))

    assert caplog.text == ""


def test_the_header_module_needs_neither_torch_nor_monai() -> None:
    code = "import sys, monai_cnnprimer.dicom.pixels; assert not {'torch', 'monai', 'mlflow'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- what is a radiograph --------------------------------------------------------------------------------------------

COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Columns": 2}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Modality": "SR", "SOPClassUID": EnhancedSRStorage}, r"a structured report, no image \(Modality\)"),
        (COLOUR | {"SOPClassUID": SecondaryCaptureImageStorage}, r"a colour image.* \(PhotometricInterpretation\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"a colour image.* \(PhotometricInterpretation\)"),
        ({"PhotometricInterpretation": None}, r"whether low values are bright \(PhotometricInterpretation\)"),
        (COLOUR | {"PhotometricInterpretation": "MONOCHROME2"}, r"a colour image.* \(SamplesPerPixel\)"),
        ({"NumberOfFrames": 2, "Rows": 4}, r"several frames, not a radiograph \(NumberOfFrames\)"),
        ({"Modality": "CT", "SOPClassUID": CTImageStorage}, r"another modality .* \(Modality\)"),
        ({"Modality": "MG"}, r"another modality .* \(Modality\)"),
        ({"Modality": "OT", "SOPClassUID": SecondaryCaptureImageStorage}, r"another modality .* \(Modality\)"),
        ({"Modality": None, "SOPClassUID": SecondaryCaptureImageStorage}, r"another modality .* \(Modality\)"),
        ({"PatientSpeciesDescription": "Canis lupus familiaris"}, "an animal, by its species"),
    ],
)
def test_what_is_no_radiograph_is_refused_with_its_reason(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(DicomRefused, match=message):
        stated(**attributes)


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [("SR", EnhancedSRStorage), ("PR", GrayscaleSoftcopyPresentationStateStorage)],
)
def test_objects_without_pixels_are_refused_for_what_they_are(modality: str, sop_class: str) -> None:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, "1.2.3", modality

    with pytest.raises(DicomRefused, match="a structured report" if modality == "SR" else "an object without an image"):
        receipt(read_header(BytesIO(written(dataset))))


def test_a_class_of_radiographs_stands_for_a_missing_modality() -> None:
    assert stated(Modality=None, SOPClassUID=ComputedRadiographyImageStorage)["view"] == "unknown"
    assert stated(Modality="CR", SOPClassUID=SecondaryCaptureImageStorage)["view"] == "unknown"


# --- view and side ---------------------------------------------------------------------------------------------------


def coded(value: str, scheme: str = "SCT") -> list[Dataset]:
    return [item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning="a view")]


@pytest.mark.parametrize(
    ("attributes", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "LL"}, "LL"),
        ({"ViewPosition": "AP SUPINE"}, "AP"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "PA LAT"}, "unknown"),
        ({"ViewPosition": "DOE JANE"}, "unknown"),
        ({"ViewPosition": ""}, "unknown"),
        ({"ViewCodeSequence": coded("272479007")}, "PA"),
        ({"ViewCodeSequence": coded("399348003")}, "AP"),
        ({"ViewCodeSequence": coded("R-10206", "SRT")}, "AP"),
        ({"ViewCodeSequence": coded("399173006")}, "LL"),
        ({"ViewCodeSequence": coded("000")}, "unknown"),
        ({"ViewPosition": "", "ViewCodeSequence": coded("399067008")}, "lateral"),
        ({"ViewPosition": "AP", "ViewCodeSequence": coded("272479007")}, "AP"),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["L", "F"]}, "unknown"),
    ],
)
def test_the_view_is_named_in_a_fixed_vocabulary(attributes: dict[str, Any], view: str) -> None:
    assert stated(**attributes)["view"] == view


def test_views_that_were_not_asked_for_are_refused_and_unknown_ones_pass() -> None:
    header = {view: read_header(BytesIO(written(radiograph(PIXELS, ViewPosition=view)))) for view in ("PA", "LL", "")}

    assert receipt(header["PA"], ("PA", "AP"))["view"] == "PA"
    assert receipt(header[""], ("PA", "AP"))["view"] == "unknown"
    assert receipt(header["LL"])["view"] == "LL"
    with pytest.raises(DicomRefused, match=r"the view is LL, asked for: PA, AP \(ViewPosition\)"):
        receipt(header["LL"], ("PA", "AP"))
    with pytest.raises(DicomRefused, match="the view is PA, asked for: AP"):
        receipt(header["PA"], ("AP",))


@pytest.mark.parametrize(
    ("attributes", "laterality"),
    [
        ({"ImageLaterality": "L"}, "L"),
        ({"ImageLaterality": "U", "Laterality": "R"}, "U"),
        ({"Laterality": "R"}, "R"),
        ({"ImageLaterality": "", "Laterality": "B"}, "B"),
        ({"Laterality": "JANE"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_laterality(attributes: dict[str, Any], laterality: str) -> None:
    assert stated(**attributes)["laterality"] == laterality


def test_burned_in_annotation() -> None:
    found = [stated(BurnedInAnnotation=value)["burned_in"] for value in ("YES", "NO", "", None)]

    assert found == ["YES", "NO", "unknown", "unknown"]


# --- spacing ---------------------------------------------------------------------------------------------------------

IMAGER = {"ImagerPixelSpacing": [0.2, 0.3]}


@pytest.mark.parametrize(
    ("attributes", "spacing", "source"),
    [
        (IMAGER | {"PixelSpacing": [0.16, 0.24]}, (0.16, 0.24), "calibrated"),
        (IMAGER | {"PixelSpacing": [0.2, 0.3], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.2, 0.3), "calibrated"),
        ({"PixelSpacing": [0.16, 0.24], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.16, 0.24), "calibrated"),
        (IMAGER | {"PixelSpacing": [0.2, 0.3]}, (0.2, 0.3), "imager"),
        (
            IMAGER | {"PixelSpacing": [0.2, 0.3], "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.16, 0.24),
            "imager/magnification",
        ),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 1.25}, (0.16, 0.24), "imager/magnification"),
        (
            IMAGER | {"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500},
            (0.2 / 1.2, 0.3 / 1.2),
            "imager/distances",
        ),
        (IMAGER | {"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 0}, (0.2, 0.3), "imager"),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 0}, (0.2, 0.3), "imager"),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 0.8}, (0.2, 0.3), "imager"),
        (IMAGER, (0.2, 0.3), "imager"),
        ({"PixelSpacing": [0.16, 0.24]}, (0.16, 0.24), "pixel_spacing"),
        ({"PixelSpacing": [0.16, 0.24], "NominalScannedPixelSpacing": [0.1, 0.1]}, (0.16, 0.24), "pixel_spacing"),
        ({"NominalScannedPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), "nominal"),
        ({"PixelSpacing": [0, 0], "NominalScannedPixelSpacing": [0.1, 0.2]}, (0.1, 0.2), "nominal"),
        (IMAGER | {"PixelSpacing": [0, 0], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.2, 0.3), "imager"),
        ({"PixelSpacing": [0, 0]}, None, "unknown"),
        ({"PixelSpacing": [-0.1, 0.1]}, None, "unknown"),
        ({"ImagerPixelSpacing": [0.1, 0]}, None, "unknown"),
        ({"PixelSpacing": 0.1}, None, "unknown"),
        ({}, None, "unknown"),
    ],
)
def test_spacing_and_where_it_comes_from(
    attributes: dict[str, Any], spacing: tuple[float, float] | None, source: str
) -> None:
    found = stated(**attributes)

    assert found["spacing_source"] == source
    assert found["pixel_spacing_mm"] == (spacing if spacing is None else pytest.approx(spacing))


def test_spacing_with_decimal_commas_is_unknown_not_guessed() -> None:
    file = written(radiograph(PIXELS, PixelSpacing=[0.16, 0.24])).replace(b"0.16\\0.24", b"0,16\\0,24")

    assert receipt(read_header(BytesIO(file)))["pixel_spacing_mm"] is None


# --- quirks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            "presentation-lut-contradicts",
        ),
        ({"PixelIntensityRelationshipSign": 1}, "intensity-sign-contradicts"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for-processing"),
        ({"PixelSpacing": [0, 0]}, "spacing-impossible"),
        (IMAGER | {"EstimatedRadiographicMagnificationFactor": 0}, "magnification-impossible"),
        ({"ViewPosition": "PA ERECT"}, "view-not-understood"),
        ({"ViewPosition": "AP", "ViewCodeSequence": coded("272479007")}, "view-contradicts-code"),
        ({"PatientOrientation": ["X", "Y"]}, "orientation-not-understood"),
        ({"BodyPartExamined": "HAND"}, "body-part-not-chest"),
        ({"VOILUTFunction": "GAMMA", "WindowCenter": 9, "WindowWidth": 20}, "voi-function-unknown"),
    ],
)
def test_a_quirk_is_named_where_it_is_met_and_only_there(attributes: dict[str, Any], name: str) -> None:
    assert stated(**attributes)["quirks"] == [name]


def test_an_image_as_it_should_be_has_no_quirks() -> None:
    assert stated(
        PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", PixelIntensityRelationshipSign=1,
        PresentationIntentType="FOR PRESENTATION", BodyPartExamined="CHEST", ViewPosition="PA", WindowCenter=128,
        ViewCodeSequence=coded("272479007"), WindowWidth=256, VOILUTFunction="LINEAR", **IMAGER,
    )["quirks"] == []  # fmt: skip


def test_a_receipt_holds_nothing_of_the_patient() -> None:
    found = stated(PatientBirthDate="19700101", AccessionNumber="ACC4711", InstitutionName="St Elsewhere")

    text = str(found)
    assert not [value for value in ("Doe", "4711", "1970", "Elsewhere", "1.2.8") if value in text]


def test_deflated_headers_are_read() -> None:
    assert receipt(read_header(BytesIO(written(radiograph(PIXELS), DeflatedExplicitVRLittleEndian))))["quirks"] == []
