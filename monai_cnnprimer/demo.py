# SPDX-License-Identifier: Apache-2.0
"""The main job on synthetic data, from DICOM export to MLflow run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.report.validation import write_report
from monai_cnnprimer.validate.locked_model import locked_model
from monai_cnnprimer.validate.site_table import with_interval
from monai_cnnprimer.validate.sites import Site
from monai_cnnprimer.validate.validation import Validated, validate_sites


def run_demo(output: Path, cases: int, seed: int, bundle: str, console: Console) -> int:
    """Writes a phantom export of three sites, evaluates each, prints one table.

    Returns:
        Exit code: 0 when every site was evaluated, 1 otherwise.
    """
    model = locked_model(bundle)
    output = output.resolve()
    exports = output / "exports"
    # Only what an earlier demo wrote is replaced; the MLflow store keeps its runs.
    for folder in (exports, output / "runs"):
        shutil.rmtree(folder, ignore_errors=True)
    write_export(exports, cases, sites=3, seed=seed)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{output / 'mlflow.db'}")
    sites = [_site(exports, labels) for labels in sorted((exports / "labels").glob("*.csv"))]
    validated = validate_sites(model, sites, output / "runs", report=write_report, console=console)
    console.print(_printed(validated))
    name = model.bundle.name
    console.print(f"AUROC: consolidation against none on synthetic radiographs, {name}, 95 % interval (DeLong)")
    console.print(f"Report              {output / 'runs' / 'report.html'}")
    console.print(f"Figures and tables  {output / 'runs'}/SITE/figures, predictions.csv, refused.csv, log beside it")
    console.print(f"MLflow              mlflow ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}")
    console.print("Your own export     cnnprimer index EXPORT --output DIR; docs/quick-start.md")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    return int(not validated.passed)


def _site(exports: Path, labels: Path) -> Site:
    archive = exports / "sites" / f"{labels.stem}.zip"
    return Site(labels.stem, archive if archive.is_file() else archive.with_suffix(""), labels)


def _printed(validated: Validated) -> Table:
    counts = ("accepted", "refused", "errors")
    printed = Table("site", "status", *counts, "AUROC", "seconds", box=None)
    for row, result in zip(validated.table.to_dict("records"), validated.results, strict=True):
        cells = [str(row[name]) for name in ("site", "status", *counts)]
        printed.add_row(*cells, with_interval(row, "auroc"), f"{result.seconds:.1f}")
    return printed
