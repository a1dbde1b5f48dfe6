# SPDX-License-Identifier: Apache-2.0
"""Whether the figures hold in each group of cases: by view, sex, age band, vendor, and pairs of these."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.statistics import (
    Proportion,
    auroc,
    auroc_against_rest,
    compare_proportions,
    holm,
    proportion,
)

COLUMNS = ("view", "sex", "age_band", "manufacturer")
ENOUGH = 20  # patients of a class; with fewer, Wilson's interval of a proportion is up to 0.2 wide to either side
LEVEL = 0.05


def subgroups(predictions: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
    """The figures of each group, and whether they differ from those of all other cases.

    A verdict on sensitivity needs 20 patients with the finding inside the group and outside, one on specificity 20
    without, one on the AUROC both. AUROCs are compared by DeLong's variances, proportions by Fisher's exact test, and
    all tests of the table are adjusted together (Holm) at 5 %. The tests take cases as independent; where a patient
    has images inside and outside, they are approximate.

    Args:
        predictions: `label` (0, 1 or missing), `logit`, `predicted`, one row a case; `patient_key` where patients have
            several cases; those of `columns` that there are. An empty or missing entry is the group "".
        columns: those to divide by, each and in pairs.

    Returns:
        A dictionary for each group, as the `subgroups` of `metrics.json` (docs/runs.md): groups of each column in the
        order of their names, then of the pairs. A column with a single value divides nothing and is left out.

    Example:
        >>> table = pd.DataFrame({"label": [0, 1], "logit": [-1.0, 1.0], "predicted": [0, 1], "view": ["PA", "AP"]})
        >>> [(group["by"], group["group"], group["n"]) for group in subgroups(table)]
        [(['view'], ['AP'], 1), (['view'], ['PA'], 1)]
    """
    cases = _Cases(predictions)
    values = {name: predictions[name].fillna("").astype(str).to_numpy() for name in columns if name in predictions}
    divided = {name: value for name, value in values.items() if len(set(value)) > 1}
    groups = [cases.describe(by, names, inside) for by, names, inside in _groups(divided)]
    tests = [test for group in groups for test in (group["against_rest"] or {}).values() if test]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
        test["verdict"] = _verdict(test["difference"], p)
    return groups


def _groups(
    divided: dict[str, NDArray[Any]],
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], NDArray[np.bool_]]]:
    """Columns, values and the cases that have them: single columns first, then pairs; empty pairs are left out."""
    for by in (*((name,) for name in divided), *combinations(divided, 2)):
        present = set(zip(*(divided[name].tolist() for name in by), strict=True))
        for names in sorted(present, key=_rank):
            has_each = [divided[name] == value for name, value in zip(by, names, strict=True)]
            yield by, names, np.logical_and.reduce(has_each)


def _rank(names: tuple[str, ...]) -> list[tuple[int, str]]:
    """Order of groups: by the number that a name begins with, so that 5-17 years come before 18-39, then by name."""
    return [(int(number[0]) if (number := re.match(r"\d+", name)) else -1, name) for name in names]


def _verdict(difference: float, p: float | None) -> str:
    if p is None or p > LEVEL:
        return "no difference shown"
    return "lower" if difference < 0 else "higher"


class _Cases:
    """A run's cases as arrays, from which each group's figures are taken."""

    def __init__(self, predictions: pd.DataFrame) -> None:
        known = predictions["label"].notna().to_numpy()
        self.known = known
        self.positive = known & (predictions["label"].to_numpy(dtype="float64", na_value=np.nan) == 1)
        self.score = predictions["logit"].astype(float).to_numpy()
        self.called = predictions["predicted"].astype(int).to_numpy().astype(np.bool_)
        has_patients = "patient_key" in predictions
        self.patient = pd.factorize(predictions["patient_key"])[0] if has_patients else np.arange(len(predictions))

    def describe(self, by: Sequence[str], names: Sequence[str], inside: NDArray[np.bool_]) -> dict[str, Any]:
        """The entry of one group."""
        kept = inside & self.known
        few = self._too_few(inside)
        return {
            "by": list(by),
            "group": [str(name) for name in names],
            "n": int(inside.sum()),
            "labelled": int(kept.sum()),
            "positives": int((kept & self.positive).sum()),
            "patients": self._patients(inside),
            "auroc": asdict(auroc(self.positive[kept], self.score[kept])),
            "sensitivity": asdict(self._called(inside & self.positive)),
            "specificity": asdict(self._spared(inside & self._negative)),
            "called_positive": asdict(self._called(inside)),
            "against_rest": self._against_rest(inside, few) if len(few) < 2 else None,
            "no_verdict": "; ".join(few.values()),
        }

    @property
    def _negative(self) -> NDArray[np.bool_]:
        return self.known & ~self.positive

    def _patients(self, kept: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(np.bincount(self.patient[kept])))

    def _called(self, kept: NDArray[np.bool_]) -> Proportion:
        return proportion(int(self.called[kept].sum()), int(kept.sum()))

    def _spared(self, kept: NDArray[np.bool_]) -> Proportion:
        return proportion(int((~self.called[kept]).sum()), int(kept.sum()))

    def _too_few(self, inside: NDArray[np.bool_]) -> dict[str, str]:
        """By figure that cannot be judged, why."""
        few = {}
        for figure, of_class, word in (
            ("sensitivity", self.positive, "with the finding"),
            ("specificity", self._negative, "without the finding"),
        ):
            within, outside = self._patients(inside & of_class), self._patients(~inside & of_class)
            if min(within, outside) < ENOUGH:
                few[figure] = f"{within} patients {word} in the group and {outside} outside, {ENOUGH} are needed"
        return few

    def _against_rest(self, inside: NDArray[np.bool_], few: dict[str, str]) -> dict[str, Any]:
        rest = ~inside
        tests: dict[str, Any] = {"auroc": None, "sensitivity": None, "specificity": None}
        if not few:
            area = auroc_against_rest(self.positive[self.known], self.score[self.known], inside[self.known])
            tests["auroc"] = {name: getattr(area, name) for name in ("difference", "low", "high", "p")}
        for figure, of_class, share in (
            ("sensitivity", self.positive, self._called),
            ("specificity", self._negative, self._spared),
        ):
            if figure not in few:
                tests[figure] = asdict(compare_proportions(share(inside & of_class), share(rest & of_class)))
        return tests
