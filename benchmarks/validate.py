# SPDX-License-Identifier: Apache-2.0
"""What the statistics of a validation cost, beside the usual way and beside inference; one thread.

    OMP_NUM_THREADS=1 python benchmarks/validate.py [--rounds 3]
    python benchmarks/validate.py --whole [--rounds 2]
    python benchmarks/validate.py --gallery

CPU time is counted and the clock's printed beside it, of the fastest round. The usual bootstrap is a loop over
scikit-learn, of which a tenth of the resamples is timed. Memory is the peak of a process of its own, with libraries.

`--whole` runs the bundle over 1,000 phantom DICOM files as a user does, loading included, without handlers and with
those that keep predictions, features and figures; then it uploads the run and writes its report. `--gallery` writes the
report of five phantom sites with 50 cases each. Both go by the clock.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pydicom
import torch
import yaml
from monai.bundle import ConfigParser
from sklearn.metrics import roc_auc_score

from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.networks import resnet50_classifier
from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.validate.overlap import near_duplicates, perceptual_hashes
from monai_cnnprimer.validate.runs import read_run
from monai_cnnprimer.validate.sites import find_bundle
from monai_cnnprimer.validate.statistics import AurocOf, auroc, clustered_bootstrap
from monai_cnnprimer.validate.summary import summary
from monai_cnnprimer.validate.tracking import sync_run

BUNDLE = "chest_xray_resnet50"
IMAGES, RENDERED = 1000, 40
SITES, SHOWN = 5, 50
RESAMPLES, CASES, SHARE = 2000, 10_000, 10
SIDE, BATCH = 160, 16
# What docs/performance.md promises, in seconds of the clock, MiB, and as a ratio to inference.
LIMITS = {"bootstrap": 5.0, "summary": 60.0, "memory": 2048.0, "inference": 0.15, "html": 15.0}


def predictions(n: int) -> pd.DataFrame:
    """A run's cases with the manifest's columns beside; two images of each patient on average."""
    random = np.random.default_rng(0)
    label = random.random(n) < 0.3
    table = pd.DataFrame({"label": label.astype(int), "logit": random.normal(size=n) + 2 * label - 1})
    table["predicted"] = (table["logit"] > 0).astype(int)
    table["patient_key"] = random.integers(n // 2, size=n).astype(str)
    words = {"view": ("PA", "AP"), "sex": ("F", "M", ""), "age_band": ("0-4", "5-17", "18-39", "40-64", "65-89"),
             "manufacturer": ("Agfa", "Fuji", "GE", "Konica", "Philips", "Siemens")}  # fmt: skip
    for column, choices in words.items():
        table[column] = random.choice(choices, n)
    return table.assign(rows=random.integers(2000, 3000, n), columns=random.integers(2000, 3000, n))


def usual_bootstrap(table: pd.DataFrame, resamples: int) -> tuple[float, ...]:
    """The loop that papers' code has: draw patients, collect their rows, call scikit-learn."""
    random = np.random.default_rng(0)
    rows = list(table.groupby("patient_key").indices.values())
    areas = []
    for _ in range(resamples):
        drawn = table.iloc[np.concatenate([rows[number] for number in random.integers(len(rows), size=len(rows))])]
        areas.append(roc_auc_score(drawn["label"], drawn["logit"]))
    return tuple(np.percentile(areas, [2.5, 97.5]))


