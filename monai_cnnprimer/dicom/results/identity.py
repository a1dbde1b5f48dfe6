# SPDX-License-Identifier: Apache-2.0
"""What a result takes from its source image, and what makes two runs of one model give the same object.

An object belongs to the patient and study of its source, and carries of both what is needed to be filed there, no more.
UIDs are name-based UUIDs under the root 2.25 (PS3.5 B.2): the instance's name has the source's UID, the model, the kind
of object, and the SHA-256 of all that the object says, so that another content never has the same UID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from io import BytesIO
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydicom.dataset import Dataset
from pydicom.uid import UID

from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet, text, texts
from monai_cnnprimer.dicom.results.model import Model

PACKAGE = "monai_cnnprimer"
RESEARCH_ONLY = "Research use only, not for clinical use"
# Patient and study, as far as a PACS needs them to file an object: no physician, no institution, no remark.
REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
FILED_BY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
)  # fmt: skip
"""Type 2: there in every object, empty where the source has none (PS3.3 C.7.1.1, C.7.2.1)."""
WHERE_GIVEN = ("SpecificCharacterSet", "IssuerOfPatientID")
_IMAGE = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "RescaleType", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction",
)  # fmt: skip
# When the radiograph came to be, the most exact first.
_MOMENTS = (("ContentDate", "ContentTime"), ("AcquisitionDate", "AcquisitionTime"), ("StudyDate", "StudyTime"))
_HIGHDICOM_ROOT = "1.2.826.0.1.3680043.10.511.3."
# Where Laterality of General Series (type 2C) is asked for: of a chest it stands there empty.
_WITH_SIDE = ("OT", "PR")
_SERIES_NUMBERS = {"overlay": 9001, "map": 9002, "outlines": 9003, "report": 9004}


@contextmanager
def refusing_faults() -> Iterator[None]:
    """Turns what pydicom and highdicom raise over a source's faulty attributes into a refusal that quotes none of them.

    Their warnings are silenced too, since they quote values.
    """
    try:
        with quiet():
            yield
    except DicomRefused:
        raise
    except PARSE_ERRORS as error:
        raise DicomRefused(f"the source's header does not allow this result ({type(error).__name__})") from None


def referenced(source: Dataset) -> Dataset:
    """The source as the objects see it: what identifies and describes its image, and no one in it.

    Raises:
        DicomRefused: it cannot be referred to, or has no rows and columns.
    """
    for keyword in REQUIRED:
        if not UID(text(source, keyword)).is_valid or not text(source, keyword):
            raise DicomRefused("results need a source that a PACS can find: no valid UID", keyword)
    if UID(source.SOPClassUID).type != "SOP Class":
        raise DicomRefused("results need a source of a class that DICOM defines", "SOPClassUID")
    image = Dataset()
    with refusing_faults():
        for keyword in (*REQUIRED, *_IMAGE):
            if keyword in source and source[keyword].value not in (None, ""):
                image[keyword] = deepcopy(source[keyword])
    if not image.get("Rows") or not image.get("Columns"):
        raise DicomRefused("results need a source with an image", "Rows")
    for keyword in FILED_BY:
        setattr(image, keyword, None)
    return image


def series_of(source: Dataset, model: Model, kind: str) -> dict[str, Any]:
    """Series, equipment and instance as highdicom's constructors take them; the instance's UID is not the last one."""
    number = texts(source, "InstanceNumber")
    counted = number[0].isdecimal() and 0 < int(number[0]) < 2**31 if number else False
    return {
        "series_instance_uid": uid("series", source.SeriesInstanceUID, *model, kind),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": uid("unfinished", source.SOPInstanceUID, *model, kind),
        "instance_number": int(number[0]) if counted else 1,
        "series_description": f"{RESEARCH_ONLY}: {kind}",
        "manufacturer": PACKAGE,
        "manufacturer_model_name": model.name[:64],
        "software_versions": model.version[:64],
        "device_serial_number": model.weights_sha256[:16],
    }


def uid(*names: str) -> UID:
    """The UID of these names: a name-based UUID (RFC 9562, version 5) as a decimal number under 2.25.

    Example:
        >>> uid("a", "b") == uid("a", "b"), uid("ab"), uid("a", "b").is_valid
        (True, '2.25.318144393958008660722018489898444848169', True)
    """
    return UID(f"2.25.{uuid5(NAMESPACE_OID, chr(0).join((PACKAGE, *names))).int}")


def moment_of(source: Dataset, made_at: datetime | None) -> tuple[str, str]:
    """Date and time that the objects state: those given, else those of the radiograph.

    Raises:
        DicomRefused: none given, and the source has none.
    """
    if made_at is not None:
        return made_at.strftime("%Y%m%d"), made_at.strftime("%H%M%S")
    for date, time in _MOMENTS:
        if len(text(source, date)) == 8 and text(source, date).isdecimal():
            return text(source, date), text(source, time)[:6] if text(source, time)[:6].isdecimal() else "000000"
    raise DicomRefused("the source has no date, and none was given: set made_at", "StudyDate")


def finished(result: Dataset, source: Dataset, model: Model, kind: str, made_at: datetime | None) -> Dataset:
    """Files a result: identity as in the source, stated moment, UIDs that follow from the content."""
    date, time = moment_of(source, made_at)
    for keyword in ("InstanceCreation", "Content", "PresentationCreation"):
        if f"{keyword}Date" in result:
            setattr(result, f"{keyword}Date", date)
            setattr(result, f"{keyword}Time", time)
    if "DateOfSecondaryCapture" in result:
        result.DateOfSecondaryCapture, result.TimeOfSecondaryCapture = date, time
    for equipment in result.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = date + time
    for keyword in (*FILED_BY, *WHERE_GIVEN):
        if keyword in source:
            result[keyword] = deepcopy(source[keyword])
    result.ReferringPhysicianName = None
    if result.Modality in _WITH_SIDE:
        side = text(source, "Laterality")
        result.Laterality = side if side in ("R", "L") else None
    _settle(result, source, model, kind)
    written = BytesIO()
    result.save_as(written, enforce_file_format=True)
    content = hashlib.sha256(written.getvalue()).hexdigest()
    result.SOPInstanceUID = uid("instance", source.SOPInstanceUID, *model, kind, content)
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    return result


def _settle(result: Dataset, source: Dataset, model: Model, kind: str) -> None:
    """Replaces the UIDs that highdicom drew at random, each by its number in the object."""
    drawn: dict[str, UID] = {}
    for element in result.iterall():
        if element.VR == "UI" and str(element.value).startswith(_HIGHDICOM_ROOT):
            number = str(len(drawn))
            element.value = drawn.setdefault(element.value, uid("within", source.SOPInstanceUID, *model, kind, number))
