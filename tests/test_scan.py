# SPDX-License-Identifier: Apache-2.0
"""The quick way through a header gives what pydicom gives, or leaves the file to pydicom; mutants included."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from written_dicom import item, radiograph, table, written

from monai_cnnprimer.dicom import header, rows
from monai_cnnprimer.dicom.attributes import quiet
from monai_cnnprimer.dicom.files import Source
from monai_cnnprimer.dicom.scan import READ, scan

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


def undefined(sequence: Sequence) -> Sequence:
    """A sequence that is written without its length, and its items too."""
    sequence.is_undefined_length = True
    for one in sequence:
        one.is_undefined_length_sequence_item = True
    return sequence


def whole(**attributes: Any) -> Dataset:
    """A radiograph with an element of nearly every kind."""
    code = item(CodeValue="399348003", CodingSchemeDesignator="SCT", CodeMeaning="antero-posterior")
    code.add_new(0x0040A168, "SQ", [item(CodeValue="1", CodeMeaning="within")])
    stated = {
        "SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jürgen", "PatientAge": "045Y", "PatientSex": "F",
        "PatientBirthDate": "19790101", "StudyDate": "20240229", "StudyTime": "120000", "KVP": "125",
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "Manufacturer": "Größe & Söhne", "SeriesNumber": 3,
        "ImagerPixelSpacing": ["0.143", "0.143"], "WindowCenter": ["2048", "1024"], "WindowWidth": ["4096", "512"],
        "BitsStored": 12, "PixelPaddingValue": 7, "ViewCodeSequence": [code], "ViewPosition": "AP",
        "VOILUTSequence": [table(0, [0, 5, 6, 9], 16)], "ImageType": ["DERIVED", "PRIMARY", ""],
        "ExposureIndex": "", "FrameOfReferenceUID": "1.2.5", "ImageComments": "long text",
    }  # fmt: skip
    dataset = radiograph(PIXELS, **stated | attributes)
    dataset.private_block(0x0009, "Acme", create=True).add_new(1, "OB", b"\1\2")
    return dataset


def files() -> dict[str, bytes]:
    """Written files by name; the first ones are read the quick way."""
    sequences = whole()
    for keyword in ("ViewCodeSequence", "VOILUTSequence"):
        undefined(sequences[keyword].value)
        sequences[keyword].is_undefined_length = True
    signed = whole(PixelRepresentation=1)
    return {
        "explicit": written(whole()),
        "implicit": written(whole(), ImplicitVRLittleEndian),
        "implicit, signed": written(signed, ImplicitVRLittleEndian),
        "undefined lengths": written(sequences),
        "undefined lengths, implicit": written(copy.deepcopy(sequences), ImplicitVRLittleEndian),
        "compressed": written(whole(), JPEG2000Lossless, b"\xff\x4f\xff\x51" + bytes(60)),
        "small": written(radiograph(PIXELS)),
    }


QUICK = files()


def slow(data: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(data), stop_before_pixels=True, force=True)


def elements(dataset: Dataset) -> dict[int, pydicom.DataElement]:
    return {int(element.tag): element for element in dataset}


def answer(dataset: Dataset, keyword: str) -> Any:
    """A value, or the kind of error that asking for it gives."""
    try:
        value = dataset.get(keyword)
    except Exception as error:  # whatever pydicom raises, the other way must raise too
        return type(error)
    return [list(one) for one in value] if isinstance(value, Sequence) else (type(value), value)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


@pytest.mark.parametrize("name", QUICK)
def test_every_value_is_pydicoms(name: str) -> None:
    found, expected = scan(QUICK[name][:READ]), slow(QUICK[name])

    assert found is not None
    keywords = [pydicom.datadict.keyword_for_tag(tag) for tag in expected.keys()]  # noqa: SIM118 - not its elements
    for keyword in [*filter(None, keywords), "ViewPosition", "Laterality"]:
        assert answer(found, keyword) == answer(expected, keyword)
        assert found.get(keyword, 5) == expected.get(keyword, 5)
        assert (keyword in found) == (keyword in expected)
    assert found.original_encoding == expected.original_encoding
    assert found.file_meta.get("TransferSyntaxUID") == expected.file_meta.TransferSyntaxUID
    assert "_dict" not in vars(found)  # nothing was read by pydicom so far
    assert elements(found) == elements(expected)
    assert found.file_meta == expected.file_meta
    assert found.get("no keyword", 5) == expected.get("no keyword", 5) == 5
    assert QUICK[name].find(b"\xe0\x7f\x10\x00") == found.end


def test_it_is_a_data_set_like_any_other() -> None:
    found, expected = scan(QUICK["explicit"]), slow(QUICK["explicit"])
    assert found is not None
    assert (found.Rows, found.PatientName, found["KVP"].value, found[0x00280010].value) == (8, "Müller^Jürgen", 125, 8)
    assert [element.tag for element in found] == [element.tag for element in expected]
    assert pickle.loads(pickle.dumps(scan(QUICK["explicit"]))).Rows == 8
    assert copy.deepcopy(scan(QUICK["explicit"])) == expected
    found = scan(QUICK["explicit"])
    assert found is not None
    assert (found.get("ViewPosition"), found.get("Laterality", 1)) == ("AP", 1)
    for other in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other.get("ViewPosition"), other.get("Laterality", 1), other.Rows) == ("AP", 1, 8)
    found.ViewPosition = "PA"
    del found.KVP
    assert (found.get("ViewPosition"), "KVP" in found, found.get("KVP", 1)) == ("PA", False, 1)
    with pytest.raises(AttributeError, match="NoSuchAttribute"):
        _ = found.NoSuchAttribute


def left_aside() -> dict[str, bytes]:
    file, implicit = QUICK["explicit"], QUICK["implicit"]
    modality = file.index(b"\x08\0\x60\0CS")
    nested = item(CodeValue="1")
    for _ in range(10):
        outer = item(ConceptNameCodeSequence=undefined(Sequence([nested])))
        outer["ConceptNameCodeSequence"].is_undefined_length = True
        nested = outer
    deep = whole(ViewCodeSequence=undefined(Sequence([nested])))
    deep["ViewCodeSequence"].is_undefined_length = True
    return {
        "nothing": b"",
        "no prefix": file[132:],
        "no meta header": file[:132] + file[file.index(b"\x08\0\x05\0CS") :],
        "big endian": written(whole(), ExplicitVRBigEndian),
        "deflated": written(whole(), DeflatedExplicitVRLittleEndian),
        "private syntax": file.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"),
        "another syntax than stated": file.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),
        "implicit under an explicit syntax": implicit.replace(b"\x12\x001.2.840.10008.1.2", b"\x14\x001.2.840.10008.1.2.1"),  # noqa: E501
        "cut off": file[: modality + 9],
        "cut off within a head": file[: modality + 5],
        "out of order": file[:modality] + file[modality : modality + 10] * 2 + file[modality + 10 :],
        "unknown representation": file[: modality + 4] + b"ZZ" + file[modality + 6 :],
        "no representation": file[: modality + 4] + b"\1\2" + file[modality + 6 :],
        "a character set that is none": file.replace(b"ISO_IR 192", b"ISO_IR 999"),
        "a large element": written(whole(ImageComments="x" * 10_000, PixelDataProviderURL="y" * 70_000)),
        "deeply nested": written(deep),
    }  # fmt: skip


@pytest.mark.parametrize("name", left_aside())
def test_the_unusual_is_left_to_pydicom(name: str) -> None:
    data = left_aside()[name]
    found = scan(data[:READ])
    if name == "a character set that is none":  # pydicom warns and goes on; so may the quick way
        assert found is None or answer(found, "PatientName") == answer(slow(data), "PatientName")
    else:
        assert found is None


def test_a_header_without_pixels_ends_with_its_file() -> None:
    dataset = radiograph(PIXELS, Rows=None, Columns=None)
    del dataset.PixelData
    data = written(dataset)
    found = scan(data)
    assert found is not None
    assert found.end == len(data)
    assert scan(data + b"\0\0\0") is None


# --- the same row by either way


def describe(data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, *, quick: bool) -> rows.Row:
    file = folder / "file"
    file.write_bytes(data)
    status = file.stat()
    source = Source(str(file), "file", status.st_size, f"{status.st_size} {status.st_mtime_ns}")
    with monkeypatch.context() as patch:
        if not quick:
            patch.setattr(header, "scan", lambda start: None)
        return rows.describe(source, b"key", None)


def mutants(data: bytes, count: int, generator: np.random.Generator) -> Iterator[bytes]:
    """Copies with bytes exchanged, taken out, doubled or cut off, before the pixels."""
    last = max(200, data.find(b"\xe0\x7f\x10\x00") + 12)
    for _ in range(count):
        broken = bytearray(data)
        for place in generator.integers(132, min(last, len(data)), generator.integers(1, 4)):
            kind = generator.integers(5)
            if kind < 3:
                broken[place] = generator.integers(256) if kind else generator.choice([0, 1, 0x5C, 0xFE, 0xFF])
            elif kind == 3:
                del broken[place : place + int(generator.integers(1, 9))]
            else:
                broken[place:place] = broken[place - 8 : place]
        yield bytes(broken[: int(generator.integers(132, len(broken)))] if generator.random() < 0.1 else broken)


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_gets_the_same_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = 0
    for mutant in mutants(QUICK[name], 60, np.random.default_rng(len(name))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = describe(mutant, tmp_path, monkeypatch, quick=False)
            assert describe(mutant, tmp_path, monkeypatch, quick=True) == expected
        quick += scan(mutant[:READ]) is not None
    assert 5 < quick < 60  # both ways were gone


def test_the_phantoms_files_get_the_same_rows(
    phantom_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [file for file in sorted(phantom_export.rglob("*")) if file.is_file() and file.suffix != ".zip"]
    assert len(found) > 10
    for file in found:
        data = file.read_bytes()
        expected = describe(data, tmp_path, monkeypatch, quick=False)
        assert describe(data, tmp_path, monkeypatch, quick=True) == expected


def test_real_files_get_the_same_rows(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in sorted((data_folder / "dicom").iterdir()):
        data = file.read_bytes()
        found, expected = scan(data[:READ]), slow(data)
        assert found is not None
        assert elements(found) == elements(expected)
        row = describe(data, tmp_path, monkeypatch, quick=False)
        assert describe(data, tmp_path, monkeypatch, quick=True) == row
