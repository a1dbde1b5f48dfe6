# SPDX-License-Identifier: Apache-2.0
"""Every arm starts alike, is taught alike and is asked alike; a killed benchmark goes on to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_cnnprimer import networks
from monai_cnnprimer.training import arms_benchmark, arms_experiment
from monai_cnnprimer.training.arms import READS, SharedArms, build_arm, narrow
from monai_cnnprimer.training.arms_benchmark import run_benchmark
from monai_cnnprimer.training.arms_data import Examples, lung_crops
from monai_cnnprimer.training.arms_loss import ArmLoss, cover, dense_loss
from monai_cnnprimer.training.arms_plan import read_plan
from monai_cnnprimer.training.arms_run import LossDiverged, Optimisation, ask, train
from monai_cnnprimer.validate.findings import MM_BINS, Normals

CONFIG = "configs/small_findings.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def radiographs():
    """Eight grey squares with two dark lungs."""
    images = np.random.default_rng(0).uniform(0.5, 0.6, (8, 96, 96)).astype(np.float32)
    lungs = np.zeros((8, 96, 96), bool)
    lungs[:, 16:80, 8:40] = lungs[:, 16:80, 56:88] = True
    table = pd.DataFrame({"case_id": [f"c{n}" for n in range(8)], "patient_key": [f"p{n}" for n in range(8)]})
    table = table.assign(source="phantom", mm_per_px=2.0, spacing="exact", split="train")
    return Normals(images, lungs, table)


def _examples(radiographs, batches=8, seed=0, keep=False):
    return Examples(radiographs, batches, 4, MM_BINS, 0.4, seed, keep)


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_an_arm_gives_its_networks_own_logits(name, width):
    arm = build_arm(name, 0, width).eval()
    images = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output, logits = arm(images), arm.network(images)
    assert output.logit.tolist() == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-4)
    for level, cells in output.maps.items():
        assert cells.shape == (2, -(-64 // arm.strides[level]), -(-96 // arm.strides[level]))


def test_the_activation_map_of_the_global_pool_averages_to_its_logit():
    arm = build_arm("resnet50", 0, 0.25).eval()
    with torch.inference_mode():
        output = arm(torch.rand(2, 1, 96, 96))
    assert output.maps["cam"].mean((1, 2)).tolist() == pytest.approx(output.logit.tolist(), abs=1e-5)


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_all_arms_of_a_seed_have_the_same_encoder(width):
    reference = build_arm("resnet50", 3, width).network.state_dict()
    before = torch.random.get_rng_state()
    for name in READS:
        state = build_arm(name, 3, width).network.state_dict()
        shared = [key for key in state if key.startswith(("conv1", "bn1", "layer"))]
        assert len(shared) > 50
        assert all(torch.equal(state[key], reference[key]) for key in shared)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_narrow_layer_starts_with_the_variance_of_its_size():
    wide, thin = (build_arm("fpn", 0, width).network for width in (1.0, 0.25))
    for name in ("layer3.1.conv2", "layer1.0.conv1", "conv1", "neck.fusion.inner_blocks.3"):
        a, b = (dict(network.named_modules())[name].weight for network in (wide, thin))
        assert b.shape[0] == a.shape[0] // 4
        assert b.std().item() == pytest.approx(2 * a.std().item(), rel=0.15)
    assert thin.dense["p2"].conv.weight.std().item() == pytest.approx(0.01, rel=0.5)


def test_no_block_is_left_with_fewer_than_16_channels():
    for name in READS:
        normed = [m.num_features for m in build_arm(name, 0, 0.25).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert min(normed) == 16


def test_widths_and_names_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 1/16"):
        narrow(networks.resnet50_classifier(), 0.1)
    with pytest.raises(ValueError, match="unknown arm 'vgg'"):
        build_arm("vgg", 0)
    with pytest.raises(ValueError, match="full width"):
        build_arm("fpn", 0, 0.25, tmp_path / "weights.pt")


def test_shared_arms_answer_as_each_alone_and_learn_one_encoder(radiographs):
    alone = {name: build_arm(name, 0, 0.25).eval() for name in READS}
    shared = SharedArms([build_arm(name, 0, 0.25) for name in READS]).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        for name, output in shared(images).items():
            assert output.logit.tolist() == pytest.approx(alone[name](images).logit.tolist(), abs=1e-5)
    train(shared, _examples(radiographs), "masks", Optimisation(), CPU)
    encoders = [arm.network.layer1[0].conv1.weight for arm in shared.arms.values()]
    assert all(encoder is encoders[0] for encoder in encoders)
    assert not torch.equal(encoders[0], alone["fpn"].network.layer1[0].conv1.weight)


@pytest.mark.parametrize(("stride", "rows", "columns"), [(1, [9], [30]), (4, [2], [8]), (8, [1], [4]), (32, [0], [1])])
def test_a_cell_is_positive_where_a_pixel_nearest_to_it_is(stride, rows, columns):
    mask = torch.zeros(1, 50, 70, dtype=torch.bool)
    mask[0, 9, 30] = True
    touched = cover(mask, stride)[0]
    assert touched.shape == (-(-50 // stride), -(-70 // stride))
    assert [axis.tolist() for axis in touched.nonzero(as_tuple=True)] == [rows, columns]


def test_every_finding_counts_once_whatever_its_size():
    target = torch.zeros(2, 8, 8, dtype=torch.bool)
    target[0, 0, 0] = True
    target[1, :4] = True
    evidence = torch.zeros(2, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(dense_loss(evidence, target), evidence)
    pulls = [gradient[image][target[image]].sum().item() for image in (0, 1)]
    assert pulls[0] == pytest.approx(pulls[1])
    assert dense_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)).item() == pytest.approx(
        np.log(2) / 2
    )


def test_image_supervision_never_sees_a_mask(radiographs):
    arm = build_arm("fpn", 0, 0.25).eval()
    batch = next(iter(_examples(radiographs)))
    output = {"fpn": arm(batch.image)}
    losses = {
        kind: [
            ArmLoss({"fpn": arm.strides}, kind)(output, (batch.label, mask)).item()
            for mask in (batch.mask, ~batch.mask)
        ]
        for kind in ("image", "masks")
    }
    assert losses["image"][0] == losses["image"][1]
    expected = binary_cross_entropy_with_logits(output["fpn"].logit, batch.label.float())
    assert losses["image"][0] == pytest.approx(expected.item())
    assert losses["masks"][0] != losses["masks"][1]
    with pytest.raises(ValueError, match="unknown supervision 'boxes'"):
        ArmLoss({}, "boxes")


def test_examples_are_the_same_whenever_iterated_and_half_have_a_nodule(radiographs):
    first, again, kept = (list(_examples(radiographs, keep=keep)) for keep in (False, False, True))
    for one, other, third in zip(first, again, kept, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.image, third.image)
        assert one.mask.flatten(1).any(1).tolist() == [False, True, False, True] == one.label.bool().tolist()
    examples = _examples(radiographs, keep=True)
    assert all(torch.equal(a.image, b.image) for a, b in zip(examples, examples, strict=True))
    assert not torch.equal(first[0].image, next(iter(_examples(radiographs, seed=1))).image)
    with pytest.raises(ValueError, match="an even number"):
        Examples(radiographs, 1, 3, MM_BINS, 0.4, 0)


def test_crops_stand_around_one_lung_each_and_keep_their_pixels(radiographs):
    crops = lung_crops(radiographs, 64)
    assert crops.table["case_id"].tolist()[:2] == ["c0-R", "c0-L"]
    assert crops.images.shape == (16, 64, 64)
    assert np.array_equal(crops.images[0], radiographs.images[0, 16:80, 0:64])
    assert np.array_equal(crops.lungs[1], radiographs.lungs[0, 16:80, 32:96])
    with pytest.raises(ValueError, match="at most the images' size"):
        lung_crops(radiographs, 97)


def test_training_lowers_the_loss_and_a_loss_that_is_no_number_is_told(radiographs):
    arm = build_arm("early_head", 0, 0.25)
    losses = train(arm, _examples(radiographs, 40), "masks", Optimisation(learning_rate=0.005), CPU)
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    with torch.no_grad():
        arm.network.conv1.weight.fill_(float("nan"))
    with pytest.raises(LossDiverged, match="step 1 is nan"):
        train(arm, _examples(radiographs), "image", Optimisation(), CPU)


def test_asking_leaves_the_arm_as_it_was_and_batches_do_not_matter(radiographs):
    arm = build_arm("fpn", 0, 0.25)
    state = {key: value.clone() for key, value in arm.state_dict().items()}
    whole, parts = (
        np.concatenate([answer.logit for answer in ask(arm, radiographs.images, CPU, batch_size=size)])
        for size in (8, 3)
    )
    assert whole == pytest.approx(parts, abs=1e-5)
    assert arm.training
    assert all(torch.equal(value, state[key]) for key, value in arm.state_dict().items())


@pytest.mark.parametrize("name", ["reduced", "full"])
def test_the_protocols_can_be_read_and_treat_no_arm_by_itself(name):
    plan = read_plan(CONFIG, name)
    assert plan.pairs[0] == ("fpn", "resnet50")
    assert set(plan.arms) == set(READS)
    assert len(plan.seeds) >= 3
    assert {setting.supervision for setting in plan.settings} == {"image", "masks"}
    assert {setting.view.size for setting in plan.settings} == {224, 320}
    assert plan.threshold == "specificity=0.90"


def _tiny(**changes):
    """A protocol that runs in seconds."""
    with open(CONFIG) as file:
        plan = yaml.safe_load(file)["reduced"]
    plan |= {"arms": ["resnet50", "early_head"], "pairs": [["early_head", "resnet50"]], "seeds": [0], "radiographs": 24}
    plan |= {
        "warm_up": {"size": 96, "crop": 64, "contrast": "fixed", "steps": 8, "learning_rate": 0.002},
        "steps": 8,
        "batch_size": 4,
    }
    plan |= {"settings": [{"name": "masks", "size": 96, "crop": 64, "supervision": "masks", "contrast": "fixed"}]}
    plan |= {"contrasts": {"fixed": 0.42}, "cases": {"validation": 4, "test": 6}}
    plan["rules"] |= {"gate": 0.0, "few": 4, "resamples": 50}
    return plan | changes


def _written(tmp_path, **changes):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"tiny": _tiny(**changes)}))
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": ["resnet50", "vgg"]}, "unknown arms vgg"),
        ({"pairs": [["fpn", "resnet50"]]}, "two different arms of this protocol"),
        ({"seeds": [0, 0]}, "none twice"),
        ({"contrasts": {"physical": "physical"}}, "contrast fixed is asked for"),
        ({"learning_rate": 1}, "unknown learning_rate"),
        ({"steps": 2}, "8 or more"),
        ({"rules": {"gate": 0.9}}, "few, margin, resamples, small_below_mm missing"),
        ({"settings": [{"name": "a", "supervision": "image", "contrast": "fixed"}]}, "size missing"),
    ],
)
def test_a_protocol_that_cannot_be_says_which_entry(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        read_plan(_written(tmp_path, **changes), "tiny")


def test_a_missing_file_or_protocol_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration at nowhere\.yaml"):
        read_plan(tmp_path / "nowhere.yaml", "tiny")
    with pytest.raises(ValueError, match="no protocol 'huge'; it has tiny"):
        read_plan(_written(tmp_path), "huge")


def _bytes(folder):
    """All that follows from the protocol; times and costs do not."""
    kept = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("cost")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept if path.parent.name != "warm"}


def test_a_killed_benchmark_loses_one_arm_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    config = _written(tmp_path)
    assert run_benchmark(config, "tiny", tmp_path / "whole") in (0, 1)
    whole = _bytes(tmp_path / "whole")
    assert {"result.json", "result.csv", "pairs.csv", "result.md", "leak.json", "protocol.json"} <= set(whole)
    assert json.loads(whole["arms/masks-resnet50-0.json"])["arm"] == "resnet50"

    shutil.copytree(tmp_path / "whole" / "cache", tmp_path / "killed" / "cache")
    trained = []

    class Killed(BaseException):
        """As if the process ended here."""

    def dying(network, *arguments):
        trained.append(type(network).__name__)
        if len(trained) == 3:
            raise Killed
        return train(network, *arguments)

    monkeypatch.setattr(arms_experiment, "train", dying)
    with pytest.raises(Killed):
        run_benchmark(config, "tiny", tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed" / "arms").glob("*.json")] == ["masks-resnet50-0.json"]
    run_benchmark(config, "tiny", tmp_path / "killed")
    assert trained == ["SharedArms", "Arm", "Arm", "Arm"]
    assert _bytes(tmp_path / "killed") == whole

    with pytest.raises(ValueError, match="arms of another protocol"):
        run_benchmark(_written(tmp_path, steps=9), "tiny", tmp_path / "killed")


def test_images_that_leak_are_not_trained_on(tmp_path, monkeypatch):
    def leaks(cases):
        return {"verdict": "leaks", "why": ["maximum, all: AUROC 0.900"]}

    monkeypatch.setattr(arms_experiment, "leak_check", leaks)
    with pytest.raises(arms_experiment.LeakFound, match=r"maximum, all: AUROC 0\.900.*nothing is trained"):
        run_benchmark(_written(tmp_path), "tiny", tmp_path / "out")
    assert not (tmp_path / "out" / "arms").exists()


def test_arms_below_the_gate_give_exit_code_1(tmp_path, monkeypatch):
    rules = _tiny()["rules"] | {"gate": 1.1}
    assert run_benchmark(_written(tmp_path, rules=rules), "tiny", tmp_path / "out") == 1
    assert "was not shown" in (tmp_path / "out" / "result.md").read_text()
    assert "(resnet50)" in (tmp_path / "out" / "result.md").read_text()


def test_costs_are_measured_once(tmp_path, monkeypatch):
    plan = dataclasses.replace(read_plan(_written(tmp_path), "tiny"))
    first = arms_benchmark.costs_of(plan, 64, tmp_path)
    monkeypatch.setattr(arms_benchmark, "cost_table", None)
    assert arms_benchmark.costs_of(plan, 64, tmp_path).equals(first)
    assert first["network"].tolist() == ["resnet50", "early_head"]
