# SPDX-License-Identifier: Apache-2.0
"""Outlines over the source image, as a Grayscale Softcopy Presentation State (PS3.3 A.33.1)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from highdicom import PresentationLUTTransformation
from highdicom.pr import (
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GrayscaleSoftcopyPresentationState,
    TextObject,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from monai_cnnprimer.dicom.grayscale import is_inverted
from monai_cnnprimer.dicom.results.identity import RESEARCH_ONLY, finished, referenced, refusing_faults, series_of
from monai_cnnprimer.dicom.results.model import Model

KIND = "outlines"
_LAYER = "CNNPRIMER"
_TEXT_BOX = (0.01, 0.01, 0.99, 0.06)  # shares of the displayed area: left, top, right, bottom
MOST_LINES = 64


def presentation_state(
    source: Dataset,
    outlines: Sequence[NDArray[np.floating]],
    model: Model,
    *,
    text: str = "",
    made_at: datetime | None = None,
) -> Dataset:
    """Lines and a text over the source, which is otherwise shown as it states itself.

    Args:
        source: header of the radiograph.
        outlines: lines `(n, 2)` of (column, row) in stored pixels, as `outlines` gives them; the first 64 are taken.
        model: what the lines come from.
        text: what the lines are, for a person; "research use only" is added.
        made_at: as in `secondary_capture`.

    Raises:
        ValueError: a line leaves the image, or has fewer than two points.
        DicomRefused: the source cannot be referred to, or its grey-scale tables fit no presentation state.
    """
    image = referenced(source)
    for line in outlines:
        if len(line) < 2 or line.min() < 0 or (line.max(axis=0) > (image.Columns, image.Rows)).any():
            raise ValueError("an outline has two or more points (column, row), all within the image")
    lines = [GraphicObject("POLYLINE", np.asarray(line, np.float32), "PIXEL") for line in outlines[:MOST_LINES]]
    said = TextObject("; ".join(part for part in (text, RESEARCH_ONLY) if part), "DISPLAY", _TEXT_BOX)
    layer = GraphicLayer(_LAYER, order=1, description="Outlines of a map, research only")
    with refusing_faults():
        result = GrayscaleSoftcopyPresentationState(
            [image],
            content_label="OUTLINES",
            content_description="Research only: outlines of a map",
            graphic_layers=[layer],
            graphic_annotations=[GraphicAnnotation([image], layer, graphic_objects=lines, text_objects=[said])],
            # Of the image's own attributes this one is not applied (PS3.4 N.2.1.3): what it says must be said here.
            presentation_lut_transformation=PresentationLUTTransformation(
                presentation_lut_shape="INVERSE" if is_inverted(source) else "IDENTITY"
            ),
            **series_of(source, model, KIND),
        )
        return finished(result, source, model, KIND, made_at)
