# SPDX-License-Identifier: Apache-2.0
"""What was fixed before any result: the comparisons, the gate, and the rules by which a verdict falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monai_cnnprimer.validate.findings.resampled import Record, Resampled


@dataclass(frozen=True)
class Rules:
    """What was fixed before any result.

    Attributes:
        pairs: (arm, reference) to compare; the first is the hypothesis.
        gate: AUROC of the largest findings in validation that an arm must exceed, as the mean over seeds.
        few: bins of fewer findings get no figures.
        small_below_mm: bins that end at or below this are small.
        margin: a difference of AUROC in the small bins that would matter.
        resamples: of the bootstrap.
    """

    pairs: tuple[tuple[str, str], ...]
    gate: float = 0.9
    few: int = 20
    small_below_mm: float = 13.0
    margin: float = 0.05
    resamples: int = 2000


def small_terms(bins: list[Record], arm: str, sign: int = 1) -> list[tuple[float, str, str, str]]:
    """An arm's AUROC over the small bins, each bin alike, for `Resampled.mean`; bins with too few findings left out."""
    small = [one["bin"] for one in bins if one["small"] and not one["too_few"]]
    return [(sign / len(small), "auroc", arm, one) for one in small]


def verdict(
    pair: tuple[str, str],
    passed: set[str],
    interactions: list[Record],
    drawn: Resampled,
    bins: list[Record],
    rules: Rules,
) -> Record:
    """Whether the arm keeps small findings that the reference loses; see `RULES`."""
    arm, reference = pair
    record: Record = {"arm": arm, "reference": reference}
    failed = [name for name in pair if name not in passed]
    if failed:
        return record | {"verdict": "not learnt", "why": f"{' and '.join(failed)} did not pass the gate"}
    difference = drawn.mean([*small_terms(bins, arm), *small_terms(bins, reference, -1)])
    slope = next(one for one in interactions if (one["arm"], one["reference"]) == pair)
    record |= {"small_auroc_difference": difference, "slope": slope["value"], "slope_p": slope["p"]}
    if difference is None or difference["low"] is None:
        return record | {"verdict": "cannot tell", "why": "too few findings in the small bins"}
    return record | next({"verdict": word, "why": why} for word, test, why in RULES if test(difference, slope, rules))


def _steeper(slope: Record, sign: int) -> bool:
    return slope["p"] is not None and slope["p"] < 0.05 and sign * slope["value"] > 0


# In this order; the first that is true gives the word. d: mean difference of AUROC over the small bins, arm minus
# reference; s: difference of slopes.
RULES: tuple[tuple[str, Callable[[Record, Record, Rules], bool], str], ...] = (
    (
        "holds",
        lambda d, s, rules: d["low"] > 0 and min(d["by_seed"]) > 0 and _steeper(s, -1),
        "better at small findings in every seed, and more so the smaller they are",
    ),
    (
        "better at every size",
        lambda d, s, rules: d["low"] > 0 and min(d["by_seed"]) > 0,
        "better at small findings in every seed, but the advantage does not grow as they shrink",
    ),
    ("reversed", lambda d, s, rules: d["high"] < 0, "worse at small findings"),
    (
        "does not hold",
        lambda d, s, rules: d["high"] < rules.margin,
        "an advantage that would matter at small findings is ruled out",
    ),
    ("undecided", lambda d, s, rules: True, "the interval holds both no advantage and one that would matter"),
)
