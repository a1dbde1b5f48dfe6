# SPDX-License-Identifier: Apache-2.0
"""ResNet-50 against the published layout; weights that belong to a classifier or its encoder, and that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet50

from monai_cnnprimer import networks
from monai_cnnprimer.networks import (
    PUBLISHED_ENCODERS,
    WeightsError,
    fpn_classifier,
    load_weights,
    resnet50_classifier,
    sha256_of_file,
)

BUNDLE = Path(__file__).parents[1] / "bundles/chest_xray_resnet50/models/model.pt"
DENSE = ["fpn", "unet", "bifpn", "early_head", "late_head"]


def classifier(name, seed=0, **arguments):
    torch.manual_seed(seed)
    return getattr(networks, f"{name}_classifier")(**arguments)


def is_encoder(key):
    return key.startswith(("conv1.", "bn1.", "layer"))


@pytest.fixture(scope="module")
def thousand_classes():
    """MONAI's own ResNet-50 in the layout of the published ImageNet file, with random weights."""
    torch.manual_seed(3)
    return resnet50(
        pretrained=False,
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        bias_downsample=False,
        num_classes=1000,
    )


def _publish(monkeypatch, network, path):
    torch.save(network.state_dict(), path)
    monkeypatch.setitem(PUBLISHED_ENCODERS, sha256_of_file(path)[:8], path.name)
    return path


def test_logits_of_a_grey_image_have_one_value_a_class():
    assert resnet50_classifier(3).eval()(torch.zeros(2, 1, 64, 96)).shape == (2, 3)


def test_layers_have_the_strides_of_resnet50():
    network, shapes = resnet50_classifier().eval(), {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    network(torch.zeros(1, 1, 224, 224))
    assert shapes == {
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
    }


def test_the_published_file_loads_strictly_and_gives_the_published_features(monkeypatch, tmp_path, thousand_classes):
    path = _publish(monkeypatch, thousand_classes, tmp_path / "published.pth")
    network = resnet50_classifier(pretrained=path).eval()
    image, pooled = torch.rand(1, 1, 64, 64), []
    for module in (network, thousand_classes.eval()):
        module.avgpool.register_forward_hook(lambda _m, _i, out: pooled.append(out))
    with torch.no_grad():
        network(image)
        thousand_classes(image.repeat(1, 3, 1, 1))
    assert torch.equal(*pooled)


def test_a_thousand_class_file_with_another_hash_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1000, 2)}, tmp_path / "changed.pth")
    with pytest.raises(WeightsError, match=r"changed.pth: .* none of the published .* fetch the file again"):
        resnet50_classifier(pretrained=tmp_path / "changed.pth")


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="other.pt: weights of another architecture than RadiographResNet"):
        resnet50_classifier(pretrained=tmp_path / "other.pt")


def test_weights_of_another_number_of_classes_are_refused(tmp_path):
    torch.save(resnet50_classifier(3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(WeightsError, match="2 entries differ, first 'fc.bias'"):
        resnet50_classifier(2, pretrained=tmp_path / "three.pt")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a zip"])
def test_a_damaged_weights_file_says_what_to_do(tmp_path, content):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="broken.pt: not a readable weights file; fetch it again"):
        resnet50_classifier(pretrained=tmp_path / "broken.pt")


def test_missing_weights_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="give pretrained= the path of a weights file"):
        resnet50_classifier(pretrained=tmp_path / "none.pt")


