# SPDX-License-Identifier: Apache-2.0
"""What an export holds: folders, zips, DICOMDIRs, plain images; hostile files, kills, keys, labels; no patient."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from processes import children, running, until
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import BasicTextSRStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from monai_cnnprimer.dicom import rows
from monai_cnnprimer.dicom.export import Manifest, index_export
from monai_cnnprimer.dicom.files import Source
from monai_cnnprimer.dicom.kept import NAMES
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.phantom.export import write_export

KEY = b"a key for these tests only"
ROOT = "1.2.826.0.1.3680043.10.999"


def radiograph(number: int = 1, **attributes: object) -> Dataset:
    """The smallest PA radiograph: 8 x 8 pixels, its own patient, study and image."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = f"{ROOT}.3.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.1.{number}", f"{ROOT}.2.{number}"
    dataset.PatientID, dataset.PatientName, dataset.AccessionNumber = f"P{number}", "Nobody", f"A{number}"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber, dataset.StudyDate = "1", 1, 1, "20240229"
    dataset.StudyTime, dataset.Modality, dataset.ViewPosition, dataset.Manufacturer = "120000", "DX", "PA", "Acme, Inc."
    dataset.PatientOrientation, dataset.PresentationIntentType = ["L", "F"], "FOR PRESENTATION"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.ImagerPixelSpacing = [0.143, 0.143]
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = bytes(128)
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", f"{ROOT}.4.{number}")
    return dataset


def write(path: Path, number: int = 1, **attributes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    radiograph(number, **attributes).save_as(path, enforce_file_format=True)
    return path


def as_bytes(number: int = 1, **attributes: object) -> bytes:
    file = io.BytesIO()
    radiograph(number, **attributes).save_as(file, enforce_file_format=True)
    return file.getvalue()


def many(folder: Path, count: int) -> Path:
    """Files that differ in one UID of constant length."""
    folder.mkdir(parents=True)
    template, name = as_bytes(10000), f"{ROOT}.3.10000".encode()
    for number in range(10000, 10000 + count):
        (folder / f"I{number}").write_bytes(template.replace(name, f"{ROOT}.3.{number}".encode()))
    return folder


def index(path: Path | str, **options: object) -> Manifest:
    return index_export(path, **{"key": KEY, "progress": False, "workers": 1} | options)


def keyed(text: str, length: int = 64) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()[:length]


def reasons(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.refused["path_sha256"], manifest.refused["reason"], strict=True))


def reason(manifest: Manifest, name: str) -> str:
    return reasons(manifest)[keyed(name)]


# --- one accepted file


