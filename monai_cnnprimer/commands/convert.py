# SPDX-License-Identifier: Apache-2.0
"""A bundle's network for other runtimes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


class Format(StrEnum):
    """What can be written."""

    onnx = "onnx"
    program = "program"
    torchscript = "torchscript"


@app.command(epilog="Example: `cnnprimer convert --bundle chest_xray_fpn --output exported --format onnx`")
def convert(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")],
    output: Output,
    form: Annotated[
        Format, typer.Option("--format", help="ONNX; program: torch.export; TorchScript is deprecated by PyTorch.")
    ] = Format.onnx,
    images: Annotated[
        Path | None, typer.Option(help="An export or a folder of images to compare on; else phantoms.")
    ] = None,
    count: Annotated[int, typer.Option(help="At most so many of them.", min=1)] = 8,
    operating_point: Annotated[Path | None, typer.Option(help="Of `cnnprimer lock`; else the bundle's own.")] = None,
) -> None:
    """Writes the network as one file that runs without this package, and measures that it says the same.

    The file takes any number of images of any size from 33 pixels a side; preprocessing and threshold are not in it.
    Beside it `FILE.json` has the largest difference of a logit from the bundle's, at two image sizes and two batch
    sizes, the hashes of weights, preprocessing and operating point, and versions. ONNX needs the extra `onnx`.

    Exit code 0; 1 when a logit differs by more than 0.0001 or an image is called otherwise; 2: nothing was written.
    """
    from monai_cnnprimer.validate.converted import convert_bundle

    with console.status("exporting and comparing"):
        record = convert_bundle(bundle, form.value, output, images, count, operating_point)
    _show(record, output)
    raise typer.Exit(int(not record["comparison"]["passed"]))


def _show(record: dict[str, Any], output: Path) -> None:
    from rich.table import Table

    compared = record["comparison"]
    table = Table("images", "size", "batch", "largest difference of a logit", "called otherwise", box=None)
    for row in compared["runs"]:
        size = f"{row['height']} x {row['width']}"
        difference, otherwise = f"{row['largest_logit_difference']:.1e}", str(row["called_otherwise"])
        table.add_row(str(row["n"]), size, str(row["batch_size"]), difference, otherwise)
    console.print(table)
    verdict = "[green]the same as the bundle[/green]" if compared["passed"] else "[red]not the same as the bundle[/red]"
    console.print(f"{verdict} within {compared['limit']:g}; images compared on: {compared['images']}")
    console.print(f"Read {output / (record['file'] + '.json')}", markup=False)
    console.print("[bold]Research use only, not for clinical use.[/bold]")
