# SPDX-License-Identifier: Apache-2.0
"""Writes the smallest DICOM radiographs that show a fact; shared by the tests of the reader."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRBigEndian, ExplicitVRLittleEndian

from monai_cnnprimer.dicom.header import read_header, receipt
from monai_cnnprimer.dicom.pixels import Shown, show


def radiograph(cells: np.ndarray, **attributes: Any) -> Dataset:
    """A DX image with these pixel cells; `attributes` change, add or (None) remove what it states."""
    bits = cells.dtype.itemsize * 8
    stated = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.4711",
        "PatientName": "Doe^Jane",
        "PatientID": "MRN-4711",
        "Modality": "DX",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": cells.shape[0],
        "Columns": cells.shape[1],
        "BitsAllocated": bits,
        "BitsStored": attributes.get("BitsStored", bits),
        "HighBit": attributes.get("BitsStored", bits) - 1,
        "PixelRepresentation": 0,
        "PatientOrientation": ["L", "F"],
    } | attributes
    dataset = Dataset()
    for keyword, value in stated.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = cells.tobytes() + b"\0" * (cells.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    return dataset


def item(**attributes: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def table(first: int, entries: np.ndarray, bits: int, length: int | None = None, signed: bool = False) -> Dataset:
    """An item of a Modality or VOI LUT Sequence, with 16-bit words."""
    lut = Dataset()
    stated = (len(entries) if length is None else length) & 0xFFFF
    descriptor = [stated - 65536 if signed and stated > 32767 else stated, first, bits]
    lut.add_new("LUTDescriptor", "SS" if signed else "US", descriptor)
    lut.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return lut


def written(dataset: Dataset, syntax: str = ExplicitVRLittleEndian, stream: bytes | None = None) -> bytes:
    """The file of a data set, with `stream` as its one compressed frame when there is one."""
    if stream is not None:
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    if syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16 and stream is None:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def shown(file: bytes) -> tuple[Shown, dict[str, Any]]:
    """Reads a file as the reader does, without MONAI: what is displayed, and the receipt."""
    opened = BytesIO(file)
    dataset = read_header(opened)
    stated = receipt(dataset)
    result = show(opened, dataset)
    stated["quirks"] += result.quirks
    return result, stated
