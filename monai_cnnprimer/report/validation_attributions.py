# SPDX-License-Identifier: Apache-2.0
"""Of a report: what the attributions show: whether they depend on the weights, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from monai_cnnprimer.report.page import Block, Cell, Row, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import DASH, Figure, share_with_interval, value_cell
from monai_cnnprimer.report.validation_sites import Site
from monai_cnnprimer.validate.attributions import PARTS, Lying, where_maps_lie

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
    blocks: list[Block] = [words, Table(caption, heads, rows, stack=False, sorts=False)]
    return Section("attributions", "What the attributions show", [*blocks, *_lying(sites)])


def _lying(sites: Sequence[Site]) -> list[Block]:
    """Where the maps of all cases lie, beside those of the chosen ones; [] where no site has them."""
    found = {site.name: lying for site in sites if site.run.complete and (lying := where_maps_lie(site.run))}
    if not found:
        return []
    rows: list[Row] = [
        [said.format(share=f"{100 * area:.0f} %"), *(_part_cell(lying, part) for lying in found.values())]
        for part, (said, area) in PARTS.items()
    ]
    layers = ", ".join(dict.fromkeys(lying.layer for lying in found.values()))
    caption = (
        f"Where Grad-CAM at {layers} lies, over all cases that the runs kept maps of: share of what speaks for the "
        "class that was called by share of the image (1: chance), means with 95 % intervals by patient, n below. The "
        "image is the network's input with its padding; left and right are those of the image."
    )
    words = Words(
        "What belongs to the finding lies in the chest. Maps that are drawn to the outer tenth or to one corner follow "
        "markers, borders or the machine more than the lungs; they cannot say which."
    )
    return [words, Table(caption, ["part of the image", *found], rows, stack=False, sorts=False)]


def _part_cell(lying: Lying, part: str) -> Cell:
    return value_cell(asdict(lying.parts[part]))


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
