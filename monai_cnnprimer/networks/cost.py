# SPDX-License-Identifier: Apache-2.0
"""What a network costs: parameters, multiply-adds, milliseconds an image, peak memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch.nn import Module
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20


def cost_table(
    networks: Mapping[str, Module], image_size: int = 224, batch_size: int = 1, rounds: int = 20
) -> pd.DataFrame:
    """Cost of one forward of each network, in inference mode and the number type of its weights.

    Times are the fastest of `rounds` in which the networks take turns, so that a busy machine slows all alike and the
    quotients hold. Memory is what PyTorch allocates, followed event by event: the same on every run, but without what
    oneDNN or cuDNN take for themselves and what the heap cannot reuse (resident memory grew by 1.3 to 1.9 times as
    much for these networks, 16 images of 224 pixels, on a CPU).

    Args:
        networks: name to network `(N, 1, H, W) -> ...`, each on its device; left in the mode it came in.
        image_size: H and W in pixels.
        batch_size: N.
        rounds: forwards that are timed, after one that is not.

    Returns:
        One row a network: `network`, `parameters`, `multiply_adds` (of one image; convolutions and matrix products,
        as PyTorch counts them), `ms_per_image` (by the clock), `cpu_ms_per_image` (by this process on all its
        threads, less disturbed by others), `peak_memory_mib` (parameters, buffers, and what the forward allocates at
        its height, of the whole batch).

    Raises:
        ValueError: no network, or no rounds.

    Example:
        >>> table = cost_table({"conv": torch.nn.Conv2d(1, 4, 3, padding=1)}, image_size=8, rounds=1)
        >>> table[["parameters", "multiply_adds"]].values.tolist()
        [[40, 2304]]
    """
    if not networks or rounds < 1:
        raise ValueError(f"{len(networks)} networks and {rounds} rounds: nothing to measure")
    training = [module for network in networks.values() for module in network.modules() if module.training]
    images = {name: _image(network, image_size, batch_size) for name, network in networks.items()}
    try:
        with torch.inference_mode():
            for network in networks.values():
                network.eval()
            rows = {name: _counts(network, images[name]) for name, network in networks.items()}
            clock, cpu = _fastest(networks, images, rounds)
    finally:
        for module in training:
            module.training = True
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("network").reset_index()
    milliseconds = {"ms_per_image": clock, "cpu_ms_per_image": cpu}
    for place, (column, seconds) in enumerate(milliseconds.items(), start=3):
        table.insert(place, column, [seconds[name] * 1000 / batch_size for name in networks])
    return table


def _counts(network: Module, image: torch.Tensor) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        network(image)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": counter.get_total_flops() // 2 // len(image),
        "peak_memory_mib": (kept + _peak_bytes(network, image)) / MIB,
    }


def _fastest(
    networks: Mapping[str, Module], images: Mapping[str, torch.Tensor], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the fastest forward of each network, by the clock and by the processor."""
    clock = dict.fromkeys(networks, float("inf"))
    cpu = dict(clock)
    for turn in range(rounds + 1):
        for name, network in networks.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            network(images[name])
            if images[name].is_cuda:
                torch.cuda.synchronize(images[name].device)
            if turn:
                clock[name] = min(clock[name], time.perf_counter() - start)
                cpu[name] = min(cpu[name], time.process_time() - cpu_start)
    return clock, cpu


def _peak_bytes(network: Module, image: torch.Tensor) -> int:
    """Most bytes that one forward holds beyond what was there before."""
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats(image.device)
        before = torch.cuda.memory_allocated(image.device)
        network(image)
        torch.cuda.synchronize(image.device)
        return torch.cuda.max_memory_allocated(image.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network(image)
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, change in memory:
        held += change
        peak = max(peak, held)
    return peak


def _image(network: Module, size: int, batch_size: int) -> torch.Tensor:
    like = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, 1, size, size, generator=generator).to(like)
