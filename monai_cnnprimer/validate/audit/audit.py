# SPDX-License-Identifier: Apache-2.0
"""An audit from beginning to end: read, intervene, ask, judge, and leave it all in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monai_cnnprimer.atomic import lock, unlock, write_atomically
from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.figures.page import FOOTER
from monai_cnnprimer.run_directory import package_versions, write_run_json
from monai_cnnprimer.validate.audit.attribution import Explained, attribution
from monai_cnnprimer.validate.audit.bundle import AuditedBundle
from monai_cnnprimer.validate.audit.drawing import draw_figures
from monai_cnnprimer.validate.audit.effects import judge, lungs
from monai_cnnprimer.validate.audit.limits import Gate, read_gate
from monai_cnnprimer.validate.audit.measuring import Measured, measure
from monai_cnnprimer.validate.audit.source import PathLike, Settings, chosen_cases, open_bundle, run_of
from monai_cnnprimer.validate.rounding import to_places
from monai_cnnprimer.validate.runs import Run

KIND = "audit"
EXIT_CODES = {"pass": 0, "fail": 3, "undecided": 4}
_WRITTEN = ("gate.json", "gate.html", "gate_cases.csv", "errors.csv", "metrics.json", "run.json")
_IDENTITY = ("bundle", "bundle_version", "weights_sha256", "transforms_sha256", "threshold", "threshold_id")
_DIGITS = 6


def audit(
    source: PathLike,
    bundle: PathLike,
    output: PathLike,
    settings: Settings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Audits a bundle on an export, or on the cases of a run directory, and writes what it finds.

    The folder gets `gate.json`, `gate_cases.csv` (one row a case and intervention), `figures/gate_*.png`,
    `manifest.csv`, `refused.csv`, `errors.csv`; `run.json` and `metrics.json` let `sync` take it to MLflow with the tag
    `gate.shortcut`. Of a run directory the verdict also enters the `run.json`. The same input gives the same bytes.

    Args:
        source: an export (folder, DICOMDIR, zip), or a run directory, which needs `Settings.dataset_dir`.
        bundle: name or folder.
        output: folder; what an earlier audit wrote there is replaced.
        settings: by default those of `Settings`.
        console: where a bar is shown; None shows none.

    Returns:
        `gate.json`.

    Raises:
        FileNotFoundError: an export, bundle or table is not there.
        ValueError: the run is of another model, nothing can be read, or `output` holds something else.
    """
    chosen = settings or Settings()
    folder, gate = Path(output).expanduser(), read_gate(chosen.gate)
    run = run_of(Path(source).expanduser(), chosen)
    _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    try:
        _clear(folder)
        result = _audited(Path(source), Path(bundle), folder, chosen, gate, run, console)
    finally:
        unlock(folder)
    if run is not None:
        lock(run.path)
        write_run_json(run.path, run.run | {"gate_shortcut": result["verdict"]})
        unlock(run.path)
    return result


