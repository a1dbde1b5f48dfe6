# SPDX-License-Identifier: Apache-2.0
"""Two models on the same cases: how far their figures differ, over all cases and by bins of a column.

Every difference is that of the second model, B, minus the first, A. Intervals are two-sided at 95 %; those of
proportions come from resampling patients, whose images are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.compare.bins import Bins
from monai_cnnprimer.validate.statistics import (
    AurocOf,
    auroc,
    clustered_bootstraps,
    compare_auroc,
    holm,
    mcnemar,
    proportion,
)

METRICS = ("auroc", "sensitivity", "specificity", "accuracy")
OF_FINDINGS = ("auroc", "sensitivity")

Figures = dict[str, Any]
Sums = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class OfSums:
    """A statistic that follows from sums of columns, for `clustered_bootstraps`: many resamples at once.

    `function` takes column to sums `(resamples,)` and gives values `(resamples,)`, not a number where undefined.
    """

    columns: tuple[str, ...]
    function: Callable[[Sums], NDArray[np.float64]]

    def __call__(self, frame: pd.DataFrame) -> float | None:
        """The statistic of a table."""
        return float(
            self.function({name: frame[name].to_numpy(dtype=float).sum(keepdims=True) for name in self.columns})[0]
        )

    def on_counts(
        self, frame: pd.DataFrame, cluster: NDArray[np.intp]
    ) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
        """See `statistics.bootstrap.CountedStatistic`: sums of each patient, times how often it was drawn."""
        sums = np.stack([np.bincount(cluster, weights=frame[name]) for name in self.columns], axis=1)
        return lambda counts: self.function(dict(zip(self.columns, (counts @ sums).T, strict=True)))


def paired_figures(table: pd.DataFrame, few: int = 0, resamples: int = 2000, seed: int = 0) -> dict[str, Figures]:
    """AUROC, sensitivity, specificity and accuracy of both models, and their differences.

    The difference of AUROC is DeLong's, with an interval from resampling patients beside (`by_patient`); that of a
    proportion has the latter, and the exact McNemar test of the cases that only one model gets right. DeLong's and
    McNemar's tests take cases, not patients, as independent.

    Args:
        table: one row a case: `patient_key`, `label` (0 or 1), and for both models `logit_a`, `predicted_a`, ...
        few: a figure of fewer cases (AUROC: of fewer in either class) is not given but marked `too_few`.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Metric to `n`, `too_few`, `a`, `b` (as `auroc` and `proportion`), `difference` (value, low, high, p), and for
        proportions `only_a` and `only_b`, the cases that only one model gets right. What the cases cannot give is None,
        such as the interval of a proportion's difference where no case differs.
    """
    label = table["label"].to_numpy(dtype=int)
    figures = {"auroc": _auroc_figures(table, few, resamples, seed)}
    for name, chosen in (("sensitivity", label == 1), ("specificity", label == 0), ("accuracy", label >= 0)):
        figures[name] = _proportion_figures(table[chosen], few, resamples, seed)
    return figures


def figures_by_bin(
    table: pd.DataFrame, bins: Bins, few: int = 10, resamples: int = 2000, seed: int = 0
) -> list[Figures]:
    """The paired figures of each bin, with p also after Holm (1979), over the bins that have one, metric by metric.

    Args:
        table: as in `paired_figures`.
        bins: of the same cases, in the same order.
        few: bins of fewer cases have counts but no figures, and are marked.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    rows: list[Figures] = []
    for name in bins.names:
        chosen = (bins.bin_of == name).fillna(False)
        of_bin = table[chosen | ((table["label"] == 0) if bins.of_findings else False)]
        figures = paired_figures(of_bin, few, resamples, seed)
        positives = int((of_bin["label"] == 1).sum())
        counts = {"bin": name, "n": len(of_bin), "positives": positives, "negatives": len(of_bin) - positives}
        rows.append(counts | {key: figures[key] for key in (OF_FINDINGS if bins.of_findings else METRICS)})
    for metric in METRICS:
        differences = [row[metric]["difference"] for row in rows if metric in row]
        for difference, p in zip(differences, holm([of["p"] for of in differences]), strict=True):
            difference["p_holm"] = p
    return rows


