# SPDX-License-Identifier: Apache-2.0
"""The features and image hashes that runs keep of their cases, read back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from monai_cnnprimer.handlers.features import COLUMNS, FEATURES, NAMES
from monai_cnnprimer.validate.runs import Run, RunError

_HASH = "[0-9a-f]{64}"


def features_of(run: Run) -> pd.DataFrame:
    """One row a case that has features: `case_id`, `patient_key`, `image_hash` ("" for none), `layer`, `feature_00` ...

    The features are float32. A run without the file, such as one of an older version, has no rows; in one that was
    packed without image hashes they are "".

    Raises:
        RunError: the file has other columns, a case twice or one of no prediction, or a hash of another form.
    """
    file = run.path / FEATURES
    if not file.is_file():
        return pd.DataFrame(columns=["case_id", "patient_key", *COLUMNS[1:]])
    types = dict.fromkeys(("case_id", "image_hash", "layer"), str) | dict.fromkeys(NAMES, np.float32)
    missing = dict.fromkeys(NAMES, ["nan"])  # what a network that fails gives
    try:
        table = pd.read_csv(file, dtype=types, na_values=missing, keep_default_na=False)
    except ValueError as error:
        raise RunError(f"{run.site}: {FEATURES} cannot be read ({type(error).__name__}); run the site again") from None
    if "image_hash" not in table:
        table.insert(1, "image_hash", "")
    if list(table.columns) != list(COLUMNS) or not table["image_hash"].str.fullmatch(f"({_HASH})?").all():
        raise RunError(f"{run.site}: {FEATURES} is not as a run writes it; run the site again")
    patients = run.predictions.set_index("case_id")["patient_key"]
    if table["case_id"].duplicated().any() or not table["case_id"].isin(patients.index).all():
        raise RunError(f"{run.site}: {FEATURES} has a case twice, or one without a prediction; run the site again")
    table.insert(1, "patient_key", table["case_id"].map(patients))
    return table


def pooled_features(runs: Sequence[Run]) -> pd.DataFrame:
    """`features_of` several runs, one below the other, with `site` and `person`.

    A person is a patient's key with that of the pseudonyms: of two keys nothing tells whether two patients are one.
    """
    tables = []
    for run in runs:
        table = features_of(run)
        key = run.run.get("key_id") or run.site
        tables.append(table.assign(site=run.site, person=[f"{key} {patient}" for patient in table["patient_key"]]))
    return pd.concat(tables, ignore_index=True)
