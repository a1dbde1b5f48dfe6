# SPDX-License-Identifier: Apache-2.0
"""A site's process that predicts case by case into a real run directory, and may run out of memory half-way.

Its arguments: what happens (`whole`, `limit`, `abort` or `watch`), the run directory, and how many cases. With `limit`
the process has a limit of address space and meets it; with `abort` compiled code does; with `watch` it grows until the
process that watches it, as a container does, kills it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOM, RESIDENT = 1 << 28, 1 << 27  # bytes more than before the shortage


def main(what: str, directory: Path, count: int) -> None:
    """Predicts what is not predicted yet; `predicted` beside the run directory has a line a case."""
    from written_runs import BUNDLE, POINT, TRANSFORMS, WEIGHTS, manifest

    from monai_cnnprimer.run_directory import RunDirectory
    from monai_cnnprimer.validate.summary import summary

    run = RunDirectory(directory, manifest(directory.name, count), BUNDLE, WEIGHTS, POINT, TRANSFORMS)
    waiting = [case_id for case_id in run.manifest.accepted["case_id"] if case_id not in run.rows]
    for number, case_id in enumerate(waiting):
        with directory.with_name("predicted").open("a") as predicted:
            predicted.write(f"{directory.name} {what} {case_id}\n")
        run.add([case_id], [number - count / 2], [0.5])
        if what != "whole" and number + 1 == count // 2:
            starve(what)
    run.finish([], partial(summary, resamples=20))


def starve(what: str) -> None:
    """Takes memory until there is none."""
    held = []
    if what == "watch":
        while True:
            held.append(bytearray(os.urandom(1 << 20)))
            time.sleep(0.001)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    if what == "abort":
        # What the C++ library says before it ends a process whose allocation failed.
        try:
            held.append(bytearray(2 * ROOM))
        except MemoryError:
            sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
            sys.stderr.flush()
            os.abort()
    while True:
        held.append(bytearray(1 << 24))


def watched(command: list[str]) -> None:
    """Runs a command, and kills it when it holds more memory than half-way; ends as it ended."""
    process = subprocess.Popen(command)
    limit = None
    while process.poll() is None:
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize()
        except (OSError, IndexError, ValueError):
            break
        done = Path(command[-2]).with_name("predicted")
        if limit is None and done.exists() and len(done.read_text().splitlines()) >= int(command[-1]) // 2:
            limit = resident + RESIDENT
        if limit is not None and resident > limit:
            process.kill()
        time.sleep(0.02)
    if process.wait() < 0:
        os.kill(os.getpid(), signal.Signals(-process.returncode))
    sys.exit(process.returncode)


if __name__ == "__main__":
    if sys.argv[1] == "watch" and "--inside" not in sys.argv:
        watched([sys.executable, __file__, "--inside", *sys.argv[1:]])
    words = [word for word in sys.argv[1:] if word != "--inside"]
    main(words[0], Path(words[1]), int(words[2]))
