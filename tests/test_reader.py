# SPDX-License-Identifier: Apache-2.0
"""The reader within MONAI's loaders, and on real files of several vendors."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import LoadImage, LoadImaged
from PIL import Image
from written_dicom import radiograph, written

from monai_cnnprimer.dicom.header import DicomRefused, read_header, receipt
from monai_cnnprimer.dicom.pixels import show
from monai_cnnprimer.dicom.reader import RadiographReader

ROWS, COLUMNS = np.mgrid[:40, :30]
VALUES = (ROWS * 6 + COLUMNS % 6).astype(np.uint8)
VALUES[0, 0], VALUES[0, 1] = 0, 255


def placed(path: Path, **attributes: object) -> Path:
    path.write_bytes(written(radiograph(VALUES, **attributes)))
    return path


def test_load_image_gives_rows_by_columns_and_the_receipt(tmp_path: Path) -> None:
    path = placed(tmp_path / "IM0001", PixelSpacing=[0.2, 0.3], ViewPosition="PA", PixelPaddingValue=7)

    image = LoadImage(reader=RadiographReader())(path)

    np.testing.assert_allclose(image.numpy(), np.where(VALUES == 7, 0, VALUES / 255), atol=1e-6)
    assert image.dtype == torch.float32
    assert (image.meta["pixel_spacing_mm"], image.meta["view"]) == ((0.2, 0.3), "PA")
    assert image.pixdim.tolist() == pytest.approx([0.2, 0.3])
    np.testing.assert_array_equal(image.meta["padding_mask"], VALUES == 7)


def test_channel_first_and_the_dictionary_loader_work(tmp_path: Path) -> None:
    path = placed(tmp_path / "IM0001")
    load = LoadImaged("image", reader=RadiographReader(), ensure_channel_first=True)

    assert load({"image": path})["image"].shape == (1, 40, 30)


def test_the_metadata_hold_no_patient_no_identifier_and_no_path(tmp_path: Path) -> None:
    path = placed(tmp_path / "Doe_Jane", StudyDate="20240101", PixelPaddingValue=7)
    load = LoadImage(reader=RadiographReader(), prune_meta_pattern="filename_or_obj")

    text = str(dict(load(path).meta))

    assert not [value for value in ("Doe", "4711", "2024", "1.2.8", "tmp", "IM0001") if value in text]


def test_a_refusal_comes_out_of_load_image_as_it_is_and_no_other_reader_is_tried(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague")
    lateral = placed(tmp_path / "IM0001.dcm", ViewPosition="LL")
    load = LoadImage(reader=RadiographReader(views=("PA", "AP")))

    with pytest.raises(DicomRefused, match="text or another kind of file") as refusal:
        load(tmp_path / "letter.txt")
    assert (refusal.value.reason, refusal.value.attribute) == ("text or another kind of file, not DICOM", "")
    with pytest.raises(DicomRefused, match=r"the view is LL, asked for: PA, AP \(ViewPosition\)"):
        load(lateral)
    with pytest.raises(DicomRefused, match="the file does not exist"):
        load(tmp_path / "missing.dcm")
    with pytest.raises(DicomRefused, match="several files for one radiograph"):
        load([lateral, lateral])


def test_a_data_loader_with_workers_reads_as_one_without(tmp_path: Path) -> None:
    paths = [{"image": placed(tmp_path / f"{n}", WindowCenter=100 + n, WindowWidth=50)} for n in range(4)]
    load = LoadImaged("image", reader=RadiographReader())
    batches = [
        torch.cat(list(DataLoader(Dataset(paths, load), batch_size=1, num_workers=workers, collate_fn=first)))
        for workers in (0, 2)
    ]

    assert torch.equal(*batches)


def first(cases: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return cases[0]["image"].as_tensor()


def test_members_of_an_archive_are_read_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    placed(tmp_path / "IM0")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(tmp_path / "IM0", "DICOM/IM0")
        archive.write(tmp_path / "IM0", "DICOM/IM1")
    content = bytearray((tmp_path / "export.zip").read_bytes())
    content[content.index(b"DICOM/IM1") + 1000] ^= 0xFF  # no longer what its checksum says
    (tmp_path / "export.zip").write_bytes(content)
    load = LoadImage(reader=RadiographReader())

    np.testing.assert_allclose(load(tmp_path / "export.zip" / "DICOM" / "IM0").numpy(), VALUES / 255, atol=1e-6)
    with pytest.raises(DicomRefused, match="the archive, or this member of it, is damaged"):
        load(tmp_path / "export.zip" / "DICOM" / "IM1")


def test_every_format_of_one_picture_gives_the_same_array(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "a.png")
    for suffix in ("nii.gz", "mha", "nrrd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VALUES), tmp_path / f"a.{suffix}")
    placed(tmp_path / "a")
    load = LoadImage(reader=RadiographReader())

    images = [load(path).numpy() for path in sorted(tmp_path.iterdir())]

    assert len(images) == 5
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], atol=1e-6)


# --- real files ------------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data")) / "dicom"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real DICOM files: set CNNPRIMER_DATA to their folder")

ACCEPTED = {
    "fuji_cr_pa_mono1_10bit": {"view": "PA", "polarity": "MONOCHROME1 inverted", "lut": "window LINEAR"},
    "konica_cr_mono1_jpeg": {"pixel_spacing_mm": (0.175, 0.175), "spacing_source": "imager", "view": "unknown"},
    "philips_cr_pa_mono1_j2k": {"pixel_spacing_mm": None, "quirks": ["spacing-impossible"], "orientation": "upright"},
    "rsna_cr_pa_jpeg": {"pixel_spacing_mm": (0.168, 0.168), "spacing_source": "pixel_spacing", "lut": "full range"},
    "rsna_cr_pa_jpeg_mono1": {"polarity": "MONOCHROME1 inverted"},
}
REFUSED = {
    "fujifilm_dx_dog_thorax": "an animal, by its species or processing",
    "modality_lut": r"another modality than projection radiography \(Modality\)",
    "ot_16bit_signed": r"another modality than projection radiography \(Modality\)",
    "voi_lut": r"another modality than projection radiography \(Modality\)",
    "secondary_capture_rle": r"a colour image, as secondary captures are, .* \(PhotometricInterpretation\)",
}


@needs_data
def test_every_real_file_is_accounted_for() -> None:
    assert {path.stem for path in DATA.glob("*.dcm")} == ACCEPTED.keys() | REFUSED.keys()


@needs_data
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_real_radiograph_is_read_with_bone_bright(name: str) -> None:
    image = LoadImage(reader=RadiographReader(views=("PA", "AP")))(DATA / f"{name}.dcm")

    assert {key: image.meta[key] for key in ACCEPTED[name]} == ACCEPTED[name]
    rows, columns = image.shape
    spine = image[rows // 3 : rows * 2 // 3, columns * 9 // 20 : columns * 11 // 20].median()
    lung = image[rows // 3 : rows * 2 // 3, columns // 5 : columns * 2 // 5].median()
    # The tag of the one was edited to say the opposite of what is stored; a reader shows what the tag says.
    assert (spine > lung) == (name != "rsna_cr_pa_jpeg_mono1")


@needs_data
@pytest.mark.parametrize("name", REFUSED)
def test_a_real_file_that_is_no_radiograph_is_refused_for_the_right_reason(name: str) -> None:
    with pytest.raises(DicomRefused, match=REFUSED[name]):
        LoadImage(reader=RadiographReader())(DATA / f"{name}.dcm")


@needs_data
def test_the_edited_tag_inverts_the_picture() -> None:
    load = LoadImage(reader=RadiographReader())

    plain, edited = (load(DATA / f"rsna_cr_pa_jpeg{suffix}.dcm").numpy() for suffix in ("", "_mono1"))

    np.testing.assert_allclose(edited, 1 - plain, atol=1e-6)


@needs_data
@pytest.mark.parametrize("name", ["modality_lut", "voi_lut", "ot_16bit_signed"])
def test_the_test_pattern_is_shown_alike_through_every_table(name: str) -> None:
    """The SMPTE pattern has squares of 30, 20, 10 and 0 % on the left, of 70, 80, 90 and 100 % on the right."""
    with (DATA / f"{name}.dcm").open("rb") as file:
        image = show(file, read_header(file)).image

    left, right = ([float(np.median(image[y : y + 10, x : x + 10])) for y in (172, 224, 276, 327)] for x in (124, 382))
    assert left == pytest.approx([0.3, 0.2, 0.1, 0.0], abs=0.005)
    assert right == pytest.approx([0.7, 0.8, 0.9, 1.0], abs=0.005)


@needs_data
def test_receipts_of_real_files_are_plain_values() -> None:
    for name in ACCEPTED:
        json.dumps(receipt(read_header(DATA / f"{name}.dcm")))
