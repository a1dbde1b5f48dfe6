# SPDX-License-Identifier: Apache-2.0
"""The aspect on the patient is kept, and the millimetres of a network pixel are known or None."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_cnnprimer.transforms import FitSized


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
