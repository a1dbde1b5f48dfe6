# SPDX-License-Identifier: Apache-2.0
"""From a trained network to what a bundle ships: weights in half precision, a threshold, the model card's figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from torch import Tensor

from monai_cnnprimer.networks import load_weights, sha256_of_file
from monai_cnnprimer.run_directory import digest_of
from monai_cnnprimer.training.split import SIZE, Case, size_only
from monai_cnnprimer.validate.locked_model import preprocessing_sha256
from monai_cnnprimer.validate.statistics import auroc, bagged_threshold, proportion


def finish_training(
    network: torch.nn.Module,
    split: Mapping[str, list[Case]],
    transform: Callable[[Case], Case],
    output_dir: str | Path,
    device: torch.device,
    bundle_root: str | Path,
    settings: Mapping[str, Any],
    checkpoint: str | Path | None = None,
) -> dict[str, Any]:
    """Writes what a bundle ships: weights in half precision, the threshold, and the figures of the model card.

    The threshold is `bagged_threshold` of the validation patients; the test images choose nothing. All figures are
    those of the half-precision file, loaded again, computed in float32.

    Args:
        network: the trained network.
        split: as `patient_split` gives it.
        transform: the preprocessing of the bundle, without augmentation.
        output_dir: gets `model.pt`, `operating_point.json`, `results.json`.
        device: where to compute.
        bundle_root: the bundle that trains; its `configs/inference.yaml` has the preprocessing of the threshold.
        settings: of the training, for the record; `image_size` among them.
        checkpoint: of the epoch whose weights to take; None takes the network as it is.

    Returns:
        What stands in `results.json`.
    """
    folder = Path(output_dir)
    if checkpoint is not None:
        network.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True)["network"])
    torch.save({name: _halved(value) for name, value in network.state_dict().items()}, folder / "model.pt")
    load_weights(network, folder / "model.pt").to(device).eval()
    probabilities = {name: predict(network, split[name], transform, device) for name in ("validation", "test")}
    labels = {name: np.array([case["label"] for case in split[name]]) for name in probabilities}
    patients = [case["patient_id"] for case in split["validation"]]
    threshold = round(bagged_threshold(labels["validation"], probabilities["validation"], patients), 4)
    sha256 = sha256_of_file(folder / "model.pt")
    point = {"id": f"youden-{sha256[:8]}", "threshold": threshold, "weights_sha256": sha256}
    point |= {
        "transforms_sha256": preprocessing_sha256(Path(bundle_root), {"image_size": settings["image_size"]}),
        "criterion": "Youden's index, averaged over bootstrap samples of the validation patients",
        "n": len(split["validation"]),
        "patients": len(set(patients)),
    }
    point |= {"sha256": digest_of(point)}
    results: dict[str, Any] = {"threshold": threshold, "weights_sha256": sha256, "settings": dict(settings)}
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


def _halved(value: Tensor) -> Tensor:
    """A tensor in half precision; as it is where that cannot hold it, such as a variance above 65,504."""
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if half.isfinite().all() else value


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