def cost(task: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Seconds of CPU and of the clock, of the fastest round."""
    seen = []
    for _ in range(rounds):
        cpu, clock = time.process_time(), time.perf_counter()
        task()
        seen.append((time.process_time() - cpu, time.perf_counter() - clock))
    return min(seen)


def infer(network: torch.nn.Module, images: int) -> None:
    """Forward passes in batches, as the bundle makes them; reading and preprocessing are left out."""
    batch = torch.rand(BATCH, 1, SIDE, SIDE)
    with torch.no_grad():
        for _ in range(0, images, BATCH):
            network(batch)


def peak_mib() -> float:
    """Peak memory of a process that summarises 100,000 rows."""
    command = [sys.executable, __file__, "--summarise"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def verdict(value: float, limit: str) -> str:
    """Whether a promise holds."""
    return f"limit {LIMITS[limit]:g}: {'holds' if value <= LIMITS[limit] else 'DOES NOT HOLD'}"


def bootstraps(rounds: int) -> None:
    """Prints the three ways to the interval of an AUROC."""
    table = predictions(CASES)[["label", "logit", "patient_key"]]
    print(f"{RESAMPLES:,} resamples of {CASES:,} cases, AUROC")
    cpu, clock = cost(lambda: clustered_bootstrap(AurocOf("label", "logit"), table, "patient_key", RESAMPLES), rounds)
    print(f"{'from counts':44} {cpu:8.2f} s {clock:8.2f} s   {verdict(clock, 'bootstrap')}", flush=True)
    ways: dict[str, Callable[[], object]] = {
        "any callable: our auroc on tables": lambda: clustered_bootstrap(
            lambda frame: auroc(frame["label"], frame["logit"]).value, table, "patient_key", RESAMPLES // SHARE
        ),
        "a loop over scikit-learn": lambda: usual_bootstrap(table, RESAMPLES // SHARE),
    }
    for name, way in ways.items():
        other, by_clock = (SHARE * seconds for seconds in cost(way, 1))
        print(f"{name:44} {other:8.2f} s {by_clock:8.2f} s   {other / cpu:.0f} times as much", flush=True)


def summaries(rounds: int) -> None:
    """Prints what the figures of metrics.json cost."""
    many, few = predictions(100_000), predictions(1000)
    cpu, clock = cost(lambda: summary(many), 1)
    print(f"{'summary of 100,000 rows, all intervals':44} {cpu:8.2f} s {clock:8.2f} s   {verdict(clock, 'summary')}")
    memory = peak_mib()
    print(f"{'its peak memory':44} {memory:8.0f} MiB {'':8} {verdict(memory, 'memory')}", flush=True)
    cpu, clock = cost(lambda: summary(few), rounds)
    print(f"{'summary of 1,000 rows':44} {cpu:8.2f} s {clock:8.2f} s")
    network = resnet50_classifier().eval()
    forward = 10 * cost(lambda: infer(network, 100), rounds)[0]
    print(f"{'forward passes of 1,000 images':44} {forward:8.2f} s")
    print(f"{'summary by forward passes':44} {cpu / forward:8.3f}   {verdict(cpu / forward, 'inference')}", flush=True)


def duplicates(rounds: int) -> None:
    """Prints what looking for near duplicates among 5,000 images costs."""
    images = np.random.default_rng(0).random((5000, 64, 64), dtype=np.float32)
    hashes = perceptual_hashes(images)
    for name, task in {
        "hashes of 5,000 images, 64 px": lambda: perceptual_hashes(images),
        "near duplicates among 5,000 images": lambda: near_duplicates(hashes, np.arange(5000)),
    }.items():
        cpu, clock = cost(task, rounds)
        print(f"{name:44} {cpu:8.2f} s {clock:8.2f} s")


def export_of(folder: Path, images: int) -> tuple[Path, Path]:
    """An export of so many phantom files and its labels: 40 are rendered, the others are the same pixels anew."""
    write_export(folder / "phantoms", RENDERED, sites=1, progress=False)
    (site,), (labels,) = ((folder / "phantoms" / name).iterdir() for name in ("sites", "labels"))
    cases = index_export(site, labels=labels, progress=False).cases()
    files = [(Path(case["image"]).read_bytes(), case["label"]) for case in cases]
    (folder / "export").mkdir()
    rows = []
    for number in range(images):
        content, label = files[number % len(files)]
        dataset = pydicom.dcmread(BytesIO(content))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{1000 + number}"
        dataset.StudyInstanceUID, dataset.PatientID = f"2.25.{100_000 + number}", f"P{number // 2}"
        dataset.AccessionNumber = f"A{number:06d}"
        dataset.save_as(folder / "export" / f"IM{number:05d}", enforce_file_format=True)
        rows.append({"AccessionNumber": dataset.AccessionNumber, "label": label})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "export", folder / "labels.csv"


def evaluated(export: Path, labels: Path, output: Path, plain: bool) -> float:
    """Seconds of the clock that the bundle's evaluator takes, loading included; `plain` without any handler."""
    bundle = find_bundle(BUNDLE)
    parser = ConfigParser(ConfigParser.load_config_files([str(bundle / "configs" / "inference.yaml")]))
    told = {"bundle_root": str(bundle), "dataset_dir": str(export), "labels": str(labels), "output_dir": str(output)}
    parser.update({**told, "progress": False, **({"handlers": []} if plain else {})})
    evaluator = parser.get_parsed_content("evaluator")
    start = time.perf_counter()
    evaluator.run()
    return time.perf_counter() - start


def whole(rounds: int) -> None:
    """Prints what reporting, statistics and tracking take beside plain inference."""
    from monai_cnnprimer.report.validation import write_report

    with TemporaryDirectory() as folder:
        home = Path(folder)
        export, labels = export_of(home, IMAGES)
        plain = min(evaluated(export, labels, home / f"plain{turn}", True) for turn in range(rounds))
        kept = min(evaluated(export, labels, home / f"kept{turn}", False) for turn in range(rounds))
        run = home / "kept0"
        table = read_run(run).table()
        store = f"sqlite:///{home / 'mlflow.db'}"
        sync_run(home / "kept1" if rounds > 1 else run, store, "first")  # makes the database, which is done once
        seconds = {
            "predictions, features, statistics": max(0.0, kept - plain),
            "of these the statistics": cost(lambda: summary(table), 1)[1],
            "tracking: upload of the run": cost(lambda: sync_run(run, store, "benchmark"), 1)[1],
            "report": cost(lambda: write_report([run], home / "report.html"), 1)[1],
        }
        print(f"{f'plain inference of {IMAGES:,} images':44} {'':8}   {plain:8.2f} s")
        for name, taken in seconds.items():
            print(f"{name:44} {'':8}   {taken:8.2f} s")
        share = (sum(seconds.values()) - seconds["of these the statistics"]) / plain
        print(f"{'all of them by plain inference':44} {'':8}   {share:8.3f}     {verdict(share, 'inference')}")


def gallery() -> None:
    """Prints how large the report of five sites with 50 cases each is, as `cnnprimer validate` writes it."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        write_export(home / "phantoms", SHOWN + 10, sites=SITES, progress=False)
        sites = {
            path.stem: {
                "export": str(path.relative_to(home)),
                "labels": f"phantoms/labels/{path.stem}.csv",
            }
            for path in sorted((home / "phantoms" / "sites").iterdir())
        }
        settings = {"gradcam_images": SHOWN, "quality_images": 0}
        plan = {"bundle": BUNDLE, "output": "out", "settings": settings, "sites": sites}
        (home / "sites.yaml").write_text(yaml.safe_dump(plan))
        words = [sys.executable, "-m", "monai_cnnprimer", "validate", str(home / "sites.yaml")]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
        subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, cwd=home)
        report = (home / "out" / "report.html").read_bytes()
        pictures, size = report.count(b"data:image/webp"), len(report) / 1e6
        print(f"{f'report of {SITES} sites, {pictures} pictures':44} {size:8.2f} MB {'':8}   {verdict(size, 'html')}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="all of it beside plain inference")
    parser.add_argument("--gallery", action="store_true", help="size of the report of five sites")
    parser.add_argument("--summarise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole or options.gallery:
        if options.whole:
            whole(options.rounds)
        if options.gallery:
            gallery()
        return
    torch.set_num_threads(1)
    if options.summarise:
        summary(predictions(100_000))
        # Not getrusage: its peak is handed on by the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
        return
    print(f"{'':44} {'CPU':>8}   {'clock':>8}")
    bootstraps(options.rounds)
    summaries(options.rounds)
    duplicates(options.rounds)


if __name__ == "__main__":
    main()
