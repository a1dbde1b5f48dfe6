# SPDX-License-Identifier: Apache-2.0
"""The figures of every arm, seed and size bin over resamples of patients and seeds, alike for all arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.findings.froc import Froc
from monai_cnnprimer.validate.findings.scoring import Scores
from monai_cnnprimer.validate.statistics import AurocOf, MeanOf
from monai_cnnprimer.validate.statistics.counted import Floats

METRICS = ("auroc", "sensitivity", "cpm")
_UNDEFINED = 0.05

Record = dict[str, Any]


class Resampled:
    """The figures of every arm, seed and bin, on the cases and on each resample of patients.

    `point` and `samples` hold, by metric, arm and bin, `(seeds,)` and `(seeds, resamples)`.
    """

    def __init__(
        self, table: pd.DataFrame, arms: Mapping[str, list[Scores]], bins: list[Record], resamples: int, seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        cluster, names = pd.factorize(table["patient_key"])
        counts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples).astype(np.int32)
        seeds = len(next(iter(arms.values())))
        self.seed_shares = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).T / seeds
        self.point: dict[tuple[str, str, str], Floats] = {}
        self.samples: dict[tuple[str, str, str], Floats] = {}
        self._curves: dict[tuple[str, int], tuple[Froc, Floats]] = {}
        for arm, some in arms.items():
            for one in bins:
                if not one["too_few"]:
                    self._add(table, cluster, counts, arm, some, one["bin"])

    def _add(
        self,
        table: pd.DataFrame,
        cluster: NDArray[np.intp],
        counts: NDArray[np.int32],
        arm: str,
        some: list[Scores],
        name: str,
    ) -> None:
        values: dict[str, list[tuple[float, Floats]]] = {metric: [] for metric in METRICS}
        inside = (table["size_bin"] == name).to_numpy()
        kept = inside | (table["label"] == 0).to_numpy()
        for one in some:
            frame = pd.DataFrame({"label": table["label"], "logit": one.logit.astype(float), "called": one.called})
            area, sensitivity = AurocOf("label", "logit"), MeanOf("called", "label")
            for metric, statistic in (("auroc", area), ("sensitivity", sensitivity)):
                value = statistic(frame[kept])
                drawn = statistic.on_counts(frame[kept], cluster[kept])(counts)
                values[metric].append((math.nan if value is None else value, drawn))
            curve, limits = self._curve(one, cluster, counts)
            value = curve.cpm(inside)
            assert value is not None  # the bin has findings
            values["cpm"].append((value, curve.drawn_sensitivity(counts, limits, inside).mean(axis=1)))
        for metric, found in values.items():
            self.point[metric, arm, name] = np.array([value for value, _ in found])
            self.samples[metric, arm, name] = np.stack([drawn for _, drawn in found])

    def _curve(self, one: Scores, cluster: NDArray[np.intp], counts: NDArray[np.int32]) -> tuple[Froc, Floats]:
        """The curve of a training and its limits on every resample, made once for all bins."""
        key = one.arm, one.seed
        if key not in self._curves:
            curve = Froc(one.marked, cluster)
            self._curves[key] = curve, curve.limits(counts)
        return self._curves[key]

    def record(self, arm: str, one: Record) -> Record:
        """The figures of an arm in a bin, each the mean over seeds."""
        figures = {metric: self.mean([(1.0, metric, arm, one["bin"])]) for metric in METRICS}
        return {"arm": arm, **{key: one[key] for key in ("bin", "n", "patients", "too_few")}, **figures}

    def mean(self, terms: Sequence[tuple[float, str, str, str]]) -> Record | None:
        """A sum of weighted figures with its interval, its standard error, and its value for each seed."""
        keys = [term[1:] for term in terms]
        if not terms or any(key not in self.point for key in keys):
            return None
        weights = np.array([term[0] for term in terms])
        each = np.tensordot(weights, np.stack([self.point[key] for key in keys]), 1)
        samples = np.tensordot(weights, np.stack([self.samples[key] for key in keys]), 1)
        values = (samples * self.seed_shares).sum(axis=0)
        known = values[np.isfinite(values)]
        record: Record = {"value": float(each.mean()), "low": None, "high": None, "error": None}
        if known.size >= (1 - _UNDEFINED) * values.size:
            low, high = (float(limit) for limit in np.percentile(known, [2.5, 97.5]))
            record |= {"low": low, "high": high, "error": float(known.std())}
        return record | {"by_seed": [float(value) for value in each]}
