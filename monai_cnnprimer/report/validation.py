# SPDX-License-Identifier: Apache-2.0
"""The report of an external validation: from run directories to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_cnnprimer.report.gate import shortcut_section
from monai_cnnprimer.report.page import Block, Details, Words, page_html
from monai_cnnprimer.report.validation_attributions import attribution_section
from monai_cnnprimer.report.validation_cases import (
    flow_section,
    model_section,
    point_section,
    provenance_section,
    tested,
)
from monai_cnnprimer.report.validation_checklists import checklist_section
from monai_cnnprimer.report.validation_gallery import gallery_section
from monai_cnnprimer.report.validation_image import image_section
from monai_cnnprimer.report.validation_limits import limits_section
from monai_cnnprimer.report.validation_results import (
    calibration_section,
    forest_figures,
    results_section,
    site_table,
)
from monai_cnnprimer.report.validation_sites import Site, read_sites
from monai_cnnprimer.report.validation_subgroups import subgroup_section
from monai_cnnprimer.report.validation_words import RULE, summary_sentences
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.runs import RunError

CASES = 50


@dataclass(frozen=True)
class Report:
    """Where a report stands, what it says first, and which sites it has no figures of."""

    path: Path
    summary: tuple[str, ...]
    unfinished: tuple[str, ...]


def write_report(
    runs: Sequence[str | Path], output: str | Path, internal: str | None = None, cases: int = CASES
) -> Report:
    """Writes one self-contained HTML file from run directories; the same runs give the same bytes.

    Args:
        runs: run directories of one model, one a site, in the order of the report.
        output: the file.
        internal: the site where the model comes from, to compare the others with; None: the site that the operating
            point was locked at, where that is among the runs, else none.
        cases: at most of each site in the gallery.

    Raises:
        FileNotFoundError: there is no such run directory.
        RunError: see `read_sites`; no site of the name `internal`.
    """
    sites = read_sites(runs)
    path = Path(output).expanduser()
    home = _internal(sites, internal)
    write_atomically(path, validation_html(sites, home, cases))
    unfinished = tuple(site.name for site in sites if not site.run.complete)
    return Report(path, tuple(summary_sentences(sites, home)), unfinished)


def validation_html(sites: Sequence[Site], internal: Site | None = None, cases: int = CASES) -> str:
    """The page; arguments as in `write_report`."""
    run = next(site for site in sites if site.run.complete).run.run
    first: list[Block] = [Words(sentence, "key") for sentence in summary_sentences(sites, internal)]
    rule = Details("How the verdicts are reached", [Words(RULE)])
    first += [site_table(sites, internal), rule, forest_figures(sites)]
    sections = [
        model_section(sites),
        flow_section(sites),
        point_section(sites),
        results_section(sites),
        calibration_section(sites),
        subgroup_section(sites),
        image_section(sites),
        attribution_section(sites),
        shortcut_section({site.name: site.run.path / "audit" / "gate.json" for site in sites}),
        gallery_section(sites, cases),
        limits_section(sites, internal),
    ]
    told = [section for section in sections if section is not None]
    ends = [checklist_section(sites, internal, [*(section.anchor for section in told), "provenance"])]
    ends.append(provenance_section(sites))
    title = f"External validation of {run['bundle']} {run['bundle_version']}"
    return page_html(title, tested(sites), first, [*told, *ends], _brand(sites))


def _internal(sites: Sequence[Site], name: str | None) -> Site | None:
    by_name = {site.name: site for site in sites if site.run.complete}
    if name is not None and name not in by_name:
        raise RunError(f"no complete run is of the internal site {name!r}; there are {', '.join(by_name)}")
    chosen_at = [str(site.run.operating_point.get("site", "")) for site in by_name.values() if not site.run.retuned]
    return by_name.get(name or next((site for site in chosen_at if site in by_name), ""))


def _brand(sites: Sequence[Site]) -> str:
    retuned = [site.name for site in sites if site.run.retuned]
    return f"Threshold re-tuned at {', '.join(retuned)}" if retuned else ""
