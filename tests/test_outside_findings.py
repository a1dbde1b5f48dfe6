# SPDX-License-Identifier: Apache-2.0
"""JSRT, NODE21 and plain tables give cases with masks where the findings are, or the reason why not."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from PIL import Image

from monai_cnnprimer.validate.findings.outside import read_findings

KEY = b"a key for these tests only"


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.indices(shape) + 0.5
    return np.hypot(y - row, x - column) <= radius


def write_mha(path, pixels, spacing=None):
    image = SimpleITK.GetImageFromArray(pixels)
    if spacing:
        image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def node21(tmp_path):
    """Four images of 512 x 512 at 0.4 mm: two nodules, one, none; and one nodule outside its image."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(500, 1500, (512, 512)).astype(np.uint16)
    pixels[disc((512, 512), 210, 120, 20)] = 4000
    for name in ("a", "b", "c", "d"):
        write_mha(tmp_path / "images" / f"{name}.mha", pixels, (0.4, 0.4) if name != "c" else None)
    rows = [("a", 1, 100, 190, 40, 40), ("a", 1, 300, 300, 20, 10), ("b", 0, 0, 0, 0, 0), ("c", 1, 100, 190, 40, 40)]
    rows.append(("d", 1, 500, 500, 40, 40))
    table = pd.DataFrame(rows, columns=["img_name", "label", "x", "y", "width", "height"])
    table["img_name"] += ".mha"
    table.to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path


def test_node21(node21):
    cases = read_findings(node21, 128, KEY)
    assert cases.table["label"].tolist() == [1, 0, 1]
    assert cases.table["spacing"].tolist() == ["exact", "exact", "unknown"]
    first = cases.table.iloc[0]
    assert first["diameter_px"] == pytest.approx(10)
    assert first["mm_per_px"] == pytest.approx(1.6)
    assert first["diameter_mm"] == pytest.approx(16)
    assert (first["size_bin"], first["size_bin_px"]) == ("13-22 mm", "8-16 px")
    # The bright disc was drawn where the box is: 512 to 128 pixels, so a quarter.
    assert cases.images[0][disc((128, 128), 52.5, 30, 4)].min() > 0.9
    expected = disc((128, 128), 52.5, 30, 5)
    mask = cases.masks[0]
    assert (mask & expected).sum() / (mask[:, :60] | expected[:, :60]).sum() > 0.85
    assert mask[76, 77]
    unknown = cases.table.iloc[2]
    assert (unknown["size_bin"], unknown["size_bin_px"]) == ("unknown", "8-16 px")
    assert math.isnan(unknown["mm_per_px"])
    assert not cases.masks[1].any()
    assert cases.table["size_bin"][1] == "none"
    assert cases.refused["reason"].tolist() == ["a finding outside the image"]
    assert cases.notes == [
        "1 of 4 images were refused: see refused",
        "1 images have several findings: the largest gives their size",
        "1 images have no spacing: only bins in pixels hold for them",
    ]
    assert not cases.lungs.any()


def test_names_do_not_show_and_the_key_makes_the_pseudonyms(node21):
    first, again, other = (read_findings(node21, 32, key).table for key in (KEY, KEY, b"another"))
    assert first["case_id"].tolist() == again["case_id"].tolist()
    assert not set(first["case_id"]) & set(other["case_id"])
    assert not first["case_id"].str.contains("mha").any()


def test_jsrt(tmp_path):
    raw = np.full((2048, 2048), 3000, ">u2")
    raw[disc((2048, 2048), 700, 1600, 60)] = 1000
    raw.tofile(tmp_path / "JPCLN001.IMG")
    Image.fromarray(np.full((2048, 2048), 90, np.uint8)).save(tmp_path / "JPCNN001.png")
    Image.fromarray(np.full((1024, 1024), 90, np.uint8)).save(tmp_path / "JPCNN002.png")
    raw[:100].tofile(tmp_path / "JPCLN002.IMG")
    lines = [
        "JPCLN001.IMG\t5\t21\t53\tMale\t1600\t700\tmalignant\tlung cancer",
        "JPCLN002.IMG\t3\t15\t40\tFemale\t9\t9\tx",
    ]
    lines.append("JPCLN003.IMG\t3\t15\t40\tFemale\t900\t900\tbenign")
    (tmp_path / "CLNDAT_EN.txt").write_text("\n".join(lines))
    (tmp_path / "CNNDAT_EN.TXT").write_text("JPCNN001.IMG\t44\tMale\nJPCNN002.IMG\t44\tMale\n")
    cases = read_findings(tmp_path, 256, KEY)
    assert cases.table["label"].tolist() == [1, 0]
    row = cases.table.iloc[0]
    assert row["diameter_mm"] == 21
    assert row["diameter_px"] == pytest.approx(21 / 1.4)
    assert row["mm_per_px"] == pytest.approx(1.4)
    # Less blackening is more bone: the disc shows bright.
    assert cases.images[0][87, 200] == pytest.approx(1 - 1000 / 4095, abs=1e-4)
    assert cases.images[0][10, 10] == pytest.approx(1 - 3000 / 4095, abs=1e-4)
    expected = disc((256, 256), 87.5, 200, 7.5)
    assert (cases.masks[0] & expected).sum() / (cases.masks[0] | expected).sum() > 0.9
    assert cases.refused["reason"].str.contains("big-endian values of 12 bits").sum() == 1
    assert cases.refused["reason"].str.contains("the file is not there").sum() == 1
    assert cases.refused["reason"].str.contains("to which JSRT's coordinates belong").sum() == 1


