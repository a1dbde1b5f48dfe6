# SPDX-License-Identifier: Apache-2.0
"""Activations: the right numbers and maps, in the caller's own forward, which does not notice."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from test_gradcam import CONTEXTS, LAYERS, assert_untouched, images, small_resnet
from torch import Tensor, nn

from monai_cnnprimer.explain.activation_statistics import Tally, autocorrelation, describe, sparseness
from monai_cnnprimer.explain.activations import Activations
from monai_cnnprimer.explain.gradcam import GradCam
from monai_cnnprimer.figures.activations import ChannelMaps, LayerDepth, channel_grid_png, depth_png


def written_out(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs of a MONAI ResNet's layers, called one after the other."""
    outputs = {}
    for step in ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = network.get_submodule(step)(x)
        outputs[step] = x.clone()
    return outputs


def morans_i(channel: np.ndarray) -> float:
    """By its definition, with the matrix of neighbours of a `(h, w)` grid."""
    cells = np.argwhere(np.ones_like(channel))
    neighbours = np.abs(cells[:, None] - cells[None]).sum(axis=2) == 1
    deviation = (channel - channel.mean()).ravel()
    return float(deviation @ neighbours @ deviation / neighbours.sum() * channel.size / (deviation @ deviation))


def test_the_most_active_channels_and_their_maps_are_those_of_a_forward_written_out():
    network, x = small_resnet(), images(5)
    with torch.no_grad():
        with Activations(network, LAYERS, max_images=3, channels=4) as activations:
            network(x)
        expected = written_out(network, x)
    assert [image.number for image in activations.images] == [0, 1, 2]
    for number, layers in activations.images:
        assert list(layers) == list(LAYERS)
        for layer, recorded in layers.items():
            output = expected[layer][number].numpy()
            means = output.mean(axis=(1, 2))
            top = np.argsort(-means, kind="stable")[:4]
            assert recorded.channels.tolist() == top.tolist()
            assert np.array_equal(recorded.maps.numpy(), output[top])
            assert recorded.maps.dtype == torch.float32
            np.testing.assert_allclose(recorded.mean, means, rtol=1e-5)
            assert np.array_equal(recorded.maximum.numpy(), output.max(axis=(1, 2)))
            assert recorded.zero_share == pytest.approx((output == 0).mean(), abs=1e-9)
            assert recorded.grid == output.shape[1:]


def test_equally_active_channels_go_by_number():
    recorded = describe(torch.tensor([0.0, 2.0, 1.0, 2.0, 0.0, 1.0]).reshape(6, 1, 1).expand(6, 2, 3), channels=5)
    assert recorded.channels.tolist() == [1, 3, 2, 5, 0]


def test_sparseness_is_none_for_equal_units_and_full_for_a_single_one():
    single = torch.zeros(3, 4, 5)
    single[1, 2, 3] = 7
    assert sparseness(single) == pytest.approx(1)
    assert sparseness(torch.full((3, 4, 5), -2.0)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(sparseness(torch.zeros(3, 4, 5)))
    # Of an exponential distribution mean(r)^2 / mean(r^2) is 1/2.
    drawn = torch.empty(50, 60, 70).exponential_(generator=torch.Generator().manual_seed(0))
    assert sparseness(drawn) == pytest.approx(0.5, abs=0.01)
    assert sparseness(drawn * 1000) == pytest.approx(sparseness(drawn))


def test_autocorrelation_is_morans_i_of_the_channels_that_vary():
    random = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)).cumsum(dim=2)
    expected = np.mean([morans_i(channel) for channel in random.double().numpy()])
    assert autocorrelation(random) == pytest.approx(expected, rel=1e-5)
    constant = torch.full((2, 5, 7), 0.1)
    assert autocorrelation(torch.cat([random, constant])) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(autocorrelation(constant))


def test_cells_without_order_have_no_autocorrelation_and_a_chessboard_the_opposite():
    drawn = torch.rand(2000, 7, 7, generator=torch.Generator().manual_seed(0))
    assert autocorrelation(drawn) == pytest.approx(-1 / 48, abs=0.01)
    chessboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert autocorrelation(chessboard[None].float()) == pytest.approx(-1)
    assert autocorrelation(torch.linspace(0, 1, 100).reshape(1, 10, 10)) > 0.8


