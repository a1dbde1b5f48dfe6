# SPDX-License-Identifier: Apache-2.0
"""From a table of predictions to the figures of `metrics.json`, each with its interval and n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from monai_cnnprimer.validate.baselines import ages_outside, metadata_baseline
from monai_cnnprimer.validate.statistics import (
    AurocOf,
    AveragePrecisionOf,
    MeanOf,
    Proportion,
    auroc,
    average_precision,
    calibration,
    clustered_bootstraps,
    decision_curve,
    predictive_values,
    proportion,
    reliability_curve,
)
from monai_cnnprimer.validate.subgroups import subgroups


def summary(
    predictions: pd.DataFrame,
    prevalence: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    trained_ages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Discrimination, calls at the operating point, calibration, subgroups, and what needs no image.

    Args:
        predictions: `label` (0, 1 or missing), `logit`, `predicted`, one row a case. With `patient_key` there are
            intervals by patient and a metadata baseline; with the manifest's columns there are subgroups and there is
            something for that baseline to go by.
        prevalence: where predictive values are to hold besides these cases.
        resamples: of patients, for the intervals by patient.
        seed: of all that is drawn.
        trained_ages: age bands of the manifest that training has seen; None where that is not known.

    Returns:
        By name, each figure with `value`, `low`, `high` and `n`; one that the cases cannot give has None for the first
        three. docs/runs.md lists all.

    Raises:
        ValueError: a label other than 0 and 1, a logit that is not finite, a prevalence out of range.

    Example:
        >>> table = pd.DataFrame({"label": [0, 1, 1, None], "logit": [-1.0, -0.5, 2.0, 1.0], "predicted": [0, 0, 1, 1]})
        >>> figures = summary(table)
        >>> figures["auroc"]["value"], figures["sensitivity"]["value"], figures["called_positive"]["n"]
        (1.0, 0.5, 4)
    """
    cases = _cases(predictions)
    known = cases[cases["label"].notna()]
    label, risk = known["label"].to_numpy(), known["risk"].to_numpy()
    return {
        "cases": _counts(cases, known),
        "prevalence": asdict(proportion(int(label.sum()), len(known))),
        "auroc": asdict(auroc(label, known["logit"])),
        "average_precision": asdict(average_precision(label, known["logit"])),
        **{name: asdict(share) for name, share in _calls(cases, known).items()},
        "at_prevalence": _at(prevalence, known),
        "calibration": asdict(calibration(label, risk, seed=seed)),
        "reliability": [asdict(part) for part in reliability_curve(label, risk)],
        "decision_curve": [asdict(point) for point in decision_curve(label, risk)] if len(known) else [],
        "by_patient": _by_patient(cases, known, resamples, seed),
        "subgroups": subgroups(predictions),
        "baselines": _baselines(predictions, trained_ages, seed),
    }


def _cases(predictions: pd.DataFrame) -> pd.DataFrame:
    """Numbers of each case; what a table read from text holds as words becomes what it says."""
    cases = pd.DataFrame({
        "label": predictions["label"].astype("float64"),
        "logit": predictions["logit"].astype("float64"),
        "called": predictions["predicted"].astype("float64"),
    })  # fmt: skip
    if not np.isfinite(cases["logit"]).all():
        raise ValueError("predictions hold a logit that is not finite")
    if not cases["label"].dropna().isin([0, 1]).all():
        raise ValueError("labels must be 0, 1 or missing")
    cases["risk"] = expit(cases["logit"])
    if "patient_key" in predictions:
        cases["patient_key"] = predictions["patient_key"]
    return cases


def _counts(cases: pd.DataFrame, known: pd.DataFrame) -> dict[str, int | None]:
    patients = int(known["patient_key"].nunique()) if "patient_key" in known else None
    return {"n": len(cases), "labelled": len(known), "positives": int(known["label"].sum()), "patients": patients}


def _calls(cases: pd.DataFrame, known: pd.DataFrame) -> dict[str, Proportion]:
    """Calls at the operating point; of the share called positive all cases, else those with a label."""
    called, positive = known["called"] == 1, known["label"] == 1
    right = called == positive
    return {
        name: proportion(int(chosen.sum()), len(chosen))
        for name, chosen in (
            ("accuracy", right),
            ("sensitivity", right[positive]),
            ("specificity", right[~positive]),
            ("ppv", right[called]),
            ("npv", right[~called]),
            ("called_positive", cases["called"]),
        )
    }


def _at(prevalence: float | None, known: pd.DataFrame) -> dict[str, Any] | None:
    if prevalence is None:
        return None
    calls = _calls(known, known)
    return asdict(predictive_values(calls["sensitivity"], calls["specificity"], prevalence))


def _by_patient(cases: pd.DataFrame, known: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any] | None:
    """The figures with intervals from drawing patients with all their cases."""
    if "patient_key" not in cases:
        return None
    positive, called = known["label"] == 1, known["called"] == 1
    table = known.assign(
        right=(called == positive), positive=positive, negative=~positive, called=called, spared=~called,
        squared_error=(known["risk"] - known["label"]) ** 2,
    )  # fmt: skip
    of_labelled = clustered_bootstraps(
        {
            "auroc": AurocOf("label", "logit"),
            "average_precision": AveragePrecisionOf("label", "logit"),
            "accuracy": MeanOf("right"),
            "sensitivity": MeanOf("right", where="positive"),
            "specificity": MeanOf("right", where="negative"),
            "ppv": MeanOf("right", where="called"),
            "npv": MeanOf("right", where="spared"),
            "brier": MeanOf("squared_error"),
        },
        table, "patient_key", resamples, seed,
    )  # fmt: skip
    of_all = clustered_bootstraps({"called_positive": MeanOf("called")}, cases, "patient_key", resamples, seed)
    return {name: asdict(result) for name, result in (of_labelled | of_all).items()}


def _baselines(predictions: pd.DataFrame, trained_ages: Sequence[str] | None, seed: int) -> dict[str, Any]:
    """What is known without the image; None where the table cannot say."""
    without: dict[str, Any] = {"metadata": None, "ages_outside": None}
    if "patient_key" in predictions:
        without["metadata"] = asdict(metadata_baseline(predictions, seed))
    if "age_band" in predictions and trained_ages is not None:
        without["ages_outside"] = asdict(ages_outside(predictions["age_band"], trained_ages))
    return without
