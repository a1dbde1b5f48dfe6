# SPDX-License-Identifier: Apache-2.0
"""The reader for MONAI's `LoadImage`: any radiograph to an upright array in [0, 1], bone bright, with its receipt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys
from numpy.typing import NDArray

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.limits import Limits, limits_of
from monai_cnnprimer.dicom.radiograph import read_radiograph

__all__ = ["RadiographReader", "read_radiograph"]

Path = str | os.PathLike[str]


class RadiographReader(ImageReader):
    """Reads radiographs for `monai.transforms.LoadImage`: DICOM by PS3.3, and PNG, JPEG, TIFF, NIfTI, MHA, NRRD.

    The array is ``(rows, columns)``, float32 in [0, 1], bone bright, upright where the header says how it lies. The
    metadata are the receipt (`monai_cnnprimer.dicom.header.receipt`), ``padding_mask`` (bool, or None), and what MONAI
    asks for: ``affine`` (mm for a pixel; the identity where they are unknown), ``spatial_shape`` and
    ``original_channel_dim``. No patient attribute, identifier or path is among them. `LoadImage` itself adds the path
    as ``filename_or_obj``, unless it is given ``prune_meta_pattern="filename_or_obj"``.

    Args:
        views: the views to accept, e.g. ``("PA", "AP")``; images that state none pass. All views when None.
        limits: what reading one file may cost: `Limits`, or those that differ from the defaults, e.g.
            ``{"seconds": 60}``. Whatever needs a decoder is read under them in another process.
        reduce_to: how many pixels the shorter side needs at least: a larger JPEG 2000 image is decoded at a half, a
            fourth, ... of its size, and the receipt says so. Whole images when None.

    Raises:
        DicomRefused: from `LoadImage`, as it is, for whatever cannot be read rightly; no other reader is tried.

    Example:
        >>> from monai.transforms import LoadImage
        >>> load = LoadImage(reader=RadiographReader(views=("PA", "AP")), prune_meta_pattern="filename_or_obj")
    """

    def __init__(
        self,
        views: Sequence[str] | None = None,
        limits: Limits | Mapping[str, float] | None = None,
        reduce_to: int | None = None,
    ) -> None:
        self.views = None if views is None else tuple(views)
        self.limits = limits_of(limits)
        self.reduce_to = reduce_to

    def verify_suffix(self, filename: Sequence[Path] | Path) -> bool:
        """Every file is this reader's: PACS exports have no suffixes."""
        return True

    def read(self, data: Sequence[Path] | Path, **kwargs: Any) -> tuple[Path, ...]:
        """Only keeps the path: `LoadImage` would answer an exception raised here by trying other readers."""
        return ensure_tuple(data)

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reads, decodes and displays the one file; see the class."""
        if len(img) != 1:
            raise DicomRefused("several files for one radiograph")
        image, metadata = read_radiograph(img[0], self.views, self.limits, self.reduce_to)
        spacing = metadata["pixel_spacing_mm"] or (1.0, 1.0)
        metadata[MetaKeys.AFFINE] = np.diag([*spacing, 1.0, 1.0])
        metadata[MetaKeys.SPATIAL_SHAPE] = np.array(image.shape)
        metadata[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan")
        return image, metadata
