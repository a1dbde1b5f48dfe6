# SPDX-License-Identifier: Apache-2.0
"""Two run directories, case by case: what cannot be compared is refused, what limits a comparison is said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.validate.runs import Run, read_run

_OWN = ("logit", "probability", "predicted")
_SAME = ("weights_sha256", "transforms_sha256", "threshold")


@dataclass(frozen=True, eq=False)
class RunPair:
    """Two runs over the same cases.

    Attributes:
        a: the first run.
        b: the second run.
        names: what the two are called.
        table: one row a case: `case_id`, `patient_key`, `label`, what the manifest of A knows, and `logit_a`,
            `probability_a`, `predicted_a`, `logit_b`, ...
        only_a: how many cases are in A alone, and left out.
        only_b: how many are in B alone.
        brand: what limits the comparison and must be seen wherever it is shown.
        notes: what else a person should know.
    """

    a: Run
    b: Run
    names: tuple[str, str]
    table: pd.DataFrame
    only_a: int
    only_b: int
    brand: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def labelled(self) -> pd.DataFrame:
        """The cases with a label."""
        return self.table[self.table["label"].notna()]

    @property
    def thresholds(self) -> tuple[float, float]:
        """Both models' thresholds on the scale of their logits."""
        first, second = (log_odds(float(run.run["threshold"])) for run in (self.a, self.b))
        return first, second


def pair_runs(
    run_a: str | Path, run_b: str | Path, *, common: bool = False, names: tuple[str | None, str | None] = (None, None)
) -> RunPair:
    """Reads two run directories and matches their cases by `case_id`.

    Args:
        run_a: the first run directory.
        run_b: the second.
        common: compare the cases that both have, and brand the result; else different cases are refused.
        names: of the two models; None takes the bundle's name, and what tells both apart.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the runs are not finished, not of the same cases, not of the same files, or their labels differ.
    """
    a, b = _read(run_a), _read(run_b)
    if a.path.resolve() == b.path.resolve():
        raise ValueError("RUN_A and RUN_B are the same folder: give two runs")
    _check_origin(a, b)
    first, second = (run.table().set_index("case_id").sort_index() for run in (a, b))
    shared = first.index.intersection(second.index)
    only_a, only_b = len(first) - len(shared), len(second) - len(shared)
    if (only_a or only_b) and not common:
        raise ValueError(
            f"the runs are not of the same cases: {len(shared)} in both, {only_a} only in A, {only_b} only in B. "
            "Evaluate both on one export (errors.csv and refused.csv say what a run left out), or compare only the "
            "shared ones with --common, which the result then says"
        )
    first, second = first.loc[shared], second.loc[shared]
    _check_files(first, second)
    labels, notes = _labels(first, second)
    brand = [f"ONLY SHARED CASES: {len(shared)} of {len(first) + only_a} in A and of {len(second) + only_b} in B"]
    brand = brand if only_a or only_b else []
    brand += [
        f"RE-TUNED: the threshold of {name} was chosen on these cases" for name, run in _named(a, b) if run.retuned
    ]
    table = first.drop(columns=list(_OWN)).assign(label=labels)
    for letter, of in (("a", first), ("b", second)):
        table = table.assign(**{f"{column}_{letter}": of[column] for column in _OWN})
    table = table.astype({"predicted_a": int, "predicted_b": int}).reset_index()
    return RunPair(a, b, _names(a, b, names), table, only_a, only_b, tuple(brand), (*_differences(a, b), *notes))


def log_odds(probability: float) -> float:
    """The logit of a probability; infinite for 0 and 1."""
    if not 0 < probability < 1:
        return math.inf if probability >= 1 else -math.inf
    return math.log(probability / (1 - probability))


def _read(path: str | Path) -> Run:
    run = read_run(path)
    if not len(run.predictions):
        raise ValueError(f"{run.path.name}: the run predicted no case, so there is nothing to compare")
    return run


def _check_origin(a: Run, b: Run) -> None:
    """Says why no case can be shared, where that can be told."""
    keys = [run.run.get("key_id", "") for run in (a, b)]
    if all(keys) and keys[0] != keys[1]:
        raise ValueError(
            "the pseudonyms of the two runs were made with different keys, so that their cases cannot be matched: "
            "evaluate both with the same key"
        )
    if a.predictions["case_id"].isin(b.predictions["case_id"]).any():
        return
    sites = f"A is of site {a.site!r}, B of site {b.site!r}: " if a.site != b.site else ""
    raise ValueError(
        f"{sites}the runs have no case in common; give two runs over one export, with the same key of pseudonyms"
    )


def _check_files(first: pd.DataFrame, second: pd.DataFrame) -> None:
    changed = int((first["sha256"] != second["sha256"]).sum())
    if changed:
        raise ValueError(
            f"{changed} of {len(first)} cases have the same case_id but other files in the two runs (their SHA-256 "
            "differs): evaluate both on the same export"
        )


def _labels(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.Series, list[str]]:
    """The label of each case; one run may lack what the other has."""
    a, b = first["label"], second["label"]
    differ = int(((a != b) & a.notna() & b.notna()).sum())
    if differ:
        raise ValueError(
            f"{differ} of {len(a)} cases have different labels in the two runs: evaluate both with the same"
        )
    lent = [(name, int((of.isna() & other.notna()).sum())) for name, of, other in (("A", a, b), ("B", b, a))]
    others = {"A": "B", "B": "A"}
    notes = [f"{n} cases have no label in run {name}; it is taken from run {others[name]}" for name, n in lent if n]
    return a.fillna(b), notes


def _differences(a: Run, b: Run) -> list[str]:
    """What a reader of the comparison should know of how both runs differ, or do not."""
    notes = []
    if all(a.run[name] == b.run[name] for name in _SAME):
        notes.append("both runs used the same weights, preprocessing and threshold: differences are of the machine")
    elif a.run["transforms_sha256"] != b.run["transforms_sha256"]:
        notes.append("the runs preprocessed images differently; maps are compared at the same place of the input")
    if a.site != b.site:
        notes.append(f"the same cases under two names of a site: {a.site} and {b.site}")
    return notes


def _named(a: Run, b: Run) -> tuple[tuple[str, Run], tuple[str, Run]]:
    return ("A", a), ("B", b)


def _names(a: Run, b: Run, given: tuple[str | None, str | None]) -> tuple[str, str]:
    """The bundle's name, with as much more as tells both runs apart."""
    told: list[tuple[str, ...]] = []
    for run in (a, b):
        facts: dict[str, Any] = run.run
        told.append((facts["bundle"], f"weights {facts['weights_sha256'][:8]}", f"threshold {facts['threshold']:g}"))
    parts = next((n for n in (1, 2, 3) if told[0][:n] != told[1][:n]), 3)
    first, second = (name or ", ".join(of[:parts]) for name, of in zip(given, told, strict=True))
    return first, second
