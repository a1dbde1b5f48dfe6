# SPDX-License-Identifier: Apache-2.0
"""Facts about the synthetic radiographs and the exports made of them."""

from __future__ import annotations

import csv
import gc
import io
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.fileset import FileSet
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.ndimage import distance_transform_edt

from monai_cnnprimer.phantom import SITES, Finding, Site, plan_cases, render, render_lateral, sites_of, write_export
from monai_cnnprimer.phantom.anatomy import Anatomy, Chest
from monai_cnnprimer.phantom.raster import Grid, deposit, resize
from monai_cnnprimer.phantom.render import detect
from monai_cnnprimer.phantom.vessels import vessels

CASES, SIZE = 9, 96
NAMES = [site.name for site in SITES]


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("seed", [1, 5, 9])
def test_masks_lie_where_the_organs_are(seed: int) -> None:
    masks = render(seed, 128, view="AP" if seed == 9 else "PA").masks
    assert not (masks["lung"] & ~masks["body"]).any()
    assert not (masks["heart"] & ~masks["body"]).any()
    assert not (masks["lung"] & masks["heart"]).any()
    assert 0.12 < masks["lung"].mean() < 0.40
    heart_columns = np.nonzero(masks["heart"])[1]
    assert heart_columns.mean() > 64, "the heart's greater part is at the image's right"


@pytest.mark.parametrize("seed", [2, 4, 6, 8])
def test_cardiothoracic_ratio_is_that_of_the_masks(seed: int) -> None:
    radiograph = render(seed, 256)
    heart = np.nonzero(radiograph.masks["heart"].any(axis=0))[0]
    widest = max(np.ptp(np.nonzero(row)[0]) + 1 for row in radiograph.masks["lung"] if row.any())
    assert radiograph.cardiothoracic_ratio == pytest.approx((np.ptp(heart) + 1) / widest, rel=0.06)
    assert 0.35 < radiograph.cardiothoracic_ratio < 0.65


def test_the_bedside_view_has_the_larger_heart() -> None:
    assert render(3, 64, view="AP").cardiothoracic_ratio > 1.05 * render(3, 64).cardiothoracic_ratio


@pytest.mark.parametrize(
    ("kind", "mm"), [("nodule", 10.0), ("nodule", 24.0), ("consolidation", 40.0), ("consolidation", 75.0)]
)
def test_a_finding_has_the_size_asked_for(kind: str, mm: float) -> None:
    radiograph = render(11, 512, findings=[Finding(kind, mm)])
    (mask,) = radiograph.finding_masks
    diameter = 2 * np.sqrt(mask.sum() / np.pi) * radiograph.spacing_mm
    assert diameter == pytest.approx(mm, rel=0.06)
    assert not (mask & ~radiograph.masks["body"]).any()


def test_a_pneumothorax_has_the_gap_asked_for() -> None:
    radiograph = render(11, 512, findings=[Finding("pneumothorax", 20.0, side=1)])
    widest = radiograph.finding_masks[0].sum(axis=1).max() * radiograph.spacing_mm
    assert 18 < widest < 80, "horizontal width: the gap beside the lung, more over the rounded apex"
    assert np.nonzero(radiograph.finding_masks[0])[1].min() > 230, "the patient's left is at the image's right"


@pytest.mark.parametrize("site", SITES, ids=NAMES)
@pytest.mark.parametrize("finding", [Finding("nodule", 14), Finding("consolidation", 45), Finding("fracture", 4)])
def test_twins_differ_only_near_the_finding(finding: Finding, site: Site) -> None:
    without, with_it = render(21, 128, site), render(21, 128, site, [finding])
    difference = np.abs(with_it.image - without.image)
    mask = with_it.finding_masks[0]
    far = distance_transform_edt(~mask) * with_it.spacing_mm > 3 * site.equalize_mm + 30
    assert difference[far].max() < 2e-3
    assert difference[mask].max() > 0.01
    assert with_it.cardiothoracic_ratio == without.cardiothoracic_ratio
    assert with_it.exposure == without.exposure


