# SPDX-License-Identifier: Apache-2.0
"""The secret with which identifiers become pseudonyms. It stays with the site."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def pseudonym_key(key: bytes | str | os.PathLike[str] | None = None) -> bytes:
    """The key itself, that of a key file, of ``CNNPRIMER_KEY``, or a random one that is made once and kept for a user.

    Args:
        key: bytes are the key; a path is that of a file that holds it. None takes the variable ``CNNPRIMER_KEY`` (the
            key as text), else the file ``cnnprimer/key`` in ``XDG_CONFIG_HOME`` or ``~/.config``.

    Raises:
        FileNotFoundError: there is no such key file.
        ValueError: the key is empty, or none can be kept.
    """
    if isinstance(key, bytes):
        return _not_empty(key)
    if key is not None:
        return _read(Path(key).expanduser())
    text = os.environ.get("CNNPRIMER_KEY")
    if text is not None:
        return _not_empty(text.encode("utf-8", "surrogateescape"))
    return _kept_key(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cnnprimer" / "key")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such key file; give bytes where the key itself is meant")
    return _not_empty(path.read_bytes().strip())


def _not_empty(key: bytes) -> bytes:
    if not key:
        raise ValueError("the key for pseudonyms is empty: anyone could undo them; give a long random one")
    return key


def _kept_key(path: Path) -> bytes:
    """Reads the key file; makes it first where there is none, complete or not at all, for its owner only."""
    if path.is_file():
        return _read(path)
    draft = path.with_name(f".key-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the key
            os.link(draft, path)
        draft.unlink()
    except OSError as error:
        raise ValueError(f"no key can be kept in {path.parent}: set CNNPRIMER_KEY or give a key") from error
    return _read(path)
