# SPDX-License-Identifier: Apache-2.0
"""Receptive fields in an evaluator: which images, what is written, and that nobody is disturbed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.networks.nets.resnet import ResNet
from torch import nn

from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_field, random_twin
from monai_cnnprimer.figures.receptive_field import LayerFields, MeasuredField, receptive_fields_png
from monai_cnnprimer.handlers import GradCamHandler
from monai_cnnprimer.handlers.receptive_field import ReceptiveFieldHandler

LAYERS = ["layer1", "layer3"]


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=2).eval()


def cases(count: int = 5, size: tuple[int, int] = (64, 96)) -> list[dict[str, Any]]:
    """Images of seed 0; the spacing of the second is not known."""
    generator = torch.Generator().manual_seed(0)
    spacings = [[2.0, 1.0], [math.nan, math.nan], [4.0, 2.0], [3.0, 1.5], [9.0, 9.0]]
    return [
        {
            "image": torch.rand(1, *size, generator=generator),
            "case_id": f"c{i}",
            "label": torch.tensor(0),
            "network_spacing_mm": torch.tensor(spacings[i]),
        }
        for i in range(count)
    ]


def batches(cases: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [
        {
            key: [case[key] for case in part] if key == "case_id" else torch.stack([case[key] for case in part])
            for key in part[0]
        }
        for part in (cases[i : i + size] for i in range(0, len(cases), size))
    ]


def run(network: nn.Module, data: list[dict[str, Any]], *handlers: Any, decollate: bool = False) -> None:
    SupervisedEvaluator(torch.device("cpu"), data, network, val_handlers=list(handlers), decollate=decollate).run()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same evaluation in batches of 2 and of 5, the second over an earlier run's remains, with others watching."""
    network, folders, handlers, watched = small_resnet(), [], [], []
    for size in (2, 5):
        folder = tmp_path_factory.mktemp("run")
        folders.append(folder)
        handler = ReceptiveFieldHandler(network, LAYERS, max_images=4, seeds=2, output_dir=folder)
        if size == 5:
            (folder / "receptive_fields.csv").write_text("old")
        cam = GradCamHandler(network, "layer3", max_images=1)
        hook = network.layer1.register_forward_hook(lambda *args: watched.append(1))
        run(network, batches(cases(), size), *((handler, cam) if size == 2 else (cam, handler)), decollate=size == 5)
        hook.remove()
        handlers.append(handler)
    return network, handlers, folders, watched


def test_fields_are_those_of_the_first_images(written):
    network, handlers, _, _ = written
    images = torch.stack([case["image"] for case in cases()[:4]])
    for handler in handlers:
        assert list(handler.fields) == LAYERS
        for layer in LAYERS:
            expected = effective_receptive_field(network, layer, images, seeds=2)
            torch.testing.assert_close(handler.fields[layer].map, expected.map)
            expected = effective_receptive_field(random_twin(network, 0, images), layer, images, seeds=2)
            torch.testing.assert_close(handler.random_fields[layer].map, expected.map)
        assert handler.fields["layer1"].spacing_mm == (3.0, 1.5)  # median of three that are known


def test_the_evaluators_own_forwards_are_all_that_others_see(written):
    network, _, _, watched = written
    assert len(watched) == 3 + 1
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_table_has_a_row_for_each_layer_with_trained_and_random_weights(written):
    _, (handler, _), (folder, _), _ = written
    table = pd.read_csv(folder / "receptive_fields.csv")
    assert list(zip(table["layer"], table["weights"], strict=True)) == [
        (layer, weights) for layer in LAYERS for weights in ("trained", "random")
    ]
    first, field = table.iloc[0], handler.fields["layer1"]
    assert list(first[["size_px", "jump_px", "start_px"]]) == list(field.theoretical)
    assert first["sigma_px"] == pytest.approx(field.sigma, rel=1e-5)
    assert first["sigma_mm"] == pytest.approx(field.sigma * math.sqrt(3.0 * 1.5), rel=1e-5)
    assert first["side95_mm"] == pytest.approx(math.sqrt(field.areas[0.95] * 3.0 * 1.5), rel=1e-5)
    assert list(first[[f"area{percent}_px" for percent in (20, 30, 50, 95, 99)]]) == list(field.areas.values())
    assert first["ratio"] == pytest.approx(first["side95_px"] / first["size_px"], rel=1e-5)
    assert list(first[["power", "images", "seeds", "spacing_known"]]) == [2, 4, 2, 3]
    assert list(table["clipped"]) == [field.clipped for field in handler.fields.values() for _ in range(2)]
    assert first["offset_column_px"] == pytest.approx(field.offset[1], rel=1e-4)
    assert 0 < first["profile_error"] < first["gaussian_error"] < 1


def test_the_same_images_write_the_same_bytes(written):
    for name in ("receptive_fields.csv", "figures/receptive_fields.png"):
        first, second = ((folder / name).read_bytes() for folder in written[2])
        assert first == second


def test_each_run_starts_afresh_and_without_images_nothing_stays(tmp_path):
    network = small_resnet()
    handler = ReceptiveFieldHandler(network, "layer1", seeds=1, output_dir=tmp_path)
    engine = Engine(lambda engine, batch: network(batch[0]))  # no MONAI workflow, pairs of images and labels
    handler.attach(engine)
    data = [(batch["image"], batch["label"]) for batch in batches(cases(3), 2)]
    engine.run(data)
    first = handler.fields["layer1"]
    assert (first.images, first.spacing_mm) == (3, None)
    assert pd.read_csv(tmp_path / "receptive_fields.csv")["sigma_mm"].isna().all()
    engine.run(data)
    assert torch.equal(handler.fields["layer1"].map, first.map)
    handler._start(engine)
    handler._report(engine)
    assert handler.fields == {}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_images_of_another_size_are_passed_over():
    network = small_resnet()
    handler = ReceptiveFieldHandler(network, "layer1", seeds=1)
    run(network, batches(cases(2), 2) + batches(cases(2, (80, 80)), 2) + batches(cases(1), 1), handler)
    assert handler.fields["layer1"].images == 3


def test_what_cannot_be_measured_fails_at_once_or_with_the_first_batch():
    network = small_resnet()
    with pytest.raises(ValueError, match="no layer 'layer7'"):
        ReceptiveFieldHandler(network, "layer7")
    with pytest.raises(ValueError, match="max_images and seeds must be positive"):
        ReceptiveFieldHandler(network, "layer1", seeds=0)
    seen: list[int] = []
    network.register_forward_hook(lambda *args: seen.append(1))
    engine = SupervisedEvaluator(
        torch.device("cpu"), batches(cases(), 1), network, val_handlers=[ReceptiveFieldHandler(network, "fc")]
    )
    engine.logger.disabled = True
    with pytest.raises(ValueError, match="layer 'fc' is not known"):
        engine.run()
    assert len(seen) == 1


def test_figures_need_layers_and_maps_of_the_images_size():
    with pytest.raises(ValueError, match="at least one layer"):
        receptive_fields_png(np.zeros((8, 8)), [], "none")
    bell = np.ones(6)
    field = MeasuredField(np.ones((6, 6)), (3, 3), {0.5: (1, 1), 0.95: (2, 2)}, bell, bell, "")
    layer = LayerFields("a", (3, 3), math.inf, {"trained": field})
    assert receptive_fields_png(np.zeros((6, 6)), [layer], "no bound").startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"map \(6, 6\) for an image of \(8, 8\)"):
        receptive_fields_png(np.zeros((8, 8)), [layer], "other size")
