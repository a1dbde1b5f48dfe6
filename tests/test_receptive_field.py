# SPDX-License-Identifier: Apache-2.0
"""Receptive fields against the reach of gradients, and maps aligned with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.nets.resnet import ResNet
from scipy.ndimage import map_coordinates
from torch import nn

from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.receptive_field import ReceptiveField, align_map, theoretical_receptive_field, unwatched
from monai_cnnprimer.explain.receptive_field_rules import Axis, union

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


class Then(nn.Module):
    """Two convolutions of stride 2, then any operation."""

    def __init__(self, operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(2)))
        self.operation, self.end = operation, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.operation(self.convs(x)))


def transposed(kernel: int, padding: int = 0, output_padding: int = 0) -> nn.Module:
    return nn.ConvTranspose2d(1, 1, kernel, stride=2, padding=padding, output_padding=output_padding)


def doubled(mode: str, **kwargs: bool) -> nn.Module:
    return nn.Upsample(scale_factor=2, mode=mode, **kwargs)


# Size, jump, start of two convolutions are (7, 4, 0). Nearest doubling puts cells 2i and 2i + 1 both on unit i, that is
# at 4i: half a cell of the new grid left of and right of their places, and so start -1, size + 2. Linear interpolation
# with half-pixel centres has the same places, between one more pair of units; a kernel of 3 is centred on them.
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (doubled("nearest"), (9, 2, -1)),
        (doubled("nearest-exact"), (9, 2, -1)),
        (doubled("bilinear", align_corners=False), (13, 2, -1)),
        (doubled("bicubic", align_corners=False), (21, 2, -1)),
        (transposed(2), (9, 2, -1)),
        (transposed(3, padding=1, output_padding=1), (11, 2, 0)),
        (transposed(4, padding=1), (13, 2, -1)),
        (transposed(1), (7, 2, 0)),
        (lambda x: nn.functional.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), (9, 2, -1)),
        (lambda x: nn.functional.pixel_unshuffle(x, 2), (11, 8, 2)),
        (lambda x: x[:, :, 1:, 1::2], "differs between axes"),
        (lambda x: x[:, :, 1:, 1:], (7, 4, 4)),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (15, 4, 0)),
        (nn.ReplicationPad2d(1), (7, 4, -4)),
    ],
)
def test_resized_and_cut_maps_have_the_fields_worked_out_by_hand(operation, expected):
    network, image = Then(operation), torch.zeros(1, 1, 64, 64)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            theoretical_receptive_field(network, "end", image)
        return
    assert theoretical_receptive_field(network, "end", image) == expected


def reaches(network: nn.Module, layer: str, side: int) -> list[tuple[int, int, int]]:
    """Unit of the layer's diagonal, and the first and last row that it depends on, where any."""
    torch.manual_seed(0)
    network.double().eval()
    for parameter in network.parameters():
        parameter.data.abs_()
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    image = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    network(image)
    handle.remove()
    found = []
    for unit in range(kept[0].shape[-1]):
        (gradient,) = torch.autograd.grad(kept[0][:, :, unit, unit].sum(), image, retain_graph=True)
        rows = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten().tolist()
        if rows:
            found.append((unit, rows[0], rows[-1]))
    return found


@pytest.mark.parametrize("side", [64, 62])
@pytest.mark.parametrize(
    "operation",
    [
        doubled("nearest"),
        nn.Upsample(size=(31, 31), mode="nearest"),
        nn.Upsample(size=(37, 37), mode="nearest-exact"),
        doubled("bilinear", align_corners=False),
        doubled("bilinear", align_corners=True),
        nn.Upsample(size=(29, 29), mode="bilinear", align_corners=False),
        transposed(2),
        transposed(3, padding=1, output_padding=1),
        transposed(5, padding=2),
    ],
)
def test_gradients_reach_every_edge_of_a_resized_maps_field_and_no_further(operation, side):
    network = Then(operation)
    size, jump, start = theoretical_receptive_field(network, "end", torch.zeros(1, 1, side, side))
    low, high = (size - 1) / 2 - start, (size - 1) / 2 + start
    inner = [
        (unit, first, last) for unit, first, last in reaches(network, "end", side) if first > 0 and last < side - 1
    ]
    left = [unit * jump - low - first for unit, first, _ in inner]
    right = [last - unit * jump - high for unit, _, last in inner]
    assert max(*left, *right) <= 1e-6  # rounding
    slack = 0 if float(jump).is_integer() else jump * 2  # cells at the edge, which the field covers too, are left out
    assert max(left) >= -slack
    assert max(right) >= -slack


