# SPDX-License-Identifier: Apache-2.0
"""The audit: what is measured, how the gate judges it, and the command on bundles whose shortcut is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gate_networks
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import norm
from typer.testing import CliRunner

from monai_cnnprimer.commands.audit import app
from monai_cnnprimer.dicom.export import index_export
from monai_cnnprimer.explain.shortcuts import INTERVENTIONS, Subject
from monai_cnnprimer.networks import sha256_of_file
from monai_cnnprimer.phantom import write_export
from monai_cnnprimer.report.gate import gate_html, shortcut_section
from monai_cnnprimer.run_directory import RunDirectory, digest_of
from monai_cnnprimer.validate.audit import (
    AuditCase,
    Explained,
    Gate,
    Limit,
    Settings,
    attribution,
    audit,
    judge,
    lungs,
    measure,
    read_gate,
)
from monai_cnnprimer.validate.audit.bundle import AuditedBundle, _smaller
from monai_cnnprimer.validate.mlflow_content import tags_of
from monai_cnnprimer.validate.patient_data import scan_csv, scan_json
from monai_cnnprimer.validate.runs import read_run
from monai_cnnprimer.validate.statistics import proportion

BUNDLE = Path(__file__).parents[1] / "bundles" / "chest_xray_resnet50"
LIMITS = {"marker_insert": Limit(0.25, 0.1), "border": Limit(0.25, 0.1, above_control=True)}
GATE = Gate(LIMITS, ("flip",), 20, 0.05)


def cases(count=40, *, patients=None, labels=True, lung=True, size=64):
    """Made-up chests: dark ovals in grey, one of them brighter where there is a finding, more or less so."""
    rows, columns = np.mgrid[:size, :size] / size
    sides = [(columns - x) ** 2 / 0.02 + (rows - 0.5) ** 2 / 0.08 < 1 for x in (0.3, 0.7)]
    for number in range(count):
        random = np.random.default_rng(number)
        image = 0.45 + 0.02 * random.standard_normal((size, size))
        for side, mask in enumerate(sides):
            image[mask] -= 0.3 - 0.2 * (number % 2) * (side == 0) * random.uniform(0.5, 1)
        masks = {"lung": sides[0] | sides[1]} if lung else {}
        subject = Subject(image.clip(0, 1).astype(np.float32), masks)
        patient = f"p{number if patients is None else number % patients:03d}"
        yield AuditCase(f"c{number:03d}", patient, number % 2 if labels else None, subject)


def reads_lungs(images, receipt):
    """How much brighter the lung at the image's left is than the other, inside of both; blind to the rest."""

    def sides(image):
        rows, columns = image.shape
        middle = image[int(0.42 * rows) : int(0.58 * rows)]
        return [middle[:, int(a * columns) : int(b * columns)].mean() for a, b in ((0.25, 0.36), (0.64, 0.75))]

    return np.round([20 * (left - right) - 1.2 for left, right in map(sides, images)], 5)


