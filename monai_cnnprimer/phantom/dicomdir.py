# SPDX-License-Identifier: Apache-2.0
"""A DICOMDIR (PS3.3 annex F) over files held in memory: patients, studies, series, images, reports, chained by offsets.

pydicom's `FileSet` does this through temporary folders that it leaves to the garbage collector, and moves the files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

# The keys of each level (F.5): record type, what tells its records apart, what it repeats from the file.
LEVELS = (
    ("PATIENT", "PatientID", ("PatientName", "PatientID")),
    (
        "STUDY",
        "StudyInstanceUID",
        ("StudyDate", "StudyTime", "StudyDescription", "StudyInstanceUID", "StudyID", "AccessionNumber"),
    ),
    ("SERIES", "SeriesInstanceUID", ("Modality", "SeriesInstanceUID", "SeriesNumber")),
)
IMAGE = ("InstanceNumber",)
REPORT = (*IMAGE, "CompletionFlag", "VerificationFlag", "ContentDate", "ContentTime", "ConceptNameCodeSequence")


def dicomdir(files: Mapping[str, bytes], name: str, uid: UID) -> bytes:
    """The DICOMDIR of `files`.

    Args:
        files: path in the file-set (``A/B``, upper case, 8 characters a part) to the file's bytes.
        name: FileSetID, up to 16 characters.
        uid: of the file-set.

    Returns:
        The bytes of the file ``DICOMDIR``.
    """
    headers = [(path, dcmread(io.BytesIO(data), stop_before_pixels=True)) for path, data in files.items()]
    records = _records(headers)
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = uid
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID = name
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.FileSetConsistencyFlag = 0
    directory.DirectoryRecordSequence = records
    _chain(directory, records)
    return _bytes(directory)


def _records(headers: Sequence[tuple[str, Dataset]]) -> list[Dataset]:
    """Records in depth-first order, each with its depth (0 patient to 3 instance) as a Python attribute."""
    records: list[Dataset] = []

    def descend(group: Sequence[tuple[str, Dataset]], depth: int) -> None:
        if depth == len(LEVELS):
            records.extend(_instance(path, header) for path, header in group)
            return
        kind, key, keywords = LEVELS[depth]
        ordered = sorted(group, key=lambda item: str(item[1][key].value))
        for _, members in groupby(ordered, key=lambda item: str(item[1][key].value)):
            below = list(members)
            records.append(_record(kind, depth, below[0][1], keywords))
            descend(below, depth + 1)

    descend(headers, 0)
    return records


def _record(kind: str, depth: int, header: Dataset, keywords: Sequence[str]) -> Dataset:
    record = Dataset()
    record.depth = depth
    record.OffsetOfTheNextDirectoryRecord = 0
    record.RecordInUseFlag = 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.DirectoryRecordType = kind
    record.SpecificCharacterSet = header.SpecificCharacterSet
    for keyword in keywords:
        record[keyword] = header[keyword]
    return record


def _instance(path: str, header: Dataset) -> Dataset:
    report = header.Modality == "SR"
    record = _record("SR DOCUMENT" if report else "IMAGE", len(LEVELS), header, REPORT if report else IMAGE)
    record.ReferencedFileID = path.split("/")
    record.ReferencedSOPClassUIDInFile = header.SOPClassUID
    record.ReferencedSOPInstanceUIDInFile = header.SOPInstanceUID
    record.ReferencedTransferSyntaxUIDInFile = header.file_meta.TransferSyntaxUID
    return record


def _chain(directory: Dataset, records: Sequence[Dataset]) -> None:
    """Set the offsets (bytes from the file's start): to the next record beside, and to the first one below."""
    lengths = [8 + _length(record) for record in records]
    # The sequence of records is the last element, so its items end where the file ends.
    offset = len(_bytes(directory)) - sum(lengths)
    first = offset
    latest: dict[int, Dataset] = {}
    for record, length in zip(records, lengths, strict=True):
        depth = record.depth
        if depth in latest:
            latest[depth].OffsetOfTheNextDirectoryRecord = offset
        elif depth:
            latest[depth - 1].OffsetOfReferencedLowerLevelDirectoryEntity = offset
        latest = {level: other for level, other in latest.items() if level < depth} | {depth: record}
        if depth == 0:
            directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = offset
        offset += length
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = first


def _length(record: Dataset) -> int:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, record)
    return len(buffer.getvalue())


def _bytes(directory: Dataset) -> bytes:
    buffer = io.BytesIO()
    directory.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
