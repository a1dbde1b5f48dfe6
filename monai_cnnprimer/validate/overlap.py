# SPDX-License-Identifier: Apache-2.0
"""Images that are nearly the same: hashes that stay alike when an image is saved anew, and the search for pairs.

A perceptual hash without a key is patient data: it is as good as a thumbnail of signs, and whoever has the image sees
that it was among the cases. A run therefore keeps hashes made with the key of its pseudonyms: they compare with those
of the same key, and say nothing to one who has a single hash and no key. They are no secret for ever: one who has many
of them, and many radiographs of the kind, can guess the order of the bits from which bits go together. `cnnprimer pack`
therefore leaves them out unless a site asks for them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dctn

from monai_cnnprimer.dicom.key import pseudonym_key

SIDE = 32  # px of a thumbnail
KEPT = 16  # frequencies a side of which the hash keeps the signs
BITS = KEPT * KEPT - 1
# Of 22 million pairs of radiographs of different patients (Kermany, NIH), 2 are within 40 bits, and one of these is the
# same image twice. JPEG of quality 30, brightness, gamma 0.8 and half the size moved 300 images by 22 at most; of crops
# of up to 2 % a side 97 % stayed within 40, of 4 % only 39 %. A hash of 64 bits parts less: 1 pair in 100,000 is within
# 6, and such a crop moves 8.
NEAR = 40
NEAR_TO_LOOK_AT = 56  # with thumbnails, where the correlation decides
ALIKE = 0.93  # correlation of thumbnails; 6 of these pairs reach it
MOST_PAIRS = 1_000_000
BLOCK = 256
DARK = 0.02  # of the range above the darkest value: what padding and empty margins have


def thumbnails(images: ArrayLike) -> NDArray[np.float32]:
    """Means over a grid of 32 x 32 cells, `(n, 32, 32)`, of images `(n, H, W)`.

    Raises:
        ValueError: images smaller than the grid, or with values that are not finite.
    """
    pixels = np.asarray(images, dtype=np.float32)
    if pixels.ndim != 3 or min(pixels.shape[1:]) < SIDE:
        raise ValueError(f"images {pixels.shape} must be (n, H, W), {SIDE} px or more a side")
    if not np.isfinite(pixels).all():
        raise ValueError("images hold values that are not finite")
    down, across = (_cells(length) for length in pixels.shape[1:])
    return np.asarray(down @ pixels @ across.T)


def perceptual_hashes(images: ArrayLike, key: bytes | None = None) -> NDArray[np.uint64]:
    """Signs of the 255 lowest frequencies about their median, 256 bits an image, after Zauner (thesis, Hagenberg 2010).

    Contrast, brightness and size change few of them. With a key the bits are shuffled and half of them turned round, in
    the same way for every version of every library: distances stay, and without the key no hash can be made to compare
    with.

    Args:
        images: ``(n, H, W)``, 32 px or more a side; all of one size in one call.
        key: that of the pseudonyms; None where the hashes stay beside the images.

    Returns:
        ``(n, 4)``.

    Raises:
        ValueError: as `thumbnails`.

    Example:
        >>> image = np.random.default_rng(0).random((1, 64, 64))
        >>> bool((perceptual_hashes(image) == perceptual_hashes(0.5 * image + 0.1)).all())
        True
    """
    spectrum = dctn(thumbnails(images), axes=(1, 2), norm="ortho")[:, :KEPT, :KEPT]
    waves = spectrum.reshape(len(spectrum), -1)[:, 1:]
    bits = waves > np.median(waves, axis=1, keepdims=True)
    if key is not None:
        order, turned = _shuffle(key)
        bits = bits[:, order] ^ turned
    return np.packbits(np.pad(np.ascontiguousarray(bits), ((0, 0), (0, 1))), axis=1).view(np.uint64)


def input_hashes(images: NDArray[np.float32], key: bytes | str | os.PathLike[str] | None = None) -> list[str]:
    """Keyed hashes of a network's inputs, as a run keeps them.

    The padding is cut off first: as the same frame round unlike radiographs it would make them alike. Of 1,033,813
    pairs of different patients (Kermany's test part at its own aspect, NIH; 160 px) 44 were within 56 bits with the
    padding and 4 without it, 1 within 40: the same image twice.

    Args:
        images: ``(n, C, H, W)``; of several channels the mean.
        key: as in `pseudonym_key`.

    Returns:
        64 hexadecimal digits each; "" for an image of one value, with values that are not finite, or of less than 32 px
        a side without its padding.
    """
    secret = pseudonym_key(key)
    return [_input_hash(image.mean(axis=0), secret) for image in np.asarray(images, dtype=np.float32)]


def hashes_from_hex(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hashes `(n, 4)` of `input_hashes`' digits, none of them empty."""
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.uint64).reshape(-1, 4)


