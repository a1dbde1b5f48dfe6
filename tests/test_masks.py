# SPDX-License-Identifier: Apache-2.0
"""Masks of regions lie where the radiograph shows them, after the bundle's own preprocessing; nothing ends a run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd
from PIL import Image
from written_dicom import radiograph, written

from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.masks import RegionMasks
from monai_cnnprimer.dicom.rows import keyed_hash
from monai_cnnprimer.phantom import render
from monai_cnnprimer.phantom.export import plan_cases
from monai_cnnprimer.phantom.sites import SITES

KEY = b"a key for these tests only"
BUNDLE = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50" / "configs" / "inference.yaml"


@pytest.fixture(scope="module")
def preprocessing():
    """The transforms of the bundle, image to network input of 160 pixels."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE))
    return parser.get_parsed_content("preprocessing")


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def write_table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_regions_of_a_phantom_lie_where_they_are_rendered_at_the_size_of_the_network(
    site, phantom_export, preprocessing
):
    """From DICOMDIR, zip and folder: bright or inverted, with spacing and without, each as the site writes it."""
    export = phantom_export / "sites" / site.name
    export = export if export.exists() else export.with_suffix(".zip")
    truth = phantom_export / "truth" / site.name
    manifest = index_export(export, key=KEY, progress=False)
    masks = RegionMasks(truth / "masks.csv", manifest, preprocessing, KEY)
    with (truth / "truth.csv").open() as file:
        uids = [row["SOPInstanceUID"] for row in csv.DictReader(file)]
    assert masks.notes == []
    for case, uid in zip(plan_cases(site, 4, 5), uids, strict=True):
        rendered = render(case.seed, 160, site, case.findings, case.marker, exam=case.exam, view=case.view)
        regions, left_out = masks(keyed_hash(KEY, uid, 16))
        assert left_out == {}
        assert regions["lung"].shape == (160, 160)
        assert overlap(regions["lung"], rendered.masks["lung"]) > 0.95
        assert overlap(regions["heart"], rendered.masks["heart"]) > 0.93
        assert ("marker" in regions) == bool(case.marker)
        assert ("finding" in regions) == bool(case.findings)
        if case.findings:
            together = np.logical_or.reduce(rendered.finding_masks)
            # A fracture is a few pixels wide, so that half a pixel is much of it.
            assert overlap(regions["finding"], together) > (0.85 if case.label else 0.3)


