# SPDX-License-Identifier: Apache-2.0
"""The aspect on the patient is kept, and the millimetres of a network pixel are known or None."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_cnnprimer.transforms import FitSized, RandAspectd


def _fit(pixels, spacing, size=224):
    image = MetaTensor(torch.as_tensor(pixels, dtype=torch.float32)[None], meta={"pixel_spacing_mm": spacing})
    return FitSized(keys="image", size=size)({"image": image})["image"]


@pytest.mark.parametrize(
    ("shape", "spacing", "expected", "mm"),
    [
        ((2500, 2048), (0.168, 0.168), (224, 184), (1.875, 1.8699)),
        ((2048, 2500), (0.168, 0.168), (184, 224), (1.8699, 1.875)),
        ((100, 100), (0.4, 0.2), (224, 112), (0.17857, 0.17857)),
        ((100, 50), None, (224, 112), None),
    ],
)
def test_longer_side_in_mm_fills_the_network_input(shape, spacing, expected, mm):
    fitted = _fit(np.zeros(shape), spacing)
    assert fitted.shape[1:] == expected
    assert fitted.meta["network_spacing_mm"] == (None if mm is None else pytest.approx(mm, rel=1e-3))


def test_mean_brightness_is_kept_when_shrinking_since_it_is_antialiased():
    stripes = np.zeros((448, 448))
    stripes[:, ::2] = 1
    fitted = _fit(stripes, None)
    assert fitted[0, 20:-20, 20:-20].mean().item() == pytest.approx(0.5, abs=0.01)
    assert fitted[0, 20:-20, 20:-20].std().item() < 0.02


def test_input_is_not_changed():
    image = MetaTensor(torch.rand(1, 30, 20), meta={"pixel_spacing_mm": None})
    before = image.clone()
    FitSized(keys="image", size=10)({"image": image})
    assert torch.equal(image, before)
    assert "network_spacing_mm" not in image.meta


def _squashed(aspect, side=120):
    """One scene, seen `aspect` times as wide as high, squashed to a square."""
    y, x = np.meshgrid(*2 * [(np.arange(side) + 0.5) / side - 0.5], indexing="ij")
    scene = np.cos(9 * aspect * x + 4 * y) + np.cos(7 * y)
    size = {"original_width": str(int(1000 * aspect)), "original_height": "1000"}
    return {"image": torch.as_tensor(scene, dtype=torch.float32)[None], **size}


def test_images_of_any_original_aspect_look_squashed_from_the_one_drawn():
    seen = [RandAspectd("image", aspects=(1.25, 1.25))(_squashed(aspect))["image"] for aspect in (1.25, 1.4, 1.7)]
    for image in seen[1:]:
        assert (image - seen[0]).abs().max() < 0.15


def test_an_image_that_was_not_squashed_is_stretched_too():
    case = _squashed(1.0)
    unsquashed = {"image": case["image"]}
    stretched = [RandAspectd("image", aspects=(1.25, 1.25))(one)["image"] for one in (case, unsquashed)]
    assert torch.equal(*stretched)
    assert (stretched[0] - case["image"]).abs().max() > 0.5


def test_the_aspect_drawn_depends_on_the_seed_alone():
    draw = RandAspectd("image", aspects=(1.1, 1.7))
    first, second, again = (draw.set_random_state(seed)(_squashed(1.4))["image"] for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
