# SPDX-License-Identifier: Apache-2.0
"""Which sizes of finding a network can hold, before a study is begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

if TYPE_CHECKING:
    from monai_cnnprimer.validate.findings.cases import Contrast
    from monai_cnnprimer.validate.preflight.check import Preflight

app = typer.Typer()


@app.command(epilog="Example: `cnnprimer preflight --bundle B --spacing 0.168 --finding-mm 3,6,10,20 -o preflight`")
def preflight(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")],
    output: Output,
    finding_mm: Annotated[str, typer.Option(help="Diameters on the patient, in mm.")] = "3,6,10,20",
    spacing: Annotated[float | None, typer.Option(help="Pixel spacing of the radiographs, in mm.")] = None,
    longer_px: Annotated[int, typer.Option(help="Pixels of their longer side, with --spacing.", min=1)] = 2500,
    export: Annotated[Path | None, typer.Option(help="A PACS export, for the spacings that a site really has.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels of the network's input; else the bundle's.", min=32)
    ] = None,
    contrast: Annotated[
        str, typer.Option(help="Peak contrasts in nepers; physical: soft tissue in place of lung, small is also faint.")
    ] = "physical,0.2,0.4,0.8",
    source: Annotated[str, typer.Option(help="Radiographs to insert into: phantom, kermany or nih.")] = "phantom",
    normals: Annotated[int, typer.Option(help="How many of them.", min=20)] = 60,
    data: Annotated[Path | None, typer.Option(help="Folder with kermany/ and nih/, for real ones.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer to measure; else the maps that the head reads.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of nodules and receptive fields.", min=0)] = 0,
) -> None:
    """Will this network at this resolution hold a nodule of 6 mm?

    First the geometry: mm of a pixel at the network's input, and of each map that its head reads the stride and how far
    a unit looks. Then the experiment, which decides: nodules of each size and contrast are put into normal radiographs,
    and the network is asked with and without. Leaves `preflight.json`, `preflight.csv` and `preflight.png`.

    A network that was taught another finding need not react to nodules at all: the curve says so.
    """
    if (spacing is None) == (export is None):
        raise ValueError("give either --spacing, the mm of a pixel, or --export, to take the spacings of its images")
    from monai_cnnprimer.validate.audit.bundle import AuditedBundle
    from monai_cnnprimer.validate.preflight import check, scales

    sizes = [_number(word, "--finding-mm") for word in finding_mm.split(",")]
    contrasts: list[Contrast] = [
        "physical" if word == "physical" else _number(word, "--contrast") for word in contrast.split(",")
    ]
    settings = {"dataset_dir": str(export or output), "output_dir": str(output)}
    model = AuditedBundle(bundle, None, settings | ({} if image_size is None else {"image_size": image_size}))
    unknown = 0
    if export is None:
        spacings = [scales.spacing_of_input(spacing or 0.0, longer_px, model.image_size)]
    else:
        spacings, unknown = scales.spacings_of_export(model.index().accepted, model.image_size)
    with console.status("asking the network"):
        found = check.preflight(
            model, model.image_size, spacings, sizes, contrasts,
            source=source, count=normals, data=data, layers=layer, seed=seed,
        )  # fmt: skip
    if export is None:
        found.notes.append(f"the longer side was taken as {longer_px} pixels, {spacings[0] * model.image_size:.0f} mm")
    elif unknown:
        found.notes.append(f"{unknown} images of the export state no spacing and do not count")
    check.write_preflight(found, output)
    _show(found)
    console.print(f"Read {output / 'preflight.json'} and look at {output / 'preflight.png'}")


def _number(word: str, option: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{option}: {word!r} is not a number above 0; give numbers with commas between them")
    return value


def _show(found: Preflight) -> None:
    from rich.table import Table

    console.print(f"{found.bundle['bundle']} at {found.image_size} px: {found.mm_per_px:.2f} mm a pixel of the input")
    table = Table("map", "stride, mm", "half of the field, mm", "95 % of it, mm", "theoretical, mm", title="geometry")
    for scale in found.layers:
        table.add_row(
            scale.layer, f"{scale.stride_mm:.1f}", f"{scale.erf50_mm:.0f}", f"{scale.erf95_mm:.0f}",
            f"{scale.theoretical_mm:.0f}{' (cut by the edge)' if scale.clipped else ''}",
        )  # fmt: skip
    console.print(table)
    names = list(dict.fromkeys(one.contrast for one in found.detected))
    table = Table("mm", "pixels", *names, title="AUROC of a nodule by its peak contrast")
    for mm in dict.fromkeys(one.mm for one in found.detected):
        row = {one.contrast: one for one in found.detected if one.mm == mm}
        cells = [
            one.verdict if one.auroc is None else f"{one.auroc:.2f} ({one.low:.2f}-{one.high:.2f}) {one.verdict}"
            for one in (row[name] for name in names)
        ]
        table.add_row(f"{mm:g}", f"{next(iter(row.values())).px:.1f}", *cells)
    console.print(table)
    for note in found.notes:
        console.print(f"[dim]{note}[/dim]")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
