# SPDX-License-Identifier: Apache-2.0
"""Run directories for tests of the report, written by code: as a run leaves them, with invented predictions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_cnnprimer.handlers.maps import nifti
from monai_cnnprimer.run_directory import PREDICTION_COLUMNS, with_manifest, write_run_json
from monai_cnnprimer.validate.summary import summary

WEIGHTS, TRANSFORMS = "a1" * 32, "b2" * 32
THRESHOLD = 0.3
POINT = {"id": "youden-a1a1a1a1", "threshold": THRESHOLD, "weights_sha256": WEIGHTS, "criterion": "youden", "n": 400}
MANIFEST = ("case_id", "patient_key", "sha256", "site", "label", "view", "sex", "age_band", "manufacturer", "rows",
            "columns", "pixel_spacing_mm", "spacing_source")  # fmt: skip


def write_run(
    folder: Path, n: int = 60, signal: float = 1.5, positive: float = 0.5, labelled: float = 1.0, maps: int = 0,
    seed: int = 0, side: int = 64, retuned: bool = False, status: str = "complete", **identity: Any,
) -> Path:  # fmt: skip
    """Writes a run of `n` cases whose logits of both classes are `signal` standard deviations apart.

    Args:
        folder: its name is the site's.
        positive: share of the cases that have the finding.
        labelled: share of the cases that have a label.
        maps: how many cases have Grad-CAM.
        side: pixels of a side of the images with Grad-CAM.
        retuned: at a threshold of the site's own.
        status: of the run; one that is not complete has no predictions.
        identity: entries of `run.json` to replace.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, *folder.name.encode()])
    predictions, manifest = _tables(folder.name, n, signal, positive, labelled, random)
    threshold = 0.6 if retuned else THRESHOLD
    predictions["predicted"] = (predictions["probability"] >= threshold).astype(int)
    refused = pd.DataFrame({"reason": ["a lateral view"] * 3 + ["no pixel data"], "attribute": ["ViewPosition"] * 4})
    run = {"status": status, "reason": "" if status == "complete" else "Terminated", "bundle": "chest_test"}
    run |= {"bundle_version": "1.2.3", "site": folder.name, "threshold": threshold, "threshold_id": POINT["id"]}
    run |= {
        "retuned": retuned,
        "weights_sha256": WEIGHTS,
        "transforms_sha256": TRANSFORMS,
        "manifest_sha256": "c3" * 32,
    }
    if retuned:
        run |= {"threshold_id": "own-1", "locked": {"threshold_id": POINT["id"], "threshold": THRESHOLD}}
    run |= {"key_id": "0011223344556677", "seed": 0, "counts": {}, "notes": ["1 label is of no case"]}
    run |= {"versions": {"monai_cnnprimer": "0.1.0", "torch": "2.13.0"}, **identity}
    _csv(manifest, folder / "manifest.csv")
    _csv(refused, folder / "refused.csv")
    if status == "complete":
        _csv(predictions[[name for name in PREDICTION_COLUMNS if name in predictions]], folder / "predictions.csv")
        _csv(pd.DataFrame({"case_id": ["x"], "reason": ["pixels end early"], "attribute": [""]}), folder / "errors.csv")
        figures = summary(with_manifest(predictions, manifest), resamples=50, trained_ages=["18-39"])
        (folder / "metrics.json").write_text(json.dumps(figures))
        (folder / "operating_point.json").write_text(json.dumps(POINT))
        if maps:
            _write_maps(folder, predictions, maps, random, side)
    write_run_json(folder, run)
    return folder


def _tables(site, n, signal, positive, labelled, random):
    label = (np.arange(n) < round(positive * n)).astype(int)
    logit = random.normal(size=n) + signal * (label - 0.5)
    cases = [hashlib.sha256(f"{site}{number}".encode()).hexdigest()[:16] for number in range(n)]
    known = pd.array(np.where(random.random(n) < labelled, label, -1), dtype="Int64")
    known[known == -1] = pd.NA
    manifest = pd.DataFrame({"case_id": cases, "patient_key": [f"{site}-{number // 2}" for number in range(n)]})
    manifest = manifest.assign(
        sha256=[f"{case}{case}" * 2 for case in cases], site=site, label=known, view=random.choice(["PA", "AP"], n)
    )
    manifest = manifest.assign(sex=random.choice(["F", "M"], n), age_band=random.choice(["18-39", "40-64"], n))
    manifest = manifest.assign(manufacturer=random.choice(["Alder", "Beech"], n), rows=512, columns=512)
    manifest = manifest.assign(pixel_spacing_mm=0.75, spacing_source="calibrated")[list(MANIFEST)]
    facts = ["case_id", "patient_key", "site", "view", "label", "pixel_spacing_mm", "spacing_source"]
    scores = pd.DataFrame({"case_id": cases, "logit": logit, "probability": 1 / (1 + np.exp(-logit))})
    return manifest[facts].merge(scores, on="case_id").sort_values("case_id", ignore_index=True), manifest


def _write_maps(folder: Path, predictions: pd.DataFrame, count: int, random: np.random.Generator, side: int) -> None:
    """The most confident errors, then others by turns; maps of random blobs."""
    wrong = predictions["label"].notna() & (predictions["label"] != predictions["predicted"])
    order = predictions.assign(sure=predictions["logit"].abs()).sort_values(["sure", "case_id"], ascending=False)
    errors = order[wrong.loc[order.index]].head(count // 2)
    others = order.drop(errors.index).head(count - len(errors))
    turns = ("least confident", "most confident", "random")
    chosen = [(row, "error") for row in errors.itertuples()]
    chosen += [(row, turns[place % 3]) for place, row in enumerate(others.itertuples())]
    rows = []
    for row, why in chosen:
        sure = row.probability if row.predicted else 1 - row.probability
        rows.append({"case_id": row.case_id, "chosen_as": why, "label": row.label, "predicted": row.predicted})
        rows[-1] |= {"probability": sure, "explained": row.predicted, "layer": "layer4", "fit": "fit"}
        _write_map(folder / "maps", row.case_id, random, side)
    _csv(pd.DataFrame(rows), folder / "gradcam.csv")
    figure = {"value": 0.1, "low": -0.1, "high": 0.3, "n": 8}
    layer = {"fit": "fit", "fit_reason": "with random weights the maps change", "randomised_correlation": figure}
    layer |= {"lung_pointing": {"value": 0.75, "low": 0.4, "high": 0.93, "n": 8}, "insertion": figure}
    summed = {"chosen": len(rows), "seen": len(predictions), "notes": [], "layer4": layer}
    (folder / "gradcam.json").write_text(json.dumps({"gradcam": summed}))


def _write_map(maps: Path, case: str, random: np.random.Generator, side: int) -> None:
    """Two dark lungs on a lighter body, and a blob for a map."""
    maps.mkdir(exist_ok=True)
    y, x = np.mgrid[:side, :side] / side
    body = np.exp(-(((x - 0.5) / 0.38) ** 6) - ((y - 0.55) / 0.48) ** 6)
    lungs = sum(np.exp(-(((x - middle) / 0.13) ** 4) - ((y - 0.5) / 0.3) ** 4) for middle in (0.3, 0.7))
    image = 0.8 * body - 0.55 * lungs + 0.03 * random.normal(size=(side, side))
    place = random.uniform(0.25, 0.75, 2)
    heat = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 0.02) - 0.2
    (maps / f"{case}.nii.gz").write_bytes(nifti(image.astype(np.float32), None, "input"))
    (maps / f"{case}_layer4.nii.gz").write_bytes(nifti(heat.astype(np.float32), None, "map"))


def _csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")
