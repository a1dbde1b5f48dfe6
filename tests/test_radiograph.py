# SPDX-License-Identifier: Apache-2.0
"""Reading one file of any format: which are read here, which elsewhere, and at which size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless
from written_dicom import radiograph, written

from monai_cnnprimer.dicom import isolation
from monai_cnnprimer.dicom.header import is_ordinary
from monai_cnnprimer.dicom.radiograph import read_here, read_radiograph

VALUES = np.add.outer(np.arange(96), np.arange(140)).astype(np.uint8)
STREAM = imagecodecs.jpeg2k_encode(VALUES, codecformat="j2k", reversible=True)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were called in another process."""
    called: list[str] = []
    call = isolation.call

    def noted(function: str, arguments: dict[str, object]) -> object:
        called.append(function)
        return call(function, arguments)

    monkeypatch.setattr(isolation, "call", noted)
    return called


def plain(path: Path) -> None:
    path.write_bytes(written(radiograph(VALUES)))


def compressed(path: Path) -> None:
    path.write_bytes(written(radiograph(VALUES), JPEG2000Lossless, STREAM))


def deflated(path: Path) -> None:
    path.write_bytes(written(radiograph(VALUES), DeflatedExplicitVRLittleEndian))


def picture(path: Path) -> None:
    Image.fromarray(VALUES).save(path, "PNG")


@pytest.mark.parametrize(("write", "here"), [(plain, True), (compressed, False), (deflated, False), (picture, False)])
def test_only_what_needs_no_decoder_is_read_here(
    tmp_path: Path, elsewhere: list[str], write: Callable[[Path], None], here: bool
) -> None:
    write(tmp_path / "IM1")

    image, receipt = read_radiograph(tmp_path / "IM1")

    np.testing.assert_allclose(image, VALUES / 255, atol=1e-6)
    assert (elsewhere == []) == here
    stated, (there,) = read_here(str(tmp_path / "IM1"), None)
    np.testing.assert_array_equal(image, there)
    assert receipt == stated | {"padding_mask": None}


def test_a_header_out_of_the_ordinary_is_read_elsewhere(tmp_path: Path) -> None:
    file = written(radiograph(VALUES))
    pixels = file.index(b"\xe0\x7f\x10\0OW")
    odd = {
        "ordinary": file,
        "long": file[:pixels]
        + b"\x29\0\x10\x10OB\0\0"
        + (1 << 17).to_bytes(4, "little")
        + bytes(1 << 17)
        + file[pixels:],
        "of no stated length": file[: pixels + 8] + b"\xff" * 4 + file[pixels + 12 :],
        "without a meta header": file[144 + int.from_bytes(file[140:144], "little") :],
        "cut off": file[: pixels - 5],
        "empty": b"",
    }
    found = {}
    for name, content in odd.items():
        (tmp_path / "IM1").write_bytes(content)
        with (tmp_path / "IM1").open("rb") as opened:
            found[name] = is_ordinary(opened)
            assert opened.tell() == 0

    assert found == {name: name == "ordinary" for name in odd}


def test_a_reduced_image_states_its_own_spacing(tmp_path: Path) -> None:
    (tmp_path / "IM1").write_bytes(written(radiograph(VALUES, PixelSpacing=[0.1, 0.2]), JPEG2000Lossless, STREAM))

    image, receipt = read_radiograph(tmp_path / "IM1", reduce_to=48)
    whole, stated = read_radiograph(tmp_path / "IM1")

    assert (image.shape, receipt["pixel_spacing_mm"]) == ((48, 70), pytest.approx((0.2, 0.4)))
    assert (whole.shape, stated["pixel_spacing_mm"]) == ((96, 140), (0.1, 0.2))
    assert receipt["quirks"] == ["reduced-by-2"]
