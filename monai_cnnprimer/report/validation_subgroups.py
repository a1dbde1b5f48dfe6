# SPDX-License-Identifier: Apache-2.0
"""Of a report: subgroups, what is known without the image, and what the attributions show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from monai_cnnprimer.report.page import Block, Cell, Details, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import (
    DASH,
    Figure,
    count,
    missing_cell,
    p_value,
    percent,
    share_cell,
    share_with_interval,
    value_cell,
)
from monai_cnnprimer.report.validation_sites import Site
from monai_cnnprimer.validate.baselines import site_baseline
from monai_cnnprimer.validate.overlap import shared_cases
from monai_cnnprimer.validate.statistics import auroc

_NAMES = {"view": "view", "sex": "sex", "age_band": "age", "manufacturer": "vendor"}
_WORDS = {
    "randomised_correlation": "rank correlation with maps of random weights (0: the maps depend on the weights)",
    "insertion": "insertion, area under the curve",
    "deletion": "deletion, area under the curve",
    "probability_blurred": "probability of the blurred image",
    "probability_grey": "probability of plain grey",
    "outside_lung_mass_per_area": "share of the map outside the lungs, by area (1: chance)",
    "finding_iou": "overlap with the finding (IoU)",
}
_MEASURES = {
    "area": "share of the image that is {}",
    "pointing": "maximum of the map lies in {}",
    "mass": "share of the map in {}",
    "mass_per_area": "share of the map in {}, by area (1: chance)",
}


def subgroup_section(sites: Sequence[Site]) -> Section:
    """AUROC, sensitivity and specificity by view, sex, age and vendor, and by pairs of them."""
    labelled = [site for site in sites if site.run.complete and len(site.labelled)]
    single, pairs = (_subgroup_tables(labelled, of_pairs) for of_pairs in (False, True))
    if not single and not pairs:
        return Section("subgroups", "Subgroups", [Words("The runs hold no subgroups of labelled cases.", "open")])
    words = Words(
        "Each group is compared with all other cases of its site. p is adjusted after Holm over all tests of the site: "
        "▼ lower, ▲ higher than the rest, no mark: no difference shown. Too few: a class has fewer than 20 patients in "
        "the group or in the rest, and nothing is judged. Sites without labels have no column."
    )
    folded: list[Block] = [Details("Pairs of attributes", pairs)] if pairs else []
    return Section("subgroups", "Subgroups", [words, *single, *folded])


def _subgroup_tables(sites: Sequence[Site], of_pairs: bool) -> list[Table]:
    """One for each figure: a row a group, a column a site."""
    groups = _groups(sites, of_pairs)
    tables = []
    for name, title in (("auroc", "AUROC"), ("sensitivity", "Sensitivity"), ("specificity", "Specificity")):
        rows: list[Row] = [
            [group, *(_group_cell(of.get(site.name), name) for site in sites)] for group, of in groups.items()
        ]
        caption = f"{title} by {'pairs of attributes' if of_pairs else 'subgroup'}, with 95 % interval and n."
        tables.append(Table(caption, ["group", *(site.name for site in sites)], rows, stack=False))
    return tables if groups else []


def _groups(sites: Sequence[Site], of_pairs: bool) -> dict[str, dict[str, Any]]:
    """Name of each group to its entry at each site, attribute by attribute, in the order of first appearance."""
    groups: dict[str, dict[str, Any]] = {}
    entries = [(site.name, entry) for site in sites for entry in site.run.metrics.get("subgroups", [])]
    for by in dict.fromkeys(tuple(entry["by"]) for _, entry in entries):
        for name, entry in sorted(entries, key=lambda pair: pair[1]["group"]):
            if tuple(entry["by"]) == by and (len(by) > 1) == of_pairs:
                groups.setdefault(_group_name(entry), {})[name] = entry
    return groups


def _group_name(entry: Mapping[str, Any]) -> str:
    pairs = zip(entry["by"], entry["group"], strict=True)
    return ", ".join(f"{_NAMES.get(by, by)} {value or 'not stated'}" for by, value in pairs)


def _group_cell(entry: Mapping[str, Any] | None, name: str) -> Cell:
    """The figure, and what its test against the rest of the site says."""
    if entry is None:
        return Cell(f"{DASH} (no such case)", mark="soft")
    figure = {**entry[name], "of": name}
    if figure["value"] is None:
        return missing_cell(figure)
    cell = value_cell(figure) if name == "auroc" else share_cell(figure)
    test = (entry["against_rest"] or {}).get(name)
    if not test:
        return Cell(f"{cell.text}, too few", sort=cell.sort, mark="soft")
    sign, mark = {"lower": ("▼ ", "bad"), "higher": ("▲ ", "good")}.get(test["verdict"], ("", ""))
    return Cell(f"{cell.text}, {sign}{p_value(test['p_holm'])}", sort=cell.sort, mark=mark)


def image_section(sites: Sequence[Site], pooled: Sequence[Block]) -> Section:
    """What ranks the cases without looking at the image.

    Args:
        sites: whose own baselines are shown.
        pooled: what is known of all sites together.
    """
    complete = [site for site in sites if site.run.complete]
    rows: list[Row] = []
    for site in complete:
        alone = site.figure("baselines.metadata")
        columns = ", ".join(alone.get("columns") or []) or DASH
        cell = value_cell(alone) if alone.get("value") is not None else _no_baseline(alone)
        ages = site.figure("baselines.ages_outside")
        age = share_cell(ages) if ages.get("n") else Cell(f"{DASH} (ages not known)", mark="soft")
        rows.append([site.name, value_cell(site.figure("auroc")), cell, columns, age])
    caption = (
        "AUROC of the model, and of a model that sees only how the image was made (size, spacing, vendor, view), never "
        "its pixels; scores out of fold, patients never in two folds. Beside them the share of cases of an age that "
        "training never saw, where age is known. 95 % intervals in brackets."
    )
    words = Words(
        "Where the second AUROC comes near the first, the labels can be guessed without any radiology, and the model "
        "may have learnt that instead."
    )
    heads = ["site", "the model", "without the image", "what it sees", "age outside training"]
    blocks: list[Block] = [words, Table(caption, heads, rows), *pooled]
    return Section("image", "Is it the image at all?", blocks)


def _no_baseline(alone: Figure) -> Cell:
    return Cell(f"{DASH} ({alone['reason']})", mark="soft") if alone.get("reason") else missing_cell(alone)


def attribution_section(sites: Sequence[Site]) -> Section | None:
    """Whether Grad-CAM depends on the weights, and where the maps lie; None where no site has maps."""
    layers = {(site.name, layer): said for site in sites for layer, said in _layers(site).items()}
    if not layers:
        return None
    heads = ["measure", *(f"{name}, {layer}" for name, layer in layers)]
    rows: list[Row] = [["do the maps depend on the weights?", *(map(_fit_cell, layers.values()))]]
    measures = dict.fromkeys(key for said in layers.values() for key in said if isinstance(said[key], Mapping))
    rows += [[_measure(key), *(_measured(key)(said.get(key)) for said in layers.values())] for key in measures]
    chosen = ", ".join(
        f"{site.name} {site.explained['chosen']} of {site.explained['seen']}" for site in sites if _layers(site)
    )
    words = Words(
        f"Grad-CAM was taken of chosen cases ({chosen}): errors, least and most confident, and random ones. They "
        "are no sample of all cases. A map suggests where the score came from; it proves no cause."
    )
    caption = "Grad-CAM by site and layer: means over the chosen cases with 95 % intervals, n below."
    return Section(
        "attributions", "What the attributions show", [words, Table(caption, heads, rows, stack=False, sorts=False)]
    )


def _layers(site: Site) -> dict[str, Mapping[str, Any]]:
    return {name: said for name, said in site.explained.items() if isinstance(said, dict) and "fit" in said}


def _fit_cell(said: Mapping[str, Any]) -> Cell:
    words = {"fit": ("yes", "good"), "unfit": ("NO: the maps are unfit to explain", "bad")}
    text, mark = words.get(said["fit"], ("not known", "open"))
    return Cell(text if said["fit"] == "fit" else f"{text}\n{said['fit_reason']}", mark=mark)


def _measure(key: str) -> str:
    if key in _WORDS:
        return _WORDS[key]
    region, _, measure = key.partition("_")
    return _MEASURES[measure].format(f"the {region}") if measure in _MEASURES else key.replace("_", " ")


def _measured(key: str) -> Callable[[Figure | None], Cell]:
    share = key.endswith(("_pointing", "_mass", "_area")) and not key.endswith("_per_area")

    def cell(figure: Figure | None) -> Cell:
        if not figure or figure.get("value") is None:
            return Cell(DASH, mark="soft")
        if not share:
            return value_cell(figure)
        return Cell(f"{share_with_interval(figure)}\nn {figure['n']}", sort=figure["value"])

    return cell


def shares_of_errors(site: Site) -> str:
    """How many of a site's labelled cases are false, in words."""
    labelled = site.labelled
    wrong = labelled[labelled["label"] != labelled["predicted"]]
    false_positive = int((wrong["predicted"] == 1).sum())
    return (
        f"{count(len(wrong), 'error')} of {len(labelled):,} ({percent(len(wrong) / len(labelled), len(labelled))} %): "
        f"{false_positive:,} false positive, {len(wrong) - false_positive:,} false negative"
    )


