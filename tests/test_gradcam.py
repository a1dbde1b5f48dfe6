# SPDX-License-Identifier: Apache-2.0
"""One-pass Grad-CAM: the right maps, and a network that does not notice."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import resnet50
from monai.networks.nets.resnet import ResNet
from monai.visualize import GradCAM as MonaiGradCAM
from torch import Tensor, nn

from monai_cnnprimer.explain.gradcam import GradCam, in_second_pass

LAYERS = ("layer1", "layer3", "layer4")


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=3).eval()


def images(cases: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(cases, 1, 64, 96, generator=torch.Generator().manual_seed(seed))


def reference_maps(network: ResNet, x: Tensor, classes: Tensor, layer: str) -> Tensor:
    """Grad-CAM of a MONAI ResNet with its forward written out, split at `layer`."""
    steps = ["conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    cut = steps.index(layer) + 1
    with torch.no_grad():
        for step in steps[:cut]:
            x = network.get_submodule(step)(x)
    activation = x.clone().requires_grad_()
    x = activation + 0
    for step in steps[cut:]:
        x = network.get_submodule(step)(x)
    logits = network.fc(x[:, :, 0, 0])
    one_hot = nn.functional.one_hot(classes, logits.shape[1]).to(logits)
    (gradient,) = torch.autograd.grad(logits, activation, grad_outputs=one_hot)
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation.detach()).sum(dim=1, keepdim=True)


def assert_close(maps: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert maps.shape == expected.shape
    assert (maps - expected).abs().max() <= tolerance * expected.abs().max()


def test_maps_of_resnet50_equal_a_forward_written_out():
    torch.manual_seed(0)
    network = resnet50(
        pretrained=False, spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False, num_classes=2
    ).eval()
    x, classes = torch.rand(7, 3, 192, 256), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad(), GradCam(network, LAYERS, target=classes) as cam:
        network(x)
    for layer, shape in zip(LAYERS, [(48, 64), (12, 16), (6, 8)], strict=True):
        assert cam.maps[layer].shape == (7, 1, *shape)
        assert_close(cam.maps[layer], reference_maps(network, x, classes, layer))


@pytest.mark.parametrize("layer", ["bn1", "layer1", "layer4"])
def test_each_case_is_explained_for_its_predicted_class(layer):
    network, x = small_resnet(), images(6)
    with GradCam(network, layer) as cam:
        logits = network(x)
    assert_close(cam.maps[layer], reference_maps(network, x, logits.argmax(dim=1), layer))
    assert torch.equal(cam.scores, logits.max(dim=1).values)
    assert torch.equal(cam.logits, logits)


def test_a_constant_class_equals_monai_where_that_is_right():
    network, x = small_resnet(), images(1)
    with torch.no_grad(), GradCam(network, "layer3", target=2) as cam:
        network(x)
    theirs = MonaiGradCAM(nn_module=copy.deepcopy(network), target_layers="layer3")
    assert_close(cam.maps["layer3"].relu(), theirs.compute_map(x, class_idx=2).detach())


def test_behind_pool_and_linear_the_map_is_the_class_weights():
    """Zhou et al. (2016): a class's gradient is its weight over the number of cells, so the map sums to the logit."""
    network, x = small_resnet(), images()
    with torch.no_grad(), GradCam(network, "layer4", target=1) as cam:
        logits = network(x)
    contributions = cam.maps["layer4"].sum(dim=(1, 2, 3))
    torch.testing.assert_close(contributions, logits[:, 1] - network.fc.bias[1], rtol=1e-4, atol=1e-5)


def test_targets_say_the_same_in_different_ways():
    network, x = small_resnet(), images(4)

    def maps_of(target):
        with torch.no_grad(), GradCam(network, "layer3", target=target) as cam:
            network(x)
        return cam.maps["layer3"]

    assert torch.equal(maps_of(1), maps_of(torch.tensor([1, 1, 1, 1])))
    assert torch.equal(maps_of(1), maps_of(lambda logits: logits[:, 1]))
    torch.testing.assert_close(maps_of(lambda logits: logits[:, 1] - logits[:, 0]), maps_of(1) - maps_of(0))


CONTEXTS = {
    "gradients": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: autocast_without_gradients(),
}


