# SPDX-License-Identifier: Apache-2.0
"""Random weights: correlations as SciPy's, the same network afterwards, and maps that do not change found out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from scipy.stats import spearmanr
from test_gradcam import images, small_resnet
from torch import Tensor, nn

from monai_cnnprimer.explain.bare_copy import bare_copy
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.explain.randomisation import cascading_randomisation, judge, mean_interval

LAYERS = ["layer2", "layer3"]


@pytest.fixture(scope="module")
def checks():
    return cascading_randomisation(small_resnet(), LAYERS, images(9), seed=3, draws=2)


def raw_maps(network: nn.Module, layer: str, x: Tensor, target: object) -> np.ndarray:
    with torch.no_grad(), GradCam(network, layer, target) as cam:
        network(x)
    return cam.maps[layer][:, 0].numpy()


def test_blocks_become_random_from_the_head_downwards(checks):
    check = checks["layer3"]
    assert list(checks) == LAYERS
    assert check.blocks == ("fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1")
    assert (check.layer, check.n) == ("layer3", 9)
    assert check.maps.shape == (8, 9, 4, 6)
    assert check.signed.shape == check.absolute.shape == check.ssim.shape == (2, 7, 9)
    np.testing.assert_allclose(check.maps[0, :8], raw_maps(small_resnet(), "layer3", images(9)[:8], "predicted"))


def test_each_step_resets_its_block_and_keeps_those_below(checks):
    """The first step by hand: a new head on the same body, for the classes predicted before."""
    network, x = small_resnet(), images(9)
    with torch.no_grad():
        classes = network(x).argmax(dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network.fc.reset_parameters()
    np.testing.assert_allclose(checks["layer2"].maps[1], raw_maps(network, "layer2", x, classes), rtol=1e-3, atol=1e-7)


def test_correlations_are_those_of_scipy(checks):
    check = checks["layer2"]
    original = check.maps[0].reshape(9, -1)
    for step in (1, 7):
        maps = check.maps[step].reshape(9, -1)
        signed = [[spearmanr(a, b).statistic for b in maps] for a in original]
        absolute = [spearmanr(abs(a), abs(b)).statistic for a, b in zip(original, maps, strict=True)]
        np.testing.assert_allclose(check.signed[0, step - 1], np.diagonal(signed), atol=1e-12)
        np.testing.assert_allclose(check.absolute[0, step - 1], absolute, atol=1e-12)
        others = (np.sum(signed) - np.trace(signed)) / 72
        assert check.other_image[0, step - 1] == pytest.approx(others)


def test_similarity_is_that_of_monai(checks):
    check = checks["layer2"]
    first, last = (0.5 + 0.5 * m / np.abs(m).max(axis=(1, 2), keepdims=True) for m in check.maps[[0, -1]])
    metric = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=7, reduction="none")
    expected = metric(torch.from_numpy(last)[:, None], torch.from_numpy(first)[:, None])
    np.testing.assert_allclose(check.ssim[0, -1], expected[:, 0], atol=1e-5)


def test_rows_are_means_over_draws_and_images(checks):
    check = checks["layer2"]
    rows = check.rows()
    assert [row["block"] for row in rows] == list(check.blocks)
    assert rows[2]["step"] == 3
    assert rows[2]["signed"] == pytest.approx(check.signed[:, 2].mean())
    assert rows[2]["absolute_low"] < rows[2]["absolute"] < rows[2]["absolute_high"]
    assert rows[-1]["fit"] is check.fit
    assert check.correlation == max(rows[-1]["signed"], rows[-1]["absolute"])


def test_the_same_seed_gives_the_same_check_and_nothing_else_changes():
    network, seen = small_resnet().train(), []
    network.layer2.eval()
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network.layer3.register_forward_hook(lambda *_: seen.append(1))
    random = torch.get_rng_state()
    with GradCam(network, "layer3") as recording:
        first, second, other = (
            cascading_randomisation(network, "layer4", images(2), seed=seed, draws=1)["layer4"] for seed in (1, 1, 2)
        )
    assert np.array_equal(first.maps, second.maps)
    assert np.array_equal(first.maps[0], other.maps[0])
    assert not np.allclose(first.maps[-1], other.maps[-1])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert recording.forwards == 0
    assert not seen
    assert all(parameter.grad is None for parameter in network.parameters())


def test_classes_go_with_their_images_beyond_one_batch():
    network, x, classes = small_resnet(), images(11), torch.arange(11) % 3
    check = cascading_randomisation(network, "layer3", x, target=classes, draws=1)["layer3"]
    expected = np.concatenate([raw_maps(network, "layer3", x[i : i + 1], int(classes[i])) for i in range(11)])
    np.testing.assert_allclose(check.maps[0], expected, rtol=1e-4, atol=1e-6)


def test_dense_outputs_take_a_callable():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    target = lambda output: output.flatten(1).logsumexp(dim=1)  # noqa: E731
    check = cascading_randomisation(network, "1", images(8)[:, :, :12, :12], target, draws=2)["1"]
    assert check.blocks == ("2", "0")
    assert check.n == 8


def test_a_block_that_holds_the_layer_is_opened():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 2)  # registered first, runs last
            self.encoder = small_resnet()
            self.encoder.fc = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x))

    blocks = cascading_randomisation(Wrapped(), "encoder.layer4", images(1), draws=1)["encoder.layer4"].blocks
    assert blocks[:3] == ("head", "encoder.layer4", "encoder.layer3")
    assert blocks[-1] == "encoder.conv1"


def pooled_image() -> nn.Sequential:
    """Its maps at "0" are the image itself times a weight, whatever was learnt."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))


