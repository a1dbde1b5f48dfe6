# SPDX-License-Identifier: Apache-2.0
"""Which readers show which radiographs rightly: the list of tests/display_cases.py, held against six readers.

    python benchmarks/readers.py [--cases] [--write]

A reader is right when some rising straight line takes its values to those that must be displayed, within what a lossy
encoder may change: no reader is blamed for a scale of its own, nor MONAI's for its order of axes. Else it is wrong
without a word, or it refuses: an exception, or no image. `highdicom` and `itk` join where they are installed
(`pip install monai_cnnprimer[bench]`). `--write` puts the table into docs/dicom.md, `--cases` prints every case.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from monai.transforms import LoadImage
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut, get_decoder
from tables import DOCS, markdown, write_between

from monai_cnnprimer.dicom.decoders import DECODER_DEPENDENCIES, PLUGIN
from monai_cnnprimer.dicom.reader import RadiographReader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from display_cases import DisplayCase, display_cases  # noqa: E402 - the list belongs to the tests

Read = Callable[[Path], NDArray[Any]]


def ours(path: Path) -> NDArray[Any]:
    return np.asarray(LoadImage(reader=RadiographReader())(path))


def monai_pydicom(path: Path) -> NDArray[Any]:
    return np.asarray(LoadImage(reader="PydicomReader")(path)).T


def monai_itk(path: Path) -> NDArray[Any]:
    return np.asarray(LoadImage(reader="ITKReader")(path)).T


def simple_itk(path: Path) -> NDArray[Any]:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO"))


def pydicom_chain(path: Path) -> NDArray[Any]:
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    return apply_presentation_lut(values, dataset)


def highdicom(path: Path) -> NDArray[Any]:
    from highdicom import imread

    return imread(path).get_frame(1, apply_voi_transform=None, apply_presentation_lut=True)


READERS: dict[str, tuple[str, Read]] = {
    "ours": ("monai_cnnprimer", ours),
    "MONAI PydicomReader": ("monai", monai_pydicom),
    "MONAI ITKReader": ("itk", monai_itk),
    "SimpleITK": ("SimpleITK", simple_itk),
    "pydicom's chain": ("pydicom", pydicom_chain),
    "highdicom": ("highdicom", highdicom),
}


def outcome(read: Read, path: Path, case: DisplayCase) -> str:
    """right, wrong or refused."""
    path.write_bytes(case.file)
    try:
        image = np.squeeze(np.asarray(read(path), np.float64))
    except Exception:  # whatever another library raises is its way to refuse
        return "refused"
    return "right" if case.expected is not None and is_alike(image, case.expected, case.tolerance) else "wrong"


def is_alike(image: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> bool:
    """Whether a rising straight line takes the one to the other.

    Example:
        >>> ramp = np.arange(6.0).reshape(2, 3) / 5
        >>> is_alike(4095 * ramp - 1024, ramp, 0.01), is_alike(-ramp, ramp, 0.01), is_alike(ramp.T, ramp, 0.01)
        (True, False, False)
    """
    if image.shape != expected.shape or not np.isfinite(image).all() or np.ptp(image) == 0:
        return False
    slope, intercept = np.polyfit(image.ravel(), expected.ravel(), 1)
    return bool(slope > 0 and np.abs(slope * image + intercept - expected).max() <= tolerance)


def table(outcomes: Mapping[str, Mapping[DisplayCase, str]], cases: list[DisplayCase]) -> str:
    """Groups of cases down, readers across; a cell says what was not right."""
    rows = []
    for group in [*dict.fromkeys(case.group for case in cases), "all that can be shown"]:
        members = [case for case in cases if case.group == group or (group[:3] == "all" and case.expected is not None)]
        counts = [Counter(told[case] for case in members) for told in outcomes.values()]
        rows.append([group, len(members), *(cell(count, members[0].expected is None) for count in counts)])
    return markdown(["cases", "n", *outcomes], rows)


def cell(count: Counter[str], must_refuse: bool) -> str:
    """What was wrong or refused; `right` where nothing was that should not be."""
    told = [f"**{count['wrong']} wrong**"] if count["wrong"] else []
    told += [f"{count['refused']} refused"] if count["refused"] and not must_refuse else []
    return ", ".join(told) or "right"


def without_our_plugin() -> None:
    """Takes back the decoders that importing this package lends to pydicom, and so to whatever reads through it."""
    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if PLUGIN in decoder.available_plugins:
            decoder.remove_plugin(PLUGIN)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", action="store_true", help="print every case")
    parser.add_argument("--write", action="store_true", help="put the table into docs/dicom.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    cases = display_cases()
    readers = {name: read for name, (package, read) in READERS.items() if find_spec(package)}
    without_our_plugin()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.dcm"
        outcomes = {name: {case: outcome(read, path, case) for case in cases} for name, read in readers.items()}
    text = table(outcomes, cases)
    if given.cases:
        rows = [[case.group, case.name, *(told[case] for told in outcomes.values())] for case in cases]
        print(markdown(["group", "case", *outcomes], rows), end="\n\n")
    print(text)
    if given.write:
        write_between(DOCS / "dicom.md", "benchmarks/readers.py", text)


if __name__ == "__main__":
    main()
