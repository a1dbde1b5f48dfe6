# SPDX-License-Identifier: Apache-2.0
"""Each bundle is complete in itself, fresh, and what its card says of it is what its files hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import create_workflow, verify_net_in_out
from monai.utils import optional_import

from monai_cnnprimer.networks import sha256_of_file

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
# What the metadata schema of 2024-07-25 requires.
REQUIRED = {
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format",
}  # fmt: skip


def test_there_are_bundles():
    assert [bundle.name for bundle in BUNDLES] == ["chest_xray_fpn", "chest_xray_resnet50", "chest_xray_unet"]


def test_generated_files_are_fresh():
    command = [sys.executable, ROOT / "bundles" / "render.py", "--check"]
    check = subprocess.run(command, capture_output=True, check=False)
    assert check.returncode == 0, check.stdout.decode()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
class TestBundle:
    def test_metadata_has_what_the_schema_requires(self, bundle):
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
        assert metadata.keys() >= REQUIRED
        assert metadata["version"] in metadata["changelog"]

    def test_files_of_the_model_zoo_are_there(self, bundle):
        names = ("LICENSE", "models/model.pt", "configs/inference.yaml", "docs/README.md", "docs/data_license.txt")
        assert [name for name in names if not (bundle / name).is_file()] == []

    def test_weights_are_those_of_the_operating_point_and_the_card(self, bundle):
        digest = sha256_of_file(bundle / "models" / "model.pt")
        for name in ("operating_point.json", "results.json"):
            assert json.loads((bundle / "models" / name).read_text())["weights_sha256"] == digest

    def test_weights_are_finite_in_half_precision_and_under_60_mb(self, bundle):
        path = bundle / "models" / "model.pt"
        state = {key: v for key, v in torch.load(path, weights_only=True).items() if v.is_floating_point()}
        assert all(value.isfinite().all() for value in state.values())
        # A variance can be more than half precision holds.
        assert {v.dtype for key, v in state.items() if not key.endswith("running_var")} == {torch.float16}
        assert path.stat().st_size < 60e6

    def test_no_config_leads_out_of_the_bundle(self, bundle):
        for config in (bundle / "configs").glob("*.yaml"):
            lines = [line for line in config.read_text().splitlines() if not line.lstrip().startswith("#")]
            assert not [line for line in lines if "../" in line or '"/' in line or "%" in line.replace(" %", "")]

    @pytest.mark.parametrize(("config", "kind"), [("inference.yaml", "infer"), ("train.yaml", "train")])
    def test_required_properties_are_there(self, bundle, config, kind, image_folder, tmp_path):
        workflow = create_workflow(
            config_file=str(bundle / "configs" / config),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(bundle),
            dataset_dir=str(image_folder),
            output_dir=str(tmp_path),
            batch_size=4,
        )
        assert workflow.check_properties() == []

    def test_network_takes_and_gives_what_the_metadata_say(self, bundle):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.yaml"),
            n=2,
            bundle_root=str(bundle),
        )

    def test_every_name_in_the_configs_resolves(self, bundle):
        for config in sorted([*(bundle / "configs").glob("*.yaml"), *(ROOT / "configs").glob("*.yaml")]):
            values = [value for key, value in _leaves(yaml.safe_load(config.read_text())) if key == "_target_"]
            assert [v for v in values if v.startswith("monai_cnnprimer.") and not _exists(v)] == []


def _leaves(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (key, item) if not isinstance(item, dict | list) else (key, "")
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _exists(target):
    module, name = target.rsplit(".", 1)
    return optional_import(module, name=name)[1]
