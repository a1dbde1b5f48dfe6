# SPDX-License-Identifier: Apache-2.0
"""Effective receptive fields against exact Jacobians, whole images, known shapes and published figures."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from monai_cnnprimer.explain import effective_receptive_field as module
from monai_cnnprimer.explain.effective_receptive_field import (
    effective_receptive_field,
    effective_receptive_fields,
    random_twin,
)
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.explain.receptive_field_summary import EffectiveReceptiveField
from monai_cnnprimer.networks import fpn_classifier, resnet50_classifier, unet_classifier


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def narrow_resnet50() -> ResNet:
    """The geometry of ResNet-50 with four channels where it has 64; none of its units is silent everywhere.

    Since batch norm adds something, what lies beyond the image's edge is not what convolutions pad with.
    """
    torch.manual_seed(0)
    network = ResNet("bottleneck", [3, 4, 6, 3], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=2).eval()
    for name, parameter in network.named_parameters():
        if "bn" in name and name.endswith("bias"):
            nn.init.constant_(parameter, 0.3)
    return network


class Pyramid(nn.Module):
    """Strides 2, 4, 8 and MONAI's feature pyramid on them; mirrored edges, odd kernels, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, 4, 5, stride=2, padding=2, padding_mode="reflect"),
                nn.ReLU(inplace=True),
                nn.Identity(),
            )
            for count in (2, 4, 4)
        )
        self.fusion = FeaturePyramidNetwork(2, [4, 4, 4], 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = {}
        for level, conv in enumerate(self.convs):
            x = maps[str(level)] = conv(x)
        return self.fusion(maps)["0"]


def far(first: EffectiveReceptiveField, second: EffectiveReceptiveField) -> float:
    """Largest difference of two maps, in units of the highest value."""
    return float((first.map - second.map).abs().max() / second.map.max())


class TestEstimator:
    """What is estimated, and from what."""

    def test_one_channel_of_a_linear_map_shows_its_kernel_squared_whatever_the_seed(self):
        conv = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1))
        field = effective_receptive_field(conv, "0", images(3, 2, 9, 9), seeds=1, seed=7)
        kernel = conv[0].weight.detach()[0].square().sum(0)
        torch.testing.assert_close(field.map[3:6, 3:6], kernel)
        assert field.map.sum() == pytest.approx(float(kernel.sum()))
        assert (field.unit, field.power, field.images, field.seeds) == ((4, 4), 2, 3, 1)

    def test_many_draws_come_to_the_squared_jacobian_summed_over_channels(self):
        network, x = narrow_resnet50().requires_grad_(False), images(2, 1, 40, 36)
        features = nn.Sequential(network.conv1, network.bn1, nn.ReLU(), network.maxpool, network.layer1)
        unit = (5, 4)  # at pixels 20 and 16; those nearest to 19.5 and 17.5
        jacobian = torch.func.jacrev(lambda x: features(x)[0, :, *unit])
        exact = sum(jacobian(x[i : i + 1]).square().sum(dim=(0, 1, 2)) for i in range(2)) / 2
        field = effective_receptive_field(network, "layer1", x, seeds=400)
        assert field.unit == unit
        errors = [
            float((effective_receptive_field(network, "layer1", x, n).map - exact).norm() / exact.norm())
            for n in (4, 400)
        ]
        assert errors[1] < 0.1
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.4)  # falls by the root of the draws: no bias is left

    def test_draws_do_not_depend_on_company(self, monkeypatch):
        network, x = narrow_resnet50(), images(3, 1, 64, 64)
        together = effective_receptive_fields(network, ["layer3", "layer1"], x, seeds=2, seed=3)
        assert list(together) == ["layer3", "layer1"]
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1)  # each image by itself
        for layer, field in together.items():
            assert far(effective_receptive_field(network, layer, x, seeds=2, seed=3), field) < 1e-5
        assert far(effective_receptive_field(network, "layer1", x, seeds=2, seed=4), together["layer1"]) > 0.01

    def test_an_activation_in_place_does_not_reach_back(self):
        network, x = Pyramid(), images(1, 2, 64, 64)
        alone = effective_receptive_field(network, "convs.0.0", x)
        together = effective_receptive_fields(network, ["convs.0.0", "convs.2.2"], x, crop=False)  # in one forward
        assert far(together["convs.0.0"], alone) < 1e-5

    def test_a_gate_is_seen_whatever_the_size_at_which_the_geometry_is_traced(self):
        class Gated(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                for conv in self[:-1]:
                    x = conv(x)
                return self[-1](x * x.mean(dim=(2, 3), keepdim=True))

        torch.manual_seed(0)
        strided = (nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(6))
        field = effective_receptive_field(Gated(*strided, nn.Identity()), "6", images(1, 1, 192, 192), seeds=1)
        assert field.theoretical == (math.inf, 64, 0)

    def test_nothing_lies_outside_the_theoretical_window(self):
        field = effective_receptive_field(narrow_resnet50(), "layer2", images(1, 1, 160, 128))
        rows, columns = (field.map.sum(dim=i).nonzero().flatten() for i in (1, 0))
        assert (int(rows[0]), int(rows[-1])) == (80 - 45, 80 + 45)
        assert (int(columns[0]), int(columns[-1])) == (64 - 45, 64 + 45)


class TestCrop:
    """The part of the image that a layer needs gives what the whole image gives."""

    @pytest.mark.parametrize("size", [(128, 160), (131, 150)])
    @pytest.mark.parametrize("unit", [None, (0, 0), (3, 15)])
    def test_equals_the_whole_image_in_its_middle_and_at_its_edges(self, size, unit):
        network = narrow_resnet50()
        x = images(2, 1, *size)
        for layer in ("conv1", "layer1", "layer2"):
            cut = effective_receptive_field(network, layer, x, seeds=2, unit=unit)
            assert far(cut, effective_receptive_field(network, layer, x, seeds=2, unit=unit, crop=False)) < 1e-5

    @pytest.mark.parametrize("size", [(160, 128), (121, 128), (128, 130)])
    @pytest.mark.parametrize("unit", [None, (1, 2), (30, 33), (60, 63)])
    def test_equals_the_whole_image_behind_upsampling(self, size, unit):
        x, layer = images(1, 2, *size), "fusion.layer_blocks.0"
        cut, whole = (
            effective_receptive_field(Pyramid(), layer, x, seeds=2, unit=unit, crop=crop) for crop in (True, False)
        )
        assert far(cut, whole) < 1e-5

    def test_runs_no_more_than_it_needs(self, monkeypatch):
        network, sizes = narrow_resnet50(), []
        found = module._geometries(network, ["layer1", "layer2", "layer3"], images(1, 1, 224, 160))
        monkeypatch.setattr(module, "_geometries", lambda *args: found)
        for name in ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"):
            layer = network.get_submodule(name)
            monkeypatch.setattr(
                layer, "forward", lambda x, name=name, run=layer.forward: sizes.append((name, x.shape[2:])) or run(x)
            )
        effective_receptive_fields(network, ["layer3", "layer1", "layer2"], images(1, 1, 224, 160), seeds=3)
        runs = [size for name, size in sizes if name == "conv1"]
        # layer1: 35 px around (112, 80), from a multiple of 4 to another; layer2: 91 px, of 8; layer3: 267 px.
        assert sorted(runs) == [(132 - 92, 100 - 60), (160 - 64, 128 - 32), (224, 160)]
        assert [name for name, _ in sizes if name in ("layer4", "fc")] == []


class TestNetworkIsLeftAlone:
    """Modes, flags, hooks, gradients, random state; and any mode is fine."""

    def test_all_as_before_and_nobody_notices(self):
        network, x, calls = narrow_resnet50().train(), images(2, 1, 64, 64), []
        network.layer2.eval()
        network.layer1.requires_grad_(False)
        hooked = network.layer1.register_forward_hook(lambda *args: calls.append(1))
        network.layer1.register_full_backward_hook(lambda *args: calls.append(2))
        state = copy.deepcopy(network.state_dict())
        modes = [part.training for part in network.modules()]
        flags = [parameter.requires_grad for parameter in network.parameters()]
        random = torch.get_rng_state()
        for wrong in (None, (99, 0)):
            if wrong is None:
                effective_receptive_fields(network, ["layer1", "layer4"], x, seeds=2)
            else:
                with pytest.raises(ValueError, match=r"layer 'layer1' has no unit \(99, 0\), its grid is \(16, 16\)"):
                    effective_receptive_field(network, "layer1", x, unit=wrong, crop=False)
            assert [part.training for part in network.modules()] == modes
            assert [parameter.requires_grad for parameter in network.parameters()] == flags
            assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
            assert all(parameter.grad is None for parameter in network.parameters())
            assert not calls
            assert list(network.layer1._forward_hooks) == [hooked.id]
            assert not network.layer4._forward_hooks
        assert torch.equal(torch.get_rng_state(), random)
        assert not torch.is_inference_mode_enabled()

    @pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
    def test_works_under_any_mode_on_any_network_and_image(self, around):
        x = images(1, 1, 64, 64)
        expected = effective_receptive_field(narrow_resnet50(), "layer3", x, seeds=2)
        network = narrow_resnet50().train().requires_grad_(False)
        with around():
            field = effective_receptive_field(network, "layer3", MetaTensor(x) + 0, seeds=2)
        assert type(field.map) is Tensor
        assert not field.map.is_inference()
        # batch norm of the expected network has the same statistics, none was updated
        assert far(field, expected) < 1e-5

    def test_half_precision_weights_are_widened(self):
        half = narrow_resnet50().half()
        widened = effective_receptive_field(copy.deepcopy(half).float(), "layer2", images(1, 1, 64, 64), seeds=2)
        field = effective_receptive_field(half, "layer2", images(1, 1, 64, 64), seeds=2)
        assert far(field, widened) < 1e-5
        assert half.conv1.weight.dtype == torch.float16

    def test_inside_gradcam_neither_sees_the_other(self):
        network, x = narrow_resnet50(), images(1, 1, 64, 64)
        expected = effective_receptive_field(network, "layer4", x, seeds=2)
        with torch.no_grad(), GradCam(network, "layer2") as cam:
            field = effective_receptive_field(network, "layer4", x, seeds=2)
            assert cam.forwards == 0
            network(x)
        assert cam.forwards == 1
        assert far(field, expected) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("layer9", images(1, 1, 64, 64)), "no layer 'layer9'; choose among"),
            (("fc", images(1, 1, 64, 64)), "layer 'fc' is not known"),
            (("layer1", images(1, 64, 64)), "needs images"),
            (("layer1", images(0, 1, 64, 64)), "needs images"),
            (("layer1", images(1, 1, 64, 64), 0), "0 seeds"),
        ],
    )
    def test_what_cannot_be_measured_is_told(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            effective_receptive_field(narrow_resnet50(), *arguments)

    def test_a_black_image_without_gradient_is_told(self):
        network = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU())
        with pytest.raises(ValueError, match="layer '1': the squared gradient sums to 0.0; are the images black"):
            effective_receptive_field(network, "1", torch.zeros(1, 1, 16, 16))