def near_duplicates(
    hashes: NDArray[np.uint64], group: ArrayLike, small: NDArray[np.float32] | None = None
) -> pd.DataFrame:
    """Pairs of images, of different groups, that are nearly the same.

    All pairs are compared, 64 bits at once, with memory for a block of them: 5,000 images take less than a second,
    100,000 a minute or two.

    Args:
        hashes: ``(n, 4)``, of one key.
        group: ``(n,)`` what a pair must differ in: site, split, or patient.
        small: ``(n, 32, 32)`` `thumbnails`. With them, pairs farther apart are looked at (56 bits rather than 40) and
            kept where the details correlate by 0.93.

    Returns:
        One row a pair, nearest first: `first`, `second` (row numbers), `bits` (0 to 255) and, with thumbnails,
        `correlation`.

    Raises:
        ValueError: more than a million pairs, as of images that are blank.
    """
    groups = pd.factorize(np.asarray(group))[0]
    if hashes.shape != (groups.size, 4) or (small is not None and len(small) != groups.size):
        raise ValueError(f"hashes {hashes.shape} and thumbnails must have one row for each of {groups.size} cases")
    pairs = _pairs(hashes, groups, NEAR if small is None else NEAR_TO_LOOK_AT)
    if small is not None:
        pairs["correlation"] = _correlation(small, pairs["first"].to_numpy(), pairs["second"].to_numpy())
        pairs = pairs[pairs["correlation"] >= ALIKE]
    return pairs.sort_values(["bits", "first", "second"], ignore_index=True)


def _input_hash(image: NDArray[np.float32], key: bytes) -> str:
    if not np.isfinite(image).all() or not np.ptp(image) > 0:
        return ""
    inside = without_margins(image)
    return "" if min(inside.shape) < SIDE else perceptual_hashes(inside[None], key).tobytes().hex()


def without_margins(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image `(H, W)` without dark margins of equal width, above and below or left and right: what padding adds.

    Example:
        >>> without_margins(np.pad(np.ones((40, 30), dtype=np.float32), ((0, 0), (5, 5)))).shape
        (40, 30)
    """
    dark = image <= image.min() + DARK * np.ptp(image)
    above, left = (_margin(dark.all(axis=axis)) for axis in (1, 0))
    return image[above : len(image) - above] if above > left else image[:, left : image.shape[1] - left]


def _margin(dark: NDArray[np.bool_]) -> int:
    """How many lines are dark from either end; not all of them."""
    light = np.flatnonzero(~dark)
    return int(min(light[0], dark.size - 1 - light[-1])) if light.size else 0


@lru_cache(maxsize=4)
def _shuffle(key: bytes) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The order of the bits, and which are turned round."""
    stream = np.frombuffer(hashlib.shake_256(b"perceptual hash" + key).digest(16 * BITS), dtype="<u8")
    return np.argsort(stream[:BITS], kind="stable"), stream[BITS:] % 2 == 1


@lru_cache(maxsize=256)
def _cells(length: int) -> NDArray[np.float32]:
    """`(32, length)`: how much of each pixel lies in each cell, as weights of a mean."""
    edges = np.arange(SIDE + 1) * length / SIDE
    pixel = np.arange(length)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(inside, 0, None) * SIDE / length).astype(np.float32)


def _pairs(hashes: NDArray[np.uint64], groups: NDArray[np.intp], most: int) -> pd.DataFrame:
    found: list[pd.DataFrame] = []
    total = 0
    for start in range(0, len(hashes), BLOCK):
        block, rest = hashes[start : start + BLOCK], hashes[start:]
        bits = np.zeros((len(block), len(rest)), dtype=np.uint16)
        for word in range(hashes.shape[1]):
            bits += np.bitwise_count(block[:, None, word] ^ rest[None, :, word])
        apart = groups[start : start + BLOCK, None] != groups[None, start:]
        first, second = np.nonzero((bits <= most) & apart)
        once = first < second
        first, second = first[once], second[once]
        total += first.size
        if total > MOST_PAIRS:
            raise ValueError(f"more than {MOST_PAIRS:,} pairs are alike: are the images blank?")
        found.append(pd.DataFrame({"first": first + start, "second": second + start, "bits": bits[first, second]}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"first": [], "second": [], "bits": []})


def _correlation(small: NDArray[np.float32], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float32]:
    """Correlation without the nine lowest frequencies, which are alike in all chests."""
    spectrum = dctn(small, axes=(1, 2), norm="ortho")
    spectrum[:, :3, :3] = 0
    fine = spectrum.reshape(len(small), -1)
    fine /= np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.einsum("pf,pf->p", fine[first], fine[second])
