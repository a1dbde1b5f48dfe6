# SPDX-License-Identifier: Apache-2.0
"""A comparison as tables: one row a case, one row a bin and figure, and the headline for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from monai_cnnprimer.validate.compare.bins import Bins
from monai_cnnprimer.validate.compare.pair import RunPair

ALL_CASES = "all cases"
_OF_CASES = ("pearson", "spearman", "common_mass", "other_cases")


def case_table(pair: RunPair, bins: Bins | None, maps: pd.DataFrame | None) -> pd.DataFrame:
    """One row a case: both predictions, who is right, the bin, and how alike the maps are where both are right."""
    table = pair.table[["case_id", "patient_key", "label"]].copy()
    for column in ("logit", "probability", "predicted"):
        for letter in "ab":
            table[f"{column}_{letter}"] = pair.table[f"{column}_{letter}"]
    table["outcome"] = outcomes(pair.table)
    if bins is not None:
        table[f"bin_{bins.column}"] = bins.bin_of.reindex(table.index)
    if maps is not None:
        table = table.merge(maps[list(_OF_CASES)].add_prefix("maps_"), left_on="case_id", right_index=True, how="left")
    return table


def outcomes(table: pd.DataFrame) -> pd.Series:
    """Who is right, in words; of cases without a label, whether both say the same."""
    same = (table["predicted_a"] == table["predicted_b"]).map({True: "same call", False: "different calls"})
    a, b = ((table[f"predicted_{model}"] == table["label"]).fillna(False) for model in "ab")
    known = same.mask(a & b, "both right").mask(a & ~b, "only A right").mask(~a & b, "only B right")
    known = known.mask(~a & ~b, "both wrong")
    return known.where(table["label"].notna(), same)


def difference_table(result: dict[str, Any], metrics: Sequence[str]) -> pd.DataFrame:
    """One row a bin and figure, all cases first."""
    rows = []
    groups = [({"bin": ALL_CASES}, result["metrics"])] if result["metrics"] else []
    groups += [({"bin": row["bin"]}, row) for row in (result["by"] or {"rows": []})["rows"]]
    for name, figures in groups:
        rows += [name | {"metric": metric} | _flat(figures[metric]) for metric in metrics if metric in figures]
    columns = ["bin", "metric", "n", "too_few", "a", "a_low", "a_high", "b", "b_low", "b_high", "difference"]
    columns += ["difference_low", "difference_high", "p", "p_holm", "only_a", "only_b"]
    return pd.DataFrame(rows, columns=columns).astype({"only_a": "Int64", "only_b": "Int64"})


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a comparison for `metrics.json`: name to value, low, high, n."""
    told: dict[str, Any] = {}
    for metric, figures in (result["metrics"] or {}).items():
        told[f"{metric}_difference"] = figures["difference"] | {"n": figures["n"]}
    told |= {f"calls_{name}": result["agreement"][name] for name in ("kappa", "same_call")}
    told["logits_pearson"] = result["agreement"]["pearson"]
    if result["maps"]:
        told |= {f"maps_{name}": result["maps"][name] for name in ("pearson", "common_mass", "above_other_cases")}
    keys = ("value", "low", "high", "n", "p")
    return {name: {key: figures[key] for key in keys if key in figures} for name, figures in told.items()}


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {key: figures[key] for key in ("n", "too_few", "only_a", "only_b") if key in figures}
    for name in ("a", "b", "difference"):
        flat |= {
            name: figures[name]["value"],
            f"{name}_low": figures[name]["low"],
            f"{name}_high": figures[name]["high"],
        }
    return flat | {key: figures["difference"].get(key) for key in ("p", "p_holm")}
