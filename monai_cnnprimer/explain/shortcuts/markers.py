# SPDX-License-Identifier: Apache-2.0
"""Side markers: lead letters inserted, removed and swapped, and found in images of which no mask is known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_fill_holes, find_objects, gaussian_filter, label, median_filter

from monai_cnnprimer.explain.shortcuts.change import Array, Changed, LeftOut, Mask, Pair, Subject, within
from monai_cnnprimer.explain.shortcuts.inpainting import inpaint

LETTERS = ("R", "L")
HEIGHT = (0.036, 0.047)
"""Of a letter, by the image's longer side: 14 to 18 mm on a plate of 384 mm."""

_CORNER = 0.34  # how far an upper corner reaches down and in, by the sides of the image
_SIZES = (0.018, 0.12)  # of a marker's height, by the longer side
_SEARCH = 256  # pixels of the longer side at which markers are looked for
_GROUND = 0.1  # of the longer side: a square whose median is what surrounds a letter
_RISE = 0.12  # brighter than what surrounds it
_SOLID = (0.16, 0.85)  # of the box around a letter, how much is ink


def insert_marker(subject: Subject, rng: np.random.Generator) -> Pair:
    """A lead R or L in the upper corner of its side, in an image without a marker.

    The control is the same ink, turned by half a turn about the image's middle: in the opposite lower corner, upside
    down, where no marker stands.

    Raises:
        LeftOut: there is a marker already, or the lungs leave no room for one.
    """
    if marker_of(subject) is not None:
        raise LeftOut("has a marker already")
    for _ in range(12):
        ink = _placed(subject.image.shape, str(rng.choice(LETTERS)), rng)
        if "lung" not in subject.masks or not (subject.masks["lung"] & (ink > 0)).any():
            turned = np.ascontiguousarray(ink[::-1, ::-1])
            return Pair(_inked(subject.image, ink), _inked(subject.image, turned))
    raise LeftOut("the lungs reach into both upper corners")


def remove_marker(subject: Subject, rng: np.random.Generator) -> Pair:
    """The marker filled with what surrounds it; the control is the same filling in the other upper corner.

    Raises:
        LeftOut: no marker is known or found.
    """
    hole = _hole(subject)
    other = np.ascontiguousarray(hole[:, ::-1])
    image = subject.image
    return Pair(within(image, inpaint(image, hole, rng), hole), within(image, inpaint(image, other, rng), other))


def swap_marker(subject: Subject, rng: np.random.Generator) -> Pair:
    """Another letter in the place of the marker, as bright, and as large where that is the size of one common letter.

    The control is the marker's own ink, mirrored in its place: as much is changed, but no letter means anything else.

    Raises:
        LeftOut: no marker is known or found.
    """
    hole = _hole(subject)
    image, box = subject.image, find_objects(hole.astype(np.uint8))[0]
    where = np.zeros_like(hole)
    where[box] = True
    ground = inpaint(image, hole, rng)
    height, width = hole[box].shape
    own_height = min(height - 2 * _rim(hole.shape), round(HEIGHT[1] * max(hole.shape)))
    letter = _letter(str(rng.choice(("A", "P", "X"))), max(3, own_height))[:height, :width]
    ink = np.zeros_like(image)
    top, left = (
        part.start + (part.stop - part.start - side) // 2 for part, side in zip(box, letter.shape, strict=True)
    )
    ink[top : top + letter.shape[0], left : left + letter.shape[1]] = letter
    bright = float(np.percentile(image[hole], 98))
    own = image - ground
    mirrored = ground.copy()
    mirrored[box] += own[box][:, ::-1]
    return Pair(within(image, ground * (1 - ink) + bright * ink, where), within(image, mirrored, where))


def marker_of(subject: Subject) -> Mask | None:
    """The marker's mask where it is known (an empty one: there is none), else what `find_marker` finds."""
    known = subject.masks.get("marker")
    if known is not None:
        return known if known.any() else None
    return find_marker(subject.image, subject.masks.get("lung"))