class Pyramid(nn.Module):
    """MONAI's feature pyramid on maps of stride 2, 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(count, 2, 3, stride=2, padding=1) for count in (1, 2, 2))
        self.fusion = FeaturePyramidNetwork(2, [2, 2, 2], 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for level, conv in enumerate(self.convs):
            x = maps[str(level)] = conv(x)
        return self.fusion(maps)


@pytest.mark.parametrize("side", [96, 91])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_field_of_a_pyramid_holds_what_its_cells_see(level, side):
    """Also where maps are resized to an odd size, 23 or 12 cells from 12 or 6, and drift against the finer one."""
    network, layer = Pyramid(), f"fusion.layer_blocks.{level}"
    size, jump, start = theoretical_receptive_field(network, layer, torch.zeros(1, 1, side, side))
    assert jump == 2 ** (level + 1)
    edges = [
        (first - start - unit * jump, last - start - unit * jump) for unit, first, last in reaches(network, layer, side)
    ]
    reach = max(-min(first for first, _ in edges), max(last for _, last in edges))
    assert reach <= (size - 1) / 2
    assert reach >= (size - 1) / 2 - (0 if side == 96 else 8)


def test_where_branches_meet_the_centre_is_the_mean_of_theirs():
    # Level 1: a lateral of centre 0 and the nearest doubling of level 2, -2; level 0: 0 and that mean, -1, doubled: -2.
    image = torch.zeros(1, 1, 96, 96)
    starts = [theoretical_receptive_field(Pyramid(), f"fusion.layer_blocks.{i}", image).start for i in range(3)]
    assert starts == [-1, -1, 0]


def test_a_branch_that_drifts_is_covered_in_every_cell():
    # The wider branch lies 0, 1, 2 pixels to the right of the other in cells 0, 1, 2.
    assert union([Axis(-1.5, 1.5, 0, 4), Axis(-3.5, 3.5, 0, 5)], cells=3) == (-3.5, 5.5, 0.5, 4)


@pytest.mark.parametrize(
    ("operation", "bounded"),
    [
        (nn.GroupNorm(1, 1), False),
        (nn.InstanceNorm2d(1), False),
        (nn.BatchNorm2d(1), True),
        (lambda x: x.softmax(dim=-1), False),
        (lambda x: x.softmax(dim=1), True),
        (lambda x: x - x.mean(), False),
    ],
)
def test_what_takes_all_units_into_account_has_no_bound(operation, bounded):
    assert theoretical_receptive_field(Then(operation), "end") == (7 if bounded else float("inf"), 4, 0)


def test_inference_mode_and_half_precision_change_nothing():
    network = narrow_resnet50()
    with torch.inference_mode():
        assert theoretical_receptive_field(network, "layer2", torch.rand(1, 1, 64, 64)) == RESNET50["layer2"]
    assert theoretical_receptive_field(network.half(), "layer2", torch.rand(1, 1, 64, 64)) == RESNET50["layer2"]


def test_nobodys_hooks_fire_and_all_come_back():
    network, calls = narrow_resnet50(), []
    network.layer1.register_forward_hook(lambda *args: calls.append("forward"))
    network.register_forward_pre_hook(lambda *args: calls.append("before"))
    with pytest.raises(RuntimeError):
        theoretical_receptive_field(network, "layer4", torch.zeros(1, 5, 64, 64))
    with GradCam(network, "layer4") as cam:
        theoretical_receptive_field(network, "layer2")
        assert (cam.forwards, calls) == (0, [])
        network(torch.rand(1, 1, 64, 64))
    assert (cam.forwards, calls) == (1, ["before", "forward"])


def test_weight_norm_still_computes_the_weights():
    with pytest.warns(FutureWarning, match="weight_norm"):
        conv = nn.utils.weight_norm(nn.Conv2d(1, 1, 3))
    conv.weight_g.data.zero_()
    network = nn.Sequential(conv)
    network.register_forward_hook(lambda *args: pytest.fail("fired"))
    with unwatched(network):
        assert not (network(torch.ones(1, 1, 5, 5)) - conv.bias).any()


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
    with pytest.raises(ValueError, match="not known: an operation that moves units"):
        theoretical_receptive_field(Then(lambda x: x.flip(-1)), "end")
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
