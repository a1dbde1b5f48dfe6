# SPDX-License-Identifier: Apache-2.0
"""What the primer looks at: a bundle's network with its preprocessing, one radiograph, and paired phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from monai_cnnprimer.dicom.masks import what_moves
from monai_cnnprimer.networks import sha256_of_file
from monai_cnnprimer.phantom import SITES, Finding, plan_cases, render
from monai_cnnprimer.phantom.anatomy import Anatomy
from monai_cnnprimer.phantom.bones import rib_paths, rib_shells
from monai_cnnprimer.phantom.dx import Case, dx_object, file_bytes
from monai_cnnprimer.phantom.raster import Grid, deposit, stream

CONSOLIDATION = Finding("consolidation", mm=60)
SITE = SITES[0]
SIZE = 256  # of the paired phantoms; the one that is shown has twice as many


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle on the CPU: its network in evaluation mode, its preprocessing, and the configuration they come from."""

    name: str
    version: str
    network: torch.nn.Module
    preprocessing: Compose
    weights_sha256: str
    parser: ConfigParser

    def new_network(self) -> torch.nn.Module:
        """The bundle's architecture, for another weights file to be loaded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.parser.get_parsed_content("network_def", lazy=False)

    def layer(self, name: str) -> str:
        """Full name of the encoder's `layer1` to `layer4`, or `conv1`, whatever the network is wrapped in.

        Raises:
            ValueError: the network has no such module, or several.
        """
        found = [full for full, _ in self.network.named_modules() if full.split(".")[-1] == name]
        outer = min((full.count(".") for full in found), default=0)
        found = [full for full in found if full.count(".") == outer]
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: {len(found)} modules are called {name!r}; the primer needs a ResNet encoder"
            )
        return found[0]

    @torch.no_grad()
    def log_odds(self, images: Tensor) -> NDArray[np.float64]:
        """Log odds of the finding `(N,)` of images `(N, 1, H, W)`."""
        logits = torch.cat([self.network(part) for part in images.split(8)]).double()
        return (logits[:, -1] - logits[:, 0]).numpy() if logits.shape[1] > 1 else logits[:, 0].numpy()


class Picture(NamedTuple):
    """One radiograph at the network's input: `(1, 1, H, W)`, masks `(H, W)` of what is known, mm of a pixel or None."""

    image: Tensor
    masks: Mapping[str, NDArray[np.bool_]]
    spacing_mm: tuple[float, float] | None
    origin: str

    @property
    def pixels(self) -> NDArray[np.float32]:
        """The image `(H, W)`."""
        return self.image[0, 0].numpy()


class Patient(NamedTuple):
    """One phantom patient, each image `(1, 1, H, W)`: nothing but what the name says differs.

    Attributes:
        healthy: without finding and marker.
        finding: with a consolidation.
        marked: with the side marker “R”.
        masks: `lung`, `heart`, `finding` of `finding`, each `(H, W)`.
        spacing_mm: (row, column) of one pixel on the patient.
    """

    healthy: Tensor
    finding: Tensor
    marked: Tensor
    masks: Mapping[str, NDArray[np.bool_]]
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Study:
    """What is looked at, and what is drawn at random.

    Attributes:
        model: the bundle.
        picture: the radiograph of the page.
        patients: paired phantoms for what one picture cannot tell.
        seed: of everything drawn at random.
        pretrained: a weights file that the bundle's training started from, or None.
    """

    model: Model
    picture: Picture
    patients: Sequence[Patient]
    seed: int
    pretrained: Path | None = None

    def images(self, kind: str) -> Tensor:
        """All patients' images `(N, 1, H, W)` of one kind: `healthy`, `finding` or `marked`."""
        return torch.cat([getattr(patient, kind) for patient in self.patients])


def load_model(bundle: Path) -> Model:
    """A bundle's network and preprocessing, by its own `configs/inference.yaml` and `metadata.json`.

    Raises:
        WeightsError: the weights do not belong to the network.
        FileNotFoundError: there are no weights.
    """
    parser = ConfigParser()
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser.read_config(bundle / "configs" / "inference.yaml")
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    with torch.random.fork_rng(devices=[]):
        network = parser.get_parsed_content("network")
    return Model(
        name=parser["_meta_"]["name"],
        version=parser["_meta_"]["version"],
        network=network.eval(),
        preprocessing=parser.get_parsed_content("preprocessing"),
        weights_sha256=sha256_of_file(parser.get_parsed_content("weights")),
        parser=parser,
    )