def find_marker(image: Array, lung: Mask | None = None) -> Mask | None:
    """A bright compact thing of a letter's size and density of ink in an upper corner, outside of the lungs.

    It is looked for in a copy of 256 pixels: components that rise above their surroundings, that stand free of the
    corner's inner edges, and whose neighbours of the same kind, other letters, belong to them. Bones and clothes are
    longer, paler or fuller than a letter; what is in doubt is not taken.

    Args:
        image: ``(H, W)`` in [0, 1].
        lung: ``(H, W)``, where it is known.

    Returns:
        ``(H, W)``, the ink and its rim; None where nothing was found.
    """
    small, step = _shrunk(image)
    side = max(small.shape)
    rows, columns = (round(_CORNER * length) for length in small.shape)
    ground = max(5, round(_GROUND * side))
    rise = small[:rows] - median_filter(small[: rows + ground], size=ground, mode="nearest")[:rows]
    bright = (rise > _RISE) & (small[:rows] > max(0.55, 0.85 * float(np.percentile(small, 90))))
    if lung is not None:
        bright &= ~lung[::step, ::step][:rows, : small.shape[1]]
    strongest, best = 0.0, None
    for left, place in ((True, np.s_[:, :columns]), (False, np.s_[:, small.shape[1] - columns :])):
        strength, letters = _letters(bright[place], rise[place], side, left)
        if letters is not None and strength > strongest:
            strongest, best = strength, np.zeros(bright.shape, dtype=bool)
            best[place] = letters
    if best is None:
        return None
    marker = np.zeros(image.shape, dtype=bool)
    marker[: rows * step, : small.shape[1] * step] = np.repeat(np.repeat(best, step, 0), step, 1)
    return marker


def _letters(bright: Mask, rise: Array, side: int, left: bool) -> tuple[float, Mask | None]:
    """The strongest component that looks like a letter, with its neighbours, and how strong it is."""
    numbered, _ = label(bright, structure=np.ones((3, 3)))
    kept: list[tuple[float, int]] = []
    for number, box in enumerate(find_objects(numbered), 1):
        ink = numbered[box] == number
        height, width = ink.shape
        inner = box[1].stop >= bright.shape[1] if left else box[1].start == 0
        if inner or box[0].stop >= bright.shape[0]:
            continue
        if not _SIZES[0] * side <= height <= _SIZES[1] * side or not 0.25 <= width / height <= 3:
            continue
        if _SOLID[0] <= ink.mean() <= _SOLID[1] and binary_fill_holes(ink).mean() <= 0.97:
            kept.append((float(rise[box][ink].mean()), number))
    strength = max((value for value, _ in kept), default=0.0)
    if strength < 1.5 * _RISE:
        return strength, None
    near = {number for value, number in kept if value > 0.5 * strength}
    return strength, binary_dilation(np.isin(numbered, list(near)), iterations=1)


def _shrunk(image: Array) -> tuple[Array, int]:
    """Every pixel of a copy the mean of `step` x `step`; a rest at the lower and right edge is left out."""
    step = max(1, max(image.shape) // _SEARCH)
    rows, columns = (side // step for side in image.shape)
    return image[: rows * step, : columns * step].reshape(rows, step, columns, step).mean(axis=(1, 3)), step


def _hole(subject: Subject) -> Mask:
    """The marker with its rim, where blur has spread it."""
    marker = marker_of(subject)
    if marker is None:
        raise LeftOut("no marker was found")
    return binary_dilation(marker, iterations=_rim(marker.shape))


def _rim(shape: tuple[int, ...]) -> int:
    return 1 + round(0.006 * max(shape))


def _placed(shape: tuple[int, ...], text: str, rng: np.random.Generator) -> Array:
    """Ink in [0, 1], ``(H, W)``: the letter in the upper corner of its side (L: image's right)."""
    rows, columns = shape
    side = max(shape)
    letter = _letter(text, max(3, round(rng.uniform(*HEIGHT) * side)))
    height, width = letter.shape
    edge, top = (round(rng.uniform(0.04, 0.09) * side) for _ in range(2))
    left = columns - edge - width if text == "L" else edge
    if height + top >= rows or width + edge >= columns:
        raise LeftOut("smaller than a marker")
    ink = np.zeros(shape, np.float32)
    ink[top : top + height, left : left + width] = letter
    return ink


@lru_cache(maxsize=64)
def _letter(text: str, height: int) -> Array:
    """A letter's ink in [0, 1], so many pixels high, with the soft edge of a real detector."""
    font = ImageFont.load_default(96)
    left, top, right, bottom = font.getbbox(text)
    drawn = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(drawn).text((-left, -top), text, font=font, fill=255, stroke_width=2, stroke_fill=255)
    width = max(2, round(height * drawn.width / drawn.height))
    small = np.asarray(drawn.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    soft = gaussian_filter(np.pad(small, 1), 0.35)
    return np.asarray(np.where(soft > 0.02, soft / soft.max(), 0), dtype=np.float32)


def _inked(image: Array, ink: Array) -> Changed:
    """Lead lets nothing through: the ink is as bright as the image gets."""
    lead = max(0.95, float(image.max()))
    return within(image, image * (1 - ink) + lead * ink, ink > 0)
