# SPDX-License-Identifier: Apache-2.0
"""Prints images a second of the benchmark's training and of the bare loop: `python benchmarks/findings.py`."""

from __future__ import annotations

import argparse
import time

import torch

from monai_cnnprimer.training.arms import READS, build_arm
from monai_cnnprimer.training.arms_data import Examples, lung_crops
from monai_cnnprimer.training.arms_loss import ArmLoss, Named
from monai_cnnprimer.training.arms_run import BatchInferer, Optimisation, train
from monai_cnnprimer.validate.findings import MM_BINS, normals


def bare_loop(named: Named, examples: Examples, optimisation: Optimisation) -> None:
    """The same steps without an engine."""
    loss_of, infer = ArmLoss(named.strides, "masks"), BatchInferer(optimisation.bfloat16)
    optimizer = torch.optim.AdamW(
        named.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimisation.learning_rate, total_steps=len(examples) + 1, pct_start=0.25
    )
    named.train()
    for batch in examples:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(infer(batch.image, named), (batch.label, batch.mask))
        loss.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(READS))
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts; the two take turns")
    arguments = parser.parse_args()
    radiographs = lung_crops(normals(("phantom",), arguments.size, 24), arguments.crop)
    examples = Examples(radiographs, arguments.batches, 32, MM_BINS, 0.42, seed=0, keep=True)
    images = sum(len(batch.label) for batch in examples)  # made now, not while the clock runs
    optimisation, device = Optimisation(), torch.device("cpu")
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.crop} px, batch 32")
    for name in arguments.arms:
        fastest = {"trainer": float("inf"), "bare": float("inf")}
        for _ in range(arguments.rounds):
            for kind in fastest:
                arm = build_arm(name, 0, arguments.width).to(memory_format=torch.channels_last)
                start = time.perf_counter()
                if kind == "trainer":
                    train(arm, examples, "masks", optimisation, device)
                else:
                    bare_loop(Named(arm), examples, optimisation)
                fastest[kind] = min(fastest[kind], time.perf_counter() - start)
        speed = {kind: images / seconds for kind, seconds in fastest.items()}
        share = speed["trainer"] / speed["bare"]
        print(f"{name:>10}: {speed['trainer']:.0f} images/s, bare loop {speed['bare']:.0f}, share {share:.2f}")


if __name__ == "__main__":
    main()
