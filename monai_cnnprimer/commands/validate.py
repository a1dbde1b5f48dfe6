# SPDX-License-Identifier: Apache-2.0
"""One bundle at many sites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monai_cnnprimer.commands.console import console

if TYPE_CHECKING:
    from monai_cnnprimer.validate.validation import Validated

app = typer.Typer()


@app.command(
    epilog="Examples: `cnnprimer validate configs/sites.yaml`; `cnnprimer validate --bundle chest_xray_resnet50 "
    "--output validation --site north=north.zip --labels north=north.csv --site south=/exports/south`"
)
def validate(
    plan: Annotated[Path | None, typer.Argument(help="YAML of the sites; else give --site.", metavar="SITES")] = None,
    bundle: Annotated[str | None, typer.Option(help="Name or folder of the bundle.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for all results.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=EXPORT; once for each site.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="NAME=CSV; labels of a site.")] = None,
    operating_point: Annotated[Path | None, typer.Option(help="Of `cnnprimer lock`; else the bundle's own.")] = None,
    retune: Annotated[
        str | None,
        typer.Option(
            help="youden, specificity=S or sensitivity=S: each site chooses its own threshold, and is branded."
        ),
    ] = None,
    internal: Annotated[
        str | None, typer.Option(help="The site that the model comes from; the report compares the others with it.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Sites at once; else one for two processors.", min=1)] = None,
    experiment: Annotated[str | None, typer.Option(help="Name of the MLflow experiment.")] = None,
) -> None:
    """Runs one locked model at many sites: a process and a run directory each, one table, one report, MLflow.

    The threshold is the locked one, and nothing starts when weights or preprocessing are not those that it was locked
    with. A site that fails, is killed or runs out of memory is told, and the others finish; the same command again
    takes up only what is missing. MLflow: the store of MLFLOW_TRACKING_URI, else mlflow.db here; if it is dead,
    `cnnprimer sync OUTPUT` uploads later. Exit code 0 when every site is complete, 1 when one is not or a case stands
    at two sites, 2 when nothing could be started.
    """
    from monai_cnnprimer.report.validation import write_report
    from monai_cnnprimer.validate.locked_model import locked_model
    from monai_cnnprimer.validate.sites import Plan, named_sites, read_plan
    from monai_cnnprimer.validate.validation import validate_sites

    if (plan is None) == (not site):
        raise ValueError("give either a YAML of the sites or --site NAME=EXPORT for each")
    if plan is not None and labels:
        raise ValueError("labels of sites in a YAML stand there: `labels:` in the site's entry")
    stated = read_plan(plan) if plan is not None else Plan(named_sites(site or [], labels or []))
    folder = output or stated.output
    if folder is None:
        raise ValueError("give a folder for the results: --output DIR")
    home = internal or stated.internal
    if home not in (None, *(one.name for one in stated.sites)):
        raise ValueError(f"--internal {home} is none of the sites")

    def report(runs: Sequence[Path], file: Path) -> object:
        return write_report(runs, file, home if home in {run.name for run in runs} else None)

    name = bundle or stated.bundle or "chest_xray_resnet50"
    model = locked_model(name, operating_point or stated.operating_point, retune, stated.settings)
    validated = validate_sites(
        model,
        stated.sites,
        folder,
        jobs=jobs,
        experiment=experiment or stated.experiment,
        report=report,
        console=console,
    )
    _show(validated, folder)
    raise typer.Exit(int(not validated.passed))


def _show(validated: Validated, folder: Path) -> None:
    from monai_cnnprimer.validate.site_table import printed_sites

    for note in validated.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for result in validated.results:
        if result.status != "complete":
            told = f"{result.site.name}: {result.status}, {result.reason}. {result.detail} ({result.directory}.log)"
            console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(printed_sites(validated.table))
    console.print(f"Report {folder / 'report.html'}; sites.csv and the run directories are beside it", markup=False)
    console.print("[bold]Research use only, not for clinical use.[/bold]")
