# SPDX-License-Identifier: Apache-2.0
"""Departures from the standard that are met, not guessed at: a table. The receipt names each one an image shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from monai_cnnprimer.dicom.attributes import items, number, numbers, text, texts
from monai_cnnprimer.dicom.geometry import (
    VIEW_TERMS,
    coded_view,
    magnification,
    orientation,
    spacing_of,
    view,
)
from monai_cnnprimer.dicom.grayscale import (
    FUNCTIONS,
    LookupTable,
    PixelFormat,
    Window,
    is_inverted,
    lookup_table,
    modality_lut,
    rescale,
    voi,
    windows,
)

CHEST = ("CHEST", "THORAX", "LUNG", "LUNGS", "PORT CHEST", "CHEST PORT")


@dataclass(frozen=True)
class Quirk:
    """One departure: its name in the receipt, how a header shows it, and the reason to refuse it, if it is one."""

    name: str
    met: Callable[[Dataset], bool]
    refused: str = ""
    attribute: str = ""


def quirks(dataset: Dataset) -> list[Quirk]:
    """The rows of the table that a header meets, in the order of the table."""
    return [quirk for quirk in QUIRKS if quirk.met(dataset)]


def values_wrap(cells: NDArray[Any], pixels: PixelFormat) -> bool:
    """Whether values go on above BitsStored, so that the bits that it names would show steps where there are none.

    The bits above may also hold an overlay (PS3.5 8.1.1 of 2004 and before), which steps where the picture does not.
    Neighbours tell the two apart: the values that differ less from pixel to pixel are those that were meant.

    Args:
        cells: ``(Rows, Columns)``, unsigned, with bits in use that are not stored.
        pixels: the format that the header states.

    Example:
        >>> ramp = np.arange(0, 5000, 50, dtype=np.uint16).reshape(1, -1)
        >>> stated = PixelFormat(1, 100, 16, 12, 11, signed=False)
        >>> values_wrap(ramp, stated), values_wrap(ramp % 4096 | 0x8000 * (ramp % 3 == 0), stated)
        (True, False)
    """
    if pixels.signed or pixels.shift or pixels.columns < 2:
        return False
    whole = cells.astype(np.int64)
    stored = whole & pixels.mask
    return bool(np.abs(np.diff(whole)).sum() < np.abs(np.diff(stored)).sum())


def _some_zero_width(dataset: Dataset) -> bool:
    return any(window.width <= 0 for window in windows(dataset))


def _narrow_linear(dataset: Dataset) -> bool:
    return any(window.function == "LINEAR" and 0 < window.width < 1 for window in windows(dataset))


def _half_window(dataset: Dataset) -> bool:
    return any(math.isnan(window.center) or math.isnan(window.width) for window in windows(dataset))


def _tables(dataset: Dataset) -> list[LookupTable]:
    return [table for table in (modality_lut(dataset), voi(dataset)) if isinstance(table, LookupTable)]


def _uninverted_sign(dataset: Dataset) -> bool:
    sign = number(dataset, "PixelIntensityRelationshipSign")
    return sign in (1, -1) and is_inverted(dataset) != (sign == 1)


def _contradicting_shape(dataset: Dataset) -> bool:
    pair = text(dataset, "PhotometricInterpretation"), text(dataset, "PresentationLUTShape")
    return pair in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE"))


def _second_inversion(dataset: Dataset) -> bool:
    if not is_inverted(dataset):
        return False
    tables = _tables(dataset)
    falling = sum(bool(table.entries[0] > table.entries[-1]) for table in tables)
    return bool((falling + (modality_lut(dataset) is None and rescale(dataset)[0] < 0)) % 2)


def _window_beside_values(dataset: Dataset) -> bool:
    """Whether the window shows every value that the stored bits can hold as black, or every one as white."""
    window, stored = voi(dataset), number(dataset, "BitsStored")
    if not isinstance(window, Window) or modality_lut(dataset) is not None or not 0 < stored <= 16:
        return False
    slope, intercept = rescale(dataset)
    lowest = -(2 ** (stored - 1)) if number(dataset, "PixelRepresentation", 0) == 1 else 0
    ends = [slope * value + intercept for value in (lowest, lowest + 2**stored - 1)]
    return max(ends) <= window.center - window.width / 2 or min(ends) >= window.center + window.width / 2


def _runs_to_the_right(dataset: Dataset) -> bool:
    directions = texts(dataset, "PatientOrientation")
    return bool(directions) and directions[0][:1] == "R" and view(dataset) in ("PA", "AP", "unknown")


def _resolution_only(dataset: Dataset) -> bool:
    known = any(spacing_of(dataset, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing"))
    return number(dataset, "SpatialResolution") > 0 and not known


def _impossible_spacing(dataset: Dataset) -> bool:
    keywords = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    return any(numbers(dataset, keyword) and not spacing_of(dataset, keyword) for keyword in keywords)


def _impossible_magnification(dataset: Dataset) -> bool:
    stated = numbers(dataset, "EstimatedRadiographicMagnificationFactor")
    return bool(stated) and magnification(dataset)[1] != "imager/magnification"


def _odd_orientation(dataset: Dataset) -> bool:
    return any(texts(dataset, "PatientOrientation")) and orientation(dataset).label == "unknown"


def _has_periods(dataset: Dataset, keyword: str) -> bool:
    return bool(re.fullmatch(r"\d{4}\.\d\d\.\d\d", text(dataset, keyword)))


def _animal(dataset: Dataset) -> bool:
    words = text(dataset, "AcquisitionDeviceProcessingDescription") + text(dataset, "PatientSpeciesDescription")
    return any(name in words for name in ("CANINE", "FELINE", "EQUINE", "CANIS", "FELIS", "EQUUS", "VETERINARY"))


# Sources: clauses of PS3.x; "real" files are those that tests read, see tests/test_quirks.py.
QUIRKS = [
    # No meta header: the syntax is found by pydicom from the first elements (PS3.10 7.1 demands a meta header).
    Quirk("no-file-meta", lambda ds: "TransferSyntaxUID" not in getattr(ds, "file_meta", {})),
    # PS3.3 C.11.2.1.2.1: the width of a LINEAR window is at least 1; C.11.2.1.3: of the others more than 0. Ignored.
    Quirk("window-width-zero", _some_zero_width),
    Quirk("window-width-below-1", _narrow_linear),
    Quirk("window-incomplete", _half_window),
    # Alternatives for the reader to choose from (C.11.2.1.2); there is no reader here, so the first is used.
    Quirk("several-windows", lambda ds: len(windows(ds)) > 1),
    Quirk("several-voi-luts", lambda ds: len(items(ds, "VOILUTSequence")) > 1),
    Quirk("window-beside-voi-lut", lambda ds: bool(windows(ds)) and isinstance(voi(ds), LookupTable)),
    Quirk("voi-function-unknown", lambda ds: text(ds, "VOILUTFunction") not in ("", *FUNCTIONS)),
    # C.11.1.1.1, C.11.2.1.1: a false descriptor; Agfa CR writes the size of the cell for the bits of an entry
    # (github.com/Enet4/dicom-rs/pull/825). The entries that are there are used, and the bits that they need.
    Quirk("lut-bits", lambda ds: any(table.bits != table.stated_bits for table in _tables(ds))),
    Quirk("lut-length", lambda ds: any(len(table.entries) != table.stated_length for table in _tables(ds))),
    Quirk("voi-lut-unreadable", lambda ds: any(lookup_table(item) is None for item in items(ds, "VOILUTSequence"))),
    # C.8.11.3.1.2: INVERSE goes with MONOCHROME1, IDENTITY with MONOCHROME2. Either word inverts, both only once.
    Quirk("presentation-lut-contradicts", _contradicting_shape),
    # A header that inverts beside a table or slope that falls: both are applied, as C.7.6.3.1.2 says, so that bone is
    # dark unless it is stored bright. Viewers differ (github.com/cornerstonejs/cornerstone3D/pull/2215), and some
    # objects state what they do not mean (github.com/dcm4che/dcm4chee-arc-light/issues/3155).
    Quirk("second-inversion", _second_inversion),
    # C.8.11.3.1.2: by this sign bone is dark as shown. Seen in images FOR PROCESSING; stated here, not corrected.
    Quirk("intensity-sign-contradicts", _uninverted_sign),
    # C.8.11.2: not meant for display; a network trained on presented images has not seen such.
    Quirk("for-processing", lambda ds: text(ds, "PresentationIntentType") == "FOR PROCESSING"),
    # PS3.5 8.1.1: HighBit is BitsStored - 1 in all objects of today; ACR-NEMA stored the bits higher.
    Quirk("high-bit", lambda ds: "HighBit" in ds and number(ds, "HighBit") != number(ds, "BitsStored") - 1),
    # All black or all white: such a window goes with more bits than BitsStored says. Shown as stated.
    Quirk("window-beside-values", _window_beside_values),
    # "0.000\0.000" from a Philips CR (real), and "0.2\0\0.20000": C.7.6.3.1.1 excludes both. Treated as absent
    # (github.com/cornerstonejs/cornerstoneWADOImageLoader/pull/28).
    Quirk("spacing-impossible", _impossible_spacing),
    # The pitch of the plate, not of the pixels that are left of it: a Fuji CR (real) states 0.2 on a plate of 350 mm
    # with 440 columns, which are 0.8 mm wide. Not used.
    Quirk("spatial-resolution-only", _resolution_only),
    Quirk("magnification-impossible", _impossible_magnification),
    # C.8.7.1.1, C.8.11.5: a view that is not a defined term, or one that the code denies; ViewPosition counts.
    Quirk("view-not-understood", lambda ds: text(ds, "ViewPosition") not in ("", *VIEW_TERMS)),
    Quirk("view-contradicts-code", lambda ds: coded_view(ds) not in ("", "lateral", "oblique", view(ds))),
    # C.7.6.1.1.1 allows it, and the image is mirrored for display; where the statement is false, that puts the heart
    # on the wrong side. Look at some images of a manufacturer whose rows run so.
    Quirk("rows-run-to-the-right", _runs_to_the_right),
    # C.7.6.1.1.1: directions that no frontal view has, or no directions at all.
    Quirk("orientation-not-understood", _odd_orientation),
    # BodyPartExamined is set by habit as often as by examination: stated here, not believed.
    Quirk("body-part-not-chest", lambda ds: text(ds, "BodyPartExamined") not in ("", *CHEST)),
    # A radiograph wrapped by others (RSNA's challenge, real): what its detector stated is lost (A.8).
    Quirk("secondary-capture", lambda ds: text(ds, "SOPClassUID") == SecondaryCaptureImageStorage),
    # PS3.5 6.2: an age ends in D, W, M or Y; RSNA's files (real) say "62". The age stays unknown.
    Quirk("age-without-unit", lambda ds: text(ds, "PatientAge").isdecimal()),
    # ACR-NEMA's form, in a Fuji CR of 1995 (real); PS3.5 6.2 asks to understand it. No age is computed from it.
    Quirk("dates-with-periods", lambda ds: any(_has_periods(ds, day) for day in ("StudyDate", "AcquisitionDate"))),
    # Fujifilm DX units in veterinary use name the species in the processing menu only.
    Quirk("animal", _animal, "an animal, by its species or processing", "AcquisitionDeviceProcessingDescription"),
]  # fmt: skip
