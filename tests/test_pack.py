# SPDX-License-Identifier: Apache-2.0
"""What a site sends: tables only, the same bytes each time, and nothing when anything looks like patient data."""

from __future__ import annotations

import json
import zipfile

import pytest
from typer.testing import CliRunner
from written_runs import write_run

from monai_cnnprimer.commands.pack import app
from monai_cnnprimer.run_directory import write_run_json
from monai_cnnprimer.validate.merge import merge_runs
from monai_cnnprimer.validate.pack import PatientDataFound, pack_run
from monai_cnnprimer.validate.patient_data import scan_csv, scan_json
from monai_cnnprimer.validate.runs import read_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "north", file=True)


def unpacked(archive, to):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(to)
    return to


def test_a_packed_run_is_a_run_without_images_and_names_of_files(folder, tmp_path):
    for name in ("figures/gradcam.png", "maps/0123.npz", "report.html", "readme.txt", ".hidden.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"pixels")
    (folder / "gradcam.csv").write_text("case_id,layer,value\n0123456789abcdef,layer4,0.25\n")
    packed = pack_run(read_run(folder), tmp_path / "north.zip")
    assert packed.left_out == [".hidden.csv", "figures/", "maps/", "readme.txt", "report.html"]
    run = read_run(unpacked(tmp_path / "north.zip", tmp_path / "received") / "north")
    sent = read_run(folder)
    assert "file" in sent.predictions
    assert "file" not in run.predictions
    assert "file" not in run.manifest
    assert run.predictions.equals(sent.predictions.drop(columns="file"))
    assert (run.metrics, run.run["manifest_sha256"]) == (sent.metrics, sent.run["manifest_sha256"])
    assert sorted(path.name for path in run.path.iterdir()) == packed.files


def test_packing_twice_gives_the_same_bytes(folder, tmp_path):
    pack_run(read_run(folder), tmp_path / "a.zip")
    (folder / "predictions.csv").touch()
    pack_run(read_run(folder), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_packed_runs_are_merged(folder, tmp_path):
    pack_run(read_run(folder), tmp_path / "north.zip")
    pack_run(read_run(write_run(tmp_path / "south")), tmp_path / "south.zip")
    for name in ("north", "south"):
        unpacked(tmp_path / f"{name}.zip", tmp_path / "received")
    merge_runs([read_run(tmp_path / "received" / name) for name in ("north", "south")], tmp_path / "merged")
    assert len(read_run(tmp_path / "merged").predictions) == 40


PATIENT_DATA = [
    ("Doe^John", "a person's name"),
    ("MÜLLER^ANNA^^", "a person's name"),
    ("born 1956-03-21", "a date"),
    ("19560321", "a date"),
    ("21.03.1956", "a date"),
    ("03/21/1956", "a date"),
    ("1.2.826.0.1.3680043.8.498.77", "a UID"),
    ("2.25.329800735698586629295641978511506172918", "a UID"),
    ("MRN 4411223", "an id"),
    ("ACC-00123456", "an id"),
    ("/home/doe/export", "a path"),
    ("could not read /data/IM0001", "a path"),
    ("C:\\export\\doe", "a path"),
    ("doe/2020/IM0001", "a path"),
    ("IM0001.dcm", "a path"),
    ("doe@example.org", "an e-mail address"),
]


@pytest.mark.parametrize(("text", "kind"), PATIENT_DATA)
def test_patient_data_is_found_in_tables_and_documents(text, kind):
    assert kind in {found.kind for found in scan_csv(f'case_id,reason\n0123456789abcdef,"{text}"\n')}
    assert kind in {found.kind for found in scan_json(json.dumps({"notes": [text]}))}
    assert kind in {found.kind for found in scan_json(json.dumps({text: 1}))}
    assert kind in {found.kind for found in scan_csv(f'"{text}"\n1\n')}


@pytest.mark.parametrize(
    "text", ["layer4", "0.20001231", "-1.234567", "GE Healthcare", "512", "18-39", "2 labels of no accepted image",
             "pixel data ends after 900 of 32768 bytes", "youden", "3.11.2", "mm/px", "1e-05"],
)  # fmt: skip
def test_what_tables_say_anyway_is_no_patient_data(text):
    assert scan_csv(f"case_id,reason\n0123456789abcdef,{text}\n") == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("case_id", "1234567"), ("patient_key", "Doe"), ("sha256", "19560321"), ("age_band", "63"), ("sex", "Doe"),
     ("transfer_syntax", "1.2.826.0.1.3680043"), ("transfer_syntax", "Doe"), ("probability", "Doe")],
)  # fmt: skip
def test_a_column_holds_only_what_its_form_allows(column, value):
    (found,) = scan_csv(f"{column},label\n{value},1\n")
    assert (found.line, found.column) == (2, column)
    assert value not in found.kind


def test_pseudonyms_of_digits_only_are_pseudonyms():
    assert scan_csv("case_id,threshold_id\n1956032119560321,youden-19560321\n") == []


@pytest.mark.parametrize(("text", "kind"), PATIENT_DATA)
def test_nothing_is_packed_and_the_value_is_not_repeated(tmp_path, text, kind):
    folder = tmp_path / "north"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    write_run_json(folder, {"status": "failed", "site": "north", "reason": text, "notes": []})
    with pytest.raises(PatientDataFound, match="nothing was packed") as told:
        pack_run(_of(folder), tmp_path / "north.zip")
    assert "run.json, reason" in str(told.value)
    assert text not in str(told.value)
    assert not (tmp_path / "north.zip").exists()


def _of(folder):
    run = read_run(folder, unfinished=True)
    run.run["files"] = {}
    return run


def test_the_command_says_what_it_leaves_out(folder, tmp_path):
    (folder / "figures").mkdir()
    (folder / "figures" / "gradcam.png").write_bytes(b"pixels")
    done = CliRunner().invoke(app, [str(folder), "--output", str(tmp_path / "north.zip")])
    assert done.exit_code == 0, done.output
    assert "left out: figures/" in done.output
    with (folder / "gradcam.csv").open("w") as table:
        table.write("name\nDoe^John\n")
    done = CliRunner().invoke(app, [str(folder), "--output", str(tmp_path / "again.zip")])
    assert "gradcam.csv, line 2, name: a person's name" in str(done.exception)
