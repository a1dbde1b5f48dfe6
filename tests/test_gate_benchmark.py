# SPDX-License-Identifier: Apache-2.0
"""The gate's own test: what is planted follows the label as stated, and the result counts what it says."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "gate.py"
COUNT, SIZE = 400, 64


@pytest.fixture(scope="module")
def gate():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("gate_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pool(gate):
    grey = np.full((COUNT, SIZE, SIZE), 0.5, np.float32)
    return gate.Pool({0.3: grey}, np.arange(COUNT) % 2, np.zeros(grey.shape, dtype=bool))


def habits(of):
    """Of each image: a marker, brighter than it was, a black border."""
    middle = of.images[:, SIZE // 2, SIZE // 2]
    return {
        "marker": of.marker.any(axis=(1, 2)),
        "exposure": middle > 0.5,
        "border": of.images[:, -1, SIZE // 2] == 0,
    }


@pytest.mark.parametrize("planted", ["marker", "exposure", "border"])
def test_what_is_planted_follows_the_label_and_the_others_do_not(gate, pool, planted):
    examples = gate.drawn(pool, gate.Model(planted, 0.8, 0.3, seed=1), 0.8, 1)
    for kind, has in habits(examples).items():
        phi = np.corrcoef(has, examples.label)[0, 1]
        assert phi == pytest.approx(0.8 if kind == planted else 0.0, abs=0.15)
        assert 0.35 < has.mean() < 0.65


def test_a_clean_model_meets_the_same_habits_and_the_same_seed_the_same_images(gate, pool):
    clean = gate.Model("none", 0.0, 0.3, seed=1)
    first, again = (gate.drawn(pool, clean, 0.0, 1) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert all(0.35 < has.mean() < 0.65 for has in habits(first).values())
    assert (pool.images[0.3] == 0.5).all()
    assert (first.images[first.marker] > 0.45).all()  # half of the ink, on black at least


def told(verdict, low):
    entry = {"verdict": verdict, "shift": {"value": 0.4}}
    regions = {"marker": {"value": 2.0, "low": low, "high": 3.0, "n": 20}}
    return {
        "verdict": verdict, "auroc_inside": 0.9, "auroc_outside": 0.6, "interventions": {"marker_insert": entry},
        "attribution": {"layer3": {"fit": "fit", "regions": regions}, "layer4": {"fit": "unfit", "regions": None}},
    }  # fmt: skip


def test_the_result_counts_trips_and_accusations(gate, tmp_path):
    done = {
        gate.Model("none", 0.0, 0.3, 0): told("pass", 1.5),
        gate.Model("none", 0.0, 0.3, 1): told("undecided", 0.5),
        gate.Model("marker", 0.5, 0.3, 0): told("pass", 0.5),
        gate.Model("marker", 0.8, 0.3, 0): told("fail", 0.5),
        gate.Model("marker", 1.0, 0.3, 0): told("fail", 1.5),
    }
    gate.write(tmp_path, done, {"network": "a network"})
    result = json.loads((tmp_path / "result.json").read_text())
    alarms, power = result["promises"]["false_alarms"], result["promises"]["power_marker_0.8"]
    assert (alarms["k"], alarms["n"], power["k"], power["n"]) == (0, 2, 2, 2)
    rows = {(row["planted"], row["correlation"]): row for row in result["table"]}
    assert rows["none", 0.0]["attribution_accuses_marker"] == 1  # the innocent accused
    assert rows["marker", 0.8]["by"] == {"marker_insert": 1}
    assert (rows["marker", 0.8]["fail"], rows["marker", 0.8]["attribution_accuses_marker"]) == (1, 0)
    assert (tmp_path / "power.png").read_bytes().startswith(b"\x89PNG")
    assert "| marker | 0.8 | 0.3 | 1 | 1 (21 to 100 %)" in (tmp_path / "result.md").read_text()
    gate.write(tmp_path, {}, {"network": "a network"})  # the time ran out before the first


def test_every_beginning_of_the_plan_is_worth_something(gate):
    options = argparse.Namespace(seeds=2, clean_seeds=3, contrasts=[0.3, 0.7], correlations=[0.8, 1.0], others=0.95)
    models = list(gate.planned(options))
    assert len(models) == len(set(models)) == len({model.name for model in models}) == 3 * 2 + 2 * 2 * (2 + 2)
    first = models[:10]
    assert {model.planted for model in first} == {"none", "marker", "exposure", "border"}
    assert {model.seed for model in first} == {0}
