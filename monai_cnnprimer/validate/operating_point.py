# SPDX-License-Identifier: Apache-2.0
"""The operating point: a threshold chosen once, on one site's labelled cases, and carried unchanged to every other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.run_directory import check_operating_point, digest_of, write_atomically
from monai_cnnprimer.validate.runs import Run
from monai_cnnprimer.validate.statistics import bagged_threshold, proportion, threshold_for

_RESOLUTION = 1e-6  # of a probability in predictions.csv


def lock(run: Run, criterion: str) -> dict[str, Any]:
    """The operating point that a criterion picks on the labelled cases of a run.

    Args:
        run: a complete run on the site where the threshold is to be chosen.
        criterion: ``youden`` (averaged over bootstrap samples of the patients), ``specificity=0.90`` or
            ``sensitivity=0.95`` (at least that, on these cases).

    Returns:
        What stands in ``operating_point.json``: id, threshold, what it belongs to (bundle, version, hashes of weights
        and preprocessing), and on what it was chosen: site, cases, patients, sensitivity and specificity there.

    Raises:
        ValueError: fewer than two classes have labelled cases, or an unknown criterion.
    """
    point = _chosen(run.predictions, criterion, run.site)
    belongs = {name: run.run[name] for name in ("bundle", "bundle_version", "weights_sha256", "transforms_sha256")}
    return _named(criterion, point | belongs | {"manifest_sha256": run.run["manifest_sha256"]})


class Retune:
    """Chooses the threshold on the site's own cases; a run that does so is branded, see `RunDirectory`.

    Args:
        criterion: as `lock`.
    """

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion

    def __call__(self, predictions: pd.DataFrame) -> dict[str, Any]:
        """The operating point of these predictions (`predictions.csv`)."""
        belongs = {name: str(predictions[name].iloc[0]) for name in ("bundle", "weights_sha256", "transforms_sha256")}
        point = _chosen(predictions, self.criterion, str(predictions["site"].iloc[0]))
        return _named(f"retuned-{self.criterion}", point | belongs | {"retuned": True})


def write_operating_point(point: Mapping[str, Any], file: Path) -> None:
    """Writes ``operating_point.json``; one that is there is never replaced by another.

    Raises:
        ValueError: the file holds another operating point.
    """
    text = json.dumps(point, indent=2) + "\n"
    if file.exists() and file.read_text() != text:
        raise ValueError(
            f"{file.name} holds a locked operating point already: give another --output, or delete it yourself if no "
            "result was ever taken with it"
        )
    write_atomically(file, text)


def read_operating_point(file: str | Path, weights_sha256: str, transforms_sha256: str) -> dict[str, Any]:
    """An operating point that may be used with these weights and this preprocessing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no operating point, or was changed by hand.
        WeightsError: it belongs to other weights or another preprocessing.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such operating point; cnnprimer lock makes one")
    try:
        point = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{path.name} is not a JSON object; cnnprimer lock writes operating points") from None
    check_operating_point(point, weights_sha256, transforms_sha256)
    return point


def _chosen(predictions: pd.DataFrame, criterion: str, site: str) -> dict[str, Any]:
    known = predictions[predictions["label"].notna()]
    labels = known["label"].astype(int).to_numpy()
    if len(set(labels)) < 2:
        counted = f"{int((labels == 1).sum())} with the finding and {int((labels == 0).sum())} without"
        raise ValueError(f"a threshold needs labelled cases of both classes; this run has {counted}")
    probabilities = known["probability"].astype(float).to_numpy()
    if criterion == "youden":
        inside = probabilities.clip(_RESOLUTION / 2, 1 - _RESOLUTION / 2)
        threshold = bagged_threshold(labels, inside, known["patient_key"].to_numpy())
    else:
        threshold = threshold_for(labels, probabilities, criterion)
    called = probabilities >= threshold
    found, spared = called[labels == 1], ~called[labels == 0]
    return {
        "threshold": threshold,
        "criterion": criterion,
        "site": site,
        "n": len(known),
        "patients": int(known["patient_key"].nunique()),
        "sensitivity": asdict(proportion(int(found.sum()), len(found))),
        "specificity": asdict(proportion(int(spared.sum()), len(spared))),
    }


def _named(criterion: str, point: dict[str, Any]) -> dict[str, Any]:
    """With an id that names criterion and content, and the hash that tells a change by hand."""
    content = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()
    point = {"id": f"{criterion.replace('=', '-')}-{content[:8]}", **point}
    return point | {"sha256": digest_of(point)}
