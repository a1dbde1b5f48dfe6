# SPDX-License-Identifier: Apache-2.0
"""Exposure in the manifest: as the header states it, in mAs whatever the attribute, and nothing that identifies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset
from written_dicom import radiograph, written

from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.dicom.exposure import exposure
from monai_cnnprimer.validate.baselines import metadata_baseline
from monai_cnnprimer.validate.patient_data import scan_csv


def header(**attributes):
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (None, None, None)),
        ({"KVP": "125"}, (125, None, None)),
        ({"KVP": "81.3"}, (81, None, None)),
        ({"KVP": "0"}, (None, None, None)),
        ({"KVP": "20011231"}, (None, None, None)),
        ({"KVP": ["120", "80"]}, (120, None, None)),
        ({"Exposure": "3"}, (None, 3, None)),
        ({"ExposureInuAs": "1640", "Exposure": "2"}, (None, 1.6, None)),
        ({"XRayTubeCurrent": "250", "ExposureTime": "8"}, (None, 2, None)),
        ({"Exposure": "0", "XRayTubeCurrent": "250", "ExposureTime": "10"}, (None, 2.5, None)),
        ({"XRayTubeCurrent": "250"}, (None, None, None)),
        ({"Exposure": "-1"}, (None, None, None)),
        ({"ExposureIndex": "412.7"}, (None, None, 410)),
        ({"ExposureIndex": "1987654"}, (None, None, 2_000_000)),
    ],
)
def test_what_a_header_states(attributes, expected):
    assert tuple(exposure(header(**attributes)).values()) == expected


def test_exposure_stands_in_the_manifest_and_passes_the_scanner(tmp_path):
    for number, stated in enumerate(({"KVP": "117.4", "Exposure": "3", "ExposureIndex": "398"}, {})):
        dataset = radiograph(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), **stated)
        dataset.SOPInstanceUID = f"2.25.{number + 1}"
        (tmp_path / "export").mkdir(exist_ok=True)
        (tmp_path / "export" / f"IM{number}").write_bytes(written(dataset))
    manifest = index_export(tmp_path / "export", key=b"key", output=tmp_path / "out", workers=1, progress=False)
    table = manifest.accepted.set_index("kvp")
    assert table.loc[117, ["exposure_mas", "exposure_index"]].tolist() == [3, 400]
    assert manifest.accepted["exposure_mas"].isna().sum() == 1
    assert scan_csv((tmp_path / "out" / "manifest.csv").read_text()) == []


def test_exposure_that_follows_the_label_is_found():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 200)
    mas = np.round(np.exp(random.normal(0.6 * label, 0.3)), 2)
    table = pd.DataFrame({"label": label, "patient_key": np.arange(200).astype(str), "exposure_mas": mas})
    result = metadata_baseline(table)
    assert (result.columns, result.low > 0.8) == (("exposure_mas",), True)
    table.loc[::3, "exposure_mas"] = np.nan
    assert metadata_baseline(table).value < result.value
