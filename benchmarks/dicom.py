# SPDX-License-Identifier: Apache-2.0
"""What reading DICOM costs beside pydicom, GDCM, SimpleITK and MONAI's reader, as ratios made in one run; one thread.

    OMP_NUM_THREADS=1 python benchmarks/dicom.py [--rounds 7] [--files 40] [--many 10000] [--output dicom.json]

The variants take turns, so that a busy machine slows all of them alike. A ratio is the median over rounds of two CPU
times of the same round; above 1 the other is slower. "Two workers" goes by the clock, since it is the clock that they
shorten. Memory is the sum over all processes of what each has resident, shared pages counted in each. `python-gdcm`
joins where it is installed (`pip install monai_cnnprimer[bench]`); it has ended processes, so not where one works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import SimpleITK
from monai.data import PydicomReader
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from monai_cnnprimer.dicom.decoders import PLUGIN, decoded_cells
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.grayscale import PixelFormat
from monai_cnnprimer.dicom.header import DicomRefused, read_header, receipt
from monai_cnnprimer.dicom.pixels import show
from monai_cnnprimer.phantom import write_export

KEY = b"benchmark"
ROWS, COLUMNS, BITS = 2500, 2048, 12
TAGS = ((0x8, 0x18), (0x8, 0x60), (0x10, 0x20), (0x18, 0x5101), (0x18, 0x1164), (0x28, 0x10), (0x28, 0x11), (0x28, 0x4))
# What docs/performance.md promises; beside each figure stands whether it holds. A lower bound, but for those with "<".
LIMITS = {
    "headers, by pydicom": (">", 4.0),
    "image, by numpy.fromfile and a table": (">", 0.5),
    "JPEG 2000, at half its size": (">", 4.0),
    "JPEG 2000, at a quarter of its size": (">", 15.0),
    "second index, by the first": ("<", 0.1),
    "two workers, by one": (">", 1.6),
    "MB of all processes": ("<", 500.0),
}

Tasks = Mapping[str, Callable[[], object]]


def cpu(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def ratios(tasks: Tasks, rounds: int) -> dict[str, float]:
    """Median over rounds of each task's CPU time by that of the first, which is ours."""
    ours, *others = tasks
    seen: dict[str, list[float]] = {name: [] for name in others}
    for task in tasks.values():
        task()
    for _ in range(rounds):
        spent = {name: cpu(task) for name, task in tasks.items()}
        for name in others:
            seen[name].append(spent[name] / spent[ours])
    return {name: statistics.median(values) for name, values in seen.items()}


def radiograph(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """A smooth scene with the noise of a detector, 12 bits."""
    row, column = np.mgrid[:rows, :columns]
    noise = np.random.default_rng(0).normal(0, 8, (rows, columns))
    return (2000 + 1500 * np.sin(row / 300) * np.cos(column / 250) + noise).clip(0, 4095).astype(np.uint16)


def written(template: Path, cells: np.ndarray, syntax: str, stream: bytes | None = None) -> bytes:
    """A phantom's file with other pixels."""
    dataset = pydicom.dcmread(template)
    dataset.Rows, dataset.Columns = cells.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, BITS, BITS - 1, 0
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = cells.tobytes() if stream is None else pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].VR = "OW" if stream is None else "OB"
    dataset["PixelData"].is_undefined_length = stream is not None
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def headers(files: list[str], rounds: int) -> Iterator[tuple[str, float]]:
    """Every header by each reader, from opening the file on."""

    def each(read: Callable[[str], object]) -> Callable[[], object]:
        return lambda: [read(file) for file in files]

    def itk(file: str) -> None:
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(file)
        reader.ReadImageInformation()

    tasks = {
        "ours": each(read_header),
        "headers, by pydicom": each(lambda file: pydicom.dcmread(file, stop_before_pixels=True)),
        "headers, by SimpleITK": each(itk),
        "files, by MONAI's PydicomReader": each(PydicomReader().read),
    }
    if find_spec("gdcm"):
        tasks["headers, by GDCM's scanner"] = lambda: _gdcm(files)
    yield from ratios(tasks, rounds).items()
    judged = {"ours": each(lambda file: receipt(read_header(file))), "judged": tasks["headers, by pydicom"]}
    yield "headers with their receipts, by pydicom without", ratios(judged, rounds)["judged"]


def _gdcm(files: list[str]) -> None:
    import gdcm

    scanner = gdcm.Scanner()
    for tag in TAGS:
        scanner.AddTag(gdcm.Tag(*tag))
    scanner.Scan(files)


def pixels(template: Path, folder: Path, rounds: int) -> Iterator[tuple[str, float]]:
    """An uncompressed image from the file to float32."""
    file = folder / "uncompressed"
    file.write_bytes(written(template, radiograph(), ExplicitVRLittleEndian))
    offset, table = file.stat().st_size - 2 * ROWS * COLUMNS, np.linspace(0, 1, 1 << BITS, dtype=np.float32)

    def ours() -> object:
        with file.open("rb") as opened:
            dataset = read_header(opened)
            receipt(dataset)
            return show(opened, dataset)

    name = "image, by numpy.fromfile and a table"
    yield name, ratios({"ours": ours, name: lambda: table[np.fromfile(file, "<u2", offset=offset)]}, rounds)[name]


