# SPDX-License-Identifier: Apache-2.0
"""The protocol of the small-finding benchmark, as it stands in a configuration file, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from monai_cnnprimer.training.arms import READS
from monai_cnnprimer.training.arms_loss import SUPERVISIONS
from monai_cnnprimer.training.arms_run import Optimisation
from monai_cnnprimer.validate.findings.cases import Contrast
from monai_cnnprimer.validate.findings.verdict import Rules

FEWEST_STEPS = 8  # under which the one-cycle schedule has no way up
Made = TypeVar("Made")


@dataclass(frozen=True)
class View:
    """What a network is shown: a radiograph of `size` pixels, or crops of `crop` pixels around each of its lungs."""

    size: int
    crop: int | None = None

    @property
    def pixels(self) -> int:
        """Rows and columns of the input."""
        return self.crop or self.size

    def __str__(self) -> str:
        return f"{self.size} px" if self.crop is None else f"{self.crop} px of {self.size} px"


@dataclass(frozen=True)
class Setting:
    """One row of the experiment: all arms on one view under one supervision.

    Attributes:
        name: in tables, figures and file names.
        view: what the networks are shown.
        supervision: `image` or `masks`.
        contrast: name of the contrast that is trained on.
    """

    name: str
    view: View
    supervision: str
    contrast: str


@dataclass(frozen=True)
class WarmUp:
    """The training that all arms of a seed share before their own; see `SharedArms`."""

    view: View
    contrast: str
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Plan:
    """The protocol; every field is explained in `configs/small_findings.yaml`."""

    about: str
    arms: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    width: float
    initial_weights: str | None
    sources: tuple[str, ...]
    radiographs: int
    bins_mm: tuple[float, ...]
    contrasts: Mapping[str, Contrast]
    outside: Mapping[str, str]
    warm_up: WarmUp
    settings: tuple[Setting, ...]
    steps: int
    batch_size: int
    optimisation: Optimisation
    cases: Mapping[str, int]
    threshold: str
    tolerance_mm: float
    apart_mm: float
    rules: Rules

    @property
    def sha256(self) -> str:
        """Of everything that the results depend on; equal for equal protocols."""
        known = {name: value for name, value in asdict(self).items() if name != "about"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def trainings(self) -> int:
        """How many arms are trained."""
        return len(self.arms) * len(self.seeds) * len(self.settings)


def read_plan(config: str | Path, name: str) -> Plan:
    """The protocol `name` of a configuration file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such protocol; says which entry is missing, unknown or cannot be.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path.name}; configs/small_findings.yaml comes with the source")
    everything = yaml.safe_load(path.read_text(encoding="utf-8"))  # knows `<<: *other`, which MONAI's reader does not
    if name not in everything:
        raise ValueError(f"{path.name} has no protocol {name!r}; it has {', '.join(everything)}")
    entries = dict(everything[name])
    entries["pairs"] = tuple(tuple(pair) for pair in entries.get("pairs", ()))
    for key in ("arms", "seeds", "sources", "bins_mm"):
        if key in entries:
            entries[key] = tuple(entries[key])
    entries["warm_up"] = _with_view(WarmUp, entries.get("warm_up", {}), "warm_up")
    entries["settings"] = tuple(_with_view(Setting, row, "settings") for row in entries.get("settings", ()))
    entries["optimisation"] = _make(Optimisation, entries.get("optimisation", {}), "optimisation")
    entries["rules"] = _make(Rules, {**entries.get("rules", {}), "pairs": entries["pairs"]}, "rules")
    return _checked(_make(Plan, entries, name))


def _make(kind: type[Made], entries: Mapping[str, Any], where: str) -> Made:
    """A dataclass from entries of which none is missing or unknown."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(entries) - known), sorted(known - set(entries))
    if unknown or missing:
        told = f"unknown {', '.join(unknown)}" if unknown else f"{', '.join(missing)} missing"
        raise ValueError(f"{where}: {told}; it has {', '.join(sorted(known))}")
    return kind(**entries)


def _with_view(kind: type[Made], entries: Mapping[str, Any], where: str) -> Made:
    """A row whose `size` and `crop` are its view; without `crop` the whole radiograph is shown."""
    row = dict(entries)
    if "size" not in row:
        raise ValueError(f"{where}: size missing, the pixels of the radiograph")
    return _make(kind, {"view": View(row.pop("size"), row.pop("crop", None)), **row}, where)


def _checked(plan: Plan) -> Plan:
    unknown = [name for name in plan.arms if name not in READS]
    asked = {setting.contrast for setting in plan.settings} | {plan.warm_up.contrast}
    faults = {
        f"unknown arms {', '.join(unknown)}; there are {', '.join(READS)}": bool(unknown),
        "arms, seeds, settings and pairs must each have an entry, and none twice": not all(
            values and len(set(values)) == len(values)
            for values in (plan.arms, plan.seeds, [setting.name for setting in plan.settings], plan.pairs)
        ),
        "pairs are (arm, reference), two different arms of this protocol": not all(
            len(pair) == 2 and pair[0] != pair[1] and set(pair) <= set(plan.arms) for pair in plan.pairs
        ),
        f"contrast {', '.join(sorted(asked - set(plan.contrasts)))} is asked for but not among contrasts": bool(
            asked - set(plan.contrasts)
        ),
        f"supervision must be one of {', '.join(SUPERVISIONS)}": any(
            setting.supervision not in SUPERVISIONS for setting in plan.settings
        ),
        f"steps must be {FEWEST_STEPS} or more": min(plan.steps, plan.warm_up.steps) < FEWEST_STEPS,
        "cases needs numbers of validation and test": set(plan.cases) != {"validation", "test"},
        "an input of fewer than 64 pixels": min(view.pixels for view in views(plan)) < 64,
    }
    wrong = [told for told, fault in faults.items() if fault]
    if wrong:
        raise ValueError("; ".join(wrong))
    return plan


def views(plan: Plan) -> Sequence[View]:
    """Every view that a protocol shows, each once, in order."""
    return list(dict.fromkeys([plan.warm_up.view, *(setting.view for setting in plan.settings)]))
