# SPDX-License-Identifier: Apache-2.0
"""A site's process that really runs out of memory: told, the others finish, and only what is missing is done again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_tracking import empty_store, store  # noqa: F401
from test_validation import PROCESS, _store, finished_sites, sites, started, validate  # noqa: F401

from monai_cnnprimer.validate import validation
from monai_cnnprimer.validate.runs import read_run

STARVED = Path(__file__).parent / "starved_site.py"
CASES = 8
REASONS = {
    "limit": ("failed", "out of memory (MemoryError): give fewer jobs or a smaller batch_size"),
    "abort": ("killed", "out of memory (bad_alloc): give fewer jobs or a smaller batch_size"),
    "watch": ("killed", "ended by SIGKILL, as the system does when memory runs out"),
}


def predicted(output):
    file = output / "predicted"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return [case_id for _, _, case_id in lines]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shortage", REASONS)
def test_a_site_without_memory_is_told_and_taken_up(sites, finished_sites, tmp_path, monkeypatch, shortage):  # noqa: F811
    what = {"south": shortage}

    def command(bundle, site, directory, overlays, settings):
        if site.name == "north":
            return [sys.executable, str(PROCESS), "complete", str(directory), str(finished_sites["north"])]
        return [sys.executable, str(STARVED), what["south"], str(directory), str(CASES)]

    monkeypatch.setattr(validation, "bundle_command", command)
    output = tmp_path / "out"
    north, south = validate(sites, output).results
    assert north.status == "complete"
    assert (south.status, south.reason) == REASONS[shortage]
    first = predicted(output)
    assert len(first) == len(set(first)) == CASES // 2
    assert read_run(output / "south", unfinished=True).run["reason"] == south.reason
    assert started(output) == ["north"]

    what["south"] = "whole"
    assert validate(sites, output).passed
    assert started(output) == []  # north was kept
    second = predicted(output)
    assert len(second) == CASES - CASES // 2
    assert not set(first) & set(second)
    assert sorted(read_run(output / "south").predictions["case_id"]) == sorted([*first, *second])
