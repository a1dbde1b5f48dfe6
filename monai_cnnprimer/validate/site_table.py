# SPDX-License-Identifier: Apache-2.0
"""The table of sites: one row each, what was done and what came out, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

FIGURES = ("auroc", "sensitivity", "specificity")


def site_row(site: str, directory: Path, status: str, reason: str = "") -> dict[str, Any]:
    """A site's row: counts, and each figure with its interval and n; None where there is nothing to give.

    The figures are those of a complete run only: what another run left in the folder is not this one's.
    """
    run = _read(directory / "run.json") if status == "complete" else {}
    metrics = _read(directory / "metrics.json") if status == "complete" else {}
    row = {"site": site, "status": status, "reason": reason, "retuned": bool(run.get("retuned"))}
    row |= {name: run.get("counts", {}).get(name) for name in ("accepted", "refused", "predicted", "errors")}
    row["labelled"] = metrics.get("auroc", {}).get("n")
    for name in FIGURES:
        figure = metrics.get(name, {})
        row |= {name: figure.get("value")} | {f"{name}_{part}": figure.get(part) for part in ("low", "high", "n")}
    return row


def site_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a site; counts as whole numbers, missing where there is nothing to give."""
    table = pd.DataFrame(rows)
    counts = ["accepted", "refused", "predicted", "errors", "labelled", *(f"{name}_n" for name in FIGURES)]
    return table.astype(dict.fromkeys(counts, "Int64"))


def sites_csv(table: pd.DataFrame) -> str:
    """The bytes of `sites.csv`: the same for the same runs."""
    return str(table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def printed_sites(table: pd.DataFrame) -> Table:
    """The table for a console of 80 characters: figures (.98 for 0.98), 95 % intervals; `sites.csv` has the rest."""
    printed = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("site", "status", "cases", "labels", "AUROC", "sensitivity", "specificity"):
        printed.add_column(name, no_wrap=True)
    for row in table.to_dict("records"):
        status = f"{row['status']}, retuned" if row["retuned"] else row["status"]
        counts = ("-" if pd.isna(row[name]) else str(row[name]) for name in ("predicted", "labelled"))
        printed.add_row(row["site"], status, *counts, *(with_interval(row, name) for name in FIGURES))
    return printed


def with_interval(row: Mapping[Any, Any], name: str) -> str:
    """A figure of a row as `.98 (.97-.99)`; a dash where there is none."""
    figures = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
    value, low, high = ("-" if pd.isna(figure) else f"{figure:.2f}".removeprefix("0") for figure in figures)
    return value if low == "-" else f"{value} ({low}-{high})"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