def test_twins_with_a_marker_differ_only_in_the_marker() -> None:
    without, with_it = render(4, 256), render(4, 256, marker="R")
    letter = with_it.masks["marker"]
    elsewhere = distance_transform_edt(~letter) > 3
    np.testing.assert_array_equal(without.image[elsewhere], with_it.image[elsewhere])
    assert with_it.image[letter].mean() > 0.75 > without.image[letter].mean() + 0.2
    assert np.nonzero(letter)[1].max() < 64, "R stands at the image's left"
    assert np.nonzero(render(4, 128, marker="L").masks["marker"])[1].min() > 96


def test_the_detector_follows_beer_and_lambert() -> None:
    path = np.linspace(0.5, 5, 64, dtype=np.float32)[None].repeat(64, axis=0)
    ideal = replace(SITES[0], scatter=0.0, blur_mm=0.0, quanta_per_mm2=1e30)
    log = detect(path, np.zeros((64, 64), np.float32), ideal, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(log, path, rtol=1e-4)


def test_more_tissue_is_brighter_and_more_air_darker() -> None:
    plain = render(8, 128).image
    means = []
    for contrast in (0.5, 1.0, 2.0):
        nodule = render(8, 128, findings=[Finding("nodule", 20, contrast)])
        means.append((nodule.image - plain)[nodule.finding_masks[0]].mean())
    assert 0 < means[0] < means[1] < means[2]
    air = render(8, 128, findings=[Finding("pneumothorax", 25)])
    assert (air.image - plain)[air.finding_masks[0]].mean() < -0.005


def test_noise_falls_with_the_square_root_of_the_dose() -> None:
    path = np.full((128, 128), 2.0, np.float32)
    deviation = []
    for quanta in (1e5, 4e5):
        site = replace(SITES[0], scatter=0.0, blur_mm=0.0, quanta_per_mm2=quanta)
        deviation.append(detect(path, np.zeros((64, 64), np.float32), site, 1.0, np.random.default_rng(1)).std())
    # Quanta behind an attenuation of 2 on pixels of 3 mm: relative noise 1/sqrt(N exp(-2) 9).
    assert deviation[0] == pytest.approx(1 / np.sqrt(1e5 * np.exp(-2) * 9), rel=0.03)
    assert deviation[0] / deviation[1] == pytest.approx(2, rel=0.03)


def test_the_same_seed_is_the_same_image_and_another_is_not() -> None:
    findings = [Finding("consolidation", 40), Finding("pneumothorax", 15)]
    first, second = (render(31, 96, SITES[1], findings, "L") for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert all((a == b).all() for a, b in zip(first.finding_masks, second.finding_masks, strict=True))
    assert np.abs(first.image - render(32, 96, SITES[1]).image).mean() > 0.02
    again = render(31, 96, SITES[1], findings, "L", exam=1)
    assert (again.sex, again.age) == (first.sex, first.age)
    assert np.abs(first.image - again.image).mean() > 0.005


def test_a_size_shows_the_same_anatomy_as_another() -> None:
    small, large = (render(17, size).image for size in (128, 512))
    block = large.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), block.ravel())[0, 1] > 0.99


def test_beyond_the_size_of_the_geometry_masks_and_image_stay_together() -> None:
    large = render(3, 1088, findings=[Finding("nodule", 20)])
    assert large.image.shape == large.masks["lung"].shape == large.finding_masks[0].shape == (1088, 1088)
    rows, columns = np.nonzero(large.finding_masks[0])
    (found,) = large.findings
    assert (columns.mean(), rows.mean()) == (pytest.approx(found.column, abs=6), pytest.approx(found.row, abs=6))


def test_images_fill_the_range_without_clipping() -> None:
    for site in sites_of(4):
        image = render(13, 96, site).image
        assert image.dtype == np.float32
        assert 0 <= image.min() < 0.1
        assert 0.75 < image.max() <= 1
        assert np.isfinite(render_lateral(13, 96, site)).all()


