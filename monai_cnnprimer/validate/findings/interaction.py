# SPDX-License-Identifier: Apache-2.0
"""Does one model lose more at small sizes than another: logistic regression with errors clustered by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

Floats = NDArray[np.float64]
_STEPS, _SMALL, _FLAT = 40, 1e-9, 1e-9


@dataclass(frozen=True)
class Slope:
    """How much faster a model's log-odds of detection rise with size than the reference's, per doubling of diameter.

    Below 0, the model's advantage is larger (or its loss smaller) at small sizes. All None where it cannot be fitted.
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Interaction:
    """Size x model: the test that all slopes are alike, and each model's slope against the reference's.

    Attributes:
        p: of the joint Wald test; None where it cannot be had.
        slopes: by model.
        reference: the model that the others are set against.
        cases: findings.
        patients: clusters.
        reason: why there is no result; empty otherwise.
    """

    p: float | None
    slopes: dict[str, Slope]
    reference: str
    cases: int
    patients: int
    reason: str = ""


def interaction(
    diameter_mm: Sequence[float] | Floats,
    called: Mapping[str, NDArray[np.bool_]],
    patient: Sequence[str] | NDArray[np.generic],
    reference: str,
) -> Interaction:
    """Logistic regression of detection on size, model, and size x model.

    `logit P(called) = a_m + b_m log2(diameter)`, with an intercept and a slope for each model m: the hypothesis is that
    all b_m are alike. Errors are the sandwich clustered by patient (Liang and Zeger, Biometrika 1986; 73:13-22), with
    G / (G - 1) and t on G - 1 degrees of freedom for G patients: the same finding called by several models and seeds is
    not independent. The patients are what is sampled; the trained networks are taken as given, so that the result
    speaks for new patients, and how far it varies over seeds has to be looked at beside it.

    Args:
        diameter_mm: of each finding `(n,)`.
        called: model to whether it called each finding, `(n, seeds)`.
        patient: of each finding `(n,)`.
        reference: a key of `called`.

    Returns:
        Without slopes where a model calls all findings or none, where size sets the called apart from the others, or
        with fewer patients than two for each of the regression's terms; `reason` says which.
    """
    names = [reference, *(name for name in called if name != reference)]
    size = np.log2(np.asarray(diameter_mm, float))
    size = size - size.mean()
    patients, cluster = np.unique(np.asarray(patient), return_inverse=True)
    about = {"reference": reference, "cases": size.size, "patients": patients.size}

    def none(reason: str) -> Interaction:
        return Interaction(None, {name: Slope(None, None, None, None) for name in names[1:]}, reason=reason, **about)

    if patients.size < 4 * len(names):
        return none(f"{patients.size} patients are too few for {2 * len(names)} terms")
    same = next((name for name in names if called[name].all() or not called[name].any()), None)
    if same is not None:
        return none(f"{same} calls {'all' if called[same].all() else 'no'} findings")
    fitted = _fit(*_stacked(size, [called[name] for name in names], cluster))
    if fitted is None:
        return none("the regression has no finite solution: size sets the called findings apart")
    estimate, covariance = fitted
    at = np.arange(len(names) + 1, 2 * len(names))
    return Interaction(
        _joint_p(estimate[at], covariance[np.ix_(at, at)], patients.size),
        {
            name: _slope(estimate[place], covariance[place, place], patients.size)
            for name, place in zip(names[1:], at, strict=True)
        },
        **about,
    )


def _stacked(
    size: Floats, called: Sequence[NDArray[np.bool_]], cluster: NDArray[np.intp]
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Terms `(rows, 2 models)`, outcomes and clusters: intercepts first, then slopes, each of the reference first."""
    models, seeds = len(called), called[0].shape[1]
    model = np.repeat(np.arange(models), size.size * seeds)
    sizes = np.tile(np.repeat(size, seeds), models)
    clusters = np.tile(np.repeat(cluster, seeds), models)
    terms = (model[:, None] == np.arange(models)).astype(float)
    terms[:, 0] = 1
    outcome = np.concatenate([part.ravel() for part in called]).astype(float)
    return np.hstack([terms, terms * sizes[:, None]]), outcome, clusters


def _fit(terms: Floats, outcome: Floats, cluster: NDArray[np.intp]) -> tuple[Floats, Floats] | None:
    """Estimates and their clustered covariance; None without a finite solution."""
    estimate: Floats = np.zeros(terms.shape[1])
    for _ in range(_STEPS):
        expected = expit(terms @ estimate)
        information = terms.T @ (terms * (expected * (1 - expected))[:, None])
        if np.linalg.eigvalsh(information)[0] < _FLAT * len(terms):
            return None
        step = np.linalg.solve(information, terms.T @ (outcome - expected))
        estimate = estimate + step
        if np.abs(step).max() < _SMALL:
            break
    else:
        return None
    residuals = terms * (outcome - expit(terms @ estimate))[:, None]
    clusters = int(cluster.max()) + 1
    scores = np.stack([np.bincount(cluster, weights=column, minlength=clusters) for column in residuals.T], axis=1)
    bread = np.linalg.inv(information)
    return estimate, bread @ (scores.T @ scores) @ bread * clusters / (clusters - 1)


def _slope(value: float, variance: float, patients: int) -> Slope:
    error = float(np.sqrt(variance))
    if error == 0:
        return Slope(float(value), None, None, None)
    reach = float(t_distribution.ppf(0.975, patients - 1)) * error
    p = 2 * float(t_distribution.sf(abs(value) / error, patients - 1))
    return Slope(float(value), float(value - reach), float(value + reach), p)


def _joint_p(values: Floats, covariance: Floats, patients: int) -> float | None:
    """Wald's test of all at once, as F on (terms, patients - terms) degrees of freedom, Hotelling's correction."""
    if np.linalg.matrix_rank(covariance) < values.size or patients <= values.size:
        return None
    wald = float(values @ np.linalg.solve(covariance, values))
    scaled = wald * (patients - values.size) / (values.size * (patients - 1))
    return float(f_distribution.sf(scaled, values.size, patients - values.size))
