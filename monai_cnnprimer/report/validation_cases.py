# SPDX-License-Identifier: Apache-2.0
"""Of a report: what was tested, the flow of cases, the operating point and how it travelled, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import pandas as pd

from monai_cnnprimer.report.page import Block, Cell, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import DASH, decimal, share_cell
from monai_cnnprimer.report.validation_sites import Site, locked_point

RETUNED = "re-tuned on its own labels *"


def model_section(sites: Sequence[Site]) -> Section:
    """Model, hashes, versions: what has to be equal for a result to be this model's."""
    run = _first_complete(sites).run.run
    point = locked_point(_first_complete(sites))
    rows = [
        ["bundle", f"{run['bundle']} {run['bundle_version']}"],
        ["weights, SHA-256", run["weights_sha256"]],
        ["preprocessing, SHA-256 of its settings", run["transforms_sha256"]],
        [
            "operating point",
            f"{point['threshold_id']}: positive from a probability of {decimal(point['threshold'], 4)}",
        ],
        ["monai_cnnprimer", "; ".join(_versions(sites, "monai_cnnprimer"))],
    ]
    words = Words(
        "All sites ran the same weights, the same preprocessing and the same locked operating point; a report of runs "
        "that differ in one of them is refused."
    )
    return Section("model", "What was tested", [words, Table("The model.", ["what", "value"], rows, sorts=False)])


def flow_section(sites: Sequence[Site]) -> Section:
    """From files to labelled cases at each site, with the reasons for refusal."""
    reasons = pd.concat([site.run.refused.get("reason", pd.Series(dtype=str)) for site in sites])
    steps: list[Row] = [["files looked at", *(_number(_files(site)) for site in sites)]]
    for reason in reasons.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable").index:
        steps.append([f"− {reason}", *(_number(_refused_for(site, reason)) for site in sites)])
    for name, numbers in _steps(sites).items():
        steps.append([name, *(Cell(DASH, mark="soft") if n is None else _number(n) for n in numbers)])
    blocks: list[Block] = [
        Words(
            "Every file ends in one line of this table. Those with a minus sign left the flow there, for that reason."
        ),
        Table(
            "Flow of cases, number of files or images.",
            ["step", *(site.name for site in sites)],
            steps,
            stack=False,
            sorts=False,
        ),
    ]
    unread: list[Row] = [
        [site.name, str(reason), _number(int(number))]
        for site in sites
        for reason, number in site.run.errors.get("reason", pd.Series(dtype=str)).value_counts().sort_index().items()
    ]
    if unread:
        blocks.append(Table("Accepted images that gave no prediction.", ["site", "reason", "images"], unread))
    unfinished: list[Row] = [
        [site.name, Cell(site.run.run["status"], mark="bad"), str(site.run.run.get("reason") or DASH)]
        for site in sites
        if not site.run.complete
    ]
    if unfinished:
        blocks.append(Table("Sites that did not finish.", ["site", "status", "reason"], unfinished))
    notes = [[site.name, note] for site in sites for note in site.run.run.get("notes", [])]
    if notes:
        blocks.append(
            Table("Notes on labels and patients, as the index of the exports gave them.", ["site", "note"], notes)
        )
    return Section("flow", "Flow of cases", blocks)


def point_section(sites: Sequence[Site]) -> Section:
    """The locked threshold, where it comes from, and what it gives at each site."""
    as_locked = [site for site in sites if site.run.complete and not site.run.retuned]
    point = as_locked[0].run.operating_point if as_locked else {}
    locked = locked_point(_first_complete(sites))
    told = {"criterion": "{}", "site": "on cases of {}", "n": "n {}"}
    origin = ", ".join(words.format(point[key]) for key, words in told.items() if key in point)
    at_home = [site.name for site in as_locked if site.name == point.get("site")]
    words = Words(
        f"A probability of {decimal(locked['threshold'], 4)} or more is called positive ({locked['threshold_id']}). "
        + (f"How it was chosen: {origin}. " if origin else "How it was chosen does not stand in the runs. ")
        + "It was fixed before these sites were read and is the same for all"
        + (", but for the sites marked *." if any(site.run.retuned for site in sites) else ".")
    )
    names = ("sensitivity", "specificity", "ppv", "npv", "called_positive", "prevalence")
    heads = ["sensitivity", "specificity", "PPV", "NPV", "called positive", "with the finding"]
    rows: list[Row] = []
    for site in sites:
        if site.run.complete:
            star, threshold = site.run.retuned, site.run.run["threshold"]
            how = Cell(
                f"{decimal(threshold, 4)}\n{RETUNED if star else 'as locked'}", threshold, mark="bad" if star else ""
            )
            rows.append(
                [site.name, how, *(share_cell(site.figure(name), star and i < 5) for i, name in enumerate(names))]
            )
    caption = (
        "The operating point at each site: value, 95 % interval (Wilson; by patients where they have several images), "
        "k of n. Predictive values are at the site's own prevalence."
    )
    blocks: list[Block] = [words]
    if any(site.run.retuned for site in sites):
        blocks.append(
            Words("* Threshold re-tuned on the labels it is judged by: these figures flatter the model.", "bad")
        )
    if at_home:
        own = f"The threshold was chosen at {at_home[0]}: if on these very cases, the figures of that site flatter too."
        blocks.append(Words(own, "open"))
    blocks.append(Table(caption, ["site", "threshold", *heads], rows))
    stated = [_at_prevalence(site) for site in sites if site.run.complete and site.run.metrics.get("at_prevalence")]
    if stated:
        blocks.append(Table("Predictive values at a stated prevalence.", ["site", "prevalence", "PPV", "NPV"], stated))
    return Section("operating-point", "The locked operating point and how it travelled", blocks)


