# SPDX-License-Identifier: Apache-2.0
"""The list of cases that readers are held against: a small file for each, and how it must look, by formula.

Nothing here asks a reader: expectations are those of test_grayscale and test_pixels, written there from the standard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)
from test_grayscale import CASES, POLARITIES, QUIRKS, RAMP, cells_of, linear, of_each, window
from test_pixels import ENCODED, encoded, scene
from written_dicom import radiograph, written

STANDARD = ("high-bit", "bits-outside-stored", "several-windows", "window-beside-voi-lut")  # met, and no departure
WINDOWED = {"BitsStored": 12, **window(2000, 1500, "LINEAR")}
SHOWN = of_each(RAMP, lambda x: linear(x, 2000, 1500))


@dataclass(frozen=True, eq=False)
class DisplayCase:
    """A file and how it must look: display values in [0, 1], bone bright, upright; None where it must be refused."""

    group: str
    name: str
    file: bytes
    expected: NDArray[np.float64] | None
    tolerance: float = 0.002


def display_cases() -> list[DisplayCase]:
    """All cases, in the order of the table."""
    return [*_grey_scale(), *_polarities(), *_padding(), *_orientations(), *_syntaxes(), *_refused()]


def _grey_scale() -> Iterator[DisplayCase]:
    for name, (attributes, cells, expected, path) in CASES.items():
        if set(QUIRKS.get(name, [])) - set(STANDARD) or "written" in name:
            group = "departures from the standard"
        elif "LUT" in name and "modality" not in name:
            group = "VOI LUT"
        elif "rescale" in path or "modality" in path:
            group = "rescale, Modality LUT"
        else:
            group = "windows" if "window" in path else "stored bits, sign"
        yield DisplayCase(group, name, written(radiograph(cells, **attributes)), expected)


def _polarities() -> Iterator[DisplayCase]:
    for name, (stated, _, inverted) in POLARITIES.items():
        if inverted:
            file = written(radiograph(cells_of(RAMP), **WINDOWED, **stated))
            yield DisplayCase("polarity", name, file, 1 - SHOWN)


def _padding() -> Iterator[DisplayCase]:
    for name, stated in {
        "white padding": {"PixelPaddingValue": 4095},
        "a range of it": {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000},
    }.items():
        expected = np.where(stated.get("PixelPaddingRangeLimit", 4095) <= RAMP, 0, RAMP / 4095)
        yield DisplayCase("padding", name, written(radiograph(cells_of(RAMP), BitsStored=12, **stated)), expected)


def _orientations() -> Iterator[DisplayCase]:
    upright = (SHOWN[:, :40], RAMP[:, :40])
    turns = {"R/F": np.fliplr, "L/H": np.flipud, "R/H": lambda a: a[::-1, ::-1], "F/L": np.transpose}
    for name, turn in turns.items():
        file = written(radiograph(cells_of(turn(upright[1])), **WINDOWED, PatientOrientation=name.split("/")))
        yield DisplayCase("orientation", name, file, upright[0])


def _syntaxes() -> Iterator[DisplayCase]:
    group = "transfer syntaxes"
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        file = written(radiograph(scene(12), BitsStored=12), syntax)
        yield DisplayCase(group, syntax.keyword, file, scene(12) / 4095)
    for name, (_, bits, _, tolerance) in ENCODED.items():
        top = 2**bits - 1
        yield DisplayCase(group, name, encoded(name), scene(bits) / top, 0.002 + tolerance / top)


def _refused() -> Iterator[DisplayCase]:
    stream = ENCODED["JPEG-LS, 12 bit"][2](scene(12))
    files = {
        "no photometric interpretation": written(radiograph(cells_of(RAMP), PhotometricInterpretation=None)),
        "cut off within its pixels": written(radiograph(cells_of(RAMP), BitsStored=12))[:-2000],
        "more pixels than rows": written(radiograph(cells_of(RAMP), BitsStored=12, Rows=63)),
        "a stream of another size": written(radiograph(scene(12)[:-1], BitsStored=12), JPEGLSLossless, stream),
        "a stream that ends early": written(radiograph(scene(12), BitsStored=12), JPEGLSLossless, stream[:-300]),
        "a video": written(radiograph(scene(8)), MPEG2MPML, b"\0\0\1\xb3"),
        "a slope of zero": written(radiograph(cells_of(RAMP), RescaleSlope="0", RescaleIntercept="0")),
    }
    for name, file in files.items():
        yield DisplayCase("to be refused", name, file, None)
