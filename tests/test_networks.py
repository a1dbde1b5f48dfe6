# SPDX-License-Identifier: Apache-2.0
"""The classifier against the published layout, and weights that do not belong."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet50

from monai_cnnprimer.networks import (
    PUBLISHED_ENCODERS,
    WeightsError,
    load_weights,
    resnet50_classifier,
    sha256_of_file,
)


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
    network.fc, thousand_classes.fc = torch.nn.Identity(), torch.nn.Identity()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected = thousand_classes.eval()(image.repeat(1, 3, 1, 1))
        assert torch.equal(network(image), expected)


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
