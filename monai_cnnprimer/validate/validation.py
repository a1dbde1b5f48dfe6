# SPDX-License-Identifier: Apache-2.0
"""One locked model at several sites: what is done already is kept, the rest is run, all is told in one table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from monai_cnnprimer import __version__
from monai_cnnprimer.atomic import lock, unlock, write_atomically
from monai_cnnprimer.dicom.files import list_sources
from monai_cnnprimer.dicom.key import pseudonym_key
from monai_cnnprimer.dicom.rows import AGE_BANDS, keyed_hash
from monai_cnnprimer.networks import sha256_of_file
from monai_cnnprimer.run_directory import digest_of
from monai_cnnprimer.validate.baselines import ages_outside
from monai_cnnprimer.validate.locked_model import LockedModel
from monai_cnnprimer.validate.mlflow_content import read_json
from monai_cnnprimer.validate.mlflow_store import TrackingFailed, calls, probe
from monai_cnnprimer.validate.model_run import ModelRun
from monai_cnnprimer.validate.pooled import pooled
from monai_cnnprimer.validate.runs import Run, RunError, read_run
from monai_cnnprimer.validate.shared_cases import SharedCases, shared_cases
from monai_cnnprimer.validate.site_runs import SiteResult, run_sites, site_progress
from monai_cnnprimer.validate.site_table import FIGURES, site_row, site_table, sites_csv
from monai_cnnprimer.validate.sites import Site, bundle_command, check_exports, config_files
from monai_cnnprimer.validate.tracking import PARENT_RUN

Report = Callable[[Sequence[Path], Path], object]


@dataclass(frozen=True)
class Validated:
    """What came of a validation.

    Attributes:
        results: one a site, in the order given.
        table: as `sites.csv`.
        notes: what a person should know, with the site's name before it.
        shared: cases, patients and images that two sites have in common.
        pooled: figures of all sites' cases together, as `Pooled.figures`; empty for one site.
    """

    results: list[SiteResult]
    table: pd.DataFrame
    notes: list[str]
    shared: SharedCases
    pooled: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every site is complete, and no case stands at two of them."""
        return all(result.status == "complete" for result in self.results) and not self.shared.cases


def validate_sites(
    model: LockedModel,
    sites: Sequence[Site],
    output: Path,
    *,
    jobs: int | None = None,
    experiment: str | None = None,
    report: Report | None = None,
    console: Console | None = None,
) -> Validated:
    """Runs the model at each site, in a process each; leaves `sites.csv`, `validation.json` and the run directories.

    A site whose run is complete, for the same export, labels, model and settings, is kept as it is; one that was
    killed goes on from the predictions it has. MLflow is told as far as it answers.

    Args:
        model: what is carried from site to site.
        sites: where.
        output: the folder; each site's run directory gets its name.
        jobs: processes at once; default is one for two processors, and not more than sites.
        experiment: of MLflow; the store is that of ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
        report: writes a report of run directories to a file.
        console: where progress is shown; default is the error stream.

    Raises:
        ValueError: two sites are one.
        FolderBusy: another validation is writing this folder.
    """
    check_exports(sites)
    output = output.expanduser().resolve()
    output.mkdir(parents=True, exist_ok=True)
    lock(output)
    try:
        return _Validation(model, sites, output, experiment, console or Console(stderr=True)).run(jobs, report)
    finally:
        unlock(output)


