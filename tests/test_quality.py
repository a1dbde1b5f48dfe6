# SPDX-License-Identifier: Apache-2.0
"""Measures of a map against counts by hand, and what its pixels do against an exchange written out."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.quality import exchange_curves, map_quality, summarise_quality
from monai_cnnprimer.explain.receptive_field import ReceptiveField, align_map
from monai_cnnprimer.figures.quality import RandomisedCase, quality_png, randomisation_png

HEAT = np.array([[4.0, 1.0, 0.0, -9.0], [2.0, 1.0, 0.0, 0.0]])


def mask(*rows: str) -> np.ndarray:
    return np.array([[sign == "x" for sign in row] for row in rows])


def test_measures_are_counts_over_the_positive_part():
    masks = {"lung": mask("xx..", "...."), "marker": mask("...x", "...."), "finding": mask("x...", "x...")}
    assert map_quality(HEAT, masks) == pytest.approx(
        {
            "lung_area": 0.25,
            "lung_pointing": 1.0,
            "lung_mass": 5 / 8,
            "lung_mass_per_area": 2.5,
            "marker_area": 0.125,
            "marker_pointing": 0.0,
            "marker_mass": 0.0,
            "marker_mass_per_area": 0.0,
            "finding_area": 0.25,
            "finding_pointing": 1.0,
            "finding_mass": 6 / 8,
            "finding_mass_per_area": 3.0,
            "outside_lung_mass_per_area": (3 / 8) / (6 / 8),
            "finding_iou": 1.0,
        }
    )


def test_a_map_of_one_value_has_no_preference():
    quality = map_quality(np.full((4, 4), 0.3, np.float32), {"lung": np.eye(4) > 0, "finding": np.eye(4) > 0})
    assert quality["lung_mass_per_area"] == pytest.approx(1)
    assert quality["outside_lung_mass_per_area"] == pytest.approx(1)
    assert quality["lung_pointing"] == quality["lung_mass"] == pytest.approx(quality["lung_area"])
    assert math.isnan(quality["finding_iou"])


@pytest.mark.parametrize("heat", [np.zeros((4, 4)), -np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_a_map_without_positive_mass_has_no_measures(heat):
    quality = map_quality(heat, {"lung": np.eye(4) > 0, "finding": np.eye(4) > 0})
    assert {key for key, value in quality.items() if not math.isnan(value)} == {"lung_area", "finding_area"}


def test_a_region_that_is_not_there_has_no_measures():
    quality = map_quality(HEAT, {"lung": HEAT > 9, "finding": HEAT > 9})
    assert len(quality) == 10
    assert all(math.isnan(value) for value in quality.values())
    full = map_quality(HEAT, {"lung": HEAT > -10})
    assert math.isnan(full["outside_lung_mass_per_area"])
    assert full["lung_mass_per_area"] == 1


def test_the_tolerance_of_the_pointing_game_is_a_distance_in_pixels():
    heat, finding = np.zeros((9, 9)), np.zeros((9, 9), bool)
    heat[1, 1], finding[4, 5] = 1, True
    hits = [map_quality(heat, {"finding": finding}, tolerance_px)["finding_pointing"] for tolerance_px in (0, 4.9, 5)]
    assert hits == [0, 0, 1]


def test_equal_maxima_at_the_border_of_an_aligned_map_count_by_their_share():
    """The outermost centre's value is repeated up to the border: the first pixel found is not the maximum."""
    raw = torch.tensor([[[[0.1, 0.7], [0.2, 0.3]]]])
    heat = align_map(raw, (8, 8), ReceptiveField(size=4, jump=4, start=2))[0, 0].numpy()
    right, top = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    right[:, 7], top[0] = True, True
    assert (heat == heat.max()).sum() >= 2
    assert map_quality(heat, {"finding": right})["finding_pointing"] == pytest.approx(3 / 6)
    assert map_quality(heat, {"finding": top})["finding_pointing"] == pytest.approx(2 / 6)


def otsu(values: np.ndarray) -> float:
    """The threshold of highest variance between classes (Otsu, 1979), tried one after the other."""

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    return max(np.unique(values)[:-1], key=between)


