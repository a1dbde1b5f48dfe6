# SPDX-License-Identifier: Apache-2.0
"""Radiographs without findings, with their lungs and millimetres: what nodules are put into."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.phantom.raster import stream
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.validate.findings.sources import (
    STORED_PX,
    Plan,
    Shares,
    find_manifest,
    plan_images,
    plan_phantoms,
)

SOURCES = ("phantom", "kermany", "nih")
_RECIPE = 1  # to be raised whenever the same arguments would give other bytes
_COLUMNS = ("case_id", "patient_key", "source", "mm_per_px", "spacing", "split")


@dataclass(frozen=True)
class Normals:
    """Radiographs without findings.

    Attributes:
        images: ``(N, S, S)`` float32 in [0, 1], bone bright.
        lungs: ``(N, S, S)`` bool.
        table: a row each: `case_id`, `patient_key`, `source`, `mm_per_px`, `spacing` (``exact`` or ``nominal``),
            `split` (``train``, ``validation``, ``test``; no patient in two of them).
        notes: what a person should know about the set: what was left out and why.
    """

    images: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def only(self, split: str | None = None, source: str | None = None) -> Normals:
        """Those of a split, of a source, or both."""
        keep = np.ones(len(self), bool)
        for column, value in (("split", split), ("source", source)):
            keep &= (self.table[column] == value).to_numpy() if value else True
        return Normals(self.images[keep], self.lungs[keep], self.table[keep].reset_index(drop=True), self.notes)


def normals(
    sources: Sequence[str] = ("phantom",),
    size: int = 224,
    count: int = 400,
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    *,
    shares: Shares = (0.6, 0.15, 0.25),
    cache: str | os.PathLike[str] | None = None,
) -> Normals:
    """Radiographs without findings, split by patient.

    ``phantom``: rendered, every third from the same of three sites; lungs and spacing are exact. ``kermany``: the
    children's normal radiographs in their original aspect, padded to a square; the published test images test, the
    others train and validate. ``nih``: adult PA radiographs labelled "No Finding", whose lungs `find_lungs` finds.
    Real images are 8 bit: each pixel is placed evenly at random within its step, so that the steps cannot tell which
    image was changed later.

    Args:
        sources: of ``phantom``, ``kermany``, ``nih``.
        size: rows and columns.
        count: images of each source, as far as there are.
        seed: of the patients, the split and the placing within steps.
        data: folder with `kermany/` and `nih/`; the folder named in ``CNNPRIMER_DATA`` when None.
        shares: of training, validation and test.
        cache: folder that keeps the result; the same arguments over the same data then take a moment.

    Raises:
        FileNotFoundError: a real source is asked for and its folder is not there.
        ValueError: an unknown source, a count under 3, shares that do not sum to 1.

    Example:
        >>> found = normals(("phantom",), size=64, count=4)
        >>> found.images.shape, found.table["split"].tolist(), found.table["spacing"].unique().tolist()
        ((4, 64, 64), ['train', 'train', 'validation', 'test'], ['exact'])
    """
    unknown = set(sources) - set(SOURCES)
    if unknown or not sources:
        raise ValueError(f"unknown source {', '.join(sorted(unknown)) or 'none'}: choose of {', '.join(SOURCES)}")
    if count < 3 or len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"{count} images in shares of {shares}: choose at least 3, and shares that sum to 1")
    manifests = {name: find_manifest(name, data) for name in sources if name != "phantom"}
    known = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in manifests.items()}
    asked = json.dumps([_RECIPE, list(sources), size, count, seed, list(shares), known])
    name = f"normals-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
    kept = None if cache is None else Path(cache).expanduser() / name
    if kept is not None and kept.exists():
        return _load(kept)
    plans = [
        plan_images(name, manifests[name], count, seed, shares)
        if name in manifests
        else plan_phantoms(count, seed, shares)
        for name in sources
    ]
    made = _joined([_read(plan, size, seed) for plan in plans])
    if kept is not None:
        _save(kept, made)
    return made


def _read(plan: Plan, size: int, seed: int) -> Normals:
    """All pictures of a plan; those without plausible lungs are left out and counted."""
    pictures, kept, faults = [], [], Counter[str]()
    for _, row in plan.table.iterrows():
        picture = plan.read(row, size, stream(seed, "within a step", row["case_id"]))
        kept.append(not isinstance(picture, str))
        if isinstance(picture, str):
            faults[picture] += 1
        else:
            pictures.append(picture)
    source = plan.table["source"].iloc[0]
    if not pictures:
        raise ValueError(f"{source}: no image has plausible lungs")
    table = plan.table[kept].reset_index(drop=True)
    table["mm_per_px"] = [picture.mm_per_px for picture in pictures]
    table["spacing"] = "exact" if source == "phantom" else "nominal"
    notes = [f"{source}: {count} images left out, {fault}" for fault, count in sorted(faults.items())]
    stored = STORED_PX.get(source, size)
    if size > stored:
        notes.append(f"{source}: stored with {stored} pixels a side and enlarged, so {size} show no more")
    images, lungs = (np.stack([getattr(picture, name) for picture in pictures]) for name in ("image", "lungs"))
    return Normals(images, lungs, table[list(_COLUMNS)], [*plan.notes, *notes])


def _joined(parts: Sequence[Normals]) -> Normals:
    return Normals(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.lungs for part in parts]),
        pd.concat([part.table for part in parts], ignore_index=True),
        [note for part in parts for note in part.notes],
    )


def _save(path: Path, made: Normals) -> None:
    columns = {name: made.table[name].to_numpy() for name in _COLUMNS}
    arrays: dict[str, Any] = {
        name: values.astype(str) if values.dtype == object else values for name, values in columns.items()
    }
    arrays |= {"images": made.images, "lungs": made.lungs, "notes": np.array(made.notes, dtype=str)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _load(path: Path) -> Normals:
    with np.load(path, allow_pickle=False) as held:
        table = pd.DataFrame({name: held[name] for name in _COLUMNS})
        return Normals(held["images"], held["lungs"], table, held["notes"].tolist())