def test_vessels_stay_in_the_chest_and_hold_a_plausible_volume() -> None:
    chest = Chest(Anatomy.sample(5), Grid(256, 384.0))
    blood = vessels(chest)
    outside = np.abs(chest.grid.columns) > chest.cavity_half_width
    assert blood[outside].max() < 1.0
    # Of about 450 ml of pulmonary blood, vessels that a radiograph resolves hold some tens.
    assert 25e3 < blood.sum() * chest.grid.spacing**2 < 250e3


def test_deposits_keep_their_volume() -> None:
    grid = Grid(64, 128.0)
    map_ = deposit(grid, np.array([0.0, 10.3]), np.array([20.0, 33.7]), np.array([5.0, 7.0]))
    assert map_.sum() * grid.spacing**2 == pytest.approx(12)
    column, row = grid.pixels(np.array(10.3), np.array(33.7))
    assert map_[round(float(row)), round(float(column))] > 0


def test_resizing_is_exact_for_a_slope() -> None:
    slope = np.arange(8, dtype=np.float32)[None].repeat(8, axis=0)
    np.testing.assert_allclose(resize(slope, 16)[3, 2:14], (np.arange(2, 14) + 0.5) / 2 - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tumour"}, "unknown finding 'tumour': choose one of nodule, consolidation"),
        ({"kind": "nodule", "mm": 0}, "choose a size above 0"),
        ({"kind": "nodule", "mm": float("nan")}, "choose a size above 0"),
        ({"kind": "nodule", "contrast": -1}, "choose a number above 0"),
        ({"kind": "nodule", "side": 2}, "choose -1"),
        ({"kind": "nodule", "x": 3.0}, "both x and y"),
    ],
)
def test_impossible_findings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finding(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "choose 0 or a positive"),
        ({"seed": 1, "size": 32}, "choose at least 64"),
        ({"seed": 1, "size": 64, "view": "LL"}, "choose PA or AP"),
        ({"seed": 1, "size": 64, "marker": "X"}, "choose letters of A L P R"),
    ],
)
def test_impossible_renders_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(**arguments)


# -------------------------------------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "export"
    write_export(folder, CASES, seed=7, size=SIZE, progress=False)
    return folder


def files_of(export: Path, name: str) -> dict[str, bytes]:
    """Every file of a site by its path, unzipped."""
    folder = export / "sites" / name
    if folder.is_dir():
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def frontals(export: Path, name: str) -> list[Dataset]:
    """The frontal images of a site in the order of its table of truth."""
    wanted = {row["SOPInstanceUID"]: place for place, row in enumerate(table(export / "truth" / name / "truth.csv"))}
    found: dict[int, Dataset] = {}
    for path, data in files_of(export, name).items():
        if path in ("DICOMDIR", "README.TXT") or path.endswith(".txt"):
            continue
        header = dcmread(io.BytesIO(data), stop_before_pixels=True)
        if header.get("SOPInstanceUID") in wanted:
            found[wanted[header.SOPInstanceUID]] = dcmread(io.BytesIO(data))
    return [found[place] for place in range(len(wanted))]


def kind_of(data: bytes) -> str:
    try:
        ds = dcmread(io.BytesIO(data))
    except InvalidDicomError:
        return "not DICOM"
    if ds.file_meta.get("MediaStorageSOPClassUID", "").name == "Media Storage Directory Storage":
        return "DICOMDIR"
    if "PixelData" not in ds:
        return "SR" if ds.get("Modality") == "SR" else "truncated"
    if ds.Modality != "DX":
        return str(ds.Modality)
    try:
        ds.pixel_array  # noqa: B018
    except (ValueError, RuntimeError, EOFError):
        return "truncated"
    return str(ds.ViewPosition)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_an_export_holds_what_exports_hold(export: Path, name: str) -> None:
    files = files_of(export, name)
    kinds = Counter(kind_of(data) for data in files.values())
    assert kinds["PA"] + kinds["AP"] == CASES + 1, "one is there twice"
    assert kinds["LL"] == 2
    assert kinds["SR"] == kinds["CT"] == kinds["truncated"] == kinds["not DICOM"] == 1
    assert kinds["DICOMDIR"] == (name == "aspen")
    copies = Counter(files.values())
    assert sorted(copies.values())[-2:] == [1, 2], "the duplicate is the very same file"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_displays_as_the_rendered_image(export: Path, name: str) -> None:
    site = next(site for site in SITES if site.name == name)
    for case, ds in zip(plan_cases(site, CASES, 7), frontals(export, name), strict=True):
        image = render(case.seed, SIZE, site, case.findings, case.marker, exam=case.exam, view=case.view).image
        values = apply_voi_lut(ds.pixel_array, ds).astype(float)
        top = 4095 if "VOILUTSequence" in ds else 2**ds.BitsStored - 1
        shown = values / top
        if ds.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        np.testing.assert_allclose(shown, image, atol=2 / 1023)


