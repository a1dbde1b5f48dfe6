# SPDX-License-Identifier: Apache-2.0
"""What two sites share: planted copies are found after what happens to copies, others are not."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from monai_cnnprimer.validate.overlap import (
    NEAR,
    hashes_from_hex,
    input_hashes,
    near_duplicates,
    perceptual_hashes,
    thumbnails,
)

DATA = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_kermany = pytest.mark.skipif(not (DATA / "kermany" / "test").exists(), reason="no images (CNNPRIMER_DATA)")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """40 smooth random images in [0, 1], 128 px."""
    noise = np.random.default_rng(0).normal(size=(40, 128, 128))
    smooth = np.stack([gaussian_filter(image, 3, mode="wrap") for image in noise])
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def _jpeg(image):
    file = io.BytesIO()
    Image.fromarray((255 * image).astype(np.uint8)).save(file, "JPEG", quality=30)
    return np.asarray(Image.open(file), dtype=np.float32) / 255


def _cropped(image):
    return zoom(image[1:126, 2:127], 128 / 125, order=1)


COPIES = {
    "recompressed": _jpeg,
    "darker": lambda image: 0.6 * image,
    "brighter": lambda image: np.clip(image + 0.1, 0, 1),
    "gamma": lambda image: image**0.8,
    "smaller": lambda image: image.reshape(64, 2, 64, 2).mean(axis=(1, 3)),
    "cropped": _cropped,
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=list(COPIES))
def test_copies_are_found_and_nothing_else(images, copy):
    copies = np.stack([copy(image) for image in images])
    hashes = np.concatenate([perceptual_hashes(images), perceptual_hashes(copies)])
    site = np.repeat(["a", "b"], 40)
    expected = [(number, number + 40) for number in range(40)]
    pairs = near_duplicates(hashes, site)
    assert sorted(zip(pairs["first"], pairs["second"], strict=True)) == expected
    small = np.concatenate([thumbnails(images), thumbnails(copies)])
    looked_at = near_duplicates(hashes, site, small)
    assert sorted(zip(looked_at["first"], looked_at["second"], strict=True)) == expected
    assert looked_at["correlation"].between(0.93, 1.0001).all()


def test_pairs_are_those_of_brute_force_nearest_first(images):
    hashes = np.tile(perceptual_hashes(images), (10, 1))
    random = np.random.default_rng(1)
    hashes ^= np.uint64(1) << random.integers(0, 64, size=hashes.shape, dtype=np.uint64)
    site = random.integers(0, 3, size=len(hashes))
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    wanted = (apart <= NEAR) & (site[:, None] != site[None]) & np.triu(np.ones_like(apart, dtype=bool), 1)
    pairs = near_duplicates(hashes, site)
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == set(zip(*np.nonzero(wanted), strict=True))
    assert (pairs["bits"] == apart[pairs["first"], pairs["second"]]).all()
    assert pairs["bits"].is_monotonic_increasing


def test_pairs_of_one_group_are_none(images):
    hashes = perceptual_hashes(images[[0, 0, 1]])
    assert near_duplicates(hashes, ["a", "a", "b"]).empty
    assert near_duplicates(hashes[:0], []).empty
    assert len(near_duplicates(hashes, [1, 2, 3])) == 1


def test_a_key_keeps_the_distances_and_hides_the_hash(images):
    plain, keyed, other = (perceptual_hashes(images, key) for key in (None, b"ours", b"theirs"))

    def distances(a, b):
        return np.bitwise_count(a[:, None] ^ b[None]).sum(axis=2)

    assert (distances(plain, plain) == distances(keyed, keyed)).all()
    assert (perceptual_hashes(images, b"ours") == keyed).all()
    for stranger in (plain, other):
        assert distances(keyed, stranger).min() > 2 * NEAR


def test_half_of_the_bits_are_set(images):
    assert set(np.bitwise_count(perceptual_hashes(images)).sum(axis=1).tolist()) == {127}


def test_thumbnails_are_means_over_cells(images):
    cells = images.reshape(40, 32, 4, 32, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(thumbnails(images), cells, atol=1e-6)
    ramp = np.broadcast_to(np.arange(100, dtype=float), (1, 77, 100))  # cells of 3.125 px
    second = (0.875 * 3 + 4 + 5 + 0.25 * 6) / 3.125
    np.testing.assert_allclose(thumbnails(ramp)[0, 0, :2], [(1 + 2 + 0.125 * 3) / 3.125, second], rtol=1e-5)


def test_blank_and_bad_images():
    blank = perceptual_hashes(np.zeros((1500, 32, 32)))
    with pytest.raises(ValueError, match="more than 1,000,000 pairs are alike: are the images blank"):
        near_duplicates(blank, np.arange(1500))
    with pytest.raises(ValueError, match="32 px or more a side"):
        perceptual_hashes(np.zeros((1, 31, 200)))
    with pytest.raises(ValueError, match="not finite"):
        thumbnails(np.full((1, 40, 40), np.nan))
    with pytest.raises(ValueError, match="one row for each of 3 cases"):
        near_duplicates(blank[:2], ["a", "b", "c"])


@needs_kermany
def test_two_patients_of_kermanys_test_set_have_the_same_image():
    folder = DATA / "kermany" / "test" / "NORMAL"
    files = sorted(folder.glob("NORMAL2-IM-0[01]*.jpeg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("L"), dtype=np.float32) for file in files])
    pairs = near_duplicates(perceptual_hashes(pixels), [file.name[:15] for file in files], thumbnails(pixels))
    assert [(files[row.first].name[:15], files[row.second].name[:15]) for row in pairs.itertuples()] == [
        ("NORMAL2-IM-0095", "NORMAL2-IM-0096")
    ]


def test_a_key_means_the_same_in_every_version_of_numpy(images):
    """Worked out once; a generator's stream may change between versions, and sites would no longer compare."""
    first = perceptual_hashes(np.linspace(0, 1, 64 * 64).reshape(1, 64, 64) ** 2, b"key").tobytes().hex()
    assert first == KNOWN


KNOWN = "3d8561e384461a11fc5d265a0a77003308190938690e181f9c14d6b74d13fd36"


def _padded(image, rows, columns):
    return np.pad(image, ((rows, rows), (columns, columns)))


def test_padding_does_not_change_the_hash_of_an_input(images):
    light = 0.1 + images  # no margin of their own
    plain = hashes_from_hex(input_hashes(light[:, None], b"key"))
    assert (plain == perceptual_hashes(light, b"key")).all()
    for rows, columns in ((20, 0), (0, 20)):
        padded = np.stack([_padded(image, rows, columns) for image in light])
        normalised = ((padded - 0.449) / 0.226)[:, None].astype(np.float32)
        apart = np.bitwise_count(hashes_from_hex(input_hashes(normalised, b"key")) ^ plain).sum(axis=1)
        assert apart.max() <= 2


def test_inputs_without_a_hash(images):
    odd = np.stack([np.zeros((128, 128)), np.full((128, 128), np.nan), _padded(images[0][:20], 54, 0)])
    hashes = input_hashes(np.concatenate([odd, images[:1]]).astype(np.float32)[:, None], b"key")
    assert hashes[:3] == ["", "", ""]
    assert len(hashes[3]) == 64
    colour = np.repeat(images[:1, None], 3, axis=1)
    assert input_hashes(colour, b"key") == hashes[3:]
