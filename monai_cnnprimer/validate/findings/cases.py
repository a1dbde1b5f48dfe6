# SPDX-License-Identifier: Apache-2.0
"""Cases with and without a nodule, paired: the same normal radiograph stands on both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.phantom.raster import stream
from monai_cnnprimer.validate.findings.nodules import NoPlace, insert_nodule, physical_contrast
from monai_cnnprimer.validate.findings.normals import Normals

MM_BINS = (3.0, 5.0, 8.0, 13.0, 22.0, 40.0)
"""Limits of the size bins in mm, fixed before any result was seen; each bin holds its lower limit."""
PX_BINS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Limits of the size bins in pixels of the input."""
CASE_COLUMNS = (
    "case_id", "pair_id", "patient_key", "source", "split", "label", "diameter_mm", "diameter_px", "size_bin",
    "size_bin_px", "contrast", "mm_per_px", "spacing",
)  # fmt: skip
_TRIES = 20

Contrast = float | Literal["physical"]


@dataclass(frozen=True)
class FindingCases:
    """Images with the truth about their finding, one row of the table each.

    Attributes:
        images: ``(N, S, S)`` float32 in [0, 1], bone bright.
        masks: ``(N, S, S)`` bool, the finding; empty where there is none.
        lungs: ``(N, S, S)`` bool; empty where they are not known.
        table: a row each: `case_id`; `pair_id`, alike for all cases made of one normal radiograph; `patient_key`,
            `source`, `split`; `label` (1 with a finding); `diameter_mm`, `diameter_px`, `contrast` in nepers (NaN
            without a finding, or where unknown); `size_bin`, `size_bin_px` (``none`` without a finding, ``unknown``
            without a size, ``outside`` beyond the bins); `mm_per_px`; `spacing` (``exact``, ``nominal``, ``unknown``).
        refused: rows that could not be made, with the columns of `table` and the `reason`; they have no image.
        notes: what a person should know about the set.
    """

    images: NDArray[np.float32]
    masks: NDArray[np.bool_]
    lungs: NDArray[np.bool_]
    table: pd.DataFrame
    refused: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*CASE_COLUMNS, "reason"]))
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]) -> FindingCases:
        """The cases at these places of the table, or where true."""
        at = np.asarray(rows)
        table = self.table[at] if at.dtype == bool else self.table.iloc[at]
        images, masks, lungs = self.images[at], self.masks[at], self.lungs[at]
        return FindingCases(images, masks, lungs, table.reset_index(drop=True), self.refused, self.notes)


def bin_of(size: float, limits: Sequence[float], unit: str) -> str:
    """The bin that holds a size; ``outside`` where none does, ``unknown`` for NaN.

    Example:
        >>> bin_of(5.0, MM_BINS, "mm"), bin_of(60, MM_BINS, "mm"), bin_of(float("nan"), PX_BINS, "px")
        ('5-8 mm', 'outside', 'unknown')
    """
    if math.isnan(size):
        return "unknown"
    at = int(np.searchsorted(limits, size, side="right"))
    return f"{limits[at - 1]:g}-{limits[at]:g} {unit}" if 0 < at < len(limits) else "outside"


def simulated(
    normals: Normals,
    bins_mm: Sequence[float] = MM_BINS,
    contrast: Contrast = "physical",
    seed: int = 0,
    per_bin: int = 100,
) -> FindingCases:
    """A fixed set for validation or test: each normal once as it is, and once with a nodule of each size bin.

    Up to `per_bin` normals of each source are drawn; all that are made of one share its `pair_id` and differ in nothing
    but the nodule, so that sizes and models can be compared pair by pair. Nodules of one normal have their own places
    and outlines; diameters are even in the logarithm within their bin. A nodule of under a pixel, or that fits nowhere
    in the lungs, is a row of `refused`: nothing is drawn again, which would make the bin's nodules smaller.

    Args:
        normals: radiographs without findings, such as `normals.only(split="test")`.
        bins_mm: limits of the bins, rising.
        contrast: nepers on the central ray, for all sizes alike, or ``physical``: `physical_contrast` of the diameter.
        seed: of the choice and the nodules; a case's nodule depends on the seed, the normal and the bin only.
        per_bin: nodules of each bin and source, as far as there are normals.

    Raises:
        ValueError: limits that do not rise from above 0, no normals, or fewer than one a bin.
    """
    limits = _limits(bins_mm)
    if per_bin < 1 or not len(normals):
        raise ValueError(f"{len(normals)} normals, {per_bin} cases a bin: a set needs at least one of each")
    chosen, notes = _chosen(normals, per_bin, seed)
    made = [case for index in chosen for case in _made_of(normals, index, limits, contrast, seed)]
    rows = pd.DataFrame([case.row for case in made])
    kept = [case for case in made if case.image is not None]
    refused = rows[rows["reason"] != ""].reset_index(drop=True)
    table = rows[rows["reason"] == ""].drop(columns="reason").reset_index(drop=True)
    if len(refused):
        notes.append(f"{len(refused)} of {int((rows['label'] == 1).sum())} nodules could not be placed: see refused")
    images, masks = (np.stack([getattr(case, name) for case in kept]) for name in ("image", "mask"))
    lungs = normals.lungs[[case.index for case in kept]]
    return FindingCases(images, masks, lungs, table, refused, [*normals.notes, *notes])


