# SPDX-License-Identifier: Apache-2.0
"""Figures of the gate: the same bytes for the same arrays, a colour for each verdict, nothing where nothing is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monai_cnnprimer.figures.gate import Moved, Strip, effects_png, power_png, strips_png

GREY = np.full((40, 40), 0.5)
NONE = (None, None, None)


def count(png: bytes, colour: str) -> int:
    """How many pixels have a colour."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels.astype(int) - wanted).max(axis=2) < 6).sum())


def line(verdict: str, value: float = 0.4) -> Moved:
    return Moved("tube", (value, value - 0.1, value + 0.1), (0.1, 0.0, 0.2), 0.25, verdict, "n 40")


def test_a_verdict_has_its_colour():
    for verdict, colour in {"fail": "#D55E00", "pass": "#009E73", "undecided": "#E69F00"}.items():
        png = effects_png([line(verdict)], "title", "SD")
        assert count(png, colour) > 40
        assert png == effects_png([line(verdict)], "title", "SD")
    assert count(effects_png([line("pass")], "title", "SD"), "#D55E00") == 0
    assert effects_png([Moved("flip", (0.1, None, None), NONE, None, "not gated", "")], "title", "SD")


def test_what_changed_is_outlined_and_a_global_change_is_not():
    where = np.zeros(GREY.shape, dtype=bool)
    where[10:20, 10:20] = True
    local = strips_png([Strip("case", [(GREY, "before", None), (GREY, "after", where)])], "title")
    everywhere = strips_png([Strip("case", [(GREY, "before", None), (GREY, "after", ~(where & ~where))])], "title")
    assert count(local, "#4cc9f0") > 15
    assert count(everywhere, "#4cc9f0") == 0


def test_images_of_different_shapes_stand_beside_each_other_and_power_is_drawn():
    assert strips_png([Strip("case", [(GREY, "before", None), (GREY[:, :20], "after", None)])] * 3, "title")
    panels = {"marker": {"faint": [("clean", (0.0, 0.0, 0.3)), ("0.8", (1.0, 0.7, 1.0))]}}
    png = power_png(panels, "title")
    assert count(png, "#0072B2") > 40
    assert png == power_png(panels, "title")


@pytest.mark.parametrize(("draw", "told"), [(strips_png, "no cases"), (power_png, "nothing was planted")])
def test_nothing_to_draw_is_told(draw, told):
    with pytest.raises(ValueError, match=told):
        draw({}, "title")
    with pytest.raises(ValueError, match="no interventions"):
        effects_png([], "title", "SD")
