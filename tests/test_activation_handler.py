# SPDX-License-Identifier: Apache-2.0
"""Activations in an evaluator: which cases are kept, what is counted, and what is written."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from test_gradcam import LAYERS, assert_untouched, small_resnet
from torch import Tensor, nn
from torch.utils.data import default_collate

from monai_cnnprimer.explain.activations import Activations
from monai_cnnprimer.explain.receptive_field import ReceptiveField, theoretical_receptive_field
from monai_cnnprimer.handlers.activations import ActivationHandler
from monai_cnnprimer.handlers.gradcam import GradCamHandler

CASES = 10


def cases() -> list[dict[str, Any]]:
    """Ten images of 64 x 96 pixels; the spacing of odd ones is unknown, of even ones 2 x 1.5 mm."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.rand(1, 64, 96, generator=generator),
            "case_id": f"c/{i:02d}",
            "label": torch.tensor(i % 3 - 1),
            "network_spacing_mm": torch.tensor([math.nan, math.nan] if i % 2 else [2.0, 1.5]),
        }
        for i in range(CASES)
    ]


def batches(cases: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [default_collate(cases[i : i + size]) for i in range(0, len(cases), size)]


def evaluator(loader: Any, network: nn.Module, *handlers: Any, **kwargs: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(torch.device("cpu"), loader, network, val_handlers=list(handlers), **kwargs)


@pytest.mark.parametrize("decollate", [False, True])
@pytest.mark.parametrize("size", [1, 4, 10])
@pytest.mark.parametrize("seed", [None, 1])
def test_the_sample_has_the_cases_that_the_network_saw_whatever_the_batch_size(size, decollate, seed):
    network = small_resnet()
    handler = ActivationHandler(network, "layer3", max_images=3, seed=seed)
    evaluator(batches(cases(), size), network, handler, decollate=decollate).run()
    everything = {case["case_id"]: case for case in cases()}
    assert len(handler.cases) == 3
    if seed is None:
        assert [kept.case.case_id for kept in handler.cases] == ["c/00", "c/01", "c/02"]
    for case, layers in handler.cases:
        given = everything[case.case_id]
        assert torch.equal(case.image, given["image"])
        with torch.no_grad(), Activations(network, "layer3") as alone:
            logits = network(given["image"][None])
        torch.testing.assert_close(layers["layer3"].mean, alone.images[0].layers["layer3"].mean)
        torch.testing.assert_close(case.logits, logits[0])
        label = int(given["label"])
        assert case.label == (None if label < 0 else label)
    assert handler.statistics["layer3"].images == 3


def test_all_images_are_counted_where_asked_for():
    network = small_resnet()
    handler = ActivationHandler(network, max_images=2, all_images=True)
    evaluator(batches(cases(), 4), network, handler).run()
    with torch.no_grad(), Activations(network, max_images=CASES) as activations:
        network(torch.stack([case["image"] for case in cases()]))
    assert list(handler.statistics) == ["layer1", "layer3", "layer4"]
    for layer, expected in activations.statistics.items():
        statistics = handler.statistics[layer]
        assert statistics.images == CASES
        torch.testing.assert_close(statistics.channel_mean, expected.channel_mean)
        assert statistics.sparseness == pytest.approx(expected.sparseness, abs=1e-6)


def test_beside_gradcam_in_low_precision_each_case_is_counted_once():
    network = small_resnet()
    handlers = [GradCamHandler(network, "layer4"), ActivationHandler(network, all_images=True)]
    engine = evaluator(batches(cases(), 4), network, *handlers)
    with torch.autocast("cpu", torch.bfloat16):
        engine.run()
    assert {said.images for said in handlers[1].statistics.values()} == {CASES}
    assert_untouched(network)


def test_any_ignite_engine_network_and_plain_batches():
    """Pairs of images and labels; the running number stands for the case id, and a dense output gives no logits."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"dense": self.body(x)}

    network = Dense()
    handler = ActivationHandler(network, "body", max_images=5)
    engine = Engine(lambda engine, batch: network(batch[0]))
    handler.attach(engine)
    engine.run([(batch["image"], batch["label"]) for batch in batches(cases(), 4)])
    assert [kept.case.case_id for kept in handler.cases] == [f"00000{i}" for i in range(5)]
    assert {len(kept.case.logits) for kept in handler.cases} == {0}


def test_each_run_starts_afresh_and_leaves_no_hook():
    network = small_resnet()
    handler = ActivationHandler(network, "layer4", all_images=True)
    engine = evaluator(batches(cases(), 5), network, handler)
    for _ in range(2):
        engine.run()
        assert handler.statistics["layer4"].images == CASES
        assert len(handler.cases) == 8
    assert_untouched(network)


def test_forwards_of_other_handlers_are_not_recorded():
    network = small_resnet()
    handler = ActivationHandler(network, "layer4", all_images=True)
    engine = evaluator(batches(cases(), 5), network, handler)
    for event in (Events.STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        engine.add_event_handler(event, lambda: network.eval()(torch.rand(3, 1, 64, 96)))
    engine.run()
    assert (handler.statistics["layer4"].images, len(handler.cases)) == (CASES, 8)


def test_memory_is_bounded_by_the_number_of_cases():
    network, seen, alive = small_resnet(), [], []

    def loader():
        for i in range(0, CASES, 2):
            (batch,) = batches(cases()[i : i + 2], 2)
            seen.append(weakref.ref(batch["image"]))
            alive.append(sum(image() is not None for image in seen))
            yield batch

    handler = ActivationHandler(network, "layer1", max_images=2, channels=2, all_images=True, seed=0)
    evaluator(loader(), network, handler, epoch_length=5).run()
    assert max(alive) <= 3  # the loader's, the engine's, the evaluator's output
    for case, layers in handler.cases:
        kept = [case.image, case.logits, layers["layer1"].maps, layers["layer1"].mean]
        assert [tensor.untyped_storage().nbytes() for tensor in kept] == [tensor.nbytes for tensor in kept]


def test_a_failing_evaluation_leaves_the_network_and_nothing_of_an_earlier_run(tmp_path):
    (tmp_path / "activations.csv").touch()
    network = small_resnet()
    handler = ActivationHandler(network, output_dir=tmp_path)
    engine = evaluator([{"image": torch.zeros(2, 3, 64, 64), "label": torch.zeros(2)}], network, handler)
    engine.logger.disabled = True
    with pytest.raises(RuntimeError, match="channels"):
        engine.run()
    assert_untouched(network)
    assert not list(tmp_path.iterdir())


def test_calls_that_do_not_match_the_batch_are_refused():
    network = small_resnet()
    given = batches(cases(), 5)
    twice = evaluator(given, network, ActivationHandler(network), inferer=lambda x, n: n(x) + n(x.flip(-1)))
    never = evaluator(given, small_resnet(), ActivationHandler(network))
    other = evaluator(given, network, ActivationHandler(network), inferer=lambda x, n: n(x.repeat(2, 1, 1, 1))[:5])
    for engine, message in ((twice, "ran 2 times"), (never, "ran 0 times"), (other, "had 10 images, the batch has 5")):
        engine.logger.disabled = True
        with pytest.raises(ValueError, match=message):
            engine.run()
    assert_untouched(network)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two runs into one folder each; the second folder holds remains of an earlier run and of another handler."""
    network = small_resnet()
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    (folders[1] / "figures").mkdir()
    for name in ("activations_old.png", "gradcam.png"):
        (folders[1] / "figures" / name).touch()
    for folder in folders:
        handler = ActivationHandler(network, LAYERS, max_images=1, channels=2, output_dir=folder, all_images=True)
        evaluator(batches(cases(), 4), network, handler).run()
    return handler, folders


def test_the_same_run_writes_the_same_bytes_and_nothing_else(written):
    first, second = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in written[1]
    )
    assert second.pop("figures/gradcam.png") == b""
    assert first == second
    names = [name.removeprefix("figures/activations") for name in sorted(first)]
    assert names[:2] == ["activations.csv", ".png"]
    assert [name[:6] for name in names[2:]] == ["_c_00-"]


def test_the_table_has_a_row_for_each_layer(written):
    handler, (folder, _) = written
    table = pd.read_csv(folder / "activations.csv").set_index("layer")
    assert list(table.index) == list(LAYERS)
    assert list(table["grid"]) == ["16x24", "4x6", "2x3"]
    assert list(table["cell_px"]) == [4, 16, 32]
    assert list(table["cell_height_mm"]) == [8, 32, 64]
    assert list(table["cell_width_mm"]) == [6, 24, 48]
    assert list(table["channels"]) == [4, 16, 32]
    assert list(table["units"]) == [4 * 16 * 24, 16 * 4 * 6, 32 * 2 * 3]
    assert set(table["images"]) == {CASES}
    for layer, said in handler.statistics.items():
        row = table.loc[layer]
        assert row["mean"] == pytest.approx(float(said.channel_mean.mean()), rel=1e-5)
        assert row["dead_share"] == pytest.approx(said.dead_share, rel=1e-5)
        for name in ("zero_share", "sparseness", "autocorrelation"):
            assert [row[name], row[f"{name}_sd"]] == pytest.approx(getattr(said, name), rel=1e-5)


def test_figures_say_what_is_known_of_each_layer_and_case(tmp_path, monkeypatch):
    titles, depths = {}, []

    def grid(image: np.ndarray, layers: Any, title: str, aspect: float) -> bytes:
        titles[title] = (aspect, [layer.title for layer in layers])
        return b""

    monkeypatch.setattr("monai_cnnprimer.handlers.activations.channel_grid_png", grid)
    monkeypatch.setattr(
        "monai_cnnprimer.handlers.activations.depth_png", lambda layers, title: depths.append((layers, title)) or b""
    )

    def field(network: nn.Module, layer: str, image: Tensor) -> ReceptiveField:
        if layer == "layer4":
            raise ValueError("an operation whose geometry is not known")
        return theoretical_receptive_field(network, layer, image)

    monkeypatch.setattr("monai_cnnprimer.handlers.activations.theoretical_receptive_field", field)
    network = small_resnet()
    handler = ActivationHandler(network, ["layer3", "layer4"], max_images=2, output_dir=tmp_path, threshold=0.9)
    evaluator(batches(cases(), 4), network, handler).run()
    (known, unknown), ((layers, title),) = titles.items(), depths
    assert known[0].startswith("c/00   predicted")
    assert known[0].endswith("label unknown; most active channels by mean activation")
    assert known[1] == (
        2 / 1.5,
        ["layer3: 4 × 6 cells, cell 16 px, 32 × 24 mm", "layer4: 2 × 3 cells, cell size unknown"],
    )
    assert unknown[1] == (1.0, ["layer3: 4 × 6 cells, cell 16 px", "layer4: 2 × 3 cells, cell size unknown"])
    assert title.startswith("Activations of 2 images by depth")
    assert [layer.label for layer in layers] == ["layer3\n4 × 6\n32 × 24 mm", "layer4\n2 × 3\nmm unknown"]


def test_without_images_to_count_nothing_is_written(tmp_path):
    (tmp_path / "activations.csv").touch()
    network = small_resnet()
    handler = ActivationHandler(network, "layer4", max_images=0, output_dir=tmp_path)
    evaluator(batches(cases(), 5), network, handler).run()
    assert (handler.statistics, handler.cases) == ({}, [])
    assert not list(tmp_path.iterdir())
