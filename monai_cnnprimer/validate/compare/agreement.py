# SPDX-License-Identifier: Apache-2.0
"""How far two models agree, whoever is right: in their calls, their logits, and their maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from monai_cnnprimer.validate.compare.differences import Sums, clustered

GRID = 32  # cells a side on which maps are compared, whatever the layers they come from
_Z = 1.959964  # of a two-sided 95 % interval
_BLOCK = 512


class Similarity(NamedTuple):
    """How alike two sets of maps are; not a number where a map has one value only, or no positive mass.

    Attributes:
        pearson: correlation of the signed maps of the same case, `(N,)`.
        spearman: the same of ranks, `(N,)`.
        common_mass: share of the positive mass that both maps have in the same cells, `(N,)`.
        other_cases: mean `pearson` of the first map with the second maps of other patients' cases of the same group,
            `(N,)`: what maps have in common whatever the case.
    """

    pearson: NDArray[np.float64]
    spearman: NDArray[np.float64]
    common_mass: NDArray[np.float64]
    other_cases: NDArray[np.float64]


def agreement(table: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Agreement of two models over all cases, labelled or not; intervals from resampling patients.

    - `kappa`: Cohen (1960, Educ Psychol Meas 20:37-46) of the calls at each model's own threshold;
    - `same_call`: share of cases with the same call;
    - `pearson`, `spearman`: correlation of the logits (ranks are those among all cases);
    - `bias`, `limits`: of the logits B minus A, mean and limits of agreement (Bland and Altman, Lancet 1986;
      327:307-310). They speak of the same thing only where both logits are on one scale.

    Args:
        table: one row a case: `patient_key`, and for both models `logit_a`, `predicted_a`, ...
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Each as `value`, `low`, `high`, `n`, `patients`; `limits` as the two limits `lower` and `upper`, and `calls` as
        counts.
    """
    first, second = (table[f"predicted_{model}"].to_numpy(dtype=float) for model in "ab")
    a, b = (table[f"logit_{model}"].to_numpy(dtype=float) for model in "ab")
    calls = {
        "both": first * second,
        "only_a": first * (1 - second),
        "only_b": (1 - first) * second,
        "neither": (1 - first) * (1 - second),
    }
    columns = calls | {"cases": np.ones(len(table)), "d": b - a, "dd": (b - a) ** 2}
    columns |= _products("logit", a, b) | _products("rank", rankdata(a), rankdata(b))
    found = clustered(columns, table["patient_key"], _STATISTICS, resamples, seed)
    limits = {"lower": found.pop("lower"), "upper": found.pop("upper")}
    return {"calls": {name: int(call.sum()) for name, call in calls.items()}} | found | {"limits": limits}


def on_grid(heat: NDArray[np.floating], side: int = GRID) -> NDArray[np.float64]:
    """An aligned map `(H, W)` as means over `side` x `side` cells, so that maps of any two input sizes compare."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.asarray(heat, dtype=np.float64))[None], side)
    return pooled[0].numpy()


def similarity(
    first: NDArray[np.floating], second: NDArray[np.floating], groups: Sequence[Any], patients: Sequence[Any]
) -> Similarity:
    """Compares the maps of two models case by case, and with what other cases' maps have in common.

    A high correlation says little by itself: both models may look at the middle of every image. What counts is by how
    much it exceeds that with maps of other cases of the same group (class).

    Args:
        first: `(N, G, G)`, signed, on a common grid.
        second: `(N, G, G)`, the same cases in the same order.
        groups: one a case; only cases of one group are set against each other.
        patients: one a case; cases of one patient are not set against each other.

    Example:
        >>> maps = np.array([[[0.0, 1.0]], [[2.0, 1.0]]])
        >>> found = similarity(maps, maps, ["normal", "normal"], ["p1", "p2"])
        >>> found.pearson.round(6).tolist(), found.other_cases.round(6).tolist()
        ([1.0, 1.0], [-1.0, -1.0])
    """
    a, b = (np.asarray(maps, dtype=np.float64).reshape(len(maps), -1) for maps in (first, second))
    unit_a, unit_b = _standardised(a), _standardised(b)
    ranks_a, ranks_b = (_standardised(rankdata(maps, axis=1)) if len(maps) else maps for maps in (a, b))
    mass_a, mass_b = _mass(a), _mass(b)
    return Similarity(
        pearson=(unit_a * unit_b).sum(axis=1),
        spearman=(ranks_a * ranks_b).sum(axis=1),
        common_mass=np.minimum(mass_a, mass_b).sum(axis=1),
        other_cases=_with_others(unit_a, unit_b, np.asarray(groups), np.asarray(patients)),
    )


def _with_others(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[Any], patients: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean correlation of each first map with the second maps of its group's other patients."""
    known = np.isfinite(second).all(axis=1)
    others_of = np.nan_to_num(second).T
    means = np.full(len(first), math.nan)
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        others = np.equal.outer(groups[rows], groups) & np.not_equal.outer(patients[rows], patients) & known
        products = first[rows] @ others_of
        counts = others.sum(axis=1)
        sums = np.where(others, products, 0).sum(axis=1)
        means[rows] = np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)
    return means


def _standardised(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of mean 0 and length 1, whose products are correlations; not a number where a row has one value only."""
    centred = maps - maps.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = ~(length > 1e-9 * np.abs(maps).max(axis=1, initial=0, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, math.nan), where=~flat)


def _mass(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    positive = maps.clip(0)
    total = positive.sum(axis=1, keepdims=True)
    return np.divide(positive, total, out=np.full_like(positive, math.nan), where=total > 0)


def _products(name: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    # About the mean: sums of squares of large logits would cancel.
    a, b = (values - values.mean() for values in (a, b))
    parts = {"a": a, "b": b, "aa": a * a, "bb": b * b, "ab": a * b}
    return {f"{name}_{part}": values for part, values in parts.items()}


def _correlation(name: str, s: Sums) -> NDArray[np.float64]:
    n, a, b = s["cases"], s[f"{name}_a"], s[f"{name}_b"]
    spread = (s[f"{name}_aa"] - a * a / n) * (s[f"{name}_bb"] - b * b / n)
    return _quotient(s[f"{name}_ab"] - a * b / n, np.sqrt(spread.clip(0)))


def _kappa(s: Sums) -> NDArray[np.float64]:
    n = s["cases"]
    yes_a, yes_b = (s["both"] + s["only_a"]) / n, (s["both"] + s["only_b"]) / n
    by_chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return _quotient((s["both"] + s["neither"]) / n - by_chance, 1 - by_chance)


def _limit(z: float, s: Sums) -> NDArray[np.float64]:
    n = s["cases"]
    variance = _quotient((s["dd"] - s["d"] ** 2 / n).clip(0), n - 1)
    return s["d"] / n + z * np.sqrt(variance)


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Not a number where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(above.shape, math.nan), where=below > 1e-12)


_STATISTICS: dict[str, Callable[[Sums], NDArray[np.float64]]] = {
    "same_call": lambda s: (s["both"] + s["neither"]) / s["cases"],
    "kappa": _kappa,
    "pearson": partial(_correlation, "logit"),
    "spearman": partial(_correlation, "rank"),
    "bias": lambda s: s["d"] / s["cases"],
    "lower": partial(_limit, -_Z),
    "upper": partial(_limit, _Z),
}
