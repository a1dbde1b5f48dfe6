# SPDX-License-Identifier: Apache-2.0
"""From what a network said to the effect of each intervention, with intervals by patient, and to the gate's verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from monai_cnnprimer.explain.shortcuts import INTERVENTIONS
from monai_cnnprimer.validate.audit.limits import Gate, Limit
from monai_cnnprimer.validate.statistics import AurocOf, Bootstrap, MeanOf, clustered_bootstraps, compare_auroc

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
_Z95 = float(norm.ppf(0.975))
_MEASURES = ("change", "shift", "shift_above_control", "flips", "flips_above_control")
_OF_CONTROL = ("change", "shift", "flips")

Figure = dict[str, Any]


def judge(table: pd.DataFrame, threshold: float, gate: Gate, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The effect of each intervention and the verdict of the gate.

    - `change`: mean of the logit after minus before;
    - `shift`: mean absolute change, in standard deviations of the logits before (`spread`), which is taken as known;
    - `flips`: share of cases that change side of the threshold;
    - `..._above_control`: the same minus that of the control on the same cases;
    - `auroc`: before, after, under the control, and after minus before (DeLong), of the labelled cases.

    Intervals are percentiles over resampled patients. An intervention fails where the lower end lies above a limit; for
    that it is stretched from 95 % to Bonferroni's level over all limits that can be judged. It passes where the upper
    end of 95 % lies below both limits, which needs no such correction, since all must pass (Berger, Technometrics 1982;
    24:295-300). The share of flips gets Wilson's interval with patients for cases, which has a width also where none
    changes side.

    Args:
        table: of `measure`.
        threshold: of the probability.
        gate: limits.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `verdict`, `reason`, `spread`, `level_of_each`, `interventions` by name.
    """
    cases = table.drop_duplicates("case_id")
    spread = float(cases["logit"].std(ddof=1)) if len(cases) > 1 else 0.0
    inside = min(max(threshold, 1e-12), 1 - 1e-12)  # a threshold at the end calls all, or none
    cut = math.log(inside / (1 - inside))
    made = {name: _prepared(rows, spread, cut) for name, rows in table.groupby("intervention", sort=False)}
    judged = [name for name in gate.limits if _patients(made.get(name)) >= gate.patients_needed and spread > 0]
    level = gate.level / (2 * max(1, len(judged)))
    z = float(norm.ppf(1 - level / 2))
    found: dict[str, Any] = {}
    for name in gate.names:
        rows = made.get(name, pd.DataFrame())
        found[name] = _described(name, rows, table, resamples, seed)
        found[name] |= _verdict(found[name], gate.limits.get(name), gate, spread, z)
    verdict, reason = _overall(found, gate, spread)
    return {
        "verdict": verdict,
        "reason": reason,
        "spread": spread,
        "threshold_logit": cut,
        "patients_needed": gate.patients_needed,
        "level": gate.level,
        "level_of_each": level,
        "interventions": found,
    }


def _prepared(rows: pd.DataFrame, spread: float, cut: float) -> pd.DataFrame:
    """One row a case that was intervened on, with all that is averaged."""
    done = rows[rows["left_out"] == ""].copy()
    unit = spread if spread > 0 else math.nan
    before = done["logit"] >= cut
    for name, after in (("", done["changed"]), ("control_", done["control"])):
        done[f"{name}change"] = after - done["logit"]
        done[f"{name}shift"] = done[f"{name}change"].abs() / unit
        done[f"{name}flips"] = ((after >= cut) != before).astype(float).where(after.notna())
    for name in ("shift", "flips"):
        done[f"{name}_above_control"] = done[name] - done[f"control_{name}"]
    return done


def _patients(rows: pd.DataFrame | None) -> int:
    return 0 if rows is None or rows.empty else int(rows["patient_key"].nunique())