def test_overlap_is_that_at_otsus_threshold():
    random = np.random.default_rng(4)
    heat = random.normal(1, 0.5, (30, 40)) * 1e-6
    heat[5:15, 10:20] += 4e-6
    finding = np.zeros((30, 40), bool)
    finding[8:18, 10:20] = True
    above = heat > otsu(np.clip(heat, 0, None).ravel())
    expected = (above & finding).sum() / (above | finding).sum()
    assert map_quality(heat, {"finding": finding})["finding_iou"] == pytest.approx(expected, abs=0.01)
    assert expected == pytest.approx(7 / 13, abs=0.05)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no region 'rib'; choose among lung, heart, marker, finding"):
        map_quality(HEAT, {"rib": HEAT > 0})
    with pytest.raises(ValueError, match=r"mask 'lung' is bool \(4, 2\), not bool \(2, 4\)"):
        map_quality(HEAT, {"lung": (HEAT > 0).T})
    with pytest.raises(ValueError, match="mask 'lung' is float64"):
        map_quality(HEAT, {"lung": HEAT})


def test_summaries_give_the_interval_of_the_mean():
    values = np.random.default_rng(1).normal(2, 1, 200)
    cases = [{"lung_mass": value, "lung_pointing": float(value > 1)} for value in values]
    summary = summarise_quality([*cases, {"lung_mass": math.nan}, {"heart_mass": 0.5}])
    mass, pointing, heart = summary["lung_mass"], summary["lung_pointing"], summary["heart_mass"]
    half = norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(200)
    assert mass == pytest.approx((values.mean(), values.mean() - half, values.mean() + half, 200), rel=0.02)
    hits = int((values > 1).sum())
    wilson = binomtest(hits, 200).proportion_ci(method="wilson")
    assert pointing == pytest.approx((hits / 200, wilson.low, wilson.high, 200))
    assert heart[0] == 0.5
    assert heart.n == 1
    assert math.isnan(heart.low)
    assert summarise_quality(cases) == summarise_quality(cases)
    assert summarise_quality([]) == {}


