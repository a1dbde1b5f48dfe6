# SPDX-License-Identifier: Apache-2.0
"""A second index reads what has changed and nothing else, and its tables are those of a first one."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from monai_cnnprimer.dicom import export, kept, rows
from monai_cnnprimer.dicom.export import Manifest, index_export
from monai_cnnprimer.dicom.files import Source
from monai_cnnprimer.dicom.kept import NAMES
from monai_cnnprimer.dicom.limits import Limits, limited

KEY = b"a key for these tests only"


@pytest.fixture
def site(phantom_export: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantom_export / "sites" / "aspen", tmp_path / "Doe^Jane")
    return tmp_path / "Doe^Jane"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, one after another."""
    names: list[str] = []
    describe_all = export.describe_all

    def watching(sources: list[Source], *rest: object) -> object:
        names.extend(source.name for source in sources)
        return describe_all(sources, *rest)

    monkeypatch.setattr(export, "describe_all", watching)
    return names


def index(path: Path, output: Path, **options: object) -> Manifest:
    return index_export(path, **{"key": KEY, "progress": False, "workers": 1, "output": output} | options)


def tables(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.match(NAMES)}


def test_nothing_is_read_twice(site: Path, tmp_path: Path, looked_at: list[str]) -> None:
    first = index(site, tmp_path / "out")
    before, count = tables(tmp_path / "out"), len(looked_at)
    assert count > 5
    second = index(site, tmp_path / "out")
    assert len(looked_at) == count
    assert tables(tmp_path / "out") == before
    assert (second.paths, second.keys, second.notes) == (first.paths, first.keys, first.notes)
    index(site, tmp_path / "clean")
    assert tables(tmp_path / "clean") == before
    assert len(looked_at) == 2 * count


def test_every_file_is_read_again_when_asked(site: Path, tmp_path: Path, looked_at: list[str]) -> None:
    index(site, tmp_path / "out")
    before, count = tables(tmp_path / "out"), len(looked_at)
    index(site, tmp_path / "out", verify=True)
    assert len(looked_at) == 2 * count
    assert tables(tmp_path / "out") == before
    index(site, tmp_path / "out")
    assert len(looked_at) == 2 * count


def test_what_has_changed_is_read_again(site: Path, tmp_path: Path, looked_at: list[str]) -> None:
    index(site, tmp_path / "out")
    same_size, moved, gone, *_ = sorted(site.rglob("IM*"))
    status = same_size.stat()
    content = same_size.read_bytes()
    same_size.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    os.utime(same_size, ns=(status.st_atime_ns, status.st_mtime_ns))  # as some copying tools do
    moved.rename(moved.with_name("MOVED"))
    gone.unlink()
    looked_at.clear()
    index(site, tmp_path / "out")
    assert sorted(looked_at) == sorted(
        [same_size.relative_to(site).as_posix(), moved.with_name("MOVED").relative_to(site).as_posix()]
    )
    index(site, tmp_path / "clean")
    assert tables(tmp_path / "out") == tables(tmp_path / "clean")
    (left,) = (tmp_path / "out").glob(NAMES)
    (clean,) = (tmp_path / "clean").glob(NAMES)
    assert sorted(left.read_text().splitlines()) == sorted(clean.read_text().splitlines())  # nothing of what is gone


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\udcff\n{}\n[1]\nnull\n" + text,
        lambda text: text.replace('"PA"', '"AP"'),
        lambda text: "\n".join(line[:100] + line[101:] for line in text.splitlines()),
    ],
    ids=["empty", "torn", "rubbish before it", "forged", "a character lost"],
)
def test_a_damaged_file_of_rows_changes_nothing(site: Path, tmp_path: Path, damage: object) -> None:
    index(site, tmp_path / "out")
    before = tables(tmp_path / "out")
    (file,) = (tmp_path / "out").glob(NAMES)
    sound = file.read_bytes()
    file.write_bytes(damage(sound.decode()).encode("utf-8", "surrogateescape"))  # type: ignore[operator]
    index(site, tmp_path / "out")
    assert tables(tmp_path / "out") == before
    assert sorted(file.read_bytes().splitlines()) == sorted(sound.splitlines())


def test_rows_of_another_setting_are_not_taken(
    site: Path, tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    index(site, output)
    count = len(looked_at)
    index(site, output, views=None)
    index(site, output, key=b"another")
    with limited(Limits(pixels=9)):
        index(site, output, key=b"another")
    monkeypatch.setattr(kept, "_code", lambda: "a later version")
    index(site, output, key=b"another")
    assert len(looked_at) == 5 * count
    assert len(list(output.glob(NAMES))) == 1  # the others went with a whole index


def test_archives_and_labels(phantom_export: Path, tmp_path: Path, looked_at: list[str]) -> None:
    archive = shutil.copy(phantom_export / "sites" / "birch.zip", tmp_path / "in.zip")
    index(archive, tmp_path / "out")
    before = tables(tmp_path / "out")
    looked_at.clear()
    index(archive, tmp_path / "out")
    assert not looked_at
    assert tables(tmp_path / "out") == before
    labels = phantom_export / "labels" / "birch.csv"
    manifest = index(archive, tmp_path / "out", labels=labels)  # labels are no part of a row
    assert not looked_at
    assert manifest.accepted["label"].notna().all()
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("later", b"Dear colleague")
    index(archive, tmp_path / "out")
    assert "later" in looked_at


def test_a_file_that_could_not_be_read_is_tried_again(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_header = rows.read_header

    def failing(file: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(rows, "read_header", failing)
    failed = index(site, tmp_path / "out")
    assert "cannot be read (Input/output error)" in failed.refused["reason"].tolist()
    monkeypatch.setattr(rows, "read_header", read_header)
    assert len(index(site, tmp_path / "out").accepted) > len(failed.accepted)


def test_what_is_kept_holds_no_patient(site: Path, tmp_path: Path) -> None:
    import pydicom

    index(site, tmp_path / "out")
    (file,) = (tmp_path / "out").glob(NAMES)
    content = file.read_text()
    assert "Doe" not in content
    for image in site.rglob("IM*"):
        dataset = pydicom.dcmread(image, stop_before_pixels=True, force=True)
        for keyword in ("PatientID", "SOPInstanceUID", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
            value = str(dataset.get(keyword) or "")
            assert not value or value not in content
        assert image.name not in content
