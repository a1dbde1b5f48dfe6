# SPDX-License-Identifier: Apache-2.0
"""Each thing the doctor looks at, found whole and found wanting; a broken library is a line, not a crash."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections import namedtuple
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import HTJ2K, JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from typer.testing import CliRunner

from monai_cnnprimer import doctor
from monai_cnnprimer.commands.doctor import app
from monai_cnnprimer.dicom import specimens
from monai_cnnprimer.doctor import Check


def state(check: Check) -> tuple[str, bool]:
    """Its state, and whether it has a remedy: just problems have."""
    return check.state, bool(check.remedy)


OK, NOTE, PROBLEM = ("ok", False), ("note", False), ("problem", True)

# --- transfer syntaxes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", specimens.SYNTAXES)
def test_every_syntax_is_decoded_and_its_decoder_named(syntax: str) -> None:
    assert specimens.fault(syntax) == ""
    assert any(name in specimens.decoder(syntax) for name in ("imagecodecs 2", "pydicom 3"))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000, HTJ2K])
def test_pydicoms_own_decoders_see_the_same_ramp(syntax: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(specimens.specimen(syntax))

    np.testing.assert_allclose(pydicom.dcmread(tmp_path / "x").pixel_array, specimens.RAMP * 16, atol=16)


def test_a_spoiled_codec_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(text for syntaxes, text in specimens.STREAMS.items() if JPEGBaseline8Bit in syntaxes)
    monkeypatch.setattr(specimens, "STREAMS", {(JPEGBaseline8Bit,): other[:200], (JPEGLSLossless,): other})
    monkeypatch.setattr(specimens, "RAMP", specimens.RAMP[::-1])

    assert "PixelData" in specimens.fault(JPEGBaseline8Bit)
    assert specimens.fault(JPEGLSLossless) != ""


def test_other_values_than_were_encoded_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specimens, "RAMP", specimens.RAMP[::-1])

    assert specimens.fault(RLELossless) == "decoded to other values than were encoded"


# --- this machine -----------------------------------------------------------------------------------------------------


def test_packages_are_named_with_their_versions() -> None:
    found = {check.what: check for check in doctor.packages()}

    assert {"Python", "monai", "torch", "pydicom", "imagecodecs"} <= found.keys()
    assert "pytest" not in found  # an extra
    assert {state(check) for check in found.values()} == {OK}


def test_a_package_that_is_missing_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["nowhere-to-be-found>=1", "pydicom>=99", "x; extra=='dev'"])

    missing, old = doctor.packages()[2:]

    assert (state(missing), missing.found) == (PROBLEM, "missing")
    assert 'pip install -c constraints.txt "nowhere-to-be-found>=1"' in missing.remedy
    assert state(old) == PROBLEM
    assert old.found.endswith("needed is >=99")


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "processors" in doctor.memory().found
    monkeypatch.setattr(doctor, "ENOUGH_MEMORY", 1 << 60)
    assert state(doctor.memory()) == PROBLEM


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.disk(tmp_path / "not" / "yet").what == "disk"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(1 << 40))
    assert state(doctor.disk(tmp_path)) == OK
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(1000))
    assert state(doctor.disk(tmp_path)) == PROBLEM
    monkeypatch.setattr(doctor.os, "access", lambda place, how: False)
    assert doctor.disk(tmp_path).found == "the output folder may not be written"


def test_the_key_is_looked_at_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CNNPRIMER_KEY", "very secret")
    found = [doctor.key()]
    monkeypatch.setenv("CNNPRIMER_KEY", "")
    found.append(doctor.key())
    monkeypatch.delenv("CNNPRIMER_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found.append(doctor.key())
    file = tmp_path / "cnnprimer" / "key"
    file.parent.mkdir()
    file.write_text("very secret")
    for mode in (0o644, 0o600):
        file.chmod(mode)
        found.append(doctor.key())

    assert [state(check) for check in found] == [OK, PROBLEM, NOTE, PROBLEM, OK]
    assert "very secret" not in str(found)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose weights are eight bytes."""
    folder = tmp_path / "bundles" / "net"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text("{}")
    (folder / "models" / "model.pt").write_bytes(b"weights!")
    told = json.dumps({"weights_sha256": hashlib.sha256(b"weights!").hexdigest()})
    for name in ("operating_point.json", "results.json"):
        (folder / "models" / name).write_text(told)
    monkeypatch.setattr(doctor, "BUNDLES", tmp_path / "bundles")
    return folder


