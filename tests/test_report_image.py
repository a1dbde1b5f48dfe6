# SPDX-License-Identifier: Apache-2.0
"""Of the report: what tells sites and copies apart, and where the maps lie, each a line with its number."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_attributions import blob, run_with
from test_report import Seen
from test_shared_cases import features, pictures, site
from written_runs import write_run

from monai_cnnprimer.report.validation import write_report
from monai_cnnprimer.validate.pooled import pooled
from monai_cnnprimer.validate.runs import read_run


def text_of(runs, tmp_path):
    write_report([run.path for run in runs], tmp_path / "report.html")
    return Seen((tmp_path / "report.html").read_text()).text


@pytest.fixture
def sites(tmp_path):
    """Two sites that their features tell apart; the second has two images of the first."""
    images = [pictures(40, 0), pictures(40, 1)]
    images[1][:2] = images[0][:2]
    names = zip(("north", "south"), images, (0, 3), strict=True)
    return [site(tmp_path / name, shown, features(shift, shift), count=40) for name, shown, shift in names]


def test_the_probe_and_the_copies_are_lines_with_their_numbers(sites, tmp_path):
    text = text_of(sites, tmp_path)
    probe = pooled(sites).probe
    value = probe.balanced_accuracy
    assert (
        f"all sites: balanced accuracy {value.value:.2f} ({value.low:.2f} to {value.high:.2f}) n 80, 40 patients"
        in text
    )
    assert f"south against the rest: AUROC {probe.sites['south'].value:.2f}" in text
    assert "north and south 0 0 2" in text
    assert "two patients of south – – 0" in text


def test_what_is_not_known_is_told(tmp_path, sites):
    old = read_run(write_run(tmp_path / "old", key_id="ffffffff"))
    text = text_of([sites[0], old], tmp_path)
    assert "Whether the network's features tell the sites apart is not known: no features were kept at old." in text
    assert "two patients of old – – – (no hashes of images)" in text
    assert "north and old – (pseudonyms of different or unknown keys) 0 – (different or unknown keys)" in text


def test_one_site_is_held_against_itself(sites, tmp_path):
    text = text_of(sites[:1], tmp_path)
    assert "two patients of north – – 0" in text
    assert "balanced accuracy" not in text


def test_where_the_maps_lie_is_told_of_every_site_that_kept_them(tmp_path):
    corner, even = run_with(tmp_path / "corner", np.tile(blob(0, 0), (20, 1, 1))), write_run(tmp_path / "packed")
    summary = {"chosen": 1, "seen": 20, "notes": [], "layer4": {"fit": "fit", "fit_reason": "they change"}}
    (tmp_path / "corner" / "gradcam.json").write_text(json.dumps({"gradcam": summary}))
    text = text_of([corner, read_run(even)], tmp_path)
    assert "Where Grad-CAM at layer4 lies, over all cases that the runs kept maps of" in text
    assert "upper left quarter (25 %) 4.00 (4.00 to 4.00) n 20, 10 patients" in text
    assert "the outer tenth along each side (36 % of the image)" in text
