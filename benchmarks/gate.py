# SPDX-License-Identifier: Apache-2.0
"""Does the shortcut gate trip where a shortcut was planted, and only there?

    python benchmarks/gate.py OUTPUT [--minutes 25] [--seeds 2] [--clean-seeds 6]

Small networks are trained on phantoms whose label is a consolidation, faint or bright. Every training set has side
markers, bright and dark exposures, and collimated borders; one of them follows the label with a chosen correlation, or
none does (clean). Each network is then audited by the gate as `cnnprimer audit` does it, with `configs/gate.yaml`.

Leaves `result.json`, `result.md` and `power.png`. It is killed and started again at will: each network has a file in
`models/`, and what is there is not trained again. The marker that is planted is drawn by the phantom, the one that the
gate inserts by a font; exposure and border are planted with other strengths than the gate's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRangePercentiles

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.explain.shortcuts import Subject
from monai_cnnprimer.figures.gate import power_png
from monai_cnnprimer.phantom import SITES, Finding, render
from monai_cnnprimer.phantom.letters import draw_marker
from monai_cnnprimer.phantom.raster import Grid
from monai_cnnprimer.training.arms import build_arm
from monai_cnnprimer.validate.audit import AuditCase, Explained, Gate, attribution, judge, measure, read_gate
from monai_cnnprimer.validate.statistics import auroc, proportion

KINDS = ("marker", "exposure", "border")
LAYERS = ["layer3", "layer4"]
SITE = SITES[0]
EXPOSURES = (1.15, 1.7)  # factors on the odds of a grey value, or their inverse
BORDERS = (0.015, 0.08)
_PREPARE = Compose([
    ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True), NormalizeIntensity(subtrahend=0.449, divisor=0.226),
])  # fmt: skip


class Model(NamedTuple):
    """One network to train: what is planted (none: clean), how strongly it follows the label, how faint the finding."""

    planted: str
    correlation: float
    contrast: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.planted}-{self.correlation:g}-contrast{self.contrast:g}-seed{self.seed}"


class Pool(NamedTuple):
    """Patients without marker or border, every second one ill: images `(N, size, size)` by contrast, labels, lungs."""

    images: dict[float, np.ndarray]
    label: np.ndarray
    lung: np.ndarray


class Drawn(NamedTuple):
    """A set of examples as a model meets them: images in [0, 1], labels, lungs and markers."""

    images: np.ndarray
    label: np.ndarray
    lung: np.ndarray
    marker: np.ndarray


def pool_of(file: Path, first: int, count: int, size: int, contrasts: Sequence[float]) -> Pool:
    """Renders patients once for all models; kept in a file."""
    if not file.is_file():
        label = np.arange(count) % 2
        images = {contrast: np.zeros((count, size, size), np.float16) for contrast in contrasts}
        lung = np.zeros((count, size, size), dtype=bool)
        for i in range(count):
            random = np.random.default_rng([7, first + i])
            mm = float(random.uniform(35, 85))
            for contrast in contrasts if label[i] else contrasts[:1]:
                taken = render(first + i, size, SITE, [Finding("consolidation", mm, contrast)] if label[i] else [])
                images[contrast][i], lung[i] = taken.image, taken.masks["lung"]
            if not label[i]:
                for contrast in contrasts[1:]:
                    images[contrast][i] = images[contrasts[0]][i]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, label=label, lung=lung, **{f"image{contrast:g}": held for contrast, held in images.items()})
        partial.replace(file)
    with np.load(file) as held:
        images = {contrast: held[f"image{contrast:g}"].astype(np.float32) for contrast in contrasts}
        return Pool(images, held["label"], held["lung"])


def drawn(pool: Pool, model: Model, correlation: float, stream: int) -> Drawn:
    """The pool as a hospital has it: one habit follows the label, the others do not."""
    random = np.random.default_rng([stream, model.seed, KINDS.index(model.planted) if model.planted in KINDS else 9])
    images, size = pool.images[model.contrast].copy(), pool.lung.shape[-1]
    marker = np.zeros(pool.lung.shape, dtype=bool)
    for i, label in enumerate(pool.label):
        follows = {kind: correlation if kind == model.planted else 0.0 for kind in KINDS}
        has = {kind: random.random() < 0.5 + follows[kind] * (label - 0.5) for kind in KINDS}
        factor = float(random.uniform(*EXPOSURES)) ** (1 if has["exposure"] else -1)
        image = images[i] * factor / (1 + images[i] * (factor - 1))
        top, bottom, left, right = (1 + int(share * size) for share in random.uniform(*BORDERS, 4))
        if has["border"]:
            image[:top] = image[size - bottom :] = 0
            image[:, :left] = image[:, size - right :] = 0
        ink = draw_marker(Grid(size, SITE.width_mm), "R", random)
        if has["marker"]:
            image = image * (1 - ink) + 0.97 * ink
            marker[i] = ink > 0.5
        images[i] = image.clip(0, 1)
    return Drawn(images, pool.label, pool.lung, marker)


def prepared(images: np.ndarray) -> torch.Tensor:
    """Inputs of the network `(N, 1, H, W)`, as the bundles prepare them."""
    return torch.stack([torch.as_tensor(_PREPARE(image[None])) for image in images])


def trained(model: Model, examples: Drawn, width: float, epochs: int, batch: int = 32) -> torch.nn.Module:
    """A ResNet-50 of a share of its width, trained on the examples with shifts of a few pixels."""
    network = build_arm("resnet50", model.seed, width).network
    inputs, labels = prepared(examples.images), torch.as_tensor(examples.label)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps + 1, pct_start=0.3)
    order = torch.Generator().manual_seed(model.seed)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=order)[: len(labels) // batch * batch].split(batch):
            down, right = torch.randint(-3, 4, (2,), generator=order).tolist()
            optimizer.zero_grad(set_to_none=True)
            logits = network(torch.roll(inputs[rows], (down, right), (2, 3)))
            torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def asked(network: torch.nn.Module, images: Sequence[np.ndarray]) -> np.ndarray:
    """Log odds `(N,)`; images of another shape are asked by themselves."""
    with torch.inference_mode():
        parts = [network(batch).double() for batch in prepared(np.stack(list(images))).split(64)]
    logits = torch.cat(parts)
    return (logits[:, 1] - logits[:, 0]).numpy()


def audited(model: Model, network: torch.nn.Module, tests: Pool, gate: Gate) -> dict[str, Any]:
    """What the gate says, at home; how well the network does there and elsewhere; and what attribution would say."""
    inside, outside = (drawn(tests, model, correlation, 2) for correlation in (model.correlation, 0.0))
    scores = {name: asked(network, of.images) for name, of in (("inside", inside), ("outside", outside))}
    told: dict[str, Any] = {f"auroc_{name}": auroc(tests.label, score).value for name, score in scores.items()}
    threshold = float(1 / (1 + np.exp(-np.clip(np.median(scores["inside"]), -30, 30))))
    cases = [
        AuditCase(f"{i:04d}", f"{i:04d}", int(inside.label[i]),
                  Subject(inside.images[i], {"lung": inside.lung[i], "marker": inside.marker[i]}))
        for i in range(len(inside.label))
    ]  # fmt: skip
    table = measure(cases, lambda images, _: asked(network, images), gate.names, model.seed, keep=1).table
    result = judge(table, threshold, gate, resamples=1000)
    told |= {name: result[name] for name in ("verdict", "reason", "spread")}
    told["interventions"] = {
        name: {key: entry[key] for key in ("n", "verdict", "change", "shift", "flips", "control", "judged")}
        for name, entry in result["interventions"].items()
    }
    marked = [i for i in range(len(inside.label)) if inside.marker[i].any()][:24]
    explained = [
        Explained(f"{i}", prepared(inside.images[i : i + 1])[0], {"marker": inside.marker[i], "lung": inside.lung[i]})
        for i in marked
    ]
    return told | {"attribution": attribution(network, LAYERS, explained, model.seed)}


def planned(options: argparse.Namespace) -> Iterator[Model]:
    """All models, in an order of which every beginning is worth something: seed by seed."""
    for seed in range(max(options.seeds, options.clean_seeds)):
        for contrast in options.contrasts:
            if seed < options.clean_seeds:
                yield Model("none", 0.0, contrast, seed)
            if seed < options.seeds:
                for correlation in options.correlations:
                    yield Model("marker", correlation, contrast, seed)
                for kind in ("exposure", "border"):
                    yield Model(kind, options.others, contrast, seed)


def accused(told: dict[str, Any]) -> bool | None:
    """Whether attribution alone would accuse the marker: mass beyond chance, with all of its interval, on fit maps."""
    regions = [told["attribution"].get(layer, {}).get("regions") for layer in LAYERS]
    marks = [of["marker"] for of in regions if of and "marker" in of]
    return any(mark["low"] is not None and mark["low"] > 1 for mark in marks) if marks else None


def tripped_by(told: dict[str, Any]) -> list[str]:
    return [name for name, entry in told["interventions"].items() if entry["verdict"] == "fail"]


def table_of(done: dict[Model, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind, correlation and contrast: how often the gate tripped, with Wilson's interval."""
    rows = []
    for key in dict.fromkeys((model.planted, model.correlation, model.contrast) for model in done):
        some = [told for model, told in done.items() if model[:3] == key]
        verdicts = [told["verdict"] for told in some]
        accusations = [accused(told) for told in some]
        share = proportion(verdicts.count("fail"), len(some))
        by = [name for told in some for name in tripped_by(told)]
        known = [one for one in accusations if one is not None]
        moved = [told["interventions"]["marker_insert"]["shift"]["value"] for told in some]
        rows.append({
            "planted": key[0], "correlation": key[1], "contrast": key[2], "runs": len(some),
            "fail": share.k, "undecided": verdicts.count("undecided"), "pass": verdicts.count("pass"),
            "rate": share.value, "low": share.low, "high": share.high,
            "by": {name: by.count(name) for name in dict.fromkeys(by)},
            "auroc_inside": float(np.mean([told["auroc_inside"] for told in some])),
            "auroc_outside": float(np.mean([told["auroc_outside"] for told in some])),
            "marker_shift": float(np.mean([value for value in moved if value is not None])),
            "attribution_accuses_marker": sum(known), "attribution_known": len(known),
        })  # fmt: skip
    return rows


