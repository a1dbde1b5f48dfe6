# SPDX-License-Identifier: Apache-2.0
"""A map on its source's pixels, as a fractional Segmentation (PS3.3 A.51)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from monai_cnnprimer.dicom.attributes import texts
from monai_cnnprimer.dicom.results.identity import PACKAGE, finished, referenced, refusing_faults, series_of
from monai_cnnprimer.dicom.results.model import Model

KIND = "map"
MapType = Literal["gradcam", "dense"]
# Terms of CID 7180 that say how a map came about; none of them claims that it is an anatomical region.
MAP_TYPES: dict[MapType, Code] = {
    "gradcam": codes.DCM.GradientWeightedClassActivation,
    "dense": codes.DCM.ClassActivation,
}


def fractional_segmentation(
    source: Dataset,
    share: NDArray[np.floating],
    model: Model,
    *,
    map_type: MapType = "gradcam",
    description: str = "",
    made_at: datetime | None = None,
) -> Dataset:
    """A map as one segment of values from 0 to 1, in steps of 1/255, on the stored pixels of its source.

    (A Parametric Map would need a patient coordinate system, which projection images do not have.)

    Args:
        source: header of the radiograph.
        share: `(Rows, Columns)` as the source is stored (`on_radiograph`, `without_turning`), in [0, 1].
        model: what made the map.
        map_type: Grad-CAM, or the probabilities of a dense map (FPN, U-Net).
        description: what a value means, for a person.
        made_at: as in `secondary_capture`.

    Raises:
        ValueError: a map of other rows or columns, or with values out of [0, 1].
        DicomRefused: the source cannot be referred to.
    """
    image = referenced(source)
    if share.shape != (image.Rows, image.Columns):
        raise ValueError(f"a map of {share.shape} on an image of {image.Rows} x {image.Columns}: put it back first")
    if not (share.min() >= 0 and share.max() <= 1):
        raise ValueError("a fractional segmentation holds values from 0 to 1: scale the map, leave out its negatives")
    segment = SegmentDescription(
        segment_number=1,
        segment_label=f"{MAP_TYPES[map_type].meaning}, research only"[:64],
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=MAP_TYPES[map_type],
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=model.name[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=model.version[:64],
            source=PACKAGE,
            parameters={"weights_sha256": model.weights_sha256, "transforms_sha256": model.transforms_sha256},
        ),
    )
    if description:
        segment.SegmentDescription = description[:1024]
    with refusing_faults():
        result = Segmentation(
            [image],
            np.asarray(share, dtype=np.float32)[None],
            "FRACTIONAL",
            [segment],
            fractional_type="PROBABILITY",
            max_fractional_value=255,
            omit_empty_frames=False,
            content_label="MAP",
            content_description="Research only: where the model looked"[:64],
            **series_of(source, model, KIND),
        )
        # Type 2C of General Image, for want of an orientation in a patient coordinate system.
        result.PatientOrientation = texts(source, "PatientOrientation") or None
        return finished(result, source, model, KIND, made_at)
