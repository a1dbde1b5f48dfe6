# SPDX-License-Identifier: Apache-2.0
"""Classifiers with dense maps: the same encoder, maps on the right grid, a pool that does what its formula says."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import FlexibleUNet
from torch import nn

from monai_cnnprimer import networks
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.receptive_field import theoretical_receptive_field
from monai_cnnprimer.networks import DenseClassifier, log_mean_exp
from monai_cnnprimer.networks.dense import DenseLogits, EvidencePool
from monai_cnnprimer.networks.pyramid import BiFpnLayer, FpnNeck, Fusion
from monai_cnnprimer.networks.unet import UpStep

PYRAMID = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
STRIDES = {
    "fpn": PYRAMID,
    "bifpn": PYRAMID,
    "late_head": {"p5": 32},
    "early_head": {"p2": 4, "p3": 8},
    "unet": {"full": 1},
}
BUILT: dict[str, nn.Module] = {}


def built(name: str) -> nn.Module:
    """A classifier with two classes, from seed 0, in evaluation mode; built once."""
    if name not in BUILT:
        torch.manual_seed(0)
        BUILT[name] = getattr(networks, f"{name}_classifier")().eval()
    return BUILT[name].eval()


@pytest.fixture(params=STRIDES)
def name(request) -> str:
    return request.param


@pytest.fixture
def network(name) -> DenseClassifier:
    return built(name)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestEncoder:
    """One encoder under one name, in all of them."""

    def test_the_same_seed_gives_the_encoder_of_resnet50(self, network):
        reference, state = built("resnet50").state_dict(), network.state_dict()
        shared = [key for key in reference if key in state]
        assert {key.split(".")[0] for key in shared} >= {"conv1", "bn1", "layer1", "layer2"}
        assert all(torch.equal(reference[key], state[key]) for key in shared)

    def test_features_equal_those_of_resnet50_bit_for_bit(self, network):
        def features(network):
            seen = {}
            handles = [
                module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
                for name, module in network.named_children()
                if name.startswith("layer")
            ]
            with torch.no_grad():
                network(images(2, 1, 64, 96))
            for handle in handles:
                handle.remove()
            return seen

        expected, found = features(built("resnet50")), features(network)
        assert found
        assert all(torch.equal(expected[layer], found[layer]) for layer in found)

    def test_only_the_early_head_has_no_deep_layers(self, name, network):
        layers = [child for child, _ in network.named_children() if child.startswith("layer")]
        assert layers == (["layer1", "layer2"] if name == "early_head" else ["layer1", "layer2", "layer3", "layer4"])

    def test_receptive_fields_are_those_of_resnet50(self):
        assert theoretical_receptive_field(built("fpn"), "layer4") == (427, 32, 0)


class TestMaps:
    """Dense logits: where they lie, how to read them, who sees them."""

    @pytest.mark.parametrize("size", [(32, 32), (160, 96), (225, 161), (33, 47)])
    def test_every_size_gives_maps_of_the_size_divided_by_the_stride_and_rounded_up(self, name, network, size):
        with torch.no_grad():
            maps = network.dense_maps(images(1, 1, *size))
        assert network.strides == STRIDES[name]
        assert {key: tuple(value.shape) for key, value in maps.items()} == {
            key: (1, 2, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
            for key, stride in STRIDES[name].items()
        }

    def test_two_classes_are_half_the_log_odds_either_way(self):
        torch.manual_seed(0)
        head, x = DenseLogits(8, 2), images(2, 8, 3, 4)
        with torch.no_grad():
            logits, plain = head(x), head.conv(x)
        assert torch.allclose(logits[:, 1] - logits[:, 0], plain[:, 1] - plain[:, 0])
        assert torch.allclose(logits[:, 1], (plain[:, 1] - plain[:, 0]) / 2)
        assert torch.allclose(logits.softmax(1), plain.softmax(1))

    def test_hooks_see_each_map_by_name_and_the_output_is_pooled_from_it(self, network):
        seen = {}
        handles = [
            network.get_submodule(f"dense.{key}").register_forward_hook(
                lambda _m, _i, out, key=key: seen.update({key: out})
            )
            for key in network.strides
        ]
        x = images(2, 1, 64, 64)
        with torch.no_grad():
            logits = network(x)
            for handle in handles:
                handle.remove()
            maps = network.dense_maps(x)
        assert list(seen) == list(maps)
        assert all(torch.equal(seen[key], maps[key]) for key in maps)
        assert torch.equal(logits, network.pool(list(maps.values())))

    @pytest.mark.parametrize(
        ("name", "key", "size"), [("early_head", "p2", 43), ("early_head", "p3", 107), ("late_head", "p5", 491)]
    )
    def test_cells_are_centred_on_multiples_of_the_stride(self, name, key, size):
        assert theoretical_receptive_field(built(name), f"dense.{key}") == (size, STRIDES[name][key], 0)


class TestPool:
    """Log-mean-exp of the log-odds, per map and then over maps."""

    def test_equals_logsumexp_divided_by_the_number(self):
        x = images(5, 7) * 20 - 10
        expected = ((5 * x.double()).logsumexp(1) - math.log(7)) / 5
        assert torch.allclose(log_mean_exp(x, 5.0, 1).double(), expected, atol=1e-5)

    def test_lies_between_mean_and_maximum_and_reaches_them(self):
        x = images(4, 50) * 6
        assert torch.allclose(log_mean_exp(x, 1e-3, 1), x.mean(1), atol=0.01)
        assert torch.allclose(log_mean_exp(x, 1e3, 1), x.amax(1), atol=0.01)

    def test_holds_for_values_whose_exponential_does_not(self):
        assert log_mean_exp(torch.tensor([-3e4, 2e4]), 5.0, 0) == pytest.approx(2e4, abs=0.2)

    def test_gradient_is_the_softmax_of_the_evidence(self):
        x = (images(9) * 2).requires_grad_()
        (gradient,) = torch.autograd.grad(log_mean_exp(x, 5.0, 0), x)
        assert torch.allclose(gradient, (5 * x.detach()).softmax(0))

    def test_maps_count_alike_however_many_cells_they_have(self):
        fine, coarse = images(2, 2, 8, 6), images(2, 2, 2, 3, seed=2)
        evidence = [(m[:, 1] - m[:, 0]).flatten(1).double() for m in (fine, coarse)]
        share = torch.stack([(5 * z).exp().mean(1) for z in evidence]).mean(0)
        logits = EvidencePool(5.0)([fine, coarse]).double()
        assert torch.allclose(logits[:, 1] - logits[:, 0], share.log() / 5, atol=1e-6)

    def test_a_larger_image_of_the_same_cells_has_the_same_logits(self):
        logits = images(1, 2, 4, 4)
        pool = EvidencePool()
        assert torch.allclose(pool([logits]), pool([logits.repeat(1, 1, 3, 2)]), atol=1e-6)

    def test_one_cell_pools_to_its_own_logits(self):
        cell = images(2, 3, 1, 1) * 4
        assert torch.allclose(EvidencePool()([cell]).softmax(1), cell[:, :, 0, 0].softmax(1))

    def test_each_class_is_pooled_against_no_finding(self):
        logits = EvidencePool(2.0)([images(2, 3, 4, 4)])
        pairs = [EvidencePool(2.0)([images(2, 3, 4, 4)[:, [0, k]]]) for k in (1, 2)]
        for k, pair in zip((1, 2), pairs, strict=True):
            assert torch.allclose(logits[:, k] - logits[:, 0], pair[:, 1] - pair[:, 0], atol=1e-6)
        assert torch.allclose(logits.sum(1), torch.zeros(2), atol=1e-6)

    @pytest.mark.parametrize("sharpness", [0, -1, math.nan])
    def test_a_sharpness_that_is_not_positive_is_refused(self, sharpness):
        with pytest.raises(ValueError, match=r"sharpness .*: must be positive"):
            EvidencePool(sharpness)

    def test_a_single_class_is_refused(self):
        with pytest.raises(ValueError, match="num_classes 1: dense logits need two"):
            networks.fpn_classifier(1)


class TestTraining:
    """From the first step on."""

    def test_starts_near_zero_and_every_parameter_learns(self, network):
        network.train()
        state = {key: value.clone() for key, value in network.state_dict().items()}
        logits = network(images(4, 1, 64, 64))
        assert logits.abs().max() < 0.5
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 1])).backward()
        without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
        assert not without
        assert network.conv1.weight.grad.abs().max() > 0
        network.zero_grad()
        network.load_state_dict(state)

    def test_bfloat16_in_channels_last_gives_float32_logits_close_to_those_of_float32(self, network):
        x = images(2, 1, 64, 64)
        with torch.no_grad():
            expected = network(x)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x.contiguous(memory_format=torch.channels_last))
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max() + 0.01

    def test_takes_the_images_of_a_monai_evaluator(self, network):
        x = images(1, 1, 32, 64)
        with torch.no_grad():
            assert torch.equal(torch.as_tensor(network(MetaTensor(x))).as_subclass(torch.Tensor), network(x))


class TestGradCam:
    """The same layer names explain all of them; dense maps can be explained, and explain."""

    @pytest.mark.parametrize("target", ["predicted", lambda logits: logits[:, 1] - logits[:, 0]])
    def test_explains_the_encoders_layers_by_the_names_of_resnet50(self, name, network, target):
        layers = {"layer1": 4, "layer2": 8} if name == "early_head" else {"layer1": 4, "layer3": 16, "layer4": 32}
        x = images(3, 1, 64, 96)
        with torch.no_grad(), GradCam(network, list(layers), target=target) as cam:
            logits = network(x)
        with torch.no_grad():
            assert torch.equal(logits, network(x))
        for layer, stride in layers.items():
            assert cam.maps[layer].shape == (3, 1, 64 // stride, 96 // stride)
            assert cam.maps[layer].abs().amax(dim=(1, 2, 3)).min() > 0

    def test_takes_a_dense_map_for_a_layer(self, network):
        x = images(1, 1, 64, 96)
        with torch.no_grad(), GradCam(network, [f"dense.{key}" for key in network.strides], target=1) as cam:
            network(x)
        maps = {key: value.detach().requires_grad_() for key, value in network.dense_maps(x).items()}
        gradients = torch.autograd.grad(network.pool(list(maps.values()))[:, 1].sum(), list(maps.values()))
        for (key, logits), gradient in zip(maps.items(), gradients, strict=True):
            expected = (gradient.mean(dim=(2, 3), keepdim=True) * logits).sum(1, keepdim=True)
            difference = (cam.maps[f"dense.{key}"] - expected).abs().max()
            assert difference <= 1e-5 * expected.abs().max()

    def test_explains_one_cell_of_a_dense_map(self):
        network, x, seen = built("fpn"), images(2, 1, 64, 96), {}
        handle = network.dense.p2.register_forward_hook(lambda _m, _i, out: seen.update(p2=out))
        with torch.no_grad(), GradCam(network, "layer3", target=lambda _: seen["p2"][:, 1, 5, 7]) as cam:
            network(x)
        handle.remove()
        maps = _Maps(network)
        with torch.no_grad(), GradCam(maps, "network.layer3", target=lambda out: out["p2"][:, 1, 5, 7]) as other:
            maps(x)
        assert cam.maps["layer3"].abs().max() > 0
        assert torch.equal(cam.maps["layer3"], other.maps["network.layer3"])


class _Maps(nn.Module):
    def __init__(self, network: DenseClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network.dense_maps(x)


class TestNecks:
    """Against hand calculations and MONAI's own networks."""

    def test_fusion_weights_are_positive_and_normalised(self):
        fusion = Fusion(3)
        fusion.weight.data = torch.tensor([2.0, -1.0, 1.0])
        assert fusion.shares().tolist() == pytest.approx([2 / 3.0001, 0, 1 / 3.0001])
        fusion.conv = nn.Identity()
        maps = [torch.full((1, 1, 2, 2), value) for value in (3.0, 100.0, 6.0)]
        assert torch.allclose(fusion(maps), torch.tensor(12 / 3.0001))

    def test_a_bifpn_layer_joins_the_levels_as_in_the_paper(self):
        layer = BiFpnLayer(4)
        for node in (*layer.down, *layer.up):
            node.conv = nn.Identity()
        p2, p3, p4, p5 = 16.0, 8.0, 4.0, 12.0
        maps = [
            torch.full((1, 1, size, size), value) for size, value in zip((9, 5, 3, 2), (p2, p3, p4, p5), strict=True)
        ]
        td4 = (p4 + p5) / 2
        td3 = (p3 + td4) / 2
        out2 = (p2 + td3) / 2
        out3 = (p3 + td3 + out2) / 3
        out4 = (p4 + td4 + out3) / 3
        out5 = (p5 + out4) / 2
        results = layer(maps)
        assert [tuple(result.shape) for result in results] == [tuple(feature.shape) for feature in maps]
        assert [result.mean().item() for result in results] == pytest.approx([out2, out3, out4, out5], rel=1e-3)
        assert all(result.std() < 1e-5 for result in results)

    def test_the_decoder_is_that_of_monais_unet(self):
        network = built("unet")
        reference = FlexibleUNet(3, 2, "resnet50", decoder_channels=(128, 128, 64, 32, 16)).eval()
        encoder = {key: network.state_dict()[key] for key in reference.encoder.state_dict()}
        reference.encoder.load_state_dict(encoder)
        reference.decoder.load_state_dict(network.neck.state_dict())
        x = images(2, 1, 64, 96)
        with torch.no_grad():
            expected = reference.decoder(reference.encoder(x.expand(-1, 3, -1, -1)), 4)
            assert torch.equal(network.neck(network.features(x))[0], expected)

    @pytest.mark.parametrize("size", [(7, 8), (1, 13)])
    def test_a_step_of_the_decoder_doubles_and_crops_to_the_skip(self, size):
        torch.manual_seed(0)
        step, skip = UpStep(2, 3, 4).eval(), images(1, 3, *size, seed=2)
        x = images(1, 2, *(math.ceil(pixels / 2) for pixels in size))
        doubled = step.upsample(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert torch.equal(step(x, skip), step.convs(torch.cat([skip, doubled[..., : size[0], : size[1]]], dim=1)))

    def test_an_fpn_exports_for_any_image_size(self):
        torch.manual_seed(0)
        neck = FpnNeck([2, 3]).eval()

        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.neck, self.head, self.pool = neck, DenseLogits(128, 2), EvidencePool()

            def forward(self, fine, coarse):
                return self.pool([self.head(m) for m in self.neck([fine, coarse])])

        size = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        network = Pooled().eval()
        program = torch.export.export(
            network, (images(1, 2, 13, 9), images(1, 3, 7, 5)), dynamic_shapes=(size, size)
        ).module()
        other = images(1, 2, 20, 31), images(1, 3, 10, 16)
        assert torch.allclose(program(*other), network(*other), atol=1e-6)
