# SPDX-License-Identifier: Apache-2.0
"""What is handed on: wheel and sdist hold what is needed and no more, and the wheel works outside of the checkout."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_cnnprimer import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_cnnprimer"
BUILT_FROM = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "monai_cnnprimer", "configs")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from nothing else than that sdist."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return output


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked into a folder of its own; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, *words: str) -> str:
    """What Python says with the installed package first on its path, somewhere outside of the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}
    command = [sys.executable, "-P", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=installed, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestWheel:
    def test_holds_every_module_and_template(self, names: set[str]) -> None:
        here = {file.relative_to(ROOT).as_posix() for kind in ("*.py", "*.j2") for file in PACKAGE.rglob(kind)}
        assert sorted(here - names) == []

    def test_holds_every_configuration(self, names: set[str]) -> None:
        here = {f"monai_cnnprimer/configs/{file.name}" for file in (ROOT / "configs").glob("*.yaml")}
        assert {"monai_cnnprimer/configs/explain.yaml", "monai_cnnprimer/configs/gate.yaml"} <= here
        assert sorted(here - names) == []

    def test_is_marked_as_typed(self, names: set[str]) -> None:
        assert "monai_cnnprimer/py.typed" in names

    def test_holds_no_test_no_weights_and_nothing_large(self, wheel: Path, names: set[str]) -> None:
        assert {name.split("/")[0].split("-")[0] for name in names} == {"monai_cnnprimer"}
        assert {Path(name).suffix for name in names} <= {".py", ".j2", ".yaml", ".typed", ".txt", ""}
        assert wheel.stat().st_size < 2_000_000

    def test_says_what_it_is(self, metadata: Message) -> None:
        assert (metadata["Name"], metadata["Version"]) == ("monai_cnnprimer", __version__)
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Requires-Python"] == ">=3.11"
        assert "Research use only, not for clinical use" in str(metadata.get_payload())

    def test_requires_what_setup_cfg_states(self, metadata: Message) -> None:
        stated = configparser.ConfigParser()
        stated.read(ROOT / "setup.cfg")
        lines = [line for line in stated["options"]["install_requires"].splitlines() if line and line[0] != "#"]
        required = [name for name in metadata.get_all("Requires-Dist", []) if "extra ==" not in name]
        assert len(required) == len(lines) > 20
        assert not any("libjpeg" in name and "pylibjpeg-libjpeg" in name for name in required)  # GPL, by choice only

    def test_has_the_command(self, wheel: Path, names: set[str]) -> None:
        (name,) = (name for name in names if name.endswith("entry_points.txt"))
        with zipfile.ZipFile(wheel) as archive:
            assert "cnnprimer = monai_cnnprimer.__main__:main" in archive.read(name).decode()


def test_the_sdist_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml", "monai_cnnprimer/py.typed"} <= names


class TestInstalled:
    def test_tells_its_version_and_its_commands(self, installed: Path) -> None:
        assert run_installed(installed, "-m", "monai_cnnprimer", "--version") == f"cnnprimer {__version__}\n"
        assert " validate " in run_installed(installed, "-m", "monai_cnnprimer", "--help")

    def test_finds_the_configurations_that_commands_read(self, installed: Path) -> None:
        script = """
from pathlib import Path
import monai_cnnprimer
from monai_cnnprimer.validate.audit.limits import DEFAULT
from monai_cnnprimer.validate.sites import config_files
files = [DEFAULT, *config_files(Path("bundle"), ("explain", "mlflow", "retune"))[1:]]
home = Path(monai_cnnprimer.__file__).parent
print(*(file.is_relative_to(home) and file.is_file() for file in files), home)
"""
        assert run_installed(installed, "-c", script).split() == ["True"] * 4 + [str(installed / "monai_cnnprimer")]

    def test_says_what_to_do_about_bundles_which_are_not_in_it(self, installed: Path) -> None:
        script = """
from monai_cnnprimer.validate.sites import find_bundle
try:
    find_bundle("chest_xray_resnet50")
except FileNotFoundError as error:
    print(error)
"""
        assert "give the folder of a bundle" in run_installed(installed, "-c", script)


def test_in_a_checkout_the_configurations_are_those_of_the_repository() -> None:
    from monai_cnnprimer.validate.sites import config_files

    assert config_files(Path("bundle"), ("explain",))[1] == ROOT / "configs" / "explain.yaml"


def test_the_shell_completes_commands() -> None:
    asked = {"_CNNPRIMER_COMPLETE": "complete_bash", "COMP_WORDS": "cnnprimer val", "COMP_CWORD": "1"}
    command = [str(Path(sys.executable).with_name("cnnprimer"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | asked)
    assert result.stdout.split() == ["validate"]


def test_all_places_state_one_version() -> None:
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [stated["metadata"]["version"], citation["version"], changes[0]] == [__version__] * 3


def test_the_release_page_tries_the_oldest_versions_that_are_allowed() -> None:
    pins = dict(re.findall(r"'(\w+)==([\d.]+?)(?:\.\*)?'", (ROOT / "docs" / "release.md").read_text()))
    allowed = dict(re.findall(r"^    (\w+)>=([\d.]+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE))
    assert pins.keys() >= {"monai", "torch", "mlflow", "pydicom"}
    assert pins == {name: allowed[name] for name in pins}


def test_the_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors", "license"}
    assert citation["license"] == "Apache-2.0"


class TestIssueTemplates:
    @pytest.fixture(params=["bug.yml", "feature.yml"])
    def form(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        form: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / request.param).read_text())
        return form

    def test_says_first_that_no_patient_data_is_attached_and_asks_for_a_promise(self, form: dict[str, Any]) -> None:
        assert form.keys() >= {"name", "description", "body"}
        first, *others = form["body"]
        assert first["type"] == "markdown"
        assert "Never attach patient data" in first["attributes"]["value"]
        (promise,) = (entry for entry in others if entry["type"] == "checkboxes")
        assert all(option["required"] for option in promise["attributes"]["options"])

    def test_names_each_answer_once(self, form: dict[str, Any]) -> None:
        ids = [entry["id"] for entry in form["body"] if entry["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 2