def reads_markers(images, receipt):
    """Whether anything is as bright as lead in the upper fifth; of the lungs it sees a little."""
    return reads_lungs(images, receipt) + np.array([6.0 * (i[: len(i) // 5] > 0.6).any() for i in images])


def judged(logits, gate=GATE, **options):
    return judge(measure(cases(**options), logits, gate.names).table, 0.5, gate, resamples=200)


def test_a_network_that_reads_markers_fails_and_by_the_marker_only():
    result = judged(reads_markers)
    found = result["interventions"]
    assert (result["verdict"], result["reason"]) == ("fail", "moved by marker_insert")
    assert found["marker_insert"]["change"]["value"] == pytest.approx(6, abs=1e-6)
    assert found["marker_insert"]["shift"]["value"] == pytest.approx(6 / result["spread"])
    assert found["marker_insert"]["control"]["shift"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["border"]["verdict"] == "pass"
    assert found["flip"]["verdict"] == "not gated"


def test_a_network_that_reads_the_lungs_only_passes():
    result = judged(reads_lungs)
    assert result["verdict"] == "pass"
    assert {result["interventions"][name]["verdict"] for name in LIMITS} == {"pass"}
    assert result["interventions"]["flip"]["change"]["value"] != 0


def test_too_few_patients_are_undecided_however_many_images_and_whatever_the_effect():
    for options in ({"count": 12}, {"count": 60, "patients": 12}):
        result = judged(reads_markers, **options)
        assert result["verdict"] == "undecided"
        assert result["interventions"]["marker_insert"]["reason"] == "12 patients, 20 are needed"


def test_an_interval_that_includes_the_limit_is_undecided():
    spread = judged(reads_lungs)["spread"]

    def moved_by_chance(images, receipt):
        at_random = np.random.default_rng(int(1e6 * float(images[0][0, 0]))).normal(0, 0.25 * spread * 1.25)
        return reads_lungs(images, receipt) + np.array([at_random * (i[: len(i) // 5] > 0.6).any() for i in images])

    result = judged(moved_by_chance)
    entry = result["interventions"]["marker_insert"]
    assert entry["judged"]["shift"]["low"] < 0.25 < entry["judged"]["shift"]["high"]
    assert (entry["verdict"], result["verdict"]) == ("undecided", "undecided")
    assert "includes the limit" in entry["reason"]


def test_what_its_control_does_as_well_is_excused_only_where_so_declared():
    def disturbed(images, receipt):
        """By anything within the outer frame: black or blurred alike."""
        first = images[0][:2]
        return reads_lungs(images, receipt) + np.array([5.0 * (i.shape == images[0].shape and (i[:2] != first).any())
                                                        for i in images])  # fmt: skip

    excused = judged(disturbed)["interventions"]["border"]
    assert excused["verdict"] == "pass"
    assert excused["shift"]["value"] == pytest.approx(excused["control"]["shift"]["value"])
    strict = Gate({"border": Limit(0.25, 0.1)}, (), 20, 0.05)
    assert judged(disturbed, strict)["verdict"] == "fail"


def test_a_network_that_says_the_same_of_all_is_undecided():
    result = judged(lambda images, receipt: np.zeros(len(images)))
    assert (result["verdict"], result["reason"]) == ("undecided", "the network says the same of every case")


def test_the_gate_widens_intervals_by_bonferroni_and_gives_wilsons_to_the_flips():
    result = judged(reads_markers)
    assert result["level_of_each"] == 0.05 / (2 * len(LIMITS))
    entry = result["interventions"]["border"]
    narrow, wide = entry["shift_above_control"], entry["judged"]["shift"]
    assert wide["low"] <= narrow["low"] <= narrow["value"] <= narrow["high"] == wide["high"]
    noisy = judged(lambda images, receipt: reads_lungs(images, receipt) + np.array([3 * i[:8].std() for i in images]))
    entry = noisy["interventions"]["border"]["judged"]["shift"]
    told = noisy["interventions"]["border"]["shift_above_control"]
    ratio = norm.ppf(1 - noisy["level_of_each"] / 2) / norm.ppf(0.975)
    assert (entry["low"] - told["value"]) / (told["low"] - told["value"]) == pytest.approx(ratio)
    one = judged(reads_markers, Gate({"marker_insert": Limit(0.25, 0.1)}, (), 20, 0.1))  # two limits at 10 %: 95 % each
    flips = one["interventions"]["marker_insert"]["judged"]["flips"]
    share = proportion(round(40 * flips["value"]), 40)
    assert (flips["low"], flips["high"]) == (pytest.approx(share.low), pytest.approx(share.high))


def test_auroc_before_and_after_and_of_the_lungs_alone():
    gate = Gate(LIMITS, ("lungs_only", "lungs_covered", "lung_box_covered"), 20, 0.05)
    table = measure(cases(), reads_lungs, gate.names).table
    found = judge(table, 0.5, gate, resamples=100)["interventions"]
    assert found["marker_insert"]["auroc"]["difference"]["value"] == 0
    assert found["lungs_covered"]["auroc"]["before"]["value"] > 0.95
    of = lungs(table, 100)
    assert of["whole"]["value"] == of["lungs_only"]["value"] > 0.95
    assert of["lungs_covered"]["value"] == 0.5
    assert (of["n"], of["positives"], of["patients"]) == (40, 20, 40)
    assert lungs(measure(cases(lung=False), reads_lungs, gate.names).table) is None
    assert found["border"]["auroc"]["n"] == 40
    without = judge(measure(cases(labels=False), reads_lungs, GATE.names).table, 0.5, GATE, resamples=50)
    assert without["interventions"]["border"]["auroc"] is None
    assert without["verdict"] == "pass"


def test_cases_left_out_are_counted_with_their_reason():
    gate = Gate(
        {"marker_insert": Limit(1, 1), "marker_remove": Limit(1, 1, may_be_missing=True)}, ("lungs_only",), 20, 0.05
    )
    result = judged(reads_lungs, gate, lung=False)
    assert result["interventions"]["marker_remove"]["left_out"] == {"no marker was found": 40}
    assert result["interventions"]["lungs_only"]["left_out"] == {"no mask of the lung is known": 40}
    assert result["interventions"]["lungs_only"]["verdict"] == "not measured"
    assert result["verdict"] == "pass"  # too few markers to remove are declared to be no obstacle
    needed = Gate(gate.limits | {"marker_remove": Limit(1, 1)}, (), 20, 0.05)
    assert judged(reads_lungs, needed)["verdict"] == "undecided"


def test_what_is_measured_hangs_on_the_seed_and_the_case_alone():
    first = measure(cases(8), reads_markers, GATE.names, seed=3)
    again = measure(reversed(list(cases(8))), reads_markers, GATE.names, seed=3)
    order = ["case_id", "intervention"]
    pd.testing.assert_frame_equal(
        first.table.sort_values(order, ignore_index=True), again.table.sort_values(order, ignore_index=True)
    )
    assert [seen.case_id for seen in first.furthest["flip"]] == [seen.case_id for seen in again.furthest["flip"]]
    change = (first.table["changed"] - first.table["logit"]).abs()
    of_flip = first.table[first.table["intervention"] == "flip"]
    assert first.furthest["flip"][0].case_id == of_flip.loc[change[of_flip.index].idxmax(), "case_id"]
    with pytest.raises(ValueError, match="not finite"):
        measure(cases(1), lambda images, receipt: np.full(len(images), np.nan), GATE.names)


def test_maps_are_read_only_where_they_are_fit():
    mask = {"lung": np.eye(16, dtype=bool)}
    explained = [Explained(f"c{i}", torch.rand(1, 16, 16), mask) for i in range(8)]
    torch.manual_seed(0)
    same = gate_networks.SaysTheSame()
    told = attribution(same, ["layer4"], explained)["layer4"]
    assert told["fit"] != "fit"
    assert told["regions"] is None
    assert "layer9" in attribution(same, ["layer9"], explained)["missing"]
    assert attribution(same, ["layer4"], []) == {"missing": "no case has masks"}


def test_large_images_are_averaged_and_their_spacing_follows():
    image = np.arange(1600 * 800, dtype=np.float32).reshape(1600, 800) / (1600 * 800)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:300] = True
    small, masks, receipt = _smaller(image, {"lung": mask}, {"pixel_spacing_mm": (0.2, 0.1), "view": "PA"})
    assert small.shape == (533, 266)
    assert small[0, 0] == pytest.approx(image[:3, :3].mean())
    assert masks["lung"].sum() == 100 * 266
    assert receipt["pixel_spacing_mm"] == pytest.approx((0.6, 0.3))


def test_the_shipped_limits_name_every_intervention_once():
    gate = read_gate()
    assert sorted(gate.names) == sorted(INTERVENTIONS)
    assert all(INTERVENTIONS[name].control for name, limit in gate.limits.items() if limit.above_control)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patients_needed": 1}, "patients_needed must be 2 or more"),
        ({"may_matter": ["halo"]}, "no intervention halo"),
        ({"may_matter": ["tube"]}, "no intervention twice"),
        ({"must_not_matter": {"tube": {"shift": -1, "flips": 0.1}}}, "tube: give shift above 0"),
        ({"must_not_matter": {"flip": {"shift": 1, "flips": 0.1, "above_control": True}}}, "has no control"),
        ({"limit": 3}, "exactly these entries"),
    ],
)
def test_limits_that_cannot_be_are_told(tmp_path, change, told):
    stated = {"patients_needed": 20, "level": 0.05, "must_not_matter": {"tube": {"shift": 1, "flips": 0.1}}}
    file = tmp_path / "limits.yaml"
    file.write_text(yaml.safe_dump(stated | {"may_matter": []} | change))
    with pytest.raises(ValueError, match=told):
        read_gate(file)
    with pytest.raises(FileNotFoundError, match="no such file of limits"):
        read_gate(tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """A site with 30 cases of 25 patients, half of them with a marker."""
    folder = tmp_path_factory.mktemp("gate") / "export"
    write_export(folder, 30, sites=1, seed=2, size=96, progress=False)
    return folder


def bundle_of(folder: Path, network: str, threshold: float = 0.5) -> Path:
    """A bundle that preprocesses as the shipped one, with a network made by hand."""
    shutil.copytree(BUNDLE / "configs", folder / "configs")
    file = folder / "configs" / "inference.yaml"
    stated = yaml.safe_load(file.read_text())
    stated |= {"network_def": {"_target_": f"gate_networks.{network}"}, "image_size": 96}
    file.write_text(yaml.safe_dump(stated, sort_keys=False))
    (folder / "models").mkdir()
    weights = folder / "models" / "model.pt"
    torch.save(getattr(gate_networks, network)().state_dict(), weights)
    point = {"id": "by-hand", "threshold": threshold, "weights_sha256": sha256_of_file(weights)}
    (folder / "models" / "operating_point.json").write_text(json.dumps(point))
    return folder


def command(export, bundle, output, *more):
    arguments = [str(export / "sites" / "aspen"), "--bundle", str(bundle), "--output", str(output)]
    return CliRunner().invoke(app, [*arguments, "--seed", "1", *map(str, more)])


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """The shipped limits, decided by few patients."""
    file = tmp_path_factory.mktemp("limits") / "gate.yaml"
    file.write_text(
        (BUNDLE.parents[1] / "configs" / "gate.yaml").read_text().replace("patients_needed: 20", "patients_needed: 6")
    )
    return file


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A gate of a few interventions."""
    file = tmp_path_factory.mktemp("short") / "gate.yaml"
    limits = {
        "marker_insert": {"shift": 0.25, "flips": 0.1},
        "border": {"shift": 0.25, "flips": 0.1, "above_control": True},
    }
    stated = {"patients_needed": 6, "level": 0.05, "must_not_matter": limits, "may_matter": ["flip", "lungs_covered"]}
    file.write_text(yaml.safe_dump(stated))
    return file


@pytest.fixture(scope="module")
def failed(export, few, tmp_path_factory):
    """The audit of the network that reads markers, with labels and masks."""
    folder = tmp_path_factory.mktemp("failed")
    bundle = bundle_of(folder / "bundle", "ReadsMarkers")
    labels, masks = export / "labels" / "aspen.csv", export / "truth" / "aspen" / "masks.csv"
    options = ("--labels", labels, "--masks", masks, "--gate", few)
    return command(export, bundle, folder / "audit", *options), folder / "audit", bundle, options


def test_the_command_fails_a_bundle_that_reads_markers(failed):
    run, output, *_ = failed
    assert run.exit_code == 3, run.output
    result = json.loads((output / "gate.json").read_text())
    assert result["verdict"] == "fail"
    assert set(result["interventions"]) == set(INTERVENTIONS)
    entry = result["interventions"]["marker_insert"]
    assert entry["verdict"] == "fail"
    assert entry["change"]["low"] > 0
    assert result["interventions"]["marker_remove"]["change"]["high"] < 0
    assert entry["n"] + sum(entry["left_out"].values()) == 30
    assert result["lungs"]["n"] == 30
    table = pd.read_csv(output / "gate_cases.csv")
    assert len(table) == 30 * len(INTERVENTIONS)
    assert scan_csv((output / "gate_cases.csv").read_text()) == []
    assert scan_json((output / "gate.json").read_text()) == []
    assert "Research use only" in run.output
    assert "gate: fail" in run.output


def test_its_folder_is_whole_and_mlflow_gets_the_tag(failed):
    _, output, *_ = failed
    run = json.loads((output / "run.json").read_text())
    assert (run["kind"], run["status"], run["gate_shortcut"]) == ("audit", "complete", "fail")
    assert run["sha256"] == digest_of(run)
    assert tags_of(run, {})["gate.shortcut"] == "fail"
    assert {"manifest.csv", "refused.csv", "errors.csv", "metrics.json"} == set(run["files"])
    page = (output / "gate.html").read_text()
    assert "Fail: something that must not matter moves the model." in page
    assert "Research use only, not for clinical use" in page
    assert page.count("data:image/png;base64,") == 1 + len(json.loads((output / "gate.json").read_text())["shown"])
    assert "http" not in page.split("</head>")[1]
    result = json.loads((output / "gate.json").read_text())
    section = shortcut_section({"north": output / "gate.json", "south": output / "none.json"})
    assert (section.anchor, section.blocks[0].text[:12]) == ("shortcuts", "north: Fail:")
    assert shortcut_section({"south": output / "none.json"}) is None
    assert "Undecided" in gate_html(result | {"verdict": "undecided"}, output / "none")


def test_the_same_again_gives_the_same_bytes(failed, export, short, tmp_path):
    _, _, bundle, options = failed
    files = ("gate.json", "gate_cases.csv", "gate.html", "run.json")
    twice = []
    for _ in range(2):
        command(export, bundle, tmp_path / "audit", *options, "--gate", short, "--cases", 8, "--explained", 0)
        twice.append({name: (tmp_path / "audit" / name).read_bytes() for name in files})
    assert twice[0] == twice[1]


def test_a_bundle_that_reads_lungs_passes_and_what_needs_masks_is_told(export, tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "ReadsLungs")
    gate = tmp_path / "gate.yaml"
    limits = {"marker_insert": {"shift": 0.5, "flips": 0.8}, "border": {"shift": 1.5, "flips": 0.9}}
    stated = {"patients_needed": 8, "level": 0.05, "must_not_matter": limits, "may_matter": ["lungs_covered"]}
    gate.write_text(yaml.safe_dump(stated))
    run = command(export, bundle, tmp_path / "audit", "--gate", gate)
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "audit" / "gate.json").read_text())
    assert result["verdict"] == "pass"
    assert result["lungs"] is None
    assert any("where the lungs are is not guessed" in text for text in result["missing"])
    assert any("no AUROC" in text for text in result["missing"])
    assert result["attribution"] == {"missing": "no masks were given"}


def test_a_few_cases_are_undecided(export, short, tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "ReadsMarkers")
    run = command(export, bundle, tmp_path / "audit", "--cases", 6, "--gate", short)
    assert run.exit_code == 4, run.output
    result = json.loads((tmp_path / "audit" / "gate.json").read_text())
    assert result["verdict"] == "undecided"
    assert 6 <= result["counts"]["audited"] < 12
    assert any("whole patients drawn by the seed" in note for note in result["notes"])


def test_bad_input_is_told(export, tmp_path):
    bundle = bundle_of(tmp_path / "bundle", "ReadsLungs")
    site = export / "sites" / "aspen"
    with pytest.raises(FileNotFoundError, match="no bundle 'nothing'"):
        audit(site, "nothing", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such export"):
        audit(tmp_path / "nowhere", bundle, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match="no radiograph that can be evaluated"):
        audit(tmp_path / "empty", bundle, tmp_path / "out")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "complete"}))
    with pytest.raises(ValueError, match="holds no images: give its export too"):
        audit(run, bundle, tmp_path / "out")
    with pytest.raises(ValueError, match="holds a run, not an audit"):
        audit(site, bundle, run)
    (tmp_path / "masks.csv").write_text("SOPInstanceUID,spleen\n1.2,x.png\n")
    with pytest.raises(ValueError, match="the table of masks needs the columns"):
        audit(site, bundle, tmp_path / "out", Settings(masks=tmp_path / "masks.csv", cases=2))


def test_masks_of_another_size_are_left_aside(export, short, tmp_path):
    from PIL import Image

    bundle = bundle_of(tmp_path / "bundle", "ReadsLungs")
    truth = pd.read_csv(export / "truth" / "aspen" / "masks.csv", dtype=str)
    Image.new("L", (50, 40), 255).save(tmp_path / "lung.png")
    truth[["SOPInstanceUID"]].assign(lung="lung.png").to_csv(tmp_path / "masks.csv", index=False)
    settings = Settings(masks=tmp_path / "masks.csv", gate=short, cases=3, resamples=20)
    result = audit(export / "sites" / "aspen", bundle, tmp_path / "out", settings)
    assert result["interventions"]["lungs_covered"]["n"] == 0
    assert result["interventions"]["lungs_covered"]["left_out"] == {
        "no mask of the lung is known": result["counts"]["audited"]
    }
    assert result["attribution"] == {"missing": "no case has masks"}


@pytest.fixture
def evaluated(export, tmp_path):
    """A run directory of the network that reads markers, as an evaluation of it leaves one."""
    bundle = bundle_of(tmp_path / "bundle", "ReadsMarkers")
    model = AuditedBundle(bundle, None, {"dataset_dir": "x", "output_dir": "x"})
    manifest = index_export(
        export / "sites" / "aspen", "aspen", labels=export / "labels" / "aspen.csv", progress=False, workers=1
    )
    point = json.loads((bundle / "models" / "operating_point.json").read_text())
    run = RunDirectory(tmp_path / "run", manifest, bundle, point["weights_sha256"], point, model.preprocessing)
    ids = list(manifest.accepted["case_id"])
    run.add(ids[:-2], [0.0] * (len(ids) - 2), [0.5] * (len(ids) - 2))  # two could not be read then
    run.finish([], lambda predictions: {})
    return tmp_path / "run", bundle


def test_the_verdict_enters_an_audited_run_which_stays_whole(evaluated, export, short, tmp_path):
    run, bundle = evaluated
    arguments = [str(run), "--bundle", str(bundle), "--output", str(tmp_path / "audit"), "--gate", str(short)]
    done = CliRunner().invoke(app, [*arguments, "--dataset-dir", str(export / "sites" / "aspen")])
    assert done.exit_code == 3, done.output
    result = json.loads((tmp_path / "audit" / "gate.json").read_text())
    assert result["site"] == "aspen"
    assert result["counts"]["audited"] == 28  # the cases of the run, with its labels
    assert result["counts"]["labelled"] == 28
    told = read_run(run).run
    assert told["gate_shortcut"] == "fail"
    assert tags_of(told, {})["gate.shortcut"] == "fail"


def test_a_run_of_another_model_or_export_is_told(evaluated, export, tmp_path):
    run, _ = evaluated
    other = bundle_of(tmp_path / "other", "ReadsLungs")
    settings = Settings(dataset_dir=export / "sites" / "aspen", cases=2)
    with pytest.raises(ValueError, match="other weights"):
        audit(run, other, tmp_path / "audit", settings)
    assert "gate_shortcut" not in read_run(run).run
    write_export(tmp_path / "elsewhere", 2, sites=1, seed=9, size=64, progress=False)
    settings = Settings(dataset_dir=tmp_path / "elsewhere" / "sites" / "aspen")
    with pytest.raises(ValueError, match="28 of 28 cases of the run are not in this export"):
        audit(run, tmp_path / "bundle", tmp_path / "audit", settings)
