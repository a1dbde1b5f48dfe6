# SPDX-License-Identifier: Apache-2.0
"""Regions from a table of mask images, brought to the network's input as the radiographs were."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged
from numpy.typing import NDArray

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.dicom.files import list_sources
from monai_cnnprimer.dicom.images import read_image
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.labels import IDENTIFYING, identifier_hash, identifying_column, read_table

REGIONS = ("lung", "heart", "marker", "finding")
Files = dict[str, tuple[str, ...]]  # region to the names of its files


class Regions(NamedTuple):
    """Masks of one case.

    Attributes:
        masks: region to `(H, W)` bool at the network's input.
        left_out: region to why it has no mask although the table names one; no path, no identifier.
    """

    masks: dict[str, NDArray[np.bool_]]
    left_out: dict[str, str]


class RegionMasks:
    """The regions of each case of an export, as a table names their mask images.

    The table has one of the columns of `labels.IDENTIFYING` (hashed as it is read) and at least one of `REGIONS`. Their
    cells hold names of image files beside the table or below its folder, several joined by a semicolon; empty where
    there are none. A mask has the pixels of its radiograph as displayed and is true above half of its largest value.

    At the network's input a pixel belongs to a region that covers more than half of it: the mask goes through the
    preprocessing of the radiograph, all but what changes intensities only.

    Args:
        table: CSV file; None where no regions are known.
        manifest: what the export holds.
        transform: the preprocessing, beginning with `LoadImaged`.
        key: key of the pseudonyms, as given to `index_export`.

    Attributes:
        notes: what a person should know about the table; counts, no values.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not a table with these columns; the preprocessing does not begin with `LoadImaged`.
    """

    def __init__(
        self,
        table: str | os.PathLike[str] | None,
        manifest: Manifest,
        transform: Compose,
        key: bytes | str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(transform.transforms[0], LoadImaged):
            raise ValueError("masks follow the preprocessing of the radiograph, which must begin with LoadImaged")
        self.notes: list[str] = []
        self._images = manifest.paths
        self._load = transform.transforms[0]
        self._geometry = what_moves(transform)
        self._folder = Path() if table is None else Path(table).expanduser().parent.resolve()
        self._files = {} if table is None else self._read(table, manifest, pseudonym_key(key))

    def __call__(self, case_id: str) -> Regions:
        """The regions of one case; the radiograph is read once more for its size and orientation."""
        files = self._files.get(case_id, {})
        if not files:
            return Regions({}, {})
        try:
            radiograph = self._load({"image": self._images[case_id]})["image"]
        except (RuntimeError, OSError, ValueError, MemoryError):
            return Regions({}, dict.fromkeys(files, "the radiograph could not be read again"))
        found = {region: self._fit(names, radiograph) for region, names in files.items()}
        masks = {region: mask for region, mask in found.items() if not isinstance(mask, str)}
        return Regions(masks, {region: reason for region, reason in found.items() if isinstance(reason, str)})

    def _read(self, table: str | os.PathLike[str], manifest: Manifest, key: bytes) -> dict[str, Files]:
        """Files of each case; of what is named twice, or names several images, none."""
        columns, rows = read_table(table, "masks")
        identifier, regions = identifying_column(columns), [region for region in REGIONS if region in columns]
        if identifier is None or not regions:
            needed = f"one of {', '.join(IDENTIFYING)} and one or more of {', '.join(REGIONS)}"
            raise ValueError(f"the table of masks needs the columns: {needed}")
        named: dict[str, list[Files]] = {}
        for row in rows:
            named.setdefault(identifier_hash(row, identifier, key), []).append(_files(row, regions))
        cases: dict[str, list[str]] = {}
        for case_id, keys in manifest.keys.items():
            cases.setdefault(keys.get(identifier, ""), []).append(case_id)
        nameless = len(named.pop("", ()))
        present = named.keys() & cases.keys()
        clear = {cases[name][0]: named[name][0] for name in present if len(named[name]) == len(cases[name]) == 1}
        unclear = len(present) - len(clear)
        counts = {
            f"rows of the table of masks have no {identifier}: left aside": nameless,
            "cases of the table of masks are no accepted image": len(named) - len(present),
            "cases of the table of masks stand in it twice, or are several images: left aside": unclear,
        }
        self.notes += [f"{count} {what}" for what, count in counts.items() if count]
        return clear

    def _fit(self, names: Sequence[str], radiograph: MetaTensor) -> NDArray[np.bool_] | str:
        """The union of mask files at the network's input, or why there is none."""
        union = np.zeros(radiograph.shape[-2:], dtype=bool)
        for name in names:
            mask = self._read_mask(name)
            if isinstance(mask, str):
                return mask
            if mask.shape != union.shape:
                return "the mask has other rows or columns than the radiograph"
            union |= mask
        covered = torch.from_numpy(union).float().reshape(radiograph.shape)
        image = MetaTensor(covered, meta=dict(radiograph.meta))
        fitted = (self._geometry({"image": image})["image"].as_tensor()[0] > 0.5).numpy()
        if union.any() and not fitted.any():
            return "the region is smaller than half a pixel of the network's input"
        return fitted

    def _read_mask(self, name: str) -> NDArray[np.bool_] | str:
        """One mask file in full resolution, or why it cannot be used."""
        (source,) = list_sources(self._folder, [name])
        if source.refusal:
            return "the file of the mask is not there, or not below the folder of the table"
        try:
            pixels = read_image(source.path)[0]
        except DicomRefused as refused:
            return f"the mask cannot be read: {refused.reason}"
        except OSError as error:
            return f"the mask cannot be read: {error.strerror or 'damaged'}"
        return pixels > pixels.max() / 2


def _files(row: Mapping[str, str], regions: Sequence[str]) -> Files:
    """The regions of a row that have files."""
    names = {region: tuple(name.strip() for name in row[region].split(";") if name.strip()) for region in regions}
    return {region: files for region, files in names.items() if files}


def what_moves(preprocessing: Compose) -> Compose:
    """The steps behind the first, which loads, that can move a pixel: all but MONAI's for intensities."""
    intensity = "monai.transforms.intensity"
    return Compose([step for step in preprocessing.transforms[1:] if not type(step).__module__.startswith(intensity)])
