# SPDX-License-Identifier: Apache-2.0
"""Documentation fails when it is wrong: files it names exist, its code compiles, every public name is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

import monai_cnnprimer
from monai_cnnprimer.__main__ import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted(ROOT.glob("bundles/*/docs/README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_links_lead_to_files(self, page):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == []

    def test_files_of_the_repository_that_it_names_exist(self, page):
        names = re.findall(r"\b(?:bundles|configs|docs|monai_cnnprimer|tests)/[\w./-]+\.\w+", page.read_text())
        assert [name for name in names if not (ROOT / name).exists()] == []

    def test_python_compiles(self, page):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, str(page), "exec")

    def test_commands_of_cnnprimer_exist(self, page):
        assert set(re.findall(r"(?<!_)cnnprimer (\w+) ", page.read_text())) <= set(typer.main.get_command(app).commands)


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    names = [name for name in monai_cnnprimer.__all__ if not name.startswith("__")]
    assert [name for name in names if f"`{name}(" not in reference] == []


def test_every_public_name_loads():
    for name in monai_cnnprimer.__all__:
        assert getattr(monai_cnnprimer, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'vgg'"):
        monai_cnnprimer.vgg  # noqa: B018


def test_every_page_shown_to_people_says_research_only():
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md", *ROOT.glob("bundles/*/docs/README.md")):
        assert "Research use only, not for clinical use" in page.read_text()


def test_the_tables_of_the_small_finding_benchmark_are_its_own():
    """README and the page that explains show the tables that the command wrote, letter for letter."""
    written = (ROOT / "docs" / "findings-reduced.md").read_text().split("### ")[1]
    tables = re.findall(r"(?:^\| (?:AUROC|CPM) .*\n)(?:\|.*\n)+", written, re.MULTILINE)
    assert len(tables) == 2
    for page in ("README.md", "docs/findings.md"):
        assert all(table in (ROOT / page).read_text() for table in tables)