def read_picture(model: Model, path: Path) -> Picture:
    """A radiograph of any format through the bundle's preprocessing; neither its path nor a patient is kept.

    Raises:
        DicomRefused: it cannot be read rightly.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError("--image: there is no such file; give a DICOM, PNG or JPEG radiograph")
    image = model.preprocessing({"image": str(path)})["image"]
    known = image.meta["network_spacing_mm"]
    where = f"spacing: {image.meta['spacing_source']}" if known else "pixel spacing unknown"
    return Picture(_batch(image), {}, known, f"a radiograph of yours ({image.meta['transfer_syntax']}, {where})")


def phantom_picture(model: Model, seed: int) -> Picture:
    """A phantom with a consolidation and the marker “R”, read back from its DICOM object, with its masks."""
    case = replace(_cases(1, seed)[0], findings=(CONSOLIDATION,), marker="R")
    image, masks = _rendered(model, case, 2 * SIZE)
    masks["ribs"] = _fit_mask(model, image, rib_mask(case, 2 * SIZE))
    origin = f"a phantom of {2 * SIZE} px with a consolidation of {CONSOLIDATION.mm:g} mm and a marker"
    return Picture(_batch(image), masks, image.meta["network_spacing_mm"], origin)


def phantom_patients(model: Model, count: int, seed: int) -> Iterator[Patient]:
    """Patients one by one, none of them the one of `phantom_picture`."""
    for case in _cases(count + 1, seed)[1:]:
        healthy, marked = (_rendered(model, replace(case, marker=marker))[0] for marker in ("", "R"))
        finding, masks = _rendered(model, replace(case, findings=(CONSOLIDATION,)))
        spacing = healthy.meta["network_spacing_mm"]
        yield Patient(_batch(healthy), _batch(finding), _batch(marked), masks, spacing)


def _cases(count: int, seed: int) -> list[Case]:
    """Patients of one site, PA, first examination, no finding, no marker; the first ones whatever `count` is."""
    planned, rng = plan_cases(SITE, count, seed), np.random.default_rng(seed)
    return [replace(case, seed=int(rng.integers(2**31)), exam=0, findings=(), marker="", view="PA") for case in planned]


def _rendered(model: Model, case: Case, size: int = SIZE) -> tuple[MetaTensor, dict[str, NDArray[np.bool_]]]:
    """Written as a hospital would have sent it, so that the phantom takes the way of every radiograph."""
    radiograph = render(case.seed, size, case.site, case.findings, case.marker or None)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.dcm"
        path.write_bytes(file_bytes(dx_object(case, radiograph.image, case.view, radiograph.spacing_mm, "frontal")))
        image = model.preprocessing({"image": str(path)})["image"]
    found = {finding.kind: finding.mask for finding in radiograph.findings}
    masks = {"lung": radiograph.masks["lung"], "heart": radiograph.masks["heart"]}
    masks |= {"marker": radiograph.masks["marker"]} if case.marker else {}
    masks |= {"finding": found["consolidation"]} if found else {}
    return image, {name: _fit_mask(model, image, mask) for name, mask in masks.items()}


def rib_mask(case: Case, size: int) -> NDArray[np.bool_]:
    """Where `render` projects the ribs of a first examination, `(size, size)`: 0.3 mm of cortical bone or more."""
    # The positioning of phantom/render.py, which does not hand out where the bones lie.
    shift_x, shift_y, lean, _ = stream(case.seed, "position", 0).uniform((-8, -8, -0.035, -6), (8, 8, 0.035, 6))
    grid, anatomy = Grid(size, case.site.width_mm, shift_x, shift_y, lean), Anatomy.sample(case.seed)
    shells = rib_shells(anatomy, rib_paths(anatomy, grid), grid)
    return deposit(grid, shells.x, shells.y, shells.volume) > 0.3


def _fit_mask(model: Model, image: MetaTensor, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask through the steps that move pixels; what covers a tenth of a pixel counts, so that thin strokes remain."""
    covered = MetaTensor(torch.from_numpy(mask).float(), meta=dict(image.meta))
    return (what_moves(model.preprocessing)({"image": covered})["image"].as_tensor()[0] > 0.1).numpy()


def _batch(image: MetaTensor) -> Tensor:
    return image.as_tensor()[None].float()
