# SPDX-License-Identifier: Apache-2.0
"""Searches everything below a folder for words that must not be there, in the encodings in which they could hide."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

SHORT = 8  # bytes; in a compressed image shorter words turn up by chance, so they are looked for in text only


def leaks(folder: Path, words: Iterable[str]) -> list[tuple[str, str]]:
    """Each file below `folder` that holds one of `words`, or is named by it: its path there, and the word.

    Plain text in any case, UTF-16 and 32, base64, hexadecimal digits; inside zips, npz and gz, text chunks of PNGs,
    base64 within other text, and cells of SQLite.
    """
    found = []
    patterns = [(word, list(_spellings(word))) for word in words]
    for file in sorted(path for path in folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        contents = [name.encode(), *(_unfolded(file.read_bytes()) if file.is_file() else [])]
        for word, spellings in patterns:
            if any(_holds(content, spellings) for content in contents):
                found.append((name, word))
    return found


def unkeyed_hashes(identifiers: Iterable[str]) -> list[str]:
    """What anyone can compute from an identifier, and so undo by trying all of them: the beginnings of its hashes."""
    return [
        hashlib.new(kind, text.encode()).hexdigest()[:16] for text in identifiers for kind in ("md5", "sha1", "sha256")
    ]


def _spellings(word: str) -> Iterator[bytes]:
    yield word.lower().encode()
    if len(word) >= SHORT:
        yield from (word.lower().encode(name) for name in ("utf-16-le", "utf-16-be", "utf-32-le"))  # NumPy: UTF-32
        yield word.encode().hex().encode()
        for shift in range(3):  # the letters of base64 that the word alone decides, at each place it can begin
            coded = base64.b64encode(b"\0" * shift + word.encode())
            whole = (shift + len(word)) * 8 // 6
            yield coded[-(-shift * 8 // 6) : whole].lower()


def _holds(content: bytes, spellings: list[bytes]) -> bool:
    lower = content.lower()
    is_text = b"\0" not in content[:4096]
    return any(spelling in lower for spelling in spellings if is_text or len(spelling) >= SHORT)


def _unfolded(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes of a file, and those of whatever is packed in it."""
    yield data
    if depth > 3:
        return
    inner: list[bytes] = []
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = [part for name in archive.namelist() for part in (name.encode(), archive.read(name))]
    elif data[:2] == b"\x1f\x8b":
        inner = [gzip.decompress(data)]
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        inner = list(_png_texts(data))
    elif data[:15] == b"SQLite format 3":
        inner = [_cells(data)]
    elif b"\0" not in data[:4096]:
        inner = [_decoded(run) for run in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", data)]
    for part in inner:
        yield from _unfolded(part, depth + 1)


def _png_texts(data: bytes) -> Iterator[bytes]:
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        if kind in (b"tEXt", b"eXIf"):
            yield content
        if kind in (b"zTXt", b"iTXt"):
            keyword, _, rest = content.partition(b"\0")
            packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
            is_packed = kind == b"zTXt" or rest[:1] == b"\1"
            yield keyword + b" " + (zlib.decompress(packed) if is_packed else packed)
        place += 12 + length


def _decoded(run: bytes) -> bytes:
    return base64.b64decode(run[: len(run) // 4 * 4])


def _cells(data: bytes) -> bytes:
    """All cells as text: a long one lies in several pages of the file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        connection = sqlite3.connect(f"file:{file.name}?mode=ro&immutable=1", uri=True)
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [str(row) for name in names for row in connection.execute(f'SELECT * FROM "{name}"')]
        connection.close()
    return "\n".join(rows).encode()
