# SPDX-License-Identifier: Apache-2.0
"""Reading a file in another process with limits on memory and time: one that kills its reader costs a refusal.

What needs a decoder is read there: compressed pixels, deflated headers, members of zip archives, images of other
formats, and headers out of the ordinary. Uncompressed DICOM files with an ordinary header (`header.is_ordinary`)
are read by whoever asks: no decoder runs on them, and what is done with their few elements has a bound, so that the
common case costs nothing.

``python -m monai_cnnprimer.dicom.isolation`` is the other process. It imports neither torch nor the main module of its
parent, reads many files one after another, and ends with its parent: its questions end then, and a file it is busy
with has its time limit. It is no child of `multiprocessing`, so that the daemonic workers of a DataLoader can have one
too. Answers are JSON and the bytes of arrays, no pickles: a decoder taken over by a file cannot pass code on.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.limits import Limits, hold, in_force

__all__ = ["Worker", "call"]

Arrays = list[NDArray[Any]]
STARTING = 300  # seconds to import NumPy and pydicom; a cold disk on a busy machine has taken 12
GRACE = 10  # seconds by which the parent's clock may be ahead of the one in the other process
MOST_IDLE = 4
PIPE_BYTES = 1 << 20
TOO_LONG = "reading it takes longer than the time limit"
NO_SENSE = "reading it gave an answer that makes no sense"
OUT_OF_TIME = (signal.SIGPROF, signal.SIGALRM)

_lock = threading.Lock()
_idle: list[Worker] = []
_started: weakref.WeakSet[Worker] = weakref.WeakSet()


def call(function: str, arguments: Mapping[str, Any]) -> tuple[Any, Arrays]:
    """Calls a function in another process under the limits in force; processes are kept for the next call.

    Args:
        function: ``"module:name"``; it takes JSON values and returns a JSON value and a list of arrays.
        arguments: its keyword arguments.

    Raises:
        DicomRefused: raised by the function, or because the process died over it or reached a limit.
    """
    limits = in_force()
    with _lock:
        worker = next((one for one in _idle if one.limits == limits), None)
        if worker is not None:
            _idle.remove(worker)
    worker = worker or Worker(limits)
    try:
        return worker.call(function, arguments)
    finally:
        with _lock:
            _idle.insert(0, worker)
            surplus = _idle[MOST_IDLE:]
            del _idle[MOST_IDLE:]
        for one in surplus:
            one.stop()


class _DiedError(Exception):
    """The other process ended over a question, or has not answered in time."""


class Worker:
    """One other process; it starts at the first call, and anew after it died. For one thread at a time.

    A file is refused only if it kills a process that has read nothing else: an earlier file may have spoilt the
    memory of one that has. So the answer does not depend on what was read before.

    Args:
        limits: what one call may cost.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or in_force()
        self._process: subprocess.Popen[bytes] | None = None
        self._fresh = True

    @property
    def pid(self) -> int | None:
        """The other process's number; None while there is none."""
        return None if self._process is None else self._process.pid

    def call(self, function: str, arguments: Mapping[str, Any]) -> tuple[Any, Arrays]:
        """Calls a function there, see `call`."""
        question = json.dumps({"function": function, "arguments": dict(arguments)}).encode() + b"\n"
        if self._process is None or self._process.poll() is not None:
            self._start()
        answer, arrays = self._answer(question)
        if answer.get("ask again"):
            self._start()
            answer, arrays = self._answer(question)
        if "refused" in answer:
            raise DicomRefused(*answer["refused"])
        return answer["value"], arrays

    def _answer(self, question: bytes) -> tuple[dict[str, Any], Arrays]:
        """The answer, or the refusal that the end of the process amounts to, and whether to ask a fresh one."""
        was_fresh, self._fresh = self._fresh, False
        try:
            answer, arrays = self._ask(question, self.limits.wall_seconds + GRACE)
        except _DiedError as died:
            reason = self._bury(died)
            return {"refused": [reason], "ask again": not was_fresh and reason != TOO_LONG}, []
        except BaseException:  # Ctrl-C, or a signal's handler: the answer is still to come, and not to be taken later
            self.stop()
            raise
        if answer.get("spent"):
            self.stop()
        return answer | {"ask again": bool(answer.get("spent")) and "refused" in answer and not was_fresh}, arrays

    def stop(self) -> None:
        """Ends the other process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait()

    def leave(self) -> None:
        """Lets go of a process that belongs to the parent of this forked one."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            process.returncode = 0  # else its destructor warns that it still runs

    def _start(self) -> None:
        self.stop()
        _started.add(self)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monai_cnnprimer.dicom.isolation"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._fresh = True
        try:
            self._ask(json.dumps(asdict(self.limits)).encode() + b"\n", STARTING)
        except _DiedError as died:
            self._bury(died)
            raise RuntimeError("no process could be started to read files in: is the package whole?") from None

    def _ask(self, question: bytes, seconds: float) -> tuple[dict[str, Any], Arrays]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        source, until = self._process.stdout.fileno(), time.monotonic() + seconds
        try:
            view = memoryview(question)
            while view:  # a question is a path and a few words; the pipe takes it at once
                view = view[self._process.stdin.write(view) or 0 :]
        except BrokenPipeError:
            raise _DiedError from None
        try:  # a decoder taken over by a file may answer anything
            (length,) = struct.unpack("<I", _received(source, 4, until))
            answer = json.loads(bytes(_received(source, min(length, self.limits.memory_bytes), until)))
            arrays = [np.empty(shape, dtype) for dtype, shape in answer.get("arrays", [])]
            for array in arrays:
                if array.size:
                    _receive(source, array.reshape(-1).view(np.uint8).data, until)
        except (ValueError, TypeError, AttributeError, NotImplementedError, RecursionError, MemoryError):
            raise _DiedError(NO_SENSE) from None
        return answer, arrays

    def _bury(self, died: _DiedError) -> str:
        """Ends what may be left of a process that did not answer, and says what became of it."""
        assert self._process is not None
        if died.args:  # it is alive
            self.stop()
            return str(died)
        code = self._process.wait()
        self.stop()
        if -code in OUT_OF_TIME:
            return TOO_LONG
        with contextlib.suppress(ValueError):
            return f"reading it ended the process that read it ({signal.Signals(-code).name})"
        return "reading it ended the process that read it"