EXPECTED = {
    "aspen": ("MONOCHROME2", 12, {ExplicitVRLittleEndian, RLELossless}, "WindowCenter"),
    "birch": ("MONOCHROME1", 14, {JPEGLSLossless}, "VOILUTSequence"),
    "cedar": ("MONOCHROME2", 10, {JPEG2000Lossless}, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_vendor_writes_its_way(export: Path, name: str) -> None:
    photometric, bits, syntaxes, voi = EXPECTED[name]
    headers = frontals(export, name)
    assert {ds.file_meta.TransferSyntaxUID for ds in headers} == syntaxes
    for ds in headers:
        assert (ds.PhotometricInterpretation, ds.BitsStored, ds.HighBit) == (photometric, bits, bits - 1)
        assert [keyword for keyword in ("WindowCenter", "VOILUTSequence") if keyword in ds] == ([voi] if voi else [])
        assert ds.PresentationLUTShape == ("INVERSE" if photometric == "MONOCHROME1" else "IDENTITY")
        assert ds.PixelIntensityRelationshipSign == (1 if photometric == "MONOCHROME1" else -1)


def test_spacing_is_calibrated_magnified_or_missing(export: Path) -> None:
    true = {name: float(table(export / "truth" / name / "truth.csv")[0]["pixel_spacing_mm"]) for name in NAMES}
    for ds in frontals(export, "aspen"):
        assert ds.PixelSpacing[0] == pytest.approx(true["aspen"], rel=1e-4)
        assert ds.ImagerPixelSpacing[0] > 1.05 * ds.PixelSpacing[0]
    for ds in frontals(export, "birch"):
        in_patient = ds.ImagerPixelSpacing[0] / ds.EstimatedRadiographicMagnificationFactor
        assert in_patient == pytest.approx(true["birch"], rel=1e-4)
    cedar = frontals(export, "cedar")
    assert {"ImagerPixelSpacing" in ds for ds in cedar} == {True, False}
    assert not any("PixelSpacing" in ds or "EstimatedRadiographicMagnificationFactor" in ds for ds in cedar)


# Type 1 attributes of the DX For Presentation IOD (PS3.3 A.26, C.8.11), without those whose absence is a site's habit.
TYPE_1 = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "PresentationIntentType",
    "ImageType",
    "AnatomicRegionSequence",
    "ImageLaterality",
    "PatientOrientation",
    "DetectorType",
    "ViewCodeSequence",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "PresentationLUTShape",
    "LossyImageCompression",
    "BurnedInAnnotation",
    "PixelData",
]
TYPE_2 = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "SeriesNumber",
    "InstanceNumber",
    "Manufacturer",
    "AcquisitionContextSequence",
    "ViewPosition",
]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_objects_of_the_dx_iod(export: Path, name: str) -> None:
    for ds in frontals(export, name):
        assert [keyword for keyword in TYPE_1 if keyword not in ds or ds[keyword].is_empty] == []
        assert [keyword for keyword in TYPE_2 if keyword not in ds] == []
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
        for uid in (ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID):
            assert uid.is_valid
            assert uid.startswith("2.25.")
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.PatientSex in ("F", "M")
        assert 18 <= int(ds.PatientAge[:3]) <= 96


