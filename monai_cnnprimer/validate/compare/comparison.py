# SPDX-License-Identifier: Apache-2.0
"""Two runs over the same cases: figures, agreement, and whether the same answer has the same reason."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.dicom.masks import RegionMasks
from monai_cnnprimer.run_directory import PACKAGES, write_atomically, write_run_json
from monai_cnnprimer.validate.compare.agreement import agreement
from monai_cnnprimer.validate.compare.bins import Bins, bins_of
from monai_cnnprimer.validate.compare.differences import METRICS, figures_by_bin, paired_figures
from monai_cnnprimer.validate.compare.drawing import draw_figures
from monai_cnnprimer.validate.compare.export import Export, PathLike, column_of_table
from monai_cnnprimer.validate.compare.maps import (
    LayerMaps,
    SameAnswer,
    masses_from_masks,
    masses_from_tables,
    read_layer,
    same_answer,
)
from monai_cnnprimer.validate.compare.pair import RunPair, pair_runs
from monai_cnnprimer.validate.compare.tables import case_table, difference_table, headline
from monai_cnnprimer.validate.rounding import to_places

KIND = "comparison"
_WRITTEN = ("comparison.json", "cases.csv", "differences.csv", "metrics.json", "run.json", "comparison.html")


@dataclass(frozen=True)
class Settings:
    """How two runs are compared.

    Attributes:
        by: a column of the manifest, or of `labels`, by which figures are also given; None: only over all cases.
        edges: of the bins of a numeric column; None: quarters of the cases.
        few: bins with fewer cases get no figures but are marked.
        labels: CSV with `by` and an identifier of the cases.
        dataset_dir: the export of both runs, from which images are drawn that neither run directory holds.
        masks: CSV of masks as for explain.yaml; needs `dataset_dir`.
        bundle: folder of the bundle of run A, where it is none of this project's own.
        key: key of the pseudonyms, where it is not the user's usual one.
        common: compare the cases that both runs have, and brand the result.
        layers: whose maps are compared; None is the last one of a run.
        names: of both models; None tells them by bundle and weights.
        images: how many cases a figure shows at most.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """

    by: str | None = None
    edges: Sequence[float] | None = None
    few: int = 10
    labels: PathLike | None = None
    dataset_dir: PathLike | None = None
    masks: PathLike | None = None
    bundle: PathLike | None = None
    key: bytes | PathLike | None = None
    common: bool = False
    layers: tuple[str | None, str | None] = (None, None)
    names: tuple[str | None, str | None] = (None, None)
    images: int = 12
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found: `result` is `comparison.json`, `missing` what could not be told, and why."""

    result: dict[str, Any]
    missing: tuple[str, ...]


def compare_runs(run_a: PathLike, run_b: PathLike, output: PathLike, settings: Settings | None = None) -> Comparison:
    """Compares two run directories over the same cases and writes what it finds to a folder.

    The folder gets `comparison.json`, `cases.csv` (one row a case), `differences.csv` (one row a bin and figure) and
    `figures/`; `run.json` and `metrics.json` let `sync` take it to MLflow. The same runs give the same bytes.

    Args:
        run_a: run directory of the first model.
        run_b: run directory of the second; every difference is B minus A.
        output: folder; made if missing. What an earlier comparison wrote there is replaced.
        settings: by default those of `Settings`.

    Raises:
        FileNotFoundError: a folder or table is not there.
        ValueError: the runs cannot be compared, a column or layer is not there, or `output` holds something else.
    """
    chosen = settings or Settings()
    folder = Path(output).expanduser()
    _check(folder, chosen)
    pair = pair_runs(os.fspath(run_a), os.fspath(run_b), common=chosen.common, names=chosen.names)
    export = None if chosen.dataset_dir is None else Export(chosen.dataset_dir, pair.a, chosen.key)
    bins, notes = _bins(pair, export, chosen)
    maps = tuple(read_layer(run, layer) for run, layer in zip((pair.a, pair.b), chosen.layers, strict=True))
    regions = _regions(pair, maps[0], export, chosen)
    found = _maps(pair, maps, regions, chosen)
    result = _result(pair, bins, found, maps, notes, chosen)
    _clear(folder)
    result["shown"] = draw_figures(folder, pair, result, maps, found, export, chosen.bundle, regions, chosen.images)
    _write(folder, pair, result, bins, found)
    return Comparison(result, tuple(result["missing"]))


