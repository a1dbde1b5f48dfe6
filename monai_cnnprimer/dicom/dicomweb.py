# SPDX-License-Identifier: Apache-2.0
"""Radiographs from a PACS by DICOMweb (PS3.18): searched by QIDO-RS, fetched by WADO-RS, kept in a local folder.

The folder is then an export like any other. Names of its files are keyed hashes; no message names a patient, an
identifier or a login.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from urllib3.util import Retry

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, quiet
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.rows import keyed_hash

SCHEMES = {"dicomweb": "http", "dicomwebs": "https"}
MODALITIES = ("CR", "DX")
USER, PASSWORD, TOKEN = "CNNPRIMER_DICOMWEB_USER", "CNNPRIMER_DICOMWEB_PASSWORD", "CNNPRIMER_DICOMWEB_TOKEN"
_SECONDS = (10, 120)  # to connect, and between two packets of an answer


class PacsError(OSError):
    """A PACS that cannot be asked; says what to do, without a login or an identifier."""


class Fetched(NamedTuple):
    """What was fetched: the folder of it, how many images match, were new, and could not be had."""

    folder: Path
    matching: int
    new: int
    failed: int


class _Instance(NamedTuple):
    study: str
    series: str
    instance: str


class _Token(AuthBase):
    """A bearer token; unlike a header of the session, no entry of a netrc file replaces it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def is_dicomweb(export: str | os.PathLike[str]) -> bool:
    """Whether an export is named as a PACS and not as a file.

    Example:
        >>> is_dicomweb("dicomweb://localhost:8042/dicom-web"), is_dicomweb("export.zip")
        (True, False)
    """
    return os.fspath(export).split("://", 1)[0] in SCHEMES and "://" in os.fspath(export)


