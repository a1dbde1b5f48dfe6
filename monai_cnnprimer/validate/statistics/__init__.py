# SPDX-License-Identifier: Apache-2.0
"""Figures with their intervals, on labelled cases.

Labels are 0 and 1, a higher score speaks for 1, intervals are two-sided at 95 %. What the cases cannot give is None,
never NaN. Where patients have several cases, `clustered_bootstrap` gives the interval that counts.
"""

from monai_cnnprimer.validate.statistics.bootstrap import Bootstrap, clustered_bootstrap, clustered_bootstraps
from monai_cnnprimer.validate.statistics.counted import AurocOf, AveragePrecisionOf, MeanOf
from monai_cnnprimer.validate.statistics.estimate import Estimate
from monai_cnnprimer.validate.statistics.net_benefit import NetBenefit, decision_curve
from monai_cnnprimer.validate.statistics.paired import holm, mcnemar
from monai_cnnprimer.validate.statistics.precision_recall import AveragePrecision, average_precision
from monai_cnnprimer.validate.statistics.proportions import (
    PredictiveValues,
    Proportion,
    ProportionDifference,
    compare_proportions,
    predictive_values,
    proportion,
)
from monai_cnnprimer.validate.statistics.reliability import (
    Calibration,
    CalibrationError,
    ReliabilityBin,
    calibration,
    reliability_curve,
)
from monai_cnnprimer.validate.statistics.roc import Auroc, AurocDifference, auroc, auroc_against_rest, compare_auroc
from monai_cnnprimer.validate.statistics.thresholds import bagged_threshold, threshold_for

__all__ = [
    "Auroc",
    "AurocDifference",
    "AurocOf",
    "AveragePrecision",
    "AveragePrecisionOf",
    "Bootstrap",
    "Calibration",
    "CalibrationError",
    "Estimate",
    "MeanOf",
    "NetBenefit",
    "PredictiveValues",
    "Proportion",
    "ProportionDifference",
    "ReliabilityBin",
    "auroc",
    "auroc_against_rest",
    "average_precision",
    "bagged_threshold",
    "calibration",
    "clustered_bootstrap",
    "clustered_bootstraps",
    "compare_auroc",
    "compare_proportions",
    "decision_curve",
    "holm",
    "mcnemar",
    "predictive_values",
    "proportion",
    "reliability_curve",
    "threshold_for",
]
