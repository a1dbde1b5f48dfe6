# SPDX-License-Identifier: Apache-2.0
"""Is it the image at all: what could be scored from the acquisition, the site or the age, without looking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

from monai_cnnprimer.validate.statistics import Auroc, Bootstrap, auroc, clustered_bootstrap, proportion
from monai_cnnprimer.validate.statistics.bootstrap import Counts

MEASURED = ("rows", "columns", "pixel_spacing_mm")
EXPOSED = ("kvp", "exposure_mas", "exposure_index")
NAMED = (
    "view", "laterality", "manufacturer", "spacing_source", "polarity", "lut", "orientation", "transfer_syntax",
    "burned_in", "quirks",
)  # fmt: skip
FOLDS = 5
FEWEST = 10  # patients of each class; fewer leave the folds with one or none
COMPONENTS = 50  # of the features, so that a few hundred cases can be told apart without learning them by heart


@dataclass(frozen=True)
class Baseline:
    """AUROC of scores made without the image, the columns they were made from, or why there are none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    positives: int
    columns: tuple[str, ...]
    folds: int
    reason: str


@dataclass(frozen=True)
class SiteProbe:
    """How well sites are told apart: balanced accuracy by patient, what guessing reaches, each site's AUROC."""

    balanced_accuracy: Bootstrap
    chance: float
    sites: dict[str, Auroc]


@dataclass(frozen=True)
class AgesOutside:
    """Cases outside the training's age bands, of those whose age is known, and the number of unknown ones."""

    value: float | None
    low: float | None
    high: float | None
    k: int
    n: int
    unknown: int


def metadata_baseline(table: pd.DataFrame, seed: int = 0) -> Baseline:
    """What size, spacing, exposure, vendor, view and the like tell of the label, without the image.

    A logistic regression on the logarithms of rows, columns and spacing, their quotient and products, those of tube
    voltage, exposure and exposure index, and the words of the manifest's other acquisition columns, in five folds of
    whole patients; each case is scored by the folds it is not in. What is compared with the model is its AUROC on the
    same cases.

    Args:
        table: one row a case: `label` (0, 1 or missing), `patient_key`, and those acquisition columns of the manifest
            (`MEASURED`, `EXPOSED`, `NAMED`) that there are.
        seed: of the folds.

    Returns:
        No value, and a reason, where a class has fewer than ten patients or no column varies.

    Raises:
        ValueError: the table has no `label` or `patient_key`.
    """
    missing = {"label", "patient_key"} - set(table.columns)
    if missing:
        raise ValueError(f"the table has no {' and no '.join(sorted(missing))}: a baseline needs both")
    known = table[table["label"].notna()]
    label, patient = known["label"].astype(int).to_numpy(), known["patient_key"].to_numpy()
    acquisition = (*MEASURED, *EXPOSED, *NAMED)
    columns = tuple(name for name in acquisition if name in known and known[name].nunique(dropna=False) > 1)
    reason = _too_few(label, patient) or ("" if columns else "no acquisition column varies")
    if reason:
        return _without(label, columns, reason)
    x, folds = _acquisition(known, columns), _folds(label, patient, seed)
    scores = cross_val_predict(_regression(columns), x, label, cv=folds, method="predict_proba")[:, 1]
    return _with(label, columns, scores)


def site_baseline(label: ArrayLike, site: ArrayLike, patient: ArrayLike, seed: int = 0) -> Baseline:
    """What the site alone tells of the label where sites are pooled (Zech et al., PLoS Med. 2018; 15:e1002683).

    Each case is scored with the prevalence of its site among the patients of the other folds; the folds have the same
    mix of sites and labels.

    Args:
        label: ``(n,)`` 0 or 1.
        site: ``(n,)`` pseudonyms.
        patient: ``(n,)`` keys.
        seed: of the folds.

    Returns:
        No value, and a reason, where a class has fewer than ten patients, or with a single site.
    """
    labels, sites, patients = np.asarray(label).astype(int), np.asarray(site).astype(str), np.asarray(patient)
    reason = _too_few(labels, patients) or ("a single site" if np.unique(sites).size < 2 else "")
    if reason:
        return _without(labels, ("site",), reason)
    scores = np.empty(labels.size)
    for train, test in _folds(np.char.add(sites, labels.astype(str)), patients, seed):
        prevalence = pd.Series(labels[train]).groupby(sites[train]).mean()
        scores[test] = pd.Series(sites[test]).map(prevalence).fillna(labels[train].mean())
    return _with(labels, ("site",), scores)


