# SPDX-License-Identifier: Apache-2.0
"""Exports: synthetic ones, and what any export holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


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
