# SPDX-License-Identifier: Apache-2.0
"""What lies in an export: every file of a folder, of a DICOMDIR, of a zip, or of a table of images.

Nothing is opened here but lists: zip directories and a DICOMDIR, in isolation, and a ``manifest.csv``. What must not
be opened at all, such as a pipe or a link that leads out of the export, is listed with the reason.
"""

from __future__ import annotations

import csv
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from monai_cnnprimer.dicom import isolation
from monai_cnnprimer.dicom.attributes import PARSE_ERRORS, DicomRefused, quiet
from monai_cnnprimer.dicom.limits import GIB, in_force
from monai_cnnprimer.dicom.unusual import read_unusual

LARGE_MEMBER = 1 << 26  # bytes; a smaller one may unpack as far as it likes, and an all-black image does


@dataclass(frozen=True)
class Source:
    """One file of an export.

    Attributes:
        path: as `open_source` takes it; a member of a zip is ``archive.zip/member``.
        name: the path within the export, with ``/``.
        size: bytes.
        state: size and time of change of the file, or of the archive it is a member of; and which member.
        refusal: why the file must not be opened, or "".
    """

    path: str
    name: str
    size: int = 0
    state: str = ""
    refusal: str = ""


def list_sources(
    export: Path, names: Iterable[str] | None = None, leave_out: frozenset[Path] = frozenset()
) -> list[Source]:
    """Every file of an export, sorted by name.

    Args:
        export: a folder, a file named DICOMDIR, a zip, or a single file; resolved.
        names: look at these files of the folder only.
        leave_out: files and folders that are ours, not the export's.

    Raises:
        ValueError: the DICOMDIR cannot be read.
    """
    if names is not None:
        found: Iterable[Source] = _referenced(export, names)
    elif export.is_dir():
        found = _in_folder(export, leave_out)
    elif not export.is_file():
        found = [_source(export.parent, export.name)]
    elif export.name.upper() == "DICOMDIR":
        found = _referenced(export.parent, _as_on_disk(export.parent, _directory_records(export)))
    elif _is_archive(export.name) or _starts_as_archive(export):
        found = _in_archive(export, "")
    else:
        found = [_source(export.parent, export.name)]
    return sorted(found, key=lambda source: (name_bytes(source.name), source.refusal))


def name_bytes(name: str) -> bytes:
    """A file's name as bytes, also where the name is not valid UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def normal_name(name: str) -> str:
    """A path as a person may write it, ``./a//b``, as the walk through the folder names it, ``a/b``."""
    return PurePosixPath(name).as_posix()


def image_table(folder: Path) -> list[dict[str, str]] | None:
    """The rows of ``manifest.csv`` in a folder of plain images; None without such a file or without a column ``path``.

    Raises:
        ValueError: the file is there and cannot be read as a table.
    """
    table = folder / "manifest.csv"
    if not table.is_file():
        return None
    columns, rows = read_csv(table)
    if "path" not in columns:
        return None
    return [row | {"path": normal_name(row["path"])} for row in rows if row["path"]]


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file, all text, stripped; cells that are not there are "".

    Raises:
        ValueError: the file is not UTF-8 text or not a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = [(column or "").strip() for column in reader.fieldnames or []]
            cells = [[row.get(field) or "" for field in reader.fieldnames or []] for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} is not a CSV table in UTF-8: save it again as 'CSV UTF-8'") from error
    return columns, [dict(zip(columns, (cell.strip() for cell in row), strict=True)) for row in cells]


def _in_folder(root: Path, leave_out: frozenset[Path]) -> Iterator[Source]:
    """Files of a folder and its subfolders; links to folders are not followed."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError:
            yield Source("", folder, refusal="a folder that cannot be opened (permission, or a failing disk)")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if root / name in leave_out:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif _is_archive(name) and entry.is_file(follow_symlinks=False):
                yield from _in_archive(root / name, name)
            else:
                yield _source(root, name) if entry.is_symlink() else _regular(f"{root}/{name}", name)


def _source(root: Path, name: str) -> Source:
    """A file by its name within `root`, refused where it is not a file, is missing, or lies elsewhere."""
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle; ValueError: a null byte in a name
        missing = "a symbolic link that leads nowhere" if os.path.islink(root / name) else "listed, but not there"
        return Source("", name, refusal=missing)
    if not path.is_relative_to(root):
        return Source("", name, refusal="a symbolic link that leads out of the export")
    return _regular(str(path), name)


def _regular(path: str, name: str) -> Source:
    """What is no link and lies within the export, refused where it is something else than a file."""
    try:
        status = os.stat(path)
    except OSError:
        return Source("", name, refusal="listed, but not there")
    if stat.S_ISDIR(status.st_mode):
        return Source("", name, refusal="a link or a reference to a folder, which is not followed")
    if not stat.S_ISREG(status.st_mode):
        return Source("", name, refusal="not a file but a pipe, a socket or a device")
    if status.st_size > in_force().file_bytes:
        return Source("", name, refusal=_too_large())
    return Source(path, name, status.st_size, _state(status))


def _too_large() -> str:
    return f"larger than any radiograph (over {in_force().file_bytes / GIB:g} GiB)"


def _state(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def has_changed(source: Source) -> bool:
    """Whether the file, or the archive that it is a member of, is another one than when it was listed, or is gone."""
    path = source.path
    while True:
        try:
            return " ".join(source.state.split()[:2]) != _state(os.stat(path))
        except NotADirectoryError:  # a member of an archive
            path = os.path.dirname(path)
        except OSError:
            return True


def _referenced(root: Path, names: Iterable[str]) -> Iterator[Source]:
    """The files that a list names, each once."""
    for name in dict.fromkeys(names):
        if _leads_out(name):
            yield Source("", name, refusal="a reference that leads out of the export")
        else:
            yield _source(root, name)


def _as_on_disk(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Names of a DICOMDIR, which are in upper case; mounted media and copies of them often show lower case."""
    if all(os.path.lexists(root / name) for name in names):
        yield from names
        return
    alike: dict[str, list[str]] = {}
    for folder, _, files in os.walk(root):
        for file in files:
            found = Path(folder, file).relative_to(root).as_posix()
            alike.setdefault(found.casefold(), []).append(found)
    for name in names:
        candidates = alike.get(name.casefold(), [])
        yield candidates[0] if len(candidates) == 1 else name