def summed(done: dict[Model, dict[str, Any]]) -> dict[str, Any]:
    """The two promises: clean models trip in 5 % at most, markers planted at 0.8 or more in 95 % at least."""
    groups = {
        "false_alarms": [told for model, told in done.items() if model.planted == "none"],
        "power_marker_0.8": [told for m, told in done.items() if m.planted == "marker" and m.correlation >= 0.8],
    }
    told: dict[str, Any] = {}
    for name, some in groups.items():
        share = proportion(sum(one["verdict"] == "fail" for one in some), len(some))
        told[name] = {"value": share.value, "low": share.low, "high": share.high, "k": share.k, "n": share.n}
    return told


def write(output: Path, done: dict[Model, dict[str, Any]], about: dict[str, Any]) -> None:
    """The result as JSON, as a table, and as a figure."""
    rows, promises = table_of(done), summed(done)
    result = {"about": about, "promises": promises, "table": rows}
    write_atomically(output / "result.json", json.dumps(result, indent=2) + "\n")
    head = "| planted | correlation | contrast | runs | fail (95 %) | undecided | by | AUROC inside | outside |" \
           " marker moves, SD | attribution accuses marker |"  # fmt: skip
    lines = [head, "|" + "---|" * 11]
    for row in rows:
        rate = f"{row['fail']} ({100 * row['low']:.0f} to {100 * row['high']:.0f} %)"
        by = ", ".join(f"{name} {count}" for name, count in row["by"].items())
        lines.append(
            f"| {row['planted']} | {row['correlation']:g} | {row['contrast']:g} | {row['runs']} | {rate} | "
            f"{row['undecided']} | {by} | {row['auroc_inside']:.3f} | {row['auroc_outside']:.3f} | "
            f"{row['marker_shift']:.2f} | {row['attribution_accuses_marker']} of {row['attribution_known']} |"
        )
    told = [
        f"{name}: {one['k']} of {one['n']}"
        + ("" if one["low"] is None else f" ({one['low']:.3f} to {one['high']:.3f})")
        for name, one in promises.items()
    ]
    write_atomically(output / "result.md", "\n".join([*lines, "", *(f"- {text}" for text in told), ""]))
    panels: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        clean = row["planted"] == "none"
        for heading in KINDS if clean else (row["planted"],):
            line = panels.setdefault(f"{heading} planted", {}).setdefault(f"contrast {row['contrast']:g}", [])
            line.append(("clean" if clean else f"{row['correlation']:g}", (row["rate"], row["low"], row["high"])))
    if panels:
        title = f"How often the gate trips, {about['network']}"
        write_atomically(output / "power.png", power_png(panels, title))