def _check(folder: Path, settings: Settings) -> None:
    if settings.masks is not None and settings.dataset_dir is None:
        raise ValueError("masks are fitted to the images as the network saw them: give --dataset-dir too")
    if settings.edges is not None and settings.by is None:
        raise ValueError("edges of bins without a column to cut: give --by too")
    run = folder / "run.json"
    if run.is_file() and json.loads(run.read_text()).get("kind") != KIND:
        raise ValueError(f"{folder} holds a run, not a comparison: choose another output folder")


def _bins(pair: RunPair, export: Export | None, settings: Settings) -> tuple[Bins | None, list[str]]:
    """The bins of the labelled cases, and notes on the table that they come from."""
    if settings.by is None:
        return None, []
    notes: list[str] = []
    table = pair.table
    if settings.labels is not None:
        values, notes = column_of_table(settings.labels, settings.by, table, settings.key, export)
    elif settings.by in table.columns:
        values = table[settings.by]
    else:
        raise ValueError(
            f"the runs have no column {settings.by!r}: choose among {', '.join(_columns(table))}, or give a table that "
            "has it with --labels"
        )
    labelled = pair.labelled
    if not len(labelled):
        return None, notes
    return bins_of(values[labelled.index], labelled["label"].astype(int), settings.by, settings.edges), notes


def _columns(table: pd.DataFrame) -> list[str]:
    """Columns that can group cases: those that hold more than one value but no pseudonym or hash."""
    names = [name for name in table.columns if not name.endswith(("_a", "_b", "_key", "_id", "sha256"))]
    return [name for name in names if table[name].nunique() > 1 and name not in ("label", "file")]


def _regions(pair: RunPair, maps: LayerMaps | None, export: Export | None, settings: Settings) -> RegionMasks | None:
    """The regions at the input of A's network, where there is a table of masks."""
    if export is None or maps is None or settings.masks is None:
        return None
    return export.regions(settings.masks, export.preprocessing(pair.a, maps.stored.image_size, settings.bundle))


def _maps(
    pair: RunPair, maps: tuple[LayerMaps | None, ...], regions: RegionMasks | None, settings: Settings
) -> SameAnswer | None:
    a, b = maps
    if a is None or b is None:
        return None
    labelled = pair.labelled
    right = labelled[(labelled["predicted_a"] == labelled["label"]) & (labelled["predicted_b"] == labelled["label"])]

    def masses(case_ids: Sequence[str]) -> pd.DataFrame:
        if regions is None:
            return masses_from_tables(pair.a, pair.b, (a.stored.layer, b.stored.layer), case_ids)
        return masses_from_masks(a, b, regions, case_ids)

    return same_answer(a, b, right, masses, settings.resamples, settings.seed)


