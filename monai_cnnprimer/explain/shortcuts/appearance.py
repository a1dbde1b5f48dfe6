# SPDX-License-Identifier: Apache-2.0
"""Changes of the whole image: exposure, gamma, polarity, sharpness, noise, resampling, JPEG, aspect, left and right.

They have no control: there is no elsewhere.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_cnnprimer.explain.shortcuts.change import Array, Pair, Subject, everywhere

EXPOSURE = 1.35
"""Factor on the odds of a grey value: with a sigmoid display curve, a shift of the log signal."""
GAMMA = 1.3
BLUR = 0.004  # sigma by the longer side: 1.5 mm on a plate of 384 mm
NOISE = 0.02
QUALITY = 40
SQUEEZE = 0.8


def brighter(subject: Subject, rng: np.random.Generator) -> Pair:
    """Less exposed: the odds of every grey value are multiplied by 1.35."""
    return everywhere(_odds(subject.image, EXPOSURE))


def darker(subject: Subject, rng: np.random.Generator) -> Pair:
    """More exposed: the odds of every grey value are divided by 1.35."""
    return everywhere(_odds(subject.image, 1 / EXPOSURE))


def gamma(subject: Subject, rng: np.random.Generator) -> Pair:
    """Another display: every grey value to the power of 1.3 or its inverse, as drawn."""
    return everywhere(subject.image ** np.float32(rng.choice((GAMMA, 1 / GAMMA))))


def invert(subject: Subject, rng: np.random.Generator) -> Pair:
    """The other polarity: bone dark."""
    return everywhere(1 - subject.image)


def blur(subject: Subject, rng: np.random.Generator) -> Pair:
    """Unsharp, as by motion: a Gaussian of 0.4 % of the longer side."""
    return everywhere(gaussian_filter(subject.image, BLUR * max(subject.image.shape), mode="nearest"))


def noise(subject: Subject, rng: np.random.Generator) -> Pair:
    """A low dose: noise that grows with brightness, since less of the beam arrives there."""
    image = subject.image
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return everywhere(image + grain * (NOISE + NOISE * image))


def resample(subject: Subject, rng: np.random.Generator) -> Pair:
    """Stored at half the pixels and enlarged again, as by a teaching file or a screenshot."""
    rows, columns = subject.image.shape
    return everywhere(_sized(_sized(subject.image, max(1, rows // 2), max(1, columns // 2)), rows, columns))


def compress(subject: Subject, rng: np.random.Generator) -> Pair:
    """Compressed as a JPEG of quality 40, eight bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(subject.image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return everywhere(np.asarray(Image.open(buffer), dtype=np.float32) / 255)


def squeeze(subject: Subject, rng: np.random.Generator) -> Pair:
    """Another aspect: a fifth fewer columns with the same content, as where images were squashed to one shape."""
    rows, columns = subject.image.shape
    return everywhere(_sized(subject.image, rows, max(1, round(SQUEEZE * columns))))


def flip(subject: Subject, rng: np.random.Generator) -> Pair:
    """Left and right exchanged: the heart on the other side, letters mirrored."""
    return everywhere(np.ascontiguousarray(subject.image[:, ::-1]))


def _odds(image: Array, factor: float) -> Array:
    return image * np.float32(factor) / (1 + image * np.float32(factor - 1))


def _sized(image: Array, rows: int, columns: int) -> Array:
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float32)
