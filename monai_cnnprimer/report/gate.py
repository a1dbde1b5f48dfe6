# SPDX-License-Identifier: Apache-2.0
"""An audit as one self-contained page, from the folder that `audit` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.report.page import Block, Cell, Picture, Points, Row, Section, Table, Words, page_html

_MARKS = {"pass": "good", "fail": "bad", "undecided": "open"}
_HEADLINES = {
    "pass": "Pass: no intervention moves the model beyond its limit.",
    "fail": "Fail: something that must not matter moves the model.",
    "undecided": "Undecided: there are not enough cases to tell.",
}
_LUNGS = {
    "whole": "whole images",
    "lungs_only": "only the lungs to be seen",
    "lungs_covered": "the lungs covered, their outline to be seen",
    "lung_box_covered": "a box around the lungs covered",
}


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Writes `gate.html` from `gate.json` and the figures beside it; returns its path.

    Raises:
        FileNotFoundError: the folder holds no audit.
    """
    source = Path(folder).expanduser()
    result = json.loads((source / "gate.json").read_text(encoding="utf-8"))
    page = source / "gate.html"
    write_atomically(page, gate_html(result, source / "figures"))
    return page


def gate_html(result: Mapping[str, Any], figures: Path) -> str:
    """The page of an audit; figures that were not drawn are left out.

    Args:
        result: `gate.json`.
        figures: the folder of the PNGs.
    """
    model, counts = result["model"], result["counts"]
    subtitle = (
        f"{model['bundle']} {model['bundle_version']} at {result['site']}: {counts['audited']} cases of "
        f"{counts['patients']} patients, {counts['labelled']} with a label, {counts['positives']} with the finding."
    )
    first: list[Block] = [
        Words(f"{_HEADLINES[result['verdict']]} {_sentence(result['reason'])}", _MARKS[result["verdict"]])
    ]
    first += [Words(f"Not measured: {text}.", "open") for text in result["missing"]]
    first += _picture(figures, "effects", "Effect of each intervention with its interval, control and limit",
                      "How far each intervention moves the logit; coloured by verdict, grey its control.")  # fmt: skip
    sections = [_limits(result), _all(result), _where(result), _worst(result, figures), _setting(result)]
    return page_html("Does the model take a shortcut?", subtitle, first, sections, _brand(result))


def shortcut_section(gates: Mapping[str, Path]) -> Section | None:
    """The verdict and table of each audit as a chapter of another report; None where no site was audited.

    Args:
        gates: name of a site to where its `gate.json` would be.
    """
    blocks: list[Block] = []
    for site, path in gates.items():
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            words = f"{site}: {_HEADLINES[result['verdict']]} {_sentence(result['reason'])}"
            blocks += [Words(words, _MARKS[result["verdict"]]), *_limits(result).blocks]
    return Section("shortcuts", "Does the model take a shortcut?", blocks) if blocks else None


def _brand(result: Mapping[str, Any]) -> str:
    return "The shortcut gate fails" if result["verdict"] == "fail" else ""


def _limits(result: Mapping[str, Any]) -> Section:
    rows: list[Row] = []
    for name, entry in result["interventions"].items():
        limit, judged = entry["limit"], entry["judged"]
        if limit is None:
            continue
        mark = Cell(entry["verdict"], mark=_MARKS[entry["verdict"]])
        if judged is None:
            rows.append([name, mark, str(entry["n"]), "", "", entry["reason"]])
            continue
        held = [f"{_interval(judged[key])}, limit {judged[key]['limit']:g}" for key in ("shift", "flips")]
        basis = "above its control" if limit["above_control"] else "by itself"
        rows.append([name, mark, str(entry["n"]), *held, f"{entry['reason']}; judged {basis}"])
    caption = (
        "What must not matter: mean absolute change of the logit in standard deviations of the model's logits "
        f"({result['spread']:.3f}), and share of cases that change side of the threshold. Upper ends are those of 95 % "
        f"intervals, lower ends those of {100 * (1 - result['level_of_each']):.2f} %, so that the whole gate fails at "
        f"most {100 * result['level']:g} % of models that are within all limits."
    )
    columns = ["intervention", "verdict", "n", "change of the logit", "change of side", "why"]
    blocks: list[Block] = [Table(caption, columns, rows, sorts=False)]
    left = [
        f"{name}: {count} cases left out, {reason}."
        for name, entry in result["interventions"].items()
        for reason, count in entry["left_out"].items()
        if entry["limit"] is not None
    ]
    return Section("limits", "What must not matter", [*blocks, *([Points(left)] if left else [])])


