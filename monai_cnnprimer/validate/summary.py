# SPDX-License-Identifier: Apache-2.0
"""From a table of predictions to the figures of `metrics.json`, each with its interval and n."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from monai_cnnprimer.validate.statistics import auroc, proportion


def summary(predictions: pd.DataFrame) -> dict[str, Any]:
    """AUROC, accuracy, sensitivity and specificity at the operating point, and the share called positive.

    Args:
        predictions: columns `label` (0, 1 or missing), `logit`, `predicted`, one row a case.

    Returns:
        By name, `value`, `low`, `high` and `n`; a figure that the cases cannot give has None for the first three.

    Example:
        >>> table = pd.DataFrame({"label": [0, 1, 1, None], "logit": [-1.0, -0.5, 2.0, 1.0], "predicted": [0, 0, 1, 1]})
        >>> figures = summary(table)
        >>> figures["auroc"]["value"], figures["sensitivity"]["value"], figures["called_positive"]["n"]
        (1.0, 0.5, 4)
    """
    known = predictions[predictions["label"].notna()]
    label, called = known["label"].astype(int), known["predicted"]
    right = called == label
    return {
        "auroc": asdict(auroc(label.to_numpy(), known["logit"].astype(float).to_numpy())),
        "accuracy": asdict(proportion(int(right.sum()), len(known))),
        "sensitivity": asdict(proportion(int(right[label == 1].sum()), int((label == 1).sum()))),
        "specificity": asdict(proportion(int(right[label == 0].sum()), int((label == 0).sum()))),
        "called_positive": asdict(proportion(int(predictions["predicted"].sum()), len(predictions))),
    }
