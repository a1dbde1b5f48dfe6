# SPDX-License-Identifier: Apache-2.0
"""Files that carry a person in every attribute go through every command; nothing that is written or said shows one."""

from __future__ import annotations

import gzip
import io
import logging
import shutil
import sqlite3
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from leaks import leaks, unkeyed_hashes
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from typer.testing import CliRunner
from written_dicom import radiograph, written

from monai_cnnprimer.validate.sites import Site, bundle_command

TEXT, UID = "SENTIZQX", "1.2.826.0.1.3680043.10.1449"
DATE, BIRTH, TIME, AGE = "20310823", "19370519", "213746.917348", "097Y"
WHOLE, DECIMAL, LONG = "91734877", "91734.877", 2976579765
PATIENT, ACCESSION = f"{TEXT}00100020", f"{TEXT}-ACC"
OBJECTS = "results-dicom"  # the objects that go back to the PACS: the one place where a person must be named
# What every attribute of a kind says. Numbers of 16 bits are left out: any table holds some that are equal by chance.
VALUES: dict[str, Callable[[int], object]] = {
    "AE": lambda tag: f"{TEXT}{tag:08X}",
    "AS": lambda tag: AGE,
    "CS": lambda tag: f"{TEXT}{tag:08X}",
    "DA": lambda tag: DATE,
    "DS": lambda tag: DECIMAL,
    "DT": lambda tag: f"{DATE}{TIME}",
    "IS": lambda tag: WHOLE,
    "PN": lambda tag: f"{TEXT}^{tag:08X}",
    "TM": lambda tag: TIME,
    "UI": lambda tag: f"{UID}.{tag}",
    "UL": lambda tag: LONG,
    "UN": lambda tag: TEXT.encode(),
    "UR": lambda tag: f"https://{TEXT}.example/{tag:08X}",
    **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), lambda tag: f"{TEXT}{tag:08X}"),
}
# How an image is coded and shown (0028), and groups that are no part of a stored image.
OTHER_GROUPS = (0x0000, 0x0002, 0x0004, 0x0028, 0x5400, 0x7FE0, 0xFFFE)
OTHER_TAGS = (0x00080001, 0x00080005, 0x20500020)  # length to end, character set, Presentation LUT Shape
PROFILE = [  # some of PS3.15 table E.1-1, in case the walk through the dictionary misses what it is for
    "AccessionNumber", "AcquisitionDateTime", "AdmissionID", "ContentDate", "DeviceSerialNumber",
    "FrameOfReferenceUID", "ImageComments", "InstitutionAddress", "InstitutionName", "IssuerOfPatientID",
    "OperatorsName", "OtherPatientIDs", "PatientAddress", "PatientAge", "PatientBirthDate", "PatientComments",
    "PatientID", "PatientName", "PatientSex", "PatientTelephoneNumbers", "PatientWeight", "PerformingPhysicianName",
    "ProtocolName", "ReferringPhysicianName", "RequestAttributesSequence", "SOPInstanceUID", "SeriesInstanceUID",
    "StationName", "StudyDate", "StudyDescription", "StudyID", "StudyInstanceUID", "StudyTime", "DigitalSignatureUID",
]  # fmt: skip
WORDS = [
    TEXT, UID.removeprefix("1.2.826.0.1."), TIME, AGE, WHOLE, DECIMAL, str(LONG),
    DATE, BIRTH, "2031-08-23", "1937-05-19", "23.08.2031", "19.05.1937",
    "the key of the tests",
    *unkeyed_hashes([PATIENT, ACCESSION, f"{UID}.0", f"{UID}.1", f"{TEXT}^00100010"]),
]  # fmt: skip


def a_person() -> Dataset:
    """An item of a sequence, with another one in it."""
    inner, outer = Dataset(), Dataset()
    for item in (inner, outer):
        item.PersonName, item.PatientID, item.Date, item.UID = f"{TEXT}^Item", PATIENT, DATE, f"{UID}.7"
    outer.OtherPatientIDsSequence = [inner]
    return outer


def identified(number: int, **attributes: object) -> Dataset:
    """A radiograph of 64 pixels whose every other attribute is a person's, private ones too."""
    rows, columns = np.mgrid[:64, :64]
    wave = 1600 + 1200 * np.sin(rows / 9 + number) * np.cos(columns / 7)
    stated = {"SOPInstanceUID": f"{UID}.{number}", "PatientID": PATIENT, "PatientName": f"{TEXT}^00100010"}
    stated |= {"AccessionNumber": f"{ACCESSION}{number}", "PatientBirthDate": BIRTH, "ViewPosition": "PA"}
    stated |= {"BitsStored": 12, "Manufacturer": "Acme", **attributes}
    dataset = radiograph(wave.astype("<u2"), **stated)
    for tag, (representation, *_) in DicomDictionary.items():
        ours = tag >> 16 not in OTHER_GROUPS and tag & 0xFFFF and tag not in OTHER_TAGS
        if ours and tag not in dataset and representation in VALUES:
            dataset.add_new(tag, representation, VALUES[representation](tag))
        if ours and tag not in dataset and representation == "SQ":
            dataset.add_new(tag, "SQ", [a_person()])
    for keyword in ("WindowCenterWidthExplanation", "ImagePresentationComments", "PixelSpacingCalibrationDescription"):
        setattr(dataset, keyword, f"{TEXT}{number}")
    block = dataset.private_block(0x0031, f"{TEXT} PRIVATE", create=True)
    block.add_new(1, "LO", f"{TEXT} private")
    block.add_new(2, "OB", f"{TEXT} hidden".encode())
    dataset.add_new(0xFFFCFFFC, "OB", f"{TEXT} padding ".encode())
    return dataset


