# SPDX-License-Identifier: Apache-2.0
"""Exports of several hospitals with the truth beside them: ``sites/``, ``labels/`` and ``truth/``."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from rich.progress import Progress

from monai_cnnprimer.phantom.anatomy import Anatomy
from monai_cnnprimer.phantom.clutter import NOTE, ct_slice, structured_report, truncated
from monai_cnnprimer.phantom.dicomdir import dicomdir
from monai_cnnprimer.phantom.dx import Case, dx_object, file_bytes
from monai_cnnprimer.phantom.findings import Finding
from monai_cnnprimer.phantom.lateral import render_lateral
from monai_cnnprimer.phantom.raster import Mask, stream
from monai_cnnprimer.phantom.render import SMALLEST, Radiograph, render
from monai_cnnprimer.phantom.sites import Site, sites_of

SMALL_FINDINGS = {"nodule": (6.0, 26.0), "pneumothorax": (8.0, 25.0), "fracture": (2.5, 5.0)}
"""Kinds that accompany either label, with their range of sizes in mm."""

CASES_PER_LATERAL = 8
CASES_PER_RETURN = 6
"""Every sixth examination is the second one of the patient before."""


@dataclass(frozen=True)
class _Taken:
    """A case carried out: its files, and its rows in the tables of truth."""

    case: Case
    frontal: bytes
    lateral: bytes | None
    truth: tuple[object, ...]
    findings: list[tuple[object, ...]]
    masks: tuple[object, ...]


def write_export(
    output: str | Path,
    cases: int,
    sites: int = 3,
    seed: int = 0,
    size: int = 512,
    marker_correlation: float = 0.0,
    progress: bool = True,
) -> None:
    """Write the exports of several hospitals: the same arguments, the same bytes.

    `output` then holds ``sites/NAME/`` (or ``sites/NAME.zip``), ``labels/NAME.csv`` (AccessionNumber, label,
    finding_size_mm) and ``truth/NAME/`` (``truth.csv``, ``findings.csv``, masks as PNG, and ``masks.csv``, the table of
    them). The label is 1 where there is a consolidation, in about half of the cases; its size stands beside it. Beside
    the frontal images a site holds laterals, a report, a CT slice, a duplicate, a truncated file and a text file.

    Args:
        output: a folder that is missing or empty.
        cases: frontal images in each site.
        sites: hospitals, 1 to 12; the first three are three vendors, the others vary them.
        seed: of everything random.
        size: rows and columns, at least 64.
        marker_correlation: 0: half of the images carry a side marker whatever their label; 1: just those of label 1.
        progress: show a bar.

    Raises:
        ValueError: an argument is out of range, or `output` holds something already.
    """
    output = Path(output)
    _check(output, cases, seed, size, marker_correlation)
    chosen = sites_of(sites)
    with Progress(disable=not progress) as bar:
        for index, site in enumerate(chosen):
            planned = plan_cases(site, cases, seed, marker_correlation)
            truth = output / "truth" / site.name
            truth.mkdir(parents=True)
            taken = [_take(case, size, truth) for case in bar.track(planned, description=site.name)]
            _write_site(output, site, index, taken)


def _check(output: Path, cases: int, seed: int, size: int, marker_correlation: float) -> None:
    if cases < 1:
        raise ValueError(f"cases is {cases}: choose 1 or more for each site")
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or a positive number")
    if size < SMALLEST:
        raise ValueError(f"size is {size}: choose at least {SMALLEST} pixels")
    if not 0 <= marker_correlation <= 1:
        raise ValueError(f"marker_correlation is {marker_correlation}: choose a number from 0 to 1")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: choose a folder")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another folder, or empty it first")


def plan_cases(site: Site, cases: int, seed: int, marker_correlation: float = 0.0) -> list[Case]:
    """Who is examined at a site, with which findings and marker; nothing is rendered.

    The probability of a marker is 0.5 + c (label - 0.5): with labels in equal number the correlation (phi) of marker
    and label is the chosen c.
    """
    rng = stream(seed, site.name, "plan")
    labels = rng.permutation(np.arange(cases) % 2) if cases > 1 else rng.integers(0, 2, 1)
    planned: list[Case] = []
    patient, exam = -1, 0
    for number, label in enumerate(int(value) for value in labels):
        again = number % CASES_PER_RETURN == CASES_PER_RETURN - 1
        patient, exam = (patient, exam + 1) if again else (patient + 1, 0)
        own = stream(seed, site.name, "case", number)
        anatomy_seed = int(stream(seed, site.name, "patient", patient).integers(2**31))
        person = Anatomy.sample(anatomy_seed)
        marked = own.random() < 0.5 + marker_correlation * (label - 0.5)
        planned.append(
            Case(
                site=site,
                number=number + 1,
                patient=patient + 1,
                exam=exam,
                seed=anatomy_seed,
                label=label,
                marker=site.marker if marked else "",
                view="AP" if own.random() < 0.15 else "PA",
                date=f"20{23 + exam}{own.integers(1, 13):02d}{own.integers(1, 29):02d}",
                sex=person.sex,
                age=person.age + exam,
                findings=_draw_findings(label, own),
            )
        )
    return planned


def _draw_findings(label: int, rng: np.random.Generator) -> tuple[Finding, ...]:
    found = []
    size, contrast = rng.uniform(35, 85), rng.uniform(0.7, 1.15)
    if label:
        found.append(Finding("consolidation", round(size, 1), round(contrast, 2)))
    kind = str(rng.choice(list(SMALL_FINDINGS)))
    size = rng.uniform(*SMALL_FINDINGS[kind])
    if rng.random() < 0.35:
        found.append(Finding(kind, round(size, 1)))
    return tuple(found)


def _take(case: Case, size: int, truth: Path) -> _Taken:
    """Render and encode one case, and write its masks."""
    radiograph = render(case.seed, size, case.site, case.findings, case.marker, exam=case.exam, view=case.view)
    frontal = dx_object(case, radiograph.image, case.view, radiograph.spacing_mm, "frontal")
    lateral = None
    if case.number % CASES_PER_LATERAL == 1:
        image = render_lateral(case.seed, size, case.site)
        lateral = file_bytes(dx_object(case, image, "LL", radiograph.spacing_mm, "lateral"))
    uid = frontal.SOPInstanceUID
    findings = _write_masks(truth, case, radiograph)
    masks = (uid, *_mask_files(case, radiograph, [str(row[1]) for row in findings]))
    return _Taken(case, file_bytes(frontal), lateral, _truth_row(case, radiograph, uid), findings, masks)


def _write_site(output: Path, site: Site, index: int, taken: Sequence[_Taken]) -> None:
    images = [data for one in taken for data in (one.frontal, one.lateral) if data is not None]
    first = taken[0].case
    others = [file_bytes(structured_report(first)), file_bytes(ct_slice(first))]
    again = dcmread(io.BytesIO(taken[0].frontal))
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = first.uid("instance", "broken")
    loose = {
        "duplicate": taken[-1].frontal,
        "truncated": truncated(file_bytes(again), in_header=index % 3 == 1),
        "note": NOTE,
    }
    (output / "sites").mkdir(parents=True, exist_ok=True)
    LAYOUTS[site.layout](output / "sites", first, images + others, loose)
    sizes = ({finding.kind: f"{finding.mm:g}" for finding in one.case.findings} for one in taken)
    labels = [
        (one.case.accession, one.case.label, mm.get("consolidation", "")) for one, mm in zip(taken, sizes, strict=True)
    ]
    _write_csv(output / "labels" / f"{site.name}.csv", ("AccessionNumber", "label", "finding_size_mm"), labels)
    truth = output / "truth" / site.name
    _write_csv(truth / "truth.csv", TRUTH, [one.truth for one in taken])
    _write_csv(truth / "findings.csv", FINDINGS, [row for one in taken for row in one.findings])
    _write_csv(truth / "masks.csv", MASKS, [one.masks for one in taken])


def _write_dicomdir(folder: Path, first: Case, files: Sequence[bytes], loose: dict[str, bytes]) -> None:
    """A file-set as on a CD: DICOMDIR, file names without extension; copies and notes lie beside it, unlisted."""
    listed = {f"DISC{number // 100:04d}/IM{number:06d}": data for number, data in enumerate(files)}
    directory = dicomdir(listed, first.site.name.upper(), first.uid("file-set"))
    unlisted = {"COPY/IM000001": loose["duplicate"], "LOST/IM000001": loose["truncated"], "README.TXT": loose["note"]}
    _write_files(folder / first.site.name, {"DICOMDIR": directory, **listed, **unlisted})


def _named(site: Site, files: Sequence[bytes], loose: dict[str, bytes], ending: str) -> Iterator[tuple[str, bytes]]:
    for number, data in enumerate((*files, loose["duplicate"], loose["truncated"])):
        yield f"{number // 20:03d}/{site.name[:2].upper()}{number:05d}{ending}", data
    yield "notes.txt", loose["note"]


def _write_folder(folder: Path, first: Case, files: Sequence[bytes], loose: dict[str, bytes]) -> None:
    """Sub-folders of files without extension."""
    _write_files(folder / first.site.name, dict(_named(first.site, files, loose, "")))


def _write_zip(folder: Path, first: Case, files: Sequence[bytes], loose: dict[str, bytes]) -> None:
    """One zip; fixed dates and no compression, so that the bytes depend on the content alone."""
    site = first.site
    with zipfile.ZipFile(folder / f"{site.name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in _named(site, files, loose, ".dcm"):
            entry = zipfile.ZipInfo(f"{site.name}/{name}")
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)


LAYOUTS: dict[str, Callable[[Path, Case, Sequence[bytes], dict[str, bytes]], None]] = {
    "dicomdir": _write_dicomdir,
    "folder": _write_folder,
    "zip": _write_zip,
}


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


TRUTH = (
    *("AccessionNumber", "SOPInstanceUID", "PatientID", "exam", "view", "sex", "age", "label", "marker"),
    *("cardiothoracic_ratio", "pixel_spacing_mm", "exposure"),
)
FINDINGS = ("AccessionNumber", "mask", "kind", "mm", "contrast", "side", "column", "row", "area_mm2")
MASKS = ("SOPInstanceUID", "lung", "heart", "marker", "finding")


def _truth_row(case: Case, radiograph: Radiograph, sop_instance_uid: str) -> tuple[object, ...]:
    measured = (radiograph.cardiothoracic_ratio, radiograph.spacing_mm, radiograph.exposure)
    who = (case.accession, sop_instance_uid, case.patient_id, case.exam, case.view, case.sex, case.age)
    return (*who, case.label, case.marker, *(f"{value:.5f}" for value in measured))


def _write_masks(folder: Path, case: Case, radiograph: Radiograph) -> list[tuple[object, ...]]:
    """Write ``ACCESSION-NAME.png`` for each mask; return the rows of the findings' table."""
    for name, mask in radiograph.masks.items():
        _write_mask(folder / f"{case.accession}-{name}.png", mask)
    rows: list[tuple[object, ...]] = []
    for number, found in enumerate(radiograph.findings, 1):
        name = f"{case.accession}-{number}-{found.kind}.png"
        _write_mask(folder / name, found.mask)
        side = "R" if found.side < 0 else "L"
        area = f"{found.mask.sum() * radiograph.spacing_mm**2:.2f}"
        place = f"{found.column:.2f}", f"{found.row:.2f}"
        rows.append((case.accession, name, found.kind, found.mm, found.contrast, side, *place, area))
    return rows


def _mask_files(case: Case, radiograph: Radiograph, findings: Sequence[str]) -> Iterator[str]:
    """The file of each region, none where it is not in the image; those of several findings joined by a semicolon."""
    for name in ("lung", "heart", "marker"):
        yield f"{case.accession}-{name}.png" if name in radiograph.masks else ""
    yield ";".join(findings)


def _write_mask(path: Path, mask: Mask) -> None:
    Image.fromarray(mask).save(path, compress_level=3)