def test_maps_that_do_not_change_are_unfit_whatever_their_sign():
    check = cascading_randomisation(pooled_image(), "0", images(8), target=1, draws=5)["0"]
    assert check.fit is False
    assert set(np.sign(check.signed[:, -1, 0])) == {-1, 1}
    assert check.correlation > 0.999
    assert "the maps stay alike: absolute rank correlation 1.00" in check.reason


def test_maps_of_an_untrained_deep_layer_change():
    """Two sets of random weights have nothing in common but the image, of noise here."""
    check = cascading_randomisation(small_resnet(), "layer3", images(8), target=0, draws=5)["layer3"]
    assert check.fit is True
    assert check.interval[1] < 0.5


def test_maps_without_rank_are_left_out_and_few_images_do_not_tell():
    x = images(9)
    x[[2, 5]] = 0
    check = cascading_randomisation(pooled_image(), "0", x, target=1, draws=2)["0"]
    assert check.images.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert check.fit is None
    assert check.reason == "7 images with a map, fewer than 8, do not tell"
    nothing = cascading_randomisation(pooled_image(), "0", 0 * x, target=1, draws=2)["0"]
    assert (nothing.n, nothing.fit) == (0, None)
    assert math.isnan(nothing.correlation)
    assert math.isnan(nothing.rows()[0]["ssim"])


def test_a_random_network_without_a_map_correlates_by_zero():
    class Off(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self.weight)

    network = nn.Sequential(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Off(1, 2, bias=False))
    nn.init.ones_(network[3].weight)
    check = cascading_randomisation(network, "0", images(8), target=1)["0"]
    assert not check.signed.any()
    assert check.fit is True


@pytest.mark.parametrize(
    ("signed", "absolute", "fit"),
    [(0.9, 0.1, False), (-0.9, 0.9, False), (0.1, 0.1, True), (0.1, 0.5, False), (-0.9, -0.2, True)],
)
def test_the_verdict_turns_on_the_higher_of_two_correlations(signed, absolute, fit):
    verdict = judge(np.full((5, 8), signed), np.full((5, 8), absolute))
    assert verdict.fit is fit
    assert verdict.correlation == pytest.approx(max(signed, absolute))


def test_an_interval_across_the_limit_does_not_tell():
    signs = np.array([1.0, -1.0, 1.0, 1.0, -1.0])[:, None] * np.full((1, 8), 0.9)
    verdict = judge(signs, np.zeros((5, 8)))
    assert verdict.fit is None
    assert verdict.reason.startswith("with random weights the maps may stay alike: signed rank correlation 0.18")


def test_the_interval_knows_that_images_share_a_draw():
    values = np.array([0.8, -0.8, 0.8, -0.8])[:, None] + np.zeros((1, 50))
    low, high = mean_interval(values)
    assert low <= -0.4
    assert high >= 0.4
    independent = np.random.default_rng(0).normal(0, 1, (1, 400))
    low, high = mean_interval(independent)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_a_bare_copy_takes_neither_hooks_nor_what_hangs_on_them():
    class Watcher:
        def __deepcopy__(self, memo: object) -> object:
            raise AssertionError("copied")

        def hook(self, *_: object) -> None:
            raise AssertionError("ran")

    network = small_resnet()
    for module in (network, network.layer1):
        module.register_forward_hook(Watcher().hook, always_call=True, with_kwargs=True)
        module.register_forward_pre_hook(Watcher().hook)
        module.register_full_backward_hook(Watcher().hook)
    copy = bare_copy(network)
    copy(images(1)).sum().backward()
    assert network.fc.weight.grad is None
    assert copy.fc.weight.data_ptr() != network.fc.weight.data_ptr()
    assert len(network._forward_hooks) == 1


def test_what_cannot_be_randomised_is_named():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    network = nn.Sequential(nn.Conv2d(1, 2, 3), Scale(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"1: Scale has weights but no reset_parameters\(\)"):
        cascading_randomisation(network, "0", images(1))
    with pytest.raises(ValueError, match="no images"):
        cascading_randomisation(network, "0", images(1)[:0])
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        cascading_randomisation(small_resnet(), "layer9", images(1))
