# SPDX-License-Identifier: Apache-2.0
"""Where maps lie: planted blobs are found in their part, and an even map is at chance everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from written_runs import write_run

from monai_cnnprimer.explain.quality import map_quality
from monai_cnnprimer.explain.receptive_field import ReceptiveField
from monai_cnnprimer.handlers.maps import ALL_MAPS, AllMaps, aligned
from monai_cnnprimer.validate.attributions import PARTS, where_maps_lie
from monai_cnnprimer.validate.runs import read_run

FIELD = ReceptiveField(64, 32, 15.5)  # cells of 32 px, as of a 160 px input at stride 32


def run_with(folder, maps, field=FIELD, size=(160, 160)):
    """A run that keeps these maps `(n, h, w)`."""
    run = read_run(write_run(folder))
    kept = AllMaps(["layer3", "layer4"])
    case_ids = run.predictions["case_id"].tolist()[: len(maps)]
    heats = torch.as_tensor(np.asarray(maps), dtype=torch.float32)[:, None]
    kept.add(case_ids, {"layer3": torch.ones_like(heats), "layer4": heats}, size, None)
    (folder / ALL_MAPS).write_bytes(kept.npz({"layer3": field, "layer4": field}))
    return run


def blob(row, column, side=5):
    cells = np.zeros((side, side))
    cells[row, column] = 1
    return cells


@pytest.mark.parametrize("field", [FIELD, None])
def test_an_even_map_is_at_chance_everywhere(tmp_path, field):
    lying = where_maps_lie(run_with(tmp_path / "north", np.ones((20, 5, 5)), field))
    assert lying.layer == "layer4"
    assert [part.value for part in lying.parts.values()] == pytest.approx([1] * len(PARTS), abs=1e-6)


@pytest.mark.parametrize(
    ("row", "column", "most", "none"),
    [(0, 0, "upper left", "lower right"), (0, 4, "upper right", "lower left"), (4, 0, "lower left", "upper right"),
     (4, 4, "lower right", "upper left"), (2, 2, "middle", "border")],
)  # fmt: skip
def test_a_blob_is_found_in_its_part(tmp_path, row, column, most, none):
    found = where_maps_lie(run_with(tmp_path / "north", np.tile(blob(row, column), (20, 1, 1)))).parts
    assert max(found, key=lambda part: found[part].value) == most or found[most].value > 2.5
    assert found[none].value == pytest.approx(0, abs=1e-9)


def test_the_share_is_that_of_the_map_as_it_is_shown(tmp_path):
    cells = np.random.default_rng(0).random((1, 5, 5))
    found = where_maps_lie(run_with(tmp_path / "north", cells)).parts
    stored = torch.as_tensor((cells / cells.max()).astype(np.float16).astype(np.float32) * cells.max())
    heat = aligned(stored, (160, 160), FIELD)
    for part, inside in {
        "border": ~np.pad(np.ones((128, 128), bool), 16),
        "middle": np.pad(np.ones((80, 80), bool), 40),
        "upper left": np.pad(np.ones((80, 80), bool), ((0, 80), (0, 80))),
    }.items():
        expected = map_quality(heat, {"heart": inside})["heart_mass_per_area"]
        assert found[part].value == pytest.approx(expected, rel=1e-3)
        assert PARTS[part][1] == pytest.approx(inside.mean())


def test_sides_that_do_not_divide_are_shared_out(tmp_path):
    maps = np.ones((4, 5, 7))
    found = where_maps_lie(run_with(tmp_path / "north", maps, None, (161, 223))).parts
    assert [part.value for part in found.values()] == pytest.approx([1] * len(PARTS), abs=1e-6)


def test_cases_without_a_positive_cell_are_left_out_and_patients_drawn(tmp_path):
    maps = np.tile(blob(0, 0), (20, 1, 1))
    maps[5:10] = -1
    lying = where_maps_lie(run_with(tmp_path / "north", maps))
    assert (lying.parts["border"].n, lying.parts["border"].clusters < 15) == (15, True)
    assert lying.parts["border"].low == pytest.approx(lying.parts["border"].value)
    assert where_maps_lie(run_with(tmp_path / "none", -maps.clip(min=0))) is None
    assert where_maps_lie(read_run(write_run(tmp_path / "without"))) is None
