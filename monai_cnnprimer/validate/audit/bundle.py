# SPDX-License-Identifier: Apache-2.0
"""The bundle that is audited: its network, its reader and its preprocessing, with room between the two."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from numpy.typing import NDArray

from monai_cnnprimer.dataset import CaseDataset
from monai_cnnprimer.dicom.export import Manifest
from monai_cnnprimer.dicom.masks import RegionMasks
from monai_cnnprimer.explain.shortcuts import Subject
from monai_cnnprimer.validate.audit.measuring import AuditCase
from monai_cnnprimer.validate.locked_model import locked_model
from monai_cnnprimer.validate.sites import config_files

MOST_PIXELS = 768  # of the longer side: several times what networks take, and a tenth of a detector's pixels
_SETTINGS = ("weights", "image_size")  # on which the identity of the model hangs


class AuditedBundle:
    """A bundle's own parts, as its `inference.yaml` states them.

    Args:
        bundle: name or folder.
        operating_point: file; None takes the bundle's own.
        options: of the bundle's configuration: `dataset_dir`, `labels`, `site`, `output_dir`, ...

    Attributes:
        identity: of bundle, weights, preprocessing and threshold.
        threshold: probability from which the finding is called.
        network: in evaluation mode.
        layers: those that `configs/explain.yaml` draws maps of.
        preprocessing: the whole of it, beginning with the reader.
        image_size: pixels at the network's input.

    Raises:
        FileNotFoundError: there is no such bundle, weights file or operating point.
        ValueError: they do not belong together, or the preprocessing does not begin with a reader.
    """

    def __init__(self, bundle: str | Path, operating_point: Path | None, options: Mapping[str, Any]) -> None:
        model = locked_model(bundle, operating_point, settings={k: v for k, v in options.items() if k in _SETTINGS})
        self.identity = model.identity
        self.threshold = float(model.identity["threshold"])
        parser = ConfigParser(ConfigParser.load_config_files(config_files(model.bundle, ("explain",))))
        parser.update({"bundle_root": str(model.bundle), **options})
        self._parser = parser
        self.layers: list[str] = self._part("gradcam_layers")
        self.preprocessing: Compose = self._part("preprocessing")
        self._load = self.preprocessing.transforms[0]
        if not isinstance(self._load, LoadImaged):
            raise ValueError("the bundle's preprocessing must begin with LoadImaged: interventions come right after it")
        self._rest = Compose(self.preprocessing.transforms[1:])
        self.device = self._part("device")
        self.batch_size = int(self._part("batch_size"))
        self.image_size = int(parser.get_parsed_content("image_size"))
        self.image_size = int(self._part("image_size"))
        self.network: torch.nn.Module = self._part("network").to(self.device).eval()

    def index(self) -> Manifest:
        """What the export holds; `manifest.csv` and `refused.csv` are written as by any run."""
        manifest: Manifest = self._part("manifest")
        return manifest

    def logits(self, images: Sequence[NDArray[np.float32]], receipt: Mapping[str, Any]) -> NDArray[np.float64]:
        """Log odds of the finding `(N,)` of images `(H, W)` in [0, 1], through the preprocessing behind the reader."""
        inputs = [self.prepared(image, receipt) for image in images]
        said = []
        with torch.inference_mode():
            for start in range(0, len(inputs), self.batch_size):
                batch = torch.stack(inputs[start : start + self.batch_size])
                said.append(self.network(batch.to(self.device)).double().cpu())
        logits = torch.cat(said)
        found = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return found.numpy()

    def prepared(self, image: NDArray[np.float32], receipt: Mapping[str, Any]) -> torch.Tensor:
        """The network's input `(1, S, S)` of one image `(H, W)` in [0, 1], with the receipt that came with it."""
        tensor = MetaTensor(torch.from_numpy(image), meta=dict(receipt))
        return self._rest({"image": tensor})["image"].as_tensor()

    def cases(
        self, chosen: Sequence[Mapping[str, Any]], regions: RegionMasks | None, errors: list[dict[str, str]]
    ) -> Iterator[AuditCase]:
        """Reads case by case; of one that cannot be read a row is added to `errors`.

        Args:
            chosen: of `Manifest.cases()`.
            regions: masks at full resolution, see `full_masks`.
            errors: gets `case_id`, `reason`, `attribute`.
        """
        reader = CaseDataset([], Compose([self._load]))
        for case in chosen:
            item, refused = reader.read(dict(case))
            if refused is not None:
                errors.append({"case_id": case["case_id"], "reason": refused.reason, "attribute": refused.attribute})
                continue
            masks = {} if regions is None else regions(case["case_id"]).masks
            image, masks, receipt = _smaller(np.asarray(item["image"], dtype=np.float32), masks, item["receipt"])
            subject = Subject(np.clip(image, 0, 1), masks)
            yield AuditCase(case["case_id"], case["patient_key"], case["label"], subject, receipt)

    def full_masks(self, table: str | os.PathLike[str], manifest: Manifest, key: Any) -> RegionMasks:
        """Masks with the radiographs' own pixels."""
        channel = EnsureChannelFirstd(keys="image", channel_dim="no_channel")
        return RegionMasks(table, manifest, Compose([self._load, channel]), key)

    def regions(self, table: str | os.PathLike[str], manifest: Manifest, key: Any) -> RegionMasks:
        """Masks at the network's input."""
        return RegionMasks(table, manifest, self.preprocessing, key)

    def _part(self, name: str) -> Any:
        """An entry of the configuration; MONAI tells an error of what it builds as its own, and that of a path too."""
        try:
            return self._parser.get_parsed_content(name)
        except RuntimeError as error:
            if isinstance(error.__cause__, ValueError | OSError):
                raise error.__cause__ from None
            raise


def _smaller(
    image: NDArray[np.float32], masks: Mapping[str, NDArray[np.bool_]], receipt: Mapping[str, Any]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.bool_]], dict[str, Any]]:
    """Means over squares of pixels until no side has more than `MOST_PIXELS`; the spacing in the receipt follows."""
    step = -(-max(image.shape) // MOST_PIXELS)
    told = dict(receipt)
    if step == 1:
        return image, dict(masks), told
    if told.get("pixel_spacing_mm") is not None:
        told["pixel_spacing_mm"] = tuple(step * mm for mm in told["pixel_spacing_mm"])
    return _means(image, step), {name: _means(mask, step) > 0.5 for name, mask in masks.items()}, told


def _means(image: NDArray[Any], step: int) -> NDArray[np.float32]:
    rows, columns = (max(1, side // step) for side in image.shape)
    part = image[: rows * step, : columns * step].astype(np.float32)
    return part.reshape(rows, min(step, image.shape[0]), columns, min(step, image.shape[1])).mean(axis=(1, 3))
