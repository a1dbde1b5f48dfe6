# SPDX-License-Identifier: Apache-2.0
"""Findings and maps as DICOM objects that go back to the PACS: overlay, map, outlines, report; research use only."""

from __future__ import annotations

import logging

from monai_cnnprimer.dicom.results.grid import on_radiograph, upright_directions, without_turning
from monai_cnnprimer.dicom.results.model import Model
from monai_cnnprimer.dicom.results.outlines import outlines
from monai_cnnprimer.dicom.results.presentation_state import presentation_state
from monai_cnnprimer.dicom.results.secondary_capture import secondary_capture
from monai_cnnprimer.dicom.results.segmentation import fractional_segmentation
from monai_cnnprimer.dicom.results.structured_report import structured_report

__all__ = [
    "Model",
    "fractional_segmentation",
    "on_radiograph",
    "outlines",
    "presentation_state",
    "secondary_capture",
    "structured_report",
    "upright_directions",
    "without_turning",
]

# It tells identifiers of source images at INFO, and MONAI's logging configuration shows INFO.
logging.getLogger("highdicom").setLevel(logging.WARNING)
