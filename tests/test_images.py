# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, TIFF, NIfTI, MHA and NRRD: each written by its own library from a known picture."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from written_dicom import radiograph, shown, written

from monai_cnnprimer.dicom.header import DicomRefused
from monai_cnnprimer.dicom.images import read_image

ROWS, COLUMNS = np.mgrid[:30, :20]
PICTURE = (ROWS * 8 + COLUMNS % 8).astype(np.uint8)  # no symmetry: every flip and turn shows
PICTURE[0, 0], PICTURE[0, 1] = 0, 255


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_eight_and_sixteen_bit_grey_are_divided_by_their_full_range(tmp_path: Path, suffix: str) -> None:
    wide = PICTURE.astype(np.uint16) * 200

    eight, receipt = read_image(saved(tmp_path / f"a.{suffix}", PICTURE))
    sixteen, _ = read_image(saved(tmp_path / f"b.{suffix}", wide))

    np.testing.assert_allclose(eight, PICTURE / 255, atol=1e-6)
    np.testing.assert_allclose(sixteen, wide / 65535, atol=1e-6)
    assert (eight.dtype, sixteen.dtype) == (np.float32, np.float32)
    assert (receipt["polarity"], receipt["lut"], receipt["quirks"]) == ("as stored", "full range", [])
    assert (receipt["pixel_spacing_mm"], receipt["spacing_source"], receipt["view"]) == (None, "unknown", "unknown")


def test_the_receipt_has_the_keys_of_a_dicom_receipt(tmp_path: Path) -> None:
    _, receipt = read_image(saved(tmp_path / "a.png", PICTURE))
    _, of_dicom = shown(written(radiograph(PICTURE)))

    assert receipt.keys() - of_dicom.keys() == {"padding_mask"}
    assert of_dicom.keys() <= receipt.keys()


def test_a_jpeg_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", PICTURE, quality=100)

    image, receipt = read_image(path.rename(tmp_path / "no_suffix"))

    np.testing.assert_allclose(image, PICTURE / 255, atol=0.02)
    assert receipt["transfer_syntax"] == "JPEG"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_grey_in_colour_modes_is_grey(tmp_path: Path, mode: str) -> None:
    pixels = np.where(PICTURE > 100, 255, 0).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")

    image, receipt = read_image(tmp_path / "a.png")

    np.testing.assert_array_equal(image, pixels / 255)
    assert receipt["quirks"] == (["alpha-dropped"] if mode in ("RGBA", "LA") else [])


