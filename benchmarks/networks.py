# SPDX-License-Identifier: Apache-2.0
"""Prints what each classifier costs beside ResNet-50: `python benchmarks/networks.py --image-sizes 224 512`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pandas as pd

# PyTorch's profiler announces every start and stop unless told otherwise before it is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch  # noqa: E402

from monai_cnnprimer import networks  # noqa: E402
from monai_cnnprimer.networks.cost import cost_table  # noqa: E402

NAMES = ("resnet50", "late_head", "fpn", "bifpn", "early_head", "unet")
COSTS = ("parameters", "multiply_adds", "ms_per_image", "cpu_ms_per_image", "peak_memory_mib")


def table(sizes: list[int], batch_size: int, rounds: int, device: str) -> pd.DataFrame:
    classifiers = {name: getattr(networks, f"{name}_classifier")().to(device) for name in NAMES}
    tables = []
    for size in sizes:
        costs = cost_table(classifiers, size, batch_size, rounds)
        ratios = costs[list(COSTS)] / costs.loc[costs["network"] == "resnet50", list(COSTS)].iloc[0]
        costs.insert(1, "image_size", size)
        tables.append(costs.join(ratios.add_suffix("_ratio")))
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[224, 512], help="pixels a side")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="forwards of each network; the fastest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    costs = table(arguments.image_sizes, arguments.batch_size, arguments.rounds, arguments.device)
    if arguments.output:
        costs.to_csv(arguments.output, index=False, lineterminator="\n", float_format="%.6g")
    shown = costs.assign(parameters=costs["parameters"] / 1e6, multiply_adds=costs["multiply_adds"] / 1e9)
    shown = shown.rename(columns={"parameters": "parameters_m", "multiply_adds": "multiply_adds_g"})
    print(f"PyTorch {torch.__version__}, {arguments.device}, {arguments.threads} threads, batch {arguments.batch_size}")
    print(shown.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