class Watcher(nn.Module):
    """The probability of class 1 is the sigmoid of 8 times the mean of three pixels."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(6, 8))
        self.weights.data[2, 3:6] = 8 / 3
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logit = (self.weights * x).sum(dim=(1, 2, 3))[:, None]
        return logit if self.classes == 1 else torch.cat([torch.zeros_like(logit), logit], dim=1)


IMAGE = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
RANDOM_HEAT = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)


def exchanged_one_by_one(old: np.ndarray, new: np.ndarray, heat: np.ndarray, steps: int) -> list[float]:
    """Pixels exchanged in descending order, `48 / steps` at a time, and the sigmoid worked out."""
    pixels, curve = old.copy().ravel(), []
    order = sorted(range(heat.size), key=lambda i: -heat.ravel()[i])
    for step in range(steps + 1):
        for i in order[: step * heat.size // steps]:
            pixels[i] = new.ravel()[i]
        curve.append(1 / (1 + math.exp(-8 * pixels.reshape(6, 8)[2, 3:6].mean())))
    return curve


@pytest.mark.parametrize("classes", [1, 2])
def test_curves_are_those_of_pixels_exchanged_one_by_one(classes):
    image = IMAGE[0, 0].numpy()
    grey = np.full_like(image, image.mean())
    curves = exchange_curves(Watcher(classes), IMAGE, RANDOM_HEAT, 1, steps=24, baseline="mean")
    insertion = exchanged_one_by_one(grey, image, RANDOM_HEAT, 24)
    deletion = exchanged_one_by_one(image, grey, RANDOM_HEAT, 24)
    np.testing.assert_allclose(curves.insertion, insertion, rtol=1e-5)
    np.testing.assert_allclose(curves.deletion, deletion, rtol=1e-5)
    shares = np.linspace(0, 1, 25)
    assert curves.areas == pytest.approx((np.trapezoid(insertion, shares), np.trapezoid(deletion, shares)), rel=1e-5)


def test_a_map_of_the_pixels_that_count_beats_its_opposite():
    image = torch.zeros(1, 1, 6, 8)
    image[0, 0, 2, 3:6] = 1
    good = image[0, 0].numpy()
    (insertion, deletion), (worse, higher) = (
        exchange_curves(Watcher(), image, heat, 1, baseline="mean").areas for heat in (good, -good)
    )
    assert insertion > worse + 0.2
    assert deletion < higher - 0.2
    against = exchange_curves(Watcher(), image, good, 0, baseline="mean").areas
    assert against == pytest.approx((1 - insertion, 1 - deletion))


def test_insertion_starts_from_a_blurred_image_by_default():
    curves = exchange_curves(Watcher(), IMAGE, RANDOM_HEAT, 1, steps=2)
    with torch.no_grad():
        image = Watcher()(IMAGE).softmax(dim=1)[0, 1].item()
        mean = Watcher()(torch.full_like(IMAGE, IMAGE.mean().item())).softmax(dim=1)[0, 1].item()
    assert curves.insertion[-1] == pytest.approx(image)
    assert curves.deletion[[0, -1]] == pytest.approx([image, mean])
    assert curves.insertion[0] not in (pytest.approx(image), pytest.approx(mean))


def test_exchanging_pixels_leaves_the_network_and_its_watchers():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.train()[1].eval()
    state, seen = {key: value.clone() for key, value in network.state_dict().items()}, []
    network.register_forward_hook(lambda *_: seen.append(1))
    random = torch.get_rng_state()
    with GradCam(network, "0") as cam:
        first, second = (exchange_curves(network, IMAGE, RANDOM_HEAT, 0).areas for _ in range(2))
    assert first == second
    assert not seen
    assert cam.forwards == 0
    assert [module.training for module in network] == [True, False, True, True, True]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_exchanges_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="no class 2; the network has 2"):
        exchange_curves(Watcher(), IMAGE, RANDOM_HEAT, 2)
    with pytest.raises(ValueError, match=r"are not \(1, C, H, W\) and \(H, W\)"):
        exchange_curves(Watcher(), IMAGE, RANDOM_HEAT.T, 1)
    with pytest.raises(ValueError, match="baseline 'black'; choose among blur, mean"):
        exchange_curves(Watcher(), IMAGE, RANDOM_HEAT, 1, baseline="black")


ROWS = [
    {"block": block, "signed": 0.2, "signed_low": 0.0, "signed_high": 0.4}
    | {"absolute": 0.6, "absolute_low": 0.5, "absolute_high": 0.7}
    for block in ("fc", "layer4")
]
RADIOGRAPH = np.linspace(0, 1, 30 * 40, dtype=np.float32).reshape(30, 40)
CASE = RandomisedCase(RADIOGRAPH, [RADIOGRAPH - 0.5, RADIOGRAPH, 0 * RADIOGRAPH], [0.4, 0.1])


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_cascade_is_drawn_alike_each_time_and_names_its_verdict():
    first, again, open_question = (
        randomisation_png(CASE, ROWS, "case $1", fit, "because", 0.5) for fit in (False, False, None)
    )
    assert first == again
    red = [(pixels(png) == (0xB0, 0x00, 0x20)).all(axis=2).any() for png in (first, open_question)]
    assert red == [True, False]


def test_a_cascade_with_other_maps_than_steps_is_refused():
    with pytest.raises(ValueError, match="3 maps and 2 correlations for 1 steps"):
        randomisation_png(CASE, ROWS[:1], "title", True, "because", 0.5)
    with pytest.raises(ValueError, match="align it first"):
        randomisation_png(CASE._replace(image=RADIOGRAPH.T), ROWS, "title", True, "because", 0.5)


def test_measures_are_drawn_with_or_without_values():
    masks = {"lung": RADIOGRAPH > 0.5, "finding": RADIOGRAPH > 0.9}
    cases = [map_quality(RADIOGRAPH, masks), map_quality(1 - RADIOGRAPH, masks), map_quality(0 * RADIOGRAPH, masks)]
    first, second = (quality_png(cases, summarise_quality(cases), "title") for _ in range(2))
    assert first == second
    nothing = cases[2:]
    assert quality_png(nothing, summarise_quality(nothing), "title") != first
    only = [{"insertion": 0.5}, {"insertion": 0.7}]
    assert len(pixels(quality_png(only, summarise_quality(only), "title"))) < len(pixels(first))
    with pytest.raises(ValueError, match="no measures"):
        quality_png([], {}, "title")
