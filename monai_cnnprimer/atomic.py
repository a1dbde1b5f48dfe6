# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or not there, and folders that one process at a time writes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

_LOCK_SECONDS = 10  # the loader's processes outlive a killed run by up to five, and hold its lock
_LOCKED: dict[Path, int] = {}
_log = logging.getLogger(__name__)


class FolderBusy(ValueError):
    """Another process is writing this folder."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is complete or not there, whenever the process ends; text as UTF-8."""
    with telling_a_full_disk():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)


@contextmanager
def telling_a_full_disk() -> Iterator[None]:
    """Says what to do where the system only says that there is no space left."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            "the disk of the output folder is full; free some space and give the same command again: it goes on from "
            "the predictions it has, or give another output folder",
        ) from error


def lock(folder: Path) -> None:
    """Keeps other processes from locking the folder, until it is unlocked or this process ends, however that is.

    Raises:
        FolderBusy: another process holds it, also after ten seconds.
    """
    if folder.resolve() in _LOCKED:
        return
    descriptor, until = os.open(folder, os.O_RDONLY), monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if monotonic() > until:
                os.close(descriptor)
                raise FolderBusy(
                    "another process is writing this output folder: wait until it has ended, or give another folder"
                ) from None
            sleep(0.2)
        except OSError as error:  # some network file systems keep no locks
            _log.warning("%s: the output folder cannot be locked; let no second process write it", error.strerror)
            break
    _LOCKED[folder.resolve()] = descriptor


def unlock(folder: Path) -> None:
    """Lets others have the folder again; nothing happens where it is not locked."""
    descriptor = _LOCKED.pop(folder.resolve(), None)
    if descriptor is not None:
        with suppress(OSError):  # said already where the file system keeps no locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
