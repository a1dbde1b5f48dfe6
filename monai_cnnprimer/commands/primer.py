# SPDX-License-Identifier: Apache-2.0
"""The primer, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


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
