# SPDX-License-Identifier: Apache-2.0
"""The same bundle on each site's export: one process, one run directory and one MLflow run for each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd

OVERLAYS = ("explain", "mlflow")


@dataclass(frozen=True)
class Site:
    """What is true of one site: pseudonym, export (folder, DICOMDIR or zip), labels CSV or None."""

    name: str
    export: Path
    labels: Path | None = None


@dataclass(frozen=True)
class SiteResult:
    """How the run of one site ended: exit code 0 or not, seconds of its process, run directory."""

    site: Site
    directory: Path
    exit_code: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """The site's line of the table: counts and AUROC with its interval; None where there is nothing to give."""
        run = _read(self.directory / "run.json")
        auroc = _read(self.directory / "metrics.json").get("auroc", {})
        counts = run.get("counts", {})
        return {
            "site": self.site.name,
            "status": run.get("status", "failed"),
            **{name: counts.get(name) for name in ("accepted", "refused", "predicted", "errors")},
            **{f"auroc{suffix}": auroc.get(key) for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"))},
            "labelled": auroc.get("n"),
            "seconds": round(self.seconds, 1),
        }


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle: a path, or the name of one of this project's own bundles.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists those there are.
    """
    own = Path(__file__).parents[2] / "bundles"
    for folder in (Path(bundle).expanduser(), own / bundle):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    names = sorted(path.parents[1].name for path in own.glob("*/configs/metadata.json"))
    raise FileNotFoundError(
        f"no bundle {str(bundle)!r}: give the folder of a bundle, or one of {', '.join(names) or 'none are installed'}"
    )


def bundle_command(bundle: Path, site: Site, output: Path, overlays: Sequence[str] = OVERLAYS) -> list[str]:
    """The `monai.bundle run` command line that evaluates `site` into the run directory `output`."""
    shared = Path(__file__).parents[2] / "configs"
    configs = [bundle / "configs" / "inference.yaml", *(shared / f"{name}.yaml" for name in overlays)]
    options = {
        "config_file": str([str(path) for path in configs]),
        "logging_file": bundle / "configs" / "logging.conf",
        "meta_file": bundle / "configs" / "metadata.json",
        "bundle_root": bundle,
        "dataset_dir": site.export,
        "output_dir": output,
        "site": site.name,
    } | ({"labels": site.labels} if site.labels else {})
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", *words]


def run_site(bundle: Path, site: Site, output: Path, overlays: Sequence[str] = OVERLAYS) -> SiteResult:
    """Evaluates one site in a process of its own; what it prints goes to `NAME.log` beside its run directory."""
    output.parent.mkdir(parents=True, exist_ok=True)
    start = monotonic()
    with output.with_suffix(".log").open("w") as log:
        process = subprocess.run(bundle_command(bundle, site, output, overlays), stdout=log, stderr=log, check=False)
    return SiteResult(site, output, process.returncode, monotonic() - start)


def summary_table(results: Sequence[SiteResult]) -> pd.DataFrame:
    """One row a site, in the order given."""
    return pd.DataFrame([result.row() for result in results])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
