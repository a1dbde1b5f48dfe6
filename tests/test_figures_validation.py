# SPDX-License-Identifier: Apache-2.0
"""Figures of the report: SVG in the page's colours, the same bytes each time, texts kept and escaped; gallery tiles."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from monai_cnnprimer.figures.validation import (
    Curve,
    Estimate,
    Reliability,
    decision_svg,
    forest_svg,
    precision_recall_svg,
    reliability_svg,
    roc_svg,
)
from monai_cnnprimer.figures.validation_gallery import MOST_PIXELS, pair_webp

X = np.linspace(0, 1, 50)
CURVES = {"aspen": Curve(X, X**0.5, (0.25, 0.5)), "birch": None, "a <b> & c": Curve(X, X)}
BINS = Reliability(X[::10], X[::10], X[::10] - 0.1, X[::10] + 0.1)
DRAWN = {
    "forest": lambda: forest_svg({"aspen": Estimate(0.5, 0.4, 0.6), "birch": Estimate(None, None, None)}, "AUROC", 0.5),
    "roc": lambda: roc_svg(CURVES),
    "pr": lambda: precision_recall_svg(CURVES, {"aspen": 0.3, "a <b> & c": 0.2}, "PR"),
    "reliability": lambda: reliability_svg({"aspen": BINS, "birch": None}),
    "decision": lambda: decision_svg(CURVES, {"aspen": Curve(X, -X), "a <b> & c": Curve(X, -X)}, "Decisions"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
def test_figure_is_the_same_twice_well_formed_and_without_colours_of_its_own(draw):
    svg = draw()
    assert svg == draw()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    styles = " ".join(element.get("style", "") for element in root.iter())
    assert not re.search(r"#[0-9a-f]{6}", styles)
    assert "var(--text)" in styles
    assert "Research use only, not for clinical use" in "".join(root.itertext())


def test_ids_of_two_figures_are_not_the_same():
    ids = [re.findall(r'\bid="([^"]+)"', DRAWN[name]()) for name in ("roc", "pr")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_every_reference_inside_a_figure_is_met():
    svg = DRAWN["roc"]()
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_names_are_escaped_and_a_site_without_a_curve_is_left_out():
    svg = DRAWN["roc"]()
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert "a <b> & c" in texts
    assert "birch" not in texts
    assert "<b>" not in svg


def test_others_keep_their_colour_where_a_site_has_no_curve():
    assert "var(--site-3)" in DRAWN["roc"]()
    assert "var(--site-2)" not in DRAWN["roc"]()


def test_point_of_the_roc_lies_where_the_threshold_is():
    svg = roc_svg({"a": Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), (0.2, 0.7))})
    left, top, side = 0.62 * 72, 0.42 * 72, 3.1 * 72
    points = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*var\(--site-1\)', svg)
    expected = (left + 0.2 * side, top + 0.3 * side)
    assert any(np.allclose([float(x), float(y)], expected, atol=0.1) for x, y in points)


def test_long_curves_cost_no_more_than_the_screen_shows():
    x = np.linspace(0, 1, 100_000)
    rough = Curve(x, np.random.default_rng(0).random(x.size))
    assert len(roc_svg({"a": rough})) < 60_000


def test_pair_shows_the_image_and_the_image_under_its_map():
    image = np.full((40, 30), 0.5)
    image[0, 0], image[-1, -1] = 0.0, 1.0
    heat = np.zeros((40, 30))
    heat[20:30, 10:20] = 2.0
    pair = np.asarray(Image.open(io.BytesIO(pair_webp(image, heat))).convert("RGB"), dtype=int)
    assert pair.shape == (40, 64, 3)
    left, right = pair[:, :30], pair[:, 34:]
    assert np.ptp(left[5, 5]) <= 4
    assert right[25, 15, 0] - right[25, 15, 2] > 60
    assert np.abs(left[8, 5] - right[8, 5]).max() <= 12


def test_large_images_are_made_smaller_and_maps_of_another_shape_refused():
    large = np.tile(np.linspace(0, 1, 600), (500, 1))
    assert Image.open(io.BytesIO(pair_webp(large, large))).height == round(500 * MOST_PIXELS / 600)
    with pytest.raises(ValueError, match="align it first"):
        pair_webp(large, large.T)
