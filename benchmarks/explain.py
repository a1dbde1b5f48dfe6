# SPDX-License-Identifier: Apache-2.0
"""What reporting costs inside an evaluation, as ratios made in one run: ResNet-50, 224 px, batch 8, two threads.

    python benchmarks/explain.py [--rounds 7] [--batches 4]

The variants take turns, so that a busy machine slows all of them alike; each runs twice in a row and the second is
timed, since what ran before leaves its memory behind. A ratio is the median over rounds of a variant's CPU time by that
of the plain evaluator in the same round. CPU time of all threads is counted, not the clock, and the clock's ratio is
printed beside it. Run it on a machine with nothing else to do: threads that wait for others count as busy. `captum`,
`grad-cam` and `torchcam` join where they are installed (`pip install monai_cnnprimer[bench]`).
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.visualize import GradCAM
from torch import Tensor

from monai_cnnprimer.explain.effective_receptive_field import effective_receptive_fields
from monai_cnnprimer.handlers import ActivationHandler, GradCamHandler
from monai_cnnprimer.networks import resnet50_classifier

LAYERS = ("layer1", "layer3", "layer4")
SIDE, BATCH, KEPT = 224, 8, 8
# What docs/performance.md promises; beside each figure stands whether it holds.
LIMITS = {
    "Grad-CAM of layer4, every image": 1.05,
    "the same and activations of three layers": 1.15,
    "Grad-CAM of three layers, every image": 2.1,
}
ERF_LIMITS = {224: 4.2, 512: 3.0}


class EveryImage:
    """Calls a library's own Grad-CAM for each batch of an evaluation, as its documentation shows."""

    def __init__(self, network: torch.nn.Module, explain: Callable[[Tensor], object]) -> None:
        self.network = network
        self.explain = explain

    def attach(self, engine: Engine) -> None:
        """Adds the handler to an evaluator."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Explains the batch by a pass of its own; the class is one number, where all libraries are right."""
        self.network.eval()
        with torch.enable_grad():
            self.explain(engine.state.batch["image"])  # type: ignore[index]


def variants(network: torch.nn.Module) -> dict[str, Callable[[], list[object]]]:
    """The handlers of each variant, made anew for each evaluation."""
    made: dict[str, Callable[[], list[object]]] = {
        "plain evaluator": list,
        "Grad-CAM of layer4, every image": lambda: [GradCamHandler(network, "layer4", KEPT)],
        "the same and activations of three layers": lambda: [
            GradCamHandler(network, "layer4", KEPT),
            ActivationHandler(network, LAYERS, KEPT),
        ],
        "Grad-CAM of three layers, every image": lambda: [GradCamHandler(network, LAYERS, KEPT)],
        "monai.visualize.GradCAM, layer4": lambda: [EveryImage(network, _monai(network))],
    }
    if find_spec("captum"):
        made["captum LayerGradCam, layer4"] = lambda: [EveryImage(network, _captum(network))]
    if find_spec("pytorch_grad_cam") and find_spec("torchvision"):  # which it imports
        made["pytorch-grad-cam GradCAM, layer4"] = lambda: [EveryImage(network, _pytorch_grad_cam(network))]
    if find_spec("torchcam"):
        made["torch-cam GradCAM, layer4"] = lambda: [EveryImage(network, _torchcam(network))]
    return made


def _monai(network: torch.nn.Module) -> Callable[[Tensor], object]:
    cam = GradCAM(network, target_layers="layer4")
    return lambda images: cam(images, class_idx=1)


def _captum(network: torch.nn.Module) -> Callable[[Tensor], object]:
    from captum.attr import LayerGradCam

    cam = LayerGradCam(network, network.get_submodule("layer4"))
    return lambda images: cam.attribute(images, target=1)


def _pytorch_grad_cam(network: torch.nn.Module) -> Callable[[Tensor], object]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def explain(images: Tensor) -> object:
        with pytorch_grad_cam.GradCAM(network, [network.get_submodule("layer4")]) as cam:
            return cam(images, [ClassifierOutputTarget(1)] * len(images))

    return explain


def _torchcam(network: torch.nn.Module) -> Callable[[Tensor], object]:
    from torchcam.methods import GradCAM as TorchCam

    def explain(images: Tensor) -> object:
        with TorchCam(network, "layer4") as cam:
            return cam(1, network(images))

    return explain


def field_tasks(network: torch.nn.Module, side: int) -> dict[str, Callable[[], object]]:
    """One forward of one image, and one measurement of three layers' effective receptive fields on it."""
    image = torch.rand(1, 1, side, side)

    def forward() -> None:
        with torch.no_grad():
            network(image)

    def fields() -> None:
        effective_receptive_fields(network, LAYERS, image, seeds=1)

    return {"forward": forward, "fields": fields}


def evaluate(network: torch.nn.Module, batches: list[dict[str, Tensor]], handlers: list[object]) -> None:
    """One evaluation with these handlers."""
    cpu = torch.device("cpu")
    SupervisedEvaluator(cpu, batches, network, val_handlers=handlers, decollate=False).run()  # type: ignore[arg-type]


def cost(task: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU and of the clock, the second time."""
    task()
    cpu, clock = time.process_time(), time.perf_counter()
    task()
    return time.process_time() - cpu, time.perf_counter() - clock


def ratios(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median over rounds of each task's CPU and clock time by those of the first, which stands beside it."""
    first = next(iter(tasks))
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds):
        costs = {name: cost(task) for name, task in tasks.items()}
        for name, (cpu, clock) in costs.items():
            seen[name].append((cpu / costs[first][0], clock / costs[first][1]))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in seen.items()}  # type: ignore[misc]


def peak_mib(name: str) -> float:
    """Peak memory of a process that runs one variant, in MiB."""
    command = [sys.executable, __file__, "--memory-of", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    network = resnet50_classifier().eval()
    batches = [
        {"image": torch.rand(BATCH, 1, SIDE, SIDE), "label": torch.zeros(BATCH, dtype=torch.int64)}
        for _ in range(options.batches)
    ]
    chosen = variants(network)
    if options.memory_of:
        for _ in range(2):
            evaluate(network, batches, chosen[options.memory_of]())
        # Not getrusage: its peak is handed on by the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
        return
    tasks = {name: lambda make=make: evaluate(network, batches, make()) for name, make in chosen.items()}
    measured = ratios(tasks, options.rounds)
    plain = peak_mib("plain evaluator")
    print(f"{'evaluator with':44} {'CPU':>6} {'clock':>6} {'+ MiB':>7}  limit")
    for name, (cpu, clock) in measured.items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"{limit:.2f} {'holds' if cpu <= limit else 'DOES NOT HOLD'}"
        print(f"{name:44} {cpu:6.3f} {clock:6.3f} {peak_mib(name) - plain:7.0f}  {verdict}", flush=True)
    ours = measured["Grad-CAM of layer4, every image"][0]
    for name in [name for name in measured if "GradC" in name or "GradCam" in name]:
        print(f"{name}: {measured[name][0] / ours:.2f} times our evaluation with Grad-CAM")
    for side, limit in ERF_LIMITS.items():
        cpu, clock = ratios(field_tasks(network, side), 3 * options.rounds)["fields"]
        verdict = f"{limit:.1f} {'holds' if cpu <= limit else 'DOES NOT HOLD'}"
        print(f"{f'receptive fields of three layers, {side} px, by one forward':60} {cpu:6.3f} {clock:6.3f}  {verdict}")


if __name__ == "__main__":
    main()
