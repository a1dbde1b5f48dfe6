# SPDX-License-Identifier: Apache-2.0
"""The cases of a manifest as batches: what cannot be read is left out and told later, it never ends a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from monai_cnnprimer.dicom.header import DicomRefused

Case = dict[str, Any]
RECEIPT = (
    "pixel_spacing_mm", "spacing_source", "polarity", "lut", "orientation", "transfer_syntax", "view", "laterality",
    "burned_in", "quirks",
)  # fmt: skip


class CaseDataset(IterableDataset[Case]):
    """Transformed cases in the order of the list; a case that cannot be read is left out.

    Args:
        cases: `Manifest.cases()`: dictionaries of `image` (path), `case_id`, `label` (class or None).
        transform: from such a dictionary to one whose `image` is a `MetaTensor` `(1, H, W)`.
    """

    def __init__(self, cases: Sequence[Case], transform: Callable[[Case], Case]) -> None:
        self.cases = list(cases)
        self.transform = transform

    def __iter__(self) -> Iterator[Case]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for case in self.cases[first::step]:
            item, refused = self.read(case)
            if refused is None:
                yield item

    def read(self, case: Case) -> tuple[Case, DicomRefused | None]:
        """One case as it goes into a batch, or why it cannot."""
        try:
            image = self.transform(case)["image"]
        except (RuntimeError, OSError, ValueError, MemoryError) as error:
            return {}, _refusal(error)
        meta = image.meta
        spacing = meta.get("network_spacing_mm") or (torch.nan, torch.nan)
        return {
            "image": image.as_tensor(),
            "case_id": case["case_id"],
            "label": -1 if case["label"] is None else int(case["label"]),
            "network_spacing_mm": torch.tensor(spacing, dtype=torch.float32),
            "receipt": {key: meta[key] for key in RECEIPT if key in meta},
        }, None


def collate_cases(cases: Sequence[Case]) -> Case:
    """A batch: tensors stacked, `case_id` and `receipt` as lists, since a receipt has values that do not stack."""
    lists = {key: [case[key] for case in cases] for key in ("case_id", "receipt")}
    return default_collate([{k: v for k, v in case.items() if k not in lists} for case in cases]) | lists


def _refusal(error: BaseException) -> DicomRefused:
    """The reader's own reason beneath what MONAI's transforms raise; else the kind of error, without its text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DicomRefused):
            return cause
        root, cause = cause, cause.__cause__
    return DicomRefused(f"the image could not be read ({type(root).__name__})")