def _described(name: str, rows: pd.DataFrame, table: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """All that is known of an intervention but the verdict."""
    of = table[table["intervention"] == name]
    reasons = of.loc[of["left_out"] != "", "left_out"].value_counts()
    about = {
        "what": INTERVENTIONS[name].what,
        "control_is": INTERVENTIONS[name].control,
        "n": len(rows),
        "patients": _patients(rows),
        "left_out": {str(reason): int(count) for reason, count in sorted(reasons.items())},
        "share_changed": float(rows["share_changed"].mean()) if len(rows) else None,
    }
    columns = [*_MEASURES, *(f"control_{measure}" for measure in _OF_CONTROL)]
    known = [column for column in columns if len(rows) and rows[column].notna().all()]
    drawn = clustered_bootstraps({c: MeanOf(c) for c in known}, rows, "patient_key", resamples, seed) if known else {}
    figures = {column: _figure(drawn.get(column)) for column in columns}
    control = {measure: figures.pop(f"control_{measure}") for measure in _OF_CONTROL}
    has_control = bool(INTERVENTIONS[name].control)
    return about | figures | {"control": control if has_control else None, "auroc": _auroc(rows, resamples, seed)}


def _auroc(rows: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any] | None:
    """None where a class is missing."""
    known = rows[rows["label"].notna()] if len(rows) else rows
    if not len(known) or known["label"].nunique() < 2:
        return None
    known = known.assign(label=known["label"].astype(int))
    columns = {"before": "logit", "after": "changed", "control": "control"}
    scores = {name: AurocOf("label", column) for name, column in columns.items() if known[column].notna().all()}
    drawn = clustered_bootstraps(scores, known, "patient_key", resamples, seed)
    difference = asdict(compare_auroc(known["label"], known["changed"], known["logit"]))
    return {name: _figure(drawn.get(name)) for name in columns} | {
        "difference": {"value": difference["difference"], "low": difference["low"], "high": difference["high"]},
        "n": len(known),
    }


def _figure(drawn: Bootstrap | None) -> Figure:
    if drawn is None:
        return {"value": None, "low": None, "high": None}
    return {"value": drawn.value, "low": drawn.low, "high": drawn.high}


def _verdict(entry: Mapping[str, Any], limit: Limit | None, gate: Gate, spread: float, z: float) -> dict[str, Any]:
    if limit is None:
        told = "not gated" if entry["n"] else "not measured"
        return {"limit": None, "judged": None, "verdict": told, "reason": "it may matter"}
    stated = asdict(limit)
    if entry["patients"] < gate.patients_needed or spread <= 0:
        short = f"{entry['patients']} patients, {gate.patients_needed} are needed"
        why = short if spread > 0 else "the network says the same of every case"
        return {"limit": stated, "judged": None, "verdict": UNDECIDED, "reason": why}
    suffix = "_above_control" if limit.above_control else ""
    shift = _stretched(entry[f"shift{suffix}"], z)
    if limit.above_control:
        flips = _stretched(entry["flips_above_control"], z)
    else:
        flips = _wilson(entry["flips"]["value"], entry["patients"], _Z95)
        flips["low"] = _wilson(flips["value"], entry["patients"], z)["low"]
    judged = {"shift": shift | {"limit": limit.shift}, "flips": flips | {"limit": limit.flips}}
    verdict, reason = _against(judged)
    return {"limit": stated, "judged": judged, "verdict": verdict, "reason": reason}


def _against(judged: Mapping[str, Figure]) -> tuple[str, str]:
    above = [name for name, one in judged.items() if one["low"] is not None and one["low"] > one["limit"]]
    below = [name for name, one in judged.items() if one["high"] is not None and one["high"] < one["limit"]]
    if above:
        return FAIL, f"{' and '.join(above)} above the limit"
    if len(below) == len(judged):
        return PASS, "within both limits"
    open_ones = [name for name in judged if name not in below]
    return UNDECIDED, f"not enough cases to tell: the interval of {' and '.join(open_ones)} includes the limit"


def _stretched(figure: Figure, z: float) -> Figure:
    """With the lower end at another level, by the ratio of normal quantiles: rare percentiles are too coarse."""
    if figure["low"] is None:
        return dict(figure)
    return figure | {"low": figure["value"] + z / _Z95 * (figure["low"] - figure["value"])}


def _wilson(share: float, n: int, z: float) -> Figure:
    """Wilson's score interval (JASA 1927; 22:209-212) at any level."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def _overall(found: Mapping[str, Any], gate: Gate, spread: float) -> tuple[str, str]:
    verdicts = {name: found[name]["verdict"] for name in gate.limits}
    failed = [name for name, verdict in verdicts.items() if verdict == FAIL]
    if failed:
        return FAIL, f"moved by {', '.join(failed)}"
    if spread <= 0:
        return UNDECIDED, "the network says the same of every case"
    waits = [
        name for name, verdict in verdicts.items() if verdict == UNDECIDED and not _excused(found[name], gate, name)
    ]
    if waits or PASS not in verdicts.values():
        return UNDECIDED, f"not enough cases to tell: {', '.join(waits or verdicts)}"
    return PASS, "within all limits that could be judged"


def _excused(entry: Mapping[str, Any], gate: Gate, name: str) -> bool:
    """Whether too few cases allow the intervention, where that is declared to be no obstacle."""
    return gate.limits[name].may_be_missing and entry["patients"] < gate.patients_needed


def lungs(table: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> dict[str, Any] | None:
    """AUROC of whole images, of the lungs only and of the lungs covered, on the same labelled cases with a mask.

    None where no case has a mask and a label, or a class is missing.
    """
    names = ("lungs_only", "lungs_covered", "lung_box_covered")
    done = table[table["intervention"].isin(names) & (table["left_out"] == "") & table["label"].notna()]
    wide = done.pivot(index="case_id", columns="intervention", values="changed")
    if not len(wide) or not set(names) <= set(wide.columns):
        return None
    first = done.drop_duplicates("case_id").set_index("case_id")
    wide = wide.dropna().assign(
        whole=first["logit"], patient_key=first["patient_key"], label=first["label"].astype(int)
    )
    if wide["label"].nunique() < 2:
        return None
    scores = {name: AurocOf("label", name) for name in ("whole", *names)}
    drawn = clustered_bootstraps(scores, wide, "patient_key", resamples, seed)
    labels = wide["label"].to_numpy()
    counts = {
        "n": len(wide),
        "positives": int(np.count_nonzero(labels)),
        "patients": int(wide["patient_key"].nunique()),
    }
    return {name: _figure(one) for name, one in drawn.items()} | counts
