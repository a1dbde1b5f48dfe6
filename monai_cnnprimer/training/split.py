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

Case = dict[str, Any]
SIZE = ["original_width", "original_height"]


def patient_split(
    dataset_dir: str | Path, label_map: Mapping[str, int], folds: int = 10, seed: int = 0
) -> dict[str, list[Case]]:
    """Training, validation and test cases of an image folder, no patient in two of them.

    Args:
        dataset_dir: folder with a `manifest.csv` of `path, label, patient_id, split`, where `split` is `test` for
            the images to keep away from training.
        label_map: word in the `label` column to class.
        folds: one part in `folds` of the training patients validates, stratified by label.
        seed: of the choice of validation patients.

    Returns:
        `train`, `validation` and `test`: lists of `image` (path), `label` (class), `patient_id`, and the original
        size where the manifest has it.
        Training images of a patient who also has test images are left out.

    Raises:
        ValueError: the manifest lacks a column, or has a label that `label_map` does not know.
    """
    folder = Path(dataset_dir)
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    missing = {"path", "label", "patient_id", "split"} - set(table.columns)
    if missing:
        raise ValueError(f"manifest.csv lacks {sorted(missing)}; training needs path, label, patient_id and split")
    unknown = set(table["label"]) - set(label_map)
    if unknown:
        raise ValueError(f"manifest.csv has labels {sorted(map(str, unknown))}; label_map knows {sorted(label_map)}")
    table = table.assign(image=[str(folder / path) for path in table["path"]], label=table["label"].map(label_map))
    test = table[table["split"] == "test"]
    rest = table[(table["split"] != "test") & ~table["patient_id"].isin(test["patient_id"])].reset_index(drop=True)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    train, validation = next(splitter.split(rest, rest["label"], groups=rest["patient_id"]))
    parts = {"train": rest.iloc[train], "validation": rest.iloc[validation], "test": test}
    columns = ["image", "label", "patient_id", *(column for column in SIZE if column in table)]
    return {name: part[columns].to_dict("records") for name, part in parts.items()}


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
