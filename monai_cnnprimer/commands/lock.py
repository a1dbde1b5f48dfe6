# SPDX-License-Identifier: Apache-2.0
"""The operating point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import console

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer lock validation/internal --specificity 0.90`")
def lock(
    run: Annotated[Path, typer.Argument(help="A complete run directory with labels.", metavar="RUN")],
    specificity: Annotated[float | None, typer.Option(help="At least this, on these cases.")] = None,
    sensitivity: Annotated[float | None, typer.Option(help="At least this, on these cases.")] = None,
    youden: Annotated[bool, typer.Option("--youden", help="Youden's index, averaged over resampled patients.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("operating_point.json"),
) -> None:
    """Chooses a threshold on one site's labelled cases and freezes it, with the hashes of what it belongs to.

    `cnnprimer validate --operating-point FILE` carries it to other sites, and refuses other weights or another
    preprocessing. The site it is locked at cannot be validated with it: what it gives there is optimistic.
    """
    from monai_cnnprimer.validate.operating_point import lock as lock_run
    from monai_cnnprimer.validate.operating_point import write_operating_point
    from monai_cnnprimer.validate.runs import read_run

    wanted = {"specificity": specificity, "sensitivity": sensitivity}
    criteria = [f"{name}={share:g}" for name, share in wanted.items() if share is not None] + ["youden"] * youden
    if len(criteria) != 1:
        raise ValueError("give one of --specificity S, --sensitivity S and --youden")
    point = lock_run(read_run(run), criteria[0])
    write_operating_point(point, output)
    console.print(f"{point['id']}: threshold {point['threshold']:.4f}, in {output}")
    console.print(f"chosen on {point['n']} labelled cases of {point['patients']} patients at {point['site']}")
    for name in wanted:
        share = point[name]
        interval = f"{share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f}), {share['k']} of {share['n']}"
        console.print(f"{name} there {interval}", highlight=False)
