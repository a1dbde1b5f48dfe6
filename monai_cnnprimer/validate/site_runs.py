# SPDX-License-Identifier: Apache-2.0
"""The runs of several sites at once, a process each: none keeps another from its end, and each is told how it ended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from monai_cnnprimer.interruption import Terminated
from monai_cnnprimer.run_directory import SPOOL, mark_ended
from monai_cnnprimer.validate.sites import Site

_LOOK_SECONDS = 0.2
_TERMINATE_SECONDS = 30  # to write the run directory and tell MLflow, before the process is killed
_MEMORY = re.compile(
    r"MemoryError|bad_alloc|[Oo]ut ?[Oo]f ?[Mm]emory|[Cc]an(not|'t) allocate memory|killed by signal: Killed"
)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w+)(?:: (.*))?$")


@dataclass(frozen=True)
class SiteResult:
    """How the run of one site ended.

    Attributes:
        site: which.
        directory: its run directory.
        status: `complete`, `failed` or `killed`.
        reason: why it is not complete, in words that name no file; "" when it is.
        detail: what its process said last; for the console only, it may name files.
        seconds: of its process; 0 where the run was complete before.
    """

    site: Site
    directory: Path
    status: str
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0


def run_sites(
    sites: Sequence[Site],
    output: Path,
    start: Callable[[Site, Path], tuple[Sequence[str], Mapping[str, str]]],
    jobs: int,
    progress: Progress,
    ended: Callable[[SiteResult], None] = lambda result: None,
) -> list[SiteResult]:
    """Runs each site in a process of its own, at most `jobs` at once; what it prints goes to `NAME.log`.

    When this process is interrupted or terminated, the sites' processes are terminated and their runs marked `killed`.

    Args:
        sites: which.
        output: the folder of their run directories.
        start: command and environment of a site's process, given its run directory.
        jobs: processes at once.
        progress: shows the cases of each site.
        ended: is told of each result as it comes.

    Returns:
        One result a site, in the order given.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows = {site.name: progress.add_task(site.name, total=None, state="waiting", start=False) for site in sites}
    waiting, running = list(sites), list[_Process]()
    results: dict[str, SiteResult] = {}
    with _sigterm_raised(), ExitStack() as at_the_end:
        while waiting or running:
            while waiting and len(running) < jobs:
                site = waiting.pop(0)
                running.append(_Process(site, output / site.name, *start(site, output / site.name)))
                at_the_end.callback(running[-1].end, ended)
                progress.start_task(rows[site.name])
            for process in [process for process in running if not process.show(progress, rows[process.site.name])]:
                running.remove(process)
                results[process.site.name] = process.result()
                ended(results[process.site.name])
            sleep(_LOOK_SECONDS)
    return [results[site.name] for site in sites]


def site_progress(**options: Any) -> Progress:
    """The display that `run_sites` fills: a line a site with what it does and how many cases it has done."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.fields[state]}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), **options)


class _Process:
    """One site's process, from its start to how it ended."""

    def __init__(self, site: Site, directory: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.site, self.directory = site, directory
        self.log = directory.with_name(f"{directory.name}.log")
        self._before = _written(directory)
        self._start = monotonic()
        with self.log.open("w") as log:
            # A session of its own: Ctrl-C reaches this process, which then ends the others in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environment), start_new_session=True
            )

    def show(self, progress: Progress, row: TaskID) -> bool:
        """Brings the display up to date; False when the process has ended."""
        code, run = self._process.poll(), _run_json(self.directory)
        if code is None and _written(self.directory) == self._before:
            progress.update(row, state="reading headers")
            return True
        counts = run.get("counts", {})
        done = counts.get("predicted", 0) if run.get("status") == "complete" else _lines(self.directory / SPOOL)
        state = "predicting" if done < counts.get("accepted", 0) else "writing"
        if code is not None:
            state = run.get("status", "failed") if code == 0 else "failed"
        progress.update(row, state=state, total=counts.get("accepted"), completed=done)
        return code is None

    def result(self) -> SiteResult:
        """How it ended; a run directory that its process could not close is closed here."""
        code, seconds, run = self._process.returncode, monotonic() - self._start, _run_json(self.directory)
        if code == 0 and run.get("status") == "complete":
            return SiteResult(self.site, self.directory, "complete", seconds=seconds)
        name, detail = _last_exception(self.log)
        opened = _written(self.directory) != self._before  # else what stands there is of an earlier run
        told = run.get("reason") if opened and run.get("status") == "failed" else ""
        reason = told if told and told != name else _reason(code, name, detail)
        if opened and run.get("status") == "complete":
            reason = f"evaluated, but what follows was not done: {reason}"
        killed = code < 0 or code == 128 + signal.SIGTERM
        if opened and run.get("status") == "running":
            mark_ended(self.directory, "killed" if killed else "failed", reason)
        return SiteResult(self.site, self.directory, "killed" if killed else "failed", reason, detail, seconds)

    def end(self, ended: Callable[[SiteResult], None]) -> None:
        """Ends the process if it still runs, and tells how that was."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        ended(self.result())


@contextmanager
def _sigterm_raised() -> Iterator[None]:
    """SIGTERM as an exception, so that the sites' processes are not left behind."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reason(code: int, name: str, detail: str) -> str:
    if code == -signal.SIGKILL:
        return "ended by SIGKILL, as the system does when memory runs out"
    if _MEMORY.search(f"{name}: {detail}"):
        return f"out of memory ({name}): give fewer jobs or a smaller batch_size"
    if code < 0 or code == 128 + signal.SIGTERM:
        return f"ended by {signal.Signals(-code if code < 0 else code - 128).name}"
    return name or f"ended with exit code {code}"


def _last_exception(log: Path) -> tuple[str, str]:
    """Class and message of what ended the process: of a chain the first, since MONAI wraps what a component raises."""
    text = log.read_text(errors="replace")[-100_000:]
    chain = text[text.rfind("Traceback (most recent call last)", 0, _first_of_chain(text)) :].splitlines()
    found = [match for match in map(_EXCEPTION.match, chain) if match]
    if not found:  # compiled code has no traceback
        return ("bad_alloc", "") if "std::bad_alloc" in text else ("", "")
    return found[0][1], found[0][2] or ""


def _first_of_chain(text: str) -> int:
    at = text.find("The above exception was the direct cause")
    return at if at >= 0 else len(text)


def _run_json(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _written(directory: Path) -> int:
    """When `run.json` was written, in ns; 0 where there is none."""
    try:
        return (directory / "run.json").stat().st_mtime_ns
    except OSError:
        return 0


def _lines(file: Path) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0
