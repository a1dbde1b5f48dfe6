# SPDX-License-Identifier: Apache-2.0
"""The main job on synthetic data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


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
