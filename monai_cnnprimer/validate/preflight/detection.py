# SPDX-License-Identifier: Apache-2.0
"""The experiment: nodules of each size and contrast in normal radiographs, and what the network makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.validate.findings.cases import Contrast
from monai_cnnprimer.validate.findings.nodules import NoPlace, insert_nodule, physical_contrast
from monai_cnnprimer.validate.findings.normals import Normals
from monai_cnnprimer.validate.statistics import AurocOf, MeanOf, clustered_bootstrap

SEEN, NOT_SEEN = 0.75, 0.6
"""An AUROC whose whole interval lies above the first, or below the second, gives a verdict."""
FEW = 20
Logits = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float64]]


@dataclass(frozen=True)
class Detected:
    """What a network makes of nodules of one size and contrast.

    Attributes:
        mm: diameter on the patient.
        px: diameter at the network's input.
        contrast: its name, such as ``physical`` or ``0.4``.
        nepers: attenuation on the central ray.
        n: radiographs, each with and without.
        auroc: of the logit, with the nodule against without; None where nothing could be inserted.
        low: of its 95 % interval, by drawing patients.
        high: of the same.
        change: mean change of the logit, with the nodule less without.
        change_low: of its interval.
        change_high: of the same.
        verdict: ``seen``, ``not seen``, ``in between``, ``too few``, or ``under a pixel``.
    """

    mm: float
    px: float
    contrast: str
    nepers: float
    n: int
    auroc: float | None
    low: float | None
    high: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    verdict: str


def detection_curve(
    logits: Logits,
    normals: Normals,
    sizes_mm: Sequence[float],
    contrasts: Sequence[Contrast],
    mm_per_px: float,
    image_size: int,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Detected]:
    """Inserts a nodule of each size and contrast into each radiograph, and asks the network with and without.

    Args:
        logits: log-odds `(N,)` of radiographs `(S, S)` in [0, 1].
        normals: the radiographs, of any size S; their own millimetres are not used.
        sizes_mm: diameters on the patient.
        contrasts: nepers, or ``physical``.
        mm_per_px: mm on the patient of one pixel at the network's input.
        image_size: pixels of that input, to which the whole radiograph is resized.
        seed: of places and outlines, the same for all contrasts.
        resamples: of the bootstrap.

    Raises:
        ValueError: no size, no contrast, no radiograph, or a size that is not positive.
    """
    if not len(normals) or not sizes_mm or not contrasts or min(sizes_mm) <= 0:
        raise ValueError("a curve needs radiographs, sizes above 0 mm, and contrasts")
    stored_per_px = normals.images.shape[1] / image_size
    without = logits(list(normals.images))
    return [
        _measured(logits, normals, without, mm, mm / mm_per_px, stored_per_px, contrast, seed, resamples)
        for mm in sizes_mm
        for contrast in contrasts
    ]


def _measured(
    logits: Logits,
    normals: Normals,
    without: NDArray[np.float64],
    mm: float,
    px: float,
    stored_per_px: float,
    contrast: Contrast,
    seed: int,
    resamples: int,
) -> Detected:
    nepers = physical_contrast(mm) if contrast == "physical" else float(contrast)
    about = {"mm": mm, "px": px, "contrast": str(contrast), "nepers": nepers}
    places, images = ([], []) if px < 1 else _inserted(normals, px * stored_per_px, nepers, seed)
    if len(places) < FEW:
        verdict = "under a pixel" if px < 1 else "too few"
        return Detected(**about, n=len(places), **dict.fromkeys(_FIGURES), verdict=verdict)  # type: ignore[arg-type]
    frame = pd.DataFrame(
        {
            "patient": normals.table["patient_key"].to_numpy()[places],
            "before": without[places],
            "after": logits(images),
        }
    )
    frame["change"] = frame["after"] - frame["before"]
    both = frame.melt(["patient"], ["before", "after"], "label", "score").assign(label=lambda t: t["label"] == "after")
    seen = clustered_bootstrap(AurocOf("label", "score"), both, "patient", resamples, seed)
    change = clustered_bootstrap(MeanOf("change"), frame, "patient", resamples, seed)
    figures = (seen.value, seen.low, seen.high, change.value, change.low, change.high)
    verdict = verdict_of(seen.low, seen.high)
    return Detected(**about, n=len(places), **dict(zip(_FIGURES, figures, strict=True)), verdict=verdict)  # type: ignore[arg-type]


_FIGURES = ("auroc", "low", "high", "change", "change_low", "change_high")


def _inserted(
    normals: Normals, diameter_px: float, nepers: float, seed: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """The radiographs in which such a nodule finds a place, and they with it."""
    places, images = [], []
    for place, (image, lungs) in enumerate(zip(normals.images, normals.lungs, strict=True)):
        try:
            images.append(insert_nodule(image, lungs, diameter_px, nepers, seed + place)[0])
        except NoPlace:
            continue
        places.append(place)
    return places, images


def verdict_of(low: float | None, high: float | None) -> str:
    """What an AUROC's interval says of a size; an AUROC below one half (called less with the nodule) is not seen.

    Example:
        >>> verdict_of(0.8, 0.9), verdict_of(0.4, 0.55), verdict_of(0.55, 0.8), verdict_of(None, None)
        ('seen', 'not seen', 'in between', 'too few')
    """
    if low is None or high is None:
        return "too few"
    return "seen" if low > SEEN else "not seen" if high < NOT_SEEN else "in between"
