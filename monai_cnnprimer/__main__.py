# SPDX-License-Identifier: Apache-2.0
"""The command `cnnprimer`. What is heavy is imported by the command that uses it, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Chest radiographs from a PACS export to predictions, Grad-CAM and MLflow, with MONAI. "
    "Research use only, not for clinical use.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")]


@app.command(epilog="Example: `cnnprimer phantom --output phantoms --cases 20 --sites 3 --seed 1`")
def phantom(
    output: Output,
    cases: Annotated[int, typer.Option(help="Frontal radiographs at each site.", min=1)] = 20,
    sites: Annotated[int, typer.Option(help="Number of sites; each exports as another vendor does.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 512,
    marker_correlation: Annotated[
        float, typer.Option(help="How far the side marker follows the label: 0 not at all, 1 always.", min=0, max=1)
    ] = 0.0,
) -> None:
    """Writes synthetic chest radiographs as the DICOM exports of several hospitals, with labels and exact truth.

    Leaves `sites/NAME/` or `sites/NAME.zip`, `labels/NAME.csv` and `truth/NAME/` in the output folder.
    """
    from monai_cnnprimer.phantom import write_export

    write_export(output, cases, sites=sites, seed=seed, size=size, marker_correlation=marker_correlation)
    console.print(f"{sites} sites with {cases} cases each are in [bold]{output}[/bold]; next: cnnprimer index")


@app.command(epilog="Example: `cnnprimer index export.zip --output indexed --labels labels.csv`")
def index(
    export: Annotated[Path, typer.Argument(help="A folder, a DICOMDIR or a zip.", metavar="EXPORT")],
    output: Output,
    site: Annotated[str, typer.Option(help="Pseudonym of the site.")] = "site",
    labels: Annotated[Path | None, typer.Option(help="CSV: AccessionNumber or another id, and label.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="Key of the pseudonyms; by default one kept for you.")] = None,
    any_view: Annotated[bool, typer.Option("--any-view", help="Accept laterals too, not only PA and AP.")] = False,
) -> None:
    """Says what an export holds, file by file: `manifest.csv` (accepted) and `refused.csv` (why not).

    Exit code 0 when anything was accepted, 1 when nothing was.
    """
    from monai_cnnprimer.dicom.export import index_export

    views = None if any_view else ("PA", "AP")
    manifest = index_export(export, site, key_file, views=views, labels=labels, output=output)
    for note in manifest.notes:
        console.print(note)
    table = Table("files", "reason", box=None)
    for reason, count in manifest.refused["reason"].value_counts().items():
        table.add_row(str(count), str(reason))
    console.print(f"accepted {len(manifest.accepted)}, refused {len(manifest.refused)}; tables are in {output}")
    if len(manifest.refused):
        console.print(table)
    raise typer.Exit(0 if len(manifest.accepted) else 1)


@app.command(epilog="Example: `cnnprimer sync runs/hospital-1 --tracking-uri http://127.0.0.1:5000`")
def sync(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN", exists=True, file_okay=False)],
    tracking_uri: Annotated[str | None, typer.Option(help="Server or database; else MLFLOW_TRACKING_URI.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Name of the MLflow experiment.")] = None,
) -> None:
    """Uploads a run directory to MLflow, once: what was uploaded before is left alone.

    Exit code 0 when the run is in MLflow, 2 when it cannot be uploaded; then try again later.
    """
    from monai_cnnprimer.validate.mlflow_store import TrackingFailed
    from monai_cnnprimer.validate.tracking import sync as upload

    try:
        console.print(f"MLflow run {upload(run, tracking_uri, experiment)}")
    except TrackingFailed as error:
        raise OSError(str(error)) from error


@app.command(
    epilog="Example: `cnnprimer demo --output demo`, then `mlflow ui --backend-store-uri sqlite:///demo/mlflow.db`"
)
def demo(
    output: Output = Path("demo"),
    cases: Annotated[int, typer.Option(help="Cases at each of the three sites.", min=2)] = 20,
    seed: Annotated[int, typer.Option(help="Of the phantoms.")] = 0,
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "chest_xray_resnet50",
) -> None:
    """The main job on synthetic data: three hospitals' exports, one bundle, Grad-CAM, MLflow, one table.

    The AUROC is what the bundle really gets on phantoms it never saw, for the finding *consolidation*.
    """
    from monai_cnnprimer.demo import run_demo

    raise typer.Exit(run_demo(output, cases, seed, bundle, console))


@app.command(epilog="Example: `cnnprimer primer --output primer --image radiograph.dcm`")
def primer(
    output: Output,
    image: Annotated[Path | None, typer.Option(help="A radiograph (DICOM, PNG, JPEG); else a phantom.")] = None,
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "chest_xray_resnet50",
    pretrained: Annotated[Path | None, typer.Option(help="Weights that the bundle's training started from.")] = None,
    seed: Annotated[int, typer.Option(help="Of phantoms, noise and random weights.", min=0)] = 0,
) -> None:
    """Every claim of the primer as a measurement with a verdict: `primer.html`, `verdicts.csv`, `verdicts.md`."""
    from monai_cnnprimer.report.primer import write_primer

    console.print(f"Open {write_primer(output, image, bundle, pretrained, seed, console)}")
    console.print("[bold]Research use only, not for clinical use.[/bold]")


def main() -> None:
    """Runs the command; an error that a person can mend is one line and exit code 2, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
