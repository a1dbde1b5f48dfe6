# SPDX-License-Identifier: Apache-2.0
"""Pictures of nodules: the field lies around the nodule, the bytes are the same again, what cannot be drawn says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monai_cnnprimer.figures.nodules import Insertion, insertions_png, nodule_grid_png


def shown(row: int = 20, column: int = 40) -> Insertion:
    before = np.random.default_rng(0).uniform(0.2, 0.4, (64, 64))
    mask = np.zeros((64, 64), bool)
    mask[row : row + 4, column : column + 4] = True
    return Insertion(before, np.where(mask, before + 0.3, before), mask, 2.0, "8 mm = 4 px, 0.30 neper")


def test_a_row_for_each_nodule():
    one, two = (insertions_png([shown()] * count, "Nodules") for count in (1, 2))
    first, second = (Image.open(io.BytesIO(content)) for content in (one, two))
    assert first.width == second.width
    assert second.height > first.height + 200


def test_at_the_border_the_field_stays_inside_the_image():
    assert insertions_png([shown(0, 60)], "Nodules", field_mm=60).startswith(b"\x89PNG")
    assert insertions_png([shown()], "Nodules", field_mm=1000).startswith(b"\x89PNG")


def test_a_grid_may_have_texts_in_place_of_nodules():
    grid = [[shown(), "40 mm fits nowhere"]]
    assert nodule_grid_png(grid, "By diameter") == nodule_grid_png(grid, "By diameter")
    with pytest.raises(ValueError, match="must have one length"):
        nodule_grid_png([[shown()], [shown(), shown()]], "By diameter")


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="no nodule to show"):
        insertions_png([], "Nodules")
    with pytest.raises(ValueError, match="no nodule to show"):
        nodule_grid_png([["fits nowhere"]], "By diameter")
    with pytest.raises(ValueError, match="a mask without a pixel"):
        insertions_png([shown()._replace(mask=np.zeros((64, 64), bool))], "Nodules")