class TestAlignment:
    """Units stand where `align_map` puts them, rather than where resizing would."""

    @pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
    def test_of_a_resnet_to_within_a_few_pixels(self, layer):
        network, x = narrow_resnet50(), images(4, 1, 256, 256)
        field = effective_receptive_field(network, layer, x, seeds=4)
        assert max(map(abs, field.offset)) < 0.3 * field.sigma
        resized = [(unit + 0.5) * field.theoretical.jump - 0.5 for unit in field.unit]
        distances = [math.dist(place, field.centroid) for place in (field.centre, resized)]
        assert distances[0] < distances[1]

    @pytest.mark.parametrize(
        ("build", "layer", "phases"),
        [
            (fpn_classifier, "dense.p2", (0, 2, 5, 7)),
            (fpn_classifier, "dense.p3", (0, 1, 2, 3)),
            (fpn_classifier, "dense.p4", (0, 1)),
            (fpn_classifier, "dense.p5", (0,)),
            (unet_classifier, "neck.blocks.2", (0, 2, 5, 7)),
        ],
    )
    def test_of_pyramid_and_u_net_on_average_over_the_cells_that_share_a_coarse_one(self, build, layer, phases):
        torch.manual_seed(0)
        network, x = build(), images(1, 1, 160, 160)
        theory = theoretical_receptive_field(network, layer, x)
        first, aligned, resized = int(64 / theory.jump), [], []
        for phase in phases:
            unit = (first + phase, first + phase)
            field = effective_receptive_field(network, layer, x, seeds=1, unit=unit)
            aligned.append(np.mean(field.offset))
            resized.append(np.mean(field.centroid) - ((unit[0] + 0.5) * theory.jump - 0.5))
        assert abs(np.mean(aligned)) < abs(np.mean(resized))
        assert abs(np.mean(aligned)) < 8


