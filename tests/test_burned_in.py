# SPDX-License-Identifier: Apache-2.0
"""Text drawn into a radiograph is found; lead letters, edges, tubes and clean images are not taken for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from written_dicom import radiograph, written

from monai_cnnprimer.dicom.burned_in import text_rows
from monai_cnnprimer.handlers.burned_in import BurnedInHandler
from monai_cnnprimer.phantom import SITES, render

Picture = NDArray[np.float32]
NAME = "DOE^JANE 1937-05-19"


@pytest.fixture(scope="module")
def phantom() -> Picture:
    return render(3, 512, marker="R").image


def drawn(picture: Picture, text: str, place: tuple[int, int], size: int, fill: int = 255) -> Picture:
    page = Image.fromarray((picture * 255).astype(np.uint8))
    ImageDraw.Draw(page).text(place, text, fill=fill, font_size=size)
    return np.asarray(page, np.float32) / np.float32(255)


@pytest.mark.parametrize("size", [14, 20, 28])
@pytest.mark.parametrize("place", [(6, 4), (200, 8), (20, 470)])
def test_a_name_is_found_where_it_stands(phantom: Picture, place: tuple[int, int], size: int) -> None:
    rows = text_rows(drawn(phantom, NAME, place, size))

    assert sum(row.characters for row in rows) >= 6
    for row in rows:
        assert place[0] - 2 <= row.left < row.right <= place[0] + size * len(NAME)
        assert place[1] <= row.top < row.bottom <= place[1] + 1.5 * size


def test_it_is_found_dark_on_bright_too(phantom: Picture) -> None:
    assert text_rows(1 - drawn(phantom, NAME, (6, 4), 20))


def test_two_lines_are_two_rows() -> None:
    page = drawn(drawn(np.zeros((120, 300), np.float32), NAME, (10, 10), 20), "24-MAR-2019", (10, 70), 20)

    first, second = text_rows(page)

    assert first.bottom < 40 < 60 < second.top


@pytest.mark.parametrize("text", ["R", "L", "AP", "R JD"])
def test_a_side_marker_is_no_row(phantom: Picture, text: str) -> None:
    assert text_rows(drawn(phantom, text, (30, 30), 28)) == []


@pytest.mark.parametrize("number", range(6))
def test_clean_phantoms_of_every_vendor_raise_no_alarm(number: int) -> None:
    marker = (None, "R", "L", "PA", "AP", "R")[number]

    assert text_rows(render(number, 384, SITES[number % len(SITES)], marker=marker).image) == []


def test_edges_tubes_and_screws_are_no_text() -> None:
    page = Image.new("L", (400, 400), 90)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, 400, 40), fill=0)  # a collimator
    draw.rectangle((0, 0, 30, 400), fill=0)
    draw.line((60, 60, 300, 390), fill=255, width=3)  # a catheter
    for place in range(70, 380, 40):  # a ladder of electrodes, not on one line
        draw.ellipse((place, place, place + 12, place + 12), outline=255, width=2)
    for row in range(5):  # ribs
        draw.arc((100, 100 + 50 * row, 380, 220 + 50 * row), 200, 340, fill=160, width=9)

    assert text_rows(np.asarray(page, np.float32) / np.float32(255)) == []


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (64, 64)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_of_one_value_has_no_text(shape: tuple[int, int], value: float) -> None:
    assert text_rows(np.full(shape, value, np.float32)) == []


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_text(seed: int) -> None:
    assert text_rows(np.random.default_rng(seed).random((600, 600), np.float32)) == []


def test_real_normals_raise_no_alarm(data_folder: Path) -> None:
    files = sorted((data_folder / "kermany" / "test" / "NORMAL").iterdir())[:40]
    pictures = [np.asarray(Image.open(file).convert("L"), np.float32) / np.float32(255) for file in files]

    assert [file.name for file, picture in zip(files, pictures, strict=True) if text_rows(picture)] == []


def test_real_images_with_text_are_found(data_folder: Path) -> None:
    """PORTABLE, seen by eye."""
    for name in ("00000415_001", "00004893_070", "00029118_000"):
        picture = np.asarray(Image.open(data_folder / "nih" / "hires512" / f"{name}.jpg").convert("L"), np.float32)
        (row,) = text_rows(picture / np.float32(255))
        assert row.characters == 8


def test_the_handler_writes_a_table_and_a_note(tmp_path: Path) -> None:
    clean = np.full((200, 400), 0.3, np.float32)
    pictures = {"a": drawn(clean, NAME, (10, 10), 24), "b": clean}
    for name, picture in pictures.items():
        cells = (picture * 255).astype(np.uint8)
        stated = {"BurnedInAnnotation": "YES" if name == "b" else "NO", "WindowCenter": 128, "WindowWidth": 256}
        (tmp_path / name).write_bytes(written(radiograph(cells, **stated)))
    (tmp_path / "c").write_bytes(b"no DICOM")
    cases = [{"case_id": name, "image": str(tmp_path / name)} for name in "cab"]
    run = SimpleNamespace(path=tmp_path, notes=[], manifest=SimpleNamespace(cases=lambda: cases))
    engine = Engine(lambda engine, batch: None)

    BurnedInHandler(run).attach(engine)  # type: ignore[arg-type]
    engine.run([0], max_epochs=1)

    table = pd.read_csv(tmp_path / "burned_in.csv", keep_default_na=False).set_index("case_id")
    assert list(table.index) == ["a", "b"]
    assert table["declared"].to_dict() == {"a": "NO", "b": "YES"}
    assert table["text_rows"].to_dict() == {"a": 1, "b": 0}
    assert 12 <= table.loc["a", "largest_px"] <= 24
    assert run.notes == [
        "1 of 2 images seem to have text in their pixels, 1 declare it (burned_in.csv): look at them before figures or "
        "images leave the site"
    ]


def test_the_overlay_adds_the_handler_to_a_bundle() -> None:
    root = Path(__file__).parents[1]
    bundle = root / "bundles" / "chest_xray_resnet50" / "configs" / "inference.yaml"

    read = ConfigParser.load_config_files([str(bundle), str(root / "configs" / "burned_in.yaml")])

    assert read["handlers"][-1]["_target_"] == f"{BurnedInHandler.__module__}.BurnedInHandler"
