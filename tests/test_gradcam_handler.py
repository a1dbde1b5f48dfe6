# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM in an evaluator: which cases are kept, how many, and what is written."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from monai_cnnprimer.explain.cases import ChosenCases, ExplainedCase, batch_cases, errors_first
from monai_cnnprimer.explain.receptive_field import theoretical_receptive_field
from monai_cnnprimer.handlers import GradCamHandler


class Brightness(nn.Module):
    """Two classes; the logit of the second is the image's mean, so each case's confidence is chosen by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.features.weight = nn.Parameter(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))


def bright_cases() -> list[dict[str, Any]]:
    """Twelve cases, brightness -6..5; labels wrong for c03 (-3) and c08 (2), unknown for c11."""
    labels = {3: 1, 8: 0, 11: -1}
    return [
        {
            "image": torch.full((1, 6, 8), float(i - 6)),
            "case_id": f"c{i:02d}",
            "label": torch.tensor(labels.get(i, int(i > 6))),
            "network_spacing_mm": torch.tensor([2.0, 1.5] if i % 2 else [math.nan, math.nan]),
        }
        for i in range(12)
    ]


def batches(cases: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [
        {
            key: torch.stack([case[key] for case in part])
            if isinstance(part[0][key], Tensor)
            else [c[key] for c in part]
            for key in part[0]
        }
        for part in (cases[i : i + size] for i in range(0, len(cases), size))
    ]


def evaluator(loader: Any, network: nn.Module, *handlers: Any, **kwargs: Any) -> SupervisedEvaluator:
    return SupervisedEvaluator(torch.device("cpu"), loader, network, val_handlers=list(handlers), **kwargs)


@pytest.mark.parametrize("decollate", [False, True])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_errors_come_first_then_the_most_confident_whatever_the_batch_size(size, decollate):
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=5)
    evaluator(batches(bright_cases(), size), network, handler, decollate=decollate).run()
    assert [case.case_id for case in handler.cases] == ["c03", "c08", "c00", "c01", "c11"]
    assert [case.label for case in handler.cases] == [1, 0, 0, 0, None]
    first = handler.cases[0]
    assert first.network_spacing_mm == (2.0, 1.5)
    assert handler.cases[2].network_spacing_mm is None
    assert torch.equal(first.image, torch.full((1, 6, 8), -3.0))
    assert (first.predicted, first.is_error) == (0, True)
    assert first.probability == pytest.approx(1 / (1 + math.exp(-3)))
    torch.testing.assert_close(handler.cases[4].maps["features"], torch.full((1, 6, 8), 5 / 48))


def test_without_labels_the_most_confident_are_kept_and_equals_go_by_case_id():
    cases = [
        {"image": torch.full((1, 4, 4), value), "case_id": name}
        for name, value in zip("cadbe", (2.0, 2.0, 1.0, 2.0, 3.0), strict=True)
    ]
    chosen = []
    for order in (cases, cases[::-1]):
        network = Brightness()
        handler = GradCamHandler(network, "features", max_images=3)
        evaluator(batches([case | {"label": torch.tensor(-1)} for case in order], 2), network, handler).run()
        chosen.append([case.case_id for case in handler.cases])
    assert chosen == [["e", "a", "b"], ["e", "a", "b"]]


def test_a_rule_of_ones_own():
    network = Brightness()
    handler = GradCamHandler(network, "features", 2, priority=lambda case: (-case.confidence,))
    evaluator(batches(bright_cases(), 4), network, handler).run()
    assert [case.case_id for case in handler.cases] == ["c06", "c05"]


def test_any_ignite_engine_and_plain_batches():
    """Pairs of images and labels; the running number stands for the case id."""
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=2)
    engine = Engine(lambda engine, batch: network(batch[0]))
    handler.attach(engine)
    stacked = batches(bright_cases(), 4)
    engine.run([(batch["image"], batch["label"]) for batch in stacked])
    assert [case.case_id for case in handler.cases] == ["000003", "000008"]


def test_each_run_starts_afresh():
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=3)
    engine = evaluator(batches(bright_cases()[:6], 3), network, handler)
    engine.run()
    first = [case.case_id for case in handler.cases]
    engine.run()
    assert [case.case_id for case in handler.cases] == first == ["c03", "c00", "c01"]
    assert not network._forward_hooks


def test_memory_is_bounded_by_the_number_of_cases():
    network, seen, alive = Brightness(), [], []

    def loader():
        for i in range(0, 12, 2):
            (batch,) = batches(bright_cases()[i : i + 2], 2)
            seen.append(weakref.ref(batch["image"]))
            alive.append(sum(image() is not None for image in seen))
            yield batch

    handler = GradCamHandler(network, "features", max_images=2)
    evaluator(loader(), network, handler, epoch_length=6).run()
    assert max(alive) <= 3  # the loader's, the engine's, the recording's
    kept = [tensor for case in handler.cases for tensor in (case.image, case.logits, *case.maps.values())]
    assert [tensor.untyped_storage().nbytes() for tensor in kept] == [tensor.nbytes for tensor in kept]
    assert len(handler.cases) == 2


def test_a_failing_evaluation_fails_once_and_leaves_the_network():
    network = Brightness()
    handler = GradCamHandler(network, "features")
    engine = evaluator([{"image": torch.zeros(2, 3, 4, 4), "label": torch.zeros(2)}], network, handler)
    engine.logger.disabled = True
    with pytest.raises(RuntimeError, match="channels"):
        engine.run()
    assert not network._forward_hooks
    assert not network.features._forward_hooks


def test_more_than_one_forward_for_a_batch_is_refused():
    network = Brightness()
    handler = GradCamHandler(network, "features")
    twice = evaluator(batches(bright_cases(), 4), network, handler, inferer=lambda x, n: n(x) + n(x.flip(-1)))
    twice.logger.disabled = True
    with pytest.raises(ValueError, match="ran 2 times for one batch"):
        twice.run()
    other = evaluator(batches(bright_cases(), 4), Brightness(), GradCamHandler(network, "features"))
    other.logger.disabled = True
    with pytest.raises(ValueError, match="ran 0 times for one batch"):
        other.run()


def test_batches_that_cannot_be_told_apart_are_refused():
    maps, logits = {"x": torch.zeros(2, 1, 1, 1)}, torch.zeros(2, 2)
    with pytest.raises(ValueError, match="last forward had 2 images, the batch has 3"):
        batch_cases({"image": torch.zeros(3, 1, 4, 4)}, maps, logits)
    with pytest.raises(ValueError, match="a batch must be a dictionary"):
        batch_cases(torch.zeros(3, 1, 4, 4), maps, logits)


def case(case_id: str, logits: list[float], label: int | None = None) -> ExplainedCase:
    return ExplainedCase(case_id, torch.zeros(1, 2, 2), {}, torch.tensor(logits), label)


def test_confidence_still_ranks_where_probabilities_are_one():
    sure, surer = case("a", [0.0, 60.0]), case("b", [0.0, 80.0])
    assert sure.probability == surer.probability == 1
    assert errors_first(surer) > errors_first(sure)


def test_a_single_logit_is_a_class_by_its_sign():
    single = case("a", [-2.0], label=1)
    assert (single.predicted, single.is_error) == (0, True)
    assert single.probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert single.confidence == pytest.approx(2)


def test_a_case_seen_twice_is_kept_once_and_no_number_ranks_last():
    chosen = ChosenCases(3)
    for name, logit in [("a", math.nan), ("b", 1.0), ("b", 1.0), ("c", 2.0), ("d", 0.5)]:
        chosen.offer(case(name, [0.0, logit]))
    assert [kept.case_id for kept in chosen.cases] == ["c", "b", "d"]
    with pytest.raises(ValueError, match="must not be negative"):
        ChosenCases(-1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two runs over the same cases into one folder each; the second folder holds remains of an earlier run."""
    torch.manual_seed(0)
    network = ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=2).eval()
    generator = torch.Generator().manual_seed(2)
    ids = ["0123456789abcdef", "NORMAL/IM-0001.jpeg", "../../out"]
    cases = [
        {
            "image": torch.rand(1, 64, 96, generator=generator),
            "case_id": case_id,
            "label": torch.tensor(0),
            "network_spacing_mm": torch.tensor([2.0, 1.5] if case_id == ids[0] else [math.nan, math.nan]),
        }
        for case_id in ids
    ]
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    (folders[1] / "maps").mkdir()
    (folders[1] / "maps" / "old.npz").touch()
    for folder in folders:
        handler = GradCamHandler(network, ["layer3", "layer4"], output_dir=folder)
        evaluator(batches(cases, 2), network, handler).run()
    return network, handler.cases, folders


