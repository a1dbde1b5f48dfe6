# SPDX-License-Identifier: Apache-2.0
"""What a decoder may do to its process, done in earnest; called through `isolation.call` by the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

import numpy as np

Answer = tuple[Any, list[np.ndarray]]
calls = 0


def echo(value: Any) -> Answer:
    print("a library that talks")
    return value, []


def ramp(shape: list[int], dtype: str) -> Answer:
    return "ramp", [np.arange(np.prod(shape)).reshape(shape).astype(dtype), np.empty((0, 3), bool)]


def process() -> Answer:
    """Its number, what it has imported, and the limits that the kernel knows."""
    import resource

    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)]
    return {"pid": os.getpid(), "modules": sorted(sys.modules), "limits": limits}, []


def read_null() -> Answer:
    """SIGSEGV, as from a decoder that runs over its buffer."""
    return ctypes.string_at(0), []


def abort() -> Answer:
    """SIGABRT, as from an assertion or an exception that C++ does not catch."""
    os.abort()


def leave() -> Answer:
    os._exit(3)


def spin() -> Answer:
    """Computes for ever, in C, where no signal handler of Python runs."""
    return sum(range(10**14)), []


def wait() -> Answer:
    """Waits for ever, with the interpreter's lock held."""
    return ctypes.PyDLL(None).pause(), []


def allocate(most: int) -> Answer:
    """Takes and touches memory a MiB at a time; what it got is lost in the MemoryError."""
    taken = [np.ones(1 << 20, np.uint8) for _ in range(most >> 20)]
    return len(taken), []


def fail() -> Answer:
    return 1 // 0, []


def crash_unless_fresh() -> Answer:
    """As a process does whose memory an earlier file has spoilt."""
    global calls
    calls += 1
    if calls > 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return os.getpid(), []
