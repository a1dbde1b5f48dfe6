# SPDX-License-Identifier: Apache-2.0
"""What training a bundle needs beyond MONAI: a split by patient, bfloat16 on the CPU, weights in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader, Dataset
from monai.inferers import SimpleInferer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor

from monai_cnnprimer.networks import load_weights, sha256_of_file
from monai_cnnprimer.validate.statistics import auroc, proportion, threshold_for

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


class AutocastInferer(SimpleInferer):
    """The forward pass in bfloat16 and channels-last, logits in float32; `amp=True` does nothing on a CPU.

    Args:
        enabled: False computes in float32.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits `(N, K)` in float32 of `inputs` `(N, 1, H, W)`."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.enabled):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            return super().__call__(inputs, network, *args, **kwargs).float()


def finish_training(
    network: torch.nn.Module,
    split: Mapping[str, list[Case]],
    transform: Callable[[Case], Case],
    output_dir: str | Path,
    device: torch.device,
) -> dict[str, Any]:
    """Writes what a bundle ships: weights in half precision, the threshold, and the figures of the model card.

    The threshold maximises Youden's index on the validation patients; the test images choose nothing. All figures are
    those of the half-precision file, loaded again, computed in float32.

    Args:
        network: the trained network.
        split: as `patient_split` gives it.
        transform: the preprocessing of the bundle, without augmentation.
        output_dir: gets `model.pt`, `operating_point.json`, `results.json`.
        device: where to compute.

    Returns:
        What stands in `results.json`.
    """
    folder = Path(output_dir)
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(state, folder / "model.pt")
    load_weights(network, folder / "model.pt").to(device).eval()
    probabilities = {name: predict(network, split[name], transform, device) for name in ("validation", "test")}
    labels = {name: np.array([case["label"] for case in split[name]]) for name in probabilities}
    threshold = round(threshold_for(labels["validation"], probabilities["validation"]), 4)
    sha256 = sha256_of_file(folder / "model.pt")
    point = {"id": f"youden-{sha256[:8]}", "threshold": threshold, "weights_sha256": sha256}
    point |= {
        "criterion": "Youden's index on validation patients",
        "n": len(split["validation"]),
    }
    results: dict[str, Any] = {"threshold": threshold, "weights_sha256": sha256}
    results |= {name: _figures(labels[name], probabilities[name], threshold) for name in probabilities}
    results["counts"] = {name: _counts(cases) for name, cases in split.items()}
    if _has_sizes(split["train"]):
        results["size_only"] = asdict(auroc(labels["test"], size_only(split["train"], split["test"])))
    for name, value in (("operating_point.json", point), ("results.json", results)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    return results


@torch.inference_mode()
def predict(
    network: torch.nn.Module, cases: Sequence[Case], transform: Callable[[Case], Case], device: torch.device
) -> np.ndarray:
    """Probability of the finding `(n,)` for each case, in float32."""
    loader = DataLoader(Dataset(cases, transform), batch_size=32)
    return np.concatenate([network(batch["image"].to(device)).softmax(1)[:, 1].cpu().numpy() for batch in loader])


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


def _has_sizes(cases: Sequence[Case]) -> bool:
    return all(column in cases[0] for column in SIZE)


def _figures(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    right = (probabilities >= threshold) == labels
    return {
        "auroc": asdict(auroc(labels, probabilities)),
        "accuracy": asdict(proportion(int(right.sum()), len(labels))),
        "sensitivity": asdict(proportion(int(right[labels == 1].sum()), int((labels == 1).sum()))),
        "specificity": asdict(proportion(int(right[labels == 0].sum()), int((labels == 0).sum()))),
    }


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    patients = len({case["patient_id"] for case in cases})
    return {"images": len(cases), "patients": patients, "positive": sum(case["label"] for case in cases)}
