# SPDX-License-Identifier: Apache-2.0
"""Fetching from a PACS, here a server of a few lines: what is asked for, what is told when it fails, what is kept."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner
from written_dicom import radiograph, written

from monai_cnnprimer.__main__ import app
from monai_cnnprimer.dicom.dicomweb import PASSWORD, TOKEN, USER, PacsError, fetch

UIDS = [f"1.2.3.{number}" for number in range(3)]


def answer(**attributes: str) -> dict[str, Any]:
    tags = {"StudyInstanceUID": "0020000D", "SeriesInstanceUID": "0020000E", "SOPInstanceUID": "00080018"}
    tags["Modality"] = "00080060"
    return {tags[name]: {"vr": "UI", "Value": [value]} for name, value in attributes.items()}


class Pacs(ThreadingHTTPServer):
    """One study with a DX series of three images and a CT series; it answers what a test tells it to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self.status: dict[str, int] = {}
        self.page = b""

    @property
    def url(self) -> str:
        return f"dicomweb://127.0.0.1:{self.server_address[1]}/web"


class Answers(BaseHTTPRequestHandler):
    server: Pacs

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append(self.path)
        self.server.logins.append(self.headers.get("Authorization"))
        status = next((code for part, code in self.server.status.items() if part in path), 200)
        if status != 200:
            return self._send(status, "text/plain", b"the answer names Doe^Jane")
        if self.server.page:
            return self._send(200, "text/html", self.server.page)
        if "/instances/" in path:
            return self._instance(path.rsplit("/", 1)[1])
        if "offset=" in query and "offset=0" not in query:
            return self._json([])
        if path.endswith("/instances"):
            return self._json([answer(SOPInstanceUID=uid) for uid in UIDS] if "/series/1.5/" in path else [])
        series = [answer(StudyInstanceUID="1.4", SeriesInstanceUID="1.5", Modality="DX")]
        series += [answer(StudyInstanceUID="1.4", SeriesInstanceUID="1.6", Modality="CT")]
        return self._json(series if "Modality=DX" in query and "PatientID=none" not in query else [])

    def _json(self, value: Any) -> None:
        self._send(200, "application/dicom+json", json.dumps(value).encode())

    def _instance(self, uid: str) -> None:
        cells = np.full((40, 50), int(uid[-1]), np.uint8)
        study = {"StudyInstanceUID": "1.4", "SeriesInstanceUID": "1.5", "ViewPosition": "PA"}
        part = written(radiograph(cells, SOPInstanceUID=uid, **study))
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n--x--\r\n"
        self._send(200, 'multipart/related; type="application/dicom"; boundary=x', body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing on the console."""


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Pacs]:
    for name in (USER, PASSWORD, TOKEN, "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with Pacs() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_images_are_fetched_once_and_as_they_are_stored(pacs, tmp_path):
    fetched = fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    assert (fetched.matching, fetched.new, fetched.failed) == (3, 3, 0)
    files = sorted((tmp_path / "f").iterdir())
    assert sorted(pydicom.dcmread(path).SOPInstanceUID for path in files) == UIDS
    assert all(len(path.stem) == 32 and "1.2.3" not in path.name for path in files)
    files[0].unlink()
    pacs.asked.clear()
    again = fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    assert (again.matching, again.new) == (3, 1)
    assert sum("/instances/" in path for path in pacs.asked) == 1
    assert sorted((tmp_path / "f").iterdir()) == files


def test_the_query_has_modality_dates_and_patients_and_no_wild_card(pacs, tmp_path):
    choice = {"since": date(2026, 1, 2), "until": date(2026, 2, 3), "patients": ["P1", "*", "P?"]}
    fetch(pacs.url, tmp_path, modalities=["DX"], key=b"k", progress=False, **choice)
    first = pacs.asked[0]
    assert "/web/series?" in first
    assert {"Modality=DX", "StudyDate=20260102-20260203", "PatientID=P1"} <= set(first.partition("?")[2].split("&"))
    assert not any("%2A" in path or "%3F" in path or "*" in path for path in pacs.asked)
    fetch(pacs.url, tmp_path, since=date(2026, 1, 2), key=b"k", progress=False)
    assert any("StudyDate=20260102-&" in f"{path}&" for path in pacs.asked)


def test_the_login_comes_from_the_environment_or_netrc(pacs, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login anna password geheim\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    assert set(pacs.logins) == {"Basic " + base64.b64encode(b"anna:geheim").decode()}
    pacs.logins.clear()
    monkeypatch.setenv(USER, "bob")
    monkeypatch.setenv(PASSWORD, "s3cret")
    fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    assert set(pacs.logins) == {"Basic " + base64.b64encode(b"bob:s3cret").decode()}
    pacs.logins.clear()
    monkeypatch.setenv(TOKEN, "t0ken")
    fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    assert set(pacs.logins) == {"Bearer t0ken"}


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "does not accept the login: set CNNPRIMER"), (404, "no DICOMweb at this path"), (500, "the error 500")],
)
def test_what_the_pacs_refuses_is_told_without_its_answer(pacs, tmp_path, status, message):
    pacs.status["/series"] = status
    with pytest.raises(PacsError, match=message) as error:
        fetch(pacs.url, tmp_path, key=b"k", retries=0, progress=False)
    assert "Doe" not in str(error.value)


def test_an_answer_that_is_no_dicom_json_is_told(pacs, tmp_path):
    pacs.page = b"<html>Welcome, Doe^Jane</html>"
    with pytest.raises(PacsError, match="not DICOMweb: look at the path"):
        fetch(pacs.url, tmp_path, key=b"k", retries=0, progress=False)


def test_a_login_that_ends_in_the_midst_ends_the_fetch(pacs, tmp_path):
    pacs.status["/instances/1.2.3.1"] = 403
    with pytest.raises(PacsError, match="does not accept the login"):
        fetch(pacs.url, tmp_path, key=b"k", retries=0, progress=False)
    assert len(list(tmp_path.glob("*.dcm"))) == 1


def test_a_folder_never_mixes_two_choices_of_images_and_half_written_files_go(pacs, tmp_path):
    fetch(pacs.url, tmp_path / "f", key=b"k", progress=False)
    (tmp_path / "f" / ".x.dcm.partial").write_text("half")
    assert fetch(pacs.url, tmp_path / "f", key=b"k", progress=False).new == 0
    assert len(list((tmp_path / "f").iterdir())) == 3
    with pytest.raises(ValueError, match="3 files in the folder of fetched images do not match this time"):
        fetch(pacs.url, tmp_path / "f", key=b"another key", progress=False)


def test_one_image_that_cannot_be_had_does_not_cost_the_others(pacs, tmp_path, caplog):
    pacs.status["/instances/1.2.3.1"] = 500
    fetched = fetch(pacs.url, tmp_path / "f", key=b"k", retries=0, progress=False)
    assert (fetched.matching, fetched.new, fetched.failed) == (3, 2, 1)
    assert "1.2.3.1" not in caplog.text
    assert not list((tmp_path / "f").glob(".*"))


def test_no_server_and_no_match_say_what_to_do(pacs, tmp_path):
    with pytest.raises(ValueError, match="no CR or DX image that matches"):
        fetch(pacs.url, tmp_path, patients=["none"], key=b"k", progress=False)
    with pytest.raises(PacsError, match="127.0.0.1 does not answer: is it running"):
        fetch("dicomweb://127.0.0.1:9/dicom-web", tmp_path, key=b"k", retries=0, progress=False)


def test_what_is_tried_again_leaves_no_patient_in_the_log(pacs, tmp_path, caplog):
    with pytest.raises(PacsError):
        fetch("dicomweb://127.0.0.1:9/web", tmp_path, patients=["SENTINEL"], key=b"k", retries=1, progress=False)
    pacs.status["/series"] = 503
    with pytest.raises(PacsError, match="the error 503"):
        fetch(pacs.url, tmp_path, patients=["SENTINEL"], key=b"k", retries=1, progress=False)
    assert sum("PatientID=SENTINEL" in path for path in pacs.asked) == 2
    assert "SENTINEL" not in caplog.text


@pytest.mark.parametrize("url", ["dicomweb://anna:geheim@host/x", "dicomweb://geheim@host"])
def test_a_login_in_the_address_is_refused_and_not_repeated(url, tmp_path):
    with pytest.raises(ValueError, match="does not belong in the address") as error:
        fetch(url, tmp_path, key=b"k", progress=False)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["dicomweb://", "dicomweb:///path", "dicomweb://host:port/x", "http://host/x", "dicomweb://h/x?a=b"]
)
def test_what_is_no_address_is_told(url, tmp_path):
    with pytest.raises(ValueError, match="dicomweb://HOST:PORT/PATH"):
        fetch(url, tmp_path, key=b"k", progress=False)


def test_the_command_fetches_and_indexes(pacs, tmp_path):
    said = CliRunner().invoke(app, ["index", pacs.url, "--output", str(tmp_path / "out"), "--since", "2026-01-02"])
    assert said.exit_code == 0, said.output
    assert "3 images match, 3 are new" in " ".join(said.output.split())
    assert "accepted 3, refused 0" in " ".join(said.output.split())
    assert (tmp_path / "out" / "manifest.csv").is_file()
    pacs.status["/instances/1.2.3.2"] = 500
    next(
        path for path in (tmp_path / "out" / "fetched").iterdir() if pydicom.dcmread(path).SOPInstanceUID == UIDS[2]
    ).unlink()
    said = CliRunner().invoke(app, ["index", pacs.url, "--output", str(tmp_path / "out")])
    assert said.exit_code == 1
    assert "1 could not be fetched: give the same command again" in " ".join(said.output.split())


def test_what_chooses_from_a_pacs_is_refused_for_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(written(radiograph(np.eye(40, dtype=np.uint8))))
    said = CliRunner().invoke(app, ["index", str(tmp_path), "--output", str(tmp_path / "out"), "--since", "2026-01-02"])
    assert isinstance(said.exception, ValueError)
    assert "choose from a PACS" in str(said.exception)
