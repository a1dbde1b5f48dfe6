# SPDX-License-Identifier: Apache-2.0
"""What a run keeps of every image: the network's own features, once a case, the same after a kill."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from written_runs import BUNDLE, POINT, TRANSFORMS, WEIGHTS, manifest, write_features, write_run

from monai_cnnprimer.handlers.case_table import CaseTableHandler
from monai_cnnprimer.handlers.features import COLUMNS, FEATURES, NAMES, SPOOL, FeatureHandler, projected
from monai_cnnprimer.handlers.gradcam import GradCamHandler
from monai_cnnprimer.run_directory import RunDirectory
from monai_cnnprimer.validate.features import features_of, pooled_features
from monai_cnnprimer.validate.overlap import hashes_from_hex, near_duplicates
from monai_cnnprimer.validate.runs import RunError, read_run

CASES = 10


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 48, 5, stride=4), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2)).eval()


def images():
    return torch.rand(CASES, 1, 48, 48, generator=torch.Generator().manual_seed(1))


def hashes(inputs):
    return [f"{int(1e6 * image.mean()):064x}" for image in inputs]


def evaluate(folder, *, batch_size=4, ends_after=None, further=(), layer="0", seed=0, wrap=lambda model: model):
    """A run over ten images; `ends_after` so many batches it is killed without a word."""
    run = RunDirectory(folder, manifest("north", CASES), BUNDLE, WEIGHTS, POINT, TRANSFORMS, seed=seed)
    place = {case_id: number for number, case_id in enumerate(run.manifest.accepted["case_id"])}
    waiting = [case_id for case_id in place if case_id not in run.rows] or list(place)[-1:]
    batches = [waiting[start : start + batch_size] for start in range(0, len(waiting), batch_size)]
    loader = [
        {"image": images()[[place[case_id] for case_id in batch]], "case_id": batch, "label": torch.zeros(len(batch))}
        for batch in batches[:ends_after]
    ]
    model, dataset = wrap(network()), SimpleNamespace(cases=[{"case_id": case_id} for case_id in place])
    handlers = [FeatureHandler(run, model, layer, hashes)]
    handlers += [CaseTableHandler(run, dataset, lambda table: {"n": len(table)}, progress=False)]
    if ends_after is not None:
        for handler in handlers:
            handler._finish = lambda engine: None  # as if the process had gone
    handlers += [handler(model) for handler in further]
    SupervisedEvaluator(torch.device("cpu"), loader, model, decollate=False, val_handlers=handlers).run()
    run.stop("killed", "") if ends_after is not None else None
    return run


def kept(folder):
    table = pd.read_csv(folder / FEATURES, dtype=dict.fromkeys(("case_id", "image_hash", "layer"), str))
    return table.set_index("case_id")


def test_features_are_those_of_the_layer_and_stand_once_a_case(tmp_path):
    run = evaluate(tmp_path)
    table = kept(tmp_path)
    assert list(table.index) == sorted(run.manifest.accepted["case_id"])
    assert table.columns.tolist() == list(COLUMNS[1:])
    with torch.no_grad():
        expected = projected(network()[0](images()).mean(dim=(2, 3)).numpy())
    np.testing.assert_allclose(table[list(NAMES)], expected, rtol=2e-3, atol=1e-3)
    assert table["image_hash"].tolist() == hashes(images().numpy())
    assert set(table["layer"]) == {"0"}
    assert not (tmp_path / SPOOL).exists()


def test_distances_between_cases_survive_the_projection():
    features = np.random.default_rng(0).random((60, 2048), dtype=np.float32)
    features[:30] += np.random.default_rng(1).random(2048, dtype=np.float32)
    short = projected(features).astype(float)
    before, after = (np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(60, 1)] for x in (features, short))
    assert np.abs(after / before - 1).max() < 0.5
    assert np.corrcoef(before, after)[0, 1] > 0.8
    assert np.isfinite(projected(np.full((1, 2048), 1e6, dtype=np.float32))).all()


def test_the_signs_of_the_projection_are_the_same_everywhere():
    """Worked out once: sites of two versions of a library must not differ by them."""
    np.testing.assert_allclose(projected(np.eye(8, dtype=np.float32)[:2])[:, :6] * 8, SIGNS)


SIGNS = [[1, 1, 1, -1, 1, 1], [1, 1, -1, 1, 1, -1]]


@pytest.mark.parametrize("done", [1, 2])
def test_a_killed_run_is_taken_up_to_the_same_bytes(tmp_path, done):
    evaluate(tmp_path / "whole")
    evaluate(tmp_path / "killed", ends_after=done)
    assert not (tmp_path / "killed" / FEATURES).exists()
    with (tmp_path / "killed" / SPOOL).open("a") as spool:
        spool.write("0123456789abcdef,00,0,1.5,2")  # torn by the kill
    evaluate(tmp_path / "killed")
    assert (tmp_path / "killed" / FEATURES).read_bytes() == (tmp_path / "whole" / FEATURES).read_bytes()


def test_batches_do_not_matter(tmp_path):
    for name, size in (("one", 1), ("ten", 10)):
        evaluate(tmp_path / name, batch_size=size)
    one, ten = kept(tmp_path / "one"), kept(tmp_path / "ten")
    np.testing.assert_allclose(one[list(NAMES)], ten[list(NAMES)], rtol=2e-3, atol=1e-3)
    assert one["image_hash"].equals(ten["image_hash"])


@pytest.mark.parametrize("change", [{"seed": 1}, {"layer": "0.1"}])
def test_what_another_run_left_is_not_taken_up(tmp_path, change):
    evaluate(tmp_path / "north", ends_after=2)
    spool = (tmp_path / "north" / SPOOL).read_text()
    (tmp_path / "north" / SPOOL).write_text(spool.replace(",0,", ",0,9"))
    evaluate(tmp_path / "north", **change)
    evaluate(tmp_path / "fresh", **change)
    kept_now, fresh = kept(tmp_path / "north"), kept(tmp_path / "fresh")
    if "layer" in change:  # the predictions were taken up, and their features are not known for this layer
        assert len(kept_now) == CASES - 8
        fresh = fresh.loc[kept_now.index]
    pd.testing.assert_frame_equal(kept_now, fresh, rtol=2e-3, atol=1e-3)


def test_gradcam_beside_it_changes_nothing(tmp_path):
    evaluate(tmp_path / "alone")
    evaluate(tmp_path / "beside", further=[lambda model: GradCamHandler(model, "0", 2)])
    pd.testing.assert_frame_equal(kept(tmp_path / "alone"), kept(tmp_path / "beside"))


class Twice(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return (self.model(image) + self.model(image.flip(3))) / 2


def test_a_layer_that_runs_twice_or_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"layer 'model\.0' must run once .* it ran 2 times"):
        evaluate(tmp_path / "twice", layer="model.0", wrap=Twice)
    with pytest.raises(ValueError, match="no layer 'layer4'"):
        evaluate(tmp_path / "none", layer="layer4")


def test_the_hook_goes_with_the_run(tmp_path):
    seen = []
    evaluate(tmp_path / "a", wrap=lambda model: seen.append(model) or model)
    assert not seen[0][0]._forward_hooks
    with pytest.raises(ValueError, match="must run once"):
        evaluate(tmp_path / "b", layer="model.0", wrap=lambda model: seen.append(Twice(model)) or seen[-1])
    assert not seen[1].model[0]._forward_hooks


def test_features_are_read_back_with_their_patients(tmp_path):
    features = np.random.default_rng(0).normal(size=(20, 64))
    run = read_run(write_run(tmp_path / "north", features=features, images=images().numpy().repeat(2, 0)[:, 0]))
    table = features_of(run)
    np.testing.assert_allclose(table[list(NAMES)], features, rtol=2e-3, atol=1e-3)
    assert (
        table["patient_key"].tolist() == run.predictions.set_index("case_id")["patient_key"][table["case_id"]].tolist()
    )
    pairs = near_duplicates(hashes_from_hex(table["image_hash"]), np.arange(20))
    assert (len(pairs), pairs["bits"].max()) == (10, 0)
    other = read_run(write_run(tmp_path / "south", features=features, key_id=""))
    assert pooled_features([run, other])["person"].str.split().str[0].value_counts().to_dict() == {
        "0123abcd": 20,
        "south": 20,
    }


def test_features_that_are_no_numbers_are_read_as_such(tmp_path):
    class Fails(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.body, self.head = nn.Sequential(model[0], nn.Threshold(1e9, float("nan"))), model[1:]

        def forward(self, image):
            self.body(image)
            return torch.zeros(len(image), 2)

    evaluate(tmp_path / "north", layer="body", wrap=Fails)
    assert (tmp_path / "north" / FEATURES).read_text().count("nan") == CASES * 64
    assert features_of(read_run(tmp_path / "north"))[list(NAMES)].isna().to_numpy().all()


def test_a_run_without_features_has_no_rows(tmp_path):
    assert len(features_of(read_run(write_run(tmp_path / "old")))) == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("layer4", "layer4,1", 1), "cannot be read|not as a run writes it"),
        (lambda text: text.replace("feature_07", "feature_x"), "not as a run writes it"),
        (lambda text: text + text.splitlines()[-1] + "\n", "a case twice, or one without a prediction"),
        (lambda text: "f" + text.replace("\n", "\nf", 1)[1:], "a case twice|not as a run writes it|without"),
        (lambda text: text.replace(",layer4,", ",layer4,x", 1), r"cannot be read \(ValueError\)"),
        (lambda text: text.replace(",,layer4", ",19560321,layer4", 1), "not as a run writes it"),
    ],
)
def test_what_no_run_writes_is_refused(tmp_path, edit, message):
    folder = write_run(tmp_path / "north")
    run = read_run(folder)
    write_features(folder, list(run.predictions["case_id"]), np.ones((20, 64)))
    (folder / FEATURES).write_text(edit((folder / FEATURES).read_text()))
    with pytest.raises(RunError, match=f"north: .*({message})"):
        features_of(run)
