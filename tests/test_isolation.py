# SPDX-License-Identifier: Apache-2.0
"""Real crashes, hangs and memory hunger in the other process cost one refusal; nothing outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from processes import running, until
from pydicom.uid import JPEGLSLossless
from test_hostile import rle_beyond_its_end
from written_dicom import radiograph, written

from monai_cnnprimer.dicom import isolation
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.isolation import Worker, call
from monai_cnnprimer.dicom.limits import Limits, limited
from monai_cnnprimer.dicom.radiograph import read_here, read_radiograph

VALUES = np.arange(48 * 70, dtype=np.uint16).reshape(48, 70)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = Worker(Limits(seconds=0.5, memory_bytes=64 << 20))
    yield one
    one.stop()


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    path = tmp_path / "IM1"
    attributes = {"BitsStored": 12, "PixelSpacing": [0.1, 0.2], "PixelPaddingValue": 7}
    path.write_bytes(written(radiograph(VALUES, **attributes), JPEGLSLossless, imagecodecs.jpegls_encode(VALUES)))
    return path


# --- what comes back


def test_values_and_arrays_come_back(worker: Worker) -> None:
    value = {"text": "Ünï", "path": "\udcff", "numbers": [1.5, float("inf"), None]}

    assert worker.call("faults:echo", {"value": value}) == (value, [])
    said, (ramp, empty) = worker.call("faults:ramp", {"shape": [700, 900], "dtype": "<f4"})  # more than a pipe holds
    assert said == "ramp"
    np.testing.assert_array_equal(ramp, np.arange(630_000, dtype=np.float32).reshape(700, 900))
    assert (empty.shape, empty.dtype) == ((0, 3), bool)


def test_the_process_is_kept_and_small(worker: Worker) -> None:
    first, again = (worker.call("faults:process", {})[0] for _ in range(2))

    assert first["pid"] == again["pid"] == worker.pid
    assert not {"torch", "monai", "mlflow", "pandas", "SimpleITK", "pytest"} & set(first["modules"])
    assert first["limits"] == [[0, 0], [0, 0]]  # neither a core dump, which would hold an image, nor any file


def test_a_compressed_file_is_the_same_from_there_as_from_here(compressed: Path) -> None:
    stated, (image, mask) = read_here(str(compressed), None)

    found, receipt = read_radiograph(compressed)

    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(receipt.pop("padding_mask"), mask)
    assert receipt == stated
    assert isinstance(receipt["pixel_spacing_mm"], tuple)
    assert found.flags.writeable


def test_a_refusal_comes_back_with_its_attribute(compressed: Path) -> None:
    with pytest.raises(DicomRefused) as there:
        read_radiograph(compressed, limits={"pixels": 100})

    assert (there.value.reason, there.value.attribute) == ("more pixels than any radiograph has", "Rows")


def test_a_path_is_meant_from_where_the_caller_stands(compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_radiograph(compressed)  # so that the other process has started elsewhere
    monkeypatch.chdir(compressed.parent)

    assert read_radiograph(compressed.name)[0].shape == (48, 70)


# --- what a file may do to its process


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("read_null", r"reading it ended the process that read it \(SIGSEGV\)"),
        ("abort", r"reading it ended the process that read it \(SIGABRT\)"),
        ("leave", "reading it ended the process that read it$"),
        ("spin", "reading it takes longer than the time limit"),
        ("fail", r"reading it failed \(ZeroDivisionError\)"),
    ],
)
def test_a_fault_is_one_refusal(worker: Worker, fault: str, message: str) -> None:
    with pytest.raises(DicomRefused, match=message):
        worker.call(f"faults:{fault}", {})

    assert worker.call("faults:echo", {"value": 1}) == (1, [])


def test_what_waits_for_ever_is_ended_by_the_clock() -> None:
    worker = Worker(Limits(wall_seconds=0.5))
    start = time.monotonic()
    try:
        with pytest.raises(DicomRefused, match="longer than the time limit"):
            worker.call("faults:wait", {})
    finally:
        worker.stop()
    assert time.monotonic() - start < 100


def test_memory_ends_at_the_limit_and_the_next_file_has_all_of_it(worker: Worker) -> None:
    with pytest.raises(DicomRefused, match="takes more memory than the limit"):
        worker.call("faults:allocate", {"most": 80 << 20})

    assert worker.call("faults:allocate", {"most": 48 << 20}) == (48, [])


def test_a_file_is_asked_again_when_it_met_a_spoilt_process(worker: Worker) -> None:
    first, second = (worker.call("faults:crash_unless_fresh", {})[0] for _ in range(2))

    assert first != second


def test_a_process_that_died_between_two_files_costs_none(worker: Worker) -> None:
    worker.call("faults:echo", {"value": 1})
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)

    assert worker.call("faults:echo", {"value": 2}) == (2, [])


def test_an_interrupted_question_leaves_no_answer_behind(worker: Worker) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    worker.call("faults:echo", {"value": 1})
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            worker.call("faults:spin", {})
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert worker.call("faults:echo", {"value": 3}) == (3, [])


def test_a_package_that_cannot_be_started_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    worker = Worker(Limits())
    with pytest.raises(RuntimeError, match="no process could be started to read files in"):
        worker.call("faults:echo", {"value": 1})


# --- threads, forks, and the end


def test_threads_read_at_once_each_in_a_process_of_its_own() -> None:
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = call("faults:echo", {"value": number})[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: number for number in range(3)}
    assert 1 <= len(isolation._idle) <= isolation.MOST_IDLE


def _shape_and_reader(path: str, answer: Any) -> None:
    shape = read_radiograph(path)[0].shape
    answer.put((shape, isolation._idle[0].pid))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_daemonic_processes_have_readers_of_their_own(compressed: Path, method: str) -> None:
    read_radiograph(compressed)  # a reader of this process, which a forked one must not talk to
    ours = isolation._idle[0].pid
    context = multiprocessing.get_context(method)
    answer = context.SimpleQueue()
    child = context.Process(target=_shape_and_reader, args=(str(compressed), answer), daemon=True)
    child.start()
    shape, theirs = answer.get()
    child.join()

    assert (shape, child.exitcode) == ((48, 70), 0)
    assert theirs != ours
    until(lambda: not running(theirs))
    assert read_radiograph(compressed)[0].shape == (48, 70)
    assert isolation._idle[0].pid == ours


def test_a_data_loader_leaves_out_the_case_that_ends_a_decoder(compressed: Path) -> None:
    from monai.data import DataLoader
    from monai.transforms import LoadImaged

    from monai_cnnprimer.dataset import CaseDataset, collate_cases
    from monai_cnnprimer.dicom.reader import RadiographReader

    broken = compressed.with_name("IM2")
    broken.write_bytes(rle_beyond_its_end())
    cases = [{"image": str(path), "case_id": path.name, "label": None} for path in (compressed, broken)] * 2
    load = LoadImaged("image", reader=RadiographReader(limits={"seconds": 20}), ensure_channel_first=True)

    batches = list(DataLoader(CaseDataset(cases, load), num_workers=2, batch_size=2, collate_fn=collate_cases))

    assert [name for batch in batches for name in batch["case_id"]] == ["IM1", "IM1"]


PARENT = """
import sys, threading, time
from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.isolation import Worker
from monai_cnnprimer.dicom.limits import Limits
worker = Worker(Limits(seconds=0.5))
worker.call("faults:echo", {"value": 1})
print(worker.pid, flush=True)
if sys.argv[1] == "busy":
    worker.call("faults:spin", {})
if sys.argv[1] == "idle":
    time.sleep(600)
"""


@needs_proc
@pytest.mark.parametrize("state", ["busy", "idle", "exit"])
def test_nobody_is_left_behind(state: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-W", "error", "-c", PARENT, state]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        reader = int(parent.stdout.readline())
        if state != "exit":
            parent.kill()
        said = parent.communicate(timeout=100)[1]

    until(lambda: not running(reader))
    assert parent.returncode == (0 if state == "exit" else -signal.SIGKILL)
    assert said == b""


# --- limits


def test_limits_hold_where_they_are_set(compressed: Path) -> None:
    tight = Limits(pixels=100)
    with limited(tight), pytest.raises(DicomRefused, match="more pixels"):
        read_radiograph(compressed)

    assert read_radiograph(compressed)[0].shape == (48, 70)
    with pytest.raises(ValueError, match="no such limit: memory; there are file_bytes, pixels,"):
        read_radiograph(compressed, limits={"memory": 1})
    with pytest.raises(ValueError, match="the limit seconds must be a positive number"):
        read_radiograph(compressed, limits={"seconds": 0})
