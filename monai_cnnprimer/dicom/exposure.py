# SPDX-License-Identifier: Apache-2.0
"""How an image was exposed, rounded so that it tells the protocol and no single exposure."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from monai_cnnprimer.dicom.attributes import number

HIGHEST_KVP = 500.0  # more is no tube voltage


def exposure(dataset: Dataset) -> dict[str, float | None]:
    """Tube voltage, exposure and exposure index as the header states them (PS3.3 C.8.7.1, C.8.11.3).

    Exposure comes from `ExposureInuAs`, `Exposure`, or current and time, whichever is stated first; `Exposure` is a
    whole number of mAs and says little of a chest. Vendors' own indices (`Sensitivity`, `RelativeXRayExposure`) have
    scales of their own and are left out.

    Returns:
        `kvp` in whole kV, `exposure_mas` in mAs and `exposure_index` (IEC 62494-1) to two digits; None for what is not
        stated, or is not a positive number.

    Example:
        >>> header = Dataset()
        >>> header.KVP, header.XRayTubeCurrent, header.ExposureTime = "125.4", "320", "5"
        >>> exposure(header)
        {'kvp': 125.0, 'exposure_mas': 1.6, 'exposure_index': None}
    """
    kvp = number(dataset, "KVP")
    by_time = number(dataset, "XRayTubeCurrent") * number(dataset, "ExposureTime") / 1000
    stated = (number(dataset, "ExposureInuAs") / 1000, number(dataset, "Exposure"), by_time)
    return {
        "kvp": float(round(kvp)) if 1 <= kvp <= HIGHEST_KVP else None,
        "exposure_mas": next((mas for value in stated if (mas := _two_digits(value)) is not None), None),
        "exposure_index": _two_digits(number(dataset, "ExposureIndex")),
    }


def _two_digits(value: float) -> float | None:
    return float(f"{value:.2g}") if 0 < value < math.inf else None