def codecs(template: Path, rounds: int) -> Iterator[tuple[str, float]]:
    """Each compressed syntax by this package's plugin of pydicom and by its usual ones; JPEG 2000 at less than size."""
    cells = radiograph()
    streams = {
        RLELossless: RLELosslessEncoder.encode(
            cells.tobytes(), rows=ROWS, columns=COLUMNS, samples_per_pixel=1, number_of_frames=1, bits_allocated=16,
            pixel_representation=0, bits_stored=BITS, photometric_interpretation="MONOCHROME2",
        ),
        JPEGLosslessSV1: imagecodecs.jpeg8_encode(cells, lossless=True, bitspersample=BITS),
        JPEGLSLossless: imagecodecs.jpegls_encode(cells),
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(cells, reversible=True, codecformat="j2k", bitspersample=BITS),
        HTJ2KLossless: imagecodecs.htj2k_encode(cells, reversible=True),
    }  # fmt: skip
    for uid, stream in streams.items():
        dataset = pydicom.dcmread(BytesIO(written(template, cells, uid, stream)))
        decoder = pydicom.pixels.get_decoder(uid)
        tasks: dict[str, Callable[[], object]] = {
            name: lambda name=name, decoder=decoder, dataset=dataset: decoder.as_array(dataset, decoding_plugin=name)
            for name in (PLUGIN, *decoder.available_plugins)
        }
        for name, ratio in ratios(tasks, rounds).items():
            yield f"{uid.name.split(' (')[0]}, by pydicom's {name}", ratio
    stream, form = streams[JPEG2000Lossless], PixelFormat(ROWS, COLUMNS, 16, BITS, BITS - 1, signed=False)
    for halvings, words in ((1, "half"), (2, "a quarter of")):
        reduced = {
            "ours": lambda halvings=halvings: decoded_cells(stream, JPEG2000Lossless, form, halvings),
            "whole": lambda: decoded_cells(stream, JPEG2000Lossless, form),
        }
        yield f"JPEG 2000, at {words} its size", ratios(reduced, rounds)["whole"]


def second_index(template: Path, folder: Path, files: int, rounds: int) -> Iterator[tuple[str, float]]:
    """An index of files of 2 MB, and another without a change."""
    export = copies(folder / "export", written(template, radiograph(1024, 1024), ExplicitVRLittleEndian), files)
    again = []
    for number in range(rounds):
        options: dict[str, Any] = {"key": KEY, "progress": False, "output": folder / f"indexed{number}", "workers": 1}
        first = cpu(lambda options=options: index_export(export, **options))
        again.append(cpu(lambda options=options: index_export(export, **options)) / first)
    yield "second index, by the first", statistics.median(again)


def copies(folder: Path, content: bytes, count: int) -> Path:
    """Files that differ in their SOPInstanceUID."""
    folder.mkdir()
    name = str(pydicom.dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID).encode()
    for number in range(count):
        (folder / f"I{number}").write_bytes(content.replace(name, name[:-6] + f"{number:06d}".encode()))
    return folder


INDEX = "import sys; from monai_cnnprimer.dicom.export import index_export as index; index(*sys.argv[1:3], key=b'k')"


def many_files(template: Path, folder: Path, many: int, rounds: int) -> Iterator[tuple[str, float]]:
    """One worker by two; and the most that all processes of one index have resident at a time."""
    export = copies(folder / "many", written(template, radiograph(8, 8), ExplicitVRLittleEndian), many)
    clock = []
    for _ in range(rounds):
        seconds = []
        for workers in (1, 2):
            start = time.perf_counter()
            index_export(export, workers=workers, key=KEY, progress=False)
            seconds.append(time.perf_counter() - start)
        clock.append(seconds[0] / seconds[1])
    yield "two workers, by one", statistics.median(clock)
    index = subprocess.Popen([sys.executable, "-c", INDEX, str(export), "site"], stderr=subprocess.DEVNULL)
    most = 0
    while index.poll() is None:
        most = max(most, sum(map(_resident_kb, [index.pid, *_children(index.pid)])))
        time.sleep(0.1)
    if index.returncode:
        raise RuntimeError("the index of many files failed")
    yield "MB of all processes", most * 1024 / 1e6


def _children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _resident_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def radiographs(export: Path) -> list[str]:
    """The files of an export that are accepted."""
    found = []
    for file in sorted(path for path in export.rglob("*") if path.is_file()):
        try:
            receipt(read_header(file))
        except DicomRefused:
            continue
        found.append(str(file))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=40, help="of the phantom's export; 3 times as many of 2 MB")
    parser.add_argument("--many", type=int, default=10_000, help="small files, to measure workers and memory")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    few = -(-options.rounds // 3)
    print(f"Python {sys.version.split()[0]}, pydicom {pydicom.__version__}, imagecodecs {imagecodecs.__version__}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_export(folder / "phantoms", options.files, sites=1, seed=0, size=256, progress=False)
        files = radiographs(folder / "phantoms" / "sites")
        template = Path(files[0])
        parts = (
            headers(files, options.rounds),
            pixels(template, folder, options.rounds),
            codecs(template, options.rounds),
            second_index(template, folder, 3 * options.files, few),
            many_files(template, folder, options.many, few),
        )
        for part in parts:
            for task, figure in part:
                kind, limit = LIMITS.get(task, ("", 0.0))
                holds = {"": "", ">": figure >= limit, "<": figure < limit}[kind]
                verdict = f"{kind} {limit:g} {'holds' if holds else 'DOES NOT HOLD'}" if kind else ""
                print(f"{task:50} {figure:8.2f}  {verdict}", flush=True)
                figures[task] = round(figure, 3)
    if not find_spec("gdcm"):
        print("GDCM's scanner is left out: python-gdcm is not installed")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
