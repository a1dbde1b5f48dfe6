# SPDX-License-Identifier: Apache-2.0
"""Costs against hand calculations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_cnnprimer.networks import resnet50_classifier
from monai_cnnprimer.networks.cost import cost_table


def network(layers: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), *(nn.ReLU() for _ in range(layers)))


def test_parameters_and_multiply_adds_of_a_convolution():
    table = cost_table({"conv": nn.Conv2d(1, 4, 3, padding=1)}, image_size=16, batch_size=3, rounds=1)
    assert table.loc[0, "parameters"] == 4 * 9 + 4
    assert table.loc[0, "multiply_adds"] == 16 * 16 * 4 * 9


def test_multiply_adds_of_resnet50_are_the_published_four_billion():
    table = cost_table({"resnet50": resnet50_classifier(1000)}, rounds=1)
    assert table.loc[0, "parameters"] == 25_557_032
    assert table.loc[0, "multiply_adds"] == pytest.approx(4.09e9, rel=2e-3)


@pytest.mark.parametrize("layers", [2, 5])
def test_peak_memory_holds_two_maps_of_a_chain_and_the_weights(layers):
    table = cost_table({"chain": network(layers)}, image_size=256, batch_size=2, rounds=1)
    maps = 2 * (2 * 4 * 256 * 256) * 4
    assert table.loc[0, "peak_memory_mib"] == pytest.approx((maps + 16) / 2**20)


def test_more_work_takes_longer():
    table = cost_table({"short": network(1), "long": network(60)}, image_size=128, rounds=5).set_index("network")
    assert (
        table.loc["long", ["ms_per_image", "cpu_ms_per_image"]]
        > table.loc["short", ["ms_per_image", "cpu_ms_per_image"]]
    ).all()


def test_networks_keep_their_mode_and_their_statistics():
    chain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2))
    before = chain[2].running_mean.clone()
    cost_table({"chain": chain}, image_size=8, rounds=1)
    assert [module.training for module in chain] == [True, False, True]
    assert torch.equal(chain[2].running_mean, before)
    assert all(parameter.grad is None for parameter in chain.parameters())


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="0 networks and 3 rounds: nothing to measure"):
        cost_table({}, rounds=3)
