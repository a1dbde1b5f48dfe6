# SPDX-License-Identifier: Apache-2.0
"""Normal radiographs: no patient in two splits, lungs where they are, aspect and millimetres kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from monai_cnnprimer.phantom import SITES, render
from monai_cnnprimer.validate.findings import insert_nodule, normals
from monai_cnnprimer.validate.findings.lungs import fault_of_lungs, find_lungs


@pytest.fixture
def children(tmp_path):
    """Thirty images in the form of the Kermany folder, 64 x 64 from 1600 x 800, two white lungs 16 pixels wide."""
    folder, rows = tmp_path / "data" / "kermany", []
    (folder / "masks").mkdir(parents=True)
    lungs = np.zeros((64, 64), np.uint8)
    lungs[16:48, 10:26] = lungs[16:48, 38:54] = 255
    for number in range(30):
        pixels = np.random.default_rng(number).integers(20, 230, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(lungs).save(folder / "masks" / f"{number}.png")
        row = {"path": f"{number}.png", "mask": f"masks/{number}.png", "split": "test" if number % 3 == 0 else "train"}
        patient = {"label": "NORMAL" if number < 28 else "PNEUMONIA", "patient_id": f"p{number // 2}"}
        rows.append({**row, **patient, "original_width": 1600, "original_height": 800})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return tmp_path / "data"


def test_phantoms_come_with_exact_lungs_and_spacing():
    found = normals(("phantom",), size=64, count=8, seed=3)
    first = render(300_000, size=64, site=SITES[0])
    assert found.images[0].tobytes() == first.image.tobytes()
    assert (found.lungs[0] == first.masks["lung"]).all()
    assert found.table["mm_per_px"].tolist() == [SITES[number % 3].width_mm / 64 for number in range(8)]
    assert found.table["split"].value_counts().to_dict() == {"train": 5, "validation": 1, "test": 2}
    assert found.table["spacing"].unique().tolist() == ["exact"]
    assert found.notes == []


def test_other_seeds_give_other_patients():
    first, second = (normals(("phantom",), 64, 3, seed).table["patient_key"] for seed in (0, 1))
    assert not set(first) & set(second)


def test_no_patient_stands_in_two_splits_and_published_test_images_test(children):
    found = normals(("kermany",), 64, 14, 1, children, shares=(0.5, 0.2, 0.3))
    table = found.table
    assert table["patient_key"].is_unique
    manifest = pd.read_csv(children / "kermany" / "manifest.csv")
    tested = set(manifest.loc[manifest["split"] == "test", "patient_id"])
    patients = table["patient_key"].str.removeprefix("kermany-")
    for split, rows in patients.groupby(table["split"]):
        assert rows.isin(tested).all() == (split == "test")
        assert rows.isin(tested).any() == (split == "test")
    assert set(patients) <= set(manifest.loc[manifest["label"] == "NORMAL", "patient_id"])
    assert (table["split"] == "test").sum() == 4
    assert table["split"].tolist() == sorted(table["split"], key=("train", "validation", "test").index)


def test_the_original_aspect_is_restored_and_mm_follow_from_the_lungs(children):
    found = normals(("kermany",), 128, 5, 0, children)
    # Twice as wide as high: 128 x 64 pixels in the middle of the square, black above and below.
    assert (found.images[:, :32] == 0).all()
    assert (found.images[:, 96:] == 0).all()
    assert found.images[:, 32:96].mean(axis=(0, 2)).min() > 0.3
    rows, columns = np.nonzero(found.lungs[0])
    assert (rows.min(), rows.max()) == (48, 79)
    assert (columns.min(), columns.max()) == (20, 107)
    assert found.table["mm_per_px"].tolist() == pytest.approx([170 / 88] * len(found))
    assert found.table["spacing"].unique().tolist() == ["nominal"]


def test_pixels_lie_anywhere_within_the_step_of_their_byte(children):
    found = normals(("kermany",), 64, 5, 0, children)
    name = found.table["case_id"][0].removeprefix("kermany-")
    stored = np.asarray(Image.open(children / "kermany" / f"{name}.png"))
    # The image is 64 wide and squashed to half its height; columns of equal pixels stay within the bytes' range.
    assert stored.min() / 256 <= found.images[0, 16:48].min()
    assert found.images[0].max() <= (stored.max() + 1) / 256
    steps = found.images[0, 16:48] * 255
    assert np.mean(np.abs(steps - steps.round()) < 1e-3) < 0.05


def test_an_input_larger_than_the_stored_image_is_noted(children):
    assert normals(("kermany",), 256, 3, 0, children).notes == [
        "kermany: stored with 224 pixels a side and enlarged, so 256 show no more"
    ]


def test_fewer_images_than_asked_for_is_noted(children):
    found = normals(("kermany",), 64, 100, 0, children)
    assert found.notes == [f"kermany: {len(found)} normal images, 100 were asked for"]


def test_the_cache_gives_the_same_bytes_and_asks_for_the_same_arguments(children, tmp_path):
    made = normals(("phantom", "kermany"), 64, 5, 0, children, cache=tmp_path / "cache")
    again = normals(("phantom", "kermany"), 64, 5, 0, children, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert again.images.tobytes() == made.images.tobytes()
    assert again.lungs.tobytes() == made.lungs.tobytes()
    assert again.notes == made.notes
    pd.testing.assert_frame_equal(again.table, made.table, check_dtype=False)
    normals(("phantom", "kermany"), 64, 5, 1, children, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_splits_and_sources_can_be_taken(children):
    found = normals(("phantom", "kermany"), 64, 6, 0, children)
    some = found.only(split="train", source="phantom")
    assert set(some.table["case_id"].str[:7]) == {"phantom"}
    assert len(some) == (found.table["split"][:6] == "train").sum()
    assert (some.images == found.images[: len(some)]).all()


def test_without_the_folder_of_data_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("CNNPRIMER_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"CNNPRIMER_DATA is not set; .* use the source phantom"):
        normals(("kermany",), 64, 5)
    with pytest.raises(FileNotFoundError, match=r"nih.manifest.csv is not there"):
        normals(("phantom", "nih"), 64, 5, data=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ("jsrt",)}, "unknown source jsrt: choose of phantom, kermany, nih"),
        ({"sources": ()}, "unknown source none"),
        ({"count": 2}, "choose at least 3"),
        ({"shares": (0.5, 0.2, 0.2)}, "shares that sum to 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        normals(**{"sources": ("phantom",), "size": 64, "count": 5, **change})


def test_lungs_of_the_phantom_are_found_inside_the_true_ones_or_refused():
    accepted = 0
    for seed in range(6):
        radiograph = render(seed, size=128, site=SITES[seed % 3])
        found, truth = find_lungs(radiograph.image), radiograph.masks["lung"]
        if fault_of_lungs(found):
            continue
        accepted += 1
        assert (found & ndimage.binary_dilation(truth, iterations=2)).sum() > 0.97 * found.sum()
        assert (found & truth).sum() > 0.5 * truth.sum()
    assert accepted >= 2


def test_what_is_no_pair_of_lungs_says_why():
    blank = np.zeros((100, 100), bool)
    square, small = blank.copy(), blank.copy()
    square[20:70, 10:35] = square[20:70, 60:85] = True
    assert fault_of_lungs(square) == ""
    assert fault_of_lungs(blank) == "a lung is too small"
    assert fault_of_lungs(~blank) == "a lung is too large"
    small[20:70, 10:45], small[20:50, 60:75] = True, True
    assert fault_of_lungs(small) == "one lung is much larger than the other"
    flat = blank.copy()
    flat[40:60, 10:35] = flat[40:60, 60:85] = True
    assert fault_of_lungs(flat) == "a lung is too short"
    diagonal = blank.copy()
    for row in range(60):
        diagonal[20 + row, 2 + row // 2 : 10 + row // 2] = diagonal[20 + row, 60:75] = True
    assert fault_of_lungs(diagonal) == "a lung is ragged"
    assert fault_of_lungs(find_lungs(np.full((100, 100), 0.5))) == "a lung is too small"


def test_real_radiographs_take_nodules(data_folder):
    found = normals(("kermany", "nih"), 128, 10, 0, data_folder)
    assert set(found.table["source"]) == {"kermany", "nih"}
    assert found.table["mm_per_px"].between(1.2, 5).all()
    for image, lungs, mm in zip(found.images, found.lungs, found.table["mm_per_px"], strict=True):
        after, mask = insert_nodule(image, lungs, 15 / mm, 0.3, 0)
        assert mask.any()
        assert (after[mask] > image[mask]).mean() > 0.9
