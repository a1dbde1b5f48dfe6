# SPDX-License-Identifier: Apache-2.0
"""What reading one file may cost. Radiographs stay far below each limit; hostile files are made to pass all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields

__all__ = ["Limits", "hold", "in_force", "limited", "limits_of"]

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """The limits, each with its unit. The largest radiographs have 5000 x 6000 pixels of 16 bits, 60 MB.

    Attributes:
        file_bytes: size of a file, or of a member of a zip archive when unpacked.
        pixels: Rows x Columns.
        inflated_bytes: what the data set of a deflated file, or a compressed NIfTI file, may unpack to.
        nesting: sequences within sequences.
        memory_bytes: what reading a file in another process may take beyond the process itself.
        seconds: processor time for one file there. It does not run while the machine is busy with something else, so
            that a slow machine refuses the same files as a fast one.
        wall_seconds: time by the clock for one file there, for what waits: a disk that does not answer.
        zip_members: files in one zip archive.
        zip_bytes: what a zip archive may unpack to as a whole.
        zip_ratio: how far one large member may unpack; deflate reaches 1032 on nothing but zeros, radiographs 2 to 10.

    Raises:
        ValueError: a limit that is not a positive number.

    Example:
        >>> Limits(seconds=60).seconds, Limits().memory_bytes == 2 * GIB
        (60, True)
        >>> Limits(pixels=0)
        Traceback (most recent call last):
        ValueError: the limit pixels must be a positive number
    """

    file_bytes: int = GIB
    pixels: int = 1 << 27
    inflated_bytes: int = GIB // 4
    nesting: int = 32
    memory_bytes: int = 2 * GIB
    seconds: float = 30
    wall_seconds: float = 180
    zip_members: int = 1_000_000
    zip_bytes: int = 1 << 40
    zip_ratio: int = 200

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"the limit {name} must be a positive number")


_in_force: ContextVar[Limits] = ContextVar("limits", default=Limits())  # noqa: B039 - it is frozen


def in_force() -> Limits:
    """The limits that hold now: the defaults, or those of the `limited` block around."""
    return _in_force.get()


def hold(limits: Limits) -> None:
    """Lets other limits hold from here on, for a process that reads files and does nothing else."""
    _in_force.set(limits)


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Lets other limits hold within a ``with`` block, in this thread.

    Example:
        >>> with limited(Limits(seconds=60)):
        ...     in_force().seconds
        60
    """
    token = _in_force.set(limits)
    try:
        yield
    finally:
        _in_force.reset(token)


def limits_of(given: Limits | Mapping[str, float] | None) -> Limits:
    """Limits from limits, from those that differ from the defaults by name, or the ones in force.

    Raises:
        ValueError: a name that is no limit.

    Example:
        >>> limits_of({"seconds": 60}) == Limits(seconds=60)
        True
    """
    if given is None or isinstance(given, Limits):
        return given or in_force()
    names = [field.name for field in fields(Limits)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"no such limit: {', '.join(unknown)}; there are {', '.join(names)}")
    return Limits(**given)  # type: ignore[arg-type] # one type for all values of a mapping
