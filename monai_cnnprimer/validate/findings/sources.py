# SPDX-License-Identifier: Apache-2.0
"""Where radiographs without findings come from: which of them, in which split, and how one becomes pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from monai_cnnprimer.phantom import SITES, render
from monai_cnnprimer.phantom.raster import stream
from monai_cnnprimer.validate.findings.lungs import fault_of_lungs, find_lungs

SPLITS = ("train", "validation", "test")
THORAX_MM = {"kermany": 170.0, "nih": 280.0}
"""Nominal inner width of the thorax where images have no spacing: children of 1 to 5 years, and adults.

Simon et al. (Arch Dis Child 1972; 47:373) give the lungs' width at six as two thirds of the adult's. Each image's lungs
are taken to have that width, so mm are relative to the thorax and marked ``nominal``.
"""
STORED_PX = {"kermany": 224, "nih": 256}
"""Pixels of a side as the real images are stored: a larger input shows no more of them."""
_PATIENTS = 100_000  # phantoms of one seed; those of the next are others
_ADULT = 18
_LUNG_SHARE = (0.06, 0.6)

Shares = tuple[float, float, float]


@dataclass(frozen=True)
class Picture:
    """One radiograph ``(S, S)`` float32 in [0, 1], its lungs ``(S, S)`` bool, and the mm of a pixel."""

    image: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    mm_per_px: float


@dataclass(frozen=True)
class Plan:
    """What to read of one source.

    Attributes:
        table: rows of `case_id`, `patient_key`, `source`, `split`, and what `read` needs.
        read: from a row, the size in pixels and a random stream to the picture, or to why it is left out.
        notes: what a person should know.
    """

    table: pd.DataFrame
    read: Callable[[pd.Series, int, np.random.Generator], Picture | str]
    notes: list[str] = field(default_factory=list)


def plan_phantoms(count: int, seed: int, shares: Shares) -> Plan:
    """Patients of the phantom, each seen once, every third at the same site."""
    numbers = [seed * _PATIENTS + number for number in range(count)]
    names = [f"phantom-{number:07d}" for number in numbers]
    table = pd.DataFrame({"case_id": names, "patient_key": names, "source": "phantom", "number": numbers})
    table["split"] = np.repeat(SPLITS, _sizes(count, shares))
    return Plan(table, _phantom)


def find_manifest(source: str, data: str | os.PathLike[str] | None) -> Path:
    """`manifest.csv` of a real source, below `data` or the folder named in ``CNNPRIMER_DATA``.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = data or os.environ.get("CNNPRIMER_DATA")
    path = Path(folder).expanduser() / source / "manifest.csv" if folder else None
    if path is None or not path.is_file():
        where = f"{path} is not there" if path else "CNNPRIMER_DATA is not set"
        raise FileNotFoundError(
            f"normal radiographs of {source} need the folder that holds {source}/manifest.csv: {where}; "
            "name the folder, or use the source phantom, which needs none"
        )
    return path


def plan_images(source: str, manifest: Path, count: int, seed: int, shares: Shares) -> Plan:
    """Normal images of a manifest, one of each patient.

    Kermany's published test images test, the others train and validate: weights that were trained on the latter have
    seen them.
    """
    table = pd.read_csv(manifest)
    table = _normal_children(table) if source == "kermany" else _normal_adults(table)
    table = table.sort_values("path").drop_duplicates("patient_id")
    table = table.iloc[stream(seed, "patients", source).permutation(len(table))]
    train, validation, test = _sizes(min(count, len(table)), shares)
    testing = table[table["may_test"]].head(test).assign(split="test")
    rest = table[table["may_train"] & ~table["path"].isin(testing["path"])].head(validation + train)
    rest = rest.assign(split=(["validation"] * validation + ["train"] * train)[: len(rest)])
    chosen = pd.concat([rest, testing]).sort_values("split", key=lambda names: names.map(SPLITS.index), kind="stable")
    chosen["case_id"] = [f"{source}-{Path(path).stem}" for path in chosen["path"]]
    chosen["patient_key"] = [f"{source}-{patient}" for patient in chosen["patient_id"]]
    chosen["source"], chosen["folder"] = source, str(manifest.parent)
    notes = [f"{source}: {len(chosen)} normal images, {count} were asked for"] if len(chosen) < count else []
    return Plan(chosen.reset_index(drop=True), _kermany if source == "kermany" else _nih, notes)


def _sizes(count: int, shares: Shares) -> tuple[int, int, int]:
    """Images of each split; training has what rounding leaves."""
    validation, test = round(count * shares[1]), round(count * shares[2])
    return count - validation - test, validation, test


def _normal_children(table: pd.DataFrame) -> pd.DataFrame:
    tested = table.loc[table["split"] == "test", "patient_id"]
    may_test = table["patient_id"].isin(tested)
    return table.assign(may_test=may_test & (table["split"] == "test"), may_train=~may_test)[table["label"] == "NORMAL"]


def _normal_adults(table: pd.DataFrame) -> pd.DataFrame:
    keep = (table["findings"] == "No Finding") & (table["view"] == "PA") & (table["age"] >= _ADULT)
    return table[keep].assign(may_test=True, may_train=True)


def _phantom(row: pd.Series, size: int, rng: np.random.Generator) -> Picture:
    radiograph = render(row["number"], size=size, site=SITES[row["number"] % len(SITES)])
    return Picture(radiograph.image, radiograph.masks["lung"], radiograph.spacing_mm)


def _kermany(row: pd.Series, size: int, rng: np.random.Generator) -> Picture | str:
    with Image.open(Path(row["folder"], row["mask"])) as opened:
        lungs = np.asarray(opened.convert("L")) > 127
    return _fitted(_read(row, rng), lungs, row, size)


def _nih(row: pd.Series, size: int, rng: np.random.Generator) -> Picture | str:
    image = _read(row, rng)
    lungs = find_lungs(image)
    return fault_of_lungs(lungs) or _fitted(image, lungs, row, size)


def _read(row: pd.Series, rng: np.random.Generator) -> NDArray[np.float32]:
    """An image of 8 bit in [0, 1), each pixel anywhere within its step."""
    with Image.open(Path(row["folder"], row["path"])) as opened:
        stored = np.asarray(opened.convert("L"), np.float32)
    return (stored + rng.random(stored.shape, np.float32)) / np.float32(256)


def _fitted(image: NDArray[np.float32], lungs: NDArray[np.bool_], row: pd.Series, size: int) -> Picture | str:
    """Image and lungs in the original's aspect; mm from the lungs' width."""
    aspect = row["original_width"] / row["original_height"]
    square = padded(lungs.astype(np.float32), aspect, size) > 0.5
    if not _LUNG_SHARE[0] < square.mean() < _LUNG_SHARE[1]:
        return "the lungs are too small or too large"
    columns = np.flatnonzero(square.any(axis=0))
    mm_per_px = THORAX_MM[row["source"]] / float(columns[-1] - columns[0] + 1)
    return Picture(padded(image, aspect, size).clip(0, 1), square, mm_per_px)


def padded(image: NDArray[np.float32], aspect: float, size: int) -> NDArray[np.float32]:
    """An image brought to `aspect` (width by height), its longer side filling the square; black beside it."""
    height, width = (max(1, round(size * side / max(aspect, 1))) for side in (1.0, aspect))
    pixels = torch.from_numpy(image)[None, None]
    fitted = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0, 0]
    square = np.zeros((size, size), np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = fitted.numpy()
    return square
