# SPDX-License-Identifier: Apache-2.0
"""The small-finding benchmark from its protocol to the arms' scores; killed, it goes on from the last whole arm."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.training.arms import Arm, SharedArms, build_arm
from monai_cnnprimer.training.arms_data import Examples, lung_crops
from monai_cnnprimer.training.arms_plan import Plan, Setting, View, views
from monai_cnnprimer.training.arms_run import ask, train
from monai_cnnprimer.validate.findings.cases import FindingCases, simulated
from monai_cnnprimer.validate.findings.froc import Marks, judged, marks
from monai_cnnprimer.validate.findings.leak import leak_check
from monai_cnnprimer.validate.findings.normals import normals
from monai_cnnprimer.validate.findings.outside import read_findings
from monai_cnnprimer.validate.findings.scoring import Scores, locked, packed, unpacked

Tick = Callable[[str, float], None]
_WARM = 2.2  # cost of a step of all arms together, by that of one
_KEPT = 2**30  # bytes of examples that are held for the next arm
_TEST, _VALIDATION = 1_000_001, 1_000_002  # seeds of the test and validation cases, which no training has


class LeakFound(ValueError):
    """The images tell which of them has a finding without anybody looking."""


@dataclass(frozen=True)
class Run:
    """One training of the protocol."""

    setting: Setting
    arm: str
    seed: int

    @property
    def stem(self) -> str:
        """Of its files' names."""
        words = "".join(letter if letter.isalnum() else "-" for letter in self.setting.name)
        return f"{words}-{self.arm}-{self.seed}"


class Shown:
    """The images of a view: of training, validation and test, no patient in two of them.

    Args:
        plan: the protocol.
        view: what is shown.
        data: folder with real radiographs, where the sources ask for them.
        cache: folder that keeps the radiographs.

    Attributes:
        train: radiographs to draw nodules into.
        test: the cases of each contrast, and those read from outside, by name.

    Raises:
        ValueError: cases from outside are to be shown as crops around lungs, which are not known there.
    """

    def __init__(self, plan: Plan, view: View, data: str | Path | None, cache: Path) -> None:
        self.plan = plan
        self.view = view
        radiographs = normals(plan.sources, view.size, plan.radiographs, data=data, cache=cache)
        if view.crop is not None:
            radiographs = lung_crops(radiographs, view.crop)
        if view.crop is not None and plan.outside:
            raise ValueError(f"cases from outside ({', '.join(plan.outside)}) are shown whole: leave out crop")
        self.train = radiographs.only("train")
        self._validation = radiographs.only("validation")
        self.test = {
            name: simulated(radiographs.only("test"), plan.bins_mm, contrast, _TEST, plan.cases["test"])
            for name, contrast in plan.contrasts.items()
        } | {name: read_findings(path, view.size) for name, path in plan.outside.items()}
        self._examples: dict[tuple[str, int], Examples] = {}
        self._locking: dict[str, FindingCases] = {}

    def validation(self, contrast: str) -> FindingCases:
        """Validation cases, with findings of the largest bin only: they lock the threshold and are the gate."""
        plan = self.plan
        if contrast not in self._locking:
            self._locking[contrast] = simulated(
                self._validation, plan.bins_mm[-2:], plan.contrasts[contrast], _VALIDATION, plan.cases["validation"]
            )
        return self._locking[contrast]

    def examples(self, contrast: str, seed: int) -> Examples:
        """What the arms of a seed are taught with; made once, unless it would fill the memory."""
        plan = self.plan
        if (contrast, seed) not in self._examples:
            keep = 3 * plan.steps * _work(self.view, plan) <= _KEPT
            made = Examples(
                self.train, plan.steps, plan.batch_size, plan.bins_mm, plan.contrasts[contrast], 2 * seed, keep
            )
            self._examples = {(contrast, seed): made}
        return self._examples[contrast, seed]


