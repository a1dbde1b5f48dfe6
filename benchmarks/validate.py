# SPDX-License-Identifier: Apache-2.0
"""What the statistics of a validation cost, beside the usual way and beside inference; one thread.

    OMP_NUM_THREADS=1 python benchmarks/validate.py [--rounds 3]

CPU time is counted and the clock's printed beside it, of the fastest round. The usual bootstrap is a loop over
scikit-learn, of which a tenth of the resamples is timed. Memory is the peak of a process of its own, with libraries.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from monai_cnnprimer.networks import resnet50_classifier
from monai_cnnprimer.validate.overlap import near_duplicates, perceptual_hashes
from monai_cnnprimer.validate.statistics import AurocOf, auroc, clustered_bootstrap
from monai_cnnprimer.validate.summary import summary

RESAMPLES, CASES, SHARE = 2000, 10_000, 10
SIDE, BATCH = 160, 16
# What docs/performance.md promises, in seconds of the clock, MiB, and as a ratio to inference.
LIMITS = {"bootstrap": 5.0, "summary": 60.0, "memory": 2048.0, "inference": 0.15}


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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--summarise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
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