def clustered(
    columns: Mapping[str, NDArray[np.floating]],
    patients: pd.Series,
    functions: Mapping[str, Callable[[Sums], NDArray[np.float64]]],
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Figures]:
    """Statistics of sums over cases, each with its interval from resampling patients.

    Args:
        columns: name to one value a case.
        patients: the patient of each case.
        functions: name of a statistic to its function, as in `OfSums`.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Name to `value`, `low`, `high`, `n` (cases) and `patients`.

    Example:
        >>> mean = clustered({"x": np.arange(4.0), "one": np.ones(4)}, pd.Series(list("abcd")),
        ...                  {"mean": lambda sums: sums["x"] / sums["one"]})["mean"]
        >>> mean["value"], mean["n"], mean["patients"]
        (1.5, 4, 4)
    """
    frame = pd.DataFrame(dict(columns)).assign(patient_key=patients.to_numpy())
    statistics = {name: OfSums(tuple(columns), function) for name, function in functions.items()}
    found = clustered_bootstraps(statistics, frame, "patient_key", resamples, seed)
    return {
        name: {"value": of.value, "low": of.low, "high": of.high, "n": of.n, "patients": of.clusters}
        for name, of in found.items()
    }


@dataclass(frozen=True)
class _AurocGain:
    """AUROC of B minus that of A, for the bootstrap."""

    a: AurocOf
    b: AurocOf

    def __call__(self, frame: pd.DataFrame) -> float | None:
        first, second = self.a(frame), self.b(frame)
        return None if first is None or second is None else second - first

    def on_counts(
        self, frame: pd.DataFrame, cluster: NDArray[np.intp]
    ) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
        first, second = self.a.on_counts(frame, cluster), self.b.on_counts(frame, cluster)
        return lambda counts: second(counts) - first(counts)


def _auroc_figures(table: pd.DataFrame, few: int, resamples: int, seed: int) -> Figures:
    label, first, second = (table[name].to_numpy() for name in ("label", "logit_a", "logit_b"))
    if min((label == 1).sum(), (label == 0).sum()) < few:
        return _too_few(len(label))
    found = asdict(compare_auroc(label, second, first))
    difference = {"value": found["difference"], **{key: found[key] for key in ("low", "high", "p")}}
    gain = _AurocGain(AurocOf("label", "logit_a"), AurocOf("label", "logit_b"))
    drawn = clustered_bootstraps({"gain": gain}, table, "patient_key", resamples, seed)["gain"]
    by_patient = {"low": drawn.low, "high": drawn.high}
    a, b = asdict(auroc(label, first)), asdict(auroc(label, second))
    difference |= {"by_patient": by_patient}
    return {"n": len(label), "too_few": False, "a": a, "b": b, "difference": difference}


def _proportion_figures(table: pd.DataFrame, few: int, resamples: int, seed: int) -> Figures:
    right_a, right_b = ((table[f"predicted_{model}"] == table["label"]).to_numpy(dtype=bool) for model in "ab")
    counts = {"only_a": int((right_a & ~right_b).sum()), "only_b": int((right_b & ~right_a).sum())}
    n = len(table)
    if n < few:
        return _too_few(n) | counts
    columns = {"gained": right_b.astype(float) - right_a, "cases": np.ones(n)}
    found = clustered(columns, table["patient_key"], {"gain": lambda s: s["gained"] / s["cases"]}, resamples, seed)
    p = mcnemar(counts["only_a"], counts["only_b"]) if n else None
    difference = {key: found["gain"][key] for key in ("value", "low", "high")} | {"p": p}
    if not any(counts.values()):
        # Every resample gives 0: no width, which is not certainty.
        difference |= {"low": None, "high": None}
    a, b = (asdict(proportion(int(right.sum()), n)) for right in (right_a, right_b))
    return {"n": n, "too_few": False, "a": a, "b": b, "difference": difference} | counts


def _too_few(n: int) -> Figures:
    nothing = dict.fromkeys(("value", "low", "high"))
    return {"n": n, "too_few": True, "a": dict(nothing), "b": dict(nothing), "difference": nothing | {"p": None}}
