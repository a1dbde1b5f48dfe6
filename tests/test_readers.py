# SPDX-License-Identifier: Apache-2.0
"""Our column of the table of readers: every case is shown as it must be, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from display_cases import DisplayCase, display_cases

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.reader import read_radiograph

LIST = display_cases()
PAGE = Path(__file__).parents[1] / "docs" / "dicom.md"


def test_the_list_is_whole() -> None:
    assert sum(case.expected is not None for case in LIST) >= 54
    assert len({(case.group, case.name) for case in LIST}) == len(LIST)


@pytest.mark.parametrize("case", LIST, ids=lambda case: case.name)
def test_ours_is_right_or_refuses(case: DisplayCase, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(case.file)
    if case.expected is None:
        with pytest.raises(DicomRefused):
            read_radiograph(tmp_path / "image")
    else:
        image, _ = read_radiograph(tmp_path / "image")
        np.testing.assert_allclose(image, case.expected, rtol=0, atol=case.tolerance)


def test_the_table_in_the_docs_is_of_this_list() -> None:
    table = PAGE.read_text().partition("<!-- benchmarks/readers.py -->")[2].partition("<!-- end of")[0]
    counts = {group: sum(case.group == group for case in LIST) for group in dict.fromkeys(c.group for c in LIST)}

    for group, count in counts.items():
        assert f"| {group} | {count} | right |" in table
