# SPDX-License-Identifier: Apache-2.0
"""The command `cnnprimer`. What is heavy is imported by the command that uses it, so that `--help` answers at once."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from monai_cnnprimer import __version__
from monai_cnnprimer.commands import (
    audit,
    compare,
    convert,
    demo,
    doctor,
    exports,
    findings,
    lock,
    merge,
    pack,
    preflight,
    primer,
    report,
    sync,
    validate,
)

app = typer.Typer(
    help="Chest radiographs from a PACS export to predictions, Grad-CAM and MLflow, with MONAI. "
    "Research use only, not for clinical use.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (
    demo,
    exports,
    validate,
    lock,
    report,
    compare,
    audit,
    findings,
    preflight,
    convert,
    merge,
    pack,
    sync,
    primer,
    doctor,
):
    app.add_typer(command.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cnnprimer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Runs the command; an error that a person can mend is one line and exit code 2, not a traceback."""
    # MONAI tells, when it is imported, that a decoder for NVIDIA GPUs is missing; nothing here uses it.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