def pooled_blocks(sites: Sequence[Site]) -> list[Block]:
    """Of all sites together: what the site alone tells of the label, and what two sites share; [] for one site."""
    complete = [site for site in sites if site.run.complete]
    if len(complete) < 2:
        return []
    return [*_site_identity([site for site in complete if len(site.labelled)]), _shared(complete)]


def _site_identity(sites: Sequence[Site]) -> list[Block]:
    """The model on all labelled cases together, beside a score that knows the site and nothing else."""
    if len(sites) < 2:
        return []
    pooled = pd.concat([site.labelled.assign(site=site.name) for site in sites])
    label = pooled["label"].to_numpy(dtype=np.int64)
    model = asdict(auroc(label, pooled["logit"].to_numpy(dtype=np.float64)))
    alone = asdict(site_baseline(label, pooled["site"].to_numpy(), (pooled["site"] + pooled["patient_key"]).to_numpy()))
    cells = [value_cell(model), value_cell(alone) if alone["value"] is not None else _no_baseline(alone)]
    rows: list[Row] = [
        ["the model, sites pooled", cells[0], "mixes differences within sites with those between them"],
        ["the site's name alone", cells[1], "what knowing the site tells of the label, as prevalence differs"],
    ]
    caption = "Labelled cases of all sites together: AUROC, 95 % intervals in brackets."
    return [Table(caption, ["score", "AUROC", "what it means"], rows, sorts=False)]


def _shared(sites: Sequence[Site]) -> Table:
    """Patients and files at two sites; patients only where both sites' pseudonyms are of one key."""
    keys = {site.name: site.run.run.get("key_id", "") for site in sites}
    rows: list[Row] = []
    for pair in shared_cases({site.name: site.run.manifest for site in sites}):
        comparable = keys[pair.first] != "" and keys[pair.first] == keys[pair.second]
        unknown = Cell(f"{DASH} (pseudonyms of different or unknown keys)", mark="soft")
        patients = _shared_cell(pair.patients) if comparable or pair.patients else unknown
        rows.append([f"{pair.first} and {pair.second}", patients, _shared_cell(pair.files)])
    return Table("What two sites have in common, by number.", ["sites", "patients", "identical files"], rows)


def _shared_cell(number: int) -> Cell:
    return Cell(f"{number:,}", sort=number, mark="bad" if number else "")
