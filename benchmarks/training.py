# SPDX-License-Identifier: Apache-2.0
"""Prints how fast a bundle trains by the bare loop: `python benchmarks/training.py --bundle bundles/NAME`."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from PIL import Image

from monai_cnnprimer.phantom import Finding, render


def image_folder(folder: Path, images: int, image_size: int) -> None:
    """Phantoms as PNG files and `manifest.csv` for `train.yaml`: an image a patient, half with a consolidation."""
    rows = []
    for number in range(images):
        findings = [Finding("consolidation", mm=60)] if number % 2 else []
        pixels = (render(seed=number, size=image_size, findings=findings).image * 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{number}.png")
        word, part = ("NORMAL", "PNEUMONIA")[number % 2], "test" if number % 10 < 2 else "train"
        rows.append({"path": f"{number}.png", "label": word, "patient_id": f"p{number}", "split": part})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


def parser_of(bundle: Path, folder: Path, epochs: int, **settings: Any) -> ConfigParser:
    """The bundle's own `train.yaml`, made to train on the folder and to validate once, at the end."""
    config = ConfigParser()
    config.read_config([bundle / "configs" / "train.yaml"])
    output = {"output_dir": str(folder / "run"), "max_epochs": epochs, "val_interval": epochs}
    config.update({"bundle_root": str(bundle), "dataset_dir": str(folder), **output, **settings})
    return config


def trained(config: ConfigParser) -> tuple[list[float], torch.Tensor]:
    """Seconds of each iteration of the bundle's trainer, from one end to the next within an epoch, and a batch."""
    for name in ("imports", "initialize"):
        config.get_parsed_content(name)
    trainer = config.get_parsed_content("train#trainer")
    ends: list[tuple[int, float]] = []
    held: list[torch.Tensor] = []

    def note(engine: Any) -> None:
        ends.append((engine.state.epoch, time.perf_counter()))
        held[:] = [engine.state.batch["image"]]

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    return [now - before for (one, before), (other, now) in zip(ends, ends[1:], strict=False) if one == other], held[0]


def bare(config: ConfigParser, image: torch.Tensor, iterations: int) -> list[float]:
    """Seconds of each iteration of a plain loop over one batch in memory: same network, loss, optimiser, precision."""
    network, loss = config.get_parsed_content("network"), config.get_parsed_content("train#loss")
    optimizer, inferer = config.get_parsed_content("train#optimizer"), config.get_parsed_content("train#inferer")
    label = torch.arange(len(image)) % 2
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        loss(inferer(image, network), label).backward()
        optimizer.step()

    return [_seconds(step) for _ in range(iterations)]


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--bundle", type=Path, default=Path("bundles/chest_xray_resnet50"))
    arguments.add_argument("--images", type=int, default=480)
    arguments.add_argument("--image-size", type=int, default=160)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--iterations", type=int, default=15, help="of the bare loop")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_folder(folder, asked.images, asked.image_size)
        config = parser_of(asked.bundle.resolve(), folder, asked.epochs, image_size=asked.image_size)
        times, image = trained(config)
        plain = bare(config, image, asked.iterations)[2:]
    batch = len(image)
    own, loop = statistics.median(times) / batch, statistics.median(plain) / batch
    print(f"{asked.bundle.name}, {asked.image_size} px, batch {batch}, {torch.get_num_threads()} threads")
    print(f"bundle: {own * 1000:.1f} ms an image (n = {len(times)}); bare loop: {loop * 1000:.1f} (n = {len(plain)})")
    print(f"share of the bare loop's speed: {loop / own:.3f}")


if __name__ == "__main__":
    main()