def test_maps_are_written_raw_with_their_geometry(written):
    network, cases, (folder, _) = written
    kept = {case.case_id: case for case in cases}["0123456789abcdef"]
    with np.load(folder / "maps" / "0123456789abcdef.npz") as maps:
        assert set(maps) == {f"layer{i}{part}" for i in (3, 4) for part in ("", ".receptive_field", ".mm_per_cell")}
        assert np.array_equal(maps["layer3"], kept.maps["layer3"][0])
        assert maps["layer4"].dtype == np.float32
        assert maps["layer4.receptive_field"].tolist() == list(theoretical_receptive_field(network, "layer4"))
        assert maps["layer4.mm_per_cell"].tolist() == [64.0, 48.0]
    with np.load(next((folder / "maps").glob("NORMAL*.npz"))) as maps:
        assert "layer4.mm_per_cell" not in maps


def test_the_same_run_writes_the_same_bytes_and_nothing_else(written):
    first, second = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in written[2]
    )
    assert first == second
    names = ["0123456789abcdef", "NORMAL_IM-0001.jpeg-21fa6c26", "_.._out-a94848ef"]
    assert sorted(name for name in first if name.startswith("maps")) == sorted(f"maps/{name}.npz" for name in names)
    figures = {"figures/gradcam.png", *(f"figures/gradcam_{name}.png" for name in names)}
    assert {name for name in first if name.startswith("figures")} == figures


def test_a_layer_without_known_geometry_is_drawn_and_says_so(tmp_path, monkeypatch):
    class Upsampled(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 2, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.features(x)).mean(dim=(2, 3))

    titles = []
    monkeypatch.setattr(
        "monai_cnnprimer.handlers.gradcam.overlay_png", lambda image, heats, *_: titles.extend(heats) or b""
    )
    network = Upsampled()
    handler = GradCamHandler(network, "up", max_images=1, output_dir=tmp_path)
    evaluator(batches(bright_cases(), 12), network, handler).run()
    assert titles == ["up: receptive field unknown, map stretched to fit"]


def test_the_operating_point_decides_what_is_predicted_and_what_is_an_error() -> None:
    logits = torch.tensor([0.0, 0.6])  # probability of class 1: 0.646
    cases = [ExplainedCase("a", torch.zeros(1, 4, 4), {}, logits, 0, threshold=t) for t in (0.5, 0.7)]
    assert [case.predicted for case in cases] == [1, 0]
    assert [case.is_error for case in cases] == [True, False]
    assert [case.probability for case in cases] == pytest.approx([0.6457, 0.3543], abs=1e-4)
    assert [case.confidence for case in cases] == pytest.approx([0.6, math.log(0.7 / 0.3) - 0.6])