def provenance_section(sites: Sequence[Site]) -> Section:
    """Hashes of what went in, and versions of what computed."""
    runs = {site.name: site.run.run for site in sites}
    entries = {
        "status": "status", "manifest, SHA-256": "manifest_sha256", "weights, SHA-256": "weights_sha256",
        "preprocessing, SHA-256": "transforms_sha256", "key of the pseudonyms": "key_id", "seed": "seed",
        "run.json, SHA-256": "sha256",
    }  # fmt: skip
    rows = [[name, *(_short_hash(run.get(key, "")) for run in runs.values())] for name, key in entries.items()]
    tables = sorted({name for run in runs.values() for name in run.get("files", {})})
    rows += [
        [f"{name}, SHA-256", *(_short_hash(run.get("files", {}).get(name, "")) for run in runs.values())]
        for name in tables
    ]
    packages = dict.fromkeys(name for run in runs.values() for name in run.get("versions", {}))
    made = [[name, *(str(run.get("versions", {}).get(name, DASH)) for run in runs.values())] for name in packages]
    words = Words(
        f"Written by monai_cnnprimer {version('monai_cnnprimer')} from the run directories alone. Each run closes with "
        "the SHA-256 of its tables; this report was written after they had been found unchanged. Hashes are cut to 12 "
        "digits."
    )
    blocks: list[Block] = [
        words,
        Table("The runs.", ["what", *runs], rows, stack=False, sorts=False),
        Table("Versions of the software at each site.", ["package", *runs], made, stack=False, sorts=False),
    ]
    return Section("provenance", "Provenance", blocks)


def _first_complete(sites: Sequence[Site]) -> Site:
    return next(site for site in sites if site.run.complete)


def _versions(sites: Sequence[Site], package: str) -> list[str]:
    """Each version with its sites; without them where all are alike."""
    used: dict[str, list[str]] = {}
    for site in sites:
        used.setdefault(str(site.run.run.get("versions", {}).get(package, "unknown")), []).append(site.name)
    return list(used) if len(used) == 1 else [f"{number} ({', '.join(names)})" for number, names in used.items()]


def _files(site: Site) -> int:
    return len(site.run.refused) + len(site.run.manifest)


def _refused_for(site: Site, reason: Any) -> int:
    return int((site.run.refused["reason"] == reason).sum()) if len(site.run.refused) else 0


def _steps(sites: Sequence[Site]) -> dict[str, list[int | None]]:
    """The lines below the refusals; None for what an unfinished site does not have."""

    def known(site: Site, number: int) -> int | None:
        return number if site.run.complete else None

    return {
        "accepted images": [len(site.run.manifest) for site in sites],
        "− no prediction": [known(site, len(site.run.errors)) for site in sites],
        "predicted": [known(site, len(site.run.predictions)) for site in sites],
        "patients predicted": [known(site, site.patients) for site in sites],
        "with a label": [known(site, len(site.labelled)) for site in sites],
        "with the finding": [known(site, site.positives) for site in sites],
        "without the finding": [known(site, len(site.labelled) - site.positives) for site in sites],
    }


def _number(number: int) -> Cell:
    return Cell(f"{number:,}", sort=number, mark="" if number else "soft")


def _at_prevalence(site: Site) -> Row:
    stated = site.run.metrics["at_prevalence"]
    shares = [share_cell(stated[name]) for name in ("ppv", "npv")]
    return [site.name, Cell(f"{100 * stated['prevalence']:g} %", stated["prevalence"]), *shares]


def _short_hash(value: Any) -> str:
    text = str(value)
    return (text[:12] if len(text) == 64 else text) or DASH


def tested(sites: Sequence[Site]) -> str:
    """One line for below the title."""
    run = _first_complete(sites).run.run
    point = locked_point(_first_complete(sites))
    return f"Weights {run['weights_sha256'][:8]}, operating point {point['threshold_id']}"