def _all(result: Mapping[str, Any]) -> Section:
    rows: list[Row] = []
    for entry in result["interventions"].values():
        if not entry["n"]:
            rows.append([entry["what"], "0", "", "", "", "", ""])
            continue
        control, auroc = entry["control"], entry["auroc"]
        rows.append(
            [
                entry["what"],
                str(entry["n"]),
                _interval(entry["change"], signed=True),
                _interval(entry["shift"]),
                _interval(control["shift"]) if control else "none",
                _interval(entry["flips"]),
                "" if auroc is None else _interval(auroc["difference"], signed=True),
            ]
        )
    caption = "Every intervention, with 95 % intervals over resampled patients; a global change has no control."
    columns = [
        "", "n", "mean change of the logit", "absolute, in SD", "of its control", "change side", "AUROC after − before",
    ]  # fmt: skip
    controls = [f"{e['what']}: {e['control_is']}." for e in result["interventions"].values() if e["control_is"]]
    words = Words("Each control changes as many pixels in a way that should mean nothing:")
    return Section("all", "All interventions", [Table(caption, columns, rows, sorts=False), words, Points(controls)])


def _where(result: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    lungs = result["lungs"]
    if lungs is None:
        blocks.append(Words("Not measured: AUROC of the lungs alone needs masks and labels of both classes.", "open"))
    else:
        rows = [[word, _interval(lungs[key])] for key, word in _LUNGS.items()]
        caption = f"AUROC, {lungs['n']} cases of {lungs['patients']} patients, {lungs['positives']} with the finding"
        blocks.append(Table(caption, ["", "AUROC"], rows, sorts=False))
        blocks.append(Words("Where the lungs are covered a model that reads them should fall to 0.5; covers are in the "
                            "image's mean grey, which no training has shown to the model."))  # fmt: skip
    attribution = result["attribution"]
    if "missing" in attribution:
        blocks.append(Words(f"Attribution was not measured: {attribution['missing']}.", "open"))
        return Section("where", "Lungs, and where the maps lie", blocks)
    for layer, told in attribution.items():
        if told["regions"] is None:
            why = f"Maps of {layer} are {told['fit']}, so nothing is read from them: {told['fit_reason']}."
            blocks.append(Words(why, "bad"))
            continue
        rows = [[region.replace("_", " "), _interval(one), str(one["n"])] for region, one in told["regions"].items()]
        caption = f"Grad-CAM of the finding at {layer}: share of its positive mass by share of the area; chance gives 1"
        blocks.append(Table(caption, ["region", "mass by area", "n"], rows, sorts=False))
    blocks.append(Words("Attribution suggests, intervention decides: only the limits above make the verdict.", "soft"))
    return Section("where", "Lungs, and where the maps lie", blocks)


def _worst(result: Mapping[str, Any], figures: Path) -> Section:
    blocks: list[Block] = []
    for name in result["shown"]:
        entry = result["interventions"][name]
        text = f"{entry['what']}: {entry['verdict']}"
        blocks += _picture(
            figures, name, f"Cases before and after, {entry['what']}", f"{text}. Logits below each picture."
        )
    words = Words("Of each intervention the cases whose logit moves most; what changed is outlined.")
    return Section("worst", "The cases that move furthest", [words, *blocks])


def _setting(result: Mapping[str, Any]) -> Section:
    rows = [[name.replace("_", " "), str(value)] for name, value in result["model"].items()]
    rows += [
        [name.replace("_", " "), str(result[name])] for name in ("seed", "resamples", "gate_sha256", "manifest_sha256")
    ]
    rows += [[f"cases {name}", str(value)] for name, value in result["counts"].items()]
    blocks: list[Block] = [Table("The model and the audit", ["", ""], rows, sorts=False)]
    if result["notes"]:
        blocks.append(Points([f"{note}." for note in result["notes"]]))
    return Section("setting", "What the numbers depend on", blocks)


def _picture(figures: Path, name: str, alt: str, caption: str) -> list[Block]:
    file = figures / f"gate_{name}.png"
    return [Picture(file.read_bytes(), alt, caption)] if file.is_file() else []


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _interval(of: Mapping[str, Any], signed: bool = False) -> str:
    if of["value"] is None:
        return "cannot be given"
    form = "{:+.3f}" if signed else "{:.3f}"
    rest = "" if of["low"] is None else f" ({form.format(of['low'])} to {form.format(of['high'])})"
    return (form.format(of["value"]) + rest).replace("-", "−").replace("+0.000", "0.000").replace("−0.000", "0.000")
