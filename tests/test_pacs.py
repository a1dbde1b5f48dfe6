# SPDX-License-Identifier: Apache-2.0
"""From a PACS and back, with Orthanc: store, export, fetch, run the bundle, send the results, find them by query.

Orthanc listens on more addresses than it is told to, so it runs in a network namespace of its own: the first test
starts this file again in one, and there the others run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient

from monai_cnnprimer.__main__ import main
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.dicomweb import fetch
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.header import read_header
from monai_cnnprimer.phantom import write_export

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "chest_xray_resnet50"
INSIDE = "CNNPRIMER_TEST_PACS_INSIDE"
HTTP, DIMSE = 18042, 14242
REST, WEB = f"http://127.0.0.1:{HTTP}", f"http://127.0.0.1:{HTTP}/dicom-web"
PACS = f"dicomweb://127.0.0.1:{HTTP}/dicom-web"
inside = pytest.mark.skipif(INSIDE not in os.environ, reason="runs within the network namespace of the first test")


def _orthanc() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def _missing() -> str:
    needed = {"Orthanc": _orthanc(), "storescu (dcmtk)": shutil.which("storescu"), "unshare": shutil.which("unshare")}
    needed["ip (iproute2)"] = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    needed["the DICOMweb plugin of Orthanc"] = next(Path("/usr/share/orthanc/plugins").glob("*DicomWeb*"), None)
    absent = [name for name, found in needed.items() if found is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    allowed = subprocess.run([*_unshare(), "true"], capture_output=True, check=False).returncode == 0
    return "" if allowed else "no network namespace may be made here"


def _unshare() -> list[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]


@pytest.mark.skipif(INSIDE in os.environ, reason="this is the network namespace")
def test_in_a_network_of_its_own():
    if reason := _missing():
        pytest.skip(reason)
    again = [sys.executable, "-m", "pytest", "-rs", "-m", "pacs", "-p", "no:cacheprovider", __file__]
    command = [*_unshare(), "sh", "-c", 'PATH="$PATH:/usr/sbin:/sbin"; ip link set lo up && exec "$@"', "sh", *again]
    ours = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "XDIST" not in name}
    environment = ours | {INSIDE: "1"}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-2000:]
    assert re.search(r"\d+ passed, 1 skipped", said.stdout), said.stdout[-1000:]
    print(said.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pacs")


@pytest.fixture(scope="module")
def site(folder: Path) -> Path:
    """A phantom site as a folder of files."""
    write_export(folder / "phantoms", 3, sites=3, seed=11, size=160, progress=False)
    return folder / "phantoms" / "sites" / "cedar"


@pytest.fixture(scope="module")
def accepted(site: Path, folder: Path) -> list[str]:
    """The cases of the site as it lies on the disk."""
    return list(index_export(site, output=folder / "direct", workers=1, progress=False).accepted["case_id"])


@pytest.fixture(scope="module")
def pacs(folder: Path, site: Path) -> Iterator[Path]:
    """Orthanc with the phantom site in it."""
    settings = {
        "Name": "test", "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
        "HttpPort": HTTP, "DicomPort": DIMSE, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True,
        "Plugins": ["/usr/share/orthanc/plugins"], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("w") as log:
        server = subprocess.Popen([_orthanc() or "", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait(server, folder / "orthanc.log")
        _store(sorted(path for path in site.rglob("*") if path.is_file() and _is_whole(path)))
        yield folder
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            if requests.get(f"{REST}/system", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


def _is_whole(path: Path) -> bool:
    """Whether a file can be sent: the export also holds a note, and an image that was cut off."""
    try:
        read_header(path)
    except DicomRefused:
        return False
    return True


def _store(files: list[Path]) -> None:
    """By C-STORE, as the files are: uncompressed or JPEG 2000."""
    command = ["storescu", "-R", "-xv", "-aec", "ORTHANC", "127.0.0.1", str(DIMSE), *map(str, files)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-1000:]


def _exported(pacs: Path, kind: str) -> Path:
    """All studies as Orthanc exports them, `archive` or `media`."""
    studies = requests.get(f"{REST}/studies", timeout=60).json()
    answer = requests.post(f"{REST}/tools/create-{kind}", json=studies, timeout=120)
    answer.raise_for_status()
    (pacs / f"{kind}.zip").write_bytes(answer.content)
    return pacs / f"{kind}.zip"


@inside
class TestInside:
    def test_an_archive_from_the_pacs_holds_the_cases_that_were_stored(self, pacs, accepted):
        manifest = index_export(_exported(pacs, "archive"), output=pacs / "archive", workers=1, progress=False)
        assert list(manifest.accepted["case_id"]) == accepted
        assert len(accepted) == 3

    def test_media_from_the_pacs_hold_them_too_by_their_dicomdir(self, pacs, accepted):
        media = _exported(pacs, "media")
        shutil.unpack_archive(media, pacs / "media")
        manifest = index_export(pacs / "media" / "DICOMDIR", output=pacs / "of_media", workers=1, progress=False)
        assert list(manifest.accepted["case_id"]) == accepted

    def test_dicomweb_fetches_them_as_they_are_stored(self, pacs, accepted):
        code, output, errors = _cnnprimer("index", PACS, "--output", pacs / "web", "--site", "cedar")
        assert code == 0, errors
        assert f"accepted {len(accepted)}" in output
        direct, fetched = (pd.read_csv(pacs / name / "manifest.csv") for name in ("direct", "web"))
        for column in ("case_id", "transfer_syntax", "lut", "polarity", "rows", "columns", "orientation"):
            assert fetched[column].tolist() == direct[column].tolist()
        assert set(fetched["transfer_syntax"]) == {"JPEG2000Lossless"}
        assert fetch(PACS, pacs / "web" / "fetched", progress=False).new == 0

    def test_no_match_and_no_server_end_with_one_line(self, pacs):
        code, _, errors = _cnnprimer("index", PACS, "--output", pacs / "none", "--until", "1990-01-01")
        assert (code, "image that matches" in errors) == (2, True), errors
        code, _, errors = _cnnprimer("index", "dicomweb://127.0.0.1:9/dicom-web", "--output", pacs / "none")
        assert (code, "does not answer" in errors) == (2, True), errors

    def test_results_go_back_and_are_found_beside_their_source(self, pacs, accepted):
        run, results = pacs / "run", pacs / "run-dicom"
        _run_bundle(pacs / "web" / "fetched", run)
        table = pd.read_csv(run / "dicom_results.csv", keep_default_na=False)
        assert table["objects"].tolist() == ["SC SEG PR SR"] * len(accepted)
        files = sorted(results.glob("*.dcm"))
        assert len(files) == 4 * len(accepted)
        by_web, by_dimse = files[: len(files) // 2], files[len(files) // 2 :]
        client = DICOMwebClient(WEB)
        answer = client.store_instances([pydicom.dcmread(path) for path in by_web])
        assert len(answer.ReferencedSOPSequence) == len(by_web)
        _store(by_dimse)
        made = [pydicom.dcmread(path) for path in files]
        for study in {dataset.StudyInstanceUID for dataset in made}:
            series = client.search_for_series(study)
            found = sorted(one["00080060"]["Value"][0] for one in series)
            assert found.count("DX") >= 1
            assert set(found) >= {"DX", "OT", "PR", "SEG", "SR"}
        instances = client.search_for_instances(fields=["Modality"], get_remaining=True)
        kept = {one["00080018"]["Value"][0]: one["00080060"]["Value"][0] for one in instances}
        assert {dataset.SOPInstanceUID: dataset.Modality for dataset in made}.items() <= kept.items()
        segment = next(dataset for dataset in made if dataset.Modality == "SEG")
        back = client.retrieve_instance(segment.StudyInstanceUID, segment.SeriesInstanceUID, segment.SOPInstanceUID)
        assert np.array_equal(back.pixel_array, segment.pixel_array)
        patients = {one["00100020"]["Value"][0] for one in client.search_for_studies(fields=["PatientID"])}
        assert {dataset.PatientID for dataset in made} <= patients

    def test_results_sent_twice_are_there_once_and_are_no_new_cases(self, pacs, accepted):
        before = requests.get(f"{REST}/statistics", timeout=60).json()["CountInstances"]
        _store(sorted((pacs / "run-dicom").glob("*.dcm")))
        assert requests.get(f"{REST}/statistics", timeout=60).json()["CountInstances"] == before
        manifest = index_export(_exported(pacs, "archive"), output=pacs / "archive2", workers=1, progress=False)
        assert list(manifest.accepted["case_id"]) == accepted


def _cnnprimer(*words: object) -> tuple[int, str, str]:
    """The command in this process: exit code, output, errors."""
    output, errors = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(output), redirect_stderr(errors):
        patched.setattr(sys, "argv", ["cnnprimer", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), " ".join(output.getvalue().split()), " ".join(errors.getvalue().split())


def _run_bundle(export: Path, output: Path) -> None:
    configs = [str(BUNDLE / "configs" / "inference.yaml"), str(ROOT / "configs" / "dicom_results.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", str(BUNDLE)]
    command += ["--dataset_dir", str(export), "--output_dir", str(output), "--progress", "False"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=output.parent, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