def _audited(
    source: Path, bundle: Path, folder: Path, settings: Settings, gate: Gate, run: Run | None, console: Console | None
) -> dict[str, Any]:
    model = open_bundle(source, bundle, folder, settings, run, console is not None)
    manifest = model.index()
    cases, notes = chosen_cases(manifest, run, settings)
    regions = None if settings.masks is None else model.full_masks(settings.masks, manifest, settings.key)
    errors: list[dict[str, str]] = []
    columns = (TextColumn("audit"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as bar:
        task = bar.add_task("audit", total=len(cases))
        read = model.cases(cases, regions, errors)
        measured = measure(read, model.logits, gate.names, settings.seed, settings.drawn, lambda: bar.advance(task))
    unread = pd.DataFrame(errors, columns=["case_id", "reason", "attribute"])
    write_atomically(folder / "errors.csv", str(unread.to_csv(index=False, lineterminator="\n")))
    if measured.table.empty:
        raise ValueError(f"none of the {len(cases)} images could be read; refused.csv and errors.csv say why")
    # As gate_cases.csv holds them, so that whoever judges the file again comes to the same figures.
    table = measured.table.round({"logit": _DIGITS, "changed": _DIGITS, "control": _DIGITS, "share_changed": _DIGITS})
    measured = Measured(table, measured.furthest)
    result = judge(table, model.threshold, gate, settings.resamples, settings.seed)
    result["lungs"] = lungs(table, settings.resamples, settings.seed)
    result["attribution"] = _attribution(model, manifest, cases, settings)
    result["missing"] = _missing(result, settings)
    result["notes"] = [*manifest.notes, *notes, *([] if regions is None else regions.notes)]
    result["notes"] += [f"{len(errors)} images could not be read: errors.csv says why"] if errors else []
    result |= _about(model, manifest, table, gate, settings)
    result["shown"] = draw_figures(folder, result, measured.furthest)
    result = to_places(result, _DIGITS)
    _write(folder, table, result)
    return result


def _check(folder: Path) -> None:
    file = folder / "run.json"
    if file.is_file() and json.loads(file.read_text()).get("kind") != KIND:
        raise ValueError(f"{folder} holds a run, not an audit: choose another output folder")


def _clear(folder: Path) -> None:
    for stale in (*(folder / name for name in _WRITTEN), *folder.glob("figures/gate_*.png")):
        stale.unlink(missing_ok=True)


def _attribution(
    model: AuditedBundle, manifest: Manifest, cases: list[dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    if settings.masks is None:
        return {"missing": "no masks were given"}
    if not settings.explained:
        return {"missing": "it was not asked for"}
    regions = model.regions(settings.masks, manifest, settings.key)
    reader, explained = CaseDataset([], model.preprocessing), []
    for case in cases:
        masks = regions(case["case_id"]).masks
        item, refused = reader.read(case) if masks else ({}, None)
        if masks and refused is None:
            explained.append(Explained(case["case_id"], item["image"], masks))
        if len(explained) == settings.explained:
            break
    return attribution(model.network, model.layers, explained, settings.seed)


def _missing(result: Mapping[str, Any], settings: Settings) -> list[str]:
    """What the audit cannot tell, and what to do."""
    said = []
    if settings.masks is None:
        said.append(
            "nothing was covered, since where the lungs are is not guessed: give their masks, --masks TABLE.csv"
        )
    if not any(entry["auroc"] for entry in result["interventions"].values()):
        said.append("no AUROC, since no labels of both classes are known: give them, --labels TABLE.csv")
    return said


def _about(
    model: AuditedBundle, manifest: Manifest, table: pd.DataFrame, gate: Gate, settings: Settings
) -> dict[str, Any]:
    cases = table.drop_duplicates("case_id")
    counts = {
        "audited": len(cases),
        "patients": int(cases["patient_key"].nunique()),
        "labelled": int(cases["label"].notna().sum()),
        "positives": int((cases["label"] == 1).sum()),
        "accepted": len(manifest.accepted),
        "refused": len(manifest.refused),
    }
    return {
        "kind": KIND,
        "use": FOOTER,
        "model": {name: model.identity[name] for name in _IDENTITY},
        "site": str(manifest.accepted["site"].iloc[0]),
        "manifest_sha256": manifest.sha256,
        "gate_sha256": gate.sha256,
        "counts": counts,
        "seed": settings.seed,
        "resamples": settings.resamples,
    }


def _write(folder: Path, table: pd.DataFrame, result: dict[str, Any]) -> None:
    text = table.to_csv(index=False, lineterminator="\n", float_format=f"%.{_DIGITS}f")
    write_atomically(folder / "gate_cases.csv", str(text))
    write_atomically(folder / "gate.json", _json(result))
    write_atomically(folder / "metrics.json", _json(_headline(result)))
    run = {"status": "complete", "reason": "", "kind": KIND, "site": result["site"], **result["model"]}
    run |= {"manifest_sha256": result["manifest_sha256"], "gate_shortcut": result["verdict"]}
    run |= {"seed": result["seed"], "counts": result["counts"], "notes": result["notes"]}
    write_run_json(folder, run | {"versions": package_versions()})


def _headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """For MLflow: of each intervention the shift, the flips and the AUROC after it."""
    told: dict[str, Any] = {"spread": result["spread"]}
    for name, entry in result["interventions"].items():
        figures = {"shift": entry["shift"], "flips": entry["flips"], "auroc_after": (entry["auroc"] or {}).get("after")}
        told[name] = {key: one | {"n": entry["n"]} for key, one in figures.items() if one and one["value"] is not None}
    return {name: value for name, value in told.items() if value != {}}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
