# SPDX-License-Identifier: Apache-2.0
"""Stands in for one site's process, with the standard library alone, so that it starts at once.

Its arguments: what to do, the run directory, and a run directory to copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(what: str, directory: Path, finished: Path) -> None:
    """Opens the run directory as `RunDirectory` does, then ends as it is told."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "started").open("a") as started:
        started.write(f"{directory.name} {what}\n")
    if what == "refuse":
        raise ValueError("operating_point.json holds the threshold of other weights; see /home/doe")
    run = json.loads((finished / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(run | {"status": "running"}))
    if what == "empty":
        told = {"status": "failed", "reason": "nothing in the export can be evaluated"}
        (directory / "run.json").write_text(json.dumps(run | told))
        raise ValueError("none of the 3 files is a radiograph that can be evaluated")
    (directory / ".predictions.partial.csv").write_text("a,0,0\n" * 3)
    if what == "crash":
        try:
            raise KeyError("PatientName")
        except KeyError as error:
            raise RuntimeError("Failed to instantiate component") from error
    if what == "memory":
        raise MemoryError
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(600)
    for file in finished.iterdir():
        shutil.copy(file, directory)
    (directory / ".predictions.partial.csv").unlink()
    if what == "late":
        raise RuntimeError("explaining failed")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
