# SPDX-License-Identifier: Apache-2.0
"""What several test files need: one small phantom export, the folder of real data, a key of pseudonyms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything reads it: tests must not make a key in the home of whoever runs them.
os.environ.setdefault("CNNPRIMER_KEY", "the key of the tests")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data: the folder named in CNNPRIMER_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CNNPRIMER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set CNNPRIMER_DATA to a folder with kermany/, nih/ and dicom/")
    return folder


@pytest.fixture(scope="session")
def phantom_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites with four cases each, 128 pixels wide."""
    from monai_cnnprimer.phantom import write_export

    folder = tmp_path_factory.mktemp("phantoms") / "export"
    write_export(folder, 4, sites=3, seed=5, size=128, progress=False)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty PNGs of thirty patients with a `manifest.csv`; the finding is a bright square, the test part has eight."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    folder, rows, random = tmp_path_factory.mktemp("images"), [], np.random.default_rng(0)
    for number in range(40):
        label, patient = ("NORMAL", "PNEUMONIA")[number % 2], number if number < 30 else number - 10
        pixels = random.integers(40, 90, (48, 64), dtype=np.uint8)
        pixels[10:30, 20:40] += 120 * (number % 2)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        size = {"original_width": 1200 + 10 * number, "original_height": 1000}
        rows.append({"path": f"{number:02d}.png", "label": label, "patient_id": f"p{patient}", **size})
    table = pd.DataFrame(rows).assign(split=["test" if number < 8 else "train" for number in range(40)])
    table.to_csv(folder / "manifest.csv", index=False)
    return folder
