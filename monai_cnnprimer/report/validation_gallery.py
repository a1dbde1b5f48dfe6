# SPDX-License-Identifier: Apache-2.0
"""Of a report: the gallery of errors and other chosen cases, the same rows for every site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.figures.validation_gallery import pair_webp
from monai_cnnprimer.handlers.maps import file_name
from monai_cnnprimer.report.page import Block, Gallery, Picture, Section, Table, Words
from monai_cnnprimer.report.validation_numbers import count, decimal, listed, percent
from monai_cnnprimer.report.validation_sites import Site


class Kind(NamedTuple):
    """Cases that fill rows: chosen as what, called what, and what to say where a site has none."""

    name: str
    chosen_as: str
    predicted: int | None
    without: str


KINDS = (
    Kind("false positive", "error", 1, "No false positive"),
    Kind("false negative", "error", 0, "No false negative"),
    Kind("least confident", "least confident", None, "No such case"),
    Kind("most confident", "most confident", None, "No such case"),
    Kind("random", "random", None, "No such case"),
)


def gallery_section(sites: Sequence[Site], cases: int) -> Section:
    """Chosen cases with Grad-CAM beside the image; `cases` at most of each site."""
    complete = [site for site in sites if site.run.complete]
    counts = Table(
        "Errors among the labelled cases, at the threshold in use.",
        ["site", "errors"],
        [[site.name, _shares_of_errors(site) if len(site.labelled) else "– (no labels)"] for site in complete],
    )
    blocks: list[Block] = [counts]
    pictured = [site for site in complete if len(site.gradcam) and (site.run.path / "maps").is_dir()]
    shown = {site.name: {kind.name: _chosen(site, kind) for kind in KINDS} for site in pictured}
    rows: list[tuple[str, Sequence[Picture]]] = []
    for kind, number in _rows(shown, cases):
        name = f"{kind.name} {number + 1}" + (_first(kind) if number == 0 else "")
        rows.append((name, [_picture(site, kind, shown[site.name][kind.name], number) for site in pictured]))
    if rows:
        words = Words(
            "Left the network's input, right the same under Grad-CAM: warm colours raised the score of the class that "
            "was called, full colour is the largest value of that map. The rule that chose the cases is the same at "
            "every site: errors, least confident, most confident and a random sample. p is the probability of the "
            "finding. Errors are framed."
        )
        layers = dict.fromkeys(site.gradcam["layer"].iloc[-1] for site in pictured)
        caption = f"Chosen cases, the same rows for every site. Grad-CAM at {', '.join(layers)}."
        blocks += [words, Gallery(caption, [site.name for site in pictured], rows)]
    without = [site.name for site in complete if site not in pictured]
    if without:
        blocks.append(Words(f"No images and maps in the run directories of {listed(without)}.", "open"))
    return Section("gallery", "Errors and other cases, with Grad-CAM", blocks)


def _shares_of_errors(site: Site) -> str:
    """How many of a site's labelled cases are false, in words."""
    labelled = site.labelled
    wrong = labelled[labelled["label"] != labelled["predicted"]]
    false_positive = int((wrong["predicted"] == 1).sum())
    return (
        f"{count(len(wrong), 'error')} of {len(labelled):,} ({percent(len(wrong) / len(labelled), len(labelled))} %): "
        f"{false_positive:,} false positive, {len(wrong) - false_positive:,} false negative"
    )


def _first(kind: Kind) -> str:
    return " (most confident)" if kind.chosen_as == "error" else " (drawn by seed)" if kind.name == "random" else ""


def _chosen(site: Site, kind: Kind) -> pd.DataFrame:
    """The site's cases of a kind, in the order of choice, one row each: that of the last layer."""
    if not len(site.gradcam):
        return site.gradcam
    layer = site.gradcam["layer"].iloc[-1]
    found = site.gradcam[(site.gradcam["chosen_as"] == kind.chosen_as) & (site.gradcam["layer"] == layer)]
    return found if kind.predicted is None else found[found["predicted"] == kind.predicted]


def _rows(shown: dict[str, dict[str, pd.DataFrame]], cases: int) -> list[tuple[Kind, int]]:
    """First of each kind, second of each kind ... up to `cases`, then ordered by kind."""
    most = {kind.name: max((len(of[kind.name]) for of in shown.values()), default=0) for kind in KINDS}
    deepest = max(most.values(), default=0)
    turns = [
        (number, place) for number in range(deepest) for place, kind in enumerate(KINDS) if number < most[kind.name]
    ]
    return [(KINDS[place], number) for place, number in sorted((place, number) for number, place in turns[:cases])]


def _picture(site: Site, kind: Kind, chosen: pd.DataFrame, number: int) -> Picture:
    if number >= len(chosen):
        return Picture(b"", "", _why_none(site, kind, number))
    row = chosen.iloc[number]
    case, layer, maps = str(row["case_id"]), str(row["layer"]), site.run.path / "maps"
    name = file_name(case)
    files = [maps / f"{name}.nii.gz", maps / f"{name}_{file_name(layer)}.nii.gz"]
    if not all(file.is_file() for file in files):
        return Picture(b"", "", f"{case}: its image is not in the run directory.")
    image, heat = (_upright(file) for file in files)
    known: dict[Any, Any] = site.run.predictions.set_index("case_id").loc[case].to_dict()
    called = "called positive" if known["predicted"] == 1 else "called negative"
    label = "unknown" if pd.isna(known["label"]) else ("positive" if known["label"] == 1 else "negative")
    wrong = not pd.isna(known["label"]) and known["label"] != known["predicted"]
    other = pd.notna(row["explained"]) and row["explained"] != known["predicted"]
    said = f"p {decimal(float(known['probability']), 3)}, {called}; label {label}"
    unfit = "\nUNFIT: maps here do not depend on the weights" if row["fit"] == "unfit" else ""
    caption = f"{case}\n{said}{f'; map of class {int(row.explained)}' if other else ''}{unfit}"
    alt = f"{site.name}, {kind.name} {number + 1}: radiograph and Grad-CAM; {said}."
    return Picture(pair_webp(image, heat), alt, caption, mark="error" if wrong else "")


def _why_none(site: Site, kind: Kind, number: int) -> str:
    if kind.chosen_as != "error":
        return "No further case chosen." if number else f"{kind.without} was chosen."
    labelled = site.labelled
    if not len(labelled):
        return "No labels."
    total = int(((labelled["label"] != labelled["predicted"]) & (labelled["predicted"] == kind.predicted)).sum())
    if total > number:
        return f"No map kept: the errors kept are the most confident ones, of either kind; {total} such errors in all."
    return f"{kind.without} among {len(labelled)} labelled cases." if not total else f"There are {total}."


def _upright(file: Path) -> NDArray[np.float32]:
    """A map as `handlers.maps.nifti` wrote it, rows from the head, `(H, W)`."""
    return np.asarray(nib.Nifti1Image.from_filename(file).dataobj, dtype=np.float32)[:, 0, :].T
