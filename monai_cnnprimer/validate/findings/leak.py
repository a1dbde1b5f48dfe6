# SPDX-License-Identifier: Apache-2.0
"""Whether the images tell which of them has a finding without anybody looking: by their extremes, steps and averages.

A simulation that clips, rescales or rounds only the images it changes marks them; a network then finds the marks and
no nodule. Each figure here is one number an image, or a few; its AUROC says what it tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_cnnprimer.validate.findings.cases import FindingCases

EXTREMES = ("minimum", "maximum", "pixels at the minimum", "pixels at the maximum", "zeros", "ones", "8-bit steps")
"""What no finding has a right to change: required to say nothing."""
AVERAGES = ("mean", "standard deviation", "darkest 1 %", "brightest 1 %", "darkest 0.1 %", "brightest 0.1 %")
"""What a large finding changes a little, as it should: reported, not required."""
MARGIN = 0.05
_FOLDS = 5
_Z95 = float(norm.ppf(0.975))


def leak_check(cases: FindingCases, margin: float = MARGIN) -> dict[str, Any]:
    """AUROC of figures that need no look at the finding, for all cases and for each size bin.

    Intervals at 95 % after DeLong, extended to clusters by Obuchowski (Biometrics 1997; 53:567-578): the cases made of
    one radiograph are a cluster, so the interval is that of the paired design. Required to say nothing are the figures
    of `EXTREMES`, one by one, and a logistic regression on all of them; in each bin and over all. The averages, and a
    logistic regression on everything, are reported beside them. The regressions are scored out of fold, by patient.

    Args:
        cases: with and without a finding; see `simulated`.
        margin: what AUROC may differ from 0.5.

    Returns:
        `verdict`: ``clean`` where each required interval lies within 0.5 plus or minus the margin; ``leaks`` where a
        required value lies outside it and its interval excludes 0.5; else ``undecided``: too few cases. `why`: the
        required figures that are not clean, as texts. `n`, `positives`, `clusters`, `margin`; `figures`: a list of
        `size_bin` (``all`` or one of the table's), `figure`, `required`, `value`, `low`, `high`, `n`, `verdict`.

    Raises:
        ValueError: cases of one class only, or fewer than two clusters.
    """
    table, labels = cases.table, cases.table["label"].to_numpy() == 1
    if not 0 < labels.sum() < len(labels):
        raise ValueError("a leak check needs cases with and without a finding")
    if table["pair_id"].nunique() < 2:
        raise ValueError("a leak check needs cases of two radiographs or more")
    measured = pd.DataFrame([_measured(image) for image in cases.images])
    sizes = [size for size in table["size_bin"].unique() if (labels & (table["size_bin"] == size)).any()]
    figures = []
    for size in ("all", *(sizes if len(sizes) > 1 else [])):
        rows = np.flatnonzero(_compared(table, labels, size))
        figures += _figures(measured.iloc[rows], table.iloc[rows], size, margin)
    required = [figure for figure in figures if figure["required"]]
    found = {figure["verdict"] for figure in required}
    return {
        "verdict": "leaks" if "leaks" in found else "undecided" if "undecided" in found else "clean",
        "why": [_told(figure) for figure in required if figure["verdict"] != "clean"],
        "n": len(table),
        "positives": int(labels.sum()),
        "clusters": int(table["pair_id"].nunique()),
        "margin": margin,
        "figures": figures,
    }


def _compared(table: pd.DataFrame, labels: NDArray[np.bool_], size: str) -> NDArray[np.bool_]:
    """The findings of a size and their partners without one; all without one where findings have no partners."""
    if size == "all":
        return np.ones(len(table), bool)
    positive = labels & (table["size_bin"] == size).to_numpy()
    partners = ~labels & table["pair_id"].isin(table["pair_id"][positive]).to_numpy()
    return positive | (partners if partners.any() else ~labels)


def _measured(image: NDArray[np.floating]) -> dict[str, float]:
    """The figures of one image."""
    values = image.astype(np.float64).ravel()
    low, high = values.min(), values.max()
    tails = np.quantile(values, (0.01, 0.99, 0.001, 0.999))
    steps = values * 255
    extremes = (
        low,
        high,
        np.count_nonzero(values == low),
        np.count_nonzero(values == high),
        np.count_nonzero(values == 0),
        np.count_nonzero(values == 1),
        np.mean(np.abs(steps - steps.round()) < 1e-3),
    )
    averages = (values.mean(), values.std(), *tails)
    return dict(zip((*EXTREMES, *AVERAGES), map(float, (*extremes, *averages)), strict=True))


def _figures(measured: pd.DataFrame, table: pd.DataFrame, size: str, margin: float) -> list[dict[str, Any]]:
    labels = table["label"].to_numpy() == 1
    clusters = table["pair_id"].to_numpy()
    scores = {name: (measured[name].to_numpy(), name in EXTREMES) for name in (*EXTREMES, *AVERAGES)}
    for name, of, required in (
        ("logistic regression on the extremes", EXTREMES, True),
        ("logistic regression on all of them", (*EXTREMES, *AVERAGES), False),
    ):
        if table["patient_key"].nunique() >= _FOLDS:
            scores[name] = (_out_of_fold(measured[list(of)].to_numpy(), labels, table["patient_key"]), required)
    figures = []
    for name, (score, required) in scores.items():
        value, low, high = clustered_auroc(labels, score, clusters)
        verdict = _verdict(value, low, high, margin)
        figures.append(
            {"size_bin": size, "figure": name, "required": required, "value": value, "low": low, "high": high}
            | {"n": len(labels), "verdict": verdict}
        )
    return figures


def _out_of_fold(features: NDArray[np.float64], labels: NDArray[np.bool_], patients: pd.Series) -> NDArray[np.float64]:
    """Score of each case from a model that has seen no case of its patient."""
    scores = np.zeros(len(labels))
    for train, test in GroupKFold(_FOLDS).split(features, labels, groups=patients.to_numpy()):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        scores[test] = model.fit(features[train], labels[train]).decision_function(features[test])
    return scores


def clustered_auroc(
    labels: NDArray[np.bool_], scores: NDArray[np.floating], clusters: Sequence[Any] | NDArray[Any]
) -> tuple[float, float, float]:
    """AUROC with the interval of Obuchowski (Biometrics 1997; 53:567-578), which is DeLong's where clusters are cases.

    Args:
        labels: ``(n,)``, both classes present.
        scores: ``(n,)`` finite; ties count one half.
        clusters: ``(n,)`` whose case it is; two or more.

    Returns:
        Value and 95 % limits, within [0, 1].

    Example:
        >>> alike = clustered_auroc(np.array([0, 1] * 3) == 1, np.repeat([1.0, 2.0, 3.0], 2), np.repeat([0, 1, 2], 2))
        >>> [round(value, 6) for value in alike]
        [0.5, 0.5, 0.5]
    """
    positives, negatives = int(labels.sum()), int((~labels).sum())
    ranks = rankdata(scores)
    of_positives = (ranks[labels] - rankdata(scores[labels])) / negatives
    of_negatives = 1 - (ranks[~labels] - rankdata(scores[~labels])) / positives
    value = float(of_positives.mean())
    part = np.zeros(len(labels))
    part[labels], part[~labels] = (of_positives - value) / positives, (of_negatives - value) / negatives
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(place, part)
    error = math.sqrt(float((sums**2).sum()) * sums.size / (sums.size - 1))
    return value, max(0.0, value - _Z95 * error), min(1.0, value + _Z95 * error)


def _verdict(value: float, low: float, high: float, margin: float) -> str:
    if 0.5 - margin <= low and high <= 0.5 + margin:
        return "clean"
    return "leaks" if abs(value - 0.5) > margin and not low <= 0.5 <= high else "undecided"


def _told(figure: dict[str, Any]) -> str:
    interval = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['figure']}, {figure['size_bin']}: AUROC {interval}, n = {figure['n']}, {figure['verdict']}"