def file_of(dataset: Dataset, syntax: str = ExplicitVRLittleEndian, stream: bytes | None = None) -> bytes:
    """The file, with a person in its preamble and meta header too."""
    written(dataset, syntax, stream)
    dataset.preamble = f"{TEXT} preamble".ljust(128).encode()
    meta = dataset.file_meta
    meta.SourceApplicationEntityTitle, meta.ImplementationVersionName = f"{TEXT}_AE", f"{TEXT}_VERSION"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"{UID}.2", f"{TEXT} meta ".encode()
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def exports(folder: Path) -> dict[str, Path]:
    """A folder with what is accepted, refused and unreadable, and a zip; every name is a person's."""
    north, south = folder / f"{TEXT}_ward", folder / f"{TEXT}_ward.zip"
    (north / f"Doe_{TEXT}_{BIRTH}").mkdir(parents=True)
    files = {f"Doe_{TEXT}_{BIRTH}/{TEXT}{number}.dcm": file_of(identified(number)) for number in (0, 1)}
    files[f"{TEXT}_damaged"] = file_of(identified(2), JPEGLSLossless, TEXT.encode() * 20)
    files[f"{TEXT}_lateral"] = file_of(identified(3, ViewPosition="LL"))
    files[f"{TEXT}_cut"] = files[f"{TEXT}_lateral"][:9000]
    files[f"{TEXT}_{DATE}.txt"] = f"Dear {TEXT}".encode()
    for name, content in files.items():
        (north / name).write_bytes(content)
    with zipfile.ZipFile(south, "w") as archive:
        for number in (4, 5):
            archive.writestr(f"{TEXT}_{BIRTH}/{TEXT}{number}", file_of(identified(number)))
    for name, numbers in (("north", (0, 1)), ("south", (4, 5))):
        lines = [f"{TEXT}^00100010,{ACCESSION}{n},{('NORMAL', 'PNEUMONIA')[n % 2]}" for n in numbers]
        lines += [f"{TEXT}^STRANGER,{ACCESSION}9,NORMAL", f"{TEXT}^ODD,{ACCESSION}2,{TEXT}"]
        table = "\n".join(["PatientName,AccessionNumber,label", *lines, ""])
        (folder / f"{TEXT}_{name}.csv").write_text(table)
    return {"north": north, "south": south}


@pytest.fixture(scope="module")
def input_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    exports(folder)
    return folder


