# SPDX-License-Identifier: Apache-2.0
"""Synthetic chest radiographs with exact truth, and the DICOM exports of several sites made of them."""

from __future__ import annotations

from monai_cnnprimer.phantom.export import plan_cases, write_export
from monai_cnnprimer.phantom.findings import Finding
from monai_cnnprimer.phantom.lateral import render_lateral
from monai_cnnprimer.phantom.render import FindingTruth, Radiograph, render
from monai_cnnprimer.phantom.sites import SITES, Site, sites_of

__all__ = [
    "SITES",
    "Finding",
    "FindingTruth",
    "Radiograph",
    "Site",
    "plan_cases",
    "render",
    "render_lateral",
    "sites_of",
    "write_export",
]
