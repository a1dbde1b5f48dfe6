# SPDX-License-Identifier: Apache-2.0
"""What one trained arm made of the test cases: kept in one file, from which every figure of the benchmark follows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.findings.froc import Marked
from monai_cnnprimer.validate.statistics import auroc, threshold_for


@dataclass(frozen=True)
class Lock:
    """An arm's operating point and its learnability, both from validation cases: the test chooses nothing.

    Attributes:
        threshold: log-odds from which an image is called; at it the criterion's specificity is kept.
        gate_auroc: AUROC of the largest findings.
    """

    threshold: float
    gate_auroc: float


@dataclass(frozen=True)
class Scores:
    """One arm of one seed on the cases of one test set, in the order of its table.

    Attributes:
        arm: its name.
        seed: of its training.
        lock: its threshold and gate.
        logit: log-odds of each image `(N,)`.
        marked: what its marks hit.
    """

    arm: str
    seed: int
    lock: Lock
    logit: NDArray[np.float32]
    marked: Marked

    @property
    def called(self) -> NDArray[np.bool_]:
        """Whether each image is called at the locked threshold."""
        return self.logit >= self.lock.threshold


def locked(label: NDArray[np.integer], logit: NDArray[np.floating], criterion: str) -> Lock:
    """Threshold and gate from validation cases whose findings are all of the largest bin.

    Args:
        label: `(n,)`, 0 or 1.
        logit: `(n,)`.
        criterion: as `threshold_for` takes it, such as ``specificity=0.90``.

    Raises:
        ValueError: an unknown criterion, or cases of one class only.
    """
    value = auroc(label, logit).value
    if value is None:
        raise ValueError("a threshold needs cases of both classes")
    # A finding above all others, so that an arm which has learnt nothing has a threshold too: it then calls nothing.
    return Lock(threshold_for(np.append(label, 1), np.append(logit, logit.max() + 1), criterion), value)


def packed(scores: Scores) -> bytes:
    """The arrays as an `.npz` file: the same scores give the same bytes."""
    buffer = io.BytesIO()
    lock = np.array([scores.lock.threshold, scores.lock.gate_auroc])
    marked = scores.marked
    np.savez_compressed(
        buffer,
        lock=lock,
        logit=scores.logit,
        false_case=marked.false_case,
        false_score=marked.false_score,
        true_score=marked.true_score,
    )
    return buffer.getvalue()


def unpacked(path: Path, arm: str, seed: int) -> Scores:
    """The scores of a file that `packed` made.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            lock = Lock(*(float(value) for value in held["lock"]))
            marked = Marked(held["false_case"], held["false_score"], held["true_score"])
            return Scores(arm, seed, lock, held["logit"], marked)
    except (KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path.name}: damaged; delete it and give the same command again") from error


def taken(scores: Scores, chosen: NDArray[np.bool_]) -> Scores:
    """The scores of some cases only, as if there had been no others; `chosen` is `(N,)`."""
    marked, place = scores.marked, np.cumsum(chosen) - 1
    kept = chosen[marked.false_case]
    false_case = place[marked.false_case[kept]].astype(np.int32)
    some = Marked(false_case, marked.false_score[kept], marked.true_score[chosen])
    return replace(scores, logit=scores.logit[chosen], marked=some)


def check_against(scores: Scores, table: pd.DataFrame) -> None:
    """Refuses scores that are not of these cases.

    Raises:
        ValueError: another number of cases, findings where there are none, or scores that are not finite.
    """
    known = ~np.isnan(scores.marked.true_score)
    if scores.logit.shape != (len(table),) or not np.array_equal(known, table["label"].to_numpy() == 1):
        raise ValueError(f"{scores.arm}, seed {scores.seed}: scored on other cases than the {len(table)} of this table")
    if not np.isfinite(scores.logit).all():
        raise ValueError(f"{scores.arm}, seed {scores.seed}: scores that are not finite")


def by_arm(scores: list[Scores]) -> dict[str, list[Scores]]:
    """Scores of each arm by seed, in the order in which the arms come first.

    Raises:
        ValueError: arms of different seeds, or one twice.
    """
    arms: dict[str, list[Scores]] = {}
    for one in scores:
        arms.setdefault(one.arm, []).append(one)
    seeds: Mapping[str, list[int]] = {name: sorted(one.seed for one in some) for name, some in arms.items()}
    first = next(iter(seeds.values()), [])
    if any(some != first or len(set(some)) < len(some) for some in seeds.values()):
        raise ValueError(f"arms are compared over the same seeds, each once; there are {dict(seeds)}")
    return {name: sorted(some, key=lambda one: one.seed) for name, some in arms.items()}
