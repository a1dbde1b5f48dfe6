# SPDX-License-Identifier: Apache-2.0
"""The small-finding benchmark: nodules of known size in normal radiographs, and what each network sees of them."""

from __future__ import annotations

from monai_cnnprimer.validate.findings.cases import (
    MM_BINS,
    PX_BINS,
    FindingCases,
    bin_of,
    draw,
    simulated,
)
from monai_cnnprimer.validate.findings.nodules import NoPlace, displayed_behind, insert_nodule, physical_contrast
from monai_cnnprimer.validate.findings.normals import Normals, normals

__all__ = [
    "MM_BINS",
    "PX_BINS",
    "FindingCases",
    "NoPlace",
    "Normals",
    "bin_of",
    "displayed_behind",
    "draw",
    "insert_nodule",
    "normals",
    "physical_contrast",
    "simulated",
]
