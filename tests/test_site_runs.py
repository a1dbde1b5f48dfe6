# SPDX-License-Identifier: Apache-2.0
"""Several sites' processes at once: whatever becomes of one, the others finish and all are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console
from written_runs import write_run

from monai_cnnprimer.run_directory import digest_of
from monai_cnnprimer.validate.runs import read_run
from monai_cnnprimer.validate.site_runs import run_sites, site_progress
from monai_cnnprimer.validate.sites import Site

PROCESS = Path(__file__).parent / "site_process.py"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """What a site's process leaves when all went well."""
    return write_run(tmp_path_factory.mktemp("runs") / "finished", count=6)


def run(output, finished, fates, jobs=2):
    """Sites named by what becomes of them."""
    sites = [Site(fate, output.parent) for fate in fates]

    def start(site, directory):
        return [sys.executable, str(PROCESS), site.name.split("-")[0], str(directory), str(finished)], os.environ

    with site_progress(console=Console(quiet=True)) as progress:
        results = run_sites(sites, output, start, jobs, progress)
    return {result.site.name: result for result in results}


def status(directory):
    told = json.loads((directory / "run.json").read_text())
    assert told["sha256"] == digest_of(told)
    return told["status"], told["reason"]


def test_each_site_ends_in_its_own_way_and_the_others_finish(tmp_path, finished):
    results = run(tmp_path, finished, ["crash", "kill", "complete-1", "memory", "refuse", "complete-2"])
    assert {name: result.status for name, result in results.items()} == {
        "crash": "failed",
        "kill": "killed",
        "complete-1": "complete",
        "memory": "failed",
        "refuse": "failed",
        "complete-2": "complete",
    }
    assert list(results) == ["crash", "kill", "complete-1", "memory", "refuse", "complete-2"]
    assert status(tmp_path / "crash") == ("failed", "KeyError")
    assert results["crash"].detail == "'PatientName'"
    assert status(tmp_path / "kill") == ("killed", "ended by SIGKILL, as the system does when memory runs out")
    assert status(tmp_path / "memory")[1].startswith("out of memory (MemoryError): give fewer jobs")
    assert (results["refuse"].reason, (tmp_path / "refuse" / "run.json").exists()) == ("ValueError", False)
    assert "threshold of other weights" in results["refuse"].detail
    assert len(read_run(tmp_path / "complete-1").predictions) == 6


def test_a_site_with_nothing_to_evaluate_says_so(tmp_path, finished):
    result = run(tmp_path, finished, ["empty"])["empty"]
    assert (result.status, result.reason) == ("failed", "nothing in the export can be evaluated")
    assert "none of the 3 files" in result.detail


def test_what_fails_after_the_evaluation_is_told(tmp_path, finished):
    result = run(tmp_path, finished, ["late"])["late"]
    assert (result.status, result.reason) == ("failed", "evaluated, but what follows was not done: RuntimeError")
    assert read_run(tmp_path / "late").complete


def test_an_earlier_run_is_not_taken_for_this_one(tmp_path, finished):
    (tmp_path / "refuse").mkdir()
    for file in finished.iterdir():
        (tmp_path / "refuse" / file.name).write_bytes(file.read_bytes())
    assert run(tmp_path, finished, ["refuse"])["refuse"].status == "failed"
    assert read_run(tmp_path / "refuse").complete


def test_no_more_processes_than_jobs(tmp_path, finished):
    """Three that wait and one that does not: it starts only when one of the others was killed."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    results = run(tmp_path, finished, ["wait-1", "wait-2", "complete"], jobs=2)
    assert watcher.communicate(timeout=60)[0].split() == ["wait-1", "wait-2"]
    assert {name: result.status for name, result in results.items()} == {
        "wait-1": "killed",
        "wait-2": "killed",
        "complete": "complete",
    }
    assert results["wait-1"].reason == "ended by SIGTERM"


# Sends SIGTERM to the sites that wait, once both have opened their run directory; says what had started by then.
WATCHER = """
import os, signal, subprocess, sys, time
from pathlib import Path
output = Path(sys.argv[1])
while len(list(output.glob("wait-*/.predictions.partial.csv"))) < 2:
    time.sleep(0.1)
time.sleep(1)
print(*sorted(line.split()[0] for line in (output / "started").read_text().splitlines()))
for process in Path("/proc").glob("[0-9]*"):
    try:
        words = (process / "cmdline").read_bytes().decode().split("\\0")
    except OSError:
        continue
    if any(word.startswith(f"{output}/wait-") for word in words):
        os.kill(int(process.name), signal.SIGTERM)
"""


def test_sigterm_ends_the_sites_and_marks_their_runs(tmp_path, finished):
    script = textwrap.dedent(
        """
        import sys; from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_site_runs import run
        run(Path(sys.argv[2]), Path(sys.argv[3]), ["complete", "wait-1", "wait-2"])
        """
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path), str(finished)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while len(list(tmp_path.glob("wait-*/.predictions.partial.csv"))) < 2:
            assert parent.poll() is None, parent.stderr.read()
            time.sleep(0.1)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(60) == 128 + signal.SIGTERM
    finally:
        parent.kill()
        parent.stderr.close()
    assert status(tmp_path / "complete")[0] == "complete"
    assert [status(tmp_path / name) for name in ("wait-1", "wait-2")] == [("killed", "ended by SIGTERM")] * 2
