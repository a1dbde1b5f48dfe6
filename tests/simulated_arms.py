# SPDX-License-Identifier: Apache-2.0
"""Scores of arms that were never trained: what each sees at which size is chosen, so that the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_cnnprimer.validate.findings.froc import Marked
from monai_cnnprimer.validate.findings.scoring import Lock, Scores

BINS = ("3-5 mm", "5-8 mm", "8-13 mm", "13-22 mm", "22-40 mm")


def cases(patients: int = 40, bins=BINS) -> pd.DataFrame:
    """Each patient once without a nodule, and once with one of each bin."""
    random, rows = np.random.default_rng(3), []
    for number in range(patients):
        about = {"pair_id": f"c{number}", "patient_key": f"p{number // 2}", "source": "phantom", "mm_per_px": 1.7}
        rows.append({**about, "label": 0, "diameter_mm": np.nan, "size_bin": "none"})
        for name in bins:
            low, high = (float(limit) for limit in name.removesuffix(" mm").split("-"))
            rows.append({**about, "label": 1, "diameter_mm": random.uniform(low, high), "size_bin": name})
    table = pd.DataFrame(rows)
    return table.assign(case_id=[f"n{row}" for row in table.index], diameter_px=table["diameter_mm"] / 1.7)


def scores(table: pd.DataFrame, arm: str, seed: int, lift, gate: float = 0.97, noise: float = 0.4) -> Scores:
    """An arm whose log-odds rise by `lift(diameter in mm)`; images keep their own difficulty over arms and seeds."""
    common = np.random.default_rng(11).normal(size=len(table))
    random = np.random.default_rng([seed, *arm.encode()])
    found = table["label"].to_numpy() == 1
    rise = np.where(found, lift(table["diameter_mm"].fillna(1).to_numpy()), 0)
    logit = (common + noise * random.normal(size=len(table)) + rise).astype(np.float32)
    hit = random.random(len(table)) < 1 - np.exp(-rise)
    true = np.where(found, np.where(hit, 0.5 + np.arctan(logit) / np.pi, 0), np.nan).astype(np.float32)
    false_case = np.repeat(np.arange(len(table)), 10).astype(np.int32)
    false = (0.5 + np.arctan(random.normal(-1, 1, false_case.size)) / np.pi).astype(np.float32)
    threshold = float(np.quantile(logit[~found], 0.9))
    return Scores(arm, seed, Lock(threshold, gate), logit, Marked(false_case, false, true))


def steady(mm):
    """What an arm sees whose stride does not matter."""
    return np.minimum(mm / 6, 3.5)


def coarse(mm):
    """What an arm sees that loses small nodules."""
    return np.clip((mm - 7) / 4, 0, 3.5)
