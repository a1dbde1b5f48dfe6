# SPDX-License-Identifier: Apache-2.0
"""Pages that compute: their Python runs, prints what they say it prints, and their prose holds no other figure."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from monai_cnnprimer.dicom import quirks
from monai_cnnprimer.dicom.export import COLUMNS, REFUSED_COLUMNS
from monai_cnnprimer.dicom.limits import GIB, Limits
from monai_cnnprimer.dicom.rows import AGE_BANDS
from monai_cnnprimer.run_directory import FURTHER, TABLES
from monai_cnnprimer.validate.pack import COLUMNS_LEFT_OUT
from monai_cnnprimer.validate.patient_data import _KINDS
from monai_cnnprimer.validate.runs import MOST_BYTES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def stated(block: str) -> list[str]:
    """What a block says that it prints: the comment behind a `print`, or those right below one."""
    found: list[str] = []
    below = False
    for line in block.splitlines():
        code, _, comment = line.partition("# ")
        if comment and ("print(" in code or below and not code):
            found.append(comment)
        below = "print(" in code or below and not code and bool(comment)
    return found


def run(page: str) -> tuple[str, list[str], list[str]]:
    """The prose of a page, what its blocks say that they print, and what they print, run one after another."""
    text = (DOCS / page).read_text()
    names: dict[str, object] = {}
    said: list[str] = []
    printed = io.StringIO()
    for block in BLOCK.findall(text):
        said += stated(block)
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)  # noqa: S102 - the page is ours
    return BLOCK.sub("", text), said, printed.getvalue().splitlines()


def yaml_files(page: str) -> dict[str, str]:
    """The YAML of a page by the name that its first line gives."""
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def statistics() -> tuple[str, list[str], list[str]]:
    return run("statistics.md")


def test_statistics_prints_what_it_says(statistics: tuple[str, list[str], list[str]]) -> None:
    _, said, printed = statistics
    assert len(printed) > 25
    assert printed == said


def test_no_decimal_figure_stands_in_its_prose_that_it_did_not_compute(
    statistics: tuple[str, list[str], list[str]],
) -> None:
    prose, _, printed = statistics
    assert set(re.findall(r"\d+\.\d+", prose)) <= set(re.findall(r"\d+\.\d+", " ".join(printed)))


class TestExtending:
    @pytest.fixture(autouse=True)
    def _in_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(quirks, "QUIRKS", list(quirks.QUIRKS))  # the page adds a row

    def test_does_what_it_says(self) -> None:
        files = yaml_files("extending.md")
        Path("sites.yaml").write_text(files["sites.yaml"])
        _, said, printed = run("extending.md")
        assert len(printed) == 7
        assert printed == said

    def test_its_overlay_adds_to_the_handlers_of_a_bundle(self) -> None:
        overlay = Path("xgradcam.yaml")
        overlay.write_text(yaml_files("extending.md")["xgradcam.yaml"])
        bundle = ROOT / "bundles" / "chest_xray_resnet50" / "configs" / "inference.yaml"
        configuration = ConfigParser.load_config_files([bundle, overlay])
        before = ConfigParser.load_config_files([bundle])["handlers"]
        assert configuration["handlers"][:-1] == before
        assert configuration["handlers"][-1]["_target_"] == "my_package.XGradCamHandler"

    def test_its_bundle_is_rendered_with_its_network_and_training(self) -> None:
        specification = importlib.util.spec_from_file_location("render", ROOT / "bundles" / "render.py")
        render = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(render)
        ((name, about),) = yaml.safe_load(yaml_files("extending.md")["bundles.yaml"]).items()
        files = {path.name: text for path, text in render.rendered(name, about).items()}
        assert files.keys() == {*render.COPIES, "metadata.json", "LICENSE"}  # no card before there are results
        network = ConfigParser(yaml.safe_load(files["inference.yaml"])).get_parsed_content("network_def")
        assert type(network).__name__ == "BiFpnClassifier"
        assert yaml.safe_load(files["train.yaml"])["max_epochs"] == about["training"]["max_epochs"]


class TestPrivacy:
    @pytest.fixture
    def page(self) -> str:
        return (DOCS / "privacy.md").read_text()

    @pytest.mark.parametrize("columns", [COLUMNS, REFUSED_COLUMNS, COLUMNS_LEFT_OUT], ids=["all", "refused", "left"])
    def test_names_every_column(self, page: str, columns: tuple[str, ...]) -> None:
        assert [name for name in columns if f"`{name}`" not in page] == []

    def test_names_every_table_of_a_run(self, page: str) -> None:
        assert [name for name in (*TABLES, *FURTHER) if f"`{name}`" not in page] == []

    def test_names_everything_that_the_scanner_looks_for(self, page: str) -> None:
        assert [kind for kind in _KINDS if kind not in page] == []

    def test_its_limits_are_those_in_force(self, page: str) -> None:
        limits = Limits()
        assert f"{limits.seconds} s of processor time, {limits.wall_seconds} s by the clock" in page
        assert f"{limits.memory_bytes / GIB:g} GiB beyond" in page
        assert f"a file of {limits.file_bytes / GIB:g} GiB, {limits.pixels:,} pixels" in page
        assert f"{limits.inflated_bytes >> 20} MiB inflated, {limits.nesting} nested sequences" in page
        assert f"{limits.zip_members:,} files in a zip, {limits.zip_ratio}-fold" in page
        assert f"{MOST_BYTES / GIB:g} GiB at most" in page
        assert len(AGE_BANDS) == 6


def templates() -> list[str]:
    """Every text of the source but docstrings, with a null character for each value that is put into it."""
    found: list[str] = []
    for file in sorted((ROOT / "monai_cnnprimer").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


class TestTroubleshooting:
    @pytest.fixture(scope="class")
    @classmethod
    def sources(cls) -> list[str]:
        return templates()

    def test_every_message_occurs_in_the_source(self, sources: list[str]) -> None:
        page = (DOCS / "troubleshooting.md").read_text()
        messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
        assert len(messages) > 60
        strangers = []
        for message in messages:
            fixed = re.compile(".*".join(re.escape(part) for part in message.strip("…").split("…")), re.DOTALL)
            if not any(fixed.search(text) for text in sources):
                strangers.append(message)
        assert strangers == []

    def test_a_message_that_is_not_there_would_be_told(self, sources: list[str]) -> None:
        assert not any("the moon is full; free some space" in text for text in sources)