@pytest.fixture
def folder(tmp_path):
    """A radiograph of 100 rows and 200 columns, a mask of its finding, lungs."""
    Image.fromarray(np.full((100, 200), 80, np.uint8)).save(tmp_path / "wide.png")
    Image.fromarray(np.uint8(255 * disc((100, 200), 50, 150, 10))).save(tmp_path / "mask.png")
    lungs = np.zeros((100, 200), np.uint8)
    lungs[:, 100:] = 255
    Image.fromarray(lungs).save(tmp_path / "lungs.png")
    Image.fromarray(lungs[:50]).save(tmp_path / "half.png")
    return tmp_path


def read_rows(folder, *rows, size=100):
    path = folder / "findings.csv"
    pd.DataFrame([{"file": "wide.png", **row} for row in rows]).to_csv(path, index=False)
    return read_findings(path, size, KEY)


@pytest.mark.parametrize(
    "finding",
    [
        {"mask": "mask.png", "mm_per_px": 0.5},
        {"x": 140, "y": 40, "width": 20, "height": 20, "mm_per_px": 0.5},
        {"x_centre": 150, "y_centre": 50, "diameter_px": 20, "mm_per_px": 0.5},
        {"x_centre": 150, "y_centre": 50, "diameter_mm": 10, "mm_per_px": 0.5},
    ],
)
def test_a_finding_may_be_a_mask_a_box_or_a_centre(folder, finding):
    cases = read_rows(folder, {**finding, "lungs": "lungs.png"})
    # 200 x 100 become 100 x 50 in the middle of the square.
    expected = disc((100, 100), 50, 75, 5)
    assert (cases.masks[0] & expected).sum() / (cases.masks[0] | expected).sum() > 0.8
    row = cases.table.iloc[0]
    assert row["diameter_px"] == pytest.approx(10, rel=0.02)
    assert row["diameter_mm"] == pytest.approx(10, rel=0.02)
    assert row["mm_per_px"] == pytest.approx(1.0)
    assert (cases.images[0][:25] == 0).all()
    assert cases.images[0][50, 50] == pytest.approx(80 / 255)
    assert cases.lungs[0].sum() == 50 * 50


def test_a_row_without_a_finding_is_a_normal(folder):
    table = read_rows(folder, {"patient_id": 7}).table
    assert table["label"].tolist() == [0]
    assert table["split"].tolist() == ["test"]


@pytest.mark.parametrize(
    ("finding", "reason"),
    [
        ({"x": 180, "y": 10, "width": 40, "height": 5}, "a finding outside the image"),
        ({"x": 10, "y": 10, "width": 0, "height": 5}, "a finding without place or size"),
        ({"x_centre": 10, "y_centre": 10, "diameter_mm": 5}, "a finding without place or size"),
        ({"x": 10, "y": 10, "width": 1.5, "height": 1.5}, "a finding under a pixel of the input"),
        ({"x": 10, "y": 40, "width": 20, "height": 20, "lungs": "lungs.png"}, "a finding outside the lungs"),
        ({"mask": "half.png"}, "the mask has other rows or columns than the radiograph"),
        ({"mask": "../mask.png"}, "the file is not there, or not below the folder of the table"),
        ({"file": "findings.csv"}, ""),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(folder, finding, reason):
    cases = read_rows(folder, {"file": "lungs.png"}, finding)
    assert len(cases) == 1
    assert reason in cases.refused["reason"][0]
    assert cases.refused["reason"][0]


def test_what_is_no_such_table_says_so(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_findings(tmp_path / "nothing", 64, KEY)
    with pytest.raises(ValueError, match=r"neither metadata.csv \(NODE21\) nor CLNDAT_EN.txt \(JSRT\)"):
        read_findings(folder, 64, KEY)
    (folder / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other.csv needs the column file"):
        read_findings(folder / "other.csv", 64, KEY)
    with pytest.raises(ValueError, match="none of 1 images can be used: a finding outside the image"):
        read_rows(folder, {"x": 300, "y": 10, "width": 4, "height": 5})
