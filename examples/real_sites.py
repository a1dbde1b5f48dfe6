# SPDX-License-Identifier: Apache-2.0
"""Writes real radiographs as the exports of four hospitals, two phantom hospitals beside them, and their sites.yaml.

    python examples/real_sites.py DATA OUTPUT
    cnnprimer validate OUTPUT/sites.yaml

DATA holds `kermany/` and `nih/`, each with a `manifest.csv` (docs/validate.md says of what). The images are wrapped as
DX objects of three vendors; what their sources do not say, such as the size of a pixel, is left out. Kermany's lung
masks go along, so that the report can say how much of Grad-CAM lies in the lungs there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from monai_cnnprimer.phantom import SITES, write_export
from monai_cnnprimer.phantom.dx import Case, dx_object, file_bytes

LABELS = {"NORMAL": 0, "PNEUMONIA": 1}
UNKNOWN = ("ImagerPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription",
           "EstimatedRadiographicMagnificationFactor", "PatientBirthDate", "StudyDate", "KVP", "XRayTubeCurrent",
           "ExposureTime", "Exposure", "ExposureInuAs", "ExposureIndex")  # fmt: skip


def hospitals(data: Path) -> dict[str, tuple[pd.DataFrame, dict[str, object]]]:
    """Name of each hospital to its images, and what is expected of them."""
    kermany = pd.read_csv(data / "kermany" / "manifest.csv").assign(folder=data / "kermany", view="AP", sex="O")
    nih = pd.read_csv(data / "nih" / "manifest.csv").assign(folder=data / "nih")
    nih = nih[nih["label"].isin(LABELS)]
    adults, children = nih[nih["age"] >= 18], nih[nih["age"] < 18]
    return {
        "internal": (kermany[kermany["split"] == "test"], {}),
        "adults-pa": (adults[adults["view"] == "PA"], {"ages": [18, None]}),
        "adults-ap": (adults[adults["view"] == "AP"], {"ages": [18, None]}),
        "children": (children, {"ages": [None, 17]}),
    }


def write_hospital(name: str, vendor: int, images: pd.DataFrame, output: Path) -> None:
    """The export `exports/NAME`, `labels/NAME.csv`, and `masks/NAME.csv` where there are masks, of one hospital."""
    folder, labels, masks = output / "exports" / name, [], []
    folder.mkdir(parents=True)
    people = {person: number for number, person in enumerate(dict.fromkeys(images["patient_id"]))}
    for number, row in enumerate(images.to_dict("records")):
        age = row.get("age")
        case = Case(
            site=SITES[vendor], number=number, patient=people[row["patient_id"]], exam=0, seed=0,
            label=LABELS[row["label"]], findings=(), marker="", view=row["view"], date="20000101", sex=row["sex"],
            age=0 if age is None else int(age),
        )  # fmt: skip
        grey = np.asarray(Image.open(Path(row["folder"]) / row["path"]).convert("L"), dtype=np.float64) / 255
        dataset = dx_object(case, grey, case.view, 1.0, f"{name} {number}")
        for keyword in (*UNKNOWN, *(() if age is not None else ("PatientAge",))):
            if keyword in dataset:
                del dataset[keyword]
        dataset.PatientID, dataset.PatientName = row["patient_id"], "PUBLISHED^IMAGE"
        del dataset.IssuerOfPatientID  # the same person keeps one number at both of NIH's sites
        dataset.ImageComments = "a published JPEG wrapped as DX"
        dataset.AccessionNumber = f"{name.upper()[:8]}{number:05d}"
        (folder / f"IM{number:05d}").write_bytes(file_bytes(dataset))
        labels.append({"AccessionNumber": dataset.AccessionNumber, "label": case.label})
        if isinstance(row.get("mask"), str):
            mask = f"{name}/{number:05d}.png"
            (output / "masks" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(row["folder"]) / row["mask"], output / "masks" / mask)
            masks.append({"AccessionNumber": dataset.AccessionNumber, "lung": mask})
    if masks:
        pd.DataFrame(masks).to_csv(output / "masks" / f"{name}.csv", index=False)
    (output / "labels").mkdir(exist_ok=True)
    pd.DataFrame(labels).to_csv(output / "labels" / f"{name}.csv", index=False)


def main(data: Path, output: Path) -> None:
    """Writes all of it."""
    sites: dict[str, dict[str, object]] = {}
    for vendor, (name, (images, expected)) in enumerate(hospitals(data).items()):
        write_hospital(name, vendor % len(SITES), images, output)
        sites[name] = {"export": f"exports/{name}", "labels": f"labels/{name}.csv", **expected}
        if (output / "masks" / f"{name}.csv").is_file():
            sites[name]["masks"] = f"masks/{name}.csv"
        print(f"{name}: {len(images)} images of {images['patient_id'].nunique()} patients", flush=True)
    write_export(output / "phantoms", 100, sites=2, seed=0, progress=False)
    for path in sorted((output / "phantoms" / "sites").iterdir()):
        labels = f"phantoms/labels/{path.stem}.csv"
        sites[f"phantom-{path.stem}"] = {"export": str(path.relative_to(output)), "labels": labels}
    plan = {"bundle": "chest_xray_resnet50", "output": "validation", "internal": "internal", "sites": sites}
    (output / "sites.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