def test_statistics_over_a_data_set_do_not_depend_on_its_batches():
    network, x = small_resnet(), images(7)
    with torch.no_grad():
        expected = written_out(network, x)
        told = []
        for size in (7, 2):
            with Activations(network, LAYERS, max_images=1, all_images=True) as activations:
                for batch in x.split(size):
                    network(batch)
            told.append(activations.statistics)
    for layer in LAYERS:
        output = expected[layer].double().numpy()
        zeros = (output == 0).mean(axis=(1, 2, 3))
        moran = [np.nanmean([morans_i(channel) for channel in case if channel.std() > 1e-6]) for case in output]
        for statistics in (said[layer] for said in told):
            assert statistics.images == 7
            assert statistics.grid == output.shape[2:]
            assert statistics.units == output[0].size
            np.testing.assert_allclose(statistics.channel_mean, output.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(statistics.channel_maximum, output.max(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
            assert statistics.zero_share == pytest.approx((zeros.mean(), zeros.std(ddof=1)), abs=1e-4)
            assert statistics.autocorrelation == pytest.approx((np.mean(moran), np.std(moran, ddof=1)), abs=1e-3)


def test_a_channel_is_dead_that_no_image_wakes():
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
    network[0].weight = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, 0.0]).reshape(4, 1, 1, 1))
    network[0].bias = nn.Parameter(torch.tensor([0.0, 0.0, -2.5, 1e-7]))
    shares = []
    with torch.no_grad(), Activations(network, "1", max_images=0, all_images=True) as activations:
        for brightness in (1.0, -1.0, 3.0):
            network(torch.full((2, 1, 4, 4), brightness))
            shares.append(activations.statistics["1"].dead_share)
    assert shares == [0.75, 0.5, 0.25]  # the last channel stays below the 1e-6 from which a unit counts as active
    assert not activations.images


def test_statistics_count_the_sample_unless_all_are_asked_for():
    network, x = small_resnet(), images(6)
    with torch.no_grad():
        with Activations(network, "layer3", max_images=2) as sample:
            network(x[:3])
            network(x[3:])
        with Activations(network, "layer3", max_images=2) as alone:
            network(x[:2])
    assert (sample.seen, sample.forwards, sample.statistics["layer3"].images) == (6, 2, 2)
    torch.testing.assert_close(sample.statistics["layer3"].channel_mean, alone.statistics["layer3"].channel_mean)


def test_what_has_no_value_does_not_count_and_a_changing_grid_has_no_size():
    tally = Tally()
    for values in (torch.zeros(2, 3, 3), torch.eye(3).expand(2, 3, 3), torch.eye(4).expand(2, 4, 4)):
        tally.add(describe(values))
    statistics = tally.statistics()
    assert (statistics.grid, statistics.units, statistics.images) == (None, None, 3)
    assert statistics.zero_share.mean == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert statistics.sparseness.mean == pytest.approx(np.mean([(2 / 3) / (17 / 18), (3 / 4) / (31 / 32)]))
    first = Tally()
    first.add(describe(torch.eye(3).expand(2, 3, 3)))
    assert math.isnan(first.statistics().sparseness.sd)


def test_a_random_sample_is_the_same_for_every_batch_size_and_leaves_the_global_state():
    network, x = small_resnet(), images(12)

    def drawn(seed: int | None, size: int) -> list[int]:
        with torch.no_grad(), Activations(network, "layer4", max_images=4, seed=seed) as activations:
            for batch in x.split(size):
                network(batch)
        for image in activations.images:
            torch.testing.assert_close(image.layers["layer4"].mean, every[image.number].layers["layer4"].mean)
        return [image.number for image in activations.images]

    with torch.no_grad(), Activations(network, "layer4", max_images=12) as activations:
        network(x)
    every = activations.images
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert drawn(3, 12) == drawn(3, 5) == drawn(3, 1)
    assert len({tuple(drawn(seed, 12)) for seed in range(6)}) > 3
    assert drawn(None, 12) == [0, 1, 2, 3]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
