# SPDX-License-Identifier: Apache-2.0
"""Exports: synthetic ones, and what any export holds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()
DAY = "%Y-%m-%d"


@app.command(epilog="Example: `cnnprimer phantom --output phantoms --cases 20 --sites 3 --seed 1`")
def phantom(
    output: Output,
    cases: Annotated[int, typer.Option(help="Frontal radiographs at each site.", min=1)] = 20,
    sites: Annotated[int, typer.Option(help="Number of sites; each exports as another vendor does.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 512,
    marker_correlation: Annotated[
        float, typer.Option(help="How far the side marker follows the label: 0 not at all, 1 always.", min=0, max=1)
    ] = 0.0,
) -> None:
    """Writes synthetic chest radiographs as the DICOM exports of several hospitals, with labels and exact truth.

    Leaves `sites/NAME/` or `sites/NAME.zip`, `labels/NAME.csv` and `truth/NAME/` in the output folder.
    """
    from monai_cnnprimer.phantom import write_export

    write_export(output, cases, sites=sites, seed=seed, size=size, marker_correlation=marker_correlation)
    console.print(f"{sites} sites with {cases} cases each are in [bold]{output}[/bold]; next: cnnprimer index")


@app.command(epilog="Example: `cnnprimer index export.zip --output indexed --labels labels.csv`")
def index(
    export: Annotated[str, typer.Argument(help="A folder, a DICOMDIR, a zip, or dicomweb://HOST:PORT/PATH.")],
    output: Output,
    site: Annotated[str, typer.Option(help="Pseudonym of the site.")] = "site",
    labels: Annotated[Path | None, typer.Option(help="CSV: AccessionNumber or another id, and label.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="Key of the pseudonyms; by default one kept for you.")] = None,
    any_view: Annotated[bool, typer.Option("--any-view", help="Accept laterals too, not only PA and AP.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read unchanged files again, and hash their bytes.")] = False,
    modality: Annotated[list[str] | None, typer.Option(help="From a PACS: modality; CR and DX by default.")] = None,
    since: Annotated[datetime | None, typer.Option(help="From a PACS: first day of study.", formats=[DAY])] = None,
    until: Annotated[datetime | None, typer.Option(help="From a PACS: last day of study.", formats=[DAY])] = None,
    patients: Annotated[Path | None, typer.Option(help="From a PACS: file with one PatientID a line.")] = None,
) -> None:
    """Says what an export holds, file by file: `manifest.csv` (accepted) and `refused.csv` (why not).

    From a PACS (`dicomweb://`, `dicomwebs://` for https) the images are first fetched to `fetched` in the output
    folder; given again, the command goes on where it stopped. The login comes from CNNPRIMER_DICOMWEB_USER and
    CNNPRIMER_DICOMWEB_PASSWORD, or CNNPRIMER_DICOMWEB_TOKEN, or netrc.

    Files that have not changed since an index into the same folder are not read again: their path, size, inode and
    times of change are as they were.

    Exit code 0 when anything was accepted, 1 when nothing was, or when some images could not be fetched.
    """
    from monai_cnnprimer.dicom.dicomweb import is_dicomweb
    from monai_cnnprimer.dicom.export import index_export

    failed = 0
    if is_dicomweb(export):
        failed = _fetch(export, output / "fetched", modality, since, until, patients, key_file)
    elif modality or since or until or patients:
        raise ValueError("--modality, --since, --until and --patients choose from a PACS; an export is taken whole")
    folder = output / "fetched" if is_dicomweb(export) else export
    views = None if any_view else ("PA", "AP")
    manifest = index_export(folder, site, key_file, views=views, labels=labels, output=output, verify=verify)
    for note in manifest.notes:
        console.print(note)
    table = Table("files", "reason", box=None)
    for reason, count in manifest.refused["reason"].value_counts().items():
        table.add_row(str(count), str(reason))
    console.print(f"accepted {len(manifest.accepted)}, refused {len(manifest.refused)}; tables are in {output}")
    if len(manifest.refused):
        console.print(table)
    raise typer.Exit(0 if len(manifest.accepted) and not failed else 1)


def _fetch(
    url: str,
    folder: Path,
    modalities: list[str] | None,
    since: datetime | None,
    until: datetime | None,
    patients: Path | None,
    key_file: Path | None,
) -> int:
    """Fetches what matches; how many images could not be had."""
    from monai_cnnprimer.dicom.dicomweb import MODALITIES, fetch

    lines = None if patients is None else patients.read_text(encoding="utf-8-sig").splitlines()
    fetched = fetch(
        url,
        folder,
        modalities=modalities or MODALITIES,
        since=since and since.date(),
        until=until and until.date(),
        patients=None if lines is None else [line.strip() for line in lines if line.strip()],
        key=key_file,
    )
    console.print(f"{fetched.matching} images match, {fetched.new} are new; they are in {folder}")
    if fetched.failed:
        console.print(f"{fetched.failed} could not be fetched: give the same command again")
    return fetched.failed
