# SPDX-License-Identifier: Apache-2.0
"""Results as DICOM objects: valid, filed with their patient and no more, the map back on the stored pixels."""

from __future__ import annotations

import io
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage
from torch import nn
from written_dicom import item, radiograph, written

from monai_cnnprimer.dataset import CaseDataset, collate_cases
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.header import read_header, receipt
from monai_cnnprimer.dicom.results import (
    Model,
    fractional_segmentation,
    on_radiograph,
    outlines,
    presentation_state,
    secondary_capture,
    structured_report,
    upright_directions,
    without_turning,
)
from monai_cnnprimer.figures.secondary_capture import secondary_capture_png
from monai_cnnprimer.handlers import CaseTableHandler
from monai_cnnprimer.handlers.dicom_results import DicomResultsHandler
from monai_cnnprimer.run_directory import RunDirectory
from monai_cnnprimer.validate.patient_data import scan_csv

ROOT = Path(__file__).parents[1]
MODEL = Model("chest_xray_resnet50", "0.1.0", "77b5bb33" * 8, "9f01127e" * 8)
POINT = {"id": "youden-77b5bb33", "threshold": 0.29}
KINDS = ("SC", "SEG", "PR", "SR")
IDENTITY = {
    "PatientName": "Doe^Jane", "PatientID": "MRN-4711", "IssuerOfPatientID": "HOSPITAL", "PatientBirthDate": "19500203",
    "PatientSex": "F", "StudyInstanceUID": "1.2.3.4", "StudyDate": "20260131", "StudyTime": "101112",
    "AccessionNumber": "ACC-1", "StudyID": "S1",
}  # fmt: skip
OTHERS = {
    "InstitutionName": "SENTINEL CLINIC", "ReferringPhysicianName": "SENTINEL^REFERRER", "OperatorsName": "SENTINEL^OP",
    "PatientComments": "SENTINEL COMMENT", "PatientAddress": "SENTINEL STREET", "OtherPatientIDs": "SENTINEL-ID",
    "StudyDescription": "SENTINEL STUDY", "StationName": "SENTINEL-STN", "ImageComments": "SENTINEL IMAGE",
    "RequestAttributesSequence": [item(ScheduledProcedureStepID="SENTINEL-STEP")], "Manufacturer": "SENTINEL MAKER",
    "WindowCenterWidthExplanation": "SENTINEL WINDOW",
}  # fmt: skip


def source(**attributes: Any) -> Dataset:
    """Header of a 60 x 80 radiograph, as the reader gives it."""
    series = {"SeriesInstanceUID": "1.2.3.4.5", "InstanceNumber": 3}
    windows = {"WindowCenter": 120, "WindowWidth": 90}
    stated = IDENTITY | series | windows | attributes
    return read_header(io.BytesIO(written(radiograph(np.zeros((60, 80), np.uint8), **stated))))


def bump(rows: int = 60, columns: int = 80) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return np.exp(-((y - 20) ** 2 + (x - 50) ** 2) / 60).astype(np.float32)


def result(kind: str, header: Dataset, **changed: Any) -> Dataset:
    picture = np.arange(30 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 40, 3)
    build = {
        "SC": lambda **k: secondary_capture(header, picture, MODEL, directions=upright_directions(header), **k),
        "SEG": lambda **k: fractional_segmentation(header, bump(), MODEL, description="shares", **k),
        "PR": lambda **k: presentation_state(header, outlines(bump(), 0.5), MODEL, text="Grad-CAM at 0.5", **k),
        "SR": lambda **k: structured_report(header, {"pneumonia": 0.83}, POINT, MODEL, **k),
    }
    return build[kind](**changed)


