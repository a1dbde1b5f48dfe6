# SPDX-License-Identifier: Apache-2.0
"""A nodule has the attenuation of its ball at every size, lies in the lungs, and leaves no other mark."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logit

from monai_cnnprimer.phantom import SITES, Finding, render
from monai_cnnprimer.phantom.render import ATTENUATION
from monai_cnnprimer.validate.findings import NoPlace, displayed_behind, insert_nodule, physical_contrast
from monai_cnnprimer.validate.findings.nodules import DISPLAY_SLOPE, MU_SOFT_TISSUE

SIDE = 128
GREY = np.full((SIDE, SIDE), 0.3)
EVERYWHERE = np.ones((SIDE, SIDE), bool)


def attenuation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What was added in the beam, in nepers."""
    return (logit(after.astype(float)) - logit(before.astype(np.float32).astype(float))) / DISPLAY_SLOPE


def two_lungs() -> np.ndarray:
    lungs = np.zeros((SIDE, SIDE), bool)
    lungs[20:100, 15:55] = lungs[20:100, 75:115] = True
    return lungs


@pytest.mark.parametrize("diameter", [1.0, 2.5, 7.3, 31.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_summed_attenuation_is_that_of_the_ball(diameter, seed):
    after, _ = insert_nodule(GREY, EVERYWHERE, diameter, 0.3, seed)
    ball = 0.3 / diameter * math.pi * diameter**3 / 6
    assert attenuation(GREY, after).sum() == pytest.approx(ball, rel=1e-3)


def test_with_physical_contrast_it_grows_with_the_volume():
    sums = [
        attenuation(GREY, insert_nodule(GREY, EVERYWHERE, mm / 2, physical_contrast(mm), 3)[0]).sum()
        for mm in (5, 10, 20)
    ]
    assert np.divide(sums[1:], sums[:-1]) == pytest.approx([8, 8], rel=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_profile_is_that_of_chords_through_a_ball(seed):
    after, mask = insert_nodule(GREY, EVERYWHERE, 40, 0.4, seed)
    added = attenuation(GREY, after)
    row, column = np.argwhere(mask).mean(axis=0)
    distance = np.hypot(*(np.indices(mask.shape) - np.array([row, column])[:, None, None]))
    for inner, outer in ((0, 3), (7, 9), (11, 13)):
        ring = (distance >= inner) & (distance < outer)
        expected = 0.4 * np.sqrt(1 - (distance[ring] / 20) ** 2).mean()
        assert added[ring].mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("diameter", [1.0, 3.0, 9.0, 40.0])
def test_the_mask_has_the_area_of_the_circle(diameter):
    areas = [insert_nodule(GREY, EVERYWHERE, diameter, 0.3, seed)[1].sum() for seed in range(12)]
    assert np.mean(areas) == pytest.approx(math.pi * diameter**2 / 4, rel=0.02 if diameter > 3 else 0.35)
    assert min(areas) >= 1


def test_the_same_attenuation_is_added_to_any_grey():
    dark, bright = np.full((SIDE, SIDE), 0.1), np.full((SIDE, SIDE), 0.8)
    added = [attenuation(grey, insert_nodule(grey, EVERYWHERE, 9, 0.5, 7)[0]) for grey in (dark, bright)]
    assert added[0] == pytest.approx(added[1], abs=2e-6)
    assert added[0].max() == pytest.approx(0.5, rel=0.03)


def test_black_and_white_stay_and_nothing_leaves_the_range():
    random = np.random.default_rng(0)
    image = random.choice([0.0, 0.02, 0.5, 0.99, 1.0], (SIDE, SIDE))
    after, _ = insert_nodule(image, EVERYWHERE, 60, 3.0, 1)
    assert (after[image == 0] == 0).all()
    assert (after[image == 1] == 1).all()
    assert after.min() == 0
    assert after.max() == 1
    assert (after >= image.astype(np.float32)).all()
    between = (image > 0) & (image < 1)
    assert (after[between] < 1).all()


def test_nothing_of_it_leaves_the_lungs_and_the_rest_keeps_its_bits():
    image, lungs = np.random.default_rng(1).uniform(0.1, 0.9, (SIDE, SIDE)).astype(np.float32), two_lungs()
    for seed in range(25):
        after, mask = insert_nodule(image, lungs, 1 + seed, 0.6, seed)
        changed = after != image
        assert changed.any()
        assert not (changed & ~lungs).any()
        assert not (mask & ~changed).any()


def test_lungs_may_reach_the_border_of_the_image():
    for seed in range(6):
        after, mask = insert_nodule(GREY, EVERYWHERE, 80, 0.3, seed)
        assert attenuation(GREY, after).sum() == pytest.approx(0.3 / 80 * math.pi * 80**3 / 6, rel=1e-3)
        assert mask.any()


def test_centres_are_even_over_both_lungs():
    centres = np.array(
        [np.argwhere(insert_nodule(GREY, two_lungs(), 6, 0.3, seed)[1]).mean(axis=0) for seed in range(300)]
    )
    left = (centres[:, 1] < 64).mean()
    assert left == pytest.approx(0.5, abs=0.1)
    # Even over rows 20 to 100 less the nodule's reach: the standard deviation of a uniform distribution.
    assert centres[:, 0].mean() == pytest.approx(59.5, abs=4)
    assert centres[:, 0].std() == pytest.approx(69 / math.sqrt(12), rel=0.12)


def test_the_seed_is_all_that_is_random():
    image, lungs = np.random.default_rng(2).uniform(0, 1, (SIDE, SIDE)).astype(np.float32), two_lungs()
    kept, state = image.copy(), np.random.get_state()[1].copy()
    first, again = (insert_nodule(image, lungs, 8.5, 0.3, 5) for _ in range(2))
    other = insert_nodule(image, lungs.astype(np.uint8), 8.5, 0.3, 6)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()
    assert first[0].dtype == np.float32
    assert first[1].dtype == bool
    assert (image == kept).all()
    assert (np.random.get_state()[1] == state).all()


def test_no_contrast_changes_no_pixel_but_has_a_mask():
    after, mask = insert_nodule(GREY, EVERYWHERE, 8, 0.0, 0)
    assert (after == GREY.astype(np.float32)).all()
    assert mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diameter_px": 0.99}, "under one pixel"),
        ({"diameter_px": math.nan}, "under one pixel"),
        ({"lung_mask": np.zeros((SIDE, SIDE), bool)}, "the lung mask is empty"),
        ({"lung_mask": np.ones((SIDE, SIDE - 1), bool)}, r"lung mask \(128, 127\) on an image of \(128, 128\)"),
        ({"lung_mask": np.full((SIDE, SIDE), 0.5)}, "0 and 1 only"),
        ({"image": np.where(EVERYWHERE, np.nan, 0)}, "not finite"),
        ({"image": GREY * 255}, r"must lie in \[0, 1\], it has 76.5 to 76.5"),
        ({"image": GREY - 1}, r"must lie in \[0, 1\]"),
        ({"image": GREY[None]}, r"must be \(rows, columns\)"),
        ({"contrast": -0.1}, "a contrast of -0.1 nepers"),
        ({"contrast": math.nan}, "a contrast of nan nepers"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    given = {"image": GREY, "lung_mask": EVERYWHERE, "diameter_px": 8, "contrast": 0.3, "seed": 0}
    with pytest.raises(ValueError, match=message):
        insert_nodule(**{**given, **change})


def test_a_nodule_too_large_for_the_lungs_says_so():
    with pytest.raises(NoPlace, match=r"45.0 pixels fits nowhere: the lungs are 4[0-2] pixels at the widest"):
        insert_nodule(GREY, two_lungs(), 45, 0.3, 0)


def test_physical_contrast_is_soft_tissue_in_place_of_lung():
    assert ATTENUATION[120][0] == MU_SOFT_TISSUE
    assert physical_contrast(30) == pytest.approx(0.74 * 0.0190 * 30)
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        physical_contrast(0)


def test_the_display_slope_is_that_of_nodules_which_the_phantom_takes_through_the_physics():
    slopes = []
    for site in SITES:
        for seed in range(2):
            without = render(seed, size=128, site=site).image
            found = render(seed, size=128, site=site, findings=[Finding("nodule", mm=16)])
            near = np.hypot(
                *(np.indices(without.shape) - np.array([[[found.findings[0].row]], [[found.findings[0].column]]]))
            )
            window = near * found.spacing_mm < 16
            mu = np.interp(site.kvp, list(ATTENUATION), [soft for soft, _ in ATTENUATION.values()])
            ball = physical_contrast(16, mu) * math.pi * (16 / found.spacing_mm) ** 2 / 6
            slopes.append((logit(found.image[window]) - logit(without[window])).sum() / ball)
    assert np.median(slopes) == pytest.approx(DISPLAY_SLOPE, rel=0.12)


def test_what_is_behind_more_is_brighter():
    greys = np.linspace(0, 1, 11)
    once = displayed_behind(greys, np.full(11, 0.2))
    twice = displayed_behind(once, np.full(11, 0.2))
    assert twice == pytest.approx(displayed_behind(greys, np.full(11, 0.4)), abs=1e-6)
    assert (np.diff(twice) > 0).all()
