# SPDX-License-Identifier: Apache-2.0
"""Maps as files: raw as arrays with their geometry, of all cases in one, and over the radiograph as NIfTI."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_cnnprimer.explain.cases import ExplainedCase
from monai_cnnprimer.explain.receptive_field import ReceptiveField, align_map

ALL_MAPS = "gradcam_maps.npz"
MOST_CELLS = 32  # a side, of the maps of all cases
_DESCRIPTION_LENGTH = 79  # a NIfTI header has 80 bytes for it, the last of them zero


class AllMaps:
    """The raw maps of every case of a run, small enough to keep: no images, 50 bytes a case for a map of 5 x 5 cells.

    A map is held in float16 as shares of its largest absolute value, which stands beside it. One of more than 32 cells
    a side is averaged over squares of cells until it has no more.

    Args:
        layers: names.

    Attributes:
        left_out: how many cases had an image or a map of another size than the first one.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = tuple(layers)
        self.left_out = 0
        self._shapes: tuple[Any, ...] | None = None
        self._factors: dict[str, int] = {}
        self._rows: dict[str, tuple[int, dict[str, tuple[NDArray[np.float16], float]]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        case_ids: Sequence[str],
        maps: Mapping[str, Tensor],
        image_size: Sequence[int],
        explained: Sequence[int | None] | None,
    ) -> None:
        """Holds the maps of one batch; a case that is held is not taken twice.

        Args:
            case_ids: one a case.
            maps: layer to `(N, 1, h, w)`.
            image_size: `(H, W)` of the network's input.
            explained: class that each map explains; None where it is no class.
        """
        shapes = (tuple(image_size), *(tuple(maps[layer].shape[2:]) for layer in self.layers))
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            self.left_out += len(case_ids)
            return
        pooled = {layer: self._pooled(layer, maps[layer]) for layer in self.layers}
        for i, case_id in enumerate(case_ids):
            of_layers = {layer: _shares(heats[i]) for layer, heats in pooled.items()}
            target = None if explained is None else explained[i]
            self._rows.setdefault(case_id, (-1 if target is None else target, of_layers))

    def npz(self, fields: Mapping[str, ReceptiveField | None]) -> bytes:
        """All maps as `read_all_maps` reads them; `fields` is each layer's geometry before averaging."""
        case_ids = sorted(self._rows)
        arrays: dict[str, Any] = {
            "case_id": np.array(case_ids, dtype=np.str_),
            "explained": np.array([self._rows[case_id][0] for case_id in case_ids], dtype=np.int16),
            "image_size": np.array(self._shapes[0] if self._shapes else (0, 0), dtype=np.int32),
        }
        for layer in self.layers if case_ids else ():
            rows = [self._rows[case_id][1][layer] for case_id in case_ids]
            arrays[f"{layer}.map"] = np.stack([share for share, _ in rows])
            arrays[f"{layer}.scale"] = np.array([scale for _, scale in rows], dtype=np.float32)
            if (field := fields.get(layer)) is not None:
                arrays[f"{layer}.receptive_field"] = np.array(_averaged(field, self._factors[layer]), dtype=np.float64)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    def _pooled(self, layer: str, heats: Tensor) -> NDArray[np.float32]:
        """`(N, h, w)`, on the CPU."""
        factor = self._factors.setdefault(layer, -(-max(heats.shape[2:]) // MOST_CELLS))
        heats = heats.detach().as_subclass(Tensor).float()
        if factor > 1:
            heats = torch.nn.functional.avg_pool2d(heats, factor, ceil_mode=True, count_include_pad=False)
        return heats[:, 0].cpu().numpy()


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """One layer of the maps of all cases, as read back.

    Attributes:
        layer: its name.
        maps: case id to the signed raw map `(h, w)`, float32.
        explained: case id to the class that the map explains, None where it is no class.
        image_size: `(H, W)` of the network's input.
        field: geometry of the cells of `maps`; None where it is not known.
    """

    layer: str
    maps: dict[str, NDArray[np.float32]]
    explained: dict[str, int | None]
    image_size: tuple[int, int]
    field: ReceptiveField | None


def read_all_maps(path: Path, layer: str | None = None) -> StoredMaps:
    """One layer of a file that `AllMaps` wrote; None takes the last one, as the figures of a run do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no maps, or none of this layer; the message names those there are.
    """
    with np.load(path, allow_pickle=False) as arrays:
        layers = [name.removesuffix(".map") for name in arrays if name.endswith(".map")]
        if not layers:
            raise ValueError(f"{path.name} holds no maps")
        chosen = layers[-1] if layer is None else layer
        if chosen not in layers:
            raise ValueError(f"{path.name} holds no maps of layer {layer!r}; choose among {', '.join(layers)}")
        case_ids = arrays["case_id"].tolist()
        heats = arrays[f"{chosen}.map"].astype(np.float32) * arrays[f"{chosen}.scale"][:, None, None]
        height, width = arrays["image_size"].tolist()
        name = f"{chosen}.receptive_field"
        return StoredMaps(
            layer=chosen,
            maps=dict(zip(case_ids, heats, strict=True)),
            explained={k: v if v >= 0 else None for k, v in zip(case_ids, arrays["explained"].tolist(), strict=True)},
            image_size=(height, width),
            field=ReceptiveField(*arrays[name].tolist()) if name in arrays else None,
        )


def aligned(maps: Tensor, size: Sequence[int], field: ReceptiveField | None) -> NDArray[np.float32]:
    """A raw map `(1, h, w)` at the size of the image, `(H, W)`; where the layer's geometry is not known, stretched."""
    if field is None:
        return torch.nn.functional.interpolate(maps[None], tuple(size), mode="bilinear")[0, 0].numpy()
    return align_map(maps[None], size, field)[0, 0].numpy()


def nifti(image: NDArray[np.floating], spacing_mm: tuple[float, float] | None, description: str) -> bytes:
    """An upright radiograph, or a map over one, as a coronal slice: columns to the patient's left, rows to the feet.

    That is how a frontal view lies in the patient, so 3D Slicer and ITK-SNAP show it upright in their coronal view and
    lay several of one case over each other. Where the patient was is not known: the first pixel is the origin. (MONAI's
    `SaveImage` would write neither unit nor description.)

    Args:
        image: `(H, W)`; stored as float32.
        spacing_mm: (row, column) of a pixel; None where it is not known: then 1, without a unit.
        description: cut at 79 characters.

    Returns:
        A compressed NIfTI-1 file of shape (W, 1, H), the same bytes for the same arguments.
    """
    row, column = spacing_mm or (1.0, 1.0)
    # The world's axes run to the patient's right, front and head.
    affine = np.array([[-column, 0, 0, 0], [0, 1, 0, 0], [0, 0, -row, 0], [0, 0, 0, 1]])
    data = np.ascontiguousarray(image.T[:, None, :], dtype=np.float32)
    file = nib.Nifti1Image(data, affine)
    file.header.set_xyzt_units("unknown" if spacing_mm is None else "mm")
    file.header["descrip"] = description.encode("ascii", "replace")[:_DESCRIPTION_LENGTH]
    file.set_sform(affine, code="aligned")
    file.set_qform(affine, code="aligned")
    return gzip.compress(file.to_bytes(), mtime=0)


def npz(case: ExplainedCase, fields: Mapping[str, ReceptiveField | None]) -> bytes:
    """Raw maps `(h, w)` by layer, with `LAYER.receptive_field` (size, jump, start) and `LAYER.mm_per_cell` if known."""
    arrays: dict[str, Any] = {}
    for layer, field in fields.items():
        arrays[layer] = case.maps[layer][0].numpy()
        if field is not None:
            arrays[f"{layer}.receptive_field"] = np.array(field, dtype=np.float64)
        if (mm := mm_per_cell(case, field)) is not None:
            arrays[f"{layer}.mm_per_cell"] = np.array(mm)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def mm_per_cell(case: ExplainedCase, field: ReceptiveField | None) -> tuple[float, float] | None:
    """(row, column) on the patient from one unit of a layer to the next; None where it is not known."""
    if field is None or case.network_spacing_mm is None:
        return None
    row, column = case.network_spacing_mm
    return field.jump * row, field.jump * column


def file_name(text: str) -> str:
    """A name as part of a file's; one with other signs than letters, digits, `.`, `_`, `-` gets a hash to stay unique.

    Example:
        >>> file_name("0123456789abcdef"), file_name("a/b")
        ('0123456789abcdef', 'a_b-c14cddc0')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:100]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _shares(heat: NDArray[np.float32]) -> tuple[NDArray[np.float16], float]:
    """A map as shares of its largest absolute value, and that value; a map of zeros stays one."""
    scale = float(np.abs(heat).max())
    return (heat / (scale or 1.0)).astype(np.float16), scale


def _averaged(field: ReceptiveField, factor: int) -> ReceptiveField:
    """Geometry of squares of `factor` cells a side."""
    further = (factor - 1) * field.jump
    return ReceptiveField(field.size + further, field.jump * factor, field.start + further / 2)
