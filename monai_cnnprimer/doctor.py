# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can do the work: packages, decoders, memory, disk, GPU, MLflow, weights, tools beside.

What is heavy or may be broken is looked at in processes of their own (``python -m monai_cnnprimer.doctor NAME``): a
library that cannot be loaded, hangs, or kills its process is a line of the table, never the end of the doctor.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

PACKAGE = "monai_cnnprimer"
BUNDLES = Path(__file__).parents[1] / "bundles"
LOAD_SECONDS = 300  # to import torch or MLflow, also on a busy machine
ANSWER_SECONDS = 12  # for MLflow to answer, once it is imported
GIB = 1 << 30
ENOUGH_MEMORY, ENOUGH_DISK = 3 * GIB, 2 * GIB  # with less, a run may be ended by the system
TOOLS = {
    "chromium": "tests of the report in a real browser",
    "Orthanc": "`make test-pacs`",
    "storescu": "sending results to a PACS (dcmtk)",
    "dciodvfy": "checking the DICOM objects that are written (dicom3tools)",
}
State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: `ok`; `note` for what is worth knowing but not needed; `problem` for what keeps work from being done.
        found: what was found.
        remedy: what to do; "" where nothing is.
    """

    what: str
    state: State
    found: str
    remedy: str = ""


def examine(output: Path, tracking_uri: str | None = None) -> list[Check]:
    """Looks at everything; takes a few seconds, and never raises for what it finds.

    Args:
        output: the folder where results are to go; it need not exist.
        tracking_uri: of MLflow; else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
    """
    with ThreadPoolExecutor() as threads:
        torch, decoders, mlflow = (
            threads.submit(elsewhere, *words) for words in (("torch",), ("decoders",), ("mlflow", tracking_uri or ""))
        )
        here = [*packages(), memory(), disk(output), key(), *weights(), *tools()]
        return [*here, *torch.result(), *decoders.result(), *mlflow.result()]


def packages() -> list[Check]:
    """Python and each package that this one needs, by what is installed; nothing is imported."""
    found = [Check("Python", "ok", platform.python_version())]
    try:
        wanted = [Requirement(text) for text in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return [*found, Check(PACKAGE, "problem", "not installed", "pip install -e . in its folder")]
    found.append(Check(PACKAGE, "ok", version(PACKAGE)))
    return found + [_package(one) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _package(wanted: Requirement) -> Check:
    remedy = f'pip install -c constraints.txt "{wanted.name}{wanted.specifier}"'
    try:
        present = version(wanted.name)
    except PackageNotFoundError:
        return Check(wanted.name, "problem", "missing", remedy)
    if not wanted.specifier.contains(present, prereleases=True):
        return Check(wanted.name, "problem", f"{present}, needed is {wanted.specifier}", remedy)
    return Check(wanted.name, "ok", present)


def memory() -> Check:
    """Memory that is free now, and processors that may be used."""
    processors = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} processors"
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, LookupError):
        return Check("memory", "note", f"not known on this system; {processors}")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free; {processors}"
    if free < ENOUGH_MEMORY:
        return Check("memory", "problem", found, "close other programs, or give --batch_size 2 --num_workers 0")
    return Check("memory", "ok", found)


def disk(output: Path) -> Check:
    """Space where the results are to go."""
    place = output.expanduser().resolve()
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    if not os.access(there, os.W_OK):
        return Check("disk", "problem", "the output folder may not be written", "give another folder: --output DIR")
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free for results"
    if free < ENOUGH_DISK:
        return Check("disk", "problem", found, "free some space, or give another folder: --output DIR")
    return Check("disk", "ok", found)


def key() -> Check:
    """Where the key of the pseudonyms comes from; never the key itself, and none is made."""
    what, text = "key of pseudonyms", os.environ.get("CNNPRIMER_KEY")
    if text:
        return Check(what, "ok", "in CNNPRIMER_KEY")
    if text is not None:
        return Check(what, "problem", "CNNPRIMER_KEY is empty", "unset CNNPRIMER_KEY, or give it a long random text")
    file = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cnnprimer" / "key"
    if not file.is_file():
        return Check(what, "note", "none yet: the first index makes one")
    if file.stat().st_mode & 0o077:
        return Check(what, "problem", "others may read its file", "chmod 600 ~/.config/cnnprimer/key")
    return Check(what, "ok", "in your configuration folder")


def weights() -> list[Check]:
    """The weights of each bundle beside this package, by their SHA-256 in the files beside them."""
    bundles = sorted(file.parents[1] for file in BUNDLES.glob("*/configs/metadata.json"))
    if not bundles:
        return [Check("bundles", "note", "none beside the package", "give your own: --bundle FOLDER")]
    return [_weights(bundle) for bundle in bundles]


def _weights(bundle: Path) -> Check:
    what, file = f"weights of {bundle.name}", bundle / "models" / "model.pt"
    remedy = f"fetch bundles/{bundle.name}/models/model.pt again (git checkout, or git lfs pull)"
    if not file.is_file():
        return Check(what, "problem", "missing", remedy)
    try:
        stated = {
            name: str(json.loads((bundle / "models" / name).read_text())["weights_sha256"])
            for name in ("operating_point.json", "results.json")
        }
    except (OSError, ValueError, LookupError, TypeError):
        told = "operating_point.json or results.json is missing or damaged: whether the weights are whole is not known"
        return Check(what, "problem", told, f"fetch the folder bundles/{bundle.name}/models again")
    with file.open("rb") as opened:
        own = hashlib.file_digest(opened, "sha256").hexdigest()
    if strangers := [name for name, digest in stated.items() if digest != own]:
        return Check(what, "problem", f"not those of {' and '.join(strangers)}", remedy)
    return Check(what, "ok", f"whole, SHA-256 {own[:8]}")


def tools() -> list[Check]:
    """Programs that are nice to have; reading, evaluating and reporting need none of them."""
    return [
        Check(name, "ok" if shutil.which(name) else "note", "present" if shutil.which(name) else f"absent; for {use}")
        for name, use in TOOLS.items()
    ]


def elsewhere(what: str, *words: str) -> list[Check]:
    """The checks of another process, or one that says how it ended without them."""
    remedy = {
        "torch": 'reinstall it: pip install --force-reinstall -c constraints.txt "torch" "monai"',
        "mlflow": "reinstall it: pip install --force-reinstall -c constraints.txt mlflow; runs go on without it",
        "decoders": "reinstall them: pip install --force-reinstall -c constraints.txt pydicom imagecodecs",
    }[what]
    command = [sys.executable, "-m", "monai_cnnprimer.doctor", what, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        told = f"not loaded within {LOAD_SECONDS} seconds"
        return [Check(what, "problem", told, f"look again when the machine is less busy; else {remedy}")]
    if done.returncode == -signal.SIGALRM:
        told = f"no answer within {ANSWER_SECONDS} seconds"
        return [Check("MLflow", "problem", told, "start the server, or give another --tracking-uri")]
    try:
        return [Check(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        return [Check(what, "problem", f"cannot be loaded: {last[:200]}", remedy)]


def _torch(_: Sequence[str]) -> list[Check]:
    import monai
    import torch

    loaded = Check("torch and monai load", "ok", f"{torch.__version__}, {monai.__version__}")
    if not torch.cuda.is_available():
        return [loaded, Check("GPU", "note", "none: everything works on the processor, more slowly")]
    one = torch.cuda.get_device_properties(0)
    held = float(torch.ones(8, device="cuda").sum())  # a driver that is too old fails here, not before
    state: State = "ok" if held == 8 else "problem"
    return [
        loaded,
        Check("GPU", state, f"{one.name}, {one.total_memory / GIB:.0f} GiB", "" if held == 8 else "use a CPU"),
    ]


def _decoders(_: Sequence[str]) -> list[Check]:
    from pydicom.uid import UID

    from monai_cnnprimer.dicom.specimens import SYNTAXES, decoder, fault

    remedy = "pip install --force-reinstall -c constraints.txt imagecodecs"
    return [
        Check(UID(syntax).keyword, "problem" if wrong else "ok", wrong or decoder(syntax), remedy if wrong else "")
        for syntax in SYNTAXES
        for wrong in [fault(syntax)]
    ]


def _mlflow(words: Sequence[str]) -> list[Check]:
    import mlflow

    from monai_cnnprimer.validate.mlflow_store import TrackingFailed, calls, probe, public, store_uri

    remedy = "start the server, or give another --tracking-uri; runs go on without it, `cnnprimer sync` uploads later"
    name_one = "unset MLFLOW_TRACKING_URI, or name a database or a server in it"
    loaded = Check("mlflow loads", "ok", mlflow.__version__)
    try:
        uri = store_uri(words[0] or None)
    except ValueError as error:
        return [loaded, Check("MLflow", "problem", str(error), name_one)]
    if uri.startswith("sqlite:///"):
        return [loaded, _database(Path(uri.removeprefix("sqlite:///").partition("?")[0]))]
    signal.alarm(ANSWER_SECONDS)  # name servers and proxies can hang longer than any setting of MLflow
    try:
        with calls(uri):
            probe(uri)
    except TrackingFailed as error:
        return [loaded, Check("MLflow", "problem", str(error), remedy)]
    finally:
        signal.alarm(0)
    return [loaded, Check("MLflow", "ok", f"{public(uri)} answers")]


def _database(file: Path) -> Check:
    """A database file, looked at without making one."""
    there = file if file.exists() else next(folder for folder in file.parents if folder.is_dir())
    if not os.access(there, os.W_OK):
        return Check("MLflow", "problem", f"{file.name} may not be written", "give another --tracking-uri")
    return Check("MLflow", "ok", f"database {file.name}{'' if file.exists() else ', which the first run makes'}")


_ELSEWHERE: dict[str, Callable[[Sequence[str]], list[Check]]] = {
    "torch": _torch,
    "decoders": _decoders,
    "mlflow": _mlflow,
}


def _answer(what: str, words: Sequence[str]) -> None:
    checks: list[dict[str, Any]] = [asdict(check) for check in _ELSEWHERE[what](words)]
    print(f"\n{json.dumps(checks)}", flush=True)


if __name__ == "__main__":
    _answer(sys.argv[1], sys.argv[2:])
