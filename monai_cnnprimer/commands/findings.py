# SPDX-License-Identifier: Apache-2.0
"""The small-finding benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer findings --config configs/small_findings.yaml --output findings`")
def findings(
    config: Annotated[Path, typer.Option(help="File with the protocol, such as configs/small_findings.yaml.")],
    output: Output,
    protocol: Annotated[str, typer.Option(help="Which protocol of the file.")] = "reduced",
    data: Annotated[
        Path | None, typer.Option(help="Folder with kermany/ and nih/, where a protocol asks for them.")
    ] = None,
) -> None:
    """Do networks that keep resolution see small nodules that a pooled ResNet-50 loses?

    Trains six architectures alike on nodules of known size, and compares them by size: `result.md`, `result.json`,
    `result.csv`, `pairs.csv`, `figures/`. Killed, it goes on from its last whole arm when the same command is given
    again. Exit code 1: an arm did not learn enough to be compared.
    """
    from monai_cnnprimer.training.arms_benchmark import run_benchmark

    code = run_benchmark(config, protocol, output, data, console)
    console.print(f"Read {output / 'result.md'}")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    raise typer.Exit(code)
