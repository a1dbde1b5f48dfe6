# SPDX-License-Identifier: Apache-2.0
"""How MLflow is called: which store, whether it answers, which process a run belongs to, what names it takes."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import ExclusiveFileLock
from mlflow.utils.rest_utils import http_request
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

HOST_TAG, PROCESS_TAG = "cnnprimer.host", "cnnprimer.pid"
_PROBE_SECONDS = 3
# Two tries of six seconds: MLflow's own settings block for four minutes on a dead server. Usage telemetry is off: who
# validates what at which hospital is nobody's business. A value that the user has set in the environment stands.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "6",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_log_of_databases = logging.getLogger("mlflow.store.db")


class TrackingFailed(RuntimeError):
    """MLflow did not answer, or refused; the message says what to do and holds no credentials."""


def store_uri(tracking_uri: str | None) -> str:
    """The store to use, a SQLite file by its absolute path."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        raise ValueError(
            f"MLflow keeps no runs in plain folders any more ({uri!r}): "
            "name a database file, sqlite:///mlflow.db, or a server, http://HOST:PORT"
        )
    if scheme != "sqlite":
        return uri
    path, question, query = rest.removeprefix("/").partition("?")
    # Spaces stay: MLflow would make a folder beside the real one, named with %20.
    return "sqlite:///" + quote(os.path.abspath(unquote(path)), safe="/: ") + question + query


def _database_file(uri: str) -> Path | None:
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])) if uri.startswith("sqlite:") else None


def artifacts_beside(uri: str) -> str | None:
    """``mlruns`` beside a SQLite file; None where the server decides."""
    database = _database_file(uri)
    return None if database is None else (database.parent / "mlruns").as_uri()


def public(uri: str) -> str:
    """The address without user, password and query."""
    if uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def calls(uri: str) -> Iterator[None]:
    """Short waits, no telemetry, no talk of a new database, and one kind of error, for the calls of MLflow inside."""
    _log_of_databases.setLevel(logging.WARNING)
    before = {key: os.environ.get(key) for key in (*_SETTINGS, "MLFLOW_TRACKING_URI")}
    os.environ.update({key: value for key, value in _SETTINGS.items() if before[key] is None})
    # The parent class would let it overrule an explicit address.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(error).replace(uri, public(uri)).partition("\n")[0]
        # The cause is not shown: its text may hold the password of the address.
        raise TrackingFailed(f"MLflow at {public(uri)}: {reason}") from None
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def probe(uri: str) -> None:
    """Asks whether the store answers, before MLflow does, which retries for minutes."""
    database, parts = _database_file(uri), urlsplit(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    elif parts.scheme in ("http", "https"):
        try:
            # Any answer will do: what stands before the server may not know this page.
            credentials = get_default_host_creds(uri)
            http_request(credentials, "/health", "GET", max_retries=0, timeout=_PROBE_SECONDS, raise_on_status=False)
        except MlflowException:
            raise TrackingFailed(f"MLflow at {public(uri)} does not answer") from None
    elif parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), _PROBE_SECONDS).close()


def creation_lock(uri: str) -> AbstractContextManager[Any]:
    """Two processes that create one SQLite store at the same time break each other's migrations."""
    database = _database_file(uri)
    if database is None or os.name == "nt":
        return nullcontext()
    return ExclusiveFileLock(str(database.with_name(f".{database.name}.lock")))


def this_process() -> dict[str, str]:
    """Tags that tell later whether this process still lives; none where there is no ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return {}
    machine = Path("/etc/machine-id")
    host = socket.gethostname() + (machine.read_text() if machine.exists() else "")
    process = f"{os.getpid()} {_start_of(os.getpid())} {namespace} {boot}"
    return {HOST_TAG: hashlib.sha256(host.encode()).hexdigest()[:16], PROCESS_TAG: process}


def _start_of(pid: int) -> str | None:
    """Start of a living process in clock ticks since boot, field 22 of proc(5): a number used again differs in it."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def is_dead(tags: Mapping[str, str]) -> bool:
    """True where the process that left these tags ran on this machine and is gone; False where that is not known."""
    here = this_process()
    if not here or tags.get(HOST_TAG) != here[HOST_TAG] or PROCESS_TAG not in tags:
        return False
    pid, start, *where = tags[PROCESS_TAG].split()
    _, _, *here_where = here[PROCESS_TAG].split()
    if where[-1] != here_where[-1]:
        return True
    # In another container's process numbers nothing can be looked up.
    return where == here_where and _start_of(int(pid)) != start


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted names; ``{"auroc": {"value": 0.9, "low": 0.8}}`` gives ``auroc`` and ``auroc.low``."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from leaves(inner, name if name and key == "value" else f"{name}.{key}".removeprefix("."))


def is_number(value: Any) -> bool:
    """Whether MLflow can keep `value` as a metric: no truth value, no NaN, nothing infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def named_values(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The values that there are, by names that MLflow accepts: ``recall@0.9`` becomes ``recall_0.9``."""
    named: dict[str, Any] = {}
    for key, value in pairs:
        parts = re.sub(r"[^\w.\- /]", "_", str(key)).split("/")
        name = "/".join(part for part in parts if part not in ("", ".", ".."))[: MAX_ENTITY_KEY_LENGTH - 10] or "_"
        if name in named:
            name = f"{name}_{hashlib.sha256(str(key).encode()).hexdigest()[:8]}"
        if value is not None:
            named[name] = value
    return named


def cut(value: Any, limit: int) -> str:
    """`value` as text of at most `limit` characters, which says so where it is cut; MLflow cuts in silence."""
    text = str(value)
    if len(text) <= limit:
        return text
    note = f" [cut, {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}]"
    return text[: limit - len(note)] + note
