# SPDX-License-Identifier: Apache-2.0
"""What a run leaves of its Grad-CAM: maps, figures, tables of their quality, and who is told that a map is unfit."""

from __future__ import annotations

import json
import math
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from monai_cnnprimer.dicom.masks import Regions
from monai_cnnprimer.explain.receptive_field import align_map, theoretical_receptive_field
from monai_cnnprimer.handlers import GradCamHandler
from monai_cnnprimer.handlers.maps import read_all_maps

IDS = ["0123456789abcdef", "NORMAL/IM-0001.jpeg", "../../out"]
NAMES = ["0123456789abcdef", "NORMAL_IM-0001.jpeg-21fa6c26", "_.._out-a94848ef"]
HALF = np.zeros((64, 96), dtype=bool)
HALF[:, 48:] = True


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, conv1_t_stride=2, num_classes=2).eval()


class Brightness(nn.Module):
    """The map is the image but for sign and scale, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 2, 1, bias=False)
        self.features.weight = nn.Parameter(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))


class Oblong(Brightness):
    """A layer whose geometry is not that of a square."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 2, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.features(x)).mean(dim=(2, 3))


def batch(ids: list[str], shape: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    spacing = [[2.0, 1.5] if name == IDS[0] else [math.nan, math.nan] for name in ids]
    return {
        "image": torch.rand(len(ids), 1, *shape, generator=generator),
        "case_id": ids,
        "label": torch.tensor([-1, *[0] * (len(ids) - 1)]),
        "network_spacing_mm": torch.tensor(spacing),
    }


def explain(network: nn.Module, batches: list[dict[str, Any]], layers: Any, **options: Any) -> GradCamHandler:
    handler = GradCamHandler(network, layers, **options)
    SupervisedEvaluator(torch.device("cpu"), batches, network, val_handlers=[handler]).run()
    return handler


def some_regions(case_id: str) -> Regions:
    """Half of the first case is lung; the second has a mask of another size, the third none."""
    if case_id == IDS[0]:
        return Regions({"lung": HALF}, {"heart": "the mask cannot be read: a damaged PNG file"})
    return Regions({"lung": np.ones((4, 4), dtype=bool)}, {}) if case_id == IDS[1] else Regions({}, {})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two runs over the same cases into one folder each; the second folder holds remains of an earlier run."""
    network = small_resnet()
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    for name in ("maps/old.npz", "maps/old_layer4.nii.gz", "figures/gradcam_old.png", "gradcam_old.csv"):
        (folders[1] / name).parent.mkdir(exist_ok=True)
        (folders[1] / name).touch()
    options = {"masks": some_regions, "quality_images": 2}
    for folder in folders:
        handler = explain(network, [batch(IDS)], ["layer3", "layer4"], output_dir=folder, **options)
    return network, {case.case_id: case for case in handler.cases}, folders


def test_raw_maps_are_written_with_their_geometry(written):
    network, cases, (folder, _) = written
    with np.load(folder / "maps" / f"{NAMES[0]}.npz") as maps:
        assert set(maps) == {f"layer{i}{part}" for i in (3, 4) for part in ("", ".receptive_field", ".mm_per_cell")}
        assert np.array_equal(maps["layer3"], cases[IDS[0]].maps["layer3"][0])
        assert maps["layer4.receptive_field"].tolist() == list(theoretical_receptive_field(network, "layer4"))


def test_aligned_maps_lie_over_the_image(written):
    network, cases, (folder, _) = written
    image, heat = (nib.load(folder / "maps" / f"{NAMES[0]}{part}.nii.gz") for part in ("", "_layer4"))
    assert np.array_equal(image.affine, heat.affine)
    assert np.array_equal(np.asarray(image.dataobj)[:, 0].T, cases[IDS[0]].image[0])
    field = theoretical_receptive_field(network, "layer4")
    expected = align_map(cases[IDS[0]].maps["layer4"][None], (64, 96), field)[0, 0]
    assert np.array_equal(np.asarray(heat.dataobj)[:, 0].T, expected)
    said = heat.header["descrip"].item().decode()
    predicted = cases[IDS[0]].predicted
    assert said == f"research use only, not for clinical use; Grad-CAM class {predicted}, layer4"
    other = nib.load(folder / "maps" / f"{NAMES[1]}_layer4.nii.gz").header["descrip"].item().decode()
    assert other.startswith("mm unknown; research use only")


def test_the_table_has_a_row_for_each_case_and_layer(written):
    _, cases, (folder, _) = written
    table = pd.read_csv(folder / "gradcam.csv").set_index(["case_id", "layer"])
    assert list(table.index) == [(name, layer) for name in cases for layer in ("layer3", "layer4")]
    row = table.loc[(IDS[0], "layer4")]
    assert (row["chosen_as"], row["predicted"]) == (cases[IDS[0]].chosen_as, cases[IDS[0]].predicted)
    assert math.isnan(row["label"])
    assert (row["mm_per_cell_row"], row["mm_per_cell_column"]) == (64, 48)
    heat = np.asarray(nib.load(folder / "maps" / f"{NAMES[0]}_layer4.nii.gz").dataobj)[:, 0].T
    positive = heat.clip(0)
    assert row["lung_mass"] == pytest.approx(positive[HALF].sum() / positive.sum(), rel=1e-4, nan_ok=True)
    assert table[["insertion", "deletion"]].head(4).stack().between(0, 1).all()
    assert table[["insertion", "deletion"]].tail(2).isna().all(axis=None)
    assert row["regions_left_out"] == "heart: the mask cannot be read: a damaged PNG file"
    other = table.loc[(IDS[1], "layer3")]
    assert other["regions_left_out"] == "lung: the mask has another size than the network's input"
    assert math.isnan(other["lung_mass"])


def test_the_summary_counts_the_cases_that_have_a_value(written):
    _, cases, (folder, _) = written
    told = json.loads((folder / "gradcam.json").read_text())["gradcam"]
    assert (told["chosen"], told["seen"], told["notes"]) == (3, 3, [])
    table = pd.read_csv(folder / "gradcam.csv")
    for layer in ("layer3", "layer4"):
        of = table[table["layer"] == layer]
        assert told[layer]["fit"] == "unknown"
        assert told[layer]["fit_reason"] == "2 images with a map, fewer than 8, do not tell"
        assert told[layer]["insertion"]["value"] == pytest.approx(of["insertion"].mean(), abs=1e-5)
        assert told[layer]["insertion"]["n"] == 2
        assert told[layer]["lung_mass"]["n"] == of["lung_mass"].notna().sum() <= 1
        assert told[layer]["lung_mass"]["low"] is None


def test_the_same_run_writes_the_same_bytes_and_nothing_else(written):
    first, second = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in written[2]
    )
    assert first == second
    maps = {f"maps/{name}{part}" for name in NAMES for part in (".npz", ".nii.gz", "_layer3.nii.gz", "_layer4.nii.gz")}
    of_layers = {f"figures/gradcam_{what}_layer{i}.png" for what in ("quality", "randomisation") for i in (3, 4)}
    figures = {"figures/gradcam.png", *(f"figures/gradcam_{name}.png" for name in NAMES)}
    tables = {"gradcam.csv", "gradcam.json", "gradcam_maps.npz", "gradcam_randomisation.csv"}
    assert set(first) == maps | figures | of_layers | tables


def test_the_network_is_left_as_it_came(written):
    network = written[0]
    assert not network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    fresh = small_resnet().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in network.state_dict().items())


@pytest.fixture
def titles(monkeypatch):
    """The texts of what would be drawn."""
    kept: dict[str, list[str]] = {"panels": [], "captions": [], "sheets": []}

    def overlay(image: Any, heats: Any, title: str, *rest: Any) -> bytes:
        kept["panels"] += heats
        kept["captions"].append(title)
        return b""

    def sheet(tiles: Any, title: str) -> bytes:
        kept["sheets"].append(title)
        return b""

    monkeypatch.setattr("monai_cnnprimer.handlers.gradcam_report.overlay_png", overlay)
    monkeypatch.setattr("monai_cnnprimer.handlers.gradcam_report.contact_sheet_png", sheet)
    return kept


def test_a_map_that_random_weights_do_not_change_is_unfit_in_every_figure_and_table(titles, tmp_path):
    ids = [f"c{i}" for i in range(9)]
    explain(Brightness(), [batch(ids, (8, 8))], "features", output_dir=tmp_path)
    mark = "UNFIT: maps do not change with random weights"
    assert all(panel.endswith(mark) for panel in titles["panels"])
    assert titles["sheets"] == [f"Grad-CAM at features, each map on its own scale; {mark}"]
    assert set(pd.read_csv(tmp_path / "gradcam.csv")["fit"]) == {"unfit"}
    told = json.loads((tmp_path / "gradcam.json").read_text())["gradcam"]["features"]
    assert told["fit"] == "unfit"
    assert told["randomised_correlation"]["value"] > 0.9
    said = {nib.load(path).header["descrip"].item() for path in (tmp_path / "maps").glob("*_features.nii.gz")}
    assert all(b"UNFIT" in text for text in said)
    assert pd.read_csv(tmp_path / "gradcam.csv")["insertion"].notna().sum() == 8  # quality_images


def test_captions_say_why_a_case_was_chosen(titles, tmp_path):
    explain(Brightness(), [batch(["a", "b"], (8, 8))], "features", output_dir=tmp_path, quality_images=0, target=0)
    first, second = titles["captions"]
    assert first.startswith("b   chosen as error   map of class 0, predicted 1 (p = ")
    assert first.endswith("label 0, ERROR")
    assert second.startswith("a   chosen as least confident   ")
    assert second.endswith("label unknown")


def test_without_further_runs_the_fitness_is_not_known(titles, tmp_path):
    explain(Brightness(), [batch(IDS, (8, 8))], "features", output_dir=tmp_path, quality_images=0)
    table = pd.read_csv(tmp_path / "gradcam.csv")
    assert set(table["fit"]) == {"unknown"}
    assert "insertion" not in table
    assert not (tmp_path / "gradcam_randomisation.csv").exists()
    told = json.loads((tmp_path / "gradcam.json").read_text())["gradcam"]["features"]
    assert told == {"fit": "unknown", "fit_reason": "no images to test it on"}


def test_a_layer_without_known_geometry_is_drawn_and_says_so(titles, tmp_path):
    explain(Oblong(), [batch(IDS[:1], (8, 8))], "wide", output_dir=tmp_path, quality_images=0)
    (panel,) = titles["panels"]
    assert panel.startswith("wide: receptive field unknown, map stretched to fit\n")


def test_a_target_of_ones_own_has_no_class(tmp_path):
    explain(
        Brightness(), [batch(IDS, (8, 8))], "features", output_dir=tmp_path, target=lambda logits: logits.sum(dim=1)
    )
    table = pd.read_csv(tmp_path / "gradcam.csv")
    assert table["explained"].isna().all()
    assert "insertion" not in table
    assert (tmp_path / "gradcam_randomisation.csv").is_file()


def test_images_of_several_sizes_are_tested_as_far_as_they_are_alike(tmp_path):
    batches = [batch(["a"], (8, 8)), batch(["b"], (8, 10)), batch(["c"], (8, 8))]
    explain(Brightness(), batches, "features", output_dir=tmp_path)
    told = json.loads((tmp_path / "gradcam.json").read_text())["gradcam"]["features"]
    assert told["randomised_correlation"]["n"] in (1, 2)
    assert nib.load(tmp_path / "maps" / "b_features.nii.gz").shape == (10, 1, 8)


def test_weights_that_cannot_be_made_random_leave_the_fitness_open(tmp_path):
    class Scaled(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    explain(Scaled(), [batch(IDS, (8, 8))], "features", output_dir=tmp_path)
    told = json.loads((tmp_path / "gradcam.json").read_text())["gradcam"]["features"]
    assert (told["fit"], told["fit_reason"]) == (
        "unknown", "the network: Scaled has weights but no reset_parameters()",
    )  # fmt: skip


def test_of_no_cases_there_are_tables_without_rows(tmp_path):
    explain(Brightness(), [batch(IDS, (8, 8))], "features", output_dir=tmp_path, max_images=0)
    assert pd.read_csv(tmp_path / "gradcam.csv").empty
    assert json.loads((tmp_path / "gradcam.json").read_text())["gradcam"]["seen"] == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["gradcam.csv", "gradcam.json"]


def test_the_maps_of_all_cases_are_kept_not_only_of_those_drawn(tmp_path):
    network = small_resnet()
    options = {"output_dir": tmp_path, "max_images": 1, "quality_images": 0}
    handler = explain(network, [batch(IDS[:2]), batch(IDS[2:])], "layer4", **options)
    stored = read_all_maps(tmp_path / "gradcam_maps.npz")
    assert sorted(stored.maps) == sorted(IDS)
    assert (stored.image_size, stored.field) == ((64, 96), theoretical_receptive_field(network, "layer4"))
    case = handler.cases[0]
    assert stored.explained[case.case_id] == case.explained
    raw = case.maps["layer4"][0].numpy()
    assert stored.maps[case.case_id] == pytest.approx(raw, abs=1e-3 * float(abs(raw).max()))
