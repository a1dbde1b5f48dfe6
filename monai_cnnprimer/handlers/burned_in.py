# SPDX-License-Identifier: Apache-2.0
"""Warns of images that have text in their pixels, which may name the patient in every figure that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.burned_in import text_rows
from monai_cnnprimer.dicom.reader import read_radiograph
from monai_cnnprimer.run_directory import RunDirectory

COLUMNS = ("case_id", "declared", "text_rows", "characters", "smallest_px", "largest_px")


class BurnedInHandler:
    """Looks at every image of a run in full resolution, at its end: `burned_in.csv`, and a note in `run.json`.

    The network's input is too coarse to show text, so each image is read once more. `declared` is its
    BurnedInAnnotation; the other columns are what `monai_cnnprimer.dicom.burned_in.text_rows` finds. An image that
    cannot be read has no row: `errors.csv` says why.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def attach(self, engine: Engine) -> None:
        """Registers the end of the only epoch: `run.json` is written after it."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes the table, and notes how many images show or declare text."""
        rows = [row for case in self.run.manifest.cases() if (row := described(case))]
        table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("case_id")
        write_atomically(Path(self.run.path) / "burned_in.csv", table.to_csv(index=False, lineterminator="\n"))
        shown, declared = int((table["text_rows"] > 0).sum()), int((table["declared"] == "YES").sum())
        if shown or declared:
            self.run.notes.append(
                f"{shown} of {len(table)} images seem to have text in their pixels, {declared} declare it "
                "(burned_in.csv): look at them before figures or images leave the site"
            )


def described(case: dict[str, Any]) -> dict[str, Any]:
    """One row of `burned_in.csv`; empty where the image cannot be read."""
    try:
        image, receipt = read_radiograph(case["image"])
    except DicomRefused:
        return {}
    found = text_rows(image)
    heights = [row.bottom - row.top for row in found]
    return {
        "case_id": case["case_id"],
        "declared": receipt["burned_in"],
        "text_rows": len(found),
        "characters": sum(row.characters for row in found),
        "smallest_px": min(heights, default=0),
        "largest_px": max(heights, default=0),
    }
