# SPDX-License-Identifier: Apache-2.0
"""Grad-CAM in an evaluator: which cases are kept, how many, which class is explained; the network is left alone."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

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
def test_errors_doubtful_sure_and_random_cases_are_kept_whatever_the_batch_size(size, decollate):
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=7)
    evaluator(batches(bright_cases(), size), network, handler, decollate=decollate).run()
    chosen = [(case.case_id, case.chosen_as) for case in handler.cases]
    assert chosen == [
        ("c03", "error"), ("c06", "least confident"), ("c00", "most confident"), ("c05", "random"),
        ("c08", "error"), ("c07", "least confident"), ("c01", "most confident"),
    ]  # fmt: skip
    first = handler.cases[0]
    assert (first.label, first.predicted, first.explained, first.is_error) == (1, 0, 0, True)
    assert first.network_spacing_mm == (2.0, 1.5)
    assert handler.cases[2].network_spacing_mm is None
    assert torch.equal(first.image, torch.full((1, 6, 8), -3.0))
    assert first.probability == pytest.approx(1 / (1 + math.exp(-3)))
    torch.testing.assert_close(handler.cases[4].maps["features"], torch.full((1, 6, 8), 2 / 48))


def test_the_random_sample_follows_the_seed():
    samples = set()
    for seed in range(5):
        network = Brightness()
        handler = GradCamHandler(network, "features", max_images=4, seed=seed)
        evaluator(batches(bright_cases(), 4), network, handler).run()
        samples.add(handler.cases[3].case_id)
    assert len(samples) > 1


@pytest.mark.parametrize(
    ("target", "threshold", "explained"),
    [
        ("predicted", 0.5, [0, 0, 1, 1]),
        ("predicted", 0.9, [0, 0, 0, 1]),
        (1, 0.9, [1, 1, 1, 1]),
        (torch.tensor([1, 0, 0, 1]), 0.5, [1, 0, 0, 1]),
        (lambda logits: logits[:, 1], 0.5, [None] * 4),
    ],
)
def test_what_is_predicted_at_the_operating_point_is_what_is_explained(target, threshold, explained):
    """Log odds -6, -2, 2, 4: at 0.9 the third is not predicted. Only the second class looks at the image."""
    network = Brightness()
    handler = GradCamHandler(network, "features", 4, target, threshold=threshold)
    evaluator(batches([bright_cases()[i] for i in (0, 4, 8, 10)], 4), network, handler).run()
    cases = sorted(handler.cases, key=lambda case: case.case_id)
    assert [case.explained for case in cases] == explained
    assert [bool(case.maps["features"].any()) for case in cases] == [c != 0 for c in explained]
    if target == "predicted" and isinstance(target, str):
        assert [case.predicted for case in cases] == explained


def test_an_unknown_target_is_refused_at_any_operating_point():
    for threshold in (0.5, 0.3):
        with pytest.raises(ValueError, match='give "predicted", a class'):
            GradCamHandler(Brightness(), "features", target="predict", threshold=threshold)


def test_a_single_logit_explains_class_1():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    handler = GradCamHandler(network, "0", threshold=0.3)
    evaluator(batches(bright_cases(), 6), network, handler).run()
    assert {case.explained for case in handler.cases} == {1}


def test_any_ignite_engine_and_plain_batches():
    """Pairs of images and labels; the running number stands for the case id."""
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=2)
    engine = Engine(lambda engine, batch: network(batch[0]))
    handler.attach(engine)
    stacked = batches(bright_cases(), 4)
    engine.run([(batch["image"], batch["label"]) for batch in stacked])
    assert [case.case_id for case in handler.cases] == ["000003", "000006"]


def test_each_run_starts_afresh():
    network = Brightness()
    handler = GradCamHandler(network, "features", max_images=3)
    engine = evaluator(batches(bright_cases()[:6], 3), network, handler)
    engine.run()
    first = [case.case_id for case in handler.cases]
    engine.run()
    assert [case.case_id for case in handler.cases] == first == ["c03", "c05", "c00"]
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


def test_cases_beyond_the_bytes_are_passed_over_and_told(caplog):
    network = Brightness()
    handler = GradCamHandler(network, "features", max_bytes=4 * 100)
    evaluator(batches(bright_cases(), 4), network, handler).run()
    assert handler.cases == []
    assert "Grad-CAM: 12 cases take more than a quarter of max_bytes each" in caplog.text


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