class TestSummary:
    """Numbers of maps whose shape is known."""

    @pytest.fixture(scope="class")
    @classmethod
    def bell(cls) -> EffectiveReceptiveField:
        rows, columns = np.arange(200) - 96, np.arange(240) - 110
        values = 3e-9 * np.exp(-(rows[:, None] ** 2) / (2 * 12.0**2) - columns**2 / (2 * 15.0**2))
        return EffectiveReceptiveField(
            layer="layer4",
            map=torch.from_numpy(values).float(),
            theoretical=ReceptiveField(161, 32, 0),
            unit=(3, 3),
            images=1,
            seeds=1,
            spacing_mm=(0.5, 2.0),
        )

    def test_a_gaussian_is_found_again(self, bell):
        assert bell.centroid == pytest.approx((96, 110))
        assert bell.centre == (96, 96)
        assert bell.offset == pytest.approx((0, 14))
        assert bell.sigma_axes == pytest.approx((12, 15), rel=1e-4)
        assert bell.sigma == pytest.approx(math.sqrt(180), rel=1e-4)
        for fit in (bell.gaussian, bell.profile_gaussian):
            assert fit.sigma == pytest.approx((12, 15), rel=1e-3)
            assert fit.centre == pytest.approx((96, 110), abs=0.01)
            assert fit.error < 1e-3
        assert bell.gaussian.height == pytest.approx(3e-9, rel=1e-3)

    def test_areas_are_those_of_the_formula(self, bell):
        for share, area in bell.areas.items():
            assert area == pytest.approx(2 * math.pi * 180 * math.log(1 / (1 - share)), rel=0.02)
        assert bell.ratio == pytest.approx(math.sqrt(2 * math.pi * 180 * math.log(20)) / 161, rel=0.01)

    def test_millimetres_are_exact_for_areas_and_missing_where_unknown(self, bell):
        assert bell.in_mm(math.sqrt(bell.areas[0.5])) == pytest.approx(math.sqrt(bell.areas[0.5] * 0.5 * 2.0))
        unknown = EffectiveReceptiveField("a", bell.map, bell.theoretical, (3, 3), 1, 1)
        assert unknown.in_mm(3.0) is None
        with pytest.raises(ValueError, match="spacing_mm must be positive"):
            EffectiveReceptiveField("a", bell.map, bell.theoretical, (3, 3), 1, 1, (0.0, 1.0))

    def test_a_block_is_no_gaussian(self):
        values = torch.zeros(80, 80)
        values[20:60, 20:60] = 2.0
        block = EffectiveReceptiveField("a", values, ReceptiveField(81, 1, 0), (40, 40), 1, 1)
        assert block.areas == {0.2: 320, 0.3: 480, 0.5: 800, 0.95: 1520, 0.99: 1584}
        assert block.sigma == pytest.approx(math.sqrt((40**2 - 1) / 12))
        # One axis: the best Gaussian on a flat stretch of half width h has sigma 0.7146 h, cosine 0.9697 of both.
        assert block.gaussian.error == pytest.approx(_flat_error(20), abs=0.01)

    @pytest.mark.parametrize(("size", "clipped"), [(193, False), (195, True), (math.inf, True)])
    def test_clipped_when_the_window_reaches_over_an_edge(self, bell, size, clipped):
        field = EffectiveReceptiveField("a", bell.map, ReceptiveField(size, 32, 0), (3, 3), 1, 1)
        assert field.clipped is clipped


