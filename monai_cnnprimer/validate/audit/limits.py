# SPDX-License-Identifier: Apache-2.0
"""The gate's limits, from `configs/gate.yaml` or a file of the same form."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_cnnprimer.explain.shortcuts import INTERVENTIONS

DEFAULT = (Path(__file__).parents[2] / "configs" / "gate.yaml").resolve()  # in a checkout a link to configs/
_ENTRIES = ("patients_needed", "level", "must_not_matter", "may_matter")


@dataclass(frozen=True)
class Limit:
    """What an intervention may do at most; what the entries mean stands in `configs/gate.yaml`."""

    shift: float
    flips: float
    above_control: bool = False
    may_be_missing: bool = False


@dataclass(frozen=True)
class Gate:
    """All limits.

    Attributes:
        limits: of the interventions that must not matter, by name.
        may_matter: the others that are made.
        patients_needed: fewer, and nothing is decided.
        level: chance, over all limits together, that a model within them fails.
        sha256: of the file.
    """

    limits: Mapping[str, Limit]
    may_matter: tuple[str, ...]
    patients_needed: int
    level: float
    sha256: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All interventions that are made, in the order of the limits, then the others."""
        return (*self.limits, *self.may_matter)


def read_gate(file: str | os.PathLike[str] | None = None) -> Gate:
    """Reads the limits.

    Args:
        file: YAML; None takes the default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML of this form, names no known intervention, or has a limit that cannot be.
    """
    path = DEFAULT if file is None else Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of limits; configs/gate.yaml is the example")
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {str(error).splitlines()[-1].strip()}") from None
    if not isinstance(stated, dict) or sorted(stated) != sorted(_ENTRIES):
        raise ValueError(f"{path.name}: exactly these entries are expected: {', '.join(_ENTRIES)}")
    limits = {
        str(name): _limit(path.name, str(name), entry) for name, entry in (stated["must_not_matter"] or {}).items()
    }
    others = tuple(str(name) for name in stated["may_matter"] or ())
    if strangers := [name for name in (*limits, *others) if name not in INTERVENTIONS]:
        raise ValueError(f"{path.name}: no intervention {', '.join(strangers)}; known are {', '.join(INTERVENTIONS)}")
    if not limits or len({*limits, *others}) < len(limits) + len(others):
        raise ValueError(f"{path.name}: at least one limit, and no intervention twice")
    needed, level = stated["patients_needed"], stated["level"]
    if not isinstance(needed, int) or needed < 2 or not isinstance(level, float) or not 0 < level < 0.5:
        raise ValueError(f"{path.name}: patients_needed must be 2 or more, level between 0 and 0.5")
    return Gate(limits, others, needed, level, hashlib.sha256(path.read_bytes()).hexdigest())


def _limit(file: str, name: str, entry: Any) -> Limit:
    try:
        limit = Limit(**entry)
        right = limit.shift > 0 and 0 < limit.flips <= 1
    except TypeError:
        right = False
    if not right:
        raise ValueError(f"{file}, {name}: give shift above 0 and flips above 0, such as {{shift: 0.25, flips: 0.1}}")
    if limit.above_control and name in INTERVENTIONS and not INTERVENTIONS[name].control:
        raise ValueError(f"{file}, {name}: above_control, but this intervention has no control")
    return limit
