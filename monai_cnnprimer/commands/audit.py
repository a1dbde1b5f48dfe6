# SPDX-License-Identifier: Apache-2.0
"""The shortcut gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monai_cnnprimer.commands.console import Output, console

app = typer.Typer()


@app.command(
    epilog="Examples: `cnnprimer audit EXPORT --bundle chest_xray_resnet50 --labels labels.csv --output audit`; "
    "`cnnprimer audit RUN --dataset-dir EXPORT --bundle chest_xray_resnet50 --output audit`"
)
def audit(
    source: Annotated[
        Path, typer.Argument(help="An export (folder, DICOMDIR, zip), or a run directory.", metavar="RUN|EXPORT")
    ],
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")],
    output: Output,
    dataset_dir: Annotated[Path | None, typer.Option(help="The export, where a run directory is audited.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV of labels; without it no AUROC.")] = None,
    masks: Annotated[Path | None, typer.Option(help="CSV of masks; without it nothing is covered.")] = None,
    gate: Annotated[Path | None, typer.Option(help="YAML of limits; else configs/gate.yaml.")] = None,
    operating_point: Annotated[Path | None, typer.Option(help="Of `cnnprimer lock`; else the bundle's own.")] = None,
    site: Annotated[str, typer.Option(help="Pseudonym of the site; a run directory has its own.")] = "site",
    split: Annotated[str | None, typer.Option(help="Only these rows of a folder's manifest.csv, such as test.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; by default the one kept for you.")
    ] = None,
    cases: Annotated[int, typer.Option(help="At most so many, whole patients by the seed; 0 takes all.", min=0)] = 200,
    explained: Annotated[int, typer.Option(help="Cases with masks that Grad-CAM is measured on.", min=0)] = 24,
    drawn: Annotated[int, typer.Option(help="Cases drawn of each intervention.", min=1, max=12)] = 2,
    seed: Annotated[int, typer.Option(help="Of interventions, choice of cases and bootstrap.", min=0)] = 0,
) -> None:
    """Does the model lean on a marker, a tube, a border or exposure? It is asked by changing them.

    Each case is changed in about twenty ways, each beside a control that changes as much elsewhere, and the change of
    the model's logit is held against declared limits. Leaves `gate.json`, `gate.html`, `gate_cases.csv` and `figures/`
    in the output folder; `cnnprimer sync` takes it to MLflow with the tag `gate.shortcut`, and the verdict enters an
    audited run directory too.

    Exit code 0: within all limits; 3: a limit is exceeded; 4: not enough cases to tell; 2: nothing could be audited.
    """
    from monai_cnnprimer.report.gate import write_page
    from monai_cnnprimer.validate.audit import EXIT_CODES, Settings
    from monai_cnnprimer.validate.audit import audit as audit_bundle

    settings = Settings(
        dataset_dir=dataset_dir,
        labels=labels,
        masks=masks,
        site=site,
        split=split,
        key=key_file,
        gate=gate,
        operating_point=operating_point,
        cases=cases,
        explained=explained,
        drawn=drawn,
        seed=seed,
    )
    result = audit_bundle(source, bundle, output, settings, console)
    page = write_page(output)
    for text in result["notes"]:
        console.print(text, markup=False, highlight=False)
    for text in result["missing"]:
        console.print(f"[yellow]not measured:[/yellow] {text}", highlight=False)
    for name, entry in result["interventions"].items():
        if entry["verdict"] == "fail":
            console.print(f"[red]fail[/red] {name} ({entry['what']}): {entry['reason']}", highlight=False)
    console.print(f"[bold]gate: {result['verdict']}[/bold], {result['reason']}", highlight=False)
    console.print(f"Open {page}", markup=False)
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    raise typer.Exit(EXIT_CODES[result["verdict"]])
