# SPDX-License-Identifier: Apache-2.0
"""Of a report: subgroups by view, sex, age and vendor, and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_cnnprimer.report.page import Block, Cell, Details, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import DASH, missing_cell, p_value, share_cell, value_cell
from monai_cnnprimer.report.validation_sites import Site

_NAMES = {"view": "view", "sex": "sex", "age_band": "age", "manufacturer": "vendor"}


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
