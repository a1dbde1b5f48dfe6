# SPDX-License-Identifier: Apache-2.0
"""The figures of `metrics.json`: all there, right where counted by hand, and None where there is nothing to give."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from monai_cnnprimer.validate.statistics import AurocOf, clustered_bootstrap
from monai_cnnprimer.validate.summary import summary

KEYS = [
    "cases", "prevalence", "auroc", "average_precision", "accuracy", "sensitivity", "specificity", "ppv", "npv",
    "called_positive", "at_prevalence", "calibration", "reliability", "decision_curve", "by_patient", "subgroups",
    "baselines",
]  # fmt: skip


def _table(n: int = 120, positive: float = 0.5) -> pd.DataFrame:
    """Predictions as a run hands them over: numbers as text, labels that may be missing, two images a patient."""
    random = np.random.default_rng(0)
    label = pd.array((np.arange(n) < positive * n).astype(int), dtype="Int64")
    logit = random.normal(size=n) + 1.5 * (np.arange(n) < positive * n) - 0.75
    table = pd.DataFrame({"case_id": [f"{number:016x}" for number in range(n)], "label": label})
    table["patient_key"] = [f"{number // 2:016x}" for number in range(n)]
    table["logit"] = [f"{value:.6f}" for value in logit]
    table["predicted"] = (logit >= 0.1).astype(int)
    table["view"] = random.choice(["PA", "AP"], n)
    table["sex"] = random.choice(["F", "M", ""], n)
    table["age_band"] = random.choice(["0-4", "18-39"], n)
    table["rows"] = pd.array(random.choice([2000, 2400], n), dtype="Int64")
    table["pixel_spacing_mm"] = [np.nan, *random.choice([0.1, 0.2], n - 1)]
    return table


def _figures(value):
    """Every dictionary within that has an interval."""
    if isinstance(value, dict):
        if "low" in value and "high" in value:
            yield value
        for item in value.values():
            yield from _figures(item)
    elif isinstance(value, list):
        for item in value:
            yield from _figures(item)


def test_every_figure_has_an_interval_and_is_valid_json():
    figures = summary(_table(), prevalence=0.1, resamples=200, trained_ages=["0-4", "5-17"])
    assert list(figures) == KEYS
    assert json.dumps(figures, allow_nan=False)
    known = [figure for figure in _figures(figures) if figure["low"] is not None]
    assert len(known) > 100
    for figure in known:
        value = figure.get("value", figure.get("difference"))
        assert figure["low"] <= value <= figure["high"]


def test_figures_are_those_counted():
    table = pd.DataFrame({
        "label": [0, 0, 0, 1, 1, None], "logit": [-2.0, -1.0, 1.0, -0.5, 2.0, 3.0], "predicted": [0, 0, 1, 0, 1, 1]
    })  # fmt: skip
    figures = summary(table)
    assert figures["cases"] == {"n": 6, "labelled": 5, "positives": 2, "patients": None}
    counted = {name: (figures[name]["k"], figures[name]["n"]) for name in KEYS if "k" in (figures[name] or {})}
    assert counted == {
        "prevalence": (2, 5), "accuracy": (3, 5), "sensitivity": (1, 2), "specificity": (2, 3), "ppv": (1, 2),
        "npv": (2, 3), "called_positive": (3, 6),
    }  # fmt: skip
    assert figures["auroc"]["value"] == pytest.approx(5 / 6)
    assert figures["calibration"]["brier"]["value"] == pytest.approx(
        np.mean((1 / (1 + np.exp([2.0, 1.0, -1.0, 0.5, -2.0])) - [0, 0, 0, 1, 1]) ** 2)
    )
    assert figures["by_patient"] is None
    assert figures["baselines"] == {"metadata": None, "ages_outside": None}


def test_intervals_by_patient_draw_patients():
    table = _table()
    figures = summary(table, resamples=200, seed=4)
    known = table.assign(logit=table["logit"].astype(float))
    alone = clustered_bootstrap(AurocOf("label", "logit"), known, "patient_key", 200, seed=4)
    assert figures["by_patient"]["auroc"]["low"] == alone.low
    assert figures["by_patient"]["auroc"]["clusters"] == 60
    for name in (
        "auroc",
        "average_precision",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "accuracy",
        "called_positive",
    ):
        assert figures["by_patient"][name]["value"] == pytest.approx(figures[name]["value"], abs=1e-12)
    assert figures["by_patient"]["brier"]["value"] == pytest.approx(figures["calibration"]["brier"]["value"], abs=1e-12)


def test_the_prevalence_of_the_cases_gives_their_own_predictive_values():
    figures = summary(_table(positive=0.25), prevalence=0.25, resamples=20)
    for name in ("ppv", "npv"):
        assert figures["at_prevalence"][name]["value"] == pytest.approx(figures[name]["value"])


def test_what_is_known_without_the_image():
    baselines = summary(_table(), resamples=20, trained_ages=["0-4", "5-17"])["baselines"]
    assert baselines["metadata"]["columns"] == ("rows", "pixel_spacing_mm", "view")
    assert baselines["metadata"]["n"] == 120
    assert baselines["ages_outside"]["k"] == (_table()["age_band"] == "18-39").sum()


@pytest.mark.parametrize("label", [0, 1, None])
def test_one_class_or_no_label_gives_what_it_can(label):
    table = _table(40).assign(label=pd.array([label] * 40, dtype="Int64"))
    figures = summary(table, prevalence=0.2, resamples=50, trained_ages=["0-4"])
    json.dumps(figures, allow_nan=False)
    assert list(figures) == KEYS
    assert (figures["auroc"]["value"], figures["average_precision"]["value"]) == (None, None)
    assert figures["auroc"]["n"] == (0 if label is None else 40)
    assert figures["called_positive"]["value"] is not None
    assert figures["by_patient"]["called_positive"]["low"] is not None
    assert figures["calibration"]["slope"]["value"] is None
    assert (figures["calibration"]["brier"]["value"] is None) == (label is None)
    assert figures["baselines"]["metadata"]["reason"] == "a class has 0 patients, fewer than 10"
    assert {group["against_rest"] for group in figures["subgroups"]} == {None}


def test_a_single_case_and_none():
    for n in (1, 0):
        figures = summary(_table(2).head(n), resamples=20)
        json.dumps(figures, allow_nan=False)
        assert figures["called_positive"]["n"] == n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "labels must be 0, 1 or missing"),
        ({"logit": "nan"}, "a logit that is not finite"),
        ({"patient_key": None}, "have no patient_key"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        summary(_table(30).assign(**change), resamples=20)


def test_the_same_cases_give_the_same_figures():
    assert summary(_table(), resamples=50) == summary(_table(), resamples=50)
