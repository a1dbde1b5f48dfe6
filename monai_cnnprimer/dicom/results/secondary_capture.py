# SPDX-License-Identifier: Apache-2.0
"""A picture that any viewer shows, as a Secondary Capture Image (PS3.3 A.8.1)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from monai_cnnprimer.dicom.results.identity import finished, referenced, refusing_faults, series_of
from monai_cnnprimer.dicom.results.model import Model

KIND = "overlay"


def secondary_capture(
    source: Dataset,
    picture: NDArray[np.uint8],
    model: Model,
    *,
    description: str = "Map over the radiograph",
    directions: Sequence[str] = (),
    made_at: datetime | None = None,
) -> Dataset:
    """An overlay, or any other picture of a result, beside its source image in the study.

    Args:
        source: header of the radiograph that the picture shows.
        picture: `(H, W, 3)` colour or `(H, W)` grey, uint8; it must say itself that it is for research only.
        model: what made the result.
        description: what the picture shows, 1024 characters at most.
        directions: where rows and columns of the picture run in the patient, e.g. ``["L", "F"]``
            (`upright_directions`); none where it is not known.
        made_at: moment that the object states; None takes that of the radiograph, so that the same input gives the
            same bytes.

    Raises:
        ValueError: another kind of array.
        DicomRefused: the source cannot be referred to.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise ValueError(f"a picture is uint8, (H, W, 3) or (H, W); got {picture.dtype} {picture.shape}")
    image = referenced(source)
    towards: Any = list(directions) or None
    with refusing_faults():
        result = SCImage.from_ref_dataset(
            image,
            pixel_array=picture,
            photometric_interpretation="RGB" if picture.ndim == 3 else "MONOCHROME2",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **series_of(source, model, KIND),
        )
        result.PatientOrientation = towards
        result.ConversionType = "WSD"
        result.BurnedInAnnotation = "NO"  # no annotation that identifies the patient (PS3.3 C.7.6.1.1.1)
        result.DerivationDescription = f"{description}; {model.short}"[:1024]
        result.SourceImageSequence = [_reference(image)]
        return finished(result, source, model, KIND, made_at)


def _reference(image: Dataset) -> Dataset:
    """The source as an item of SourceImageSequence (PS3.3 C.12.4)."""
    purpose, item = Dataset(), Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code[:3]
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