@contextlib.contextmanager
def autocast_without_gradients() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_logits_and_network_are_as_without(context, training, frozen):
    network, plain = (small_resnet().train(training).requires_grad_(not frozen) for _ in range(2))
    network.layer2.eval()
    plain.layer2.eval()
    modes = [module.training for module in network.modules()]
    with CONTEXTS[context]():
        expected = plain(images())
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with GradCam(network, LAYERS) as cam:
            logits = network(images())
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == inside
    assert torch.equal(logits, expected)
    assert logits.dtype == expected.dtype
    assert logits.requires_grad == expected.requires_grad
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in plain.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert_untouched(network, requires_grad=not frozen)
    assert {cam.maps[layer].dtype for layer in LAYERS} == {torch.float32}
    assert all(cam.maps[layer].abs().max() > 0 for layer in LAYERS)


def assert_untouched(network: nn.Module, requires_grad: bool = True) -> None:
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.requires_grad == requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_training_goes_on_as_without():
    network, plain = small_resnet().train(), small_resnet().train()
    plain(images()).square().sum().backward()
    with GradCam(network, LAYERS):
        network(images()).square().sum().backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradients_of_the_image_are_as_without():
    network, x, plain_x = small_resnet().requires_grad_(False), images().requires_grad_(), images().requires_grad_()
    network(plain_x).sum().backward()
    with GradCam(network, "layer3"):
        network(x).sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, autocast_without_gradients])
def test_an_exception_in_the_forward_leaves_nothing_behind(context):
    network = small_resnet()
    network.fc = nn.Linear(5, 2)  # does not fit
    with context():
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with (
            pytest.raises(RuntimeError, match="shapes cannot be multiplied|same K|must match"),
            GradCam(network, LAYERS),
        ):
            network(images())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == inside
    assert_untouched(network)


def test_an_interrupt_leaves_nothing_behind():
    network = small_resnet()
    handle = network.layer4.register_forward_hook(interrupt)
    with torch.no_grad():
        with pytest.raises(KeyboardInterrupt), GradCam(network, "layer1"):
            network(images())
        assert not torch.is_grad_enabled()
    handle.remove()
    assert_untouched(network)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_next_forward_after_a_failed_one_is_explained():
    network = small_resnet()
    with torch.no_grad(), GradCam(network, "layer3") as cam:
        with pytest.raises(RuntimeError, match="channels"):
            network(images().expand(-1, 2, -1, -1))
        assert cam.forwards == 0
        network(images(2))
        first = cam.maps["layer3"]
        network(images(5))
        assert cam.forwards == 2
    assert len(first) == 2
    assert len(cam.maps["layer3"]) == 5
    network(images(4))
    assert len(cam.maps["layer3"]) == 5


def test_under_autocast_the_maps_are_those_of_float32():
    """On a small network the low-precision maps are more than 1 % off; those given are exact."""
    network, x = small_resnet(), images(5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), GradCam(network, LAYERS) as cam:
        logits = network(x)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(cam.scores, logits.max(dim=1).values.float())
    for layer in LAYERS:
        assert_close(cam.maps[layer], reference_maps(network, x, logits.argmax(dim=1), layer))


def test_half_precision_weights_are_explained_in_float32():
    network, x = small_resnet().to(torch.bfloat16), images().to(torch.bfloat16)
    with torch.inference_mode(), GradCam(network, "layer3", target=0) as cam:
        assert network(x).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    expected = reference_maps(copy.deepcopy(network).float(), x.float(), torch.zeros(3, dtype=torch.long), "layer3")
    assert_close(cam.maps["layer3"], expected)


def test_autocast_leaves_the_random_state_of_dropout():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [network(images()) for _ in range(2)]
        torch.manual_seed(0)
        with GradCam(network, "0"):
            assert all(torch.equal(network(images()), logits) for logits in expected)


@pytest.mark.parametrize(("context", "forwards"), [(torch.no_grad, 1), (autocast_without_gradients, 2)])
@pytest.mark.parametrize("hooked_first", [True, False])
def test_hooks_of_others_can_tell_the_second_pass(context, forwards, hooked_first):
    network, x, dtypes, seen = small_resnet(), images(), [], []

    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        dtypes.append(output.dtype)
        if not in_second_pass():
            seen.append(output.detach())

    with context():
        expected = [network.layer4(network.layer3(network.layer2(network.layer1(stem(network, x))))), network(x)]
    modules = [network.layer4, network]
    handles = [module.register_forward_hook(hook) for module in modules if hooked_first]
    with context(), GradCam(network, ["layer3", "layer4"]):
        handles += [module.register_forward_hook(hook) for module in modules if not hooked_first]
        network(x)
    assert len(dtypes) == 2 * forwards
    assert len(seen) == 2
    assert all(torch.equal(ours, plain) for ours, plain in zip(seen, expected, strict=True))
    assert not in_second_pass()
    for handle in handles:
        handle.remove()