def site_probe(features: ArrayLike, site: ArrayLike, patient: ArrayLike, seed: int = 0) -> SiteProbe:
    """Whether a network's own features tell sites apart: if so, a score may follow the site.

    A logistic regression on their first 50 principal components, in folds of whole patients.

    Args:
        features: ``(n, d)``, such as the pooled activations before the last layer.
        site: ``(n,)`` pseudonyms.
        patient: ``(n,)`` keys; patients are kept together, and drawn for the interval.
        seed: of folds and interval.

    Raises:
        ValueError: a single site, a site with fewer than ten patients, features that are not finite or of another
            length.
    """
    x, patients = np.asarray(features, dtype=np.float64), np.asarray(patient)
    names, sites = np.unique(np.asarray(site).astype(str), return_inverse=True)
    if x.ndim != 2 or len(x) != sites.size or not np.isfinite(x).all():
        raise ValueError(f"features {x.shape} must be finite, one row for each of {sites.size} cases")
    fewest = min(np.unique(patients[sites == place]).size for place in range(names.size))
    if names.size < 2 or fewest < FEWEST:
        raise ValueError(
            f"{names.size} sites, {fewest} patients in the least: two sites of {FEWEST} patients are needed"
        )
    model = make_pipeline(
        StandardScaler(),
        PCA(min(COMPONENTS, x.shape[1], sites.size // 2), random_state=seed),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    )
    folds = _folds(sites, patients, seed)
    probability = cross_val_predict(model, x, sites, cv=folds, method="predict_proba")
    table = pd.DataFrame({"site": sites, "patient": patients, "right": probability.argmax(axis=1) == sites})
    accuracy = clustered_bootstrap(_BalancedAccuracy(names.size), table, "patient", seed=seed)
    apart = {str(name): auroc(sites == place, probability[:, place]) for place, name in enumerate(names)}
    return SiteProbe(accuracy, 1 / names.size, apart)


def ages_outside(age_band: Iterable[str], trained: Iterable[str]) -> AgesOutside:
    """How many cases are of an age that training never saw, by the manifest's age bands ("" is unknown).

    Example:
        >>> ages_outside(["0-4", "18-39", "65-89", ""], trained=["0-4", "5-17"]).k
        2
    """
    bands = pd.Series(list(age_band), dtype="str").fillna("")
    known = bands[bands != ""]
    share = proportion(int((~known.isin(list(trained))).sum()), len(known))
    return AgesOutside(share.value, share.low, share.high, share.k, share.n, len(bands) - len(known))


def _too_few(label: NDArray[Any], patient: NDArray[Any]) -> str:
    fewest = min(len(set(patient[label == value])) for value in (0, 1))
    return f"a class has {fewest} patients, fewer than {FEWEST}" if fewest < FEWEST else ""


def _without(label: NDArray[Any], columns: tuple[str, ...], reason: str) -> Baseline:
    return Baseline(None, None, None, label.size, int(label.sum()), columns, 0, reason)


def _with(label: NDArray[Any], columns: tuple[str, ...], scores: NDArray[np.float64]) -> Baseline:
    result = auroc(label, scores)
    return Baseline(result.value, result.low, result.high, result.n, result.positives, columns, FOLDS, "")


def _folds(strata: NDArray[Any], patient: NDArray[Any], seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Cases to learn from and to score, five times; no patient is in both, the strata are spread evenly.

    Patients are dealt out, those of a stratum after each other. Scikit-learn's StratifiedGroupKFold weighs each patient
    against all folds, and for 50,000 of them takes longer than all other figures of a summary.
    """
    number, names = pd.factorize(patient)
    stratum = np.zeros(len(names), dtype=np.intp)
    np.maximum.at(stratum, number, np.unique(strata, return_inverse=True)[1])
    shuffled = np.random.default_rng(seed).permutation(len(names))
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold = np.empty(len(names), dtype=np.intp)
    fold[dealt] = np.arange(len(names)) % FOLDS
    return [(np.flatnonzero(fold[number] != part), np.flatnonzero(fold[number] == part)) for part in range(FOLDS)]


def _acquisition(known: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    measured = {name: np.log(known[name].astype("float64")) for name in columns if name in (*MEASURED, *EXPOSED)}
    named = {name: known[name].fillna("").astype(str) for name in columns if name in NAMED}
    return pd.DataFrame(measured | named)


def _regression(columns: Sequence[str]) -> BaseEstimator:
    """Logistic regression; of the sizes' logarithms the squares and products too, so that any quotient is there."""
    known = (SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler())
    encode = make_column_transformer(
        (make_pipeline(*known, PolynomialFeatures(2)), [name for name in columns if name in MEASURED]),
        (make_pipeline(*known), [name for name in columns if name in EXPOSED]),
        (OneHotEncoder(handle_unknown="ignore"), [name for name in columns if name in NAMED]),
    )
    return make_pipeline(encode, LogisticRegression(max_iter=1000))


@dataclass(frozen=True)
class _BalancedAccuracy:
    """Mean over sites of the share named rightly; None where a site was not drawn. A `CountedStatistic`."""

    sites: int

    def __call__(self, frame: pd.DataFrame) -> float | None:
        value = self.on_counts(frame, np.zeros(len(frame), dtype=np.intp))(np.ones((1, 1), dtype=np.int32))[0]
        return None if np.isnan(value) else float(value)

    def on_counts(self, frame: pd.DataFrame, cluster: NDArray[np.intp]) -> Callable[[Counts], NDArray[np.float64]]:
        """Cases and right ones of each cluster at each site, times how often it was drawn."""
        place = cluster * self.sites + frame["site"].to_numpy()
        size = (int(cluster.max()) + 1) * self.sites
        cases, right = (
            np.bincount(place, weights=weights, minlength=size).reshape(-1, self.sites)
            for weights in (np.ones(len(frame)), frame["right"].to_numpy(dtype=np.float64))
        )

        def means(counts: Counts) -> NDArray[np.float64]:
            drawn, named = counts @ cases, counts @ right
            shares = np.divide(named, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
            return shares.mean(axis=1)

        return means
