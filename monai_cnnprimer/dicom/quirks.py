# SPDX-License-Identifier: Apache-2.0
"""Departures from the standard that are met, not guessed at: a table. The receipt names each one an image shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pydicom.dataset import Dataset

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
    is_inverted,
    lookup_table,
    modality_lut,
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


def _impossible_spacing(dataset: Dataset) -> bool:
    keywords = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    return any(numbers(dataset, keyword) and not spacing_of(dataset, keyword) for keyword in keywords)


def _impossible_magnification(dataset: Dataset) -> bool:
    stated = numbers(dataset, "EstimatedRadiographicMagnificationFactor")
    return bool(stated) and magnification(dataset)[1] != "imager/magnification"


def _odd_orientation(dataset: Dataset) -> bool:
    return any(texts(dataset, "PatientOrientation")) and orientation(dataset).label == "unknown"


def _animal(dataset: Dataset) -> bool:
    words = text(dataset, "AcquisitionDeviceProcessingDescription") + text(dataset, "PatientSpeciesDescription")
    return any(name in words for name in ("CANINE", "FELINE", "EQUINE", "CANIS", "FELIS", "EQUUS", "VETERINARY"))


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
    # C.8.11.3.1.2: by this sign bone is dark as shown. Seen in images FOR PROCESSING; stated here, not corrected.
    Quirk("intensity-sign-contradicts", _uninverted_sign),
    # C.8.11.2: not meant for display; a network trained on presented images has not seen such.
    Quirk("for-processing", lambda ds: text(ds, "PresentationIntentType") == "FOR PROCESSING"),
    # PS3.5 8.1.1: HighBit is BitsStored - 1 in all objects of today; ACR-NEMA stored the bits higher.
    Quirk("high-bit", lambda ds: "HighBit" in ds and number(ds, "HighBit") != number(ds, "BitsStored") - 1),
    # "0.000" from a Philips workstation; C.7.6.3.1.1 excludes it. Treated as absent.
    Quirk("spacing-impossible", _impossible_spacing),
    Quirk("magnification-impossible", _impossible_magnification),
    # C.8.7.1.1, C.8.11.5: a view that is not a defined term, or one that the code denies; ViewPosition counts.
    Quirk("view-not-understood", lambda ds: text(ds, "ViewPosition") not in ("", *VIEW_TERMS)),
    Quirk("view-contradicts-code", lambda ds: coded_view(ds) not in ("", "lateral", "oblique", view(ds))),
    # C.7.6.1.1.1: directions that no frontal view has, or no directions at all.
    Quirk("orientation-not-understood", _odd_orientation),
    # BodyPartExamined is set by habit as often as by examination: stated here, not believed.
    Quirk("body-part-not-chest", lambda ds: text(ds, "BodyPartExamined") not in ("", *CHEST)),
    # Fujifilm DX units in veterinary use name the species in the processing menu only.
    Quirk("animal", _animal, "an animal, by its species or processing", "AcquisitionDeviceProcessingDescription"),
]  # fmt: skip
