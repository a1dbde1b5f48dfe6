# SPDX-License-Identifier: Apache-2.0
"""NIfTI files lie upright over each other, in millimetres, for nibabel, for ITK, and for the package's own reader."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.receptive_field import ReceptiveField
from monai_cnnprimer.handlers.maps import (
    AllMaps,
    StoredMaps,
    aligned,
    file_name,
    mm_per_cell,
    nifti,
    npz,
    read_all_maps,
)

RADIOGRAPH = np.random.default_rng(1).normal(size=(30, 20)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(nifti(RADIOGRAPH, (2.0, 1.5), "research use only"))
    return path


def test_itk_reads_columns_to_the_left_and_rows_to_the_feet_in_mm(file):
    """ITK's world runs to the patient's left, back and head; ITK-SNAP and 3D Slicer read through it."""
    image = SimpleITK.ReadImage(str(file))
    assert image.GetSize() == (20, 1, 30)
    assert image.GetSpacing() == pytest.approx((1.5, 1.0, 2.0))
    right_left, back, down = np.reshape(image.GetDirection(), (3, 3)).T
    assert right_left.tolist() == [1, 0, 0]
    assert down.tolist() == [0, 0, -1]
    assert abs(back[1]) == 1
    assert np.array_equal(SimpleITK.GetArrayFromImage(image)[:, 0], RADIOGRAPH)
    # Four pixels to the right on the screen and ten down: 6 mm to the left, 20 mm to the feet.
    first, other = (np.array(image.TransformIndexToPhysicalPoint(index)) for index in [(0, 0, 0), (4, 0, 10)])
    assert other - first == pytest.approx([6, 0, -20])


def test_nibabel_reads_the_same_by_both_of_its_forms(file):
    image = nib.load(file)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "I")
    assert np.allclose(image.get_sform(), image.get_qform())
    assert image.header.get_xyzt_units() == ("mm", "unknown")
    assert image.header["descrip"].item() == b"research use only"
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(image.dataobj)[:, 0].T, RADIOGRAPH)


def test_the_packages_own_reader_shows_it_as_it_was(file):
    shown, receipt = read_radiograph(file)
    low, high = RADIOGRAPH.min(), RADIOGRAPH.max()
    assert np.allclose(shown, (RADIOGRAPH - low) / (high - low), atol=1e-6)
    assert (receipt["orientation"], receipt["pixel_spacing_mm"]) == ("upright", (2.0, 1.5))


def test_where_the_spacing_is_not_known_no_millimetre_is_stated(tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(nifti(RADIOGRAPH, None, "mm unknown"))
    header = nib.load(path).header
    assert header.get_zooms() == (1, 1, 1)
    assert (header.get_xyzt_units()[0], int(header["xyzt_units"])) == ("unknown", 0)
    assert read_radiograph(path)[1]["pixel_spacing_mm"] is None


def test_the_same_map_gives_the_same_bytes_and_a_long_description_is_cut(tmp_path):
    first, second = (nifti(RADIOGRAPH, (2.0, 1.5), "layer " * 30) for _ in range(2))
    assert first == second
    assert first[4:8] == bytes(4)  # no time
    assert nib.Nifti1Image.from_bytes(gzip.decompress(first)).header["descrip"].item() == (b"layer " * 30)[:79]


def test_raw_maps_keep_their_sign_and_their_geometry(tmp_path):
    maps = {"a": torch.tensor([[[-1.0, 2.0]]]), "b": torch.zeros(1, 2, 2)}
    case = ExplainedCase("x", torch.zeros(1, 8, 8), maps, torch.zeros(2), network_spacing_mm=(2.0, 1.5))
    (tmp_path / "x.npz").write_bytes(npz(case, {"a": ReceptiveField(427, 32, 0), "b": None}))
    with np.load(tmp_path / "x.npz") as arrays:
        assert set(arrays) == {"a", "a.receptive_field", "a.mm_per_cell", "b"}
        assert arrays["a"].tolist() == [[-1.0, 2.0]]
        assert arrays["a"].dtype == np.float32
        assert arrays["a.receptive_field"].tolist() == [427, 32, 0]
        assert arrays["a.mm_per_cell"].tolist() == [64.0, 48.0]


def test_millimetres_of_a_cell_need_both_geometry_and_spacing():
    case = ExplainedCase("x", torch.zeros(1, 8, 8), {}, torch.zeros(2))
    assert mm_per_cell(case, ReceptiveField(427, 32, 0)) is None
    assert mm_per_cell(ExplainedCase("x", case.image, {}, case.logits, network_spacing_mm=(2.0, 1.5)), None) is None


@pytest.mark.parametrize("name", ["../../out", "a/b", ".hidden", "ünïcode", "x" * 200])
def test_file_names_stay_in_their_folder_and_apart(name):
    assert "/" not in file_name(name)
    assert not file_name(name).startswith(".")
    assert len(file_name(name)) < 120
    assert file_name(name) != file_name(f"{name}!")


def kept(maps: torch.Tensor, ids: list[str], explained: list[int | None] | None, layer: str = "layer4") -> AllMaps:
    everything = AllMaps([layer])
    everything.add(ids, {layer: maps}, (64, 96), explained)
    return everything


def test_the_maps_of_all_cases_come_back_by_case_small_and_in_the_same_bytes(tmp_path):
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(300, 1, 5, 5, generator=random) * 1e-6  # below what float16 holds
    ids = [f"{number:016x}" for number in range(300)]
    fields = {"layer4": ReceptiveField(427, 32, 0)}
    everything = kept(maps, ids, [number % 2 for number in range(300)])
    everything.add(ids[:1], {"layer4": maps[1:2]}, (64, 96), [0])  # held already
    content = everything.npz(fields)
    shuffled = kept(maps.flip(0), ids[::-1], [(299 - number) % 2 for number in range(300)])
    assert shuffled.npz(fields) == content
    assert len(content) < 300 * 150
    path = tmp_path / "gradcam_maps.npz"
    path.write_bytes(content)
    stored = read_all_maps(path)
    assert (stored.layer, stored.image_size, stored.field) == ("layer4", (64, 96), fields["layer4"])
    assert list(stored.maps) == sorted(ids)
    for name, heat in zip(ids[:5], maps[:5, 0].numpy(), strict=True):
        assert stored.maps[name] == pytest.approx(heat, abs=1e-3 * float(abs(heat).max()))
    assert (stored.explained[ids[0]], stored.explained[ids[1]]) == (0, 1)
    with pytest.raises(ValueError, match=r"no maps of layer 'layer1'; choose among layer4"):
        read_all_maps(path, "layer1")


def test_fine_maps_are_averaged_and_still_lie_in_their_place(tmp_path):
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    field = ReceptiveField(size=11, jump=4, start=1)
    (tmp_path / "x.npz").write_bytes(kept(ramp, ["x"], None).npz({"layer4": field}))
    stored = read_all_maps(tmp_path / "x.npz")
    assert stored.maps["x"].shape == (32, 32)
    assert stored.explained["x"] is None
    full, small = (aligned(heat, (256, 256), of) for heat, of in ((ramp[0], field), (tensor(stored), stored.field)))
    assert small[10, 8:240] == pytest.approx(full[10, 8:240], abs=0.05)


def tensor(stored: StoredMaps) -> torch.Tensor:
    return torch.from_numpy(stored.maps["x"])[None]


def test_cases_of_another_size_are_counted_and_a_map_of_zeros_stays_one(tmp_path):
    everything = kept(torch.zeros(2, 1, 5, 5), ["a", "b"], None)
    everything.add(["c"], {"layer4": torch.ones(1, 1, 7, 7)}, (64, 96), None)
    assert (len(everything), everything.left_out) == (2, 1)
    (tmp_path / "x.npz").write_bytes(everything.npz({"layer4": None}))
    stored = read_all_maps(tmp_path / "x.npz")
    assert not stored.maps["a"].any()
    assert stored.field is None
    assert aligned(torch.ones(1, 5, 5), (64, 96), None).shape == (64, 96)


def test_a_file_without_maps_is_told(tmp_path):
    (tmp_path / "x.npz").write_bytes(AllMaps(["layer4"]).npz({}))
    with pytest.raises(ValueError, match=r"x\.npz holds no maps"):
        read_all_maps(tmp_path / "x.npz")
