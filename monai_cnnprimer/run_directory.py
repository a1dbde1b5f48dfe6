# SPDX-License-Identifier: Apache-2.0
"""The run directory: the truth of one run, without patient data; MLflow only mirrors it."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from monai.transforms import Compose

from monai_cnnprimer.atomic import lock, telling_a_full_disk, unlock, write_atomically
from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.networks import WeightsError

PREDICTION_COLUMNS = (
    "case_id", "patient_key", "site", "view", "label", "logit", "probability", "predicted", "threshold_id",
    "pixel_spacing_mm", "spacing_source", "bundle", "weights_sha256", "transforms_sha256", "file",
)  # fmt: skip
FROM_MANIFEST = ("patient_key", "site", "view", "label", "pixel_spacing_mm", "spacing_source", "file")
PACKAGES = ("monai_cnnprimer", "monai", "pytorch-ignite", "torch", "numpy", "pydicom", "mlflow")
TABLES = ("manifest.csv", "refused.csv", "predictions.csv", "errors.csv", "metrics.json", "operating_point.json")
"""The files whose SHA-256 stands in `run.json` once a run is complete."""
FURTHER = ("features.csv",)
"""Tables that a run may have besides; where it has, their SHA-256 stands there too."""
SPOOL = ".predictions.partial.csv"

Retune = Callable[[pd.DataFrame], dict[str, Any]]


class NothingToRead(ValueError):
    """No file of the export can be evaluated; `refused.csv` says why for each."""


class RunDirectory:
    """One run's folder, written so that it is right at every moment, and a killed run can be taken up.

    Opening it writes `manifest.csv`, `refused.csv` and `run.json` with the status `running`. Predictions are spooled
    as they come; a later run over the same manifest with the same weights, transforms and threshold starts from them.

    No other process can open it meanwhile.

    Args:
        path: the folder; made if missing.
        manifest: what the export holds.
        bundle_root: the bundle that runs; its `configs/metadata.json` gives name and version.
        weights_sha256: of the weights file in use.
        operating_point: `id`, `threshold`, `weights_sha256` of the weights that it was chosen for, and
            `transforms_sha256` of the preprocessing, where it names one.
        transforms: the preprocessing in use; its hash stands in every row.
        seed: of everything drawn at random in the run.
        retune: from the table of predictions to an operating point of this site's own. The run is then branded:
            `retuned` stands in `run.json` and `metrics.json`, and the locked threshold beside the new one.

    Raises:
        NothingToRead: the export has no image that can be evaluated.
        WeightsError: the operating point was chosen for other weights, or with another preprocessing.
        FolderBusy: another process is writing this folder.
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
        retune: Retune | None = None,
    ) -> None:
        transforms_sha256 = describe_sha256(transforms)
        check_operating_point(operating_point, weights_sha256, transforms_sha256)
        self.path = Path(path).expanduser()
        self.path.mkdir(parents=True, exist_ok=True)
        lock(self.path)
        self.manifest = manifest
        self.operating_point = dict(operating_point)
        self.threshold = float(operating_point["threshold"])
        self.retune = retune
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text())
        self.identity = {
            "bundle": metadata["name"],
            "bundle_version": metadata["version"],
            "site": str(manifest.accepted["site"].iloc[0]) if len(manifest.accepted) else "",
            "threshold": self.threshold,
            "threshold_id": operating_point["id"],
            "retuned": False,
            "weights_sha256": weights_sha256,
            "transforms_sha256": transforms_sha256,
            "manifest_sha256": manifest.sha256,
            "key_id": manifest.key_id,
            "seed": seed,
        }
        self.notes = list(manifest.notes)
        if operating_point.get("manifest_sha256") == manifest.sha256:
            self.notes.append("the threshold was chosen on these very cases: what it gives here is optimistic")
        if "transforms_sha256" not in operating_point:
            self.notes.append("the operating point names no preprocessing: it may have been chosen with another one")
        self.rows = self._take_up()
        manifest.write(self.path)
        for name in ("predictions.csv", "errors.csv", "metrics.json", *FURTHER):
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "operating_point.json", _json(self.operating_point))
        self._write_run("running")
        if not len(manifest.accepted):
            self._write_run("failed", reason="nothing in the export can be evaluated")
            unlock(self.path)
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
        brand = self._retuned(predictions) if self.retune else {}
        write_atomically(self.path / "predictions.csv", _csv(predictions))
        write_atomically(
            self.path / "errors.csv", _csv(pd.DataFrame(errors, columns=["case_id", "reason", "attribute"]))
        )
        figures = summarise(with_manifest(predictions, self.manifest.accepted))
        write_atomically(self.path / "metrics.json", _json({"retuned": True} | figures if brand else figures))
        self._write_run("complete", errors=len(errors), **brand)
        (self.path / SPOOL).unlink(missing_ok=True)
        unlock(self.path)

    def stop(self, status: str, reason: str) -> None:
        """Records that the run ended as `failed` or `killed`, and why; its predictions so far are kept for the next."""
        self._write_run(status, reason=reason)
        unlock(self.path)

    def _retuned(self, predictions: pd.DataFrame) -> dict[str, Any]:
        """Calls the cases by this site's own threshold; what brands the run."""
        assert self.retune is not None
        point = self.retune(predictions)
        predictions["threshold_id"] = point["id"]
        predictions["predicted"] = (predictions["probability"].astype(float) >= point["threshold"]).astype(int)
        write_atomically(self.path / "operating_point.json", _json(point))
        locked = {"threshold_id": self.identity["threshold_id"], "threshold": self.threshold}
        return {"retuned": True, "threshold": point["threshold"], "threshold_id": point["id"], "locked": locked}

    def _predictions(self) -> pd.DataFrame:
        accepted = self.manifest.accepted.set_index("case_id")
        rows = [self.rows[case_id] for case_id in sorted(self.rows)]
        table = pd.DataFrame(rows, columns=["case_id", "logit", "probability"], dtype=str).set_index("case_id")
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
        same = {key: _read(run).get(key) for key in self.identity} == self.identity
        if not (same and spool.is_file()):
            spool.unlink(missing_ok=True)
            return {}
        lines = [line.split(",") for line in spool.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = {r[0]: {"case_id": r[0], "logit": r[1], "probability": r[2].strip()} for r in lines if r[0] in known}
        write_atomically(spool, "".join(f"{','.join(row.values())}\n" for row in rows.values()))
        return rows

    def _write_run(self, status: str, *, errors: int = 0, reason: str = "", **brand: Any) -> None:
        counts = {
            "accepted": len(self.manifest.accepted),
            "refused": len(self.manifest.refused),
            "predicted": len(self.rows),
            "errors": errors,
        }
        run = {"status": status, "reason": reason, **self.identity, **brand, "counts": counts}
        write_run_json(self.path, run | {"notes": self.notes, "versions": package_versions()})


def check_operating_point(point: Mapping[str, Any], weights_sha256: str, transforms_sha256: str) -> None:
    """Refuses a threshold that was chosen for another model: what is called positive would mean something else.

    Raises:
        ValueError: something is missing in the operating point, or it was changed by hand.
        WeightsError: it belongs to another model; says which hash differs, and what to do.
    """
    if missing := [name for name in ("id", "threshold", "weights_sha256") if name not in point]:
        raise ValueError(f"operating_point.json has no {', '.join(missing)}; cnnprimer lock writes operating points")
    if point.get("sha256", digest_of(point)) != digest_of(point):
        raise ValueError("operating_point.json was changed by hand (its SHA-256 tells); lock it again: cnnprimer lock")
    if point["weights_sha256"] != weights_sha256:
        raise WeightsError(
            f"operating_point.json holds the threshold of other weights ({point['weights_sha256'][:8]}, in use are "
            f"{weights_sha256[:8]}); use the weights that came with it, or lock a threshold for these on validation "
            "patients: cnnprimer lock"
        )
    if point.get("transforms_sha256", transforms_sha256) != transforms_sha256:
        raise WeightsError(
            "operating_point.json holds the threshold of another preprocessing "
            f"({point['transforms_sha256'][:8]}, in use is {transforms_sha256[:8]}); use the bundle's own "
            "preprocessing and image size, or lock a threshold for this one on validation patients: cnnprimer lock"
        )


def package_versions() -> dict[str, str]:
    """What computed: the versions of this package, of those that it stands on, and of Python."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def with_manifest(predictions: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """The predictions with what the manifest knows of each case beside: sex, age band, manufacturer, size and so on."""
    others = [name for name in manifest.columns if name not in predictions.columns]
    return predictions.merge(manifest[["case_id", *others]], on="case_id", how="left", validate="one_to_one")


def write_run_json(directory: Path, run: Mapping[str, Any]) -> None:
    """Writes `run.json`, with the SHA-256 of the tables of a complete run and of its own other entries."""
    run = {key: value for key, value in run.items() if key not in ("files", "sha256")}
    if run["status"] == "complete":
        present = [name for name in (*TABLES, *FURTHER) if (directory / name).is_file()]
        run["files"] = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in present}
    write_atomically(directory / "run.json", _json(run | {"sha256": digest_of(run)}))


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 over what stands in a JSON object but for its own `sha256`, whatever the order and spacing."""
    told = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def mark_ended(directory: Path, status: str, reason: str) -> None:
    """Writes into the `run.json` of a run whose process is gone how it ended: `failed` or `killed`, and why."""
    file = directory / "run.json"
    write_run_json(directory, json.loads(file.read_text()) | {"status": status, "reason": reason})


def describe_sha256(transforms: Compose) -> str:
    """SHA-256 over the classes and settings of the transforms, in order: equal when the preprocessing is equal."""
    text = json.dumps([_describe(transform) for transform in transforms.transforms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or half of one."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
