# SPDX-License-Identifier: Apache-2.0
"""Kernels, edges, shifts and pooling, each against a formula or a case worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from torch import Tensor, nn

from monai_cnnprimer.explain.fine_tuning import fine_tuned, relative_change
from monai_cnnprimer.explain.kernels import (
    grey_kernels,
    layer_output,
    response_by_region,
    shift_errors,
    sobel_x,
    touched_units,
    weight_counts,
)
from monai_cnnprimer.explain.pooling import pooled_line
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.figures.kernels import kernel_grids_png, mosaic
from monai_cnnprimer.figures.primer import paired_changes_png
from monai_cnnprimer.networks import resnet50_classifier

MASK = np.zeros((20, 20), bool)
MASK[5:9, 5:9] = True


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet50_classifier().eval()


class TestKernels:
    def test_a_repeated_grey_image_meets_the_sum_of_the_three_planes(self, resnet):
        image = noise(1, 1, 32, 32)
        expected = resnet.conv1(image.expand(-1, 3, -1, -1))
        kernels = torch.from_numpy(grey_kernels(resnet))[:, None]
        assert torch.allclose(nn.functional.conv2d(image, kernels, stride=2, padding=3), expected, atol=1e-5)

    def test_the_counts_of_resnet50_are_the_published_ones(self, resnet):
        dense, first, whole = weight_counts(resnet)
        assert (dense, first) == (224 * 224 * 1024, 64 * 3 * 7 * 7)
        assert whole == 25_557_032 - 2048 * 1000 - 1000 + 2048 * 2 + 2  # torchvision's, with two classes

    def test_a_network_without_convolutions_is_refused(self):
        with pytest.raises(ValueError, match="Linear has no 2-D convolution"):
            grey_kernels(nn.Linear(2, 2))


class TestFigures:
    def test_a_mosaic_holds_every_kernel_once(self):
        kernels = np.arange(5 * 4.0).reshape(5, 2, 2)
        sheet = mosaic(kernels)
        assert sheet.shape == (5, 8)  # two rows of three, a gap of one pixel between
        assert sorted(sheet[~np.isnan(sheet)]) == sorted(kernels.ravel())
        assert np.array_equal(sheet[3:, 3:5], kernels[4])

    def test_kernels_that_are_all_zero_are_drawn(self):
        assert kernel_grids_png({"none": np.zeros((4, 3, 3))}, "title").startswith(b"\x89PNG")

    def test_the_same_changes_give_the_same_picture(self):
        changes = {"a": np.array([0.1, -0.2, 0.3]), "b": np.array([1.0, 2.0, 3.0])}
        means = {"a": (0.07, (-0.5, 0.6)), "b": (2.0, (0.1, 3.9))}
        first, second, moved = (
            paired_changes_png({**changes, "b": changes["b"] + shift}, means, "title") for shift in (0, 0, 1)
        )
        assert first == second != moved


class TestRelativeChange:
    def test_scaling_a_layer_changes_it_by_the_factor_and_keeps_its_direction(self, resnet):
        before = resnet.state_dict()
        after = {**before, "layer3.0.conv2.weight": 0.97 * before["layer3.0.conv2.weight"]}
        table = relative_change(before, after).set_index("layer")
        assert table.loc["layer3.0.conv2", "relative_change"] == pytest.approx(0.03, rel=1e-4)
        assert table.loc["layer3.0.conv2", "cosine"] == pytest.approx(1)
        assert (table["relative_change"] > 0).sum() == 1

    def test_layers_stand_in_the_networks_order_without_normalisation_and_biases(self, resnet):
        table = relative_change(resnet.state_dict(), resnet.state_dict())
        assert len(table) == 54  # the fifty of the name and four shortcuts
        assert (table["layer"].iloc[0], table["layer"].iloc[-1]) == ("conv1", "fc")
        assert table["depth"].tolist() == list(range(54))

    def test_weights_of_another_training_are_orthogonal(self):
        before, after = ({"conv.weight": noise(64, 32, 3, 3, seed=seed)} for seed in (0, 1))
        row = relative_change(before, after).iloc[0]
        assert abs(row["cosine"]) < 0.03
        assert row["relative_change"] == pytest.approx(2**0.5, rel=0.03)

    def test_a_classifier_that_was_replaced_is_left_out(self):
        shared = {"conv1.weight": torch.ones(2, 1, 3, 3, dtype=torch.float16), "bn1.weight": torch.ones(2)}
        before = {**shared, "fc.weight": torch.ones(1000, 2)}
        assert relative_change(before, {**shared, "fc.weight": torch.ones(2, 2)})["layer"].tolist() == ["conv1"]
        with pytest.raises(ValueError, match="no convolution or linear layer in common"):
            relative_change(before, {"fc.weight": torch.ones(2, 2)})


class TestFineTuning:
    def test_one_step_of_gradient_descent_is_the_formula(self):
        network, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), noise(3, 1, 2, 2), torch.tensor([0, 1, 1])
        before = {name: value.clone() for name, value in network.state_dict().items()}
        after = fine_tuned(network, x, y, lambda p: torch.optim.SGD(p, 0.5), steps=1, batch_size=3)
        wrong = (network(x).softmax(1) - nn.functional.one_hot(y)).detach()
        assert torch.allclose(after["1.weight"], before["1.weight"] - 0.5 * wrong.T @ x.flatten(1) / 3, atol=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_the_network_and_the_global_generator_are_left_alone(self):
        network = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)
        ).eval()
        network.requires_grad_(False)
        arguments = (noise(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 0]), lambda p: torch.optim.AdamW(p, 1e-3))
        state = torch.get_rng_state()
        first, second = (fine_tuned(network, *arguments, steps=3, batch_size=2) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert int(first["1.num_batches_tracked"]) == 3
        assert torch.equal(state, torch.get_rng_state())
        assert not network.training
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


class TestSobel:
    def test_it_answers_columns_not_rows(self):
        ramp = np.tile(np.arange(8.0), (8, 1))
        assert np.allclose(sobel_x(ramp)[:, 1:-1], 1)
        assert not sobel_x(ramp.T).any()

    def test_it_equals_a_convolution_with_the_kernel_written_out(self):
        image = noise(1, 1, 9, 11)
        kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None] / 8
        expected = nn.functional.conv2d(image, kernel)[0, 0].numpy()
        assert np.allclose(sobel_x(image[0, 0].numpy())[1:-1, 1:-1], expected, atol=1e-6)

    def test_regions_are_told_apart(self):
        response = np.where(MASK, -3.0, 0.5)
        table = response_by_region(response, {"marker": MASK, "rest": ~MASK}, share=0.04).set_index("region")
        assert table["median"].to_dict() == {"marker": 3.0, "rest": 0.5}
        assert table["firing"].to_dict() == {"marker": 1.0, "rest": 0.0}
        assert table["pixels"].sum() == MASK.size

    def test_an_empty_region_is_an_error(self):
        with pytest.raises(ValueError, match="region 'ribs' is empty"):
            response_by_region(np.ones((20, 20)), {"ribs": ~MASK & MASK})


class TestLayerOutput:
    def test_it_is_the_networks_own_and_nothing_runs_behind_it(self, resnet):
        image = noise(2, 1, 64, 64)
        with torch.no_grad():
            assert torch.equal(layer_output(resnet, "conv1")(image), resnet.conv1(image.expand(-1, 3, -1, -1)))
        broken = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(1, 1))
        assert layer_output(broken, "0")(image).shape == (2, 2, 62, 62)
        assert not broken[0]._forward_hooks

    def test_a_layer_that_does_not_run_is_an_error(self):
        network = nn.Sequential(nn.Identity())
        network[0].add_module("idle", nn.Conv2d(1, 1, 1))
        with pytest.raises(ValueError, match="layer '0.idle' does not run in a forward of Sequential"):
            layer_output(network, "0.idle")(noise(1, 1, 4, 4))


class TestLocality:
    @pytest.mark.parametrize(("stride", "padding", "touched"), [(1, 2, 25), (2, 2, 9), (5, 0, 1)])
    def test_one_pixel_touches_as_many_units_as_kernels_reach_it(self, stride, padding, touched):
        conv = nn.Conv2d(1, 3, 5, stride=stride, padding=padding)
        assert touched_units(conv, noise(1, 1, 30, 30), row=12, column=12).sum() == touched

    def test_a_dense_layer_is_touched_everywhere(self):
        dense = nn.Linear(64, 16)
        touched = touched_units(lambda x: dense(x.flatten(1)).reshape(1, 1, 4, 4), noise(1, 1, 8, 8), 3, 3)
        assert touched.all()


class TestShift:
    def test_a_convolution_without_stride_shifts_with_its_input(self):
        conv = nn.Conv2d(1, 4, 7, padding=3)
        table = shift_errors(conv, noise(1, 1, 40, 60), range(9), ReceptiveField(7, 1, 0))
        assert table["error"].max() < 1e-5

    def test_with_stride_only_whole_strides_do(self, resnet):
        image = torch.from_numpy(gaussian_filter(noise(1, 1, 64, 96).numpy(), (0, 0, 1, 1)))

        def stem(x: Tensor) -> Tensor:
            return resnet.maxpool(resnet.act(resnet.bn1(resnet.conv1(x.expand(-1, 3, -1, -1)))))

        field = theoretical_receptive_field(resnet, "maxpool")
        errors = shift_errors(stem, image, range(9), field).set_index("shift")["error"]
        assert field.jump == 4
        assert errors[[0, 4, 8]].max() < 1e-5
        assert errors[[1, 2, 3, 5, 6, 7]].min() > 0.05

    def test_a_layer_that_is_linear_between_its_units_is_read_between_them(self):
        ramp = torch.arange(60.0).expand(1, 1, 20, 60)
        table = shift_errors(nn.AvgPool2d(4), ramp, range(8), ReceptiveField(4, 4, 1.5))
        assert table["error"].max() < 1e-6

    def test_borders_do_not_enter(self):
        class Bordered(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.pad(x[..., 2:-2, 2:-2], (2, 2, 2, 2), value=1e6)

        assert shift_errors(Bordered(), noise(1, 1, 20, 20), [0, 3], ReceptiveField(5, 1, 0))["error"].max() == 0

    def test_what_cannot_be_measured_is_refused(self):
        with pytest.raises(ValueError, match="no unit sees only the image at shift 6"):
            shift_errors(nn.Conv2d(1, 1, 7, padding=3), noise(1, 1, 18, 18), [0, 6], ReceptiveField(7, 1, 0))
        with pytest.raises(ValueError, match="not negative"):
            shift_errors(nn.Identity(), noise(1, 1, 8, 8), [-1], ReceptiveField(1, 1, 0))


CONTRASTS = (0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pooled_line(CONTRASTS, windows=40_000).set_index(["pooling", "contrast"])


class TestPooling:
    def test_average_pooling_is_the_formula(self, table):
        for contrast in CONTRASTS:
            row = table.loc["average", contrast]
            d_prime = contrast * 0.5 / 0.25  # half the window is line; 16 pixels quarter the noise
            assert row["kept"] == pytest.approx(0.5)
            assert row["d_prime"] == pytest.approx(d_prime, rel=0.02)
            assert row["detected"] == pytest.approx(norm.sf(norm.isf(0.05) - d_prime), abs=0.01)

    def test_max_pooling_is_the_formula_of_the_largest_of_sixteen(self, table):
        grid = np.linspace(-8, 14, 40_001)
        without = norm.cdf(grid) ** 16
        threshold = grid[np.searchsorted(without, 0.95)]
        for contrast in CONTRASTS:
            with_line = norm.cdf(grid) ** 8 * norm.cdf(grid - contrast) ** 8
            rise = np.trapezoid(without - with_line, grid)  # of the means
            missed = norm.cdf(threshold) ** 8 * norm.cdf(threshold - contrast) ** 8
            assert table.loc[("max", contrast), "kept"] == pytest.approx(rise / contrast, abs=0.02)
            assert table.loc[("max", contrast), "detected"] == pytest.approx(1 - missed, abs=0.01)

    def test_before_pooling_a_known_line_is_a_mean_of_eight_pixels(self, table):
        assert table.loc[("none", 1.0), "d_prime"] == pytest.approx(8**0.5, rel=0.02)

    @pytest.mark.parametrize("window", [4, 16])
    def test_a_spot_is_diluted_by_the_area_of_the_window(self, window):
        table = pooled_line([2.0], length=2, window=window, windows=4000).set_index("pooling")
        assert table.loc["average", "kept"] == pytest.approx(4 / window**2)
        assert table.loc["average", "d_prime"] == pytest.approx(2 * 4 / window, rel=0.1)
        assert table.loc["none", "d_prime"] == pytest.approx(4, rel=0.05)

    def test_a_line_as_wide_as_the_window_is_kept_whole_by_the_average(self):
        table = pooled_line([1.0], width=4, windows=5000).set_index("pooling")
        assert table.loc["average", "kept"] == pytest.approx(1)

    def test_the_seed_decides_and_the_global_generator_is_left_alone(self):
        state = torch.get_rng_state()
        first, again, other = (pooled_line([1.0], windows=500, seed=seed) for seed in (1, 1, 2))
        assert first.equals(again)
        assert not first.equals(other)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize(
        "arguments", [{"contrasts": [0.0]}, {"contrasts": [1.0], "width": 5}, {"contrasts": [1.0], "length": 0}]
    )
    def test_a_line_that_is_none_is_refused(self, arguments):
        with pytest.raises(ValueError, match="contrasts must be above 0, and the line"):
            pooled_line(**arguments)
