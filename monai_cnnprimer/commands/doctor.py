# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from monai_cnnprimer.commands.console import console

app = typer.Typer()
MARKS = {"ok": "[green]ok[/green]", "note": "[cyan]note[/cyan]", "problem": "[red]problem[/red]"}


@app.command(epilog="Example: `cnnprimer doctor --output runs --tracking-uri http://127.0.0.1:5000`")
def doctor(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results are to go; for its space.")] = Path(),
    tracking_uri: Annotated[str | None, typer.Option(help="Server or database; else MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Looks whether this machine can do the work, and says for each problem what to do.

    Decodes a small image in every transfer syntax, checks versions, GPU, memory, disk, the weights' SHA-256, and
    whether MLflow answers. It changes nothing. A *note* needs no action. Exit code 0 when all is well, 1 when
    something is missing that matters.
    """
    from monai_cnnprimer.doctor import examine

    with console.status("looking"):
        checks = examine(output, tracking_uri)
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(MARKS[check.state], escape(check.what), escape(check.found))
    console.print(table, highlight=False)
    problems = [check for check in checks if check.state == "problem"]
    for check in problems:
        console.print(f"[red]{escape(check.what)}[/red]: {escape(check.remedy)}", highlight=False, soft_wrap=True)
    if not problems:
        console.print("All that matters is there.")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    raise typer.Exit(int(bool(problems)))
