# SPDX-License-Identifier: Apache-2.0
"""The benchmark's result: one JSON file, tables, a text for README and docs, and figures; nothing typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monai_cnnprimer.figures.findings import Interval, Panel, Row, by_size_png, cost_png, forest_png, froc_png
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.findings.froc import RATES
from monai_cnnprimer.validate.findings.resampled import METRICS, Record
from monai_cnnprimer.validate.rounding import to_digits

NAMES = {"auroc": "AUROC", "sensitivity": "sensitivity at the locked threshold", "cpm": "CPM"}
CHANCE = {"auroc": 0.5, "sensitivity": None, "cpm": None}


@dataclass(frozen=True)
class Compared:
    """One setting on one test set.

    Attributes:
        setting: what the arms were trained on.
        cases: which test set: a contrast, or a name from outside.
        pixels: rows and columns of the input.
        analysis: as `analyse` gives it.
    """

    setting: str
    cases: str
    pixels: int
    analysis: Record

    @property
    def name(self) -> str:
        """Of this comparison in sentences."""
        return f"{self.setting}, {self.cases}"


def write_result(
    folder: str | Path,
    about: Mapping[str, Any],
    results: Sequence[Compared],
    costs: Mapping[int, pd.DataFrame],
    margin: float,
) -> str:
    """Writes `result.json`, `result.csv`, `pairs.csv`, `result.md`, `summary.md` and `figures/` into a folder.

    Args:
        folder: made if missing.
        about: goes to the head of `result.json`: `about` is a text, `command` the command to repeat it.
        results: every setting on every test set.
        costs: pixels of the input to the arms' `cost_table`.
        margin: a difference of AUROC that would matter.

    Returns:
        The sentence that the results amount to.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no results to write: no setting was run")
    path = Path(folder)
    sentence = conclusion(results)
    cost = {
        str(pixels): table[["network", "parameters", "multiply_adds"]].to_dict("records")
        for pixels, table in costs.items()
    }
    held = [{"setting": one.setting, "cases": one.cases, "pixels": one.pixels, **one.analysis} for one in results]
    whole = {**about, "conclusion": sentence, "cost": cost, "results": held}
    write_atomically(path / "result.json", json.dumps(to_digits(whole), indent=1, allow_nan=False) + "\n")
    write_atomically(path / "result.csv", _csv(bins_table(results)))
    write_atomically(path / "pairs.csv", _csv(pairs_table(results)))
    write_atomically(path / "result.md", markdown(about, results, costs))
    write_atomically(path / "summary.md", summary(about, results[0]))
    for name, picture in _figures(results, costs, margin).items():
        write_atomically(path / "figures" / name, picture)
    return sentence


def conclusion(results: Sequence[Compared]) -> str:
    """One sentence on the first pair over all comparisons, by rule, whichever way it falls.

    It holds where every verdict is *holds*; it does not where each is *does not hold* or *reversed*; it depends where
    some hold; else it was not shown.
    """
    verdicts = [(one, one.analysis["verdicts"][0]) for one in results]
    first = verdicts[0][1]
    groups: dict[str, list[str]] = {}
    for one, record in verdicts:
        groups.setdefault(record["verdict"], []).append(one.name)
    words = set(groups)
    if words == {"holds"}:
        found = "holds"
    elif words <= {"does not hold", "reversed"}:
        found = "does not hold"
    else:
        found = "depends" if "holds" in words else "was not shown"
    where = "; ".join(f"{word}: {' and '.join(names)}" for word, names in groups.items())
    claim = f"That {first['arm']} sees small findings which {first['reference']} loses"
    return f"{claim} {found} in {len(results)} comparison{'s' if len(results) > 1 else ''} ({where})."


def bins_table(results: Sequence[Compared]) -> pd.DataFrame:
    """A row for each comparison, arm and bin, over seeds and for each seed."""
    rows: list[Record] = []
    for one in results:
        for record in one.analysis["by_bin"]:
            row: Record = {"setting": one.setting, "cases": one.cases, "arm": record["arm"], "seed": "all"}
            row |= {key: record[key] for key in ("bin", "n", "patients", "too_few")}
            for metric in METRICS:
                row |= _ends(metric, record[metric])
            rows.append(row)
        for record in one.analysis["by_seed"]:
            row = {"setting": one.setting, "cases": one.cases} | {
                key: record[key] for key in ("arm", "seed", "bin", "n")
            }
            row |= _ends("auroc", record.get("auroc")) | _ends("sensitivity", record.get("sensitivity"))
            rows.append(row | {"cpm": record.get("cpm")})
    return pd.DataFrame(rows)