def _result(
    pair: RunPair,
    bins: Bins | None,
    found: SameAnswer | None,
    maps: tuple[LayerMaps | None, ...],
    notes: list[str],
    settings: Settings,
) -> dict[str, Any]:
    labelled = pair.labelled.astype({"label": int})
    positives = int((labelled["label"] == 1).sum())
    cases = {
        "n": len(pair.table),
        "patients": pair.table["patient_key"].nunique(),
        "labelled": len(labelled),
        "positives": positives,
        "negatives": len(labelled) - positives,
        "only_in_a": pair.only_a,
        "only_in_b": pair.only_b,
    }
    missing = _missing(cases, maps)
    said = list(pair.notes) + notes
    if cases["patients"] < cases["n"]:
        several = f"{cases['n']} cases are of {cases['patients']} patients"
        said.append(f"{several}; DeLong's and McNemar's tests take cases as independent")
    scarce = min(positives, len(labelled) - positives)
    if 0 < scarce < settings.few:
        said.append(f"only {scarce} labelled cases are {'with' if positives == scarce else 'without'} a finding")
    by = None
    if bins is not None and len(labelled):
        by = {
            "column": bins.column,
            "made_of": bins.kind,
            "few": settings.few,
            "of_findings": bins.of_findings,
            "not_stated": bins.not_stated,
            "outside": bins.outside,
            "rows": figures_by_bin(labelled, bins, settings.few, settings.resamples, settings.seed),
        }
    return to_places(
        {
            "kind": KIND,
            "brand": list(pair.brand),
            "difference": "B minus A",
            "runs": {"a": _run(pair, 0), "b": _run(pair, 1)},
            "cases": cases,
            "metrics": paired_figures(labelled, 0, settings.resamples, settings.seed) if len(labelled) else None,
            "by": by,
            "outcomes": _outcomes(labelled),
            "agreement": agreement(pair.table, settings.resamples, settings.seed),
            "maps": None if found is None else found.result,
            "missing": missing,
            "notes": said,
            "seed": settings.seed,
            "resamples": settings.resamples,
        }
    )


def _missing(cases: dict[str, int], maps: tuple[LayerMaps | None, ...]) -> list[str]:
    """What the comparison cannot tell, and what to do."""
    found = []
    if not cases["labelled"]:
        found.append("no case has a label: nothing is known of who is right; evaluate the runs with labels")
    elif not cases["positives"] or not cases["negatives"]:
        word = "without" if not cases["positives"] else "with"
        found.append(f"all {cases['labelled']} labelled cases are {word} a finding: there is no AUROC")
    for name, of in zip("AB", maps, strict=True):
        if of is None:
            found.append(f"run {name} kept no maps: evaluate it with configs/explain.yaml")
    return found


def _run(pair: RunPair, which: int) -> dict[str, Any]:
    run = (pair.a, pair.b)[which]
    told = ("bundle", "bundle_version", "site", "threshold", "threshold_id", "weights_sha256", "transforms_sha256")
    facts = {name: run.run[name] for name in told}
    return {"name": pair.names[which], **facts, "retuned": run.retuned, "cases": len(run.predictions)}


def _outcomes(labelled: pd.DataFrame) -> dict[str, int]:
    a, b = ((labelled[f"predicted_{model}"] == labelled["label"]) for model in "ab")
    return {
        "both_right": int((a & b).sum()),
        "only_a_right": int((a & ~b).sum()),
        "only_b_right": int((~a & b).sum()),
        "both_wrong": int((~a & ~b).sum()),
    }


def _clear(folder: Path) -> None:
    """Takes away what an earlier comparison wrote."""
    for stale in (*(folder / name for name in _WRITTEN), *folder.glob("figures/compare_*.png")):
        stale.unlink(missing_ok=True)


def _write(folder: Path, pair: RunPair, result: dict[str, Any], bins: Bins | None, found: SameAnswer | None) -> None:
    write_atomically(folder / "cases.csv", _csv(case_table(pair, bins, None if found is None else found.cases)))
    write_atomically(folder / "differences.csv", _csv(difference_table(result, METRICS)))
    write_atomically(folder / "comparison.json", _json(result))
    write_atomically(folder / "metrics.json", _json(headline(result)))
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    run = {"status": "complete", "reason": "", "kind": KIND, "site": pair.a.site}
    run |= {
        "bundle": f"{pair.names[0]} against {pair.names[1]}",
        "brand": "; ".join(pair.brand),
        "seed": result["seed"],
    }
    write_run_json(folder, run | {"counts": result["cases"], "notes": result["notes"], "versions": versions})


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
