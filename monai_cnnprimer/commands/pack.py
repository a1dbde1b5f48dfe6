# SPDX-License-Identifier: Apache-2.0
"""What a site may send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import console

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer pack validation/north --output north.zip`")
def pack(
    run: Annotated[Path, typer.Argument(help="A complete run directory.", metavar="RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip.")],
    image_hashes: Annotated[
        bool, typer.Option("--image-hashes", help="Send keyed hashes of the images too, to find copies at two sites.")
    ] = False,
) -> None:
    """Writes the folder that a site may send: the run's tables, no image, no patient data.

    A scanner looks through every table first, and nothing is written when anything looks like a name, a date, an id,
    a UID or a path. A name without `^` looks like other words and is not found: look at the zip before you send it.
    It can be merged and reported as any run, without unpacking. Keyed hashes of images stay with you unless you send
    them: they find an image that stands at two sites of one key; who has very many of them could learn to read them as
    coarse outlines.
    """
    from monai_cnnprimer.validate.pack import pack_run
    from monai_cnnprimer.validate.runs import read_run

    packed = pack_run(read_run(run), output, image_hashes)
    console.print(f"{output}: {', '.join(packed.files)}", markup=False)
    if packed.left_out:
        console.print(f"left out: {', '.join(packed.left_out)}", markup=False)
