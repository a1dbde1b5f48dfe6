# SPDX-License-Identifier: Apache-2.0
"""Scales are those of the geometry, and the curve is that of the network asked: one that sees, one that is blind."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from monai_cnnprimer.__main__ import app
from monai_cnnprimer.figures.preflight import detection_png
from monai_cnnprimer.networks import fpn_classifier, resnet50_classifier, unet_classifier
from monai_cnnprimer.validate.findings.normals import normals
from monai_cnnprimer.validate.preflight.detection import detection_curve, verdict_of
from monai_cnnprimer.validate.preflight.scales import (
    head_layers,
    layer_scales,
    spacing_of_input,
    spacings_of_export,
)

NORMALS = normals(("phantom",), size=96, count=24)


UNCHANGED = {image.tobytes() for image in NORMALS.images}


def brightness(images):
    """A network that sees everything: what is not one of the normals, and how bright it is."""
    return np.array([0.0 if image.tobytes() in UNCHANGED else 1 + float(image.mean()) for image in images])


def blind(images):
    return np.zeros(len(images))


def contrary(images):
    return -brightness(images)


def curve(network, sizes=(6.0,), contrasts=(0.5,), mm_per_px=3.0):
    return detection_curve(network, NORMALS, sizes, contrasts, mm_per_px, image_size=96, resamples=200)


@pytest.mark.parametrize(
    ("network", "verdict"),
    [(brightness, "seen"), (blind, "not seen"), (contrary, "not seen")],
    ids=["sees", "blind", "contrary"],
)
def test_the_verdict_is_the_networks(network, verdict):
    [found] = curve(network)
    assert found.verdict == verdict
    assert found.n == 24
    assert found.px == 2.0


def test_a_blind_network_scores_chance_and_does_not_change():
    [found] = curve(blind)
    assert (found.auroc, found.change) == (0.5, 0.0)


def test_the_change_is_the_mean_difference():
    [found] = curve(lambda images: brightness(images) * 3)
    assert found.change == pytest.approx(3 * curve(brightness)[0].change)
    assert found.change_low <= found.change <= found.change_high


def test_a_nodule_under_a_pixel_is_not_inserted():
    [found] = curve(brightness, sizes=(2.9,))
    assert (found.verdict, found.n, found.auroc) == ("under a pixel", 0, None)


def test_a_nodule_larger_than_the_lungs_leaves_too_few():
    [found] = curve(brightness, sizes=(400.0,))
    assert found.verdict == "too few"
    assert found.auroc is None


def test_physical_contrast_grows_with_size():
    small, large = curve(brightness, sizes=(5.0, 20.0), contrasts=("physical",))
    assert 0 < small.nepers < large.nepers


def test_the_same_seed_gives_the_same_curve():
    assert curve(brightness) == curve(brightness)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.76, 0.9), "seen"), ((0.7, 0.9), "in between"), ((0.3, 0.59), "not seen"), ((None, None), "too few")],
)
def test_verdict_of_an_interval(interval, word):
    assert verdict_of(*interval) == word


@pytest.mark.parametrize("sizes", [(), (0.0,), (-1.0,)])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="sizes above 0"):
        curve(blind, sizes=sizes)


def test_the_head_reads_the_dense_maps():
    assert head_layers(resnet50_classifier()) == ["layer4"]
    assert head_layers(fpn_classifier()) == ["dense.p2", "dense.p3", "dense.p4", "dense.p5"]
    assert head_layers(unet_classifier()) == ["dense.full"]
    with pytest.raises(ValueError, match="--layer"):
        head_layers(torch.nn.Conv2d(1, 1, 1))


def test_scales_of_a_plain_network_are_its_strides():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1))
    torch.manual_seed(0)
    first, second = layer_scales(network, ["0", "1"], torch.rand(2, 1, 32, 32), mm_per_px=0.5)
    assert (first.stride_px, first.stride_mm, first.theoretical_mm) == (2, 1.0, 1.5)
    assert (second.stride_px, second.stride_mm, second.theoretical_mm) == (4, 2.0, 3.5)
    assert not second.clipped
    assert 0 < second.erf50_mm < second.erf95_mm <= second.theoretical_mm
    with pytest.raises(ValueError, match="spacing"):
        layer_scales(network, ["0"], torch.rand(1, 1, 32, 32), mm_per_px=0)


def test_twice_the_spacing_is_twice_the_millimetres():
    assert spacing_of_input(0.2, 2000, 200) == 2.0
    assert spacing_of_input(0.4, 2000, 200) == 4.0
    with pytest.raises(ValueError, match="positive"):
        spacing_of_input(0.0, 2000, 200)


def test_an_export_gives_the_spacings_it_has():
    manifest = pd.DataFrame(
        {"rows": [2000, 1000, 500], "columns": [1000, 1000, 700], "pixel_spacing_mm": [0.2, 0.4, None]}
    )
    assert spacings_of_export(manifest, 100) == ([4.0, 4.0, 4.0], 1)
    with pytest.raises(ValueError, match="give --spacing"):
        spacings_of_export(manifest.tail(1), 100)


def test_the_picture_needs_a_point():
    with pytest.raises(ValueError, match="nothing to draw"):
        detection_png({}, {}, 0.75, 0.6, "t")
    drawn = detection_png({"0.4": [(3, 0.5, 0.4, 0.6), (6, 0.9, None, None)]}, {"pixel": 2.6}, 0.75, 0.6, "t")
    assert drawn.startswith(b"\x89PNG")
    assert drawn == detection_png({"0.4": [(3, 0.5, 0.4, 0.6), (6, 0.9, None, None)]}, {"pixel": 2.6}, 0.75, 0.6, "t")


def test_the_command_on_the_shipped_bundle(tmp_path):
    bundle = "bundles/chest_xray_resnet50"
    asked = ["preflight", "--bundle", bundle, "--spacing", "0.168", "--finding-mm", "2,20", "--contrast", "0.4"]
    run = CliRunner().invoke(app, [*asked, "--normals", "20", "--output", str(tmp_path)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    found = json.loads((tmp_path / "preflight.json").read_text())
    assert found["mm_per_px"] == 2.625
    assert [one["layer"] for one in found["layers"]] == ["layer4"]
    assert found["layers"][0]["stride_mm"] == 84
    small, large = found["findings"]
    assert small["verdict"] == {"0.4": "under a pixel"}
    assert large["px"] == pytest.approx(20 / 2.625, abs=1e-4)
    assert large["cells"]["layer4"] == pytest.approx(20 / 84, abs=1e-4)
    assert set(pd.read_csv(tmp_path / "preflight.csv")["mm"]) == {2, 20}
    assert (tmp_path / "preflight.png").exists()
    assert "not for clinical use" in run.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give either --spacing"),
        (["--spacing", "0.168", "--finding-mm", "6;10"], "--finding-mm: '6;10' is not a number"),
        (["--spacing", "0.168", "--contrast", "faint"], "--contrast: 'faint'"),
    ],
)
def test_what_cannot_be_asked(tmp_path, options, told):
    run = CliRunner().invoke(app, ["preflight", "--bundle", "none", "--output", str(tmp_path), *options])
    assert isinstance(run.exception, ValueError)
    assert told in str(run.exception)
