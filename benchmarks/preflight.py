# SPDX-License-Identifier: Apache-2.0
"""Prints how well a network's geometry predicts which nodules it sees: `python benchmarks/preflight.py FOLDER`.

FOLDER is the output of `cnnprimer findings`: its networks were taught nodules, all alike, on one encoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from monai_cnnprimer.training.arms import Arm, build_arm
from monai_cnnprimer.training.arms_data import lung_crops, normalised
from monai_cnnprimer.training.arms_run import ask
from monai_cnnprimer.validate.findings.normals import Normals, normals
from monai_cnnprimer.validate.preflight.detection import detection_curve
from monai_cnnprimer.validate.preflight.scales import head_layers, layer_scales

PREDICTORS = {
    "pixels": "diameter, pixels of the input",
    "contrast x pixels": "peak contrast x pixels of the input",
    "cells, finest map": "diameter by the stride of the finest map",
    "cells, coarsest map": "diameter by the stride of the coarsest map",
    "by half of the field": "diameter by the half of the finest map's effective field",
}
SEED = 3_000_003  # of nodules; no training and no test of the benchmark has it


def crops(size: int, crop: int, count: int, cache: Path) -> Normals:
    """Test phantoms as crops around each lung; the radiograph of `size` pixels sets the millimetres."""
    found = normals(("phantom",), size, count, cache=cache).only("test")
    return lung_crops(found, crop)


def measured(arm: Arm, shown: Normals, sizes: Sequence[float], contrasts: Sequence[float]) -> pd.DataFrame:
    """AUROC of each size and contrast, beside what the geometry says of them."""
    mm_per_px = float(shown.table["mm_per_px"].mean())
    device = torch.device("cpu")

    def logits(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        return np.concatenate([one.logit for one in ask(arm, np.stack(images), device)]).astype(float)

    side = shown.images.shape[1]
    curve = detection_curve(logits, shown, sizes, contrasts, mm_per_px, side, SEED, resamples=2)
    table = pd.DataFrame([vars(one) for one in curve])
    arm.eval()
    scales = layer_scales(
        arm.network, head_layers(arm.network), normalised(torch.from_numpy(shown.images[:2])), mm_per_px
    )
    finest, coarsest = (pick(scales, key=lambda scale: scale.stride_mm) for pick in (min, max))
    table["pixels"] = table["px"]
    table["contrast x pixels"] = table["px"] * table["nepers"]
    table["cells, finest map"] = table["mm"] / finest.stride_mm
    table["cells, coarsest map"] = table["mm"] / coarsest.stride_mm
    table["by half of the field"] = table["mm"] / finest.erf50_mm
    return table.assign(mm_per_px=mm_per_px)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of predictors with the AUROC, over all and between networks at one size and contrast."""
    held = table.dropna(subset=["auroc"])
    rows = []
    for name, words in PREDICTORS.items():
        alike = [part for _, part in held.groupby(["mm", "contrast", "size"]) if part[name].nunique() > 1]
        between = [_spearman(part[name], part["auroc"]) for part in alike]
        known = [value for value in between if np.isfinite(value)]
        rows.append(
            {
                "predictor": words,
                "over all": _spearman(held[name], held["auroc"]),
                **{f"at {c} nepers": _spearman(p[name], p["auroc"]) for c, p in held.groupby("contrast")},
                "between networks": float(np.mean(known)) if known else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _spearman(a: pd.Series, b: pd.Series) -> float:
    return float(spearmanr(a, b).statistic) if a.nunique() > 1 and b.nunique() > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output of `cnnprimer findings`")
    parser.add_argument("--sizes-mm", type=float, nargs="+", default=[4, 6.5, 10, 17, 30])
    parser.add_argument("--contrasts", type=float, nargs="+", default=[0.2, 0.42, 0.7])
    parser.add_argument("--views", type=int, nargs="+", default=[224, 168, 112], help="pixels of the whole radiograph")
    parser.add_argument("--output", type=Path, help="also write the measurements to this CSV file")
    asked = parser.parse_args()
    plan = json.loads((asked.folder / "protocol.json").read_text())
    tables = []
    for size in asked.views:
        shown = crops(size, 32 * round(size * plan["warm_up"]["view"]["crop"] / plan["warm_up"]["view"]["size"] / 32),
                      plan["radiographs"], asked.folder / "cache")  # fmt: skip
        for seed in plan["seeds"]:
            states = torch.load(asked.folder / "warm" / f"{seed}.pt", map_location="cpu", weights_only=True)
            for name in plan["arms"]:
                arm = build_arm(name, seed, plan["width"])
                arm.load_state_dict(states[name])
                tables.append(
                    measured(arm, shown, asked.sizes_mm, asked.contrasts).assign(arm=name, seed=seed, size=size)
                )
    table = pd.concat(tables, ignore_index=True)
    if asked.output:
        table.to_csv(asked.output, index=False, lineterminator="\n", float_format="%.5g")
    by = table.groupby(["size", "contrast", "arm", "mm"])["auroc"].mean().unstack("mm")
    print(by.to_string(float_format="{:.2f}".format))
    print(correlations(table).to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
