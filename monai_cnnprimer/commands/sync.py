# SPDX-License-Identifier: Apache-2.0
"""A run directory to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import console

app = typer.Typer()


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
