# SPDX-License-Identifier: Apache-2.0
"""Does the model lean on a marker, a tube, a border or exposure? Interventions, their effects, and a gate on them."""

from monai_cnnprimer.validate.audit.attribution import Explained, attribution
from monai_cnnprimer.validate.audit.audit import EXIT_CODES, audit
from monai_cnnprimer.validate.audit.effects import judge, lungs
from monai_cnnprimer.validate.audit.limits import Gate, Limit, read_gate
from monai_cnnprimer.validate.audit.measuring import AuditCase, Measured, measure
from monai_cnnprimer.validate.audit.source import Settings

__all__ = [
    "EXIT_CODES",
    "AuditCase",
    "Explained",
    "Gate",
    "Limit",
    "Measured",
    "Settings",
    "attribution",
    "audit",
    "judge",
    "lungs",
    "measure",
    "read_gate",
]
