# SPDX-License-Identifier: Apache-2.0
"""What training a bundle needs beyond MONAI."""

from __future__ import annotations

from monai_cnnprimer.training.engine import AutocastInferer, SeededEpochs, TrainingRecord, latest_checkpoint
from monai_cnnprimer.training.finish import finish_training, predict
from monai_cnnprimer.training.split import balanced_weights, patient_split, size_only

__all__ = [
    "AutocastInferer",
    "SeededEpochs",
    "TrainingRecord",
    "balanced_weights",
    "finish_training",
    "latest_checkpoint",
    "patient_split",
    "predict",
    "size_only",
]
