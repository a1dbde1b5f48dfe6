# SPDX-License-Identifier: Apache-2.0
"""Patients and images that two sites or two splits have in common: by key, by file, and by likeness.

A perceptual hash shows to anyone who has the image that it was among the cases. That makes it patient data: it is for
use where the images are, or with a key that the sites share, and no folder that is sent away holds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dctn

SIDE = 32  # px of a thumbnail
KEPT = 16  # frequencies a side of which the hash keeps the signs
# Of 22 million pairs of radiographs of different patients (Kermany, NIH), 2 are within 40 bits, and one of these is the
# same image twice. JPEG of quality 30, brightness, gamma 0.8 and half the size moved 300 images by 22 at most; of crops
# of up to 2 % a side 97 % stayed within 40, of 4 % only 39 %. A hash of 64 bits parts less: 1 pair in 100,000 is within
# 6, and such a crop moves 8.
NEAR = 40
NEAR_TO_LOOK_AT = 56  # with thumbnails, where the correlation decides
ALIKE = 0.93  # correlation of thumbnails; 6 of these pairs reach it
MOST_PAIRS = 1_000_000
BLOCK = 256


@dataclass(frozen=True)
class Shared:
    """What two groups of cases have in common: patients by key, images by file."""

    first: str
    second: str
    patients: int
    files: int


def shared_cases(tables: Mapping[str, pd.DataFrame]) -> list[Shared]:
    """Patients and files that are in two of several manifests, for each pair of them.

    Keys of patients can only be compared where both were made with one key; 0 says nothing else. Files are compared by
    their bytes, for any key.

    Args:
        tables: by site or split, manifests with `patient_key` and `sha256`.

    Raises:
        ValueError: a table without these columns.

    Example:
        >>> first = pd.DataFrame({"patient_key": ["a", "b"], "sha256": ["1", "2"]})
        >>> second = pd.DataFrame({"patient_key": ["b", "c"], "sha256": ["3", "4"]})
        >>> shared_cases({"train": first, "test": second})
        [Shared(first='train', second='test', patients=1, files=0)]
    """
    for name, table in tables.items():
        missing = {"patient_key", "sha256"} - set(table.columns)
        if missing:
            raise ValueError(f"the manifest of {name} has no {' and no '.join(sorted(missing))}")
    known = {
        name: [set(table[column].dropna()) - {""} for column in ("patient_key", "sha256")]
        for name, table in tables.items()
    }
    return [
        Shared(first, second, *(len(ours & theirs) for ours, theirs in zip(known[first], known[second], strict=True)))
        for first, second in combinations(known, 2)
    ]


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
    return np.einsum("rh,nhw,cw->nrc", down, pixels, across, optimize=True)


def perceptual_hashes(images: ArrayLike, key: bytes | None = None) -> NDArray[np.uint64]:
    """Signs of the 255 lowest frequencies about their median, 256 bits an image, after Zauner (thesis, Hagenberg 2010).

    Contrast, brightness and size change few of them. With a key the bits are shuffled and some turned round: distances
    stay, and without the key no hash can be made to compare with. That hides them from outsiders, not from one who has
    many hashes and radiographs like these to guess the order from.

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
        random = np.random.default_rng(list(hashlib.sha256(b"perceptual hash" + key).digest()))
        bits = bits[:, random.permutation(bits.shape[1])] ^ (random.random(bits.shape[1]) < 0.5)
    return np.packbits(np.pad(np.ascontiguousarray(bits), ((0, 0), (0, 1))), axis=1).view(np.uint64)


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
