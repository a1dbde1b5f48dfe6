# SPDX-License-Identifier: Apache-2.0
"""What the arms' scores say: figures by size bin, paired differences, size x model, and a verdict by rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from monai_cnnprimer.validate.findings.froc import Froc
from monai_cnnprimer.validate.findings.interaction import interaction
from monai_cnnprimer.validate.findings.resampled import METRICS, Record, Resampled
from monai_cnnprimer.validate.findings.scoring import Scores, by_arm, check_against
from monai_cnnprimer.validate.findings.verdict import Rules, small_terms, verdict
from monai_cnnprimer.validate.statistics import auroc, holm, mcnemar, proportion

_POWERED = 2.802  # normal quantiles of 97.5 % and 80 %: two-sided 5 %, power 80 %


def analyse(table: pd.DataFrame, scores: Sequence[Scores], rules: Rules, seed: int = 0) -> Record:
    """All figures of one setting on one test set.

    Intervals are percentiles over samples of whole patients and of seeds, drawn independently of each other (Owen, Ann.
    Appl. Statist. 2007; 1:386-411) and alike for all arms. McNemar's test takes a finding as called by an arm where
    most of its seeds call it; Holm corrects over the bins of a pair. An arm that fails the gate is shown, not compared.

    Args:
        table: the cases, as `FindingCases.table`.
        scores: of each arm and seed on these cases.
        rules: what was fixed before.
        seed: of the resamples.

    Returns:
        `cases`, `bins`, `gate`, `by_bin`, `by_seed`, `overall`, `pairs`, `size_by_model`, `interactions`, `verdicts`:
        records that go into JSON as they are. What the cases cannot give is None.

    Raises:
        ValueError: scores of other cases, arms over different seeds, a pair without its arm.
    """
    arms = by_arm(list(scores))
    for one in scores:
        check_against(one, table)
    unknown = {name for pair in rules.pairs for name in pair} - set(arms)
    if unknown:
        raise ValueError(f"no scores of {', '.join(sorted(unknown))}, which a pair asks for")
    bins = [_bin_record(name, table, rules) for name in _bins(table)]
    drawn = Resampled(table, arms, bins, rules.resamples, seed)
    gate = [_gate_record(name, some, rules.gate) for name, some in arms.items()]
    passed = {record["arm"] for record in gate if record["passed"]}
    pairs = [pair for pair in rules.pairs if set(pair) <= passed]
    findings = _Findings(table, arms)
    interactions = [findings.slope(pair) for pair in pairs]
    by_pair = [record for pair in pairs for record in _pair_records(table, arms, bins, drawn, pair)]
    return {
        "cases": {
            "n": len(table),
            "findings": int(table["label"].sum()),
            "patients": int(table["patient_key"].nunique()),
            "seeds": [one.seed for one in next(iter(arms.values()))],
        },
        "bins": bins,
        "gate": gate,
        "by_bin": [drawn.record(name, one) for name in arms for one in bins],
        "by_seed": [record for some in arms.values() for one in some for record in _seed_records(table, one, bins)],
        "overall": [_overall(table, some, bins, drawn) for some in arms.values()],
        "pairs": by_pair,
        "size_by_model": findings.joint([name for name in arms if name in passed]),
        "interactions": interactions,
        "verdicts": [verdict(pair, passed, interactions, drawn, bins, rules) for pair in rules.pairs],
    }


def smallest_detectable(error: float) -> float:
    """The true difference that a two-sided test at 5 % would show with a power of 80 %, from its standard error."""
    return _POWERED * error


def _bins(table: pd.DataFrame) -> list[str]:
    names = table.loc[table["label"] == 1, "size_bin"].unique()
    known = [name for name in names if name not in ("outside", "unknown")]
    return sorted(known, key=lambda name: float(name.split("-")[0]))


def _bin_record(name: str, table: pd.DataFrame, rules: Rules) -> Record:
    chosen = table[table["size_bin"] == name]
    low, high = (float(limit) for limit in name.removesuffix(" mm").split("-"))
    return {
        "bin": name,
        "low_mm": low,
        "high_mm": high,
        "n": len(chosen),
        "patients": int(chosen["patient_key"].nunique()),
        "diameter_px": [round(float(value), 1) for value in (chosen["diameter_px"].min(), chosen["diameter_px"].max())],
        "too_few": len(chosen) < rules.few,
        "small": high <= rules.small_below_mm,
    }


def _gate_record(arm: str, some: list[Scores], gate: float) -> Record:
    values = [one.lock.gate_auroc for one in some]
    mean = sum(values) / len(values)
    return {"arm": arm, "auroc": mean, "by_seed": values, "gate": gate, "passed": mean > gate}


def _seed_records(table: pd.DataFrame, one: Scores, bins: list[Record]) -> list[Record]:
    """The plain figures of one training: DeLong's and Wilson's intervals, images taken as independent."""
    records = []
    label = table["label"].to_numpy()
    for some in bins:
        inside = (table["size_bin"] == some["bin"]).to_numpy()
        record: Record = {"arm": one.arm, "seed": one.seed, "bin": some["bin"], "n": some["n"]}
        if not some["too_few"]:
            kept = inside | (label == 0)
            record["auroc"] = asdict(auroc(label[kept], one.logit[kept].astype(float)))
            record["sensitivity"] = asdict(proportion(int(one.called[inside].sum()), int(inside.sum())))
            record["cpm"] = Froc(one.marked).cpm(inside)
        records.append(record)
    return records


def _overall(table: pd.DataFrame, some: list[Scores], bins: list[Record], drawn: Resampled) -> Record:
    """Means over seeds: specificity at the threshold, AUROC over the small bins, localisation of all findings."""
    label = table["label"].to_numpy()
    curves = [curve for one in some if (curve := Froc(one.marked).sensitivity(label == 1)) is not None]
    sensitivities = np.array(curves)
    specificity = [float((~one.called[label == 0]).mean()) for one in some]
    return {
        "arm": some[0].arm,
        "specificity": float(np.mean(specificity)),
        "specificity_by_seed": specificity,
        "small_auroc": drawn.mean(small_terms(bins, some[0].arm)),
        "froc": [float(value) for value in sensitivities.mean(axis=0)] if sensitivities.size else None,
        "cpm": float(sensitivities.mean()) if sensitivities.size else None,
    }


def _pair_records(
    table: pd.DataFrame, arms: Mapping[str, list[Scores]], bins: list[Record], drawn: Resampled, pair: tuple[str, str]
) -> list[Record]:
    """Differences of a pair in each bin: arm minus reference."""
    arm, reference = pair
    most = {name: np.mean([one.called for one in arms[name]], axis=0) > 0.5 for name in pair}
    records = []
    for one in bins:
        record: Record = {"arm": arm, "reference": reference, **{key: one[key] for key in ("bin", "n", "too_few")}}
        for metric in METRICS:
            difference = drawn.mean([(1.0, metric, arm, one["bin"]), (-1.0, metric, reference, one["bin"])])
            if difference and difference["error"] is not None:
                difference["detectable"] = smallest_detectable(difference["error"])
            record[metric] = difference
        inside = (table["size_bin"] == one["bin"]).to_numpy()
        only_arm = int((most[arm] & ~most[reference])[inside].sum())
        only_reference = int((~most[arm] & most[reference])[inside].sum())
        p = None if one["too_few"] else mcnemar(only_arm, only_reference)
        record |= {"only_arm": only_arm, "only_reference": only_reference, "mcnemar_p": p}
        if one["too_few"]:
            # Without figures of its own: from the share of discordant calls over all bins.
            findings = table["label"].to_numpy() == 1
            discordant = float((most[arm] != most[reference])[findings].mean())
            record["detectable_sensitivity"] = min(1.0, smallest_detectable(math.sqrt(discordant / max(one["n"], 1))))
        records.append(record)
    for record, adjusted in zip(records, holm([record["mcnemar_p"] for record in records]), strict=True):
        record["mcnemar_p_holm"] = adjusted
    return records


class _Findings:
    """The findings of known size, for the regressions of detection on size."""

    def __init__(self, table: pd.DataFrame, arms: Mapping[str, list[Scores]]) -> None:
        known = (table["label"] == 1).to_numpy() & table["diameter_mm"].notna().to_numpy()
        self.diameter = table.loc[known, "diameter_mm"].to_numpy()
        self.patient = table.loc[known, "patient_key"].to_numpy()
        self.called = {name: np.stack([one.called[known] for one in some], axis=1) for name, some in arms.items()}

    def joint(self, names: Sequence[str]) -> Record:
        """Whether detection rises with size alike in all of these arms: the first hypothesis."""
        if len(names) < 2:
            return {"arms": list(names), "p": None, "reason": "fewer than two arms passed the gate"}
        found = interaction(self.diameter, {name: self.called[name] for name in names}, self.patient, names[0])
        return {"arms": list(names), "p": found.p, "reason": found.reason}

    def slope(self, pair: tuple[str, str]) -> Record:
        """The difference of a pair's slopes, over all seeds and for each."""
        arm, reference = pair
        called = {name: self.called[name] for name in pair}
        found = interaction(self.diameter, called, self.patient, reference)
        each = []
        for at in range(called[arm].shape[1]):
            of_seed = {name: some[:, [at]] for name, some in called.items()}
            each.append(interaction(self.diameter, of_seed, self.patient, reference).slopes[arm].value)
        about = {"cases": found.cases, "patients": found.patients, "reason": found.reason}
        return {"arm": arm, "reference": reference, **asdict(found.slopes[arm]), "by_seed": each, **about}