class Experiment:
    """A protocol carried out in a folder.

    Writes `protocol.json`, `leak.json`, `cases/` (a table for each view and contrast), `warm/` (what all arms of a seed
    start from) and `arms/` (of each training a `.npz` for each contrast, then a `.json`, which says that it is whole).
    The same protocol gives the same bytes on the same machine with the same number of threads.

    Args:
        plan: the protocol.
        output: the folder; made if missing.
        data: folder with real radiographs, where the protocol's sources ask for them.
        device: where to compute.
        tick: called with what is being done and its share of the whole work, as it is done.

    Raises:
        ValueError: the folder holds another protocol.
    """

    def __init__(
        self, plan: Plan, output: str | Path, data: str | Path | None, device: torch.device, tick: Tick
    ) -> None:
        self.plan = plan
        self.folder = Path(output).expanduser()
        self.data = data
        self.device = device
        self.tick = tick
        self._views: dict[View, Shown] = {}
        held = self.folder / "protocol.json"
        if held.is_file() and json.loads(held.read_text())["sha256"] != plan.sha256:
            raise ValueError(
                f"{self.folder.name} holds the arms of another protocol; name another output folder, or delete it"
            )
        write_atomically(held, _json({"sha256": plan.sha256, **asdict(plan)}))

    def runs(self) -> list[Run]:
        """All trainings, in the order in which they share what they are taught with."""
        by_view = sorted(self.plan.settings, key=lambda setting: views(self.plan).index(setting.view))
        return [Run(setting, arm, seed) for seed in self.plan.seeds for setting in by_view for arm in self.plan.arms]

    def missing(self) -> list[Run]:
        """Trainings that are not whole yet."""
        return [run for run in self.runs() if not self._record(run).is_file()]

    def execute(self) -> None:
        """Checks for leaks, then trains and scores every arm that is missing.

        Raises:
            LeakFound: before anything is trained.
        """
        self.check_leaks()
        for run in self.missing():
            self._execute(run)

    def check_leaks(self) -> dict[str, Any]:
        """The leak check of every test set, kept in `leak.json`; also writes the tables of cases.

        Raises:
            LeakFound: a figure that no finding has a right to change tells the label.
        """
        path = self.folder / "leak.json"
        if not path.is_file():
            found = {}
            for view in views(self.plan):
                for name, cases in self.shown(view).test.items():
                    write_atomically(self.table(view, name), _csv(cases.table))
                    write_atomically(self.table(view, f"{name}-refused"), _csv(cases.refused))
                    if name in self.plan.contrasts:
                        found[f"{view}, {name}"] = leak_check(cases)
            write_atomically(path, _json(found))
        found = json.loads(path.read_text())
        leaks = {name: one["why"] for name, one in found.items() if one["verdict"] == "leaks"}
        if leaks:
            name, why = next(iter(leaks.items()))
            raise LeakFound(f"{name}: {why[0]}: the images tell the label by themselves, so nothing is trained on them")
        return found

    def table(self, view: View, contrast: str) -> Path:
        """Where the table of a test set stands."""
        return self.folder / "cases" / f"{view.size}-{view.pixels}-{contrast}.csv"

    def shown(self, view: View) -> Shown:
        """The images of a view, made when first asked for."""
        if view not in self._views:
            self._views[view] = Shown(self.plan, view, self.data, self.folder / "cache")
        return self._views[view]

    def scores(self, setting: Setting, contrast: str) -> list[Scores]:
        """What all arms of a setting made of the test cases of a contrast."""
        return [
            unpacked(self._scores(run, contrast), run.arm, run.seed) for run in self.runs() if run.setting == setting
        ]

    def _execute(self, run: Run) -> None:
        plan, shown = self.plan, self.shown(run.setting.view)
        arm = self._warm(run)
        label = f"{run.arm}, seed {run.seed}, {run.setting.name}"
        examples = shown.examples(run.setting.contrast, run.seed)
        on_step = self._on_step(label, _work(run.setting.view, plan))
        losses = train(arm, examples, run.setting.supervision, plan.optimisation, self.device, on_step)
        validation = shown.validation(run.setting.contrast)
        lock = locked(validation.table["label"].to_numpy(), self._asked(arm, validation.images)[0], plan.threshold)
        for contrast, cases in shown.test.items():
            logit, found = self._asked(arm, cases.images, cases.table["mm_per_px"].to_numpy())
            tolerance = plan.tolerance_mm / cases.table["mm_per_px"].to_numpy()
            marked = judged(found, cases.masks, cases.table["label"].to_numpy(), tolerance)
            scores = Scores(run.arm, run.seed, lock, logit, marked)
            write_atomically(self._scores(run, contrast), packed(scores))
        record = {"arm": run.arm, "seed": run.seed, "setting": run.setting.name, **asdict(lock), "losses": losses}
        write_atomically(self._record(run), _json(record))

    def _asked(
        self, arm: Arm, images: NDArray[np.float32], mm_per_px: NDArray[np.floating] | None = None
    ) -> tuple[NDArray[np.float32], list[Marks]]:
        """Log-odds of images, and the marks of each where its pixels' size is given."""
        logits: list[NDArray[np.float32]] = []
        found: list[Marks] = []
        for answer in ask(arm, images, self.device, self.plan.optimisation.bfloat16):
            logits.append(answer.logit)
            for place in range(len(answer.logit) if mm_per_px is not None else 0):
                assert mm_per_px is not None
                apart = self.plan.apart_mm / mm_per_px[len(found)]
                found.append(marks({name: cells[place] for name, cells in answer.maps.items()}, arm.strides, apart))
        return np.concatenate(logits), found

    def _warm(self, run: Run) -> Arm:
        """The arm as the warm-up that all arms of its seed share left it."""
        path = self.folder / "warm" / f"{run.seed}.pt"
        if not path.is_file():
            self._warm_up(run.seed, path)
        arm = build_arm(run.arm, run.seed, self.plan.width)
        arm.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)[run.arm])
        return arm

    def _warm_up(self, seed: int, path: Path) -> None:
        plan, warm = self.plan, self.plan.warm_up
        arms = SharedArms([build_arm(name, seed, plan.width, plan.initial_weights) for name in plan.arms])
        examples = Examples(
            self.shown(warm.view).train,
            warm.steps,
            plan.batch_size,
            plan.bins_mm,
            plan.contrasts[warm.contrast],
            2 * seed + 1,
        )
        on_step = self._on_step(f"warm-up, seed {seed}", _WARM * _work(warm.view, plan))
        optimisation = replace(plan.optimisation, learning_rate=warm.learning_rate)
        train(arms, examples, "masks", optimisation, self.device, on_step)
        buffer = io.BytesIO()
        torch.save({name: arm.state_dict() for name, arm in arms.cpu().arms.items()}, buffer)
        write_atomically(path, buffer.getvalue())

    def work(self) -> float:
        """How much there is to do, in the unit that `tick` is told in."""
        plan, missing = self.plan, self.missing()
        cold = {run.seed for run in missing if not (self.folder / "warm" / f"{run.seed}.pt").is_file()}
        warming = len(cold) * plan.warm_up.steps * _WARM * _work(plan.warm_up.view, plan)
        return warming + sum(plan.steps * _work(run.setting.view, plan) for run in missing)

    def _on_step(self, label: str, work: float) -> Callable[[], None]:
        return lambda: self.tick(label, work)

    def _record(self, run: Run) -> Path:
        return self.folder / "arms" / f"{run.stem}.json"

    def _scores(self, run: Run, contrast: str) -> Path:
        return self.folder / "arms" / f"{run.stem}-{contrast}.npz"


def _work(view: View, plan: Plan) -> float:
    """Of one step of one arm."""
    return float(plan.batch_size * view.pixels**2)


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
