# SPDX-License-Identifier: Apache-2.0
"""What exports hold besides radiographs: reports, other modalities, broken files, notes."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, CTImageStorage, ExplicitVRLittleEndian

from monai_cnnprimer.phantom.dx import Case, patient_and_study

NOTE = b"Exported for research. Three studies could not be retrieved and are missing.\r\n"


def structured_report(case: Case) -> Dataset:
    """A one-sentence report of the case's study (Basic Text SR)."""
    ds = patient_and_study(case)
    ds.SOPClassUID, ds.SOPInstanceUID = BasicTextSRStorage, case.uid("instance", "report")
    ds.SeriesInstanceUID = case.uid("series", "report")
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "SR", 9, 1
    ds.Manufacturer = "Phantom Reporting"
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.update(_node("CONTAINER", "18748-4", "Diagnostic imaging report"))
    ds.ContinuityOfContent = "SEPARATE"
    finding = _node("TEXT", "59776-5", "Procedure findings")
    finding.RelationshipType, finding.TextValue = "CONTAINS", "Synthetic image."
    ds.ContentSequence = [finding]
    return ds


def _node(value_type: str, value: str, meaning: str) -> Dataset:
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = value, "LN", meaning
    node = Dataset()
    node.ValueType, node.ConceptNameCodeSequence = value_type, [name]
    return node


def ct_slice(case: Case, size: int = 64) -> Dataset:
    """One CT slice, an ellipse of water with two lungs: another modality of the same patient, another study."""
    ds = patient_and_study(case, "ct")
    ds.AccessionNumber += "CT"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, case.uid("instance", "ct")
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = case.uid("series", "ct"), case.uid("frame", "ct")
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, 1
    ds.Manufacturer, ds.PositionReferenceIndicator, ds.PatientPosition = case.site.manufacturer, "", "HFS"
    ds.ImageType, ds.KVP, ds.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "120", "1"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = ["-192", "-192", "0"], ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing, ds.SliceThickness = ["6", "6"], "5"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * (2 / size)
    body = (x / 0.85) ** 2 + (y / 0.6) ** 2 < 1
    lungs = ((np.abs(x) - 0.4) / 0.28) ** 2 + (y / 0.42) ** 2 < 1
    values = np.where(body, np.where(lungs, 200, 1064), 24).astype(np.uint16)
    ds.set_pixel_data(values, "MONOCHROME2", 12, generate_instance_uid=False)
    return ds


def truncated(data: bytes, in_header: bool) -> bytes:
    """A transfer that broke off: within the header, or within the pixels."""
    return data[:700] if in_header else data[: len(data) // 2]
