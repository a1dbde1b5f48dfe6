# SPDX-License-Identifier: Apache-2.0
"""Sites as a YAML file and the command line state them, and the command that each becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monai_cnnprimer.validate.sites import Site, bundle_command, check_exports, find_bundle, named_sites, read_plan

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "chest_xray_resnet50"


@pytest.fixture
def folder(tmp_path):
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.csv").write_text("PatientID,label\n")
    return tmp_path


def stated(folder, text):
    (folder / "sites.yaml").write_text(text)
    return read_plan(folder / "sites.yaml")


def test_paths_start_from_the_folder_of_the_file(folder):
    plan = stated(
        folder,
        "output: results\nsettings: {batch_size: 4}\nsites:\n"
        "  north: {export: north, labels: north.csv, views: [PA], ages: [18, null]}\n  12: {export: south}\n",
    )
    assert plan.output == folder / "results"
    assert [site.name for site in plan.sites] == ["north", "12"]
    assert plan.sites[0].options() == {
        "dataset_dir": str(folder / "north"),
        "site": "north",
        "labels": str(folder / "north.csv"),
        "views": ["PA"],
    }
    assert plan.sites[1].options() == {"dataset_dir": str(folder / "south"), "site": "12"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sites: {north: {export: north}, north: {export: south}}", "north stands twice"),
        ("bundle: x", "there are no sites"),
        ("sites: [north]", "there are no sites"),
        ("- north", "entries expected"),
        ("sites: {north: {labels: north.csv}}", "site north: there is no export"),
        ("sites: {north: {export: nowhere}}", "site north: there is no export .*nowhere"),
        ("sites: {north: {export: north, labels: none.csv}}", "there is no table of labels .*none.csv"),
        ("sites: {north: {export: north, masks: none.csv}}", "there is no table of masks .*none.csv"),
        ("sites: {north: {export: north, threshold: 0.2}}", "threshold is not known; known are export, labels"),
        ("threshold: 0.2\nsites: {north: {export: north}}", "sites.yaml: threshold is not known"),
        ("sites: {'../north': {export: north}}", "its name becomes a folder"),
        ("sites: {north: {export: north, ages: [18]}}", "ages are two numbers"),
        ("sites: {north: {export: north", "sites.yaml is not YAML"),
    ],
)
def test_what_a_file_cannot_mean_is_told(folder, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stated(folder, text)


def test_the_example_states_what_it_may(folder):
    (folder / "configs").mkdir()
    (folder / "exports" / "north").mkdir(parents=True)
    (folder / "exports" / "island").mkdir()
    for name in ("north.csv", "south.csv", "south.zip", "island/DICOMDIR"):
        (folder / "exports" / name).touch()
    plan = stated(folder / "configs", (ROOT / "configs" / "sites.yaml").read_text())
    assert [site.name for site in plan.sites] == ["north", "south", "island"]
    assert find_bundle(plan.bundle) == BUNDLE


def test_sites_of_the_command_line(folder):
    north, south = named_sites(
        [f"north={folder / 'north'}", f"south={folder / 'south'}"], [f"south={folder}/south.csv"]
    )
    assert (north.name, north.labels, south.labels) == ("north", None, folder / "south.csv")


@pytest.mark.parametrize(
    ("sites", "labels", "message"),
    [
        (["north"], [], "give NAME=EXPORT"),
        (["north=north", "north=south"], [], "north stands twice"),
        (["north=north"], ["south=south.csv"], "--labels names south, which no --site names"),
        (["north=nowhere"], [], "site north: there is no export"),
    ],
)
def test_wrong_sites_of_the_command_line_are_told(folder, monkeypatch, sites, labels, message):
    monkeypatch.chdir(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        named_sites(sites, labels)


def test_two_sites_that_are_one_are_told(folder):
    north = Site("north", folder / "north")
    check_exports([north, Site("south", folder / "south"), Site("test", folder / "north", split="test")])
    with pytest.raises(ValueError, match="north and other have the same export: each case would be counted twice"):
        check_exports([north, Site("other", folder / "south" / ".." / "north")])
    with pytest.raises(ValueError, match="two sites are named north"):
        check_exports([north, Site("north", folder / "south")])


def test_what_the_command_says_arrives_as_it_was_meant(folder):
    """Through fire's own parser: a site named 12 stays a name, and a path with a comma one path."""
    odd = folder / "a,b (1)"
    odd.mkdir()
    site = Site("12", odd, label_map={"none": 0, "1e5": 1}, views=["PA"])
    command = bundle_command(BUNDLE, site, folder / "run", ("explain",), {"batch_size": 4})
    assert command[1:4] == ["-m", "monai.bundle", "run"]
    script = "import fire, json; fire.Fire(lambda **said: print(json.dumps(said)))"
    said = subprocess.run([sys.executable, "-c", script, *command[4:]], capture_output=True, text=True, check=True)
    told = json.loads(said.stdout)
    assert (told["site"], told["dataset_dir"], told["batch_size"]) == ("12", str(odd), 4)
    assert (told["label_map"], told["views"]) == ({"none": 0, "1e5": 1}, ["PA"])
    assert told["config_file"] == [str(BUNDLE / "configs" / "inference.yaml"), str(ROOT / "configs" / "explain.yaml")]


def test_bundles_are_found_by_name_and_folder():
    assert find_bundle("chest_xray_resnet50") == find_bundle(BUNDLE) == BUNDLE
    with pytest.raises(FileNotFoundError, match="no bundle 'other': give the folder of a bundle, or one of chest_xray"):
        find_bundle("other")
