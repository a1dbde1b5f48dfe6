# SPDX-License-Identifier: Apache-2.0
"""Of a report: is it the image at all? What ranks the cases without it, what tells sites apart, what sites share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from monai_cnnprimer.report.page import Block, Cell, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import DASH, Figure, decimal, missing_cell, share_cell, value_cell
from monai_cnnprimer.report.validation_sites import Site
from monai_cnnprimer.validate.pooled import Pooled, pooled
from monai_cnnprimer.validate.shared_cases import Shared, SharedCases, shared_cases


def image_section(sites: Sequence[Site]) -> Section:
    """What ranks the cases without looking at the image, at each site and over all, and what sites have in common."""
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
        "AUROC of the model, and of a model that sees only how the image was made (size, spacing, exposure, vendor, "
        "view), never its pixels; scores out of fold, patients never in two folds. Beside them the share of cases of "
        "an age that training never saw, where age is known. 95 % intervals in brackets."
    )
    words = Words(
        "Where the second AUROC comes near the first, the labels can be guessed without any radiology, and the model "
        "may have learnt that instead."
    )
    heads = ["site", "the model", "without the image", "what it sees", "age outside training"]
    blocks: list[Block] = [words, Table(caption, heads, rows)]
    runs = [site.run for site in complete]
    if len(runs) > 1:
        together = pooled(runs)
        blocks += [*_site_identity(together), *_probe(together)]
    return Section("image", "Is it the image at all?", [*blocks, _shared(shared_cases(runs))])


def _no_baseline(alone: Figure) -> Cell:
    return Cell(f"{DASH} ({alone['reason']})", mark="soft") if alone.get("reason") else missing_cell(alone)


def _site_identity(together: Pooled) -> list[Block]:
    """The model on all labelled cases together, beside a score that knows the site and nothing else."""
    if together.model is None or together.site_alone is None:
        return []
    model, alone = asdict(together.model), asdict(together.site_alone)
    cells = [value_cell(model), value_cell(alone) if alone["value"] is not None else _no_baseline(alone)]
    rows: list[Row] = [
        ["the model, sites pooled", cells[0], "mixes differences within sites with those between them"],
        ["the site's name alone", cells[1], "what knowing the site tells of the label, as prevalence differs"],
    ]
    caption = "Labelled cases of all sites together: AUROC, 95 % intervals in brackets."
    return [Table(caption, ["score", "AUROC", "what it means"], rows, sorts=False)]


def _probe(together: Pooled) -> list[Block]:
    """Whether the network's own features tell the sites apart."""
    probe = together.probe
    if probe is None:
        reason = together.probe_reason
        return [Words(f"Whether the network's features tell the sites apart is not known: {reason}.", "open")]
    chance = decimal(probe.chance)
    rows: list[Row] = [["all sites: balanced accuracy", value_cell(asdict(probe.balanced_accuracy)), chance]]
    rows += [[f"{site} against the rest: AUROC", value_cell(asdict(a)), "0.50"] for site, a in probe.sites.items()]
    caption = (
        "The site guessed from the network's own features (means of its encoder's last layer, projected), by a linear "
        "model, out of fold, patients never in two folds. 95 % intervals in brackets. Well above chance, the network "
        "sees where an image was made, and its score can follow the site; whether it does, this cannot tell."
    )
    return [Table(caption, ["guess", "value", "by chance"], rows, sorts=False)]


def _shared(found: SharedCases) -> Table:
    """Patients, files and images at two sites or of two patients; keyed ones only where both sites have one key."""
    rows: list[Row] = [
        [pair.sites, _patients_cell(pair), _number_cell(pair.files), _alike_cell(pair)] for pair in found.pairs
    ]
    none = Cell(DASH, mark="soft")
    for site, alike in found.within.items():
        cell = Cell(f"{DASH} (no hashes of images)", mark="soft") if alike is None else _number_cell(alike)
        rows.append([f"two patients of {site}", none, none, cell])
    caption = (
        "What two sites, or two patients of one site, have in common, by number. Nearly identical images are told by a "
        "keyed perceptual hash, identical ones among them; of a site with itself they are pairs of different patients."
    )
    heads = ["between", "patients", "identical files", "pairs of nearly identical images"]
    return Table(caption, heads, rows)


def _patients_cell(pair: Shared) -> Cell:
    if pair.one_key or pair.patients:
        return _number_cell(pair.patients)
    return Cell(f"{DASH} (pseudonyms of different or unknown keys)", mark="soft")


def _alike_cell(pair: Shared) -> Cell:
    if pair.alike is not None:
        return _number_cell(pair.alike)
    return Cell(f"{DASH} ({'no hashes of images' if pair.one_key else 'different or unknown keys'})", mark="soft")


def _number_cell(number: int) -> Cell:
    return Cell(f"{number:,}", sort=number, mark="bad" if number else "")
