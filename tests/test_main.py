# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: help at once, exit codes, errors that are one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


def cnnprimer(*words, cwd=None):
    command = [sys.executable, "-m", "monai_cnnprimer", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_help_names_the_commands_and_imports_nothing_heavy():
    heavy = {"torch", "monai", "mlflow", "pandas"}
    script = "import sys\nfrom monai_cnnprimer.__main__ import main\nsys.argv = ['cnnprimer', '--help']\n"
    script += f"try:\n    main()\nfinally:\n    print(*sorted({heavy} & set(sys.modules)), 'end')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    names = [
        "audit",
        "compare",
        "convert",
        "demo",
        "doctor",
        "findings",
        "index",
        "lock",
        "merge",
        "pack",
        "phantom",
        "preflight",
        "primer",
        "report",
        "sync",
        "validate",
    ]
    assert all(f" {name} " in result.stdout for name in names)
    assert "not for clinical use" in result.stdout
    assert result.stdout.splitlines()[-1].strip() == "end"


def test_index_writes_both_tables_and_ends_with_0(phantom_export, tmp_path):
    result = cnnprimer("index", phantom_export / "sites" / "birch.zip", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"accepted {len(pd.read_csv(tmp_path / 'manifest.csv'))}" in result.stdout
    assert "structured report" in result.stdout


def test_index_ends_with_1_when_nothing_was_accepted(tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "notes.txt").write_text("no image")
    assert cnnprimer("index", export, "--output", tmp_path / "out").returncode == 1
    assert len(pd.read_csv(tmp_path / "out" / "refused.csv")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("index", "missing", "--output", "out"), "no such export; give a folder, a DICOMDIR, or a zip"),
        (("demo", "--output", "out", "--bundle", "vgg"), "no bundle 'vgg': give the folder of a bundle, or one of"),
        (("sync", "empty"), "run.json"),
    ],
)
def test_an_error_is_one_message_and_exit_code_2(tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    result = cnnprimer(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_phantom_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    result = cnnprimer("phantom", "--output", tmp_path, "--cases", 1)
    assert result.returncode == 2
    assert (Path(tmp_path) / "mine.txt").read_text() == "keep"
