# SPDX-License-Identifier: Apache-2.0
"""The main job on synthetic data, from DICOM export to MLflow run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.validate.sites import Site, find_bundle, run_site, summary_table


def run_demo(output: Path, cases: int, seed: int, bundle: str, console: Console) -> int:
    """Writes a phantom export of three sites, evaluates each, prints one table.

    Returns:
        Exit code: 0 when every site was evaluated, 1 otherwise.
    """
    folder = find_bundle(bundle)
    output = output.resolve()
    exports = output / "exports"
    # Only what an earlier demo wrote is replaced; the MLflow store keeps its runs.
    shutil.rmtree(exports, ignore_errors=True)
    write_export(exports, cases, sites=3, seed=seed)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{output / 'mlflow.db'}")
    results = []
    for labels in sorted((exports / "labels").glob("*.csv")):
        site = _site(exports, labels)
        shutil.rmtree(output / "runs" / site.name, ignore_errors=True)
        with console.status(f"{site.name}: reading, predicting, explaining"):
            results.append(run_site(folder, site, output / "runs" / site.name))
    table = summary_table(results)
    console.print(_printed(table))
    console.print(f"AUROC: consolidation against none on synthetic radiographs, {folder.name}, 95 % interval (DeLong)")
    console.print(f"Figures and tables  {output / 'runs'}/SITE/figures, predictions.csv, refused.csv, log beside it")
    console.print(f"MLflow              mlflow ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}")
    console.print("Your own export     cnnprimer index EXPORT --output DIR; docs/quick-start.md")
    console.print("[bold]Research use only, not for clinical use.[/bold]")
    return int(any(result.exit_code for result in results))


def _site(exports: Path, labels: Path) -> Site:
    archive = exports / "sites" / f"{labels.stem}.zip"
    return Site(labels.stem, archive if archive.is_file() else archive.with_suffix(""), labels)


def _printed(table: pd.DataFrame) -> Table:
    printed = Table("site", "status", "accepted", "refused", "errors", "AUROC (95 % interval)", "n", "seconds")
    for row in table.to_dict("records"):
        figures = [row["auroc"], row["auroc_low"], row["auroc_high"]]
        value, low, high = ("-" if pd.isna(figure) else f"{figure:.3f}" for figure in figures)
        cells = [row[name] for name in ("site", "status", "accepted", "refused", "errors")]
        printed.add_row(*map(str, cells), f"{value} ({low} to {high})", str(row["labelled"]), str(row["seconds"]))
    return printed
