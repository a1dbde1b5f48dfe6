# SPDX-License-Identifier: Apache-2.0
"""Interventions on a radiograph that should, or may, change what a network says: paired with controls, and seeded."""

from monai_cnnprimer.explain.shortcuts.change import Changed, LeftOut, Pair, Subject
from monai_cnnprimer.explain.shortcuts.interventions import INTERVENTIONS, Intervention, intervene
from monai_cnnprimer.explain.shortcuts.markers import find_marker

__all__ = ["INTERVENTIONS", "Changed", "Intervention", "LeftOut", "Pair", "Subject", "find_marker", "intervene"]
