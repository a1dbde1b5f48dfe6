# SPDX-License-Identifier: Apache-2.0
"""A few hundred mutants of every transfer syntax: each is a right image or refused; `make fuzz` reads 20,000."""

from __future__ import annotations

from pathlib import Path

import fuzz
import numpy as np
import pytest

from monai_cnnprimer.dicom.attributes import DicomRefused
from monai_cnnprimer.dicom.radiograph import read_radiograph


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    counts = fuzz.fuzz(12 * len(fuzz.FORMATS), seed=1, failures=tmp_path / "failures")

    assert counts.faults == []
    assert sum(counts.outcomes.values()) == 12 * len(fuzz.FORMATS)
    assert counts.outcomes["image, accepted"] > len(fuzz.FORMATS)  # not all are broken beyond reading
    assert len(counts.outcomes) > 12  # and they break in many ways


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_what_is_mutated_was_right(tmp_path: Path, name: str) -> None:
    of = fuzz.sample(name)
    (tmp_path / "IM1").write_bytes(of.data)

    assert fuzz.outcome(tmp_path / "IM1") == "image"
    assert of.elements[-1].end == len(of.data)
    tags = [element.tag for element in of.elements]
    assert tags == sorted(tags)
    assert {*fuzz.SHAPE} - {0x00280006} <= set(tags)


def test_a_mutant_is_the_same_each_time() -> None:
    for number in range(len(fuzz.FORMATS)):
        assert fuzz.mutant(number, 5) == fuzz.mutant(number, 5)
    assert fuzz.mutant(0, 5) != fuzz.mutant(0, 6)


def test_a_wrong_image_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IM1").write_bytes(fuzz.sample(fuzz.FORMATS[0]).data)
    right = read_radiograph(tmp_path / "IM1")

    def wrong(path: Path) -> object:
        return right[0] * np.float32(np.nan), right[1]

    monkeypatch.setattr(fuzz, "read_radiograph", wrong)
    with pytest.raises(AssertionError, match="not finite"):
        fuzz.outcome(tmp_path / "IM1")


def test_an_exception_that_nobody_foresaw_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(path: Path) -> object:
        raise DicomRefused("reading it failed (KeyError)")

    monkeypatch.setattr(fuzz, "read_radiograph", unforeseen)
    counts = fuzz.fuzz(2, seed=3, failures=tmp_path / "failures")

    assert [fault.split(":")[0] for fault in counts.faults] == ["3-0", "3-1"]
    assert (tmp_path / "failures" / "3-1").read_bytes() == fuzz.mutant(1, 3)[1]
    assert str(counts).endswith("AssertionError: reading it failed (KeyError)")
