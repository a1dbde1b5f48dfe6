# SPDX-License-Identifier: Apache-2.0
"""What MLflow is told of a run directory: tags, parameters, metrics with their intervals, and the data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from monai_cnnprimer.validate.mlflow_store import TrackingFailed, cut, is_number, leaves, named_values

_TAGS = {
    "site": "site",
    "bundle": "bundle",
    "bundle_version": "bundle.version",
    "weights_sha256": "weights.sha256",
    "transforms_sha256": "transforms.sha256",
    "manifest_sha256": "manifest.sha256",
    "threshold_id": "operating_point",
    "retuned": "retuned",
    "gate_shortcut": "gate.shortcut",
}
# Named one by one: run.json may come to hold the command line, whose paths must not leave the machine.
_PARAMS = ("seed", "threshold", "versions", "settings")
_METRICS = ("counts", "seconds")


def tags_of(run: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, str]:
    """Tags from `run.json`, and above them those given."""
    tags = {tag: run.get(key) for key, tag in _TAGS.items()} | dict(given)
    return {key: cut(value, MAX_TAG_VAL_LENGTH) for key, value in named_values(tags.items()).items()}


def params_of(run: Mapping[str, Any], given: Mapping[str, Any]) -> list[Param]:
    """Parameters from `run.json`, and above them those given."""
    params = dict(leaves({key: run.get(key) for key in _PARAMS})) | dict(given)
    return [Param(key, cut(value, MAX_PARAM_VAL_LENGTH)) for key, value in named_values(params.items()).items()]


def metrics_of(run: Mapping[str, Any], figures: Mapping[str, Any], time: int) -> list[Metric]:
    """Every number of `run.json` and of the figures, by dotted names; `auroc` has `auroc.low`, `auroc.high`, `auroc.n`.

    Curves and subgroups, which are lists of entries, stay in `metrics.json`: their places in a list are no names.
    """
    told = {key: run.get(key) for key in _METRICS}
    told |= {key: value for key, value in figures.items() if not _is_table(value)}
    numbers = named_values((key, value) for key, value in leaves(told) if is_number(value))
    return [Metric(key, float(value), time, 0) for key, value in numbers.items()]


def curves_of(file: Path, time: int) -> list[Metric]:
    """The epochs of a training, from `curves.csv`; none where there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    steps = [(int(row.pop("epoch")), row) for row in rows]
    return [Metric(key, float(value), time, step) for step, row in steps for key, value in row.items()]


def dataset_of(run: Mapping[str, Any]) -> list[DatasetInput]:
    """The site's cases as MLflow's data-set entry, by our own SHA-256 of the manifest; none without a manifest.

    MLflow's own digest of a table looks at a part of its rows only. A digest may have 36 characters: the whole one
    stands in the source.
    """
    sha256 = run.get("manifest_sha256")
    if not sha256:
        return []
    source = json.dumps({"file": "manifest.csv", "sha256": sha256})
    profile = json.dumps(run.get("counts", {}))
    name = str(run.get("site") or "site")
    dataset = Dataset(name, sha256[:MAX_DATASET_DIGEST_SIZE], "manifest", source, profile=profile)
    return [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "evaluation")])]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file.

    Raises:
        TrackingFailed: it is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise TrackingFailed(f"{path.name} in the run directory is not a JSON object") from None


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)
