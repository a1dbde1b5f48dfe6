# SPDX-License-Identifier: Apache-2.0
"""Hiding parts of an image: a collimated border, the lungs, everything but the lungs."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, find_objects, gaussian_filter

from monai_cnnprimer.explain.shortcuts.change import Array, LeftOut, Mask, Pair, Subject, within

BORDER = (0.02, 0.07)
"""Range of a border's width on each side, by that side's length."""
RIM = 0.015  # by the longer side: how far the cover of the lungs reaches beyond their outline


def border(subject: Subject, rng: np.random.Generator) -> Pair:
    """A black border on all sides, where the collimator cut the beam.

    The control loses the same pixels to a blur instead: their detail is gone, but no frame is there.
    """
    image = subject.image
    rows, columns = image.shape
    top, bottom = (max(1, round(share * rows)) for share in rng.uniform(*BORDER, 2))
    left, right = (max(1, round(share * columns)) for share in rng.uniform(*BORDER, 2))
    where = np.ones(image.shape, dtype=bool)
    where[top : rows - bottom, left : columns - right] = False
    soft = gaussian_filter(image, 0.03 * max(image.shape), mode="nearest")
    return Pair(within(image, np.zeros_like(image), where), within(image, soft, where))


def cover_lungs(subject: Subject, rng: np.random.Generator) -> Pair:
    """The lungs and a rim around them in the image's mean grey; their outline stays to be seen.

    The control covers as many pixels, those farthest from the lungs.
    """
    return _covered(subject.image, _lungs(subject))


def cover_lung_box(subject: Subject, rng: np.random.Generator) -> Pair:
    """The rectangle around both lungs in mean grey, which hides their outline too.

    The control covers as many pixels, those farthest from the rectangle.
    """
    box = find_objects(_lungs(subject).astype(np.uint8))[0]
    hidden = np.zeros(subject.image.shape, dtype=bool)
    hidden[box] = True
    return _covered(subject.image, hidden)


def cover_all_but_lungs(subject: Subject, rng: np.random.Generator) -> Pair:
    """Everything but the lungs in the image's mean grey.

    The control leaves as many pixels to be seen, those farthest from the lungs.
    """
    return _covered(subject.image, ~_lungs(subject))


def _lungs(subject: Subject) -> Mask:
    lung = subject.masks.get("lung")
    if lung is None or not lung.any():
        raise LeftOut("no mask of the lungs is known")
    wide = binary_dilation(lung, iterations=max(1, round(RIM * max(lung.shape))))
    if wide.all():
        raise LeftOut("the lungs fill the image")
    return wide


def _covered(image: Array, hidden: Mask) -> Pair:
    """Pixels are ranked by how far they are from the hidden region; the control hides the other end of the ranking."""
    outside, inside = distance_transform_edt(~hidden), distance_transform_edt(hidden)
    order = np.argsort(inside - outside, axis=None, kind="stable")
    other = np.zeros_like(hidden)
    other.ravel()[order[: np.count_nonzero(hidden)]] = True
    grey = np.full_like(image, image.mean())
    return Pair(within(image, grey, hidden), within(image, grey, other))