def file_of(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


COMPUTED = {"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR"}
SOURCES = {
    "digital": {},
    "computed, inverted": COMPUTED | {"PhotometricInterpretation": "MONOCHROME1"},
    "rotated": {"PatientOrientation": ["F", "R"]},
    "bare": dict.fromkeys(["PatientOrientation", "StudyID", "PatientSex", "WindowCenter", "WindowWidth"]),
    "a side": {"Laterality": "L", "SpecificCharacterSet": "ISO_IR 192", "PatientName": "Öztürk^Çiğdem"},
}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("attributes", SOURCES.values(), ids=SOURCES.keys())
def test_dciodvfy_finds_no_error(attributes, tmp_path):
    header = source(**attributes)
    for kind in KINDS:
        assert errors_in(file_of(result(kind, header)), tmp_path / kind) == [], kind


def errors_in(file: bytes, path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    path.write_bytes(file)
    said = subprocess.run(["dciodvfy", path], capture_output=True, check=False)
    lines = (said.stdout + said.stderr).decode("utf-8", "replace").splitlines()
    assert lines  # it names the kind of object that it found
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error_in_results_of_real_sources(data_folder, tmp_path):
    checked = 0
    for path in sorted((data_folder / "dicom").iterdir()):
        try:
            header = read_header(path)
            receipt(header)
        except DicomRefused:
            continue
        share, moment = np.zeros((header.Rows, header.Columns), np.float32), {"made_at": datetime(2026, 2, 1)}
        share[100:200, 300:400] = 1
        lines = outlines(share, 0.5)
        for made in (
            secondary_capture(header, np.zeros((9, 9, 3), np.uint8), MODEL, **moment),
            fractional_segmentation(header, share, MODEL, **moment),
            presentation_state(header, lines, MODEL, **moment),
            structured_report(header, {"pneumonia": 0.4}, POINT, MODEL, **moment),
        ):
            assert errors_in(file_of(made), tmp_path / "x.dcm") == [], (path.name, made.Modality)
            checked += 1
    assert checked >= 16


@pytest.mark.parametrize("kind", KINDS)
class TestEveryObject:
    def test_is_filed_with_its_patient_and_carries_nothing_else_of_the_source(self, kind):
        header = source(**OTHERS)
        header.add_new(0x00091001, "LO", "SENTINEL PRIVATE")
        made = pydicom.dcmread(io.BytesIO(file_of(result(kind, header))))
        assert {name: str(made[name].value) for name in IDENTITY} == IDENTITY
        assert b"SENTINEL" not in file_of(made)
        assert made.SeriesDescription.startswith("Research use only, not for clinical use")
        assert (made.SeriesInstanceUID, made.InstanceNumber) not in (("1.2.3.4.5", 3), ("", 3))
        assert made.InstanceNumber == 3
        assert made.Modality == ("OT" if kind == "SC" else kind)

    def test_refers_to_its_source(self, kind):
        header = source()
        uids = [e.value for e in result(kind, header).iterall() if e.keyword == "ReferencedSOPInstanceUID"]
        assert uids
        assert set(uids) == {header.SOPInstanceUID}

    def test_the_same_input_gives_the_same_bytes_and_another_content_another_uid(self, kind):
        header = source()
        first, again = result(kind, header), result(kind, header)
        assert file_of(first) == file_of(again)
        later = result(kind, header, made_at=datetime(2026, 2, 1, 8, 30))
        assert later.SOPInstanceUID != first.SOPInstanceUID
        assert later.SeriesInstanceUID == first.SeriesInstanceUID
        other = result(kind, source(SOPInstanceUID="1.2.9"))
        assert other.SOPInstanceUID != first.SOPInstanceUID
        uids = {str(e.value) for e in first.iterall() if e.VR == "UI"}
        assert all(uid.startswith(("1.2.840.10008.", "2.25.", "1.2.3", "1.2.826.0.1.3680043.8.498.")) for uid in uids)
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids)

    def test_states_the_moment_of_the_radiograph_or_the_one_given(self, kind):
        keyword = "PresentationCreation" if kind == "PR" else "InstanceCreation"
        made = result(kind, source(ContentDate="20260130", ContentTime="235959.12"))
        assert (made[f"{keyword}Date"].value, made[f"{keyword}Time"].value) == ("20260130", "235959")
        made = result(kind, source(StudyDate=None), made_at=datetime(2026, 2, 1, 8, 30))
        assert (made[f"{keyword}Date"].value, made[f"{keyword}Time"].value) == ("20260201", "083000")
        assert "2026112" not in file_of(made).decode("latin-1")

    def test_a_source_that_no_pacs_could_find_is_refused(self, kind):
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            with pytest.raises(DicomRefused, match="a PACS can find.*" + keyword):
                result(kind, source(**{keyword: None}))
        with pytest.raises(DicomRefused, match="no date.*set made_at"):
            result(kind, source(StudyDate=None))
        with pytest.raises(DicomRefused, match="class that DICOM defines"):
            result(kind, source(SOPClassUID="1.2.3.99"))


def test_the_overlay_is_read_back_as_it_was():
    made = pydicom.dcmread(io.BytesIO(file_of(result("SC", source(PatientOrientation=["R", "F"])))))
    assert np.array_equal(made.pixel_array.ravel(), np.arange(3600, dtype=np.uint32).astype(np.uint8))
    assert list(made.PatientOrientation) == ["L", "F"]
    assert made.BurnedInAnnotation == "NO"


def test_the_picture_is_dark_around_the_image_and_shows_map_and_outline():
    share = np.zeros((60, 40))
    share[:20] = 1
    plain, mapped, low = (
        np.asarray(Image.open(io.BytesIO(secondary_capture_png(np.zeros((60, 40)), of, 0.5, "title", ["line"]))))
        for of in (np.zeros((60, 40)), share, 0.4 * share)
    )
    assert plain.shape == mapped.shape
    top, left = 75, 86  # at 150 dots an inch: 0.5 above, and what a page of 6 inches leaves beside image and bar
    assert plain[top - 5 : top + 895, left - 5 : left + 600, :3].max() == 0
    assert plain[-3:, :3, :3].max() == 0
    assert plain[..., :3].max() == 255  # the text
    assert 0 < low[top + 100, left + 100, :3].max() < 0.5 * mapped[top + 100, left + 100, :3].max()
    changed = np.argwhere((mapped != plain).any(axis=2)[: top + 895])
    assert changed.min(axis=0) == pytest.approx([top, left], abs=6)
    assert changed.max(axis=0) == pytest.approx([top + 300, left + 600], abs=6)


def test_the_map_is_read_back_within_half_a_step():
    made = highdicom.seg.segread(io.BytesIO(file_of(result("SEG", source(PatientOrientation=["R", "F"])))))
    share = made.pixel_array.reshape(60, 80) / made.MaximumFractionalValue
    assert np.abs(share - bump()).max() <= 0.5 / 255 + 1e-6
    assert (made.SegmentationType, made.segmentation_fractional_type.value) == ("FRACTIONAL", "PROBABILITY")
    segment = made.get_segment_description(1)
    assert segment.segmented_property_type.meaning == "Gradient-weighted class activation"
    assert list(made.PatientOrientation) == ["R", "F"]


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_the_outlines_are_read_back_and_the_image_keeps_its_greys(photometric, shape):
    made = pydicom.dcmread(io.BytesIO(file_of(result("PR", source(PhotometricInterpretation=photometric)))))
    assert made.PresentationLUTShape == shape
    assert made.SoftcopyVOILUTSequence[0].WindowWidth == 90
    (annotation,) = made.GraphicAnnotationSequence
    (graphic,) = annotation.GraphicObjectSequence
    points = np.array(graphic.GraphicData).reshape(-1, 2)
    # The bump is at half its height sqrt(60 ln 2) pixels from the centre of pixel (20, 50).
    radius = np.hypot(points[:, 0] - 50.5, points[:, 1] - 20.5)
    assert np.abs(radius - np.sqrt(60 * np.log(2))).max() < 0.1
    assert "Research use only" in annotation.TextObjectSequence[0].UnformattedTextValue


def test_the_report_is_read_back_with_score_operating_point_and_hashes():
    made = highdicom.sr.srread(io.BytesIO(file_of(result("SR", source(), hashes={"manifest SHA-256": "ab12"}))))
    (group,) = made.content.get_image_measurement_groups()
    (score,) = group.get_measurements()
    assert (score.name.meaning, score.value, score.unit.value) == ("Probability", 0.83, "1")
    assert group.finding_type.value == "233604007"
    (called,) = group.get_qualitative_evaluations()
    assert called.value.meaning == "Present"
    texts = [str(e.value) for e in made.iterall() if e.keyword == "TextValue"]
    stated = ("operating point: youden-77b5bb33", "threshold: 0.29", f"weights SHA-256: {MODEL.weights_sha256}")
    assert {*stated, "manifest SHA-256: ab12"} < set(texts)
    assert (made.VerificationFlag, made.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_a_score_below_the_operating_point_is_called_absent_and_no_probability_is_refused():
    made = structured_report(source(), {"Pleural effusion": 0.28}, POINT, MODEL)
    values = [e.value for e in made.iterall() if e.keyword == "CodeMeaning"]
    assert "Absent" in values
    assert "Pleural effusion" in values
    for scores in ({}, {"pneumonia": 1.2}, {"pneumonia": float("nan")}):
        with pytest.raises(ValueError, match="probabilities"):
            structured_report(source(), scores, POINT, MODEL)


def test_maps_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="put it back first"):
        fractional_segmentation(source(), bump(80, 60), MODEL)
    for wrong in (bump() * 2, bump() - 0.5, bump() * np.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            fractional_segmentation(source(), wrong, MODEL)
    with pytest.raises(ValueError, match="within the image"):
        presentation_state(source(), [np.array([[1.0, 1.0], [90.0, 2.0]])], MODEL)
    with pytest.raises(ValueError, match="uint8"):
        secondary_capture(source(), np.zeros((3, 3)), MODEL)


def test_a_map_without_anything_above_the_level_gives_a_text_only():
    made = presentation_state(source(), outlines(np.zeros((60, 80)), 0.5), MODEL, text="none")
    assert "GraphicObjectSequence" not in made.GraphicAnnotationSequence[0]


def test_outlines_close_at_the_edge_and_stay_short_enough_for_graphic_data():
    (line,) = outlines(np.ones((6, 8)), 0.5)
    assert np.array_equal(line[0], line[-1])
    assert (line.min(axis=0) >= 0).all()
    assert (line.max(axis=0) <= (8, 6)).all()
    corners = np.abs(line[:, None] - np.array([[0, 0], [8, 0], [8, 6], [0, 6]])).max(axis=2).min(axis=0)
    assert (corners <= 0.5).all()
    spiral = np.zeros((2000, 2000))
    spiral[::8], spiral[:, 0] = 1, 1  # a comb: one line, 250 teeth there and back
    lines = outlines(spiral, 0.5)
    assert max(map(len, lines)) <= 8001
    header = source()
    header.Rows = header.Columns = 2000
    made = pydicom.dcmread(io.BytesIO(file_of(presentation_state(header, lines, MODEL))))
    (graphic,) = made.GraphicAnnotationSequence[0].GraphicObjectSequence
    assert graphic.NumberOfGraphicPoints == len(graphic.GraphicData) / 2 == len(lines[0])


def test_an_attribute_that_cannot_be_written_is_a_refusal_without_its_value():
    header = source(RescaleSlope="1", RescaleIntercept="0", RescaleType="US")
    header.RescaleSlope = None
    with pytest.raises(DicomRefused, match="does not allow this result"):
        presentation_state(header, [], MODEL)


ORIENTATIONS = (["L", "F"], ["R", "F"], ["L", "H"], ["R", "H"], ["F", "L"], ["H", "L"], ["F", "R"], ["H", "R"], None)


def preprocessing(size: int = 160) -> Compose:
    """As `configs/inference.yaml` has it."""
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs" / "inference.yaml"))
    parser["image_size"] = size
    return parser.get_parsed_content("preprocessing")


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("spacing", [None, [0.2, 0.3]], ids=str)
def test_a_planted_square_is_found_again_at_its_place_in_the_stored_pixels(orientation, spacing, tmp_path):
    """Rows and columns differ, so padding, resizing and turning all have to be undone."""
    cells = np.full((500, 380), 40, np.uint8)
    cells[300:400, 50:110] = 220
    dataset = radiograph(cells, PatientOrientation=orientation, PixelSpacing=spacing, **IDENTITY)
    (tmp_path / "x.dcm").write_bytes(written(dataset))
    transform = preprocessing()
    image = transform({"image": tmp_path / "x.dcm"})["image"]
    assert tuple(image.shape) == (1, 160, 160)
    share = (image.as_tensor()[0].numpy() > 1).astype(np.float32)
    header = read_header(tmp_path / "x.dcm")
    turned = orientation is not None and orientation[0] in "FH"
    shape, upright_spacing = ((380, 500), spacing and spacing[::-1]) if turned else ((500, 380), spacing)
    stored = without_turning(on_radiograph(share, transform, shape, upright_spacing), header) > 0.5
    planted = cells > 100
    assert stored.shape == planted.shape
    assert (stored & planted).sum() / (stored | planted).sum() > 0.9
    found, truth = (np.argwhere(mask).mean(axis=0) for mask in (stored, planted))
    assert np.abs(found - truth).max() < 1.6  # half a pixel of the network's input


def test_the_geometry_is_measured_to_a_tenth_of_a_pixel_of_the_radiograph():
    """A ramp over the network's input comes back as the ramp over the radiograph that resizing makes it from."""
    transform = preprocessing()
    rows, columns = 1000, 700
    ramp = np.add.outer(np.arange(160.0), np.zeros(160))
    placed = on_radiograph(ramp, transform, (rows, columns), None)
    expected = (np.arange(rows) + 0.5) * 160 / rows - 0.5
    assert np.abs(placed[10:-10, 350] - expected[10:-10]).max() < 0.1 * 160 / rows


def test_what_the_network_did_not_see_is_zero_and_flips_are_undone():
    from monai.transforms import CenterSpatialCropd, EnsureChannelFirstd, Flipd, LoadImaged

    steps = [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        CenterSpatialCropd(keys="image", roi_size=(40, 50)),
        Flipd(keys="image", spatial_axis=1),
    ]
    heat = np.zeros((40, 50), np.float32)
    heat[3, 7] = 1
    placed = on_radiograph(heat + 0.5, Compose(steps), (60, 80), None)
    assert placed[9].tolist() == [0] * 80
    assert placed[10:50, 15:65].min() == pytest.approx(0.5, abs=1e-5)
    assert np.unravel_index(placed.argmax(), placed.shape) == (10 + 3, 15 + 49 - 7)
    with pytest.raises(ValueError, match="the map has"):
        on_radiograph(heat.T, Compose(steps), (60, 80), None)


def test_a_bent_image_cannot_be_put_back():
    class Bend:
        def __call__(self, data):
            image = data["image"]
            rows = (torch.arange(60.0) ** 2 / 60).long()
            return {"image": image[None, rows]}

    with pytest.raises(ValueError, match="bends the image"):
        on_radiograph(np.zeros((60, 80)), Compose([None, Bend()]), (60, 80), None)


def test_the_directions_of_the_upright_image():
    found = [upright_directions(source(PatientOrientation=orientation)) for orientation in ORIENTATIONS]
    assert found == [["L", "F"]] * 8 + [[]]
    lateral = source(PatientOrientation=["P", "H"], ViewPosition="LL")
    assert upright_directions(lateral) == ["P", "F"]


class Brightness(nn.Module):
    """The logit of class 1 is the mean of `layer4`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Conv2d(1, 2, 3, stride=4, padding=1, bias=False)
        nn.init.constant_(self.layer4.weight, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer4(x).relu().mean(dim=(2, 3)) * torch.tensor([0.0, 1.0])


class DenseBrightness(Brightness):
    """The same, with a dense map of which every cell has the log-odds 1.5."""

    strides: ClassVar[dict[str, int]] = {"p2": 4}

    def dense_maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        cells = torch.ones(len(x), 1, x.shape[2] // 4, x.shape[3] // 4)
        return {"p2": torch.cat([-0.75 * cells, 0.75 * cells], dim=1)}


def run(export: Path, output: Path, network: nn.Module | None = None, **settings: Any) -> None:
    """One evaluation as the bundle's configuration makes it, with a network of one layer."""
    transform, network = preprocessing(64), network or Brightness()
    manifest = index_export(export, output=output, progress=False, workers=1)
    bundle, weights = ROOT / "bundles" / "chest_xray_resnet50", "ab" * 32
    folder = RunDirectory(output, manifest, bundle, weights, POINT | {"weights_sha256": weights}, transform)
    dataset = CaseDataset(folder.remaining(), transform)
    settings = {"output_dir": f"{output}-dicom", "progress": False} | settings
    SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(dataset, batch_size=2, collate_fn=collate_cases),
        network,
        val_handlers=[
            CaseTableHandler(folder, dataset, lambda table: {}, progress=False),
            DicomResultsHandler(folder, dataset, network, **settings),
        ],
        decollate=False,
    ).run()


def test_a_run_leaves_its_objects_beside_the_run_directory_and_a_table_in_it(tmp_path, caplog):
    export, output = tmp_path / "export", tmp_path / "run"
    export.mkdir()
    cells = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    for number in range(3):
        study = {"StudyInstanceUID": None if number == 2 else f"1.2.3.{number}"}
        uids = {"SeriesInstanceUID": f"1.2.4.{number}", "SOPInstanceUID": f"1.2.5.{number}"}
        dataset = radiograph(cells + np.uint8(number), **(IDENTITY | uids | study))
        (export / str(number)).write_bytes(written(dataset))
    run(export, output)
    table = pd.read_csv(output / "dicom_results.csv", dtype=str, keep_default_na=False)
    assert sorted(table["objects"]) == ["", "SC SEG PR SR", "SC SEG PR SR"]
    assert table.set_index("objects").loc["", "attribute"] == "StudyInstanceUID"
    assert "1 of 3 cases have none" in caplog.text
    assert not scan_csv((output / "dicom_results.csv").read_text())
    files = sorted((tmp_path / "run-dicom").iterdir())
    written_for = table.loc[table["objects"] != "", "case_id"]
    assert [path.name for path in files] == sorted(f"{c}_{k.lower()}.dcm" for c in written_for for k in KINDS)
    assert {pydicom.dcmread(path).StudyInstanceUID for path in files} == {"1.2.3.0", "1.2.3.1"}
    inside = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert b"MRN-4711" not in inside
    assert b"1.2.3." not in inside
    predicted = pd.read_csv(output / "predictions.csv").set_index("case_id")["probability"]
    report = highdicom.sr.srread(tmp_path / "run-dicom" / f"{written_for.iloc[0]}_sr.dcm")
    (score,) = report.content.get_image_measurement_groups()[0].get_measurements()
    assert score.value == pytest.approx(predicted[written_for.iloc[0]], abs=1e-6)
    before = {path.name: path.read_bytes() for path in files}
    (tmp_path / "run-dicom" / "mine.dcm").write_text("not ours")
    run(export, output, max_cases=1, objects=["SR"])
    again = {path.name: path.read_bytes() for path in (tmp_path / "run-dicom").iterdir()}
    assert again.pop("mine.dcm") == b"not ours"
    assert len(again) <= 1
    assert all(before[name] == content for name, content in again.items())


def test_a_dense_map_gives_probabilities_as_they_are(tmp_path):
    (tmp_path / "export").mkdir()
    uids = {"SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    cells = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    (tmp_path / "export" / "a").write_bytes(written(radiograph(cells, **(IDENTITY | uids))))
    moment = "2026-02-01T08:30:00"
    run(tmp_path / "export", tmp_path / "run", DenseBrightness(), layer="p2", objects=["SEG"], made_at=moment)
    (path,) = (tmp_path / "run-dicom").iterdir()
    made = highdicom.seg.segread(path)
    assert made.pixel_array.shape[-2:] == (90, 70)
    assert np.unique(made.pixel_array).tolist() == [round(255 / (1 + np.exp(-1.5)))]
    segment = made.get_segment_description(1)
    assert segment.segmented_property_type.meaning == "Class activation"
    assert "probability by cell" in segment.SegmentDescription
    assert (made.ContentDate, made.ContentTime) == ("20260201", "083000")


def test_plain_images_have_no_study_to_be_filed_in(tmp_path):
    (tmp_path / "export").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "export" / "a.png")
    run(tmp_path / "export", tmp_path / "run")
    (row,) = pd.read_csv(tmp_path / "run" / "dicom_results.csv", keep_default_na=False).to_dict("records")
    assert row["reason"].startswith("a plain image, not DICOM")
    assert not list((tmp_path / "run-dicom").iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": "{run}/dicom"}, "carry the patient's identity: give a folder beside it"),
        ({"objects": ["SC", "KOS"]}, "dicom_objects has KOS; choose among SC, SEG, PR, SR"),
        ({"level": 1.5}, "dicom_level is 1.5"),
        ({"layer": "layer9"}, "layer9"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_runs(settings, message, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "a").write_bytes(written(radiograph(np.eye(40, dtype=np.uint8), **IDENTITY)))
    settings = {k: v.format(run=tmp_path / "run") if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "export", tmp_path / "run", **settings)
