# SPDX-License-Identifier: Apache-2.0
"""Marks stand where the maps are highest, whatever their stride; the curve is MONAI's; resamples are honest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

from monai_cnnprimer.validate.findings.froc import MOST_MARKS, RATES, Froc, Marked, Marks, judged, marks
from monai_cnnprimer.validate.statistics import clustered_bootstrap


def _blob(stride, row, column, shape=(128, 128), width=20.0):
    """A map that is highest at a pixel, on its own grid."""
    rows, columns = (np.arange(0, size, stride) for size in shape)
    return (4 - ((rows[:, None] - row) ** 2 + (columns - column) ** 2) / width**2).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 4, 8, 16, 32])
def test_a_maximum_between_cells_is_found_at_every_stride(stride):
    found = marks({"map": _blob(stride, 55, 70)}, {"map": stride}, apart_px=6)
    assert found.row[0] == pytest.approx(55, abs=0.6)
    assert found.column[0] == pytest.approx(70, abs=0.6)


def test_of_two_marks_near_each_other_the_stronger_stays():
    fine, coarse = np.full((32, 32), -5, np.float32), np.full((4, 4), -5, np.float32)
    fine[8, 8], coarse[1, 1], fine[25, 25] = 1.0, 3.0, 2.0
    found = marks({"p2": fine, "p5": coarse}, {"p2": 4, "p5": 32}, apart_px=10)
    assert list(zip(found.row[:2], found.column[:2], strict=True)) == [(32, 32), (100, 100)]
    assert (np.diff(found.score) <= 0).all()


def test_marks_are_limited_and_scores_keep_apart_where_probabilities_would_saturate():
    cells = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) % 7 * (np.indices((64, 64)).sum(0) % 3 == 0)
    found = marks({"full": 20 + cells}, {"full": 1}, apart_px=2)
    assert len(found.score) == MOST_MARKS
    alone = [marks({"m": np.array([[z]], np.float32)}, {"m": 1}, 1).score[0] for z in (20, 21, 40)]
    assert alone[0] < alone[1] < alone[2] < 1


def test_a_flat_map_marks_without_pointing_anywhere():
    assert 1 <= len(marks({"m": np.zeros((8, 8), np.float32)}, {"m": 16}, apart_px=5).score) <= MOST_MARKS


def _one(row, column, score=0.9):
    return Marks(np.array([score], np.float32), np.array([row], float), np.array([column], float))


def test_a_mark_hits_on_the_finding_and_within_the_tolerance_only():
    masks = np.zeros((3, 40, 40), bool)
    masks[:, 20, 20] = True
    found = judged([_one(20, 20), _one(20, 24), _one(20, 26)], masks, np.ones(3, int), np.full(3, 5.0))
    assert found.true_score.tolist() == pytest.approx([0.9, 0.9, 0])
    assert found.false_case.tolist() == [2]


def test_marks_beyond_the_border_are_drawn_into_the_image():
    masks = np.zeros((1, 40, 40), bool)
    masks[0, 39, 39] = True
    assert judged([_one(41.0, 39.6)], masks, np.ones(1, int), np.zeros(1)).true_score[0] == pytest.approx(0.9)


def test_without_a_finding_every_mark_is_false():
    found = judged([_one(1, 1)], np.zeros((1, 8, 8), bool), np.zeros(1, int), np.ones(1))
    assert np.isnan(found.true_score[0])
    assert found.false_score.tolist() == pytest.approx([0.9])


def test_unknown_spacing_and_labels_that_masks_contradict_are_refused():
    empty = np.zeros((1, 8, 8), bool)
    with pytest.raises(ValueError, match="size of a pixel is unknown"):
        judged([_one(1, 1)], empty, np.zeros(1, int), np.array([np.nan]))
    with pytest.raises(ValueError, match="labels and masks disagree"):
        judged([_one(1, 1)], empty, np.ones(1, int), np.ones(1))


def _marked(seed=0, images=60, each=12):
    random = np.random.default_rng(seed)
    true = np.where(random.random(images) < 0.3, 0, random.beta(5, 2, images))
    true[::2] = np.nan
    case = np.repeat(np.arange(images), each).astype(np.int32)
    return Marked(case, random.beta(2, 3, case.size).astype(np.float32), true.astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_that_of_monai_to_within_a_step(seed):
    marked = _marked(seed)
    hit = marked.true_score[~np.isnan(marked.true_score)]
    alarms, sensitivity = compute_froc_curve_data(
        np.append(marked.false_score, np.float32(0)), np.append(hit, np.float32(0)), hit.size, 60
    )
    everything = np.ones(60, bool)
    ours = Froc(marked).sensitivity(everything)
    assert ours == pytest.approx(np.interp(RATES, alarms[::-1], sensitivity[::-1]), abs=1.01 / hit.size)
    assert Froc(marked).cpm(everything) == pytest.approx(compute_froc_score(alarms, sensitivity, RATES), abs=0.02)


def test_the_curve_by_hand():
    # Two images, a finding each: 0.8 is hit above all but the mark of 0.9, and 0 is missed for good.
    marked = Marked(
        np.array([0, 1, 1], np.int32), np.array([0.9, 0.5, 0.1], np.float32), np.array([0.8, 0], np.float32)
    )
    assert Froc(marked).sensitivity(np.ones(2, bool)) == (0, 0, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert Froc(marked).sensitivity(np.zeros(2, bool)) is None


def test_resamples_are_those_of_the_table_drawn_row_by_row():
    marked, patient = _marked(1, images=20, each=4), np.arange(20) // 2
    counts = np.random.default_rng(5).multinomial(10, np.full(10, 0.1), 6)
    curve, chosen = Froc(marked, patient), np.arange(20) % 4 == 1
    drawn = curve.drawn_sensitivity(counts, curve.limits(counts), chosen)
    for row, count in zip(drawn, counts, strict=True):
        taken = np.repeat(np.arange(20), count[patient])
        false = [np.flatnonzero(marked.false_case == case) for case in taken]
        copy = Marked(
            np.repeat(np.arange(len(taken)), [len(some) for some in false]).astype(np.int32),
            marked.false_score[np.concatenate(false)],
            marked.true_score[taken],
        )
        by_hand = Froc(copy).sensitivity(chosen[taken])
        assert np.isnan(row).all() if by_hand is None else row == pytest.approx(by_hand)


def test_the_interval_is_that_of_the_clustered_bootstrap():
    marked, patient = _marked(2), np.arange(60) // 2
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 400)
    curve, everything = Froc(marked, patient), np.ones(60, bool)
    drawn = curve.drawn_sensitivity(counts, curve.limits(counts), everything).mean(axis=1)

    def cpm(frame):
        at = frame["image"].to_numpy()
        false = np.concatenate([marked.false_score[12 * case : 12 * case + 12] for case in at])
        copy = Marked(np.repeat(np.arange(len(at)), 12).astype(np.int32), false, marked.true_score[at])
        return Froc(copy).cpm(np.ones(len(at), bool))

    oracle = clustered_bootstrap(cpm, pd.DataFrame({"image": range(60), "patient": patient}), "patient", n=400)
    assert np.percentile(drawn, [2.5, 97.5]) == pytest.approx([oracle.low, oracle.high], abs=0.03)