def test_half_precision_weights_are_widened(tmp_path):
    torch.manual_seed(0)
    network = resnet50_classifier()
    half = {key: v.half() if v.is_floating_point() else v for key, v in network.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    loaded = load_weights(resnet50_classifier(), tmp_path / "half.pt")
    assert {v.dtype for v in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.conv1.weight, network.conv1.weight.half().float())


@pytest.mark.parametrize("name", DENSE)
def test_the_bundle_of_resnet50_gives_its_encoder_to_every_classifier(name):
    own, given = classifier(name).state_dict(), torch.load(BUNDLE, weights_only=True)
    loaded = classifier(name, pretrained=BUNDLE).state_dict()
    for key, value in loaded.items():
        assert torch.equal(value, given[key].to(value.dtype) if is_encoder(key) else own[key]), key
    missing = [key for key in given if is_encoder(key) and key not in loaded]
    assert {key.split(".")[0] for key in missing} == ({"layer3", "layer4"} if name == "early_head" else set())


def test_the_published_file_gives_its_encoder_to_a_classifier_with_dense_maps(monkeypatch, tmp_path, thousand_classes):
    state = thousand_classes.state_dict()
    # The first published file has no such entries.
    torch.save({k: v for k, v in state.items() if "num_batches_tracked" not in k}, tmp_path / "published.pth")
    monkeypatch.setitem(PUBLISHED_ENCODERS, sha256_of_file(tmp_path / "published.pth")[:8], "published.pth")
    loaded = fpn_classifier(pretrained=tmp_path / "published.pth").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items() if is_encoder(key))


def test_an_encoder_without_classifier_leaves_the_classifier_as_it_is(tmp_path):
    given = torch.load(BUNDLE, weights_only=True)
    torch.save({key: value for key, value in given.items() if is_encoder(key)}, tmp_path / "encoder.pt")
    own, loaded = classifier("resnet50"), classifier("resnet50", pretrained=tmp_path / "encoder.pt")
    assert torch.equal(loaded.fc.weight, own.fc.weight)
    assert torch.equal(loaded.layer4[2].conv3.weight, given["layer4.2.conv3.weight"].float())


@pytest.mark.parametrize("name", ["fpn", "unet", "early_head"])
def test_a_checkpoint_of_a_classifier_brings_its_head_and_the_sharpness_of_its_pool(tmp_path, name):
    saved = classifier(name, seed=1, sharpness=3.0)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    loaded = classifier(name, seed=2, pretrained=tmp_path / "model.pt").state_dict()
    assert loaded["pool.sharpness"] == 3
    assert all(torch.equal(value, loaded[key]) for key, value in saved.state_dict().items())


class TestRefused:
    """Files that are neither the network's checkpoint nor a whole ResNet-50."""

    def test_an_encoder_in_place_of_the_whole_network(self):
        with pytest.raises(WeightsError, match="than FpnClassifier; .* Give the weights that belong to this bundle"):
            load_weights(classifier("fpn"), BUNDLE)

    def test_the_published_file_in_place_of_the_whole_network(self, monkeypatch, tmp_path, thousand_classes):
        path = _publish(monkeypatch, thousand_classes, tmp_path / "published.pth")
        with pytest.raises(WeightsError, match="2 entries differ, first 'fc.bias'"):
            load_weights(classifier("resnet50"), path)

    @pytest.mark.parametrize("name", ["fpn", "early_head"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.pop("layer4.2.conv3.weight"),
            lambda state: state.update({"layer4.3.conv1.weight": torch.zeros(1)}),
            lambda state: state.update({"layer4.2.conv3.weight": torch.zeros(2048, 512, 3, 3)}),
            lambda state: state.update({"head.weight": torch.zeros(2)}),
        ],
        ids=["missing", "more", "shape", "head"],
    )
    def test_an_encoder_with_one_entry_changed(self, monkeypatch, name, change):
        state = torch.load(BUNDLE, weights_only=True)
        change(state)
        monkeypatch.setattr(torch, "load", lambda *args, **kwargs: state)
        with pytest.raises(WeightsError, match="model.pt: weights of another architecture .* or a ResNet-50"):
            classifier(name, pretrained=BUNDLE)

    def test_a_checkpoint_of_another_classifier(self, tmp_path):
        torch.save(classifier("bifpn").state_dict(), tmp_path / "bifpn.pt")
        with pytest.raises(WeightsError, match="bifpn.pt: weights of another architecture than UNetClassifier"):
            classifier("unet", pretrained=tmp_path / "bifpn.pt")

    def test_a_checkpoint_of_another_number_of_classes(self, tmp_path):
        torch.save(classifier("late_head", num_classes=3).state_dict(), tmp_path / "three.pt")
        with pytest.raises(WeightsError, match="2 entries differ, first 'dense.p5.conv.bias'"):
            classifier("late_head", pretrained=tmp_path / "three.pt")