def test_whole_weights(bundle: Path) -> None:
    (found,) = doctor.weights()

    assert (found.what, *state(found)) == ("weights of net", *OK)


def test_changed_weights_are_told(bundle: Path) -> None:
    (bundle / "models" / "model.pt").write_bytes(b"weights?")

    (found,) = doctor.weights()

    assert state(found) == PROBLEM
    assert found.found == "not those of operating_point.json and results.json"


@pytest.mark.parametrize("damage", ["model.pt", "operating_point.json", "results.json"])
def test_missing_files_of_a_bundle_are_told(bundle: Path, damage: str) -> None:
    (bundle / "models" / damage).unlink()

    (found,) = doctor.weights()

    assert state(found) == PROBLEM
    assert "missing" in found.found
    assert "bundles/net/models" in found.remedy


def test_no_bundles_beside_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "BUNDLES", tmp_path)

    assert [check.state for check in doctor.weights()] == ["note"]


def test_the_projects_own_bundles_are_whole() -> None:
    assert {state(check) for check in doctor.weights()} == {OK}


# --- other processes --------------------------------------------------------------------------------------------------

BROKEN = {
    "raises": "raise ImportError('libtorch_cpu.so: cannot open shared object file')",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "raise SystemExit(0)",
    "hangs": "import time; time.sleep(60)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_library_that_is_broken_is_a_line(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "monai.py").write_text(BROKEN[how])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr(doctor, "LOAD_SECONDS", 2 if how == "hangs" else 60)

    (found,) = doctor.elsewhere("torch")

    assert state(found) == PROBLEM
    assert "pip install" in found.remedy
    if how == "raises":
        assert "cannot open shared object file" in found.found


def test_what_another_process_says_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "monai.py").write_text("__version__ = '1'; print('noise')")
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    is_available = staticmethod(lambda: False)\n__version__ = '2'\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))

    loaded, gpu = doctor.elsewhere("torch")

    assert (loaded.found, gpu.state) == ("2, 1", "note")


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_a_database_is_not_made_by_looking(tmp_path: Path) -> None:
    loaded, found = doctor._mlflow([f"sqlite:///{tmp_path}/mlflow.db"])

    assert (state(loaded), state(found)) == (OK, OK)
    assert "the first run makes" in found.found
    assert list(tmp_path.iterdir()) == []


def test_a_dead_server_a_folder_and_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    dead = doctor._mlflow([f"http://user:secret@127.0.0.1:{port}"])[1]
    folder = doctor._mlflow(["file:///somewhere"])[1]

    assert (state(dead), state(folder)) == (PROBLEM, PROBLEM)
    assert "does not answer" in dead.found
    assert "cnnprimer sync" in dead.remedy
    assert "secret" not in dead.found


def test_a_server_that_never_answers_ends_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    done = namedtuple("Done", "returncode stdout stderr")(-doctor.signal.SIGALRM, "", "")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *words, **options: done)

    (found,) = doctor.elsewhere("mlflow", "http://hospital")

    assert (found.what, *state(found)) == ("MLflow", *PROBLEM)
    assert doctor.ANSWER_SECONDS <= 15


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "code"), [(False, 0), (True, 1)])
def test_the_command_ends_with_1_when_something_is_missing(
    problem: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Check("HTJ2K", "problem", "no decoder", "pip install imagecodecs[all]")
    elsewhere = lambda what, *words: [wrong] if problem and what == "decoders" else []  # noqa: E731 - a stand-in
    monkeypatch.setattr(doctor, "elsewhere", elsewhere)
    monkeypatch.setattr(doctor, "ENOUGH_MEMORY", 0)
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 0)

    result = CliRunner().invoke(app, [])

    assert result.exit_code == code, result.output
    assert ("HTJ2K: pip install imagecodecs[all]" in result.output) == problem
    assert ("All that matters is there" in result.output) != problem
    assert "not for clinical use" in result.output
