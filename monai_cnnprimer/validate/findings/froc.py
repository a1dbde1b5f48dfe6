# SPDX-License-Identifier: Apache-2.0
"""Localisation: marks from dense maps of any stride, and the free-response curve with its intervals.

MONAI's function of the CAMELYON16 challenge decides what is hit; here are the marks that go in, and the curve over
thousands of resamples of patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from monai.metrics.froc import compute_fp_tp_probs
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which sensitivity is averaged to the CPM (Setio et al., 2017, arXiv:1612.08012)."""
MOST_MARKS = 16
"""Marks kept of each image: twice as many as the highest rate takes."""


class Marks(NamedTuple):
    """Where an arm would point in one image, strongest first: score in (0, 1), row and column in pixels, all `(n,)`."""

    score: NDArray[np.float32]
    row: NDArray[np.float64]
    column: NDArray[np.float64]


@dataclass(frozen=True)
class Marked:
    """Marks of all images, judged.

    Attributes:
        false_case: the image `(M,)` of each mark that hits nothing.
        false_score: their scores `(M,)`.
        true_score: of each image `(N,)` the score of the best mark on its finding; 0 where none hits, NaN where there
            is no finding.
    """

    false_case: NDArray[np.int32]
    false_score: NDArray[np.float32]
    true_score: NDArray[np.float32]


def marks(maps: Mapping[str, NDArray[np.floating]], strides: Mapping[str, int], apart_px: float) -> Marks:
    """Marks of one image: the local maxima of all its dense maps, the weaker of two near each other left out.

    A maximum is placed between cells by the parabola through its neighbours, so that a coarse map is not held to the
    grid of its cells (a small finding would then be hit by luck only).

    Args:
        maps: log-odds of the cells `(h, w)`, by name; all maps count on one scale, as where they are pooled.
        strides: pixels from cell to cell; cell (0, 0) is centred on pixel (0, 0).
        apart_px: two marks are no nearer than this.

    Returns:
        At most `MOST_MARKS`; the scores are log-odds squeezed into (0, 1).

    Example:
        >>> cells = np.zeros((4, 4), np.float32)
        >>> cells[1, 2] = 5
        >>> found = marks({"p5": cells}, {"p5": 32}, apart_px=200)
        >>> found.row.tolist(), found.column.tolist()
        ([32.0], [64.0])
    """
    peaks = np.concatenate([_peaks(cells, strides[name]) for name, cells in maps.items()])
    peaks = peaks[np.argsort(-peaks[:, 0], kind="stable")]
    kept = np.empty((0, 3))
    for peak in peaks:
        if (np.hypot(*(kept[:, 1:] - peak[1:]).T) >= apart_px).all():
            kept = np.vstack([kept, peak])
        if len(kept) == MOST_MARKS:
            break
    squeezed = (0.5 + np.arctan(kept[:, 0]) / np.pi).astype(np.float32)
    return Marks(squeezed, kept[:, 1], kept[:, 2])


def judged(
    all_marks: Sequence[Marks], masks: NDArray[np.bool_], label: NDArray[np.integer], tolerance_px: NDArray[np.floating]
) -> Marked:
    """Which marks hit the finding of their image: those on it, or no farther from it than a tolerance.

    Args:
        all_marks: of each image.
        masks: `(N, H, W)`, one finding an image, or none.
        label: `(N,)`, 1 where there is a finding.
        tolerance_px: of each image `(N,)`.

    Raises:
        ValueError: a label that its mask contradicts, or a tolerance that is not known.
    """
    if not np.isfinite(tolerance_px).all():
        raise ValueError("the size of a pixel is unknown for some images: marks cannot be judged in mm")
    if not np.array_equal(masks.any(axis=(1, 2)), np.asarray(label) == 1):
        raise ValueError("labels and masks disagree on which images have a finding")
    false_case, false_score = [], []
    true_score = np.full(len(masks), np.nan, np.float32)
    for case, (found, mask) in enumerate(zip(all_marks, masks, strict=True)):
        near = distance_transform_edt(~mask) <= tolerance_px[case] if label[case] else mask
        row, column = (np.rint(np.clip(place, 0, size - 1)) for place, size in zip(found[1:], mask.shape, strict=True))
        missed, hit, _ = compute_fp_tp_probs(found.score, row, column, near.astype(int))
        false_case += [case] * len(missed)
        false_score += list(missed)
        if label[case]:
            true_score[case] = hit[0]
    return Marked(np.array(false_case, np.int32), np.array(false_score, np.float32), true_score)


