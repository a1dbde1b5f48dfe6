# SPDX-License-Identifier: Apache-2.0
"""Receptive fields against the reach of gradients, and maps aligned with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from scipy.ndimage import map_coordinates
from torch import nn

from monai_cnnprimer.explain.receptive_field import ReceptiveField, align_map, theoretical_receptive_field

# He et al. (2016) with the stride in the 3x3, worked out by hand: size grows by (kernel - 1) x jump.
RESNET50 = {
    "conv1": (7, 2, 0),
    "layer1": (35, 4, 0),
    "layer2": (91, 8, 0),
    "layer3": (267, 16, 0),
    "layer4": (427, 32, 0),
}


def narrow_resnet50() -> ResNet:
    """The geometry of ResNet-50 with two channels where it has 64."""
    return ResNet("bottleneck", [3, 4, 6, 3], [2, 4, 8, 16], 2, 1, conv1_t_stride=2, num_classes=2)


def reach(network: nn.Module, layer: str, unit: int, side: int) -> tuple[int, int]:
    """First and last row of the input on which a unit of the layer's diagonal depends, by its gradient."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    image = torch.rand(8, 1, side, side, dtype=torch.float64, requires_grad=True)
    network(image)
    handle.remove()
    (gradient,) = torch.autograd.grad(kept[0][:, :, unit, unit].sum(), image)
    rows = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    return int(rows[0]), int(rows[-1])


@pytest.mark.parametrize("layer", RESNET50)
def test_resnet50_has_the_fields_worked_out_by_hand(layer):
    assert theoretical_receptive_field(narrow_resnet50(), layer) == RESNET50[layer]


@pytest.mark.parametrize(("layer", "unit", "side"), [("conv1", 8, 64), ("layer1", 10, 80), ("layer2", 12, 192)])
def test_gradients_reach_exactly_as_far_as_the_field(layer, unit, side):
    torch.manual_seed(0)
    network = narrow_resnet50().double().eval()
    for parameter in network.parameters():
        parameter.data.abs_()  # no path can cancel another
    size, jump, start = theoretical_receptive_field(network, layer)
    centre = start + unit * jump
    assert reach(network, layer, unit, side) == (centre - (size - 1) / 2, centre + (size - 1) / 2)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (nn.Conv2d(1, 1, 3), (3, 1, 1)),
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), (5, 1, 0)),
        (nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(1, 1, 4)), (4, 1, 0.5)),
        (nn.Sequential(nn.Conv2d(1, 1, 3, stride=3), nn.Conv2d(1, 1, 3, padding=1)), (9, 3, 1)),
        (nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(2)), (4, 4, 1.5)),
        (nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(1, 1, 7)), (7, 1, 0)),
    ],
)
def test_a_chain_of_windows(chain, expected):
    network = nn.Sequential(chain)
    image = torch.zeros(1, 1, 48, 48)
    assert theoretical_receptive_field(network, "0", image) == expected
    assert reach_of_chain(network, unit=4) == (
        expected[2] + 4 * expected[1] - (expected[0] - 1) / 2,
        expected[2] + 4 * expected[1] + (expected[0] - 1) / 2,
    )


def reach_of_chain(network: nn.Module, unit: int) -> tuple[int, int]:
    torch.manual_seed(0)
    return reach(network.double(), "0", unit, 48)


def test_branches_are_covered_by_the_largest():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow, self.end = nn.Conv2d(1, 1, 9, padding=4), nn.Conv2d(1, 1, 1), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.end(torch.cat([self.narrow(x), self.wide(x)], dim=1) + x)

    assert theoretical_receptive_field(Branches(), "end") == (9, 1, 0)


def test_a_gate_over_the_whole_image_has_no_bound():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.end = nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.end(x * x.mean(dim=(2, 3), keepdim=True).sigmoid())

    assert theoretical_receptive_field(Gated(), "end") == (float("inf"), 2, 0)


def test_the_network_is_left_as_it_came():
    network = narrow_resnet50().train()
    network.layer2.eval()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    theoretical_receptive_field(network, "layer4")
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_has_no_field_is_named():
    network = narrow_resnet50()
    with pytest.raises(ValueError, match="no layer 'layer5'; choose among .*layer4"):
        theoretical_receptive_field(network, "layer5")
    with pytest.raises(ValueError, match="layer 'fc' is not known: aten.mean changes the grid"):
        theoretical_receptive_field(network, "fc")
    with pytest.raises(ValueError, match="layer 'layer1.0.act' ran 3 times"):
        theoretical_receptive_field(network, "layer1.0.act")
    with pytest.raises(ValueError, match="layer '0' differs between axes"):
        theoretical_receptive_field(nn.Sequential(nn.Conv2d(1, 1, (3, 5))), "0")
    with pytest.raises(ValueError, match="not known: a transposed convolution"):
        theoretical_receptive_field(nn.Sequential(nn.ConvTranspose2d(1, 1, 2, 2)), "0", torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="give an image"):
        theoretical_receptive_field(nn.Sequential(nn.MaxPool2d(2)), "0")


@pytest.mark.parametrize("field", [ReceptiveField(427, 32, 0), ReceptiveField(9, 3, 1), ReceptiveField(4, 4, 1.5)])
def test_aligned_maps_interpolate_between_field_centres(field):
    maps = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    aligned = align_map(maps, (60, 90), field)
    rows, columns = ((np.arange(n) - field.start) / field.jump for n in (60, 90))
    where = np.meshgrid(rows, columns, indexing="ij")
    for values, raw in zip(aligned[:, 0], maps[:, 0], strict=True):
        expected = map_coordinates(raw.numpy(), where, order=1, mode="nearest")
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_unit_lies_on_the_centre_of_what_it_sees():
    maps = torch.zeros(1, 1, 7, 7)
    maps[..., 3, 5] = 1
    aligned = align_map(maps, (224, 224), ReceptiveField(427, 32, 0))[0, 0]
    assert divmod(int(aligned.argmax()), 224) == (96, 160)
    stretched = nn.functional.interpolate(maps, (224, 224), mode="bilinear")[0, 0]
    offset = (stretched.sum(dim=1) @ torch.arange(224.0)) / stretched.sum() - 96
    assert offset == pytest.approx(15.5, abs=1e-3)


def test_a_single_unit_fills_the_image():
    assert torch.equal(
        align_map(torch.full((1, 1, 1, 1), -2.0), (4, 5), ReceptiveField(9, 8, 0)), torch.full((1, 1, 4, 5), -2.0)
    )


def test_only_images_can_be_aligned():
    with pytest.raises(ValueError, match="maps must be"):
        align_map(torch.zeros(1, 4, 4), (8, 8), ReceptiveField(1, 2, 0))