def pairs_table(results: Sequence[Compared]) -> pd.DataFrame:
    """A row for each comparison, pair and bin."""
    rows: list[Record] = []
    for one in results:
        for record in one.analysis["pairs"]:
            row: Record = {"setting": one.setting, "cases": one.cases}
            row |= {key: record[key] for key in ("arm", "reference", "bin", "n", "too_few")}
            for metric in METRICS:
                row |= _ends(f"{metric}_difference", record[metric])
                row[f"{metric}_detectable"] = (record[metric] or {}).get("detectable")
            rows.append(
                row | {key: record[key] for key in ("only_arm", "only_reference", "mcnemar_p", "mcnemar_p_holm")}
            )
    return pd.DataFrame(rows)


def markdown(about: Mapping[str, Any], results: Sequence[Compared], costs: Mapping[int, pd.DataFrame]) -> str:
    """The result as a text with tables, for README and docs."""
    lines = [f"**{conclusion(results)}**", "", str(about["about"]), "", f"Made by `{about['command']}`.", ""]
    lines += [
        "Each figure is the mean over seeds with its 95 % interval over resamples of patients and seeds. Thresholds "
        "were locked on validation. An arm in brackets did not learn: it failed the gate and is not compared.",
        "",
    ]
    for one in results:
        lines += _section(one, costs.get(one.pixels))
    return "\n".join(lines)


def summary(about: Mapping[str, Any], one: Compared) -> str:
    """One comparison as tables of AUROC and CPM, for a page that has no room for all."""
    lines = [f"Made by `{about['command']}`: {_counted(one)} Mean over seeds with its 95 % interval.", ""]
    return "\n".join([*lines, *_by_size(one, "auroc"), *_by_size(one, "cpm")])


def _section(one: Compared, cost: pd.DataFrame | None) -> list[str]:
    analysis = one.analysis
    told = f"{_counted(one)} Size x model over all arms that learnt: {_p(analysis['size_by_model']['p'])}."
    lines = [f"### Trained on {one.setting}, tested on {one.cases}", "", told, ""]
    for metric in METRICS:
        lines += _by_size(one, metric)
    lines += ["| pair | AUROC, small bins | slope by doubling of size | verdict |", "|---|---|---|---|"]
    slopes = {(record["arm"], record["reference"]): record for record in analysis["interactions"]}
    for record in analysis["verdicts"]:
        slope = slopes.get((record["arm"], record["reference"]))
        told = "" if slope is None else f"{_interval(slope, '+.2f')}, {_p(slope['p'])}"
        difference = _interval(record.get("small_auroc_difference"), "+.3f")
        lines.append(
            f"| {record['arm']} - {record['reference']} | {difference} | {told} | "
            f"{record['verdict']}: {record['why']} |"
        )
    if cost is not None:
        lines += ["", "| arm | parameters, million | multiply-adds, million |", "|---|---|---|"]
        lines += [
            f"| {name} | {parameters / 1e6:.2f} | {adds / 1e6:.0f} |"
            for name, parameters, adds in cost[["network", "parameters", "multiply_adds"]].itertuples(index=False)
        ]
    return [*lines, ""]


def _counted(one: Compared) -> str:
    cases = one.analysis["cases"]
    counts = ", ".join(f"{record['bin']}: {record['n']}" for record in one.analysis["bins"])
    seeds = ", ".join(str(seed) for seed in cases["seeds"])
    return (
        f"{cases['n']} images of {cases['patients']} patients, {cases['findings']} findings ({counts}); "
        f"input {one.pixels} px; seeds {seeds}."
    )


def _by_size(one: Compared, metric: str) -> list[str]:
    """A table of one metric, a row an arm; arms that did not learn in brackets."""
    bins = [record["bin"] for record in one.analysis["bins"]]
    held = {(record["arm"], record["bin"]): record for record in one.analysis["by_bin"]}
    lines = [f"| {NAMES[metric]} | {' | '.join(bins)} |", "|---" * (len(bins) + 1) + "|"]
    for record in one.analysis["gate"]:
        arm = record["arm"]
        cells = " | ".join(_cell(held[arm, name]["n"], held[arm, name][metric]) for name in bins)
        lines.append(f"| {arm if record['passed'] else f'({arm})'} | {cells} |")
    return [*lines, ""]


