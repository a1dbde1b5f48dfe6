# SPDX-License-Identifier: Apache-2.0
"""The run directory: the truth of one run, without patient data; MLflow only mirrors it."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from monai.transforms import Compose

from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.networks import WeightsError

PREDICTION_COLUMNS = (
    "case_id", "patient_key", "site", "view", "label", "logit", "probability", "predicted", "threshold_id",
    "pixel_spacing_mm", "spacing_source", "bundle", "weights_sha256", "transforms_sha256", "file",
)  # fmt: skip
FROM_MANIFEST = ("patient_key", "site", "view", "label", "pixel_spacing_mm", "spacing_source", "file")
PACKAGES = ("monai_cnnprimer", "monai", "pytorch-ignite", "torch", "numpy", "pydicom", "mlflow")
SPOOL = ".predictions.partial.csv"


class NothingToRead(ValueError):
    """No file of the export can be evaluated; `refused.csv` says why for each."""


class RunDirectory:
    """One run's folder, written so that it is right at every moment, and a killed run can be taken up.

    Opening it writes `manifest.csv`, `refused.csv` and `run.json` with the status `running`. Predictions are spooled
    as they come; a later run over the same manifest with the same weights, transforms and threshold starts from them.

    Args:
        path: the folder; made if missing.
        manifest: what the export holds.
        bundle_root: the bundle that runs; its `configs/metadata.json` gives name and version.
        weights_sha256: of the weights file in use.
        operating_point: `id`, `threshold` and `weights_sha256` of the weights it was chosen for.
        transforms: the preprocessing in use; its hash stands in every row.
        seed: of everything drawn at random in the run.

    Raises:
        NothingToRead: the export has no image that can be evaluated.
        WeightsError: the operating point was chosen for other weights.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        bundle_root: str | Path,
        weights_sha256: str,
        operating_point: Mapping[str, Any],
        transforms: Compose,
        seed: int = 0,
    ) -> None:
        if operating_point["weights_sha256"] != weights_sha256:
            raise WeightsError(
                "operating_point.json holds the threshold of other weights; use the weights that came with it, or "
                "choose a threshold for these on validation patients (docs/training.md)"
            )
        self.path = Path(path).expanduser()
        self.path.mkdir(parents=True, exist_ok=True)
        self.manifest = manifest
        self.threshold = float(operating_point["threshold"])
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
        self.identity = {
            "bundle": metadata["name"],
            "bundle_version": metadata["version"],
            "site": str(manifest.accepted["site"].iloc[0]) if len(manifest.accepted) else "",
            "threshold": self.threshold,
            "threshold_id": operating_point["id"],
            "weights_sha256": weights_sha256,
            "transforms_sha256": describe_sha256(transforms),
            "manifest_sha256": manifest.sha256,
            "seed": seed,
        }
        self.rows = self._take_up()
        manifest.write(self.path)
        for name in ("predictions.csv", "errors.csv", "metrics.json"):
            (self.path / name).unlink(missing_ok=True)
        self._write_run("running")
        if not len(manifest.accepted):
            self._write_run("failed", reason="nothing in the export can be evaluated")
            raise NothingToRead(
                f"none of the {len(manifest.refused)} files is a radiograph that can be evaluated; "
                "refused.csv in the output folder says why for each"
            )

    def remaining(self) -> list[dict[str, Any]]:
        """The cases without a prediction yet; never none, so that an evaluator always has something to run."""
        cases = self.manifest.cases()
        return [case for case in cases if case["case_id"] not in self.rows] or cases[-1:]

    def add(self, case_ids: Sequence[str], logits: Iterable[float], probabilities: Iterable[float]) -> None:
        """Records predictions: the logit of the finding against no finding, and its probability, one a case."""
        rows = {
            case_id: {"case_id": case_id, "logit": f"{logit:.6f}", "probability": f"{probability:.6f}"}
            for case_id, logit, probability in zip(case_ids, logits, probabilities, strict=True)
        }
        self.rows |= rows
        with telling_a_full_disk(), (self.path / SPOOL).open("a", newline="") as file:
            csv.DictWriter(file, ("case_id", "logit", "probability"), lineterminator="\n").writerows(rows.values())

    def finish(self, errors: Sequence[Mapping[str, str]], summarise: Callable[[pd.DataFrame], dict[str, Any]]) -> None:
        """Writes `predictions.csv`, `errors.csv`, `metrics.json`, and the status `complete`.

        Args:
            errors: `case_id`, `reason`, `attribute` of each accepted case without a prediction.
            summarise: from the table of predictions to the figures of `metrics.json`.
        """
        predictions = self._predictions()
        write_atomically(self.path / "predictions.csv", _csv(predictions))
        write_atomically(
            self.path / "errors.csv", _csv(pd.DataFrame(errors, columns=["case_id", "reason", "attribute"]))
        )
        write_atomically(self.path / "metrics.json", _json(summarise(predictions)))
        self._write_run("complete", errors=len(errors))
        (self.path / SPOOL).unlink(missing_ok=True)

    def stop(self, status: str, reason: str) -> None:
        """Records that the run ended as `failed` or `killed`, and why; its predictions so far are kept for the next."""
        self._write_run(status, reason=reason)

    def _predictions(self) -> pd.DataFrame:
        accepted = self.manifest.accepted.set_index("case_id")
        table = pd.DataFrame([self.rows[case_id] for case_id in sorted(self.rows)]).set_index("case_id")
        table = table.join(accepted[list(FROM_MANIFEST)]).reset_index()
        table["predicted"] = (table["probability"].astype(float) >= self.threshold).astype(int)
        for column in ("threshold_id", "bundle", "weights_sha256", "transforms_sha256"):
            table[column] = self.identity[column]
        # A DICOM file is named by no path, so there the column would be empty.
        return table[[name for name in PREDICTION_COLUMNS if name != "file" or (table["file"] != "").any()]]

    def _take_up(self) -> dict[str, dict[str, str]]:
        """Rows of a run that was killed, if it was this run; a half-written last line is dropped."""
        spool, run = self.path / SPOOL, self.path / "run.json"
        known = set(self.manifest.accepted["case_id"])
        same = run.is_file() and {k: json.loads(run.read_text()).get(k) for k in self.identity} == self.identity
        if not (same and spool.is_file()):
            spool.unlink(missing_ok=True)
            return {}
        lines = [line.split(",") for line in spool.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = {r[0]: {"case_id": r[0], "logit": r[1], "probability": r[2].strip()} for r in lines if r[0] in known}
        write_atomically(spool, "".join(f"{','.join(row.values())}\n" for row in rows.values()))
        return rows

    def _write_run(self, status: str, *, errors: int = 0, reason: str = "") -> None:
        counts = {
            "accepted": len(self.manifest.accepted),
            "refused": len(self.manifest.refused),
            "predicted": len(self.rows),
            "errors": errors,
        }
        versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        run = {"status": status, "reason": reason, **self.identity, "counts": counts, "notes": self.manifest.notes}
        write_atomically(self.path / "run.json", _json(run | {"versions": versions}))


def describe_sha256(transforms: Compose) -> str:
    """SHA-256 over the classes and settings of the transforms, in order: equal when the preprocessing is equal."""
    text = json.dumps([_describe(transform) for transform in transforms.transforms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is complete or not there, whenever the process ends; text as UTF-8."""
    with telling_a_full_disk():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)


@contextmanager
def telling_a_full_disk() -> Iterator[None]:
    """Says what to do where the system only says that there is no space left."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            "the disk of the output folder is full; free some space and give the same command again: it goes on from "
            "the predictions it has, or give another output folder",
        ) from error


def _describe(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__dict__") or isinstance(value, type) or callable(value) and hasattr(value, "__name__"):
        return getattr(value, "__qualname__", name)
    return {name: {key: _describe(item) for key, item in vars(value).items() if not key.startswith("_")}}


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
