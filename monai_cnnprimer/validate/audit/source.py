# SPDX-License-Identifier: Apache-2.0
"""What is audited: the settings, the bundle with its export, and which of the cases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.validate.audit.bundle import AuditedBundle
from monai_cnnprimer.validate.runs import Run, read_run

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Settings:
    """How a bundle is audited.

    Attributes:
        dataset_dir: the export, where a run directory is audited.
        labels: CSV of labels.
        masks: CSV of masks, as for configs/explain.yaml; without it only what needs no lungs is done.
        site: pseudonym of the site; a run directory has its own.
        split: only those rows of an image folder's `manifest.csv`.
        key: file with the key of the pseudonyms.
        gate: file of limits; None takes `configs/gate.yaml`.
        operating_point: file; None takes the bundle's own, or that of the run.
        cases: at most so many, whole patients drawn by the seed; 0 takes all.
        explained: of how many cases with masks Grad-CAM is measured; 0 leaves it out.
        drawn: cases drawn of each intervention.
        resamples: of the bootstrap.
        seed: of interventions, choice and bootstrap.
        options: of the bundle's configuration, such as `batch_size`.
    """

    dataset_dir: PathLike | None = None
    labels: PathLike | None = None
    masks: PathLike | None = None
    site: str = "site"
    split: str | None = None
    key: PathLike | None = None
    gate: PathLike | None = None
    operating_point: PathLike | None = None
    cases: int = 200
    explained: int = 24
    drawn: int = 2
    resamples: int = 2000
    seed: int = 0
    options: Mapping[str, Any] | None = None


def run_of(source: Path, settings: Settings) -> Run | None:
    """The run directory that is audited; None for an export.

    Raises:
        ValueError: no export was given beside it, it is not whole, or it chose its own threshold.
    """
    if not (source / "run.json").is_file():
        return None
    if settings.dataset_dir is None:
        raise ValueError(
            f"{source} is a run directory, which holds no images: give its export too, --dataset-dir EXPORT"
        )
    run = read_run(source)
    if run.retuned:
        raise ValueError("this run's threshold was chosen on its own cases; audit a run with the locked one")
    return run


def open_bundle(
    source: Path, bundle: Path, folder: Path, settings: Settings, run: Run | None, progress: bool
) -> AuditedBundle:
    """The bundle, told of the export; of a run directory it must be the one that the run was made with.

    Raises:
        FileNotFoundError: there is no such bundle or operating point.
        ValueError: the run was made with another model.
    """
    export = source if run is None else Path(str(settings.dataset_dir))
    told = {"dataset_dir": str(export), "output_dir": str(folder), "site": settings.site if run is None else run.site}
    paths = {"labels": settings.labels, "masks": settings.masks, "key": settings.key}
    told |= {name: str(path) for name, path in paths.items() if path is not None}
    options: dict[str, Any] = told | {"progress": progress} | dict(settings.options or {})
    if settings.split is not None:
        options["split"] = settings.split
    point = None if settings.operating_point is None else Path(settings.operating_point)
    if point is None and run is not None:
        point = run.path / "operating_point.json"
    model = AuditedBundle(bundle, point, options)
    for name in ("weights_sha256", "transforms_sha256"):
        if run is not None and run.run[name] != model.identity[name]:
            raise ValueError(f"the run was made with another model ({name} differs): give the bundle of the run")
    return model


def chosen_cases(manifest: Manifest, run: Run | None, settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """The cases to audit, in order, and notes; whole patients drawn by the seed where there are more than wanted.

    Raises:
        ValueError: the export holds none, or not those of the run.
    """
    cases = manifest.cases()
    notes: list[str] = []
    if run is not None:
        labels = dict(zip(run.predictions["case_id"], run.predictions["label"], strict=True))
        missing = len(labels.keys() - {case["case_id"] for case in cases})
        if missing:
            raise ValueError(
                f"{missing} of {len(labels)} cases of the run are not in this export: give the one that the run was "
                "made on, and the same key of pseudonyms"
            )
        cases = [case for case in cases if case["case_id"] in labels]
        if settings.labels is None:
            known = {name: None if pd.isna(label) else int(label) for name, label in labels.items()}
            cases = [case | {"label": known[case["case_id"]]} for case in cases]
    if not cases:
        raise ValueError("the export holds no radiograph that can be evaluated; refused.csv says why for each file")
    if not settings.cases or len(cases) <= settings.cases:
        return cases, notes
    people = sorted({case["patient_key"] for case in cases})
    order = {
        people[place]: turn for turn, place in enumerate(np.random.default_rng(settings.seed).permutation(len(people)))
    }
    drawn = sorted(cases, key=lambda case: (order[case["patient_key"]], case["case_id"]))
    last = order[drawn[settings.cases - 1]["patient_key"]]
    kept = {case["case_id"] for case in drawn if order[case["patient_key"]] <= last}
    notes.append(f"{len(kept)} of {len(cases)} cases were audited, whole patients drawn by the seed")
    return [case for case in cases if case["case_id"] in kept], notes
