# SPDX-License-Identifier: Apache-2.0
"""Several sites' run directories as one: pooled tables and figures, without any image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.handlers.features import COLUMNS, FEATURES
from monai_cnnprimer.run_directory import PREDICTION_COLUMNS, package_versions, with_manifest, write_run_json
from monai_cnnprimer.validate.runs import Run, RunError
from monai_cnnprimer.validate.shared_cases import shared_cases
from monai_cnnprimer.validate.site_table import site_row, site_table, sites_csv
from monai_cnnprimer.validate.summary import summary

SAME = {
    "weights_sha256": "weights",
    "transforms_sha256": "preprocessing",
    "threshold_id": "operating point",
    "threshold": "threshold",
}
"""What the runs of one locked model have in common, and what to call it."""


def merge_runs(runs: Sequence[Run], output: Path) -> list[str]:
    """Pools complete runs of one locked model into a run directory of its own, and `sites.csv` beside its tables.

    Each case keeps its site; the figures are those of all cases together, which says little where sites differ: the
    table of sites stands beside them.

    Args:
        runs: as `read_run` gives them, each of another site.
        output: folder of the merged run, which `read_run` reads as any other.

    Returns:
        What a person should know: patients at two sites, what cannot be known of them, and each run's own notes.

    Raises:
        RunError: the runs are not of one locked model, one was tuned to its site, or a case would count twice.
    """
    check_alike(runs)
    if output.resolve() in [run.path.resolve() for run in runs]:
        raise RunError(f"{output}: this is one of the runs; give another folder for the merged one")
    if twice := sorted({run.site for run in runs if [other.site for other in runs].count(run.site) > 1}):
        raise RunError(f"two runs are of a site named {', '.join(twice)}: their cases could not be told apart")
    shared = shared_cases(runs)
    if shared.cases:
        raise RunError(f"{'; '.join(shared.cases)}: each would be counted twice")
    notes = [
        *shared.patients,
        *shared.alike,
        *shared.unknown,
        *(f"{run.site}: {note}" for run in runs for note in run.run["notes"]),
    ]
    _write(runs, output, notes)
    return notes


def check_alike(runs: Sequence[Run]) -> None:
    """Refuses runs that are not of one locked model.

    Raises:
        RunError: says which runs differ, and in what.
    """
    if not runs:
        raise RunError("no run was given")
    for run in runs:
        if run.retuned:
            raise RunError(
                f"{run.site}: its threshold was chosen on its own cases; run it with the locked one to merge"
            )
        for name, what in SAME.items():
            if run.run[name] != runs[0].run[name]:
                raise RunError(
                    f"{runs[0].site} and {run.site} have different {what}: {_short(runs[0].run[name])} and "
                    f"{_short(run.run[name])}; only runs of one locked model can be pooled"
                )


def _write(runs: Sequence[Run], output: Path, notes: list[str]) -> None:
    for stale in ("run.json", FEATURES):  # until all is there, it is no run directory
        (output / stale).unlink(missing_ok=True)
    manifest = _pooled([run.manifest for run in runs], ["case_id"])
    predictions = _pooled([_as_written(run.predictions) for run in runs], ["case_id"])
    predictions = predictions[[name for name in PREDICTION_COLUMNS if name in predictions]]
    tables = {
        "manifest.csv": manifest,
        "refused.csv": _pooled([run.refused for run in runs], ["path_sha256", "reason"]),
        "predictions.csv": predictions,
        "errors.csv": _pooled([run.errors for run in runs], ["case_id"]),
    }
    if (features := _features(runs)) is not None:
        tables[FEATURES] = features
    texts = {name: str(table.to_csv(index=False, lineterminator="\n")) for name, table in tables.items()}
    texts["metrics.json"] = _json(summary(with_manifest(predictions, manifest)))
    texts["operating_point.json"] = _json(runs[0].operating_point)
    texts["sites.csv"] = sites_csv(site_table([site_row(run.site, run.path, "complete") for run in runs]))
    for name, text in texts.items():
        write_atomically(output / name, text)
    sha256 = hashlib.sha256(texts["manifest.csv"].encode()).hexdigest()
    write_run_json(output, _run_json(runs, sha256) | {"notes": notes, "versions": package_versions()})


def _features(runs: Sequence[Run]) -> pd.DataFrame | None:
    """Features of all cases, as text; without hashes of images where these are not of one key."""
    files = [run.path / FEATURES for run in runs if (run.path / FEATURES).is_file()]
    if not files:
        return None
    tables = [pd.read_csv(file, dtype=str, keep_default_na=False) for file in files]
    pooled = _pooled([table.reindex(columns=COLUMNS, fill_value="") for table in tables], ["case_id"])
    keys = {run.run.get("key_id", "") for run in runs}
    return pooled if len(keys) == 1 and keys != {""} else pooled.assign(image_hash="")


def _run_json(runs: Sequence[Run], manifest_sha256: str) -> dict[str, Any]:
    keys = {run.run.get("key_id", "") for run in runs}
    kept = {name: runs[0].run[name] for name in ("bundle", "bundle_version", *SAME)}
    counts = {name: sum(run.run["counts"][name] for run in runs) for name in runs[0].run["counts"]}
    merged = [{"site": run.site, "run_sha256": run.run["sha256"], "cases": len(run.predictions)} for run in runs]
    own = {"site": "merged", "retuned": False, "manifest_sha256": manifest_sha256, "merged": merged, "counts": counts}
    return {"status": "complete", "reason": "", **kept, **own, "key_id": keys.pop() if len(keys) == 1 else ""}


def _as_written(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.assign(**{name: predictions[name].map("{:.6f}".format) for name in ("logit", "probability")})


def _pooled(tables: Sequence[pd.DataFrame], by: list[str]) -> pd.DataFrame:
    """All rows, in an order that does not depend on that of the runs; a column that some do not have is empty there."""
    filled = [table for table in tables if len(table)] or list(tables[:1])
    pooled = pd.concat(filled, ignore_index=True).sort_values(by, kind="stable", ignore_index=True)
    return pooled.fillna({name: "" for name in pooled.columns if pooled[name].dtype in (object, "str")})


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