def _figures(results: Sequence[Compared], costs: Mapping[int, pd.DataFrame], margin: float) -> dict[str, bytes]:
    """PNG files by name, one set for each test set."""
    pictures = {}
    for cases in dict.fromkeys(one.cases for one in results):
        some = [one for one in results if one.cases == cases]
        bins = [record["bin"] for record in some[0].analysis["bins"]]
        for metric in METRICS:
            panels = [Panel(_titled(one), _by_bin(one.analysis, metric, bins)) for one in some]
            title = f"{NAMES[metric]} by size: mean over seeds, 95 % interval, tested on {cases}"
            pictures[f"{metric}-{cases}.png"] = by_size_png(panels, bins, NAMES[metric], CHANCE[metric], title)
        panels = [Panel(_titled(one), _curves(one.analysis)) for one in some]
        pictures[f"froc-{cases}.png"] = froc_png(
            panels, RATES, f"localisation, all sizes, mean over seeds, tested on {cases}"
        )
        pictures[f"forest-{cases}.png"] = forest_png(
            _forest(some, bins),
            [_titled(one) for one in some],
            f"paired differences by size, tested on {cases}",
            margin,
        )
        if all(one.pixels in costs for one in some):
            panels = [Panel(_titled(one), _small(one.analysis)) for one in some]
            adds = [
                dict(zip(costs[one.pixels]["network"], costs[one.pixels]["multiply_adds"], strict=True)) for one in some
            ]
            pictures[f"cost-{cases}.png"] = cost_png(
                panels, adds, "AUROC, mean of small bins", f"accuracy at small findings against cost, tested on {cases}"
            )
    return pictures


def _titled(one: Compared) -> str:
    """A panel's title, with the arms that are shown but not compared."""
    failed = [record["arm"] for record in one.analysis["gate"] if not record["passed"]]
    return f"{one.setting}\nnot learnt: {', '.join(failed)}" if failed else one.setting


def _by_bin(analysis: Record, metric: str, bins: Sequence[str]) -> dict[str, list[Interval | None]]:
    arms: dict[str, list[Interval | None]] = {}
    held = {(record["arm"], record["bin"]): record[metric] for record in analysis["by_bin"]}
    for record in analysis["gate"]:
        arms[record["arm"]] = [_triple(held.get((record["arm"], name))) for name in bins]
    return arms


def _curves(analysis: Record) -> dict[str, list[Interval | None]]:
    return {
        record["arm"]: [(value, None, None) for value in record["froc"] or []] or [None] * len(RATES)
        for record in analysis["overall"]
    }


def _small(analysis: Record) -> dict[str, list[Interval | None]]:
    """Each arm's AUROC over the small bins."""
    return {record["arm"]: [_triple(record["small_auroc"])] for record in analysis["overall"]}


def _forest(some: Sequence[Compared], bins: Sequence[str]) -> list[Row]:
    held = {
        (place, record["arm"], record["reference"], record["bin"]): record["auroc"]
        for place, one in enumerate(some)
        for record in one.analysis["pairs"]
    }
    pairs = [(record["arm"], record["reference"]) for record in some[0].analysis["verdicts"]]
    return [
        Row(
            f"{arm} - {reference}, {name}",
            [_triple(held.get((place, arm, reference, name))) for place in range(len(some))],
            name == bins[0],
        )
        for arm, reference in pairs
        for name in bins
    ]


def _triple(record: Record | None) -> Interval | None:
    return None if record is None else (record["value"], record["low"], record["high"])


def _ends(name: str, record: Record | None) -> Record:
    ends = record or {"value": None, "low": None, "high": None}
    return {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}


def _cell(n: int, record: Record | None) -> str:
    return f"too few (n = {n})" if record is None else _interval(record, ".2f")


def _interval(record: Record | None, style: str) -> str:
    if record is None or record["value"] is None:
        return "not known"
    value = format(record["value"], style)
    if record["low"] is None:
        return value
    return f"{value} ({format(record['low'], style)} to {format(record['high'], style)})"


def _p(value: float | None) -> str:
    if value is None:
        return "p not known"
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))
