# SPDX-License-Identifier: Apache-2.0
"""The report of an external validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import console

app = typer.Typer()


@app.command(
    epilog="Example: `cnnprimer report runs/aspen runs/birch runs/cedar --output report.html --internal aspen`"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories of one model, or zips of `pack`, one a site.", metavar="RUN..."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.", metavar="FILE.html")] = Path(
        "report.html"
    ),
    internal: Annotated[
        str | None, typer.Option(help="The site where the model comes from, to compare the others with.")
    ] = None,
    cases: Annotated[int, typer.Option(help="At most of each site in the gallery.", min=0)] = 50,
) -> None:
    """Writes one self-contained HTML file: flow of cases, figures with intervals, curves, subgroups, errors, limits.

    It opens without network, prints, and says in its first lines how the model did at each site. A site that did not
    finish is listed as such, and the exit code is 1.
    """
    from monai_cnnprimer.report.validation import write_report

    written = write_report(runs, output, internal, cases)
    for sentence in written.summary:
        console.print(sentence, highlight=False)
    console.print(f"Report  {written.path}", highlight=False)
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    raise typer.Exit(int(bool(written.unfinished)))