class _Validation:
    def __init__(
        self, model: LockedModel, sites: Sequence[Site], output: Path, experiment: str | None, console: Console
    ) -> None:
        self.model, self.sites, self.output, self.console = model, sites, output, console
        known = _known_sites(output)
        self.requests = {site.name: _request(model, site) for site in sites}
        self.kept = [site for site in sites if self._is_done(site, known.get(site.name, {}))]
        self.results = {site.name: SiteResult(site, output / site.name, "complete") for site in self.kept}
        self._write("running")
        self.parent = ModelRun(output, experiment_name=experiment)
        self.server_answers = True

    def run(self, jobs: int | None, report: Report | None) -> Validated:
        self.server_answers = self.parent.open() is not None
        try:
            self._run_sites(jobs or max(1, min(len(self.sites), (os.cpu_count() or 1) // 2)))
            validated = self._validated()
            failed = any(result.status != "complete" for result in validated.results)
            self._write("failed" if failed else "complete", validated)
            if report is not None and (folders := self._to_report()):
                report(folders, self.output / "report.html")
        except BaseException as error:
            self._write("killed" if isinstance(error, SystemExit | KeyboardInterrupt) else "failed")
            self.parent.close(error)
            raise
        self.parent.close()
        return validated

    def _run_sites(self, jobs: int) -> None:
        waiting = [site for site in self.sites if site not in self.kept]
        threads = max(1, (os.cpu_count() or 1) // min(jobs, len(waiting) or 1))
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"MLFLOW_TRACKING_URI": self.parent.store_uri}
        if self.parent.run_id:
            environment[PARENT_RUN] = self.parent.run_id

        def start(site: Site, directory: Path) -> tuple[list[str], Mapping[str, str]]:
            overlays = ["explain", *(["retune"] if self.model.retune else []), *(["mlflow"] if self._answers() else [])]
            options = self.model.options | {"experiment_name": self.parent.experiment_name, "progress": False}
            return bundle_command(self.model.bundle, site, directory, overlays, options), environment

        with site_progress(console=self.console) as progress:
            for site in self.kept:
                progress.add_task(site.name, state="complete before", total=1, completed=1)
            run_sites(waiting, self.output, start, jobs, progress, self._ended)

    def _answers(self) -> bool:
        """Asked before each site, so that a dead server is waited for once, not by every site."""
        if self.server_answers:
            try:
                with calls(self.parent.store_uri):
                    probe(self.parent.store_uri)
            except TrackingFailed:
                self.server_answers = False
        return self.server_answers

    def _ended(self, result: SiteResult) -> None:
        self.results[result.site.name] = result
        self._write("running")

    def _is_done(self, site: Site, before: Mapping[str, Any]) -> bool:
        """Complete for what is asked now, and not changed since."""
        if before.get("status") != "complete" or before.get("request") != self.requests[site.name]:
            return False
        try:
            return read_run(self.output / site.name).complete
        except (RunError, FileNotFoundError):
            return False

    def _complete(self) -> list[Run]:
        done = [self.results[site.name] for site in self.sites if self.results[site.name].status == "complete"]
        return [read_run(result.directory) for result in done]

    def _to_report(self) -> list[Path]:
        """Run directories of this validation, also those of sites that failed; not what an earlier one left there."""
        told = [(result, read_json(result.directory / "run.json").get("status")) for result in self.results.values()]
        ours = {result.site.name for result, status in told if status and (status != "complete" or not result.reason)}
        return [self.output / site.name for site in self.sites if site.name in ours]

    def _validated(self) -> Validated:
        runs = self._complete()
        shared = shared_cases(runs)
        notes = [f"{run.site}: {note}" for run in runs for note in run.run["notes"]]
        expected = {site.name: site.ages for site in self.sites}
        for run in runs:
            ages = expected[run.site]
            if ages is not None and (note := expected_ages(list(run.manifest["age_band"]), ages)):
                notes.append(f"{run.site}: {note}")
        notes += [*shared.cases, *shared.patients, *shared.alike, *shared.unknown]
        results = [self.results[site.name] for site in self.sites]
        return Validated(results, self._table(), notes, shared, pooled(runs).figures() if len(runs) > 1 else {})

    def _table(self) -> pd.DataFrame:
        return site_table([self._row(site) for site in self.sites])

    def _row(self, site: Site) -> dict[str, Any]:
        result = self.results.get(site.name)
        if result is None:
            return site_row(site.name, self.output / site.name, "waiting")
        return site_row(site.name, result.directory, result.status, result.reason)

    def _write(self, status: str, validated: Validated | None = None) -> None:
        """`validation.json` and `sites.csv`, as far as they are known."""
        rows = {site.name: self._row(site) for site in self.sites}
        states = [row["status"] for row in rows.values()]
        told = {"status": status, **self.model.identity, "retuned": self.model.retune is not None}
        told["counts"] = {"sites": len(rows)} | {name: states.count(name) for name in ("complete", "failed", "killed")}
        told["sites"] = {
            name: {key: row[key] for key in ("status", "reason")} | {"request": self._request_of(name)}
            for name, row in rows.items()
        }
        told["figures"] = {
            name: {figure: {part: row[f"{figure}{suffix}"] for part, suffix in _PARTS.items()} for figure in FIGURES}
            for name, row in rows.items()
        }
        shared = SharedCases() if validated is None else validated.shared
        told["shared"] = [*shared.cases, *shared.patients, *shared.alike, *shared.unknown]
        told["pooled"] = {} if validated is None else validated.pooled
        write_atomically(
            self.output / "validation.json", json.dumps(told | {"sha256": digest_of(told)}, indent=2) + "\n"
        )
        write_atomically(self.output / "sites.csv", sites_csv(self._table()))

    def _request_of(self, name: str) -> str:
        """What the site's run was asked for; only a run that came to its end has answered it."""
        result = self.results.get(name)
        return self.requests[name] if result is not None and result.status == "complete" else ""


def _known_sites(output: Path) -> dict[str, Any]:
    """What an earlier validation in this folder knew of its sites; nothing where its file cannot be read."""
    try:
        return dict(read_json(output / "validation.json").get("sites", {}))
    except TrackingFailed:
        return {}


_PARTS = {"value": "", "low": "_low", "high": "_high", "n": "_n"}


def expected_ages(bands: Sequence[str], ages: Sequence[int | None]) -> str:
    """A note on the cases whose whole age band lies outside the ages expected; "" where there are none.

    Example:
        >>> expected_ages(["0-4", "18-39", ""], [18, None])
        '1 of 3 images are of other ages than the 18 to any expected, 1 of an age that is not stated'
    """
    youngest, oldest = (0 if ages[0] is None else ages[0]), (AGE_BANDS[-1][0] if ages[1] is None else ages[1])
    firsts = [0, *(last + 1 for last, _ in AGE_BANDS[:-1])]
    inside = [b for first, (last, b) in zip(firsts, AGE_BANDS, strict=True) if last >= youngest and first <= oldest]
    found = ages_outside(bands, inside)
    if not found.k and not found.unknown:
        return ""
    expected = f"{'any' if ages[0] is None else ages[0]} to {'any' if ages[1] is None else ages[1]}"
    return (
        f"{found.k} of {len(bands)} images are of other ages than the {expected} expected, "
        f"{found.unknown} of an age that is not stated"
    )


def _request(model: LockedModel, site: Site) -> str:
    """A hash of all that a site's run depends on: model, settings, configuration, export, labels, key.

    Files of the export enter by name, size and time of change; the hash is keyed, as names may be those of patients.
    """
    export = site.export.expanduser().resolve()
    try:
        sources = [[source.name, source.size, source.state] for source in list_sources(export)]
    except ValueError:  # its own run will say what is wrong with the export
        sources = []
    configs = [sha256_of_file(file) for file in config_files(model.bundle, ("explain", "retune"))]
    tables = [sha256_of_file(table) for table in (site.labels, site.masks) if table is not None]
    options = {name: value for name, value in model.options.items() if name != "operating_point"}  # by its id
    asked = [__version__, model.identity, options, configs, site.options(), tables, sources]
    return keyed_hash(pseudonym_key(site.key), json.dumps(asked, sort_keys=True, default=str))
