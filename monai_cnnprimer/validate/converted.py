# SPDX-License-Identifier: Apache-2.0
"""A bundle's network as a file for other runtimes, held against the bundle on images, with a record beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from monai_cnnprimer.atomic import write_atomically
from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.networks import load_weights, sha256_of_file
from monai_cnnprimer.networks.export import (
    INPUT,
    OUTPUT,
    SMALLEST_SIDE,
    SUFFIXES,
    export_network,
    load_exported,
    logits_in_batches,
)
from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.run_directory import digest_of, package_versions
from monai_cnnprimer.validate.locked_model import LockedModel, locked_model
from monai_cnnprimer.validate.sites import config_files

LARGEST_DIFFERENCE = 1e-4
"""Of a logit: thirty times the most that rounding was seen to make; a probability moves by 0.00005 at most."""
BATCH_SIZES = (1, 3)
USE = "Research use only, not for clinical use."
_KEY = b"only orders the images; nothing of it is written"


def convert_bundle(
    bundle: str | Path,
    form: str,
    output: str | Path,
    images: str | Path | None = None,
    count: int = 8,
    operating_point: Path | None = None,
) -> dict[str, Any]:
    """Exports a bundle's network, measures how far the file is from the bundle, and records both.

    The images go through the bundle's own reader and preprocessing, once at its image size and once at about one and
    a half times that, not square; each in two batch sizes.

    Args:
        bundle: name or folder.
        form: ``onnx``, ``program`` or ``torchscript``.
        output: folder that gets ``NAME.onnx`` (or ``.pt2``, ``.ts``) and ``NAME.onnx.json``.
        images: an export or a folder of images; phantoms when None.
        count: at most so many images.
        operating_point: file; None takes the bundle's own.

    Returns:
        What stands in the JSON; `comparison.passed` says whether no logit differs by more than `LARGEST_DIFFERENCE`
        and no image is called otherwise.

    Raises:
        FileNotFoundError: there is no such bundle, weights file, operating point or export.
        ValueError: an unknown format, packages that it needs are missing, or no image can be read.
        WeightsError: the operating point belongs to other weights, or to another preprocessing.
    """
    if form not in SUFFIXES:
        raise ValueError(f"unknown format {form!r}: choose of {', '.join(SUFFIXES)}")
    model = locked_model(bundle, operating_point)
    network = load_weights(_parsed(model, "network_def"), model.bundle / "models" / "model.pt").eval()
    file = Path(output).expanduser() / f"{model.identity['bundle']}{SUFFIXES[form]}"
    inputs = _inputs(model, images, count)
    export_network(network, file, {"intended_use": USE, **model.identity})
    compared = _comparison(network, file, inputs, float(model.identity["threshold"]))
    compared = {"images": "phantoms" if images is None else "given", **compared}
    record = _record(model, form, file) | {"comparison": compared}
    write_atomically(file.with_name(f"{file.name}.json"), json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def _comparison(network: torch.nn.Module, file: Path, inputs: Sequence[Tensor], threshold: float) -> dict[str, Any]:
    exported, rows = load_exported(file), []
    for images in inputs:
        expected = logits_in_batches(network, images, len(images))
        for batch_size in BATCH_SIZES:
            logits = logits_in_batches(exported, images, batch_size)
            calls = [said.softmax(1)[:, 1] >= threshold for said in (expected, logits)]
            rows.append(
                {
                    "batch_size": batch_size,
                    "height": images.shape[2],
                    "width": images.shape[3],
                    "n": len(images),
                    "largest_logit_difference": (logits - expected).abs().max().item(),
                    "called_otherwise": int((calls[0] != calls[1]).sum()),
                }
            )
    largest = max(row["largest_logit_difference"] for row in rows)
    passed = largest <= LARGEST_DIFFERENCE and not any(row["called_otherwise"] for row in rows)
    limits = {"largest_logit_difference": largest, "limit": LARGEST_DIFFERENCE, "passed": passed}
    return {"n": len(inputs[0]), **limits, "runs": rows}


def _inputs(model: LockedModel, export: str | Path | None, count: int) -> list[Tensor]:
    """The network's inputs `(N, 1, H, W)` of the same images at two sizes."""
    size = int(_parsed(model, "image_size"))
    larger = max(size * 3 // 2 + 1, SMALLEST_SIDE)
    with TemporaryDirectory() as folder:
        if export is None:
            write_export(Path(folder) / "phantoms", count, sites=1, size=256, progress=False)
            export = Path(folder) / "phantoms" / "sites"
        views = _parsed(model, "views")
        cases = index_export(export, "site", _KEY, views=views, workers=1, progress=False).cases()[:count]
        square, cut = (
            [item["image"] for item in CaseDataset(cases, _parsed(model, "preprocessing", image_size=side))]
            for side in (size, larger)
        )
    if not square or len(square) != len(cut):
        raise ValueError(f"{len(square)} images can be read: give others; cnnprimer index says why each is refused")
    return [torch.stack(square), torch.stack(cut)[..., : larger * 3 // 4]]


def _record(model: LockedModel, form: str, file: Path) -> dict[str, Any]:
    metadata = json.loads((model.bundle / "configs" / "metadata.json").read_text())
    point_file = Path(model.options["operating_point"])
    identity = model.identity
    return {
        "intended_use": USE,
        "file": file.name,
        "format": form,
        "sha256": sha256_of_file(file),
        "bundle": identity["bundle"],
        "bundle_version": identity["bundle_version"],
        "weights_sha256": identity["weights_sha256"],
        "operating_point": {
            "id": identity["threshold_id"],
            "threshold": identity["threshold"],
            "sha256": digest_of(json.loads(point_file.read_text())),
        },
        "preprocessing": {
            "sha256": identity["transforms_sha256"],
            "image_size": int(_parsed(model, "image_size")),
            "transforms": _parser(model).get("preprocessing")["transforms"],
        },
        "input": {"name": INPUT, "shape": ["batch", 1, "height", "width"], "smallest_side": SMALLEST_SIDE},
        "output": {"name": OUTPUT, "shape": ["batch", 2], "classes": metadata["pred_classes"]},
        "versions": package_versions() | _versions(("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()),
    }


def _parser(model: LockedModel, **settings: Any) -> ConfigParser:
    parser = ConfigParser(ConfigParser.load_config_files(config_files(model.bundle, ())))
    parser.update({"bundle_root": str(model.bundle), **settings})
    return parser


def _parsed(model: LockedModel, name: str, **settings: Any) -> Any:
    return _parser(model, **settings).get_parsed_content(name)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # some vendors build it under another name
            found[name] = "unknown"
    return found