def test_real_colour_becomes_luminance_and_is_recorded(tmp_path: Path) -> None:
    colours = np.stack([PICTURE, PICTURE[::-1], PICTURE // 2], axis=-1)

    image, receipt = read_image(saved(tmp_path / "a.png", colours))

    expected = (0.299 * colours[..., 0] + 0.587 * colours[..., 1] + 0.114 * colours[..., 2]) / 255
    np.testing.assert_allclose(image, expected, atol=1e-6)
    assert receipt["quirks"] == ["colour"]


def test_floats_of_a_tiff_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    image, receipt = read_image(saved(tmp_path / "a.tif", PICTURE.astype(np.float32) * 3 - 100))

    np.testing.assert_allclose(image, PICTURE / 255, atol=1e-6)
    assert receipt["lut"] == "own range"


def test_an_image_in_an_archive_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PICTURE)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(path, "train/a.png")

    image, _ = read_image(tmp_path / "images.zip" / "train" / "a.png")

    np.testing.assert_allclose(image, PICTURE / 255, atol=1e-6)


# Where the first and second index of an array run to, as the directions of a NIfTI affine: R, A, S are positive.
AFFINES = {
    "left and back, as ITK writes 2-D images": (np.diag([-0.2, -0.3, 1, 1]), lambda p: p.T[:, :, None]),
    "right and front, the canonical order": (np.diag([0.2, 0.3, 1, 1]), lambda p: p.T[::-1, ::-1, None]),
    "right and up, in a coronal plane": (np.diag([0.2, 1, 0.3, 1]), lambda p: p.T[::-1, None, ::-1]),
    "down and left": (
        np.array([[0, -0.2, 0, 0], [0, 0, 1, 0], [-0.3, 0, 0, 0], [0, 0, 0, 1]]),
        lambda p: p[:, :, None],
    ),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_nifti_image_is_laid_out_by_its_affine(tmp_path: Path, name: str, dtype: Any) -> None:
    affine, arrange = AFFINES[name]
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(arrange(PICTURE).astype(dtype), affine), path)

    image, receipt = read_image(path)

    np.testing.assert_allclose(image, PICTURE / 255, atol=1e-6)
    assert receipt["pixel_spacing_mm"] == pytest.approx((0.3, 0.2))
    assert receipt["spacing_source"] == "file"
    assert receipt["orientation"] == ("by affine" if abs(affine[1, 1]) == 0.3 else "upright")
    assert receipt["lut"] == ("full range" if dtype == np.uint8 else "own range")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_simpleitk_writes_comes_back_as_its_array(tmp_path: Path, suffix: str, dimensions: int) -> None:
    image = SimpleITK.GetImageFromArray(PICTURE if dimensions == 2 else PICTURE[None])
    image.SetSpacing([0.2, 0.3, 1.0][:dimensions])
    SimpleITK.WriteImage(image, tmp_path / f"a.{suffix}")

    found, receipt = read_image(tmp_path / f"a.{suffix}")

    np.testing.assert_allclose(found, PICTURE / 255, atol=1e-6)
    assert receipt["pixel_spacing_mm"] == pytest.approx((0.3, 0.2))


def test_a_spacing_that_nobody_stated_is_unknown(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PICTURE), tmp_path / "a.mha")
    nibabel.save(nibabel.Nifti1Image(PICTURE.T[..., None], None), tmp_path / "a.nii")

    _, of_itk = read_image(tmp_path / "a.mha")
    image, of_nifti = read_image(tmp_path / "a.nii")

    assert (of_itk["pixel_spacing_mm"], of_itk["quirks"]) == (None, ["spacing-default"])
    assert (of_nifti["pixel_spacing_mm"], of_nifti["orientation"]) == (None, "unknown")
    np.testing.assert_allclose(image, PICTURE / 255, atol=1e-6)


def test_missing_values_are_padding(tmp_path: Path) -> None:
    values = PICTURE.T[..., None].astype(np.float32)
    values[3, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.2, -0.3, 1, 1])), tmp_path / "a.nii")

    image, receipt = read_image(tmp_path / "a.nii")

    assert np.argwhere(receipt["padding_mask"]).tolist() == [[5, 3]]
    assert image[5, 3] == 0
    assert receipt["quirks"] == ["nan-padding"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.png", "a damaged PNG file"),
        ("cut.jpg", "a damaged JPEG file"),
        ("cut.tif", "a damaged TIFF file"),
        ("cut.nii", "a damaged NIfTI file"),
        ("cut.nii.gz", "a damaged NIfTI file"),
        ("cut.mha", "a damaged MetaImage file"),
        ("cut.nrrd", "a damaged NRRD file"),
    ],
)
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, name: str, message: str) -> None:
    whole = tmp_path / name.replace("cut", "whole")
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    if name.endswith(("png", "jpg", "tif")):
        saved(whole, noise)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])

    with pytest.raises(DicomRefused, match=message):
        read_image(tmp_path / name)


def test_volumes_series_colours_and_infinities_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "volume.nii")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 4, 3), np.uint8), isVector=True), tmp_path / "c.mha")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 1), np.inf), np.eye(4)), tmp_path / "inf.nii")
    pages = [Image.fromarray(PICTURE), Image.fromarray(PICTURE)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])

    for name, message in {
        "volume.nii": "a volume, not a 2-D image",
        "c.mha": "pixels that are colours or no numbers",
        "inf.nii": "pixels that are not finite",
        "pages.tif": "an image of several frames",
    }.items():
        with pytest.raises(DicomRefused, match=message):
            read_image(tmp_path / name)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_cnnprimer.dicom.images.MAX_BYTES", 10_000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(20_000)))

    with pytest.raises(DicomRefused, match="larger than any radiograph"):
        read_image(tmp_path / "a.nii.gz")


def test_itk_formats_are_not_read_inside_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.mha", "ObjectType = Image\n")

    with pytest.raises(DicomRefused, match="not read inside an archive"):
        read_image(tmp_path / "a.zip" / "a.mha")
