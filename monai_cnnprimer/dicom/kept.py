# SPDX-License-Identifier: Apache-2.0
"""Rows of an earlier index, killed or whole, for the files that have not changed since: read once, not twice.

A file counts as unchanged while its path, size, time of change, inode and time of the inode's own change are the same;
the last cannot be set by copying tools or by hand. What is kept holds keyed hashes and the manifest's own columns, no
patient data and no path, and each line carries a keyed hash of itself: a line that is torn or forged is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import pydicom

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.dicom.files import Source
from monai_cnnprimer.dicom.limits import in_force
from monai_cnnprimer.dicom.rows import Row, keyed_hash

NAMES = ".index-*.jsonl"
SEAL = 32  # hexadecimal digits of a line's own hash


class KeptRows:
    """Rows by file. Within a ``with`` block, rows that are added are written at once, so that a kill leaves them.

    Args:
        folder: where they are kept, beside the manifest; nothing is kept when None.
        key: of the pseudonyms.
        setting: what a row follows from beside the file. Another export, key, setting, limit or version of this package
            or pydicom has another file.
        trusted: give the rows that are there; False to look at every file again.
    """

    def __init__(self, folder: Path | None, key: bytes, setting: Sequence[Any], *, trusted: bool = True) -> None:
        self._key = key
        self._lines: dict[str, str] = {}
        self._used: dict[str, str] = {}
        self._open = ExitStack()
        self._file: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            about = json.dumps([*setting, asdict(in_force()), _code(), pydicom.__version__])
            self._file = folder / f".index-{keyed_hash(key, about, 16)}.jsonl"
            self._lines = self._read(self._file) if trusted else {}

    def __enter__(self) -> KeptRows:
        self._appended = self._open.enter_context(open(self._file or os.devnull, "a", encoding="ascii"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def find(self, source: Source) -> Row | None:
        """The row of a file that is as it was when the row was made."""
        mark = self._mark(source)
        line = self._lines.get(mark)
        if line is None:
            return None
        self._used[mark] = line
        row: Row = json.loads(line[SEAL:])[1]
        return row

    def add(self, source: Source, row: Row) -> None:
        """Keeps a row, but not that of a file that could not be read to its end: it is tried again the next time."""
        if self._file is None or not row["sha256"] or row["reason"].startswith("cannot be read"):
            return
        mark = self._mark(source)
        text = json.dumps([mark, row])
        self._used[mark] = keyed_hash(self._key, text, SEAL) + text
        self._appended.write("\n" + self._used[mark])  # the line break first: the last line may be torn by a kill
        self._appended.flush()

    def tidy(self) -> None:
        """Drops, after a whole index, the rows of files that are gone or changed, and those of other settings."""
        if self._file is None:
            return
        for other in self._file.parent.glob(NAMES):
            if other != self._file:
                other.unlink(missing_ok=True)
        lines = self._file.read_text(encoding="ascii", errors="replace").splitlines()
        if sorted(filter(None, lines)) != sorted(self._used.values()):
            write_atomically(self._file, "".join(f"\n{line}" for line in self._used.values()))

    def _mark(self, source: Source) -> str:
        try:
            status = os.stat(source.path)
            inode = f"{status.st_ino} {status.st_ctime_ns}"
        except OSError:  # a member of an archive: `state` tells the archive's time of change, and the member's checksum
            inode = ""
        return keyed_hash(self._key, f"{source.name}\0{source.path}\0{source.size} {source.state} {inode}", SEAL)

    def _read(self, file: Path) -> dict[str, str]:
        if not file.exists():
            return {}
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
        sound = (line for line in lines if line[:SEAL] == keyed_hash(self._key, line[SEAL:], SEAL))
        return {line[SEAL + 2 : 2 * SEAL + 2]: line for line in sound}  # the mark stands first, after '["'


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of the code that makes rows, so that none outlives a change of it."""
    return sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
