# SPDX-License-Identifier: Apache-2.0
"""A comparison of two runs as one self-contained page, from the folder that `compare_runs` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_cnnprimer.report.page import Block, Picture, Points, Section, Table, Words, page_html
from monai_cnnprimer.run_directory import write_atomically

_METRICS = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity", "accuracy": "accuracy"}
_OUTCOMES = {
    "both_right": "both right",
    "only_a_right": "only A right",
    "only_b_right": "only B right",
    "both_wrong": "both wrong",
}
_CALLS = {"both": "both positive", "only_a": "only A positive", "only_b": "only B positive", "neither": "both negative"}
_AGREEMENT = {
    "same_call": "share of cases with the same call",
    "kappa": "Cohen's kappa of the calls",
    "pearson": "correlation of the logits",
    "spearman": "rank correlation of the logits",
    "bias": "mean difference of the logits",
}
_MAPS = {
    "pearson": "correlation of both models' maps",
    "other_cases": "the same with maps of other cases of the class",
    "above_other_cases": "by how much the first exceeds the second",
    "spearman": "rank correlation of both models' maps",
    "common_mass": "share of the positive mass in common",
}


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Writes `comparison.html` from `comparison.json` and the figures beside it; returns its path.

    Raises:
        FileNotFoundError: the folder holds no comparison.
    """
    source = Path(folder).expanduser()
    result = json.loads((source / "comparison.json").read_text(encoding="utf-8"))
    page = source / "comparison.html"
    write_atomically(page, comparison_html(result, source / "figures"))
    return page


def comparison_html(result: Mapping[str, Any], figures: Path) -> str:
    """The page of a comparison; figures that were not drawn are left out.

    Args:
        result: `comparison.json`.
        figures: the folder of the PNGs.
    """
    a, b = (result["runs"][letter]["name"] for letter in "ab")
    cases = result["cases"]
    counts = f"{cases['n']} cases of {cases['patients']} patients, {cases['labelled']} with a label"
    first: list[Block] = [Words(text, "bad") for text in result["brand"]]
    first += [Words(f"Not compared: {text}.", "open") for text in result["missing"]]
    if result["metrics"]:
        first.append(_differences("All cases", result["metrics"]))
    sections = [_bins(result, figures), _agreement(result, figures), _maps(result, figures), _setting(result)]
    subtitle = f"A: {a}. B: {b}. {counts}. Every difference is B − A; intervals are 95 %."
    return page_html("Two runs over the same cases", subtitle, first, sections, "; ".join(result["brand"]))


def _bins(result: Mapping[str, Any], figures: Path) -> Section:
    blocks: list[Block] = []
    if result["outcomes"] and result["cases"]["labelled"]:
        rows = [[word, str(result["outcomes"][key])] for key, word in _OUTCOMES.items()]
        blocks.append(Table("Cases by who is right, each at the run's own threshold", ["", "cases"], rows, sorts=False))
    blocks += _picture(figures, "forest", "Differences of figures with intervals", "Differences, B − A.")
    for row in (result["by"] or {"rows": []})["rows"]:
        counts = f"{row['n']} cases, {row['positives']} of them with a finding"
        blocks.append(_differences(f"{result['by']['column']}: {row['bin']} ({counts})", row))
    blocks += _drawn(result, "differing", figures, "Cases that the two models call differently")
    return Section("who-is-right", "Who is right where", blocks or [Words("No case has a label.", "open")])


def _differences(caption: str, figures: Mapping[str, Any]) -> Table:
    """One row a figure: both models, their difference, p."""
    rows = []
    for key, word in _METRICS.items():
        if key not in figures:
            continue
        of = figures[key]
        n, difference = str(of["n"]), of["difference"]
        if of["too_few"]:
            rows.append([word, n, "too few", "too few", "too few", ""])
            continue
        p = difference.get("p_holm", difference["p"])
        rows.append([word, n, _interval(of["a"]), _interval(of["b"]), _interval(difference, signed=True), _p(p)])
    holm = any("p_holm" in figures[key]["difference"] for key in _METRICS if key in figures)
    columns = ["", "n", "A", "B", "B − A", "p (Holm over bins)" if holm else "p"]
    return Table(caption, columns, rows, sorts=False)


