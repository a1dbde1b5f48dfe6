# SPDX-License-Identifier: Apache-2.0
"""A plugin for MONAI workflows: what a chest-radiograph CNN sees, at which size, and at which hospital.

Research use only, not for clinical use. The public names load when they are first used, since torch, MONAI and
MLflow take seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_cnnprimer.dicom.export import index_export
    from monai_cnnprimer.dicom.header import DicomRefused
    from monai_cnnprimer.dicom.reader import RadiographReader
    from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_field
    from monai_cnnprimer.explain.gradcam import GradCam
    from monai_cnnprimer.explain.receptive_field import align_map, theoretical_receptive_field
    from monai_cnnprimer.handlers import ActivationHandler, CaseTableHandler, GradCamHandler, ReceptiveFieldHandler
    from monai_cnnprimer.networks import fpn_classifier, resnet50_classifier, unet_classifier
    from monai_cnnprimer.validate.tracking import RunHandler

__version__ = "0.1.0"

_HOMES = {
    "ActivationHandler": "handlers",
    "CaseTableHandler": "handlers",
    "DicomRefused": "dicom.header",
    "GradCam": "explain.gradcam",
    "GradCamHandler": "handlers",
    "RadiographReader": "dicom.reader",
    "ReceptiveFieldHandler": "handlers",
    "RunHandler": "validate.tracking",
    "align_map": "explain.receptive_field",
    "effective_receptive_field": "explain.effective_receptive_field",
    "fpn_classifier": "networks",
    "index_export": "dicom.export",
    "resnet50_classifier": "networks",
    "theoretical_receptive_field": "explain.receptive_field",
    "unet_classifier": "networks",
}

__all__ = [
    "ActivationHandler",
    "CaseTableHandler",
    "DicomRefused",
    "GradCam",
    "GradCamHandler",
    "RadiographReader",
    "ReceptiveFieldHandler",
    "RunHandler",
    "__version__",
    "align_map",
    "effective_receptive_field",
    "fpn_classifier",
    "index_export",
    "resnet50_classifier",
    "theoretical_receptive_field",
    "unet_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
