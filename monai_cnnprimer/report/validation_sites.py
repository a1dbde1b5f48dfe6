# SPDX-License-Identifier: Apache-2.0
"""The sites of a report: their runs read and checked to be of one model at one operating point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_cnnprimer.report.validation_numbers import Figure, figure_of
from monai_cnnprimer.validate.runs import Run, RunError, read_run

SAME_MODEL = ("bundle", "weights_sha256", "transforms_sha256")


@dataclass(frozen=True, eq=False)
class Site:
    """One site's run with what its Grad-CAM left.

    Attributes:
        run: the run directory, read and checked.
        gradcam: `gradcam.csv`, empty where there is none.
        explained: what `gradcam.json` sums up.
    """

    run: Run
    gradcam: pd.DataFrame
    explained: dict[str, Any]

    @property
    def name(self) -> str:
        """The site's pseudonym."""
        return self.run.site

    @property
    def labelled(self) -> pd.DataFrame:
        """Predictions of the cases with a label."""
        predictions = self.run.predictions
        return predictions[predictions["label"].notna()] if len(predictions) else predictions

    @property
    def positives(self) -> int:
        """How many labelled cases have the finding."""
        return int(self.labelled["label"].sum()) if len(self.labelled) else 0

    @property
    def patients(self) -> int:
        """How many patients were predicted."""
        return int(self.run.predictions["patient_key"].nunique()) if len(self.run.predictions) else 0

    @property
    def has_both_classes(self) -> bool:
        """Whether there is a labelled case with the finding and one without."""
        return 0 < self.positives < len(self.labelled)

    def figure(self, name: str) -> Figure:
        """A figure of the site's `metrics.json`, as `figure_of`."""
        return figure_of(self.run.metrics, name)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Labels, logits and probabilities of the labelled cases, each `(n,)`."""
        table = self.labelled
        labels = table["label"].to_numpy(dtype=np.int64)
        return labels, table["logit"].to_numpy(dtype=np.float64), table["probability"].to_numpy(dtype=np.float64)


def read_sites(paths: Sequence[str | Path]) -> list[Site]:
    """Reads run directories in the order given.

    Raises:
        FileNotFoundError: there is no such folder.
        RunError: no run at all, none that is complete, a damaged one, two of one site, or runs that cannot be compared.
    """
    if not paths:
        raise RunError("no run is named; give the run directories of the sites")
    sites = [_read_site(path) for path in paths]
    complete = [site for site in sites if site.run.complete]
    if not complete:
        told = "; ".join(f"{site.name}: {site.run.run['status']}" for site in sites)
        raise RunError(f"none of the runs is complete ({told}); give the command that began them again")
    names = [site.name for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(f"two runs are of the site {', '.join(twice)}; name one run for each site")
    for site in complete:
        if not site.run.metrics:
            raise RunError(f"{site.name}: metrics.json is empty; run the site again")
    _check_one_model(sites)
    return sites


def _read_site(path: str | Path) -> Site:
    run = read_run(path, unfinished=True)
    table, summary = run.path / "gradcam.csv", run.path / "gradcam.json"
    gradcam = pd.read_csv(table, dtype={"case_id": str}) if table.is_file() else pd.DataFrame()
    explained = json.loads(summary.read_text(encoding="utf-8"))["gradcam"] if summary.is_file() else {}
    return Site(run, gradcam, explained)


def _check_one_model(sites: Sequence[Site]) -> None:
    """Runs of different models, or at different locked thresholds, do not belong in one report."""
    for name in SAME_MODEL:
        values = {site.run.run[name]: site.name for site in sites}
        if len(values) > 1:
            told = ", ".join(f"{str(value)[:20]} ({site})" for value, site in values.items())
            raise RunError(f"the runs are of different models: {name} is {told}; give a report to each model")
    points = {locked_point(site)["threshold_id"]: site.name for site in sites}
    if len(points) > 1:
        told = ", ".join(f"{point} ({site})" for point, site in points.items())
        raise RunError(f"the runs are at different locked operating points: {told}; run all sites at one")


def locked_point(site: Site) -> dict[str, Any]:
    """`threshold_id` and `threshold` that the site was meant to use, also where it was re-tuned."""
    run = site.run.run
    return dict(run["locked"]) if site.run.retuned else {name: run[name] for name in ("threshold_id", "threshold")}
