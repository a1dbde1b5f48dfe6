# SPDX-License-Identifier: Apache-2.0
"""Writes what each bundle shares with the others from its one source in `configs/`; `--check` fails when one is stale.

Figures in the model card come from `models/results.json`, which `docs/training.md` says how to measure.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "configs"
NETWORK = "monai_cnnprimer.networks.resnet50_classifier"
COPIES = ("inference.yaml", "evaluate.yaml", "train.yaml", "logging.conf")
GENERATED = "# Written by bundles/render.py from configs/{name}; change it there.\n"
OPTIONAL = ("nibabel", "simpleitk", "pydicom", "pytorch-ignite", "pandas", "scikit-learn")


def rendered(bundle: str, about: dict[str, Any]) -> dict[Path, str]:
    """Every generated file of a bundle, by its path; a bundle that is not trained yet has no model card."""
    folder = ROOT / "bundles" / bundle
    files = {folder / "configs" / name: _config(name, bundle, about) for name in COPIES}
    files[folder / "configs" / "metadata.json"] = json.dumps(_metadata(bundle, about), indent=2) + "\n"
    files[folder / "LICENSE"] = (ROOT / "LICENSE").read_text()
    environment = Environment(
        loader=FileSystemLoader(SOURCES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    results = _results(bundle)
    if results is None:
        return files
    encoder = _results("chest_xray_resnet50")
    about = {**about, "encoder_sha256": encoder["weights_sha256"] if encoder else None}
    for source, target in (("model_card.md.j2", "README.md"), ("data_license.txt.j2", "data_license.txt")):
        text = environment.get_template(source).render(name=bundle, results=results, **about)
        files[folder / "docs" / target] = text
    return files


def _config(name: str, bundle: str, about: dict[str, Any]) -> str:
    text = (SOURCES / name).read_text().replace(NETWORK, about["network"])
    if name == "train.yaml":
        for setting, value in about.get("training", {}).items():
            text, found = re.subn(rf"(?m)^{setting}: \S+$", f"{setting}: {value}", text)
            if found != 1:
                raise ValueError(f"{bundle}: train.yaml has no line {setting!r} to set")
    return GENERATED.format(name=name) + text.replace("bundles/NAME", f"bundles/{bundle}")


def _metadata(bundle: str, about: dict[str, Any]) -> dict[str, Any]:
    shared = yaml.safe_load((SOURCES / "metadata.yaml").read_text())
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    results = _results(bundle)
    metrics = {f"test_{name}": results["test"][name]["value"] for name in ("auroc", "accuracy")} if results else {}
    first, last = ("schema", "version", "changelog"), "network_data_format"
    return {
        "name": bundle,
        **{key: shared[key] for key in first},
        "monai_version": pinned["monai"],
        "pytorch_version": pinned["torch"],
        "numpy_version": pinned["numpy"],
        "required_packages_version": {package: pinned[package] for package in OPTIONAL},
        "description": about["description"],
        **{key: value for key, value in shared.items() if key not in (*first, last)},
        "eval_metrics": metrics,
        last: shared[last],
    }


def _results(bundle: str) -> dict[str, Any] | None:
    path = ROOT / "bundles" / bundle / "models" / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> int:
    """Writes the files, or with `--check` names those that are stale and returns 1."""
    bundles = yaml.safe_load((SOURCES / "bundles.yaml").read_text())
    files = {path: text for bundle, about in bundles.items() for path, text in rendered(bundle, about).items()}
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        print(f"stale: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
