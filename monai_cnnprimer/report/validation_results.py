# SPDX-License-Identifier: Apache-2.0
"""Of a report: the table and forest plots of sites, ROC, PR, reliability and decision curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from monai_cnnprimer.figures.validation import (
    Curve,
    Estimate,
    Reliability,
    decision_svg,
    forest_svg,
    precision_recall_svg,
    reliability_svg,
    roc_svg,
)
from monai_cnnprimer.report.page import Block, Cell, Figure, Figures, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import decimal, share_cell, value_cell, with_interval
from monai_cnnprimer.report.validation_sites import Site
from monai_cnnprimer.report.validation_words import judge

_MARKS = {"holds": "good", "better than chance": "good", "does not hold": "bad", "worse than chance": "bad"}
_INTERVALS = "95 % intervals in brackets"


def site_table(sites: Sequence[Site], internal: Site | None) -> Table:
    """One line a site: cases, AUROC, sensitivity, specificity, verdict."""
    rows: list[Row] = []
    for site in sites:
        verdict = judge(site, internal)
        judged = verdict.judgement + (f"\nloss {with_interval(verdict.loss)}" if verdict.loss else "")
        last = Cell(judged, mark=_MARKS.get(verdict.judgement, "open" if verdict.judgement != "internal" else "soft"))
        if not site.run.complete:
            rows.append([site.name, *(Cell("–", mark="soft") for _ in range(4)), last])
            continue
        star = site.run.retuned
        images, labelled = len(site.run.predictions), len(site.labelled)
        said = (
            f"{images:,} images, {site.patients:,} patients\n{labelled:,} labelled, {site.positives:,} with the finding"
        )
        cases = Cell(said, sort=images)
        shares = [share_cell(site.figure(name), star) for name in ("sensitivity", "specificity")]
        rows.append([site.name, cases, value_cell(site.figure("auroc")), *shares, last])
    caption = (
        f"The sites. {_INTERVALS}: AUROC by DeLong, shares by Wilson, both by patients where they have several images. "
        "Sensitivity and specificity are at the locked threshold."
    )
    return Table(caption, ["site", "cases", "AUROC", "sensitivity", "specificity", "verdict"], rows)


def forest_figures(sites: Sequence[Site]) -> Figures:
    """Forest plots of AUROC, sensitivity and specificity."""
    complete = [site for site in sites if site.run.complete]
    drawn = []
    for name, title in (("auroc", "AUROC"), ("sensitivity", "Sensitivity"), ("specificity", "Specificity")):
        figures = {site.name: site.figure(name) for site in complete}
        rows = {site: Estimate(*(figure.get(key) for key in Estimate._fields)) for site, figure in figures.items()}
        svg = forest_svg(rows, title, 0.5 if name == "auroc" else None)
        told = "; ".join(f"{site} {with_interval(figure)}" for site, figure in figures.items())
        numbers = ", ".join(f"{site} n {figure.get('n', 0)}" for site, figure in figures.items())
        line = "; dashed: chance" if name == "auroc" else ", at the threshold in use"
        drawn.append(Figure(svg, f"Forest plot of {title}: {told}.", f"{title} with 95 % interval{line}. {numbers}."))
    return Figures(drawn)


def results_section(sites: Sequence[Site]) -> Section:
    """Discrimination in numbers, beyond what stands on the first screen."""
    complete = [site for site in sites if site.run.complete]
    rows: list[Row] = [
        [
            site.name,
            value_cell(site.figure("auroc")),
            value_cell(site.figure("average_precision")),
            share_cell(site.figure("prevalence")),
            share_cell(site.figure("accuracy"), site.run.retuned),
        ]
        for site in complete
    ]
    caption = (
        f"Discrimination. {_INTERVALS}. Average precision is to be read beside the share with the finding, which is "
        "what chance would reach."
    )
    heads = ["site", "AUROC", "average precision", "with the finding", "accuracy"]
    blocks: list[Block] = [Table(caption, heads, rows)]
    curves = _curves(complete)
    blocks.append(Figures(curves) if curves else Words("No site has labelled cases of both kinds: no curves.", "open"))
    return Section("discrimination", "Discrimination", blocks)


def calibration_section(sites: Sequence[Site]) -> Section:
    """Whether probabilities mean what they say, and what acting on them is worth."""
    complete = [site for site in sites if site.run.complete]
    names = ("slope", "intercept", "in_the_large", "brier", "ece")
    rows: list[Row] = []
    for site in complete:
        cells = [_without_n(value_cell(site.figure(f"calibration.{name}"))) for name in names]
        by_chance = site.figure("calibration.ece").get("by_chance")
        n = Cell(f"{len(site.labelled):,}", len(site.labelled))
        rows.append([site.name, n, *cells, Cell(decimal(by_chance), by_chance)])
    caption = (
        f"Calibration. {_INTERVALS}. Right are slope 1, intercept 0, calibration in the large 0; with a slope below 1 "
        "the probabilities are too extreme. ECE: mean distance between predicted and observed over bins of equal size; "
        "a calibrated model stays below the last column in 95 % of samples of this size."
    )
    heads = ["site", "n", "slope", "intercept", "in the large", "Brier score", "ECE", "ECE by chance"]
    blocks: list[Block] = [Table(caption, heads, rows)]
    if drawn := _calibration_figures(complete):
        blocks.append(Figures(drawn))
    return Section("calibration", "Calibration and decision curves", blocks)


def _without_n(cell: Cell) -> Cell:
    """For a table that has n in a column of its own."""
    return Cell(cell.text.split("\n")[0], cell.sort, mark=cell.mark)


def _curves(sites: Sequence[Site]) -> list[Figure]:
    both = [site for site in sites if site.has_both_classes]
    if not both:
        return []
    roc: dict[str, Curve | None] = dict.fromkeys(site.name for site in sites)
    pr = dict(roc)
    for site in both:
        roc[site.name], pr[site.name] = _roc(site), _precision_recall(site)
    numbers = ", ".join(f"{site.name} n {len(site.labelled)} ({site.positives} with the finding)" for site in both)
    areas = "; ".join(f"{site.name} {with_interval(site.figure('auroc'))}" for site in both)
    precisions = "; ".join(f"{site.name} {with_interval(site.figure('average_precision'))}" for site in both)
    shares = {site.name: site.positives / len(site.labelled) for site in both}
    return [
        Figure(roc_svg(roc), f"ROC curves. AUROC: {areas}.", f"ROC; dashed: chance. AUROC {areas}. {numbers}."),
        Figure(
            precision_recall_svg(pr, shares, "Precision and recall"),
            f"Precision-recall curves. Average precision: {precisions}.",
            f"Precision (PPV) against recall (sensitivity); dotted: share with the finding. {numbers}.",
        ),
    ]


def _roc(site: Site) -> Curve:
    labels, logits, _ = site.columns()
    false, true, _ = roc_curve(labels, logits)
    sensitivity, specificity = (site.figure(name).get("value") for name in ("sensitivity", "specificity"))
    return Curve(false, true, None if sensitivity is None or specificity is None else (1 - specificity, sensitivity))


def _precision_recall(site: Site) -> Curve:
    labels, logits, _ = site.columns()
    precision, recall, _ = precision_recall_curve(labels, logits, drop_intermediate=True)
    sensitivity, ppv = (site.figure(name).get("value") for name in ("sensitivity", "ppv"))
    # The last point of scikit-learn, precision 1 at recall 0, belongs to no threshold.
    return Curve(recall[:-1], precision[:-1], None if sensitivity is None or ppv is None else (sensitivity, ppv))


def _calibration_figures(sites: Sequence[Site]) -> list[Figure]:
    curves = {site.name: _reliability(site) for site in sites}
    names = [name for name, curve in curves.items() if curve is not None]
    numbers = ", ".join(f"{site.name} n {len(site.labelled)}" for site in sites if site.name in names)
    drawn = []
    if names:
        caption = (
            "Reliability, in bins of equal size, with 95 % intervals (Wilson); dashed: predicted as observed. "
            f"{numbers}."
        )
        drawn.append(Figure(reliability_svg(curves), f"Reliability diagram of {', '.join(names)}.", caption))
    acting = {site.name: _net_benefit(site, "value") for site in sites}
    names = [name for name, curve in acting.items() if curve is not None]
    if names:
        everyone = {site.name: curve for site in sites if (curve := _net_benefit(site, "everyone")) is not None}
        caption = (
            "Net benefit in true positives a case, at each site's own share with the finding; thin dotted: calling "
            f"every case positive, dashed: none. It needs calibrated probabilities. {numbers}."
        )
        svg = decision_svg(acting, everyone, "Decision curves")
        drawn.append(Figure(svg, f"Decision curves of {', '.join(names)}.", caption))
    return drawn


def _reliability(site: Site) -> Reliability | None:
    bins = site.run.metrics.get("reliability")
    if not bins or not site.has_both_classes:
        return None
    observed = [np.array([part["observed"][name] for part in bins]) for name in ("value", "low", "high")]
    return Reliability(np.array([part["predicted"] for part in bins]), *observed)


def _net_benefit(site: Site, of: str) -> Curve | None:
    """Of acting on the model (`value`) or on everyone; None where the site lacks one of the classes."""
    points = site.run.metrics.get("decision_curve")
    if not points or not site.has_both_classes:
        return None
    return Curve(np.array([point["threshold"] for point in points]), np.array([point[of] for point in points]))
