# SPDX-License-Identifier: Apache-2.0
"""Exported networks say what the bundle says, for any number and size of images; MONAI's own verbs pass offline."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_metadata
from torch import nn
from typer.testing import CliRunner

from monai_cnnprimer.commands import convert
from monai_cnnprimer.networks import export, load_weights, sha256_of_file
from monai_cnnprimer.networks.export import Traced, export_network, load_exported, logits_in_batches
from monai_cnnprimer.validate import converted

ROOT = Path(__file__).parents[1]
BUNDLES = [ROOT / "bundles" / f"chest_xray_{name}" for name in ("resnet50", "fpn", "unet")]
SUFFIXES = (".onnx", ".pt2", ".ts")
# Batches and sizes that no example had: one image, odd sides, the smallest side.
SHAPES = [(1, 1, 160, 160), (3, 1, 137, 81), (2, 1, 33, 47)]
# What MONAI 1.6 calls; PyTorch says the same of each.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
]
onnxruntime = pytest.mark.skipif(bool(export.missing_for_onnx()), reason="the extra onnx is not installed")


def bundle_network(bundle):
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.yaml"))
    return load_weights(parser.get_parsed_content("network_def"), bundle / "models" / "model.pt").eval()


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def by_suffix():
    return [pytest.param(suffix, marks=onnxruntime if suffix == ".onnx" else ()) for suffix in SUFFIXES]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(pytest.param(name, ".onnx", marks=onnxruntime) for name in ("resnet50", "fpn", "unet")),
        # ONNX goes by way of the same program, and ckpt_export below by a trace; most can go wrong in the U-Net.
        ("unet", ".pt2"),
        ("unet", ".ts"),
    ],
)
def test_an_exported_bundle_gives_its_logits_at_any_batch_and_size(name, suffix, tmp_path):
    network, file = bundle_network(ROOT / "bundles" / f"chest_xray_{name}"), tmp_path / f"model{suffix}"
    export_network(network, file)
    exported, random = load_exported(file), torch.Generator().manual_seed(1)
    for shape in SHAPES:
        images = torch.randn(shape, generator=random)
        expected = logits_in_batches(network, images, shape[0])
        assert expected.std() > 0.01
        torch.testing.assert_close(logits_in_batches(exported, images, shape[0]), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("suffix", by_suffix())
class TestFile:
    def test_autocast_does_not_enter_it(self, suffix, tmp_path):
        network, images = small_network(), torch.randn(2, 1, 40, 50)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            export_network(network, tmp_path / f"model{suffix}")
            said = load_exported(tmp_path / f"model{suffix}")
        logits = logits_in_batches(said, images, 2)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, logits_in_batches(network, images, 2), rtol=0, atol=1e-6)

    def test_the_network_is_left_as_it_was(self, suffix, tmp_path):
        network = small_network()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        export_network(network, tmp_path / f"model{suffix}")
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())

    def test_it_says_of_itself_what_it_is(self, suffix, tmp_path):
        file, notes = tmp_path / f"model{suffix}", {"intended_use": "Research use only.", "threshold": 0.25}
        export_network(small_network(), file, notes)
        assert json.loads(_notes(file)["threshold"]) == 0.25
        assert _notes(file)["intended_use"] == "Research use only."

    def test_a_network_in_training_mode_is_refused(self, suffix, tmp_path):
        with pytest.raises(ValueError, match=r"training mode.* call network.eval\(\) first"):
            export_network(small_network().train(), tmp_path / f"model{suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_file_is_told(self, suffix, tmp_path):
        with pytest.raises(FileNotFoundError, match="no exported network at model.*; cnnprimer convert"):
            load_exported(tmp_path / f"model{suffix}")


def _notes(file):
    if file.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    extra = {"notes.json": ""}
    torch.jit.load(file, _extra_files=extra) if file.suffix == ".ts" else torch.export.load(file, extra_files=extra)
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in json.loads(*extra.values()).items()
    }


def test_an_unknown_suffix_names_the_known():
    with pytest.raises(ValueError, match=r"model.h5: unknown suffix; name the file with one of .onnx, .pt2, .ts"):
        export_network(small_network(), "model.h5")


def test_onnx_without_its_packages_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"ONNX needs onnxscript: pip install 'monai_cnnprimer\[onnx\]'"):
        export_network(small_network(), tmp_path / "model.onnx")


@onnxruntime
def test_the_onnx_model_is_one_valid_file_with_the_names_of_the_metadata(tmp_path):
    import onnx

    export_network(small_network(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    formats = json.loads((BUNDLES[0] / "configs" / "metadata.json").read_text())["network_data_format"]
    assert [value.name for value in model.graph.input] == list(formats["inputs"])
    assert [value.name for value in model.graph.output] == list(formats["outputs"])
    fixed = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert fixed == [0, 1, 0, 0]


@pytest.fixture(scope="module")
def written(tmp_path_factory, image_folder):
    """What the command writes of the smallest bundle: the folder, and the record in it."""
    folder = tmp_path_factory.mktemp("converted")
    words = ["--bundle", str(BUNDLES[0]), "--output", str(folder), "--format", "torchscript", "--count", "4"]
    result = CliRunner().invoke(convert.app, [*words, "--images", str(image_folder)])
    assert result.exit_code == 0, result.output
    assert "Research use only, not for clinical use" in result.output
    return folder, json.loads((folder / "chest_xray_resnet50.ts.json").read_text())


class TestConvert:
    def test_it_is_compared_in_two_batch_sizes_and_two_image_sizes(self, written):
        compared = written[1]["comparison"]
        runs = compared["runs"]
        assert {run["batch_size"] for run in runs} == {1, 3}
        assert {(run["height"], run["width"]) for run in runs} == {(160, 160), (241, 180)}
        assert {run["n"] for run in runs} == {4}
        assert compared["largest_logit_difference"] == max(run["largest_logit_difference"] for run in runs)
        assert compared["largest_logit_difference"] < 1e-5

    def test_the_hashes_are_those_of_the_bundle_and_of_the_file(self, written):
        folder, record = written
        point = json.loads((BUNDLES[0] / "models" / "operating_point.json").read_text())
        assert record["weights_sha256"] == sha256_of_file(BUNDLES[0] / "models" / "model.pt")
        assert record["preprocessing"]["sha256"] == point["transforms_sha256"]
        assert record["operating_point"] == {key: point[key] for key in ("id", "threshold", "sha256")}
        assert record["sha256"] == sha256_of_file(folder / record["file"])
        assert record["versions"]["torch"] == torch.__version__
        assert record["intended_use"] == "Research use only, not for clinical use."

    def test_no_name_of_an_image_stands_in_it(self, written, image_folder):
        text = (written[0] / "chest_xray_resnet50.ts.json").read_text()
        assert written[1]["comparison"]["images"] == "given"
        assert not any(name in text for name in ("00.png", str(image_folder), "manifest"))


def test_the_command_ends_with_1_when_the_file_says_otherwise(monkeypatch, tmp_path):
    runs = [
        {"batch_size": 1, "height": 40, "width": 50, "n": 5, "largest_logit_difference": 0.1, "called_otherwise": 2}
    ]
    record = {"file": "x.onnx", "comparison": {"passed": False, "limit": 1e-4, "images": "phantoms", "runs": runs}}
    monkeypatch.setattr(converted, "convert_bundle", lambda *_: record)
    result = CliRunner().invoke(convert.app, ["--bundle", "x", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "not the same as the bundle" in result.output


def test_a_file_that_says_otherwise_does_not_pass(tmp_path):
    network, other = small_network(), small_network()
    other[0].bias.data += 0.01
    export_network(other, tmp_path / "model.pt2")
    images = torch.randn(5, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    compared = converted._comparison(network, tmp_path / "model.pt2", [images], threshold=0.5)
    assert not compared["passed"]
    assert compared["largest_logit_difference"] == pytest.approx(0.01, abs=1e-4)


def test_images_of_which_none_can_be_read_are_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="0 images can be read: give others; cnnprimer index says why"):
        converted.convert_bundle(BUNDLES[0], "torchscript", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_names_the_known(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'trt': choose of onnx, program, torchscript"):
        converted.convert_bundle(BUNDLES[0], "trt", tmp_path)


def test_a_network_in_training_mode_is_not_traced():
    with pytest.raises(ValueError, match=r"call network.eval\(\) first"):
        Traced(small_network().train())


def _offline(*_args, **_kwargs):
    raise AssertionError("the network was asked")


# What the schema of 2024-07-25 asks of the entries that the bundles have, in short.
TEXTS = (
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors",
    "copyright",
)  # fmt: skip
TENSOR = {
    "type": "object",
    "properties": {
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
}
FORMATS = {"type": "object", "additionalProperties": TENSOR}
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in (*TEXTS, "intended_use", "data_source", "data_type", "pred_classes")},
        **{name: {"type": "object"} for name in ("changelog", "required_packages_version", "eval_metrics")},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {"inputs": FORMATS, "outputs": FORMATS},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*TEXTS, "required_packages_version", "network_data_format"],
}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("monai.apps.utils._download_with_progress", _offline)
    # onnx_export leaves a copy of the weights in the temporary folder.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def settings(bundle):
    return {
        "net_id": "network_def",
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.yaml"),
        "bundle_root": str(bundle),
    }


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
class TestVerbs:
    """`python -m monai.bundle VERB` on each bundle, without a network."""

    def test_verify_metadata(self, bundle, tmp_path):
        pytest.importorskip("jsonschema")
        metadata = bundle / "configs" / "metadata.json"
        schema = tmp_path / "schema.json"
        schema.write_text(json.dumps(SCHEMA))
        kept = {"filepath": str(schema), "hash_type": "sha256", "hash_val": sha256_of_file(schema)}
        verify_metadata(meta_file=str(metadata), **kept)
        spoilt = json.loads(metadata.read_text())
        spoilt["network_data_format"]["inputs"]["image"].pop("spatial_shape")
        (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(ValueError, match="'spatial_shape' is a required property"):
            verify_metadata(meta_file=str(tmp_path / "spoilt.json"), **kept)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_ckpt_export(self, bundle, tmp_path):
        """As the model zoo's verification calls it: by scripting."""
        ckpt_export(filepath=str(tmp_path / "model.ts"), **settings(bundle))
        extra = {"metadata.json": "", "inference.json": ""}
        loaded, images = torch.jit.load(tmp_path / "model.ts", _extra_files=extra), torch.rand(2, 1, 97, 65)
        expected = logits_in_batches(bundle_network(bundle), images, 2)
        torch.testing.assert_close(logits_in_batches(loaded, images, 2), expected, rtol=0, atol=2e-5)
        assert json.loads(extra["metadata.json"])["name"] == bundle.name


@onnxruntime
def test_onnx_export(tmp_path, offline):
    """Of the smallest bundle; that the others' networks go into ONNX is seen above."""
    onnx_export(filepath=str(tmp_path / "model.onnx"), **settings(BUNDLES[0]))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    # MONAI freezes the shape, at the smallest of the metadata; `cnnprimer convert` does not.
    assert entry.shape == [1, 1, 32, 32]
    image = torch.rand(entry.shape)
    said = torch.from_numpy(session.run(None, {entry.name: image.numpy()})[0])
    torch.testing.assert_close(said, logits_in_batches(bundle_network(BUNDLES[0]), image, 1), rtol=0, atol=2e-5)