def _directory_records(path: Path) -> list[str]:
    """The files that a DICOMDIR refers to; it is read in isolation, whatever it may hold."""
    try:
        names: list[str] = isolation.call(f"{__name__}:directory_records", {"path": os.fspath(path)})[0]
    except DicomRefused as error:
        raise ValueError("the DICOMDIR cannot be read: give its folder, and every file is looked at") from error
    return names


def directory_records(path: str) -> tuple[list[str], list[NDArray[Any]]]:
    """The files that a DICOMDIR refers to (PS3.3, F.3.2.2), records out of use left aside; see `isolation.call`."""
    try:
        with quiet(), open(path, "rb") as file:
            records = read_unusual(file)["DirectoryRecordSequence"].value
            in_use = [record for record in records if record.get("RecordInUseFlag", 0xFFFF) != 0]
            identifiers = [record.get("ReferencedFileID") for record in in_use]
            return ["/".join([part] if isinstance(part, str) else map(str, part)) for part in identifiers if part], []
    except MemoryError:
        raise
    except PARSE_ERRORS:
        raise DicomRefused("a damaged DICOMDIR", "DirectoryRecordSequence") from None


def _is_archive(name: str) -> bool:
    return name.lower().endswith(".zip")


def _starts_as_archive(path: Path) -> bool:
    # Not zipfile.is_zipfile, which looks at the end: a DICOM file with a zip behind it is a DICOM file.
    with path.open("rb") as file:
        start = file.read(132)
    return start[:4] in (b"PK\3\4", b"PK\5\6") and start[128:] != b"DICM"


def _leads_out(name: str) -> bool:
    """Whether a name is absolute or climbs, on this system or on another one."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or re.match("[A-Za-z]:", name) is not None


def _in_archive(path: Path, name: str) -> Iterator[Source]:
    """The members of a zip; `name` is the archive's own within the export, "" for an archive that is the export."""
    try:
        state = _state(path.stat())
        members = isolation.call(f"{__name__}:archive_members", {"path": os.fspath(path)})[0]
    except (OSError, DicomRefused) as error:
        damaged = "a zip archive that is damaged or cannot be opened"
        yield Source("", name or path.name, refusal=error.reason if isinstance(error, DicomRefused) else damaged)
        return
    for member, size, mark, refusal in members:
        yield Source(f"{path}/{member}", f"{name}/{member}" if name else member, size, f"{state} {mark}", refusal)


def archive_members(path: str) -> tuple[list[tuple[str, int, str, str]], list[NDArray[Any]]]:
    """Of each member of a zip its name, size, mark, and why it must not be opened; see `isolation.call`.

    Raises:
        DicomRefused: the archive is damaged, or is one made to fill a disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):  # ValueError: names that are not text
        raise DicomRefused("a zip archive that is damaged or cannot be opened") from None
    if len(members) > in_force().zip_members or sum(member.file_size for member in members) > in_force().zip_bytes:
        raise DicomRefused("a zip archive that unpacks to more than any export holds")
    if sum(member.compress_size for member in members) > os.path.getsize(path):
        raise DicomRefused("a zip archive whose members overlap, as those made to fill a disk")
    last = {normal_name(member.filename): member for member in members}  # the one that opens by this name
    found = []
    for member in members:
        hidden = member is not last[normal_name(member.filename)]
        refusal = "replaced by a later member of the same name" if hidden else _why_not_opened(member)
        found.append((member.filename, member.file_size, f"{member.CRC} {member.header_offset}", refusal))
    return found, []


def _why_not_opened(member: zipfile.ZipInfo) -> str:
    if _leads_out(member.filename):
        return "a name that leads out of the zip archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a symbolic link in a zip archive, which is not followed"
    if member.flag_bits & 0x1:
        return "encrypted in the zip archive: unpack it with its password first"
    if _is_archive(member.filename):
        return "a zip archive within a zip archive: unpack it first"
    if member.file_size > in_force().file_bytes:
        return _too_large()
    if member.file_size > max(LARGE_MEMBER, in_force().zip_ratio * member.compress_size):
        return "packed tighter than any radiograph can be"
    return ""