def _agreement(result: Mapping[str, Any], figures: Path) -> Section:
    of = result["agreement"]
    rows = [[word, _interval(of[key], signed=key == "bias"), str(of[key]["n"])] for key, word in _AGREEMENT.items()]
    rows += [
        [f"{side} limit of agreement", _interval(of["limits"][side], signed=True), str(of["limits"][side]["n"])]
        for side in ("lower", "upper")
    ]
    calls = [[word, str(of["calls"][key])] for key, word in _CALLS.items()]
    blocks: list[Block] = [
        Table("Agreement, whoever is right", ["", "value", "n"], rows, sorts=False),
        Table("Calls", ["", "cases"], calls, sorts=False),
        *_picture(figures, "agreement", "Logits of A against B, and their difference against their mean", "Logits."),
    ]
    return Section("agreement", "How far the two agree", blocks)


def _maps(result: Mapping[str, Any], figures: Path) -> Section:
    of = result["maps"]
    if of is None:
        return Section("maps", "Same answer, other reason?", [Words("The runs kept no maps to compare.", "open")])
    blocks: list[Block] = [
        Words(
            f"Both models are right on {of['both_right']} cases; the maps of {of['compared']} could be compared, "
            f"{of['a']['layer']} of A with {of['b']['layer']} of B on a grid of {of['grid']} × {of['grid']}. "
            "Maps of any chest radiograph resemble each other: what counts is by how much the same case's maps are "
            "more alike than those of different cases."
        ),
        *(Words(mark, "bad") for mark in of["marks"]),
    ]
    rows = [
        [word, _interval(of[key], signed=True), _quartiles(of[key]), str(of[key]["n"])] for key, word in _MAPS.items()
    ]
    columns = ["", "mean", "quartiles of cases", "n"]
    blocks.append(Table("Likeness of the maps where both are right", columns, rows, sorts=False))
    if of["regions"]:
        masses = [
            [region, _interval(masses["a"]), _interval(masses["b"]), _interval(masses["difference"], signed=True),
             str(masses["a"]["n"])]
            for region, masses in of["regions"].items()
        ]  # fmt: skip
        blocks.append(
            Table("Share of the maps' positive mass by region", ["", "A", "B", "B − A", "n"], masses, sorts=False)
        )
    blocks += _picture(figures, "same_answer", "Likeness of maps, case by case", "Likeness of maps.")
    blocks += _drawn(result, "discordant", figures, "Both right, maps least alike")
    return Section("maps", "Same answer, other reason?", blocks)


def _setting(result: Mapping[str, Any]) -> Section:
    runs = result["runs"]
    names = [name for name in runs["a"] if name != "name"]
    rows = [[name.replace("_", " "), str(runs["a"][name]), str(runs["b"][name])] for name in names]
    tests = (
        "AUROC: DeLong et al. 1988, paired. Differences of proportions: bootstrap over patients, "
        f"{result['resamples']} resamples, seed {result['seed']}; p: exact McNemar. Kappa: Cohen 1960. Limits of "
        "agreement: Bland and Altman 1986."
    )
    blocks: list[Block] = [Table("The runs", ["", "A", "B"], rows, sorts=False), Words(tests)]
    if result["notes"]:
        blocks.append(Points([f"{note}." for note in result["notes"]]))
    return Section("setting", "What the numbers depend on", blocks)


def _drawn(result: Mapping[str, Any], name: str, figures: Path, what: str) -> list[Block]:
    shown = result["shown"].get(name)
    if shown is None:
        return []
    text = f"{what}: {shown['n']}, shown {shown['shown']}"
    if shown["without_image"]:
        text += f"; {shown['without_image']} have no image in either run directory, --dataset-dir would draw them"
    return [*_picture(figures, name, what, f"{text}."), *([] if shown["shown"] else [Words(f"{text}.", "soft")])]


def _picture(figures: Path, name: str, alt: str, caption: str) -> list[Block]:
    file = figures / f"compare_{name}.png"
    return [Picture(file.read_bytes(), alt, caption)] if file.is_file() else []


def _interval(of: Mapping[str, Any], signed: bool = False) -> str:
    if of["value"] is None:
        return "cannot be given"
    form = "{:+.3f}" if signed else "{:.3f}"
    rest = "" if of["low"] is None else f" ({form.format(of['low'])} to {form.format(of['high'])})"
    return (form.format(of["value"]) + rest).replace("-", "−").replace("+0.000", "0.000")


def _quartiles(of: Mapping[str, Any]) -> str:
    return "" if of["quartiles"][0] is None else " / ".join(f"{x:.2f}" for x in of["quartiles"]).replace("-", "−")


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
