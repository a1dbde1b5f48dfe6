# SPDX-License-Identifier: Apache-2.0
"""Handlers of a MONAI evaluator: when something is recorded; what it means stands in `explain` and `validate`."""

from __future__ import annotations

from monai_cnnprimer.handlers.activations import ActivationHandler
from monai_cnnprimer.handlers.case_table import CaseTableHandler
from monai_cnnprimer.handlers.features import FeatureHandler
from monai_cnnprimer.handlers.gradcam import GradCamHandler
from monai_cnnprimer.handlers.receptive_field import ReceptiveFieldHandler

__all__ = ["ActivationHandler", "CaseTableHandler", "FeatureHandler", "GradCamHandler", "ReceptiveFieldHandler"]
