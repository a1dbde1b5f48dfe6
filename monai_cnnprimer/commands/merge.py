# SPDX-License-Identifier: Apache-2.0
"""Run directories as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer merge validation/north validation/south --output pooled`")
def merge(
    runs: Annotated[
        list[Path], typer.Argument(help="Complete run directories, or zips of `pack`, one a site.", metavar="RUN...")
    ],
    output: Output,
) -> None:
    """Pools the tables of several sites into one run directory, with pooled figures and `sites.csv`; no image is read.

    Refuses runs of different weights, preprocessing or threshold, runs that were tuned to their site, a case that
    stands in two of them, and folders that are half written or were changed by hand.
    """
    from monai_cnnprimer.validate.merge import merge_runs
    from monai_cnnprimer.validate.runs import read_run
    from monai_cnnprimer.validate.site_table import printed_sites, site_row, site_table

    read = [read_run(run) for run in runs]
    for note in merge_runs(read, output):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    rows = [site_row(run.site, run.path, "complete") for run in read] + [site_row("merged", output, "complete")]
    console.print(printed_sites(site_table(rows)))
    console.print(f"The merged run is in {output}; pooled figures say little where sites differ", markup=False)
