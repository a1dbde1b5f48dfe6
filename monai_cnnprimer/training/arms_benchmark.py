# SPDX-License-Identifier: Apache-2.0
"""The small-finding benchmark as one call: train what is missing, analyse everything, write the result."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_cnnprimer.networks.cost import cost_table
from monai_cnnprimer.run_directory import write_atomically
from monai_cnnprimer.training.arms import build_arm
from monai_cnnprimer.training.arms_experiment import Experiment, Tick
from monai_cnnprimer.training.arms_plan import Plan, Setting, read_plan, views
from monai_cnnprimer.validate.findings.analysis import analyse
from monai_cnnprimer.validate.findings.result import Compared, write_result
from monai_cnnprimer.validate.findings.scoring import taken


def run_benchmark(
    config: str | Path,
    protocol: str,
    output: str | Path,
    data: str | Path | None = None,
    console: Console | None = None,
) -> int:
    """Carries a protocol out in a folder, and writes what came of it.

    Args:
        config: file with the protocol.
        protocol: its name there.
        output: folder; what is whole there is not done again.
        data: folder with real radiographs, where the protocol's sources ask for them.
        console: where the progress is shown; None shows none.

    Returns:
        0; 1 where an arm did not pass the gate.

    Raises:
        FileNotFoundError: no such configuration, or no such radiographs.
        LeakFound: the images tell the label by themselves; nothing was trained.
        ValueError: the protocol cannot be, or the folder holds another one.
    """
    plan = read_plan(config, protocol)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    command = f"cnnprimer findings --config {Path(config).name} --protocol {protocol} --output DIR"
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None, speed_estimate_period=300) as progress:
        task = progress.add_task("radiographs and leak check", total=None)
        experiment = Experiment(plan, output, data, device, _told(progress, task, console))
        experiment.check_leaks()
        progress.update(task, total=experiment.work())
        experiment.execute()
        progress.update(task, description="analysis")
        results = [one for setting in plan.settings for one in compared(experiment, setting)]
        costs = {view.pixels: costs_of(plan, view.pixels, experiment.folder) for view in views(plan)}
        leaks = {name: one["verdict"] for name, one in experiment.check_leaks().items()}
        about = {"about": plan.about, "protocol": protocol, "sha256": plan.sha256, "command": command, "leaks": leaks}
        sentence = write_result(experiment.folder, about, results, costs, plan.rules.margin)
    failed = [(one, gate) for one in results for gate in one.analysis["gate"] if not gate["passed"]]
    if console is not None:
        console.print(sentence)
        for one, gate in failed:
            console.print(f"{gate['arm']}, {one.name}: not compared, AUROC {gate['auroc']:.3f} in the largest bin")
    return 1 if failed else 0


def _told(progress: Progress, task: TaskID, console: Console | None) -> Tick:
    """Moves the bar; where there is none, as in a log, writes a line for each training."""
    told: list[str] = []

    def tick(name: str, work: float) -> None:
        progress.update(task, advance=work, description=name)
        if console is not None and not console.is_terminal and name not in told[-1:]:
            told.append(name)
            done = progress.tasks[task]
            console.print(f"{done.percentage:.0f} %, {done.elapsed or 0:.0f} s: {name}", highlight=False)

    return tick


def compared(experiment: Experiment, setting: Setting) -> list[Compared]:
    """The analysis of a setting on every test set, and of each source where there are several."""
    plan, found = experiment.plan, []
    for cases in (*plan.contrasts, *plan.outside):
        table = pd.read_csv(experiment.table(setting.view, cases), dtype={"patient_key": str})
        scores = experiment.scores(setting, cases)
        found.append(Compared(setting.name, cases, setting.view.pixels, analyse(table, scores, plan.rules)))
        sources = table["source"].unique()
        for source in sources if len(sources) > 1 else []:
            chosen = (table["source"] == source).to_numpy()
            of_source = [taken(one, chosen) for one in scores]
            analysis = analyse(table[chosen].reset_index(drop=True), of_source, plan.rules)
            found.append(Compared(setting.name, f"{cases}, {source}", setting.view.pixels, analysis))
    return found


def costs_of(plan: Plan, pixels: int, folder: Path) -> pd.DataFrame:
    """What each arm costs on an input of so many pixels; kept in `cost-PIXELS.csv`, since times differ at each call."""
    path = folder / f"cost-{pixels}.csv"
    if not path.is_file():
        networks = {name: build_arm(name, 0, plan.width).network for name in plan.arms}
        table = cost_table(networks, pixels, rounds=5)
        write_atomically(path, str(table.to_csv(index=False, lineterminator="\n", float_format="%.6g")))
    return pd.read_csv(path)