def fetch(
    url: str,
    folder: Path,
    *,
    modalities: Sequence[str] = MODALITIES,
    since: date | None = None,
    until: date | None = None,
    patients: Sequence[str] | None = None,
    key: bytes | str | os.PathLike[str] | None = None,
    retries: int = 3,
    progress: bool = True,
) -> Fetched:
    """Fetches the images of a PACS that match, one file each; what lies in the folder already is not fetched again.

    The login is taken from the environment (`CNNPRIMER_DICOMWEB_USER` and `..._PASSWORD`, or `..._TOKEN`), else from
    the netrc file of whoever runs this. Images are asked for as they are stored, compressed or not.

    Args:
        url: ``dicomweb://HOST:PORT/PATH``, or ``dicomwebs://`` for https.
        folder: where files go; made if missing.
        modalities: values of Modality.
        since: first date of the study.
        until: last date of the study.
        patients: values of PatientID; None takes all.
        key: of the file names, see `monai_cnnprimer.dicom.key.pseudonym_key`.
        retries: attempts after a broken connection, or an answer that the server is busy.
        progress: show a bar on the error stream.

    Raises:
        PacsError: no server, no such service, or a login that it does not accept.
        ValueError: the URL is none, nothing matches, or the folder holds what does not match.
    """
    secret = pseudonym_key(key)
    client = _client(url, retries)
    with _telling(url):
        filters = list(_filters(modalities, since, until, patients))
        found = sorted({one for wanted in filters for one in _search(client, wanted)})
    if not found:
        raise ValueError(
            f"the PACS has no {' or '.join(modalities)} image that matches: look at the dates and at the list of "
            "patients, or ask for another modality"
        )
    files = {one: folder / f"{keyed_hash(secret, one.instance, 32)}.dcm" for one in found}
    _tidy(folder, set(files.values()))
    waiting = [one for one in found if not files[one].is_file()]
    failed = 0
    columns = (TextColumn("fetch"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        for one in bar.track(waiting, description="fetch"):
            failed += not _fetch_one(client, one, files[one], url)
    return Fetched(folder, len(found), len(waiting) - failed, failed)


def _tidy(folder: Path, wanted: set[Path]) -> None:
    """Takes away what a killed fetch left half written; refuses a folder that would mix two choices of images."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()
    others = sum(path not in wanted for path in folder.iterdir()) if folder.is_dir() else 0
    if others:
        raise ValueError(
            f"{others} files in the folder of fetched images do not match this time: give another output folder, or "
            "empty it first"
        )


def _client(url: str, retries: int) -> DICOMwebClient:
    session = requests.Session()
    again = Retry(retries, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    if token := os.environ.get(TOKEN):
        session.auth = _Token(token)
    elif user := os.environ.get(USER):
        session.auth = HTTPBasicAuth(user.encode(), os.environ.get(PASSWORD, "").encode())
    client = DICOMwebClient(_address(url), session=session, timeout=_SECONDS)
    client.set_http_retry_params(retry=False)  # the session's own retries know broken connections too
    return client


def _address(url: str) -> str:
    """The http address of a URL.

    Raises:
        ValueError: it has no host, a login within, or parts that an address of a service does not have.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"a login does not belong in the address, where others see it: set {USER} and {PASSWORD}")
    if parts.scheme not in SCHEMES or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("the address of a PACS is dicomweb://HOST:PORT/PATH, or dicomwebs:// for https")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{SCHEMES[parts.scheme]}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def _filters(
    modalities: Sequence[str], since: date | None, until: date | None, patients: Sequence[str] | None
) -> Iterator[dict[str, str]]:
    """One query for each modality and patient: not every PACS takes lists (PS3.18 8.3.4)."""
    first, last = (f"{day:%Y%m%d}" if day else "" for day in (since, until))
    dates = {"StudyDate": f"{first}-{last}"} if first or last else {}
    for modality in modalities:
        for patient in patients if patients is not None else [None]:
            # Wild cards of the standard would ask for other patients too.
            if patient is None or not re.search(r"[*?\\]", patient):
                yield {"Modality": modality, **dates, **({} if patient is None else {"PatientID": patient})}


def _search(client: DICOMwebClient, wanted: Mapping[str, str]) -> Iterator[_Instance]:
    for series in client.search_for_series(search_filters=dict(wanted), get_remaining=True):
        study, series_uid = _uid(series, "0020000D"), _uid(series, "0020000E")
        # A PACS may ignore a filter that it does not know.
        if not study or not series_uid or _uid(series, "00080060") not in (wanted["Modality"], ""):
            continue
        for instance in client.search_for_instances(study, series_uid, get_remaining=True):
            if uid := _uid(instance, "00080018"):
                yield _Instance(study, series_uid, uid)


def _uid(answer: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in an answer in DICOM JSON (PS3.18 F.2); "" where there is none."""
    values = answer.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _fetch_one(client: DICOMwebClient, one: _Instance, file: Path, url: str) -> bool:
    """Whether one image could be had; a server that is gone or closed ends it all."""
    try:
        with quiet(), _silent():
            dataset = client.retrieve_instance(*one, media_types=(("application/dicom", "*"),))
            content = _written(dataset)
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            _refuse(url, error)
        return False
    except requests.ConnectionError as error:
        _refuse(url, error)
    except (requests.RequestException, *PARSE_ERRORS):
        return False
    write_atomically(file, content)
    return True


def _written(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@contextmanager
def _silent() -> Iterator[None]:
    """What the clients log quotes identifiers: of answers, and of the addresses that are tried again."""
    loggers = [logging.getLogger(name) for name in ("dicomweb_client", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _telling(url: str) -> Iterator[None]:
    try:
        with _silent():
            yield
    except requests.RequestException as error:
        _refuse(url, error)
    except PARSE_ERRORS:
        _refuse(url, None)


def _refuse(url: str, error: requests.RequestException | None) -> NoReturn:
    """Says what is wrong with the PACS; nothing of its answer, which may quote identifiers."""
    host = urlsplit(url).hostname
    status = None if error is None or error.response is None else error.response.status_code
    if status in (401, 403):
        what = f"does not accept the login: set {USER} and {PASSWORD}, or {TOKEN}, or make an entry in ~/.netrc"
    elif status == 404:
        what = "answers, but has no DICOMweb at this path (Orthanc's is /dicom-web)"
    elif status is not None:
        what = f"answers with the error {status}: its own log says why"
    elif isinstance(error, requests.exceptions.SSLError):
        what = "has no certificate that is trusted here: name its authority in REQUESTS_CA_BUNDLE"
    elif isinstance(error, requests.ConnectionError | requests.Timeout):
        what = "does not answer: is it running, are host and port right, does a firewall stand between?"
    else:
        what = "gives an answer that is not DICOMweb: look at the path of the address"
    raise PacsError(f"the PACS at {host} {what}") from None