def _received(source: int, count: int, until: float) -> bytearray:
    data = bytearray(count)
    _receive(source, memoryview(data), until)
    return data


def _receive(source: int, view: memoryview, until: float) -> None:
    """Fills a buffer from a pipe; raises _DiedError at its end, and with a reason when time is over."""
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    while view:
        left = until - time.monotonic()
        if left <= 0 or not waiting.poll(left * 1000):
            raise _DiedError(TOO_LONG)
        count = os.readv(source, [view])
        if not count:
            raise _DiedError
        view = view[count:]


def _stop_all() -> None:
    for worker in list(_started):
        worker.stop()


def _leave_all() -> None:
    """In a forked child: the processes are the parent's, and its pipes must not stay open here when it ends."""
    global _lock
    _lock = threading.Lock()
    for worker in list(_started):
        worker.leave()
    _idle.clear()
    _started.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_leave_all)


# --- the other process -----------------------------------------------------------------------------------------------


def _restrict(limits: Limits) -> None:
    """No more memory than now and `memory_bytes`; no core dump, since it would hold a patient's image; no file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    most = _private_bytes() + limits.memory_bytes
    # RLIMIT_DATA counts what is private and writable (Linux 4.7). RLIMIT_AS would count the libraries too, of which
    # SimpleITK alone maps 250 MB.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _private_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    except (OSError, StopIteration):
        return 0


@contextlib.contextmanager
def _timed(limits: Limits) -> Iterator[None]:
    """Lets the kernel end this process when time is over, also within a decoder that returns to Python never again."""
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answered(message: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[NDArray[Any]]]:
    module, _, name = message["function"].partition(":")
    try:
        value, arrays = getattr(importlib.import_module(module), name)(**message["arguments"])
    except DicomRefused as refused:
        return {"refused": [refused.reason, refused.attribute]}, []
    except MemoryError:
        return {"refused": ["reading it takes more memory than the limit"], "spent": True}, []
    except Exception as error:  # the boundary: whatever a file brings about is a refusal of that file
        return {"refused": [f"reading it failed ({type(error).__name__})"]}, []
    return {"value": value, "arrays": [[array.dtype.str, array.shape] for array in arrays]}, arrays


def _send(target: int, answer: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> None:
    text = json.dumps(answer).encode()
    parts = [memoryview(struct.pack("<I", len(text)) + text)]
    parts += [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]
    for part in parts:
        while part:
            part = part[os.write(target, part) :]


def _serve(questions: BinaryIO) -> None:
    """Answers each line. What a decoder prints goes to the error stream, not between the answers."""
    target = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(OSError, AttributeError):  # fewer switches between the processes, where there is such
        import fcntl

        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    limits = Limits(**json.loads(questions.readline() or b"{}"))
    hold(limits)
    enough = _private_bytes() + limits.memory_bytes // 4
    _restrict(limits)
    _send(target, {}, [])
    for line in questions:
        with _timed(limits):
            answer, arrays = _answered(json.loads(line))
        arrays = [np.ascontiguousarray(array) for array in arrays]
        kept = _private_bytes() - sum(array.nbytes for array in arrays) if arrays else 0
        _send(target, {"spent": kept > enough} | answer, arrays)  # what a decoder keeps the next file would lack
        del arrays


if __name__ == "__main__":
    # A parent that is gone reads no answer.
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer)