def _flat_error(half: float) -> float:
    """Least error of a Gaussian on a square, sought on a grid."""
    x, widths = np.linspace(-4, 4, 4001), np.linspace(0.3, 1.5, 1201)
    flat = (np.abs(x) <= 1).astype(float)
    bells = np.exp(-0.5 * (x / widths[:, None]) ** 2)
    cosines = bells @ flat / (np.linalg.norm(bells, axis=1) * np.linalg.norm(flat))
    return math.sqrt(1 - cosines.max() ** 4)


class TestRandomTwin:
    """Random weights in the same architecture."""

    def test_is_another_network_of_the_same_kind_by_its_seed(self):
        network = narrow_resnet50().train()
        state, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
        network.layer1.register_forward_hook(lambda *args: pytest.fail("fired"))
        network.conv1.weight.grad = torch.ones_like(network.conv1.weight)
        x = images(4, 1, 64, 64)
        twins = [random_twin(network, seed, x).state_dict() for seed in (1, 1, 2)]
        assert all(torch.equal(twins[0][key], twins[1][key]) for key in state)
        assert not torch.equal(twins[0]["conv1.weight"], twins[2]["conv1.weight"])
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        twin = random_twin(network, 1)
        assert not twin.training
        assert twin.conv1.weight.grad is None
        assert float(twin.layer4[0].conv2.weight.detach().std()) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
        assert not twin.bn1.running_mean.any()
        assert twins[0]["bn1.running_mean"].any()
        twin(x)

    def test_weights_that_cannot_be_initialised_are_named(self):
        class Scale(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

        with pytest.raises(ValueError, match="1: Scale has weights but no reset_parameters"):
            random_twin(nn.Sequential(nn.Conv2d(1, 1, 1), Scale()))

    def test_has_the_reference_fields(self):
        """Random-weight ResNet-50 at 512 px: sigma 4.7, 9.3, 20.8, 33.4; sides of the 95 % area by theoretical sizes.

        Measured with MONAI's initial weights, batch norm having seen a few batches in training; without these, sigma
        is 5.0, 10.5, 26, 40. Random images and radiographs give the same.
        """
        twin = random_twin(resnet50_classifier(), 0, images(4, 1, 128, 128, seed=1))
        reference = {"layer1": (4.7, 0.57), "layer2": (9.3, 0.45), "layer3": (20.8, 0.34), "layer4": (33.4, 0.34)}
        fields: dict[str, EffectiveReceptiveField] = {}
        for layers, seeds in [(["layer1", "layer2"], 8), (["layer3", "layer4"], 3)]:
            fields |= effective_receptive_fields(twin, layers, images(1, 1, 512, 512), seeds)
        for layer, (sigma, ratio) in reference.items():
            assert fields[layer].sigma == pytest.approx(sigma, rel=0.1)
            assert fields[layer].ratio == pytest.approx(ratio, rel=0.1)
            assert not fields[layer].clipped
