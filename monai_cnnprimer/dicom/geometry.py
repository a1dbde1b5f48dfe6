# SPDX-License-Identifier: Apache-2.0
"""How a radiograph lies and how large it is: its view, what puts it upright, and millimetres for a pixel."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from numpy.typing import NDArray
from pydicom.dataset import Dataset

from monai_cnnprimer.dicom.attributes import items, number, numbers, text, texts

# Codes of CID 4010 "DX View" (PS3.16), SNOMED CT and the older SRT, for what ViewPosition would call so.
VIEW_CODES = {
    "272479007": "PA", "R-10214": "PA", "R-40888": "PA", "399348003": "AP", "R-10206": "AP",
    "399067008": "lateral", "R-102CD": "lateral", "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL",
    "399135007": "LAO", "399356000": "RAO", "399006002": "LPO", "399038007": "RPO",
    "399182000": "oblique", "399184004": "oblique", "399236003": "oblique", "399004004": "oblique",
}  # fmt: skip
# Defined terms of ViewPosition (PS3.3 C.8.7.1.1, C.8.11.5), then what vendors write instead.
VIEW_TERMS = {
    "PA": "PA", "AP": "AP", "LL": "LL", "RL": "RL", "RLD": "RLD", "LLD": "LLD", "RLO": "RLO", "LLO": "LLO",
    "LAO": "LAO", "RAO": "RAO", "LPO": "LPO", "RPO": "RPO",
    "LAT": "lateral", "LATERAL": "lateral", "LLAT": "LL", "RLAT": "RL", "LATERAL_L": "LL", "LATERAL_R": "RL",
    "OBLIQUE": "oblique", "OBL": "oblique", "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP",
}  # fmt: skip


def view(dataset: Dataset) -> str:
    """The view in a fixed vocabulary: ``PA``, ``AP``, ``LL``, ``RL``, ``lateral``, ``oblique``, ... or ``unknown``.

    From ViewPosition, else ViewCodeSequence, else a sagittal PatientOrientation, which only a lateral view has.

    Example:
        >>> header = Dataset()
        >>> header.ViewPosition = "AP SUPINE"
        >>> view(header)
        'AP'
    """
    sagittal = {"A", "P"} & {direction[:1] for direction in texts(dataset, "PatientOrientation")[:1]}
    return _stated_view(dataset) or coded_view(dataset) or ("lateral" if sagittal else "unknown")


def _stated_view(dataset: Dataset) -> str:
    stated = text(dataset, "ViewPosition")
    if stated in VIEW_TERMS:
        return VIEW_TERMS[stated]
    words = set(re.split("[^A-Z]+", stated.replace("-", "")))
    named = {VIEW_TERMS[word] for word in words & VIEW_TERMS.keys()}
    return named.pop() if len(named) == 1 else ""


def coded_view(dataset: Dataset) -> str:
    """The view of ViewCodeSequence, or nothing."""
    codes = [text(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")]
    return next((VIEW_CODES[code] for code in codes if code in VIEW_CODES), "")


class Orientation(NamedTuple):
    """What puts the stored array upright: first the transposition, then the flips."""

    label: str
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, image: NDArray[Any]) -> NDArray[Any]:
        """Turns a stored ``(Rows, Columns)`` array upright.

        Example:
            >>> import numpy as np
        >>> Orientation("upright", flip_columns=True).apply(np.array([[1, 2]])).tolist()
            [[2, 1]]
        """
        image = image.T if self.transpose else image
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def orientation(dataset: Dataset) -> Orientation:
    """Reads PatientOrientation (PS3.3 C.7.6.1.1.1): where the row runs to, and the column.

    Upright is a column that runs to the feet and, in a frontal view, a row that runs to the patient's left. The first
    letter of an oblique direction decides. A lateral view is turned but not mirrored. What does not fit is ``unknown``.

    Example:
        >>> header = Dataset()
        >>> header.PatientOrientation = ["R", "F"]
        >>> orientation(header)
        Orientation(label='upright (from R/F)', transpose=False, flip_rows=False, flip_columns=True)
    """
    stated = texts(dataset, "PatientOrientation")
    if len(stated) != 2 or not all(re.fullmatch("[APLRHF]{1,3}", direction) for direction in stated):
        return Orientation("unknown")
    directions = [direction[0] for direction in stated]
    transpose = directions[0] in "HF"
    across, down = directions[::-1] if transpose else directions
    if across not in "LRAP" or down not in "HF" or (across in "AP" and view(dataset) in ("PA", "AP")):
        return Orientation("unknown")
    turned = Orientation("upright", transpose, flip_rows=down == "H", flip_columns=across == "R")
    return turned._replace(label=f"upright (from {'/'.join(directions)})") if any(turned[1:]) else turned


def pixel_spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, str]:
    """Millimetres for a stored pixel ``(row, column)`` in the patient, and where they come from (PS3.3 10.7.1.3).

    In this order: PixelSpacing that was calibrated (``calibrated``); ImagerPixelSpacing divided by the magnification
    (``imager/magnification``) or by the distances that give it (``imager/distances``), or as it is, at the detector
    (``imager``); PixelSpacing alone (``pixel_spacing``); NominalScannedPixelSpacing (``nominal``); else ``unknown``.

    Example:
        >>> header = Dataset()
        >>> header.ImagerPixelSpacing, header.EstimatedRadiographicMagnificationFactor = [0.15, 0.15], 1.2
        >>> pixel_spacing(header)
        ((0.125, 0.125), 'imager/magnification')
    """
    stated, imager = spacing_of(dataset, "PixelSpacing"), spacing_of(dataset, "ImagerPixelSpacing")
    differs = stated and imager and any(abs(a - b) > 1e-4 * b for a, b in zip(stated, imager, strict=True))
    if stated and (differs or text(dataset, "PixelSpacingCalibrationType")):
        return stated, "calibrated"
    if imager:
        factor, source = magnification(dataset)
        return (imager[0] / factor, imager[1] / factor), source
    if stated:
        return stated, "pixel_spacing"
    nominal = spacing_of(dataset, "NominalScannedPixelSpacing")
    return (nominal, "nominal") if nominal else (None, "unknown")


def spacing_of(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """One spacing attribute as ``(row, column)`` mm; None when it is absent, zero, negative or unreadable."""
    values = numbers(dataset, keyword)
    if len(values) != 2 or not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return values[0], values[1]


def magnification(dataset: Dataset) -> tuple[float, str]:
    """How much larger the shadow is than the patient, and the name of the spacing that is divided by it.

    A shadow is never smaller than what casts it, and a chest's is never five times as large: other figures are ignored.
    """
    stated = number(dataset, "EstimatedRadiographicMagnificationFactor")
    if 1 <= stated <= 5:
        return stated, "imager/magnification"
    to_detector, to_patient = number(dataset, "DistanceSourceToDetector"), number(dataset, "DistanceSourceToPatient")
    if to_patient > 0 and 1 <= to_detector / to_patient <= 5:
        return to_detector / to_patient, "imager/distances"
    return 1.0, "imager"
