# SPDX-License-Identifier: Apache-2.0
"""Of a report: TRIPOD+AI and CLAIM, item by item: what the runs give, and what stays for the authors.

Items are told in our own words, by the numbers of TRIPOD+AI (Collins et al., BMJ 2024; 385:e078378) and of the update
of CLAIM (Tejani et al., Radiol. Artif. Intell. 2024; 6:e240300).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monai_cnnprimer.report.page import Cell, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import count
from monai_cnnprimer.report.validation_sites import Site, locked_point


class Item(NamedTuple):
    """An item: its number, what it asks, what the runs give (`{}` names of `_facts`; empty: open), where it stands."""

    number: str
    asks: str
    gives: str = ""
    anchor: str = ""


TRIPOD_AI = (
    Item("1", "title names the kind of study, population and outcome"),
    Item("2", "abstract by TRIPOD+AI for Abstracts"),
    Item("3", "background: context, target population, known inequalities"),
    Item("4", "objectives: development, evaluation or both", "evaluation of a finished model"),
    Item("5a", "sources of the data and how representative they are", "{sites}; how representative: open", "flow"),
    Item("5b", "dates of the data"),
    Item("6a", "setting and number of centres", "{sites}", "flow"),
    Item("6b", "eligibility", "rules of the index of the exports: refused files with reasons", "flow"),
    Item("6c", "treatments received"),
    Item("7", "preparation of the data", "one preprocessing for all sites, SHA-256 {transforms}", "model"),
    Item("8", "outcome: definition, assessment, blinding"),
    Item("9", "predictors", "the image alone; no clinical data enter the model", "model"),
    Item("10", "how the number of cases was arrived at"),
    Item("11", "missing data", "unlabelled and unreadable cases are counted, none is filled in", "flow"),
    Item("12a", "how the data were used", "all labelled cases test; whether the weights saw them: open", "flow"),
    Item("12b–c", "building of the model and its settings"),
    Item("12d", "differences between clusters", "each site by itself, one beside the other", "discrimination"),
    Item("12e", "measures of performance", "discrimination, calibration, net benefit with intervals", "calibration"),
    Item("12f", "updating of the model", "{updating}", "operating-point"),
    Item("12g", "how predictions were computed", "weights SHA-256 {weights}, threshold {threshold}", "model"),
    Item("13", "class imbalance", "no method used in testing; prevalence beside what depends on it", "discrimination"),
    Item("14", "fairness", "subgroups by view, sex, age, vendor and pairs of them", "subgroups"),
    Item("15", "output of the model", "probability of the finding; positive from {threshold}", "operating-point"),
    Item("16", "differences between development and evaluation data"),
    Item("17", "ethical approval"),
    Item("18a–d", "funding, conflicts of interest, protocol, registration"),
    Item("18e", "data sharing"),
    Item("18f", "code sharing", "monai_cnnprimer, Apache-2.0; versions in the provenance", "provenance"),
    Item("19", "patient and public involvement"),
    Item("20a", "flow of participants", "files, refused with reasons, predicted, labelled", "flow"),
    Item("20b", "characteristics of participants", "numbers by view, sex, age and vendor; more: open", "subgroups"),
    Item("20c", "comparison with the development data"),
    Item("21", "participants and events in each analysis", "{cases}", "flow"),
    Item("22", "the full model, so that others can use it", "weights by SHA-256; where they can be had: open", "model"),
    Item("23a", "performance with intervals, also in subgroups", "every figure with interval and n", "discrimination"),
    Item("23b", "heterogeneity between clusters", "forest plots", "discrimination"),
    Item("24", "results of updating the model", "{updating}", "operating-point"),
    Item("25", "interpretation, also of fairness"),
    Item("26", "limitations", "those that the runs show; the study's own: open", "limits"),
    Item("27a–c", "handling of poor input, users' part, next steps", "poor input is refused with a reason", "flow"),
)
CLAIM = (
    Item("1–4", "title, abstract, background, aims"),
    Item("5", "prospective or retrospective"),
    Item("6", "goal of the study", "external validation of a finished model", "model"),
    Item("7", "data sources", "{sites}; their origin: open", "flow"),
    Item("8", "inclusion and exclusion criteria", "refused files with reasons", "flow"),
    Item("9", "preprocessing", "SHA-256 of its settings: {transforms}", "model"),
    Item("10", "selection of subsets", "none: each accepted image is tested", "flow"),
    Item(
        "11", "de-identification", "keyed hashes for cases and patients; no patient attribute in the runs", "provenance"
    ),
    Item("12", "missing data", "counted, none is filled in", "flow"),
    Item("13", "image acquisition", "what the headers state of size, spacing, exposure, vendor; more: open", "image"),
    Item("14–18", "reference standard: definition, reason, annotators, annotation, variability"),
    Item("19–20", "partitions and their level", "all cases test; whether the weights saw them: open", "flow"),
    Item("21", "intended sample size"),
    Item("22", "the model in detail", "bundle {bundle}", "model"),
    Item("23", "software and versions", "listed for each site", "provenance"),
    Item("24–27", "initialisation, training, choice of the model, ensembles"),
    Item("28", "metrics of performance", "with the rule of the words", "discrimination"),
    Item("29", "measures of uncertainty", "95 % intervals: DeLong, Wilson, bootstrap by patients", "discrimination"),
    Item("30", "robustness", "sites and subgroups beside each other", "subgroups"),
    Item("31", "explainability", "{gradcam}", "attributions"),
    Item("32", "evaluation on internal data", "{internal}", "discrimination"),
    Item("33", "testing on external data", "{sites}", "discrimination"),
    Item("34", "trial registration"),
    Item("35", "numbers included and excluded", "{cases}", "flow"),
    Item("36", "demographic and clinical characteristics", "view, sex, age, vendor; more: open", "subgroups"),
    Item("37–38", "performance and its precision", "every figure with interval and n", "discrimination"),
    Item("39", "failure analysis", "gallery of errors", "gallery"),
    Item("40", "limitations", "those that the runs show; the study's own: open", "limits"),
    Item("41", "implications for practice"),
    Item("42–43", "protocol; availability of software, model and data"),
    Item("44", "funding"),
)


def checklist_section(sites: Sequence[Site], internal: Site | None, anchors: Sequence[str]) -> Section:
    """Both lists; `anchors` are the sections that this report has."""
    facts = _facts(sites, internal)
    words = Words(
        "What the runs can fill is filled and links to its section. The rest is open, for the authors to write. A "
        "filled item says that the information is here, not that it is good. Items are in our own words. Their numbers "
        "were compared with transcriptions of both lists (52 sub-items of TRIPOD+AI, 44 items of CLAIM), not with the "
        "publications themselves, which have the exact wording."
    )
    tables = [
        Table(title, ["item", "asks for", "given here"], [_row(item, facts, anchors) for item in items])
        for title, items in (("TRIPOD+AI (2024).", TRIPOD_AI), ("CLAIM (update of 2024).", CLAIM))
    ]
    return Section("checklists", "Checklists", [words, *tables])


def _row(item: Item, facts: dict[str, str], anchors: Sequence[str]) -> Row:
    given = item.gives.format(**facts)
    linked = f"#{item.anchor}" if item.anchor in anchors else ""
    cell = Cell(given, href=linked) if given else Cell("open", mark="open")
    return [item.number, item.asks, cell]


def _facts(sites: Sequence[Site], internal: Site | None) -> dict[str, str]:
    """What the items name; empty where the runs do not give it."""
    complete = [site for site in sites if site.run.complete]
    run, point = complete[0].run.run, locked_point(complete[0])
    images, labelled = sum(len(site.run.predictions) for site in complete), sum(len(site.labelled) for site in complete)
    retuned = [site.name for site in complete if site.run.retuned]
    return {
        "sites": count(len(complete), "site"),
        "cases": f"{count(images, 'image')} predicted, {labelled:,} labelled",
        "transforms": run["transforms_sha256"][:8],
        "weights": run["weights_sha256"][:8],
        "bundle": f"{run['bundle']} {run['bundle_version']}",
        "threshold": f"{point['threshold']:g}",
        "updating": f"threshold re-tuned at {', '.join(retuned)}" if retuned else "none",
        "gradcam": "Grad-CAM with a check by random weights" if any(len(site.gradcam) for site in complete) else "",
        "internal": internal.name if internal else "",
    }