def stem(network: ResNet, x: Tensor) -> Tensor:
    return network.maxpool(network.act(network.bn1(network.conv1(x))))


def test_a_second_pass_that_fails_is_over():
    network = small_resnet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), GradCam(network, "layer3"):
        network.layer4.register_forward_hook(lambda *_: interrupt() if in_second_pass() else None)
        with pytest.raises(KeyboardInterrupt):
            network(images())
    assert not in_second_pass()


def test_an_operation_in_place_does_not_reach_the_kept_activation():
    in_place, plain = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=flag), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for flag in (True, False)
    )
    plain.load_state_dict(in_place.state_dict())
    maps = []
    for network in (in_place, plain):
        with torch.no_grad(), GradCam(network, "0") as cam:
            network(images())
        maps.append(cam.maps["0"])
    assert torch.equal(*maps)


def test_metatensors_stay_metatensors_and_maps_are_plain():
    network, x = small_resnet(), MetaTensor(images(), meta={"space": "RAS"})
    with torch.no_grad():
        expected = network(x)
        with GradCam(network, LAYERS) as cam:
            logits = network(x)
    assert type(logits) is type(expected)
    assert torch.equal(logits.as_tensor(), expected.as_tensor())
    assert type(cam.maps["layer4"]) is Tensor
    assert_close(cam.maps["layer1"], reference_maps(network, images(), expected.as_tensor().argmax(dim=1), "layer1"))


def test_dense_and_named_outputs_take_a_callable():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"dense": self.head(self.body(x).relu())}

    network = Dense()
    with torch.no_grad(), GradCam(network, "body", lambda output: output["dense"].amax(dim=(1, 2, 3))) as cam:
        output = network(images())
    assert not output["dense"].requires_grad
    assert torch.equal(cam.scores, output["dense"].amax(dim=(1, 2, 3)))
    with (
        torch.no_grad(),
        GradCam(network, "body"),
        pytest.raises(ValueError, match="for other outputs give a callable"),
    ):
        network(images())
    assert_untouched(network)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "layer1.0.act",
            r"layer 'layer1.0.act' ran 2 times in one forward.*choose among conv1, bn1, act, maxpool, layer1",
        ),
        ("fc", r"layer 'fc' has no spatial extent, its output is \(3, 3\); choose among conv1"),
        ("avgpool", r"layer 'avgpool' has no spatial extent.*choose among conv1"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_named_in_the_forward(layer, message):
    network = small_resnet()
    with torch.no_grad(), GradCam(network, ["layer1", layer]), pytest.raises(ValueError, match=message):
        network(images())
    assert_untouched(network)


def test_a_layer_that_does_not_run_or_returns_no_tensor_is_named():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.idle, self.pair = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 1, 1), Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(self.body(x))[0].mean(dim=(2, 3))

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with GradCam(Idle(), "idle") as cam, pytest.raises(ValueError, match="'idle' ran 0 times.*choose among body"):
        cam.network(images())
    with GradCam(Idle(), "pair") as cam, pytest.raises(ValueError, match="'pair' does not return a tensor"):
        cam.network(images())


def test_missing_layers_are_refused_at_once():
    wrapped = nn.ModuleDict({"encoder": small_resnet()})
    with pytest.raises(ValueError, match="no layer 'layer4'; choose among encoder, encoder.layer4, "):
        GradCam(wrapped, "layer4")
    with pytest.raises(ValueError, match="no layer given"):
        GradCam(small_resnet(), [])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, r"outside 0\.\.2"),
        (-1, r"outside 0\.\.2"),
        (torch.tensor([0, 1]), r"LongTensor \(3,\); got \(2,\)"),
        (torch.tensor([0.0, 1.0, 1.0]), "LongTensor"),
        (lambda logits: logits.sum(), "one score a case"),
        (lambda logits: logits[:2, 0], "2 scores for 3 cases"),
        (lambda logits: logits.detach()[:, 0], "do not depend on layer3"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, message):
    network = small_resnet()
    with torch.no_grad(), GradCam(network, "layer3", target), pytest.raises(ValueError, match=message):
        network(images())
    assert_untouched(network)
    with pytest.raises(ValueError, match="target 'best'"):
        GradCam(network, "layer3", "best")


def test_two_recordings_of_one_network_are_refused():
    network = small_resnet()
    with (
        GradCam(network, "layer3"),
        pytest.raises(RuntimeError, match="name all layers in one"),
        GradCam(network, "fc"),
    ):
        pass
    with GradCam(network, "layer4") as cam:
        network(images())
    assert list(cam.maps) == ["layer4"]