class Froc:
    """The free-response curve at `RATES`, on the cases and on resamples of patients, many at once.

    A threshold lies just above the first false mark that a rate no longer allows, so the curve is read as steps;
    MONAI's `compute_froc_score` joins its points instead, looks through all marks for each threshold, and gives the
    same to within a step.

    Args:
        marked: marks of all images.
        cluster: `(N,)`, the number of each image's patient; None takes each image for a patient.
    """

    def __init__(self, marked: Marked, cluster: NDArray[np.intp] | None = None) -> None:
        self.marked = marked
        self.cluster = np.arange(marked.true_score.size) if cluster is None else cluster
        order = np.argsort(-marked.false_score, kind="stable")
        self._score = np.append(marked.false_score[order], 0)  # missed findings have 0
        self._false = self.cluster[marked.false_case[order]]

    def sensitivity(self, chosen: NDArray[np.bool_]) -> tuple[float, ...] | None:
        """Share of some findings hit at each of `RATES`; None without findings.

        Args:
            chosen: `(N,)`, the images whose findings count, such as those of a size bin; false marks count in all.
        """
        once = np.ones((1, self.cluster.max() + 1), np.int32)
        found = self.drawn_sensitivity(once, self.limits(once), chosen)[0]
        return None if np.isnan(found).any() else tuple(float(value) for value in found)

    def cpm(self, chosen: NDArray[np.bool_]) -> float | None:
        """Mean of `sensitivity` over `RATES`."""
        found = self.sensitivity(chosen)
        return None if found is None else sum(found) / len(found)

    def limits(self, counts: NDArray[np.integer]) -> NDArray[np.float64]:
        """Scores above which a rate allows all false marks, `(resamples, rates)`.

        Args:
            counts: how often each patient was drawn, `(resamples, patients)`.
        """
        images = counts @ np.bincount(self.cluster, minlength=counts.shape[1])
        allowed = np.floor(np.outer(images, RATES))
        # Row by row, so that the cumulative counts stay in the processor's cache.
        places = [
            np.searchsorted(np.cumsum(row[self._false]), most, side="right")
            for row, most in zip(counts, allowed, strict=True)
        ]
        return self._score[np.array(places)]

    def drawn_sensitivity(
        self, counts: NDArray[np.integer], limits: NDArray[np.floating], chosen: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Share of some findings hit `(resamples, rates)`; NaN where none was drawn.

        Args:
            counts: as for `limits`.
            limits: what `limits` gave for them.
            chosen: as for `sensitivity`.
        """
        at = np.flatnonzero(chosen & ~np.isnan(self.marked.true_score))
        at = at[np.argsort(-self.marked.true_score[at], kind="stable")]
        drawn = np.zeros((len(counts), at.size + 1))
        np.cumsum(counts[:, self.cluster[at]], axis=1, out=drawn[:, 1:])
        above = np.searchsorted(-self.marked.true_score[at], -limits, side="left")
        hit, findings = np.take_along_axis(drawn, above, axis=1), drawn[:, -1:]
        return np.divide(hit, findings, out=np.full(hit.shape, np.nan), where=findings > 0)


def _peaks(cells: NDArray[np.floating], stride: int) -> NDArray[np.float64]:
    """Score, row and column in pixels of the strongest local maxima, `(n, 3)`."""
    highest = np.argwhere(cells == maximum_filter(cells, 3, mode="nearest"))
    # A flat map is one maximum everywhere, and so are its marks: the first cells stand for all.
    order = np.argsort(-cells[tuple(highest.T)], kind="stable")[: 8 * MOST_MARKS]
    places = [(cells[row, column], *_between(cells, row, column)) for row, column in highest[order]]
    found = np.array(places, np.float64).reshape(-1, 3)
    found[:, 1:] *= stride
    return found


def _between(cells: NDArray[np.floating], row: int, column: int) -> tuple[float, float]:
    """The maximum's place in cells, by a parabola along each axis; at the border the cell itself."""
    places = []
    for line, at in ((cells[:, column], row), (cells[row], column)):
        offset = 0.0
        if 0 < at < len(line) - 1:
            before, here, after = (float(value) for value in line[at - 1 : at + 2])
            curvature = 2 * here - before - after
            offset = (after - before) / (2 * curvature) if curvature > 0 else 0.0
        places.append(at + offset)
    return places[0], places[1]
