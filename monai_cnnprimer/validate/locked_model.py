# SPDX-License-Identifier: Apache-2.0
"""What is carried from site to site: a bundle's weights, preprocessing and threshold, by their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_cnnprimer.networks import sha256_of_file
from monai_cnnprimer.run_directory import describe_sha256
from monai_cnnprimer.validate.operating_point import read_operating_point
from monai_cnnprimer.validate.sites import config_files, find_bundle


@dataclass(frozen=True)
class LockedModel:
    """A bundle with an operating point that belongs to it.

    Attributes:
        bundle: its folder.
        identity: bundle, bundle_version, weights_sha256, transforms_sha256, threshold, threshold_id.
        options: what the bundle's configuration is told, the same at every site.
        retune: criterion by which each site chooses its own threshold; None carries the locked one.
    """

    bundle: Path
    identity: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    retune: str | None = None


def locked_model(
    bundle: str | Path,
    operating_point: Path | None = None,
    retune: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LockedModel:
    """Checks, before anything is started, that bundle, weights, preprocessing and threshold belong together.

    Args:
        bundle: name or folder.
        operating_point: file; None takes the bundle's own.
        retune: see `LockedModel`.
        settings: options of the bundle's configuration, such as `batch_size`.

    Raises:
        FileNotFoundError: there is no such bundle, weights file or operating point.
        ValueError: the operating point was changed by hand.
        WeightsError: the operating point belongs to other weights, or to another preprocessing.
    """
    folder, told = find_bundle(bundle), dict(settings or {})
    weights = Path(told.get("weights", folder / "models" / "model.pt"))
    if not weights.is_file():
        raise FileNotFoundError(f"the bundle {folder.name} has no weights at {weights}")
    point_file = (operating_point or folder / "models" / "operating_point.json").expanduser().resolve()
    hashes = {"weights_sha256": sha256_of_file(weights), "transforms_sha256": preprocessing_sha256(folder, told)}
    point = read_operating_point(point_file, **hashes)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    identity = {"bundle": metadata["name"], "bundle_version": metadata["version"], **hashes}
    identity |= {"threshold": point["threshold"], "threshold_id": point["id"]}
    options = told | {"operating_point": str(point_file)} | ({"retune": retune} if retune else {})
    return LockedModel(folder, identity, options, retune)


def preprocessing_sha256(bundle: Path, settings: Mapping[str, Any] | None = None) -> str:
    """The hash that a run of this bundle writes as `transforms_sha256`."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files(bundle, ())))
    parser.update({"bundle_root": str(bundle), **(settings or {})})
    return describe_sha256(parser.get_parsed_content("preprocessing"))