def test_logits_and_network_are_as_without(context, training, beside):
    network, plain = (small_resnet().train(training) for _ in range(2))
    with CONTEXTS[context]():
        expected = plain(images())
        cam = GradCam(network, LAYERS) if beside else contextlib.nullcontext()
        with Activations(network, LAYERS, all_images=True) as activations, cam:
            logits = network(images())
    assert torch.equal(logits, expected)
    assert (logits.dtype, logits.requires_grad) == (expected.dtype, expected.requires_grad)
    assert torch.equal(activations.logits, expected)
    assert not activations.logits.requires_grad
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in plain.state_dict().items())
    assert_untouched(network)
    assert (activations.forwards, activations.seen) == (1, 3)
    for image in activations.images:
        for layer in image.layers.values():
            assert not any(tensor.requires_grad or tensor.is_inference() for tensor in (layer.maps, layer.mean))


@pytest.mark.parametrize("cam_first", [False, True])
def test_beside_gradcam_under_autocast_the_callers_pass_is_recorded_once(cam_first):
    network, x, seen = small_resnet(), images(4), []
    handle = network.layer3.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    activations = Activations(network, "layer3", max_images=2, channels=32, all_images=True)
    contexts = [activations, GradCam(network, "layer3")]
    low_precision = torch.autocast("cpu", torch.bfloat16)
    with torch.no_grad(), low_precision, contexts[cam_first], contexts[not cam_first]:
        for _ in range(3):
            network(x)
    handle.remove()
    assert [output.dtype for output in seen] == [torch.bfloat16, torch.float32] * 3
    assert (activations.forwards, activations.seen, activations.statistics["layer3"].images) == (3, 12, 12)
    for number, layers in activations.images:
        recorded = layers["layer3"]
        assert torch.equal(recorded.maps, seen[0][number].float()[recorded.channels])


def test_an_operation_in_place_that_follows_does_not_reach_what_is_recorded():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    with torch.no_grad(), Activations(network, ["0", "1"], channels=4) as activations:
        network(images() - 0.5)
        expected = network[0](images() - 0.5)
    for number, layers in activations.images:
        before, after = layers["0"], layers["1"]
        assert torch.equal(before.maps, expected[number][before.channels])
        assert before.maps.min() < 0
        assert torch.equal(after.maps, expected[number].relu()[after.channels])


def test_metatensors_stay_metatensors_and_what_is_kept_is_plain_and_holds_no_batch():
    network, x = small_resnet(), MetaTensor(images(8))
    with torch.no_grad(), Activations(network, "layer1", max_images=2, channels=3) as activations:
        assert type(network(x)) is MetaTensor
    for image in activations.images:
        recorded = image.layers["layer1"]
        for tensor in (recorded.maps, recorded.mean, recorded.maximum):
            assert type(tensor) is Tensor
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_training_goes_on_as_without():
    network, plain = small_resnet().train(), small_resnet().train()
    plain(images()).square().sum().backward()
    with Activations(network, LAYERS, all_images=True):
        network(images()).square().sum().backward()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_forward_that_fails_does_not_count_and_the_next_does(error):
    network, x = small_resnet(), images()

    def fail(*_: Any) -> None:
        raise error

    with torch.no_grad(), Activations(network, LAYERS, all_images=True) as activations:
        handle = network.fc.register_forward_hook(fail)
        with pytest.raises(type(error)):
            network(x)
        handle.remove()
        assert (activations.seen, activations.forwards, activations.statistics) == (0, 0, {})
        network.layer1(torch.rand(2, 4, 8, 8))  # outside a forward
        network(x)
    assert (activations.seen, activations.forwards, activations.statistics["layer4"].images) == (3, 1, 3)
    assert_untouched(network)


