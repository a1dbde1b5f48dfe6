# SPDX-License-Identifier: Apache-2.0
"""The hospitals: how each one's equipment takes a radiograph, processes it, and writes it as DICOM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless


@dataclass(frozen=True)
class Site:
    """One hospital's equipment and habits; invented, but each habit is one that exports show."""

    name: str
    manufacturer: str
    model: str
    # acquisition
    kvp: int
    quanta_per_mm2: float
    scatter: float
    blur_mm: float
    width_mm: float
    magnification: float
    border: float
    # processing
    equalize: float
    equalize_mm: float
    detail: float
    steepness: float
    brightness: float
    # DICOM
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    bits: int
    voi: Literal["window", "lut", "none"]
    syntaxes: tuple[UID, ...]
    spacing: Literal["calibrated", "magnification", "imager or missing"]
    layout: Literal["dicomdir", "zip", "folder"]
    marker: str


SITES: tuple[Site, ...] = (
    Site(
        name="aspen",
        manufacturer="Alder Imaging",
        model="AX-1",
        kvp=120,
        quanta_per_mm2=3e5,
        scatter=0.35,
        blur_mm=0.15,
        width_mm=384.0,
        magnification=1.08,
        border=0.0,
        equalize=0.50,
        equalize_mm=16.0,
        detail=0.45,
        steepness=4.2,
        brightness=0.50,
        photometric="MONOCHROME2",
        bits=12,
        voi="window",
        syntaxes=(ExplicitVRLittleEndian, RLELossless),
        spacing="calibrated",
        layout="dicomdir",
        marker="R",
    ),
    Site(
        name="birch",
        manufacturer="Borealis Medical",
        model="Lumen 14",
        kvp=125,
        quanta_per_mm2=2e5,
        scatter=0.45,
        blur_mm=0.20,
        width_mm=372.0,
        magnification=1.05,
        border=0.0,
        equalize=0.35,
        equalize_mm=22.0,
        detail=0.25,
        steepness=3.8,
        brightness=0.46,
        photometric="MONOCHROME1",
        bits=14,
        voi="lut",
        syntaxes=(JPEGLSLossless,),
        spacing="magnification",
        layout="zip",
        marker="L",
    ),
    Site(
        name="cedar",
        manufacturer="Cirrus Radiography",
        model="CR 10",
        kvp=90,
        quanta_per_mm2=9e4,
        scatter=0.60,
        blur_mm=0.28,
        width_mm=404.0,
        magnification=1.10,
        border=0.02,
        equalize=0.25,
        equalize_mm=25.0,
        detail=0.10,
        steepness=3.6,
        brightness=0.53,
        photometric="MONOCHROME2",
        bits=10,
        voi="none",
        syntaxes=(JPEG2000Lossless,),
        spacing="imager or missing",
        layout="folder",
        marker="R",
    ),
)
"""The three vendors that every export starts with."""

NAMES = ("aspen", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper", "kapok", "larch")


def sites_of(count: int) -> tuple[Site, ...]:
    """The first `count` sites: the three vendors, then hospitals that run the same vendors with other settings.

    Raises:
        ValueError: `count` is not between 1 and 12.

    Example:
        >>> [site.name for site in sites_of(4)]
        ['aspen', 'birch', 'cedar', 'dogwood']
    """
    if not 1 <= count <= len(NAMES):
        raise ValueError(f"sites is {count}: choose a number from 1 to {len(NAMES)}")
    return tuple(_variant(index) for index in range(count))


def _variant(index: int) -> Site:
    base, turn = SITES[index % 3], index // 3
    if turn == 0:
        return base
    return replace(
        base,
        name=NAMES[index],
        kvp=base.kvp - 5 * turn,
        quanta_per_mm2=base.quanta_per_mm2 * 0.8**turn,
        width_mm=base.width_mm + 8 * turn,
        detail=base.detail * (1 + 0.25 * turn),
        steepness=base.steepness - 0.15 * turn,
        brightness=base.brightness + 0.02 * turn,
    )
