# SPDX-License-Identifier: Apache-2.0
"""What a network says of each case before and after every intervention, and the cases that it moves furthest."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.explain.shortcuts import INTERVENTIONS, LeftOut, Pair, Subject, intervene

Logits = Callable[[Sequence[NDArray[np.float32]], Mapping[str, Any]], NDArray[np.float64]]
COLUMNS = (
    "case_id", "patient_key", "label", "intervention", "logit", "changed", "control", "share_changed", "left_out",
)  # fmt: skip
_DRAWN = 256  # pixels of the longer side of a picture that is kept


class AuditCase(NamedTuple):
    """One case.

    Attributes:
        case_id: pseudonym; what is drawn for the case follows from it.
        patient_key: pseudonym of the patient, by which intervals are clustered.
        label: 0, 1 or None.
        subject: the radiograph before the network's transforms, with its masks.
        receipt: the reader's metadata, which the transforms need.
    """

    case_id: str
    patient_key: str
    label: int | None
    subject: Subject
    receipt: Mapping[str, Any] = {}


class Seen(NamedTuple):
    """A case as drawn: pictures of 256 pixels at most before, after and of the control, and their logits."""

    case_id: str
    label: int | None
    images: tuple[NDArray[np.float32], ...]
    where: tuple[NDArray[np.bool_] | None, ...]
    logits: tuple[float, ...]


class Measured(NamedTuple):
    """One row a case and intervention, with `COLUMNS`; and by intervention the cases that were moved furthest."""

    table: pd.DataFrame
    furthest: dict[str, list[Seen]]


def measure(
    cases: Iterable[AuditCase],
    logits: Logits,
    names: Sequence[str],
    seed: int = 0,
    keep: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> Measured:
    """Makes each intervention and its control on each case, and asks the network.

    A case that cannot be intervened on has a row with the reason in `left_out`, and no logit after.

    Args:
        cases: read one by one; none is held.
        logits: from images in [0, 1] of one case, with its receipt, to the log odds of the finding.
        names: interventions, keys of `INTERVENTIONS`.
        seed: of the interventions.
        keep: cases drawn of each intervention.
        tick: called after each case.

    Raises:
        ValueError: a logit that is not finite.
    """
    rows: list[dict[str, Any]] = []
    furthest: dict[str, list[tuple[float, str, Seen]]] = {name: [] for name in names}
    for case in cases:
        pairs = {name: _made(name, case, seed) for name in names}
        made = {name: pair for name, pair in pairs.items() if isinstance(pair, Pair)}
        images = [case.subject.image]
        for both in made.values():
            images += [one.image for one in both if one is not None]
        said = logits(images, case.receipt)
        if not np.isfinite(said).all():
            raise ValueError("the network says a logit that is not finite: nothing can be measured")
        answers = iter(said.tolist())
        before = next(answers)
        common = {"case_id": case.case_id, "patient_key": case.patient_key, "label": case.label, "logit": before}
        for name, pair in pairs.items():
            row = common | {"intervention": name, "left_out": "" if isinstance(pair, Pair) else pair}
            if isinstance(pair, Pair):
                row |= {"changed": next(answers), "share_changed": float(pair.changed.where.mean())}
                row["control"] = None if pair.control is None else next(answers)
                entry = (-abs(row["changed"] - before), case.case_id)
                if len(furthest[name]) < keep or entry < furthest[name][-1][:2]:
                    insort(furthest[name], (*entry, _seen(case, pair, row)), key=lambda held: held[:2])
                    del furthest[name][keep:]
            rows.append(row)
        tick()
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": "Int64", "changed": float, "control": float})
    return Measured(table, {name: [seen for _, _, seen in held] for name, held in furthest.items()})


def _made(name: str, case: AuditCase, seed: int) -> Pair | str:
    missing = [mask for mask in INTERVENTIONS[name].needs if mask not in case.subject.masks]
    if missing:
        return f"no mask of the {' and '.join(missing)} is known"
    try:
        return intervene(name, case.subject, seed, case.case_id)
    except LeftOut as reason:
        return str(reason)


def _seen(case: AuditCase, pair: Pair, row: Mapping[str, Any]) -> Seen:
    changes = [one for one in pair if one is not None]
    images = (case.subject.image, *(one.image for one in changes))
    step = max(1, -(-max(case.subject.image.shape) // _DRAWN))
    said = (row["logit"], row["changed"], *(() if row["control"] is None else (row["control"],)))
    where = (None, *(one.where[::step, ::step].copy() for one in changes))
    return Seen(case.case_id, case.label, tuple(_small(image, step) for image in images), where, said)


def _small(image: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means over squares of `step` pixels; those at the lower and right edge over what is left of them."""
    rows, columns = (np.arange(0, side, step) for side in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]]))
    return (sums / counts).astype(np.float32)