def test_entering_again_starts_afresh():
    network = small_resnet()
    activations = Activations(network, "layer4")
    for cases in (3, 2):
        with torch.no_grad(), activations:
            network(images(cases))
    assert (activations.seen, len(activations.images), activations.statistics["layer4"].images) == (2, 2, 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer1.0.act", r"'layer1.0.act' ran 2 times in one forward, not once; choose among conv1, bn1, act, maxpool"),
        ("fc", r"'fc' has no spatial extent, its output is \(3, 3\); choose among conv1"),
        ("layer4.0.idle", "'layer4.0.idle' ran 0 times in one forward, not once; choose among conv1"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_layer_that_cannot_be_recorded_is_named_in_the_forward(layer, message, beside):
    network = small_resnet()
    network.layer4[0].idle = nn.Identity()
    layers = ["layer4", layer]
    cam = GradCam(network, layers) if beside else contextlib.nullcontext()
    with torch.no_grad(), pytest.raises(ValueError, match=message), cam, Activations(network, layers):
        network(images())
    assert_untouched(network)


def test_what_does_not_fit_is_refused():
    network = small_resnet()
    with pytest.raises(ValueError, match="no layer 'layer9'; choose among"):
        Activations(network, "layer9")
    with pytest.raises(ValueError, match="got -1 and 16"):
        Activations(network, "layer4", max_images=-1)

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.parts = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.whole(x).sum() + self.parts(torch.cat([x, x])).sum()

    with (
        Activations(Patches(), ["whole", "parts"]) as activations,
        pytest.raises(ValueError, match="layer 'parts' has 6 images, a layer before it 3"),
    ):
        activations.network(images())


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


RADIOGRAPH = np.random.default_rng(0).random((40, 60))
MAPS = np.random.default_rng(1).random((4, 5, 8))


def grid(maps: np.ndarray, aspect: float = 1.0) -> np.ndarray:
    return pixels(channel_grid_png(RADIOGRAPH, [ChannelMaps("layer4", range(len(maps)), maps)], "case", aspect))


def test_maps_of_a_layer_share_one_scale():
    """The second map, left as it is, turns dark when the first becomes ten times as strong."""
    even, uneven = np.full_like(MAPS, 0.1), np.full_like(MAPS, 0.1)
    uneven[0] = 1.0
    # The middle of the second map: 0.9 inches right of the first's, at 110 dots an inch.
    row, column = int(110 * (0.85 + 0.2)), int(110 * (3.7 + 0.9 + 0.42))
    assert grid(even)[row, column].sum() > 500
    picture = grid(uneven)
    assert picture[row, column].sum() < 150
    assert picture[row, column - 99].sum() > 500


def test_a_grid_keeps_the_aspect_and_the_same_arrays_give_the_same_bytes():
    square, again, tall = grid(MAPS), grid(MAPS), grid(MAPS, aspect=2.0)
    assert np.array_equal(square, again)
    assert square.shape[1] == tall.shape[1]
    # The radiograph, the tallest of the page, is 3.4 inches wide, 40 by 60 pixels, at 110 dots an inch.
    assert tall.shape[0] - square.shape[0] == pytest.approx(3.4 * 40 / 60 * 110, abs=2)
    # A dark column between two maps starts and ends where they do: five by eight cells, 0.84 inches wide.
    edge = int(110 * (3.7 + 0.42))
    heights = [np.ptp(np.flatnonzero(np.ptp(picture[:, edge], axis=1) > 20)) for picture in (square, tall)]
    assert heights[1] - heights[0] == pytest.approx(2 * 0.84 * 5 / 8 * 110, abs=6)


def test_figures_without_layers_or_with_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        channel_grid_png(RADIOGRAPH, [], "case")
    with pytest.raises(ValueError, match="at least one layer"):
        depth_png([], "no layers")
    with pytest.raises(ValueError, match=r"layer4: maps must be \(3, h, w\), one a channel; got \(4, 5, 8\)"):
        channel_grid_png(RADIOGRAPH, [ChannelMaps("layer4", range(3), MAPS)], "case")


def test_layers_of_one_image_or_of_silent_channels_are_drawn_by_depth():
    nan = math.nan
    layers = [
        LayerDepth(f"layer{i}", (0.5, nan), (nan, nan), (nan, nan), 1.0, np.zeros(8) if i else -np.ones(8))
        for i in range(2)
    ]
    assert depth_png(layers, "one image") == depth_png(layers, "one image")