def draw(
    normals: Normals,
    index: int,
    bins_mm: Sequence[float] = MM_BINS,
    contrast: Contrast = "physical",
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """One training example with a nodule: give another seed in each epoch.

    The bin is drawn first, each as often as the next, then the diameter within it; both again, up to 20 times, where it
    is under a pixel or does not fit.

    Args:
        normals: radiographs without findings.
        index: the one to use.
        bins_mm: limits of the bins, rising.
        contrast: as in `simulated`.
        seed: of this example, such as `epoch * len(normals) + index`.

    Returns:
        Image ``(S, S)`` float32, mask of the nodule ``(S, S)`` bool, and its diameter in mm.

    Raises:
        NoPlace: none of the sizes drawn fits.
        ValueError: limits that do not rise from above 0.
    """
    limits = _limits(bins_mm)
    case_id = normals.table["case_id"].iloc[index]
    rng = stream(seed, "draw", case_id)
    for _ in range(_TRIES):
        low = int(rng.integers(len(limits) - 1))
        diameter = _diameter(limits[low], limits[low + 1], rng)
        try:
            return *_insert(normals, index, diameter, contrast, int(rng.integers(2**31))), diameter
        except NoPlace:
            continue
    raise NoPlace(f"{case_id}: none of {_TRIES} nodules of {limits[0]:g} to {limits[-1]:g} mm fits")


@dataclass(frozen=True)
class _Made:
    """One case of a simulated set, or why there is none (`row["reason"]`)."""

    index: int
    row: dict[str, Any]
    image: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None


def _made_of(normals: Normals, index: int, limits: Sequence[float], contrast: Contrast, seed: int) -> list[_Made]:
    """The normal itself, then one case a bin."""
    image = normals.images[index]
    cases = [_Made(index, _row(normals, index, "none", math.nan, math.nan), image, np.zeros(image.shape, bool))]
    for low, high in itertools.pairwise(limits):
        rng = stream(seed, "case", normals.table["case_id"].iloc[index], low, high)
        diameter = _diameter(low, high, rng)
        row = _row(normals, index, f"{low:g}-{high:g} mm", diameter, _nepers(contrast, diameter))
        try:
            found = _insert(normals, index, diameter, contrast, int(rng.integers(2**31)))
        except NoPlace as refusal:
            cases.append(_Made(index, {**row, "reason": str(refusal)}))
        else:
            cases.append(_Made(index, row, *found))
    return cases


def _insert(
    normals: Normals, index: int, diameter_mm: float, contrast: Contrast, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    pixels = diameter_mm / float(normals.table["mm_per_px"].iloc[index])
    if pixels < 1:
        raise NoPlace(f"a nodule of {pixels:.2f} pixels: under one pixel there is nothing to see")
    return insert_nodule(normals.images[index], normals.lungs[index], pixels, _nepers(contrast, diameter_mm), seed)


def _row(normals: Normals, index: int, size_bin: str, diameter: float, nepers: float) -> dict[str, Any]:
    normal = normals.table.iloc[index]
    pixels = diameter / float(normal["mm_per_px"])
    return {
        "case_id": f"{normal['case_id']}-{size_bin.removesuffix(' mm')}",
        "pair_id": normal["case_id"],
        "patient_key": normal["patient_key"],
        "source": normal["source"],
        "split": normal["split"],
        "label": int(not math.isnan(diameter)),
        "diameter_mm": diameter,
        "diameter_px": pixels,
        "size_bin": size_bin,
        "size_bin_px": "none" if math.isnan(pixels) else bin_of(pixels, PX_BINS, "px"),
        "contrast": nepers,
        "mm_per_px": normal["mm_per_px"],
        "spacing": normal["spacing"],
        "reason": "",
    }


def _limits(bins_mm: Sequence[float]) -> list[float]:
    limits = [float(limit) for limit in bins_mm]
    if len(limits) < 2 or not limits[0] > 0 or not all(a < b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"limits of the bins must rise from above 0 mm: {limits}")
    return limits


def _diameter(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _nepers(contrast: Contrast, diameter_mm: float) -> float:
    return physical_contrast(diameter_mm) if contrast == "physical" else float(contrast)


def _chosen(normals: Normals, per_bin: int, seed: int) -> tuple[list[int], list[str]]:
    """Places of up to `per_bin` normals of each source, in the order of the table."""
    chosen, notes = [], []
    for source, rows in normals.table.groupby("source").indices.items():
        order = stream(seed, "choice", source).permutation(rows)[:per_bin]
        chosen += sorted(int(row) for row in order)
        if len(rows) < per_bin:
            notes.append(f"{source}: {len(rows)} normals, {per_bin} were asked for")
    return chosen, notes
