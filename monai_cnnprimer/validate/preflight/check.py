# SPDX-License-Identifier: Apache-2.0
"""The pre-flight check as a whole: scales, the measured curve, a verdict for each size, and the files that say so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_cnnprimer.figures.preflight import detection_png
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.audit.bundle import AuditedBundle
from monai_cnnprimer.validate.findings.cases import Contrast
from monai_cnnprimer.validate.findings.normals import normals
from monai_cnnprimer.validate.preflight.detection import NOT_SEEN, SEEN, Detected, detection_curve
from monai_cnnprimer.validate.preflight.scales import LayerScale, head_layers, layer_scales
from monai_cnnprimer.validate.rounding import to_digits

FIELD_IMAGES = 4  # radiographs on which receptive fields are measured
LARGEST = 512  # pixels of the radiographs that nodules are put into


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes:
        bundle: name, weights and preprocessing.
        image_size: pixels at the network's input.
        mm_per_px: mm on the patient of one of them; of an export the median.
        mm_per_px_range: the 5th and 95th percentile over an export; both `mm_per_px` where one spacing was given.
        layers: scales of the maps that the head reads.
        detected: for each size and contrast.
        notes: what a person should know.
    """

    bundle: dict[str, Any]
    image_size: int
    mm_per_px: float
    mm_per_px_range: tuple[float, float]
    layers: list[LayerScale]
    detected: list[Detected]
    notes: list[str]

    def verdicts(self) -> dict[float, dict[str, str]]:
        """Of each size, by contrast."""
        found: dict[float, dict[str, str]] = {}
        for one in self.detected:
            found.setdefault(one.mm, {})[one.contrast] = one.verdict
        return found


def preflight(
    bundle: AuditedBundle,
    image_size: int,
    spacings: Sequence[float],
    sizes_mm: Sequence[float],
    contrasts: Sequence[Contrast] = ("physical", 0.2, 0.4, 0.8),
    *,
    source: str = "phantom",
    count: int = 60,
    data: Path | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> Preflight:
    """Measures which sizes of nodule a bundle's network sees at a resolution.

    Args:
        bundle: the bundle.
        image_size: pixels of its input.
        spacings: mm a pixel at the input: one, or 5th, 50th and 95th percentile of an export.
        sizes_mm: diameters.
        contrasts: nepers on the central ray, or ``physical`` (soft tissue in place of lung: small is also faint).
        source: of the normal radiographs: ``phantom``, ``kermany``, ``nih``.
        count: of them, one a patient.
        data: folder with the real ones.
        layers: those to measure; None takes the maps that the head reads.
        seed: of nodules and draws.
        cache: folder that keeps the radiographs.

    Raises:
        ValueError: sizes, spacings or layers that cannot be.
    """
    middle = spacings[len(spacings) // 2]
    stored = min(LARGEST, 2 * image_size)
    held = normals((source,), stored, count, seed, data, cache=cache)
    # To the bundle a radiograph of this many mm a side: its preprocessing then knows the same spacing.
    side = middle * image_size / stored
    receipt = {"pixel_spacing_mm": (side, side)}

    def logits(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        return bundle.logits(images, receipt)

    shown = torch.stack([bundle.prepared(image, receipt) for image in held.images[:FIELD_IMAGES]])
    named = list(layers) if layers else head_layers(bundle.network)
    scales = layer_scales(bundle.network, named, shown, middle, seed)
    detected = detection_curve(logits, held, sizes_mm, contrasts, middle, image_size, seed)
    notes = [*held.notes, f"{len(held)} {source} radiographs, each with and without a nodule"]
    return Preflight(bundle.identity, image_size, middle, (spacings[0], spacings[-1]), scales, detected, notes)


def write_preflight(found: Preflight, output: Path) -> None:
    """Writes `preflight.json`, `preflight.csv` and `preflight.png` into a folder, made if missing."""
    low, high = found.mm_per_px_range
    content = {
        "research_use_only": "not for clinical use",
        **asdict(found),
        "rules": {"seen": f"AUROC above {SEEN}", "not seen": f"AUROC below {NOT_SEEN}", "by": "its 95 % interval"},
        "findings": [
            {
                "mm": mm,
                "px": mm / found.mm_per_px,
                "px_range": [mm / high, mm / low],
                "cells": {scale.layer: mm / scale.stride_mm for scale in found.layers},
                "verdict": verdicts,
            }
            for mm, verdicts in found.verdicts().items()
        ],
    }
    write_atomically(output / "preflight.json", json.dumps(to_digits(content), indent=1, allow_nan=False) + "\n")
    table = pd.DataFrame([asdict(one) for one in found.detected])
    write_atomically(output / "preflight.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.4f"))
    drawn = {
        name: [(one.mm, one.auroc, one.low, one.high) for one in found.detected if one.contrast == name and one.auroc]
        for name in dict.fromkeys(one.contrast for one in found.detected)
    }
    if any(drawn.values()):
        write_atomically(output / "preflight.png", _picture(found, drawn))


def _picture(found: Preflight, drawn: Mapping[str, Any]) -> bytes:
    finest = min(found.layers, key=lambda scale: scale.stride_mm)
    lengths = {"pixel of the input": found.mm_per_px, f"cell of {finest.layer}": finest.stride_mm}
    coarsest = max(found.layers, key=lambda scale: scale.stride_mm)
    if coarsest != finest:
        lengths[f"cell of {coarsest.layer}"] = coarsest.stride_mm
    lengths[f"half of the field, {finest.layer}"] = finest.erf50_mm
    title = f"{found.bundle['bundle']} at {found.image_size} px, {found.mm_per_px:.2f} mm a pixel"
    return detection_png(drawn, lengths, SEEN, NOT_SEEN, title)
