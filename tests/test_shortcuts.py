# SPDX-License-Identifier: Apache-2.0
"""Interventions: only where they say, the same for the same seed, beside a control of equal area, and plausible."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from monai_cnnprimer.explain.shortcuts import INTERVENTIONS, LeftOut, Subject, find_marker, intervene
from monai_cnnprimer.explain.shortcuts.change import attenuated, gathered
from monai_cnnprimer.explain.shortcuts.inpainting import inpaint
from monai_cnnprimer.explain.shortcuts.markers import marker_of
from monai_cnnprimer.phantom import render

LOCAL = [name for name, one in INTERVENTIONS.items() if one.control]
GLOBAL = [name for name in INTERVENTIONS if name not in LOCAL]
NEEDS_MARKER = ("marker_remove", "marker_swap")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    """The same patient with and without a marker."""
    taken = {"with": render(3, 160, marker="R"), "without": render(3, 160)}
    return {name: Subject(one.image.astype(np.float32), one.masks) for name, one in taken.items()}


def suited(subjects, name):
    return subjects["with" if name in NEEDS_MARKER else "without"]


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_it_changes_only_where_it_says_and_leaves_the_original_alone(subjects, name):
    subject = suited(subjects, name)
    before = subject.image.copy()
    for one in intervene(name, subject, 4, "case"):
        if one is None:
            continue
        assert one.image.dtype == np.float32
        assert one.image.shape == one.where.shape
        assert 0 <= one.image.min() <= one.image.max() <= 1
        if one.image.shape == before.shape:
            np.testing.assert_array_equal(one.image[~one.where], before[~one.where])
            assert (one.image != before).any()
    np.testing.assert_array_equal(subject.image, before)


@pytest.mark.parametrize("name", LOCAL)
def test_the_control_has_the_same_area_elsewhere_or_of_another_kind(subjects, name):
    changed, control = intervene(name, suited(subjects, name), 4, "case")
    assert control is not None
    assert changed.where.sum() == control.where.sum() > 0
    assert (changed.image != control.image).any()


@pytest.mark.parametrize("name", GLOBAL)
def test_what_changes_the_whole_image_has_no_control(subjects, name):
    changed, control = intervene(name, subjects["without"], 4, "case")
    assert control is None
    assert changed.where.all()


@pytest.mark.parametrize("name", ["marker_insert", "tube", "wire", "border", "noise", "marker_remove"])
def test_the_same_case_and_seed_give_the_same_and_another_gives_another(subjects, name):
    subject = suited(subjects, name)
    first, again = (intervene(name, subject, 4, "case").changed.image for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [intervene(name, subject, 5, "case"), intervene(name, subject, 4, "another case")]
    assert all((other.changed.image != first).any() for other in others)


def test_an_inserted_marker_is_lead_in_an_upper_corner_and_found_again(subjects):
    subject = subjects["without"]
    assert marker_of(subject) is None
    changed, control = intervene("marker_insert", subject, 1, "case")
    rows, columns = np.nonzero(changed.where)
    assert rows.max() < 0.2 * 160
    assert columns.max() < 0.25 * 160 or columns.min() > 0.75 * 160
    assert 0.8 < changed.image[changed.where].max() <= max(0.95, subject.image.max())  # its strokes are a pixel wide
    assert not (changed.where & subject.masks["lung"]).any()
    np.testing.assert_array_equal(control.where, changed.where[::-1, ::-1])
    found = find_marker(changed.image, subject.masks["lung"])
    assert (found & changed.where).sum() > 0.7 * (changed.image > 0.8)[changed.where].sum()


def test_a_marker_is_inserted_only_where_there_is_none_and_removed_only_where_there_is_one(subjects):
    with pytest.raises(LeftOut, match="has a marker already"):
        intervene("marker_insert", subjects["with"])
    for name in NEEDS_MARKER:
        with pytest.raises(LeftOut, match="no marker was found"):
            intervene(name, subjects["without"])


def test_removing_a_phantoms_marker_gives_almost_the_phantom_without_it(subjects):
    removed = intervene("marker_remove", subjects["with"]).changed
    apart = np.abs(removed.image - subjects["without"].image)
    assert apart.max() < 0.12
    assert np.abs(subjects["with"].image - subjects["without"].image).max() > 0.5


def test_a_swapped_marker_is_as_bright_and_stays_in_its_place(subjects):
    subject = subjects["with"]
    changed, control = intervene("marker_swap", subject, 2)
    assert changed.where[subject.masks["marker"]].all()
    assert 0.75 < changed.image[changed.where].max() <= 0.97
    np.testing.assert_array_equal(changed.where, control.where)
    own, swapped = subject.image[changed.where] > 0.6, changed.image[changed.where] > 0.6
    assert 0.3 < swapped.sum() / own.sum() < 3
    assert (own != swapped).any()


@pytest.mark.parametrize("marker", ["R", "L", "AP"])
def test_the_finder_finds_a_phantoms_marker_without_its_mask(marker):
    taken = render(11, 256, marker=marker)
    found = find_marker(taken.image.astype(np.float32), taken.masks["lung"])
    truth = taken.masks["marker"]
    assert (found & truth).sum() > 0.7 * truth.sum()
    assert label(found)[1] <= 2


def test_the_finder_takes_no_shoulder_for_a_marker():
    for seed in range(4):
        taken = render(seed, 256)
        assert find_marker(taken.image.astype(np.float32)) is None


@pytest.mark.parametrize("name", ["tube", "wire"])
def test_a_tube_absorbs_a_part_of_the_beam_and_its_control_as_much(subjects, name):
    subject = subjects["without"]
    changed, control = intervene(name, subject, 3)
    light = (1 - subject.image).clip(1e-6)
    absorbed = [
        np.sort(-np.log((1 - one.image).clip(1e-6)[one.where] / light[one.where])) for one in (changed, control)
    ]
    assert (absorbed[0] > -1e-4).all()
    assert absorbed[0].max() < 1.3  # a tube is never as dense as lead: what lies beneath shows through
    bright = subject.image.max() < 0.99
    assert bright
    np.testing.assert_allclose(absorbed[0], absorbed[1], atol=0.02)


def test_attenuation_multiplies_and_the_same_values_are_gathered():
    image = np.linspace(0, 1, 5, dtype=np.float32)[None]
    twice = attenuated(attenuated(image, np.full_like(image, 0.3)), np.full_like(image, 0.2))
    np.testing.assert_allclose(twice, attenuated(image, np.full_like(image, 0.5)), atol=1e-6)
    values = np.zeros((9, 9), np.float32)
    values[0] = np.arange(9)
    blob = gathered(values, (6, 4))
    np.testing.assert_array_equal(np.sort(blob, axis=None), np.sort(values, axis=None))
    assert blob[6, 4] == 8


def test_a_border_is_black_and_its_control_keeps_the_grey(subjects):
    subject = subjects["without"]
    changed, control = intervene("border", subject)
    assert (changed.image[changed.where] == 0).all()
    assert not changed.where[40:120, 40:120].any()
    assert control.image[control.where].mean() == pytest.approx(subject.image[control.where].mean(), abs=0.05)


def test_what_is_covered_and_what_is_left_together_are_the_image(subjects):
    subject = subjects["without"]
    covered, only = (intervene(name, subject) for name in ("lungs_covered", "lungs_only"))
    np.testing.assert_array_equal(covered.changed.where, ~only.changed.where)
    assert covered.changed.where[subject.masks["lung"]].all()
    assert not (covered.control.where & covered.changed.where).any()
    box = intervene("lung_box_covered", subject).changed.where
    assert box[covered.changed.where].all()
    for pair in (covered, only):
        assert np.ptp(pair.changed.image[pair.changed.where]) == 0


def test_appearances_are_what_their_names_say(subjects):
    subject = subjects["without"]
    image = subject.image

    def of(name):
        return intervene(name, subject, 0, "case").changed.image

    assert of("brighter").mean() > image.mean() > of("darker").mean()
    np.testing.assert_allclose(of("polarity"), 1 - image, atol=1e-6)
    np.testing.assert_array_equal(of("flip"), image[:, ::-1])
    assert of("aspect").shape == (160, 128)
    assert np.abs(np.diff(of("blur"), axis=0)).mean() < np.abs(np.diff(image, axis=0)).mean()
    assert np.abs(np.diff(of("noise"), axis=0)).mean() > np.abs(np.diff(image, axis=0)).mean()
    odds = of("brighter") / (1 - of("brighter")) / (image / (1 - image)).clip(1e-6)
    np.testing.assert_allclose(odds[image > 0.05], 1.35, rtol=1e-3)
    for name in ("jpeg", "resample", "noise"):
        assert 0 < np.abs(of(name) - image).mean() < 0.05


def test_a_hole_in_a_slope_is_filled_by_the_slope_also_at_the_edge():
    slope = np.tile(np.linspace(0.2, 0.8, 40, dtype=np.float32), (30, 1))
    for place in (np.s_[10:18, 12:20], np.s_[:6, :5]):
        hole = np.zeros(slope.shape, dtype=bool)
        hole[place] = True
        filled = inpaint(np.where(hole, 1, slope), hole, np.random.default_rng(0))
        assert np.abs(filled - slope).max() < 0.12
    with pytest.raises(ValueError, match="empty, or the whole image"):
        inpaint(slope, np.zeros(slope.shape, dtype=bool), np.random.default_rng(0))


def test_bad_input_is_told():
    image = np.full((32, 32), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"mask 'lung' is bool \(4, 4\), not bool \(32, 32\)"):
        Subject(image, {"lung": np.zeros((4, 4), dtype=bool)})
    with pytest.raises(ValueError, match="outside of"):
        Subject(image * 3)
    with pytest.raises(ValueError, match="float64"):
        Subject(image.astype(np.float64))
    with pytest.raises(ValueError, match="no intervention 'halo'"):
        intervene("halo", Subject(image))
    with pytest.raises(LeftOut, match="no mask of the lungs"):
        intervene("lungs_covered", Subject(image))
    with pytest.raises(LeftOut, match="fill the image"):
        intervene("lungs_only", Subject(image, {"lung": np.ones((32, 32), dtype=bool)}))


def test_markers_on_real_radiographs(data_folder):
    """Kermany's R is a lead letter in most images; what is found there is bright, small and outside of the lungs."""
    folder = data_folder / "kermany"
    files = sorted((folder / "test" / "NORMAL").glob("*.jpeg"))[:24]
    found = 0
    for file in files:
        image = np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255
        marker = find_marker(image)
        if marker is not None:
            found += 1
            assert marker.mean() < 0.03
            assert image[marker].max() > 0.5
    assert 6 <= found <= len(files)