def main() -> None:
    """Trains and audits what is missing, within the time, and writes what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=25, help="no further model is begun after that")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--clean-seeds", type=int, default=6)
    parser.add_argument("--correlations", type=float, nargs="+", default=[0.5, 0.8, 0.95, 1.0])
    parser.add_argument("--others", type=float, default=0.95, help="correlation of exposure and border")
    parser.add_argument("--contrasts", type=float, nargs="+", default=[0.3, 0.7])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--train", type=int, default=960)
    parser.add_argument("--cases", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--gate", type=Path, default=None)
    options = parser.parse_args()
    began = time.monotonic()
    setting = {name: getattr(options, name) for name in ("size", "width", "train", "cases", "epochs", "contrasts")}
    gate = read_gate(options.gate)
    about = setting | {
        "network": f"ResNet-50 of width {options.width:g}, {options.size} px, {options.train} phantoms",
        "gate_sha256": gate.sha256,
    }
    record = options.output / "about.json"
    if record.is_file() and json.loads(record.read_text()) != about:
        raise SystemExit(f"{options.output} holds models of another setting or gate: choose another folder")
    write_atomically(record, json.dumps(about, indent=2) + "\n")
    pools = {
        name: pool_of(options.output / f"{name}.npz", first, count, options.size, options.contrasts)
        for name, first, count in (("train", 0, options.train), ("test", 100_000, options.cases))
    }
    print(f"{time.monotonic() - began:.0f} s: phantoms", flush=True)
    gate = Gate(gate.limits, (), gate.patients_needed, gate.level, gate.sha256)
    done: dict[Model, dict[str, Any]] = {}
    for model in planned(options):
        file = options.output / "models" / f"{model.name}.json"
        if not file.is_file():
            if time.monotonic() - began > 60 * options.minutes:
                continue
            network = trained(model, drawn(pools["train"], model, model.correlation, 1), options.width, options.epochs)
            write_atomically(file, json.dumps(audited(model, network, pools["test"], gate), indent=1) + "\n")
        done[model] = json.loads(file.read_text())
        told = done[model]
        print(f"{time.monotonic() - began:.0f} s: {model.name}: {told['verdict']} {tripped_by(told)}, AUROC "
              f"{told['auroc_inside']:.3f} inside, {told['auroc_outside']:.3f} outside", flush=True)  # fmt: skip
    write(options.output, done, about)
    print((options.output / "result.md").read_text())


if __name__ == "__main__":
    main()