def test_a_row_of_the_manifest(tmp_path: Path) -> None:
    file = write(tmp_path / "in" / "A" / "1", PatientSex="F", PatientAge="045Y")
    manifest = index(tmp_path / "in", site="north", output=tmp_path / "out")
    with (tmp_path / "out" / "manifest.csv").open(encoding="utf-8", newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert list(row) == [
        "case_id", "patient_key", "path_sha256", "sha256", "site", "label", "file", "view", "laterality", "sex",
        "age_band", "manufacturer", "rows", "columns", "pixel_spacing_mm", "spacing_source", "kvp", "exposure_mas",
        "exposure_index", "polarity", "lut", "orientation", "transfer_syntax", "burned_in", "quirks",
    ]  # fmt: skip
    assert row["case_id"] == keyed(f"{ROOT}.3.1", 16)
    assert row["patient_key"] == keyed("P1", 16)
    assert row["path_sha256"] == keyed("A/1")
    assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    said = {"site": "north", "label": "", "file": "", "view": "PA", "sex": "F", "age_band": "40-64", "rows": "8"}
    said |= {"manufacturer": "Acme Inc", "pixel_spacing_mm": "0.143", "columns": "8"}
    assert {name: row[name] for name in said} == said
    assert manifest.paths == {row["case_id"]: str(file)}
    assert manifest.cases() == [
        {"image": str(file), "case_id": row["case_id"], "patient_key": row["patient_key"], "site": "north"}
        | {"label": None, "file": ""}
    ]
    assert manifest.sha256 == hashlib.sha256((tmp_path / "out" / "manifest.csv").read_bytes()).hexdigest()
    assert (tmp_path / "out" / "refused.csv").read_bytes() == b"path_sha256,sha256,reason,attribute\n"
    assert written(tmp_path / "out").keys() == {"manifest.csv", "refused.csv"}


@pytest.mark.parametrize(
    ("attributes", "band"),
    [
        ({"PatientAge": "004Y"}, "0-4"), ({"PatientAge": "018M"}, "0-4"), ({"PatientAge": "060M"}, "5-17"),
        ({"PatientAge": "003D"}, "0-4"), ({"PatientAge": "017Y"}, "5-17"), ({"PatientAge": "039Y"}, "18-39"),
        ({"PatientAge": "089Y"}, "65-89"), ({"PatientAge": "104Y"}, "90+"), ({"PatientAge": "990Y"}, ""), ({}, ""),
        ({"PatientBirthDate": "20060301"}, "5-17"), ({"PatientBirthDate": "20060229"}, ""),
        ({"PatientBirthDate": "20060228"}, "18-39"), ({"PatientBirthDate": "20250101"}, ""),
        ({"PatientBirthDate": "19800101", "StudyDate": ""}, ""),
    ],
)  # fmt: skip
def test_age_becomes_a_band(tmp_path: Path, attributes: dict[str, str], band: str) -> None:
    write(tmp_path / "1", **attributes)  # the study is of 29 February 2024; there was no 29 February 2006
    assert index(tmp_path).accepted["age_band"].tolist() == [band]


@pytest.mark.parametrize(
    ("attributes", "patient"),
    [
        ({"PatientID": "7", "IssuerOfPatientID": "B"}, "7\\B"),
        ({"PatientID": " 7 "}, "7"),
        ({"PatientID": ""}, f"{ROOT}.1.1"),
        ({"PatientID": None}, f"{ROOT}.1.1"),
    ],
)
def test_patients_are_told_apart(tmp_path: Path, attributes: dict[str, str | None], patient: str) -> None:
    write(tmp_path / "1", **attributes)
    manifest = index(tmp_path)
    assert manifest.accepted["patient_key"].tolist() == [keyed(patient, 16)]
    by_study = ["1 accepted images name no patient: each study is taken for one patient"]
    assert manifest.notes == ([] if attributes["PatientID"] else by_study)


# --- files that are not accepted


def test_every_file_of_a_folder_ends_in_one_table(tmp_path: Path) -> None:
    export = tmp_path / "in"
    write(export / "ok")
    write(export / "again")  # same image, sorts before "ok"
    write(export / "clash", PatientID="P2")
    write(export / "lateral", 2, ViewPosition="LL")
    write(export / "ct", 3, Modality="CT", SOPClassUID=pydicom.uid.CTImageStorage)
    write(export / "report", 4, Modality="SR", SOPClassUID=BasicTextSRStorage, Rows=None, Columns=None, PixelData=None)
    write(export / "noname", 5, SOPInstanceUID=None)
    write(export / "nobody", 6, PatientID=None, StudyInstanceUID="")
    (export / "sub").mkdir()
    (export / "sub" / "note.txt").write_text("Dear colleague, thank you for your patient.")
    (export / "empty").touch()
    (export / "cut").write_bytes(as_bytes(7)[:300])
    (export / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (export / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    manifest = index(export)
    said = {name: reason(manifest, name) for name in os.listdir(export) if name not in ("again", "sub")}
    assert manifest.accepted["path_sha256"].tolist() == [keyed("again")]
    assert said["ok"] == "a duplicate of an accepted image"
    assert said["clash"] == "another image with the identifier of an accepted one"
    assert said["noname"] == "no identifier of the image, so that it cannot be told from others"
    assert said["nobody"] == "neither a patient nor a study is named, so that patients cannot be told apart"
    assert said["photo.png"] == "not DICOM"
    assert said["broken.zip"] == "a zip archive that is damaged or cannot be opened"
    assert "empty" in said["empty"]
    assert len(manifest.refused) == 12
    assert all(manifest.refused["reason"])
    attribute = dict(zip(manifest.refused["path_sha256"], manifest.refused["attribute"], strict=True))
    assert attribute[keyed("ok")] == attribute[keyed("noname")] == "SOPInstanceUID"
    content = dict(zip(manifest.refused["path_sha256"], manifest.refused["sha256"], strict=True))
    assert content[keyed("empty")] == hashlib.sha256(b"").hexdigest()
    assert index(export, views=None).accepted["view"].tolist().count("PA") == 1
    assert len(index(export, views=None).accepted) == 2


def test_what_is_not_a_file_is_never_opened(tmp_path: Path) -> None:
    export = tmp_path / "in"
    write(export / "ok")
    write(tmp_path / "outside", 2)
    os.mkfifo(export / "pipe")  # opening it would wait for ever
    (export / "out").symlink_to(tmp_path / "outside")
    (export / "nowhere").symlink_to("gone")
    (export / "circle").symlink_to("circle")
    (export / "inside").symlink_to("ok")
    (export / "folder").symlink_to(export)
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(export)  # a socket's path may have 108 characters only
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        manifest = index(export)
    pipe = "not a file but a pipe, a socket or a device"
    assert {name: reason(manifest, name) for name in os.listdir(export) if name != "inside"} == {
        "ok": "a duplicate of an accepted image",  # by the link, which sorts first
        "pipe": pipe,
        "socket": pipe,
        "out": "a symbolic link that leads out of the export",
        "nowhere": "a symbolic link that leads nowhere",
        "circle": "a symbolic link that leads nowhere",
        "folder": "a link or a reference to a folder, which is not followed",
    }
    assert len(manifest.accepted) == 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, and this process for a while as somebody whom permissions bind."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_nobody(action: Callable[[], Manifest]) -> Manifest:
    if os.geteuid() != 0:
        return action()
    os.seteuid(65534)
    try:
        return action()
    finally:
        os.seteuid(0)


def test_without_permission(open_folder: Path) -> None:
    write(open_folder / "ok")
    write(open_folder / "locked", 2).chmod(0)
    write(open_folder / "closed" / "1", 3).parent.chmod(0)
    manifest = as_nobody(lambda: index(open_folder))
    (open_folder / "closed").chmod(0o755)
    assert reason(manifest, "locked") == "the file cannot be opened"
    assert reason(manifest, "closed") == "a folder that cannot be opened (permission, or a failing disk)"
    assert len(manifest.accepted) == 1


def test_a_disk_that_fails_and_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "failing"), write(tmp_path / "growing", 2), write(tmp_path / "ok", 3)

    def open_source(path: str) -> io.BufferedReader:
        if path.endswith("failing"):
            raise OSError(5, "Input/output error", "/patients/doe")
        if path.endswith("growing"):
            os.utime(path, ns=(1, 1))
        return open(path, "rb")

    monkeypatch.setattr(rows, "open_source", open_source)
    manifest = index(tmp_path)
    assert reason(manifest, "failing") == "cannot be read (Input/output error)"
    assert reason(manifest, "growing") == "changed while it was read: index again when the export is complete"
    assert len(manifest.accepted) == 1


# --- archives and lists


def test_zip_gives_what_the_folder_gives(tmp_path: Path) -> None:
    write(tmp_path / "in" / "S1" / "1"), write(tmp_path / "in" / "S2" / "ü 2", 2)
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("S1/", "S1/1", "S2/ü 2"):
            archive.write(tmp_path / "in" / name, name)
    folder, packed = index(tmp_path / "in"), index(tmp_path / "export.zip")
    assert len(packed.accepted) == 2
    assert folder.accepted.equals(packed.accepted)
    assert set(packed.paths.values()) == {f"{tmp_path}/export.zip/S1/1", f"{tmp_path}/export.zip/S2/ü 2"}


def test_zip_archives_in_a_folder_are_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "1")
    with zipfile.ZipFile(tmp_path / "study.ZIP", "w") as archive:
        archive.writestr("2", as_bytes(2))
    manifest = index(tmp_path)
    assert set(manifest.accepted["path_sha256"]) == {keyed("1"), keyed("study.ZIP/2")}


def test_hostile_zip(tmp_path: Path) -> None:
    export = tmp_path / "export.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    names = ["ok", "../up", "a/../../up", "/etc/up", "C:/up", "..\\up", "inner.zip", "secret", "flipped"]
    with zipfile.ZipFile(export, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, as_bytes(number))
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("ok", as_bytes(77))
    content = bytearray(export.read_bytes())
    entry = content.rindex(b"secret") - 46  # the central directory's header, with the flags at 8
    struct.pack_into("<H", content, entry + 8, 1)
    data = content.index(b"flipped") + 7
    content[data + 500 : data + 504] = b"\xff" * 4  # the checksum is of other bytes
    export.write_bytes(content)
    manifest = index(export)
    said = {name: reason(manifest, name) for name in [*names, "link"]}
    outside = "a name that leads out of the zip archive"
    assert {name: text for name, text in said.items() if name != "flipped"} == {
        "ok": "replaced by a later member of the same name",
        **dict.fromkeys(["../up", "a/../../up", "/etc/up", "C:/up", "..\\up"], outside),
        "inner.zip": "a zip archive within a zip archive: unpack it first",
        "secret": "encrypted in the zip archive: unpack it with its password first",
        "link": "a symbolic link in a zip archive, which is not followed",
    }
    assert "damaged" in said["flipped"]
    assert manifest.accepted["case_id"].tolist() == [keyed(f"{ROOT}.3.77", 16)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_a_bad_zip_is_one_refused_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "export.zip").write_bytes(content)
    manifest = index(tmp_path / "export.zip")
    assert reasons(manifest) == {keyed("export.zip"): "a zip archive that is damaged or cannot be opened"}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a DICOMDIR of three images, as a burnt medium has it."""
    files = FileSet()
    for number in (1, 2, 3):
        files.add(radiograph(number))
    files.write(tmp_path / "media")
    files._stage["t"].cleanup()  # left to the garbage collector, its temporary folder warns in some later test
    return tmp_path / "media"


def test_dicomdir_is_a_list(media: Path) -> None:
    write(media / "not-listed", 9)
    first, *_ = sorted(file for file in media.rglob("IM*"))
    first.unlink()
    manifest = index(media / "DICOMDIR")
    assert len(manifest.accepted) == 2
    assert reasons(manifest) == {keyed(first.relative_to(media).as_posix()): "listed, but not there"}


def test_dicomdir_in_a_folder_is_a_file(media: Path) -> None:
    write(media / "not-listed", 9)
    manifest = index(media)
    assert len(manifest.accepted) == 4
    assert reasons(manifest) == {keyed("DICOMDIR"): "a directory of files, not an image"}


def test_dicomdir_of_a_medium_shown_in_lower_case(media: Path) -> None:
    for path in sorted(media.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    manifest = index(media / "dicomdir")
    assert len(manifest.accepted) == 3
    assert manifest.refused.empty


def test_dicomdir_that_leads_out(media: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside", 9)
    (media / "LINK").symlink_to(tmp_path)
    directory = pydicom.dcmread(media / "DICOMDIR")
    images = [record for record in directory.DirectoryRecordSequence if record.DirectoryRecordType == "IMAGE"]
    images[0]["ReferencedFileID"] = pydicom.DataElement("ReferencedFileID", "LO", ["..", "outside"])
    images[1]["ReferencedFileID"] = pydicom.DataElement("ReferencedFileID", "LO", ["LINK", "outside"])
    directory.save_as(media / "DICOMDIR")
    manifest = index(media / "DICOMDIR")
    assert reason(manifest, "../outside") == "a reference that leads out of the export"
    assert reason(manifest, "LINK/outside") == "a symbolic link that leads out of the export"
    assert len(manifest.accepted) == 1


def test_dicomdir_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_text("nothing")
    with pytest.raises(ValueError, match="the DICOMDIR cannot be read: give its folder"):
        index(tmp_path / "DICOMDIR")


def test_one_file(tmp_path: Path) -> None:
    assert len(index(write(tmp_path / "1")).accepted) == 1


def test_no_export(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", ""):
        with pytest.raises(FileNotFoundError, match="no such export; give a folder, a DICOMDIR, or a zip"):
            index(path)
    with pytest.raises(ValueError, match="the export holds no files: give the folder"):
        index(tmp_path)


# --- the same bytes


def written(folder: Path) -> dict[str, bytes]:
    """The tables, without what is kept for the next index."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.match(NAMES)}


def test_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    export = many(tmp_path / "in", 80)
    (export / "text").write_text("no image")
    (export / "copy").write_bytes((export / "I10000").read_bytes())
    os.mkfifo(export / "pipe")
    index(export, workers=1, output=tmp_path / "one")
    index(export, workers=3, output=tmp_path / "three")
    first = written(tmp_path / "one")
    assert first.keys() == {"manifest.csv", "refused.csv"}
    assert first == written(tmp_path / "three")
    index(export, workers=1, output=tmp_path / "one")  # over what is there
    assert first == written(tmp_path / "one")
    assert first["manifest.csv"].count(b"\n") == 81
    assert first["refused.csv"].count(b"\n") == 4
    assert b"\r" not in first["manifest.csv"] + first["refused.csv"]


def test_output_within_the_export_is_not_the_export(tmp_path: Path) -> None:
    write(tmp_path / "1")
    first = index(tmp_path, output=tmp_path / "out")
    assert index(tmp_path, output=tmp_path / "out").refused.equals(first.refused)
    for _ in range(2):
        assert len(index(tmp_path / "out" / "..", output=tmp_path).refused) == 3  # tables in "out", and what it keeps
    assert len(first.refused) == 0


def test_a_table_of_the_export_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,label\n1.png,0\n")
    with pytest.raises(ValueError, match=r"the export has its own manifest.csv, which would be overwritten"):
        index(tmp_path, output=tmp_path)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = index(write(tmp_path / "1"))
    manifest.write(tmp_path / "out")
    before = written(tmp_path / "out")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        manifest.write(tmp_path / "out")
    assert written(tmp_path / "out") == before


INDEX = """
import signal, sys
from monai_cnnprimer.dicom.export import index_export
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
index_export(sys.argv[1], key={!r}, output=sys.argv[2], workers=2)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_index_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals) -> None:
    export, output = many(tmp_path / "Doe^Jane", 1600), tmp_path / "out"
    command = [sys.executable, "-c", INDEX.format(KEY), str(export), str(output)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: any(file.read_bytes().count(b"\n") > 40 for file in output.glob(NAMES)))
    readers = children(first.pid)
    first.send_signal(end)
    assert first.wait(120) == -end
    assert len(readers) == 2
    until(lambda: not any(map(running, readers)))  # nobody is left behind
    (spool,) = output.iterdir()
    kept = spool.read_bytes()
    assert all(secret not in kept for secret in (b"Doe", b"Jane", b"Nobody", ROOT.encode(), b"P10000"))
    spool.write_bytes(kept[:-20])  # a kill may tear the last line
    taken_up = kept[:-20].count(b"}]")
    assert 30 < taken_up < 1600

    looked_at: list[Source] = []
    describe = rows.describe

    def counting(source: Source, *rest: object) -> rows.Row:
        looked_at.append(source)
        return describe(source, *rest)

    monkeypatch.setattr(rows, "describe", counting)
    index(export, output=output)
    assert len(looked_at) == 1600 - taken_up
    index(export, output=tmp_path / "clean")
    assert len(looked_at) == 3200 - taken_up
    assert written(output) == written(tmp_path / "clean")


def test_a_file_changed_since_the_kill_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, output = write(tmp_path / "in" / "1"), tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr(Manifest, "write", lambda manifest, output: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index(file.parent, output=output)
    assert len(list(output.glob(NAMES))) == 1
    write(file, ViewPosition="AP")
    os.utime(file, ns=(1, 1))
    assert index(file.parent, output=output).accepted["view"].tolist() == ["AP"]
    assert len(list(output.glob(NAMES))) == 1


# --- privacy and keys

SENTINEL, NUMBER = "ZZSENTINEL", "1.2.826.0.77777777"


def test_no_identifier_is_written_or_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keywords = (
        "PatientID IssuerOfPatientID OtherPatientIDs PatientComments PatientSex AccessionNumber StudyID "
        "StudyDescription ReferringPhysicianName InstitutionName StationName ProtocolName DeviceSerialNumber "
        "BodyPartExamined"
    )
    secrets = dict.fromkeys(keywords.split(), SENTINEL) | {"PatientName": f"{SENTINEL}^Jane", "StudyDate": "20240717"}
    secrets |= {"PatientBirthDate": "19770707", "StudyInstanceUID": f"{NUMBER}.1", "SeriesInstanceUID": f"{NUMBER}.2"}
    export = tmp_path / f"{SENTINEL}^in"
    with pydicom.config.disable_value_validation():
        write(export / SENTINEL / f"{SENTINEL}.dcm", **secrets, SOPInstanceUID=f"{NUMBER}.3")
        write(export / "bad" / SENTINEL, **secrets, SOPInstanceUID=f"{NUMBER}.4", Modality="CT")
        write(export / "worse", **secrets | {"Modality": SENTINEL, "ViewPosition": SENTINEL})
        write(export / "lateral", **secrets | {"ViewPosition": SENTINEL}, SOPInstanceUID=f"{NUMBER}.5")
    (export / f"{SENTINEL}.txt").write_text(SENTINEL)
    (export / SENTINEL / "cut").write_bytes(as_bytes(PatientName=SENTINEL)[:500])
    (tmp_path / "labels.csv").write_text(f"PatientID,label\n{SENTINEL},{SENTINEL}\n{SENTINEL}2,1\n")
    manifest = index(export, output=tmp_path / "out", labels=tmp_path / "labels.csv", progress=True)
    assert len(manifest.accepted) + len(manifest.refused) == 6
    told = capfd.readouterr()
    public = b"".join(file.name.encode() + file.read_bytes() for file in (tmp_path / "out").iterdir())
    public += repr(manifest.notes).encode() + (told.out + told.err).encode()
    for secret in (SENTINEL, SENTINEL.lower(), NUMBER, "19770707", "20240717", "Jane"):
        assert secret.encode() not in public
    assert len(manifest.notes) == 2


def test_keys(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1")
    (tmp_path / "key").write_bytes(KEY + b"\n")
    keys = {"bytes": KEY, "file": tmp_path / "key", "text": str(tmp_path / "key"), "other": b"B"}
    columns = ["case_id", "patient_key", "path_sha256"]
    ids = {name: index(tmp_path / "in", key=key).accepted[columns].iloc[0].tolist() for name, key in keys.items()}
    assert ids["bytes"] == ids["file"] == ids["text"]
    assert all(one != other for one, other in zip(ids["bytes"], ids["other"], strict=True))
    with pytest.raises(FileNotFoundError, match="no such key file; give bytes"):
        pseudonym_key(tmp_path / "missing")
    with pytest.raises(ValueError, match="the key for pseudonyms is empty"):
        pseudonym_key(b"")


def test_the_key_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNPRIMER_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    key = pseudonym_key()
    (file,) = (tmp_path / "config").rglob("*key*")
    assert len(key) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert pseudonym_key() == key == file.read_bytes().strip()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert pseudonym_key() != key
    monkeypatch.setenv("CNNPRIMER_KEY", "from outside")
    assert pseudonym_key() == b"from outside"
    monkeypatch.delenv("CNNPRIMER_KEY")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set CNNPRIMER_KEY or give a key"):
        pseudonym_key()


# --- labels


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("SOPInstanceUID", [f"{ROOT}.3.1", f"{ROOT}.3.2"]), ("StudyInstanceUID", [f"{ROOT}.1.1", f"{ROOT}.1.2"]),
        ("AccessionNumber", ["A1", "A2"]), ("PatientID", ["P1", "P2"]), ("path", ["./a/1", "a//2"]),
    ],
)  # fmt: skip
def test_labels_by_each_identifier(tmp_path: Path, column: str, values: list[str]) -> None:
    write(tmp_path / "in" / "a" / "1"), write(tmp_path / "in" / "a" / "2", 2)
    (tmp_path / "labels.csv").write_text(f"\ufeff{column}, label \n{values[0]},PNEUMONIA\n{values[1]},0\n", "utf-8")
    manifest = index(tmp_path / "in", labels=tmp_path / "labels.csv")
    found = dict(zip(manifest.accepted["path_sha256"], manifest.accepted["label"], strict=True))
    assert found == {keyed("a/1"): 1, keyed("a/2"): 0}
    assert sorted(case["label"] for case in manifest.cases()) == [0, 1]
    assert manifest.notes == []


def test_labels_that_say_nothing_leave_the_label_empty(tmp_path: Path) -> None:
    for number in range(1, 7):
        write(tmp_path / "in" / str(number), number)
    lines = "PatientID,label,reader P1,1 P1,1,b P2,0 P2,1 P3,TUMOUR P4, P9,1 P8,TUMOUR ,1 P6,1.0"
    (tmp_path / "labels.csv").write_text(lines.replace(" ", "\n"))
    manifest = index(tmp_path / "in", labels=tmp_path / "labels.csv", output=tmp_path / "out")
    lines = (tmp_path / "out" / "manifest.csv").read_text().splitlines()
    labels = {row["path_sha256"]: row["label"] for row in csv.DictReader(lines)}
    assert labels == {keyed(name): label for name, label in zip("123456", ["1", "", "", "", "", "1"], strict=True)}
    assert manifest.notes == [
        "1 labels have no PatientID: left aside",
        "2 cases have a label that is not one of NORMAL, PNEUMONIA: left without",
        "1 cases have contradictory labels: left without",
        "2 labels belong to no accepted image",
        "2 accepted images have no label",
    ]
    mapped = index(tmp_path / "in", labels=tmp_path / "labels.csv", label_map={"TUMOUR": 3})
    assert sorted(case["label"] for case in mapped.cases() if case["label"] is not None) == [3]


def test_a_table_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "1")
    needed = "needs the column 'label' and one of SOPInstanceUID, path, AccessionNumber, StudyInstanceUID, PatientID"
    for number, text in enumerate(["label,name\n1,x\n", "PatientID\nP1\n", ""]):
        (tmp_path / f"{number}.csv").write_text(text)
        with pytest.raises(ValueError, match=needed):
            index(tmp_path, labels=tmp_path / f"{number}.csv")
    (tmp_path / "latin").write_bytes(b"PatientID,label\nM\xfcller,1\n")
    with pytest.raises(ValueError, match="latin is not a CSV table in UTF-8"):
        index(tmp_path, labels=tmp_path / "latin")
    with pytest.raises(FileNotFoundError, match="no such table of labels"):
        index(tmp_path, labels=tmp_path / "missing.csv")


# --- plain images


def picture(path: Path, width: int = 9, height: int = 7) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 100).save(path)
    return path


def test_a_folder_of_images_with_a_table(tmp_path: Path) -> None:
    export = tmp_path / "in"
    first, _ = picture(export / "test" / "1.jpeg"), picture(export / "test" / "2.png")
    picture(export / "masks" / "1.png"), picture(tmp_path / "outside.png"), picture(export / "lateral.png")
    (export / "cut.png").write_bytes(first.read_bytes()[:10])
    (export / "empty.jpg").touch()
    lines = [
        "path,split,label,patient_id,view,sex,age",
        "test/1.jpeg,test,NORMAL,n1,pa,f,66", "./test/2.png,train,PNEUMONIA,n1,,,", "lateral.png,test,NORMAL,n3,LL,,",
        "gone.png,test,NORMAL,n2,,,", "../outside.png,test,NORMAL,n2,,,", "cut.png,,,,,,", "empty.jpg,,,,,,",
        "test,,,,,,",
    ]  # fmt: skip
    (export / "manifest.csv").write_text("\n".join(lines) + "\n")
    manifest = index(export, output=tmp_path / "out")
    columns = ["case_id", "patient_key", "label", "file", "view", "sex", "age_band", "rows", "columns", "lut"]
    found = manifest.accepted.sort_values("file")[columns].to_numpy().tolist()
    assert found == [
        [keyed("test/1.jpeg", 16), keyed("n1", 16), 0, "test/1.jpeg", "PA", "F", "65-89", 7, 9, ""],
        [keyed("test/2.png", 16), keyed("n1", 16), 1, "test/2.png", "", "", "", 7, 9, ""],
    ]
    assert manifest.paths[keyed("test/1.jpeg", 16)] == str(first)
    assert reasons(manifest) == {
        keyed("gone.png"): "listed, but not there",
        keyed("../outside.png"): "a reference that leads out of the export",
        keyed("lateral.png"): "another view than PA or AP",
        keyed("cut.png"): "a damaged image file",
        keyed("empty.jpg"): "the file is empty",
        keyed("test"): "a link or a reference to a folder, which is not followed",
    }
    assert manifest.notes == ["3 labels belong to no accepted image"]


def test_a_folder_of_images_without_a_table(tmp_path: Path) -> None:
    names = ["NORMAL/1.jpeg", "2.PNG", "ü.tif"]
    for name in names:
        picture(tmp_path / name)
    for name in ("v.nii.gz", "w.mha"):
        (tmp_path / name).write_bytes(b"a volume, for the reader to judge")
    (tmp_path / "readme.txt").write_text("about")
    manifest = index(tmp_path)
    assert sorted(manifest.accepted["file"]) == sorted([*names, "v.nii.gz", "w.mha"])
    assert {case["label"] for case in manifest.cases()} == {None}
    assert manifest.accepted["patient_key"].equals(manifest.accepted["case_id"].rename("patient_key"))
    assert reasons(manifest).keys() == {keyed("readme.txt")}
    write(tmp_path / "report", Modality="SR", SOPClassUID=BasicTextSRStorage, Rows=None, Columns=None, PixelData=None)
    manifest = index(tmp_path)  # an export of DICOM files, none of them an image
    assert manifest.accepted.empty
    assert manifest.sha256 == hashlib.sha256((",".join(manifest.accepted.columns) + "\n").encode()).hexdigest()


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/\xff.png")
    manifest = index(tmp_path, output=tmp_path / "out")
    assert manifest.refused["reason"].tolist() == ["a file name that is not valid UTF-8: rename it"]
    os.unlink(os.fsencode(tmp_path) + b"/\xff.png")
    write(tmp_path / "1").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.dcm"))
    assert len(index(tmp_path, output=tmp_path / "out").accepted) == 1  # a DICOM file's name is not written


def test_label_tables_apply_to_plain_images(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "manifest.csv").write_text("path,label,patient_id\n1.png,NORMAL,n1\n")
    (tmp_path / "labels.csv").write_text("PatientID,label\nn1,PNEUMONIA\n")
    assert index(tmp_path / "in", labels=tmp_path / "labels.csv").cases()[0]["label"] == 1


# --- three hospitals


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "hospitals"
    write_export(folder, cases=9, sites=3, size=64, progress=False)
    return folder


@pytest.mark.parametrize("site", ["aspen", "birch", "cedar"])
def test_phantom_sites(hospitals: Path, site: str) -> None:
    export = next((hospitals / "sites").glob(f"{site}*"))
    manifest = index(export, site=site, labels=hospitals / "labels" / f"{site}.csv")
    truth = list(csv.DictReader((hospitals / "truth" / site / "truth.csv").read_text().splitlines()))
    assert len(truth) == 9
    columns = ["case_id", "site", "label", "view", "sex"]
    expected = [[keyed(row["SOPInstanceUID"], 16), site, int(row["label"]), row["view"], row["sex"]] for row in truth]
    assert manifest.accepted[columns].to_numpy().tolist() == sorted(expected)
    assert manifest.accepted["patient_key"].nunique() == len({row["PatientID"] for row in truth}) < 9
    assert manifest.notes == []
    words = ["directory"] * (site == "aspen") + ["duplicate", "report", "modality", "text or another", "LL", "LL"]
    said = manifest.refused["reason"].tolist()
    for word in words:
        said.remove(next(reason for reason in said if word in reason))
    (last,) = said
    assert "cut off" in last or last == "an object without an image"  # cut off within its pixels, or within its header


def test_no_torch() -> None:
    code = "import sys, monai_cnnprimer.dicom.export; print(sorted({'torch', 'monai', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_a_part_of_a_plain_folder(image_folder: Path) -> None:
    manifest = index_export(image_folder, split="test", progress=False)
    assert sorted(manifest.accepted["file"]) == [f"{number:02d}.png" for number in range(8)]
    with pytest.raises(ValueError, match="no row of manifest.csv has 'val' in its column split"):
        index_export(image_folder, split="val", progress=False)