@pytest.fixture(scope="module")
def everything(input_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every command worked; `console.txt` holds what each said, `log.txt` what was logged."""
    from monai_cnnprimer import doctor
    from monai_cnnprimer.__main__ import app

    out = tmp_path_factory.mktemp("out")
    log = logging.FileHandler(out / "log.txt")
    logging.getLogger().addHandler(log)
    said: list[str] = []

    def run(*words: object, code: int = 0) -> None:
        result = CliRunner().invoke(app, [str(word) for word in words])
        said.append(f"{words[0]}\n{result.output}\n{result.stderr}\n{result.exception or ''}")
        assert result.exit_code == code, result.output + "".join(map(str, result.exc_info or ()))

    north, south = input_folder / f"{TEXT}_ward", input_folder / f"{TEXT}_ward.zip"
    tables = {name: input_folder / f"{TEXT}_{name}.csv" for name in ("north", "south")}
    runs = out / "validation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
        patch.chdir(out)
        run("index", north, "--output", "indexed", "--labels", tables["north"])
        sites = ("--site", f"north={north}", "--site", f"south={south}")
        labels = [word for name, table in tables.items() for word in ("--labels", f"{name}={table}")]
        run("validate", "--bundle", "chest_xray_resnet50", "--output", runs, *sites, *labels)
        run("lock", runs / "north", "--youden")
        run("report", runs / "north", runs / "south", "--output", "report.html")
        shutil.copytree(runs / "north", out / "again")
        run("compare", runs / "north", out / "again", "--dataset-dir", north, "--output", "compared")
        run("merge", runs / "north", runs / "south", "--output", "merged")
        run("pack", runs / "north", "--output", "north.zip")
        bundle = ("--bundle", "chest_xray_resnet50")
        run("audit", north, *bundle, "--labels", tables["north"], "--output", "audited", code=4)  # too few to tell
        run("preflight", *bundle, "--export", south, "--output", "flown", code=1)  # none states its pixel spacing
        run("sync", out / "merged", "--tracking-uri", f"sqlite:///{out / 'later.db'}")
        run("index", input_folder / f"{TEXT}_north.csv", "--output", "nothing", code=1)
        patch.setattr(doctor, "elsewhere", lambda what, *words: [])
        run("doctor", "--output", north)
        said.append(_with_dicom_results(north, out / "results"))
    logging.getLogger().removeHandler(log)
    log.close()
    (out / "console.txt").write_text("\n".join(said))
    return out


def _with_dicom_results(export: Path, output: Path) -> str:
    """`monai.bundle run` with the overlay that writes DICOM objects, and what it said."""
    bundle = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50"
    overlays = ("burned_in", "dicom_results", "mlflow")
    command = bundle_command(bundle, Site("north", export), output, overlays, {"progress": False})
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_files_carry_a_person_everywhere(input_folder: Path) -> None:
    (name, *_) = sorted(input_folder.rglob("*0.dcm"))
    dataset = pydicom.dcmread(name)
    named = [element for element in dataset.iterall() if any(word in str(element.value) for word in WORDS)]

    assert [keyword for keyword in PROFILE if keyword not in dataset] == []
    assert len(named) > 10_000
    assert {element.VR for element in named} >= VALUES.keys() - {"UN"}
    content = b"".join(file.read_bytes() for file in input_folder.rglob("*") if file.is_file())
    assert [word for word in (TEXT, UID, TIME, AGE, WHOLE, DECIMAL, DATE, BIRTH) if word.encode() not in content] == []
    assert {file.split("/")[0] for file, _ in leaks(input_folder, WORDS)} == {p.name for p in input_folder.iterdir()}


def test_every_command_did_its_work(everything: Path) -> None:
    accepted = (everything / "indexed" / "manifest.csv").read_text().splitlines()
    refused = (everything / "indexed" / "refused.csv").read_text()
    errors = (everything / "validation" / "north" / "errors.csv").read_text()

    assert len(accepted) == 4
    assert all(reason in refused for reason in ("text or another", "the view is LL", "cut off"))
    assert "PixelData" in errors
    for name in ("validation/report.html", "report.html", "compared/comparison.html", "mlflow.db", "later.db"):
        assert (everything / name).stat().st_size > 10_000
    assert (everything / "validation" / "south" / "figures" / "gradcam.png").is_file()
    assert list((everything / "mlruns").rglob("predictions.csv"))


def test_nothing_that_is_written_or_said_shows_a_person(everything: Path) -> None:
    assert [found for found in leaks(everything, WORDS) if not found[0].startswith(f"{OBJECTS}/")] == []


def test_dicom_results_carry_the_identity_inside_only(everything: Path, tmp_path: Path) -> None:
    objects = sorted((everything / OBJECTS).iterdir())
    for file in objects:
        (tmp_path / file.name).touch()

    assert len(objects) == 8  # four kinds for two images
    assert leaks(tmp_path, WORDS) == []
    for file in objects:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        assert (header.PatientName, header.PatientID) == (f"{TEXT}^00100010", PATIENT)
        assert not header.SOPInstanceUID.startswith(UID)


def _png(path: Path) -> None:
    told = PngInfo()
    told.add_text("Description", TEXT, zip=True)
    Image.new("L", (4, 4)).save(path, pnginfo=told)


def _database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tags (value TEXT)")
    connection.execute("INSERT INTO tags VALUES (?)", ("x" * 4090 + TEXT,))  # across two pages
    connection.commit()
    connection.close()


PLANTED: dict[str, Callable[[Path], object]] = {
    "a.csv": lambda path: path.write_text(f"case_id\n{TEXT.lower()}\n"),
    "age.csv": lambda path: path.write_text(f"age\n{AGE}\n"),
    "utf16.txt": lambda path: path.write_bytes(f"x{TEXT}".encode("utf-16-be")),
    "hex.json": lambda path: path.write_text(TEXT.encode().hex()),
    "hash.json": lambda path: path.write_text(unkeyed_hashes([PATIENT])[2] + "0123"),
    "figure.png": _png,
    "maps.npz": lambda path: np.savez_compressed(path, name=np.array([TEXT])),
    "map.nii.gz": lambda path: path.write_bytes(gzip.compress(bytes(400) + TEXT.encode())),
    "store.db": _database,
    f"{TEXT}.txt": lambda path: path.write_text(""),
    **{
        f"{shift}.html": lambda path, shift=shift: path.write_text(_base64(b"." * (60 + shift) + TEXT.encode()))
        for shift in range(3)
    },
    "page.html": lambda path: path.write_text(f"<img src='data:image/png;base64,{_base64(_bytes_of(_png, path))}'>"),
}


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def _bytes_of(write: Callable[[Path], None], path: Path) -> bytes:
    file = path.with_suffix(".png")
    write(file)
    data = file.read_bytes()
    file.unlink()
    return data


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found(name: str, tmp_path: Path) -> None:
    PLANTED[name](tmp_path / name)

    assert {file for file, _ in leaks(tmp_path, WORDS)} == {name}