@pytest.mark.parametrize("spacing", [None, (0.4, 0.4), (0.4, 0.2)])
@pytest.mark.parametrize("orientation", [["L", "F"], ["R", "F"], ["F", "L"]])
def test_a_mask_has_the_pixels_of_the_radiograph_as_displayed(orientation, spacing, preprocessing, tmp_path):
    """The region is what is bright in the image that reaches the network, however it is stored."""
    shown = np.zeros((120, 80), dtype=bool)
    shown[10:50, 5:35] = True
    stored = {"R": shown[:, ::-1], "F": shown.T}.get(orientation[0], shown)
    across, down = spacing or (None, None)
    stated = {"PixelSpacing": [down, across] if orientation[0] == "F" else [across, down]} if spacing else {}
    dataset = radiograph(
        np.ascontiguousarray(stored).astype(np.uint16) * 3000, PatientOrientation=orientation, **stated
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1").write_bytes(written(dataset))
    save(tmp_path / "square.png", shown)
    table = write_table(tmp_path / "t.csv", {"PatientID": "MRN-4711", "finding": "square.png"})
    manifest = index_export(tmp_path / "in", key=KEY, progress=False)
    (case,) = manifest.cases()
    regions, left_out = RegionMasks(table, manifest, preprocessing, KEY)(case["case_id"])
    image = preprocessing({"image": case["image"]})["image"][0].numpy()
    assert left_out == {}
    assert overlap(regions["finding"], image > (image.min() + image.max()) / 2) > 0.97


@pytest.fixture
def folder(tmp_path):
    """Two plain images of 40 x 60 pixels; with their manifest."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.png", np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8))
    return tmp_path, index_export(tmp_path / "in", key=KEY, progress=False)


def test_files_of_a_cell_are_joined_and_a_plain_image_is_named_by_its_path(folder, preprocessing):
    path, manifest = folder
    for i, value in enumerate((1, 255)):  # a mask of zeros and ones is one too
        part = np.zeros((40, 60), dtype=np.uint8)
        part[:, 30 * i : 30 * i + 30] = value
        save(path / f"{i}.png", part)
    save(path / "none.png", np.zeros((40, 60), dtype=np.uint8))
    row = {"path": "./a.png", "lung": "0.png; 1.png", "heart": "none.png", "marker": "", "other": "x"}
    masks = RegionMasks(write_table(path / "t.csv", row), manifest, preprocessing, KEY)
    regions, left_out = masks(keyed_hash(KEY, "a.png", 16))
    assert left_out == {}
    # The longer side fills 160 pixels; above and below is padding.
    assert regions["lung"].any(axis=1).sum() == 107
    assert regions["lung"][26:133].all()
    assert not regions["heart"].any()
    assert set(regions) == {"lung", "heart"}
    assert masks(keyed_hash(KEY, "b.png", 16)) == ({}, {})


def test_what_cannot_be_used_is_left_out_with_the_reason_and_without_a_name(folder, preprocessing):
    path, manifest = folder
    save(path / "small.png", np.ones((40, 40), dtype=np.uint8))
    save(path / "good.png", np.ones((40, 60), dtype=np.uint8))
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = [
        {"path": "a.png", "lung": "gone.png", "heart": "small.png", "marker": "broken.png", "finding": "good.png"},
        {
            "path": "b.png",
            "lung": "../secret.png",
            "heart": "/etc/hostname",
            "marker": "good.png;gone.png",
            "finding": "",
        },
    ]
    masks = RegionMasks(write_table(path / "t.csv", *rows), manifest, preprocessing, KEY)
    regions, left_out = masks(keyed_hash(KEY, "a.png", 16))
    elsewhere = "the file of the mask is not there, or not below the folder of the table"
    assert list(regions) == ["finding"]
    assert left_out == {
        "lung": elsewhere,
        "heart": "the mask has other rows or columns than the radiograph",
        "marker": "the mask cannot be read: a damaged PNG file",
    }
    assert masks(keyed_hash(KEY, "b.png", 16)) == ({}, dict.fromkeys(("lung", "heart", "marker"), elsewhere))
    (path / "in" / "a.png").unlink()
    regions, left_out = masks(keyed_hash(KEY, "a.png", 16))
    assert (regions, set(left_out.values())) == ({}, {"the radiograph could not be read again"})


def test_a_region_below_half_a_pixel_is_not_called_empty(tmp_path, preprocessing):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.png", np.zeros((640, 640), dtype=np.uint8))
    point = np.zeros((640, 640), dtype=bool)
    point[320, 320] = True
    save(tmp_path / "point.png", point)
    manifest = index_export(tmp_path / "in", key=KEY, progress=False)
    table = write_table(tmp_path / "t.csv", {"path": "a.png", "finding": "point.png"})
    regions, left_out = RegionMasks(table, manifest, preprocessing, KEY)(keyed_hash(KEY, "a.png", 16))
    assert (regions, left_out) == ({}, {"finding": "the region is smaller than half a pixel of the network's input"})


def test_a_mask_belongs_to_one_image(tmp_path, preprocessing):
    """One study of two images: the accession number does not tell which of them was masked."""
    (tmp_path / "in").mkdir()
    for i, accession in enumerate(("A", "A", "B", "C")):
        dataset = radiograph(np.zeros((8, 8), np.uint16), SOPInstanceUID=f"1.2.3.{i}", AccessionNumber=accession)
        (tmp_path / "in" / f"{i}").write_bytes(written(dataset))
    manifest = index_export(tmp_path / "in", key=KEY, progress=False)
    save(tmp_path / "m.png", np.ones((8, 8), dtype=bool))
    rows = [{"AccessionNumber": name, "lung": "m.png"} for name in ("A", "B", "B", "C", "D", "")]
    masks = RegionMasks(write_table(tmp_path / "t.csv", *rows), manifest, preprocessing, KEY)
    assert [sorted(masks(keyed_hash(KEY, f"1.2.3.{i}", 16)).masks) for i in range(4)] == [[], [], [], ["lung"]]
    assert masks.notes == [
        "1 rows of the table of masks have no AccessionNumber: left aside",
        "1 cases of the table of masks are no accepted image",
        "2 cases of the table of masks stand in it twice, or are several images: left aside",
    ]


def test_without_a_table_there_are_no_regions_and_a_wrong_one_is_told_at_once(folder, preprocessing):
    path, manifest = folder
    assert RegionMasks(None, manifest, preprocessing)("any") == ({}, {})
    with pytest.raises(FileNotFoundError, match="no such table of masks"):
        RegionMasks(path / "t.csv", manifest, preprocessing, KEY)
    for row in ({"path": "a.png", "mask": "m.png"}, {"name": "a.png", "lung": "m.png"}):
        with pytest.raises(ValueError, match="table of masks needs the columns: one of SOPInstanceUID, path, .* lung"):
            RegionMasks(write_table(path / "t.csv", row), manifest, preprocessing, KEY)
    with pytest.raises(ValueError, match="must begin with LoadImaged"):
        RegionMasks(None, manifest, Compose([EnsureChannelFirstd("image")]))
