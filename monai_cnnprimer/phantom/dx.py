# SPDX-License-Identifier: Apache-2.0
"""A rendered image as a DX Image Storage - For Presentation object (PS3.3 A.26), written the way its site writes."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from monai_cnnprimer.phantom.findings import Finding
from monai_cnnprimer.phantom.raster import Array
from monai_cnnprimer.phantom.sites import Site

CODES = {
    "chest": ("51185008", "Chest"),
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
}
"""SNOMED CT codes of CID 4009 and CID 4010."""

LUT_FIRST, LUT_BITS = 512, 12


@dataclass(frozen=True)
class Case:
    """One examination as planned: who, where, when, with what; nothing is rendered yet."""

    site: Site
    number: int
    patient: int
    exam: int
    seed: int
    label: int
    findings: tuple[Finding, ...]
    marker: str
    view: str
    date: str
    sex: str
    age: int

    @property
    def accession(self) -> str:
        """AccessionNumber, unique within all sites."""
        return f"{self.site.name[:3].upper()}{self.number:06d}"

    @property
    def patient_id(self) -> str:
        """PatientID, shared by the examinations of one patient."""
        return f"{self.site.name[:3].upper()}-P{self.patient:05d}"

    def uid(self, *part: object) -> UID:
        """A UID under 2.25 made of this case's names: the same case, the same UID."""
        names = "/".join(str(name) for name in (self.site.name, self.seed, self.exam, self.accession, *part))
        return UID(f"2.25.{int.from_bytes(hashlib.sha256(names.encode()).digest()[:16])}")


def code(name: str) -> Dataset:
    """A coded concept of `CODES` as a sequence item."""
    item = Dataset()
    item.CodeValue, item.CodeMeaning = CODES[name]
    item.CodingSchemeDesignator = "SCT"
    return item


def patient_and_study(case: Case, study: str = "study") -> Dataset:
    """Patient, General Study and Patient Study modules; everything in them is invented."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = f"PHANTOM^{case.site.name.upper()}{case.patient:05d}"
    ds.PatientID = case.patient_id
    ds.IssuerOfPatientID = f"{case.site.name.upper()} HOSPITAL"
    ds.PatientBirthDate = f"{int(case.date[:4]) - case.age}0101"
    ds.PatientSex = case.sex
    ds.PatientAge = f"{case.age:03d}Y"
    ds.StudyInstanceUID = case.uid(study)
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = case.date
    time = f"{8 + case.number % 10:02d}{case.number % 60:02d}00"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = time
    ds.AccessionNumber = case.accession
    ds.ReferringPhysicianName = ""
    ds.StudyID = str(case.number)
    ds.StudyDescription = "Chest"
    ds.InstitutionName = f"{case.site.name.upper()} HOSPITAL"
    return ds


def dx_object(case: Case, image: Array, view: str, spacing_mm: float, instance: str) -> Dataset:
    """The whole object with encoded pixels.

    Args:
        case: whose image.
        image: ``(rows, columns)`` in [0, 1], bone bright.
        view: ``PA``, ``AP`` or ``LL``.
        spacing_mm: size of a pixel in the patient.
        instance: name of this instance within the case; the UID follows from it.
    """
    ds = patient_and_study(case)
    _series(ds, case, view, instance)
    _acquisition(ds, case, view)
    _spacing(ds, case, spacing_mm)
    stored = _display(ds, case.site, image)
    syntax = case.site.syntaxes[case.number % len(case.site.syntaxes)]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.set_pixel_data(stored, ds.PhotometricInterpretation, case.site.bits, generate_instance_uid=False)
    if syntax.is_compressed:
        ds.compress(syntax, generate_instance_uid=False)
    return ds


def _series(ds: Dataset, case: Case, view: str, instance: str) -> None:
    """General and DX Series, General Equipment, SOP Common."""
    site = case.site
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = case.uid("instance", instance)
    ds.SeriesInstanceUID = case.uid("series", view)
    ds.Modality = "DX"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.SeriesNumber = 1 + (view == "LL")
    ds.SeriesDescription = f"Chest {view}"
    ds.InstanceNumber = 1
    ds.Manufacturer = site.manufacturer
    ds.ManufacturerModelName = site.model
    ds.DeviceSerialNumber = str(1000 + _room(case))
    ds.StationName = f"{site.name.upper()}{_room(case)}"
    ds.SoftwareVersions = "1.0"


def _room(case: Case) -> int:
    """Each patient is examined in one of two rooms."""
    return 1 + case.patient % 2


def _acquisition(ds: Dataset, case: Case, view: str) -> None:
    """DX Anatomy Imaged, DX Positioning, X-Ray Generation, Acquisition Context; and that it is no patient."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.BodyPartExamined = "CHEST"
    ds.AnatomicRegionSequence = [code("chest")]
    ds.ImageLaterality = "U"
    ds.ViewPosition = view
    ds.ViewCodeSequence = [code(view)]
    ds.PatientOrientation = ["P", "F"] if view == "LL" else ["L", "F"]
    _exposure(ds, case, view)
    ds.DetectorType = "STORAGE" if case.site.model.startswith("CR") else "SCINTILLATOR"
    ds.AcquisitionContextSequence = []
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.ImageComments = "SYNTHETIC PHANTOM - NOT A PATIENT"


