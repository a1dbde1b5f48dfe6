# SPDX-License-Identifier: Apache-2.0
"""Who trains, who validates, and what could be scored without looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor

from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.header import DicomRefused
from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.run_directory import write_atomically

Case = dict[str, Any]
SIZE = ["original_width", "original_height"]


def patient_split(
    dataset_dir: str | Path,
    label_map: Mapping[str, int],
    folds: int = 10,
    seed: int = 0,
    labels: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> dict[str, list[Case]]:
    """Training, validation and test cases of an image folder or a PACS export, no patient in two of them.

    Args:
        dataset_dir: folder with a `manifest.csv` of `path, label, patient_id, split`, where `split` is `test` for
            the images to keep away from training; with `labels`, any export that `index_export` takes.
        label_map: word in the `label` column to class.
        folds: one part in `folds` of the training patients validates, stratified by label.
        seed: of the choice of patients.
        labels: table of an export's labels, see `monai_cnnprimer.dicom.labels.read_labels`. Two parts in `folds` of the
            patients are then kept away from training as the test part.
        output_dir: with `labels`, gets the export's `manifest.csv`, `refused.csv` and `errors.csv` (headers fit, pixels
            do not).

    Returns:
        `train`, `validation` and `test`: lists of `image` (path), `label` (class), `patient_id`, and the original
        size where it is known.
        Training images of a patient who also has test images are left out.

    Raises:
        ValueError: the manifest lacks a column, has a label that `label_map` does not know, or there are too few
            patients of a class to split.
    """
    if labels is None:
        table = _listed(Path(dataset_dir), label_map)
    else:
        table = _exported(dataset_dir, labels, label_map, output_dir)
        kept_away = _fold(table, max(2, folds // 2), seed)
        table["split"] = np.where(table.index.isin(kept_away), "test", "train")
    test = table[table["split"] == "test"]
    rest = table[(table["split"] != "test") & ~table["patient_id"].isin(test["patient_id"])].reset_index(drop=True)
    validates = rest.index.isin(_fold(rest, folds, seed))
    parts = {"train": rest[~validates], "validation": rest[validates], "test": test}
    columns = ["image", "label", "patient_id", *(column for column in SIZE if column in table)]
    rows = {name: part[columns].to_dict("records") for name, part in parts.items()}
    return {name: [{str(key): value for key, value in row.items()} for row in part] for name, part in rows.items()}


def _fold(table: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Row numbers of one part in `folds`, by patient, stratified by label."""
    patients = table.groupby("label")["patient_id"].nunique()
    if len(patients) < 2 or patients.min() < folds:
        raise ValueError(
            f"patients by class {patients.to_dict()}: training needs two classes and {folds} patients or more of each, "
            "so that some can validate"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return next(splitter.split(table, table["label"], groups=table["patient_id"]))[1]


def _listed(folder: Path, label_map: Mapping[str, int]) -> pd.DataFrame:
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    missing = {"path", "label", "patient_id", "split"} - set(table.columns)
    if missing:
        raise ValueError(f"manifest.csv lacks {sorted(missing)}; training needs path, label, patient_id and split")
    unknown = set(table["label"]) - set(label_map)
    if unknown:
        raise ValueError(f"manifest.csv has labels {sorted(map(str, unknown))}; label_map knows {sorted(label_map)}")
    return table.assign(image=[str(folder / path) for path in table["path"]], label=table["label"].map(label_map))


def _exported(
    export: str | Path, labels: str | Path, label_map: Mapping[str, int], output_dir: str | Path | None
) -> pd.DataFrame:
    """The labelled images of an export that can be read; the others are counted in its tables, none ends a training."""
    manifest = index_export(export, labels=labels, label_map=label_map, output=output_dir)
    accepted = manifest.accepted.set_index("case_id")
    rows, errors = list[Case](), list[Case]()
    for case in manifest.cases():
        if case["label"] is None:
            continue
        try:
            read_radiograph(Path(case["image"]))
        except DicomRefused as refused:
            errors.append({"case_id": case["case_id"], "reason": refused.reason, "attribute": refused.attribute})
            continue
        size = dict(zip(SIZE, accepted.loc[case["case_id"], ["columns", "rows"]].tolist(), strict=True))
        rows.append({"image": case["image"], "label": case["label"], "patient_id": case["patient_key"], **size})
    if output_dir is not None:
        table = pd.DataFrame(errors, columns=["case_id", "reason", "attribute"])
        write_atomically(Path(output_dir) / "errors.csv", table.to_csv(index=False, lineterminator="\n"))
    if not rows:
        raise ValueError("no image of the export has a label and can be read; refused.csv and errors.csv say why")
    return pd.DataFrame(rows)


def balanced_weights(cases: Sequence[Case]) -> Tensor:
    """Weights of the classes `(K,)` under which each contributes the same to the loss; their mean over cases is 1."""
    counts = torch.bincount(torch.tensor([case["label"] for case in cases]))
    return counts.sum() / (len(counts) * counts)


def size_only(train: Sequence[Case], test: Sequence[Case]) -> np.ndarray:
    """Probability of the finding `(n,)` from nothing but the original width and height of the image.

    A logistic regression on both, their quotient, and the products of these, fitted on `train`: what a model could
    score without looking.
    """
    features = [np.array([[float(case[c]) for c in SIZE] for case in cases]) for cases in (train, test)]
    known, asked = (np.column_stack([np.log(x), x[:, 0] / x[:, 1]]) for x in features)
    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=1000)).fit(
        known, [case["label"] for case in train]
    )
    return model.predict_proba(asked)[:, 1]
