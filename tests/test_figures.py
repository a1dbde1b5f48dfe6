# SPDX-License-Identifier: Apache-2.0
"""Figures: the same bytes for the same arrays, and no importance where there is none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monai_cnnprimer.figures.overlay import Tile, contact_sheet_png, overlay_png

RADIOGRAPH = np.linspace(0, 1, 60 * 80, dtype=np.float32).reshape(60, 80)
MAP = np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(png: bytes) -> int:
    """How many pixels are not grey."""
    return int((np.ptp(pixels(png), axis=2) > 20).sum())


def sheet(heat: np.ndarray, **masks: np.ndarray) -> bytes:
    return contact_sheet_png([Tile(RADIOGRAPH, heat, "case", masks)], "title")


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(RADIOGRAPH.shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def test_the_same_arrays_give_the_same_bytes_without_a_trace_of_the_maker():
    first, second = (overlay_png(RADIOGRAPH, {"layer4": MAP, "layer3": -MAP}, "case $1") for _ in range(2))
    assert first == second
    assert sheet(MAP) == sheet(MAP)
    assert not Image.open(io.BytesIO(first)).info.keys() - {"dpi"}


@pytest.mark.parametrize("nothing", [np.zeros_like(MAP), -np.abs(MAP)])
def test_a_map_without_positive_evidence_leaves_the_radiograph_grey(nothing):
    assert coloured(sheet(nothing)) == 0
    assert coloured(sheet(MAP)) > 1000


def test_a_map_that_shows_nothing_has_no_colour_bar():
    assert coloured(overlay_png(RADIOGRAPH, {"layer4": np.zeros_like(MAP), "layer3": -np.abs(MAP)}, "case")) == 0


def test_positive_evidence_is_scaled_by_the_largest_value_of_either_sign():
    heat = np.zeros_like(MAP)
    heat[10:20, 10:20] = 1
    strong = heat.copy()
    strong[40:50, 40:50] = -50
    assert coloured(sheet(heat)) > 20 * max(coloured(sheet(strong)), 1)


def test_only_the_size_of_a_map_relative_to_itself_shows():
    assert np.array_equal(pixels(sheet(MAP)), pixels(sheet(MAP * 4)))


def test_the_radiograph_keeps_its_aspect():
    square, tall = (pixels(overlay_png(RADIOGRAPH, {}, "case", aspect=aspect)).shape for aspect in (1.0, 2.0))
    assert square[1] == tall[1]
    assert tall[0] - square[0] == pytest.approx(3.2 * 60 / 80 * 110, abs=2)


def test_a_sheet_has_a_place_for_each_tile():
    tiles = [Tile(RADIOGRAPH, MAP, f"a/very/long/path/to/the/case/{'x' * 40}{i}") for i in range(5)]
    one, five = pixels(contact_sheet_png(tiles[:1], "t")), pixels(contact_sheet_png(tiles, "t"))
    assert five.shape[1] > 3.5 * one.shape[1]
    assert five.shape[0] > 1.7 * one.shape[0]


def test_regions_are_outlined_where_they_lie():
    """A box over the left half has its outline there only; one that reaches the edge is closed there."""
    bare = np.zeros_like(MAP)
    drawn = np.ptp(pixels(sheet(bare, lung=box(slice(20, 40), slice(10, 30)))), axis=2) > 40
    tile = drawn[: int(0.8 * len(drawn))]  # without the legend
    rows, columns = np.nonzero(tile)
    width = drawn.shape[1]
    assert columns.max() < width / 2
    assert 0.6 * (rows.max() - rows.min()) < columns.max() - columns.min() < 1.4 * (rows.max() - rows.min())
    inside = tile[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
    assert not inside.any()
    everything = np.ptp(pixels(sheet(bare, lung=box(slice(None), slice(None)))), axis=2) > 40
    assert everything[: int(0.8 * len(everything))].sum() > tile.sum()


@pytest.mark.parametrize("name", ["lung", "heart", "marker", "finding"])
def test_each_region_has_a_colour_and_a_name_in_the_legend(name):
    bare, region = np.zeros_like(MAP), {name: box(slice(20, 40), slice(10, 30))}
    assert coloured(sheet(bare, **region)) > 100
    beside = overlay_png(RADIOGRAPH, {"layer4": bare}, "case", masks=region)
    assert coloured(beside) > 200
    none = overlay_png(RADIOGRAPH, {"layer4": bare}, "case", masks={name: np.zeros_like(region[name])})
    assert 0 < coloured(none) < 200  # its line in the legend


def test_a_long_title_is_broken_into_lines_above_the_tiles():
    short, long = (
        pixels(contact_sheet_png([Tile(RADIOGRAPH, MAP, "case")], title)) for title in ("short", "UNFIT: maps do " * 8)
    )
    assert short.shape[1] == long.shape[1]
    assert long.shape[0] > short.shape[0] + 30
    assert (long[:, :8] == 255).all()  # nothing runs into the edge


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"mask 'lung' \(8, 8\) on an image of \(60, 80\)"):
        overlay_png(RADIOGRAPH, {}, "case", masks={"lung": np.ones((8, 8), dtype=bool)})
    with pytest.raises(ValueError, match=r"map \(8, 8\) on an image of \(60, 80\); align it first"):
        overlay_png(RADIOGRAPH, {"layer4": np.zeros((8, 8))}, "case")
    with pytest.raises(ValueError, match="at least one tile"):
        contact_sheet_png([], "title")