def _exposure(ds: Dataset, case: Case, view: str) -> None:
    """X-Ray Generation: as automatic exposure sets it, more at lower voltage and for a lateral; never by label."""
    site, step = case.site, (case.patient * 7 + case.exam) % 11
    factor = (1 + 0.05 * (step - 5)) * (2.5 if view == "LL" else 1.0)
    mas = 2.0 * (120 / site.kvp) ** 4 * factor
    ds.KVP = str(site.kvp)
    ds.XRayTubeCurrent = "320"
    ds.ExposureTime = str(max(1, round(1000 * mas / 320)))
    ds.Exposure, ds.ExposureInuAs = str(round(mas)), str(round(1000 * mas))
    if not site.model.startswith("CR"):  # storage phosphors have vendors' own indices
        ds.ExposureIndex = f"{site.quanta_per_mm2 / 1000 * factor:.0f}"


def _spacing(ds: Dataset, case: Case, spacing_mm: float) -> None:
    """What the site says about the size of a pixel; at the detector it is magnified."""
    site = case.site
    at_detector = [f"{spacing_mm * site.magnification:.6g}"] * 2
    if site.spacing == "imager or missing" and _room(case) == 2:
        # ImagerPixelSpacing is type 1 in a DX object, and yet exports lack it.
        return
    ds.ImagerPixelSpacing = at_detector
    if site.spacing == "calibrated":
        ds.PixelSpacing = [f"{spacing_mm:.6g}"] * 2
        ds.PixelSpacingCalibrationType = "GEOMETRY"
        ds.PixelSpacingCalibrationDescription = "magnification of the posterior chest removed"
    elif site.spacing == "magnification":
        ds.EstimatedRadiographicMagnificationFactor = f"{site.magnification:.6g}"


def _display(ds: Dataset, site: Site, image: Array) -> NDArray[np.uint16]:
    """DX Image and VOI LUT modules, and the stored values that they display as `image`."""
    inverse = site.photometric == "MONOCHROME1"
    ds.PhotometricInterpretation = site.photometric
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    shown = 1 - image if inverse else image
    top = 2**site.bits - 1
    if site.voi == "window":
        centre, width = (top + 1) // 2, int(0.78 * top)
        ds.WindowCenter, ds.WindowWidth = str(centre), str(width)
        ds.WindowCenterWidthExplanation = "NORMAL"
        # PS3.3 C.11.2.1.2 read backwards.
        return np.round((shown - 0.5) * (width - 1) + centre - 0.5).astype(np.uint16)
    if site.voi == "lut":
        curve = _lut(ds, top)
        return np.round(np.interp(shown, curve, LUT_FIRST + np.arange(curve.size))).astype(np.uint16)
    # Neither: the standard wants one of the two in a presentation object (C.8.11.3), many exports have none.
    return np.round(shown * top).astype(np.uint16)


def _lut(ds: Dataset, top: int) -> NDArray[np.float64]:
    """Attach an S-shaped VOI LUT that starts at a stored value above 0; return its curve in [0, 1]."""
    count = top + 1 - 2 * LUT_FIRST
    curve = np.tanh(np.linspace(-1.3, 1.3, count))
    curve = (curve - curve[0]) / (curve[-1] - curve[0])
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count, LUT_FIRST, LUT_BITS])
    item.LUTExplanation = "CHEST"
    item.add_new("LUTData", "OW", np.round(curve * (2**LUT_BITS - 1)).astype("<u2").tobytes())
    ds.VOILUTSequence = [item]
    return curve


def file_bytes(ds: Dataset) -> bytes:
    """A dataset as a DICOM file: preamble, file meta, data."""
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
