# SPDX-License-Identifier: Apache-2.0
"""Run directories as `RunDirectory` writes them, of cases that no image stands behind."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from monai.transforms import Compose

from monai_cnnprimer.dicom.export import COLUMNS, NUMBERS, REFUSED_COLUMNS, Manifest
from monai_cnnprimer.handlers.features import FEATURES, NAMES
from monai_cnnprimer.run_directory import RunDirectory, describe_sha256
from monai_cnnprimer.validate.overlap import input_hashes
from monai_cnnprimer.validate.summary import summary

BUNDLE = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50"
WEIGHTS, KEY_ID = "ab" * 32, "0123abcd"
TRANSFORMS = Compose([])
POINT = {
    "id": "youden-abababab",
    "threshold": 0.5,
    "weights_sha256": WEIGHTS,
    "transforms_sha256": describe_sha256(TRANSFORMS),
}


def hashed(text, length=16):
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def manifest(
    site, count=20, *, labels=True, positives=None, patients=None, prefix=None, refused=1, file=False, key_id=KEY_ID
):
    """`count` accepted images, two a patient, every second one with the finding."""
    prefix = site if prefix is None else prefix
    rows = []
    for number in range(count):
        patient = f"{patients or prefix} patient {number // 2}"
        label = number % 2 if positives is None else int(number < positives)
        rows.append(
            {
                "case_id": hashed(f"{prefix} {number}"),
                "patient_key": hashed(patient),
                "path_sha256": hashed(f"path {prefix} {number}", 64),
                "sha256": hashed(f"file {prefix} {number}", 64),
                "site": site,
                "label": label if labels else None,
                "file": f"{number}.png" if file else "",
                "view": ("PA", "AP")[number % 3 == 0],
                "sex": "MF"[number // 2 % 2],
                "age_band": ("18-39", "40-64", "65-89")[number // 2 % 3],
                "manufacturer": "Acme",
                "rows": 100,
                "columns": 120,
                "pixel_spacing_mm": 0.15,
                "transfer_syntax": "ExplicitVRLittleEndian",
            }
        )
    cells = {name: [row.get(name, None if name in NUMBERS else "") for row in rows] for name in COLUMNS}
    accepted = pd.DataFrame({n: pd.Series(cells[n], dtype=NUMBERS.get(n, "str")) for n in COLUMNS})
    row = {"path_sha256": hashed("x", 64), "sha256": "", "reason": "not DICOM", "attribute": ""}
    left = pd.DataFrame([row] * refused, columns=list(REFUSED_COLUMNS))
    accepted = accepted.sort_values("case_id", ignore_index=True)
    return Manifest(accepted, left, {}, ["a note on its labels"], key_id=key_id)


def write_run(
    path,
    site=None,
    *,
    point=POINT,
    weights=WEIGHTS,
    retune=None,
    shift=0.0,
    run_manifest=None,
    features=None,
    images=None,
    **options,
):
    """A complete run; the finding raises the logit by two, with noise that the seed of the site's cases gives.

    `features` `(n, 64)` are those that the run keeps; `images` `(n, H, W)` those it keeps hashes of.
    """
    path = Path(path)
    made = run_manifest or manifest(site or path.name, **options)
    run = RunDirectory(path, made, BUNDLE, weights, point | {"weights_sha256": weights}, TRANSFORMS, retune=retune)
    cases = made.accepted.set_index("case_id")["label"]
    noise = np.random.default_rng(len(cases)).normal(size=len(cases))
    logits = [shift + 2.0 * (0 if pd.isna(label) else label) - 1 + n for label, n in zip(cases, noise, strict=True)]
    run.add(list(cases.index), logits, [1 / (1 + np.exp(-logit)) for logit in logits])
    if features is not None:
        write_features(path, list(cases.index), features, images)
    run.finish([], partial(summary, resamples=20))
    return path


def write_features(path, case_ids, features, images=None, layer="layer4"):
    """`features.csv` as `FeatureHandler` writes it."""
    hashes = input_hashes(images[:, None], b"key") if images is not None else [""] * len(case_ids)
    table = pd.DataFrame(np.asarray(features, dtype=np.float16).astype(float), columns=list(NAMES))
    table = pd.DataFrame({"case_id": case_ids, "image_hash": hashes, "layer": layer}).join(table)
    table.to_csv(path / FEATURES, index=False, lineterminator="\n", float_format="%.4g")