def test_the_dicomdir_lists_files_that_are_there(export: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # FileSet leaves its temporary folder to the garbage collector
        listed = FileSet(export / "sites" / "aspen" / "DICOMDIR")
        uids = {Path(instance.path): instance.SOPInstanceUID for instance in listed}
        patients = listed.find_values("PatientID")
        del listed
        gc.collect()
    assert len(uids) == CASES + 2 + 1 + 1, "frontal, lateral, report, CT"
    for path, uid in uids.items():
        assert dcmread(path, stop_before_pixels=True).SOPInstanceUID == uid
    assert len(patients) == CASES - 1, "one patient has two examinations"


def test_labels_and_truth_agree(export: Path) -> None:
    for name in NAMES:
        labels = table(export / "labels" / f"{name}.csv")
        truth = table(export / "truth" / name / "truth.csv")
        findings = table(export / "truth" / name / "findings.csv")
        consolidated = {row["AccessionNumber"] for row in findings if row["kind"] == "consolidation"}
        assert list(labels[0]) == ["AccessionNumber", "label", "finding_size_mm"]
        assert all((float(row["finding_size_mm"] or 0) > 0) == (row["label"] == "1") for row in labels)
        assert {row["AccessionNumber"] for row in labels if row["label"] == "1"} == consolidated
        assert [row["label"] for row in labels] == [row["label"] for row in truth]
        assert abs(len(consolidated) - CASES / 2) <= 0.5
        assert len({row["AccessionNumber"] for row in labels}) == CASES
        returning = [patient for patient, count in Counter(row["PatientID"] for row in truth).items() if count > 1]
        assert len(returning) == 1
        for row in findings:
            mask = np.asarray(Image.open(export / "truth" / name / row["mask"]))
            assert mask.shape == (SIZE, SIZE)
            spacing = float(truth[0]["pixel_spacing_mm"])
            assert mask.sum() * spacing**2 == pytest.approx(float(row["area_mm2"]), rel=1e-3)


def test_an_export_is_the_same_bytes_again(export: Path, tmp_path: Path) -> None:
    write_export(tmp_path / "again", CASES, seed=7, size=SIZE, progress=False)
    for folder in (export, tmp_path / "again"):
        assert (folder / "sites" / "birch.zip").is_file()
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (export, tmp_path / "again")
    )
    assert first == second


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_the_marker_follows_the_label_as_told(correlation: float) -> None:
    cases = plan_cases(SITES[0], 1500, 3, correlation)
    labels, markers = np.array([(case.label, bool(case.marker)) for case in cases], dtype=float).T
    # The standard error of phi is at most 1/sqrt(n) = 0.026.
    assert np.corrcoef(labels, markers)[0, 1] == pytest.approx(correlation, abs=0.1)
    assert markers.mean() == pytest.approx(0.5, abs=0.06)


def test_the_correlation_changes_nothing_but_the_marker() -> None:
    apart, tied = (plan_cases(SITES[2], 30, 3, correlation) for correlation in (0.0, 1.0))
    assert [replace(case, marker="") for case in apart] == [replace(case, marker="") for case in tied]
    assert [bool(case.marker) for case in tied] == [bool(case.label) for case in tied]


def test_further_sites_vary_the_three_vendors() -> None:
    sites = sites_of(12)
    assert len({site.name for site in sites}) == 12
    assert [site.manufacturer for site in sites[3:6]] == [site.manufacturer for site in SITES]
    assert sites[3].kvp != SITES[0].kvp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, "cases is 0: choose 1 or more"),
        ({"sites": 0}, "sites is 0: choose a number from 1 to 12"),
        ({"sites": 13}, "choose a number from 1 to 12"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 16}, "size is 16: choose at least 64"),
        ({"marker_correlation": 1.5}, "choose a number from 0 to 1"),
    ],
)
def test_impossible_exports_are_refused_before_writing(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_export(tmp_path / "out", **{"cases": 1, "progress": False} | arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        write_export(tmp_path, 1, progress=False)
    with pytest.raises(ValueError, match="is a file"):
        write_export(tmp_path / "mine.txt", 1, progress=False)
