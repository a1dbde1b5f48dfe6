# SPDX-License-Identifier: Apache-2.0
"""Two runs over the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer compare runs/resnet50 runs/fpn --output compared --by sex`")
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run directory of the first model, A.", metavar="RUN_A")],
    run_b: Annotated[
        Path, typer.Argument(help="Run directory of the second, B; differences are B minus A.", metavar="RUN_B")
    ],
    output: Output,
    by: Annotated[str | None, typer.Option(help="Column by which figures are given too, such as sex.")] = None,
    bins: Annotated[str | None, typer.Option(help="Edges of a numeric column, such as 3,8,22; else quarters.")] = None,
    few: Annotated[int, typer.Option(help="A bin with fewer cases gets no figures.", min=1)] = 10,
    labels: Annotated[Path | None, typer.Option(help="CSV with the column of --by and an identifier.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="The export of both runs, for images of more cases.")] = None,
    masks: Annotated[Path | None, typer.Option(help="CSV of masks; with --dataset-dir, for all cases.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of A's bundle, if it is your own.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; by default the one kept for you.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Only the cases of both runs; the result says so.")] = False,
    layer_a: Annotated[str | None, typer.Option(help="Whose maps of A; else its last layer.")] = None,
    layer_b: Annotated[str | None, typer.Option(help="Whose maps of B; else its last layer.")] = None,
    name_a: Annotated[str | None, typer.Option(help="What A is called; else its bundle.")] = None,
    name_b: Annotated[str | None, typer.Option(help="What B is called; else its bundle.")] = None,
    images: Annotated[int, typer.Option(help="Cases a figure shows at most.", min=0, max=100)] = 12,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
) -> None:
    """Two runs over the same cases: paired differences, agreement, and whether the same answer has the same reason.

    Leaves `comparison.html`, `comparison.json`, `cases.csv`, `differences.csv` and `figures/` in the output folder;
    `cnnprimer sync` takes it to MLflow. Maps are compared where both runs were made with configs/explain.yaml.

    Exit code 0 when all was compared; 1 when something could not be (no labels, one class, no maps); 2 when the runs
    cannot be compared.
    """
    from monai_cnnprimer.report.comparison import write_page
    from monai_cnnprimer.validate.compare import Settings, compare_runs

    settings = Settings(
        by=by,
        edges=None if bins is None else _edges(bins),
        few=few,
        labels=labels,
        dataset_dir=dataset_dir,
        masks=masks,
        bundle=bundle,
        key=key_file,
        common=common,
        layers=(layer_a, layer_b),
        names=(name_a, name_b),
        images=images,
        seed=seed,
    )
    with console.status("comparing"):
        found = compare_runs(run_a, run_b, output, settings)
        page = write_page(output)
    for text in (*found.result["brand"], *found.result["notes"]):
        console.print(f"[bold]{text}[/bold]" if text in found.result["brand"] else text, highlight=False)
    for text in found.missing:
        console.print(f"[yellow]not compared:[/yellow] {text}", highlight=False)
    console.print(f"Open {page}")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    raise typer.Exit(1 if found.missing else 0)


def _edges(text: str) -> list[float]:
    try:
        return [float(edge) for edge in text.split(",")]
    except ValueError:
        raise ValueError(f"--bins {text!r}: give numbers with commas between, such as 3,8,22") from None
