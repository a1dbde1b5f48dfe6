# SPDX-License-Identifier: Apache-2.0
"""The sites of a validation: what is true of each, from a YAML file or the command line, and how its run is started."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

OVERLAYS = ("explain", "mlflow")
_SHARED = (Path(__file__).parents[1] / "configs").resolve()  # in a checkout a link to configs/


@dataclass(frozen=True)
class Site:
    """What is true of one site, and of no other.

    Attributes:
        name: its pseudonym: letters, digits, `-` and `_`.
        export: folder, DICOMDIR or zip.
        labels: CSV of labels, or None.
        label_map: class of each word of the labels, or None for NORMAL 0, PNEUMONIA 1.
        views: the views that its export is expected to hold; images of others are refused.
        ages: youngest and oldest age in years that is expected; None for no bound. Others are told, not refused.
        split: only those rows of an image folder's `manifest.csv`.
        key: file with the key of its pseudonyms, or None for the kept one.
        masks: CSV that names mask images of lungs, heart, markers or findings, or None; see `dicom.masks.RegionMasks`.
    """

    name: str
    export: Path
    labels: Path | None = None
    label_map: Mapping[str, int] | None = None
    views: Sequence[str] | None = None
    ages: Sequence[int | None] | None = None
    split: str | None = None
    key: Path | None = None
    masks: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ValueError(f"site {self.name!r}: its name becomes a folder: use letters, digits, - and _")
        named = {
            "export": self.export,
            "table of labels": self.labels,
            "key file": self.key,
            "table of masks": self.masks,
        }
        for what, path in named.items():
            if path is not None and not path.exists():
                raise FileNotFoundError(f"site {self.name}: there is no {what} {path}")
        if self.ages is not None and len(self.ages) != 2:
            raise ValueError(f"site {self.name}: ages are two numbers, youngest and oldest, such as [18, null]")

    def options(self) -> dict[str, Any]:
        """What the bundle's configuration is told about the site."""
        told = {"dataset_dir": str(self.export), "site": self.name}
        paths = {
            name: str(getattr(self, name)) for name in ("labels", "key", "masks") if getattr(self, name) is not None
        }
        others = {name: getattr(self, name) for name in ("label_map", "views", "split")}
        return told | paths | {name: value for name, value in others.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """A validation as its YAML file states it; None where the command line or a default decides.

    Attributes:
        sites: in the order of the file.
        bundle: name or folder.
        output: folder for the results.
        operating_point: file, or None for the bundle's own.
        internal: name of the site that the model comes from, with which the report compares the others.
        experiment: of MLflow.
        settings: options of the bundle's configuration, the same for every site.
    """

    sites: list[Site]
    bundle: str | None = None
    output: Path | None = None
    operating_point: Path | None = None
    internal: str | None = None
    experiment: str | None = None
    settings: Mapping[str, Any] | None = None


def read_plan(file: str | Path) -> Plan:
    """The validation that a YAML file states; paths in it start from its folder. Its form: `configs/sites.yaml`.

    Raises:
        FileNotFoundError: there is no such file, or an export or a table of labels that it names is not there.
        ValueError: no YAML, an entry that is not known, or a site that stands twice.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such file; configs/sites.yaml is an example")
    try:
        stated = yaml.load(path.read_text(encoding="utf-8"), _NothingTwice)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {str(error).splitlines()[-1].strip()}") from None
    _check_names(path.name, stated, Plan)
    if not isinstance(stated.get("sites"), dict) or not stated["sites"]:
        raise ValueError(
            f"{path.name}: there are no sites; give `sites:` with an entry for each, named by its pseudonym"
        )
    folder = path.resolve().parent
    sites = []
    for name, entries in stated["sites"].items():
        _check_names(f"{path.name}, site {name}", entries, Site)
        if "export" not in entries:
            raise ValueError(f"{path.name}, site {name}: there is no export; give its folder, DICOMDIR or zip")
        sites.append(Site(**_placed(folder, {**entries, "name": str(name)}, ("export", "labels", "key", "masks"))))
    return Plan(**_placed(folder, {**stated, "sites": sites}, ("output", "operating_point")))


def named_sites(exports: Sequence[str], labels: Sequence[str]) -> list[Site]:
    """Sites from the command line: `NAME=EXPORT` each, and `NAME=CSV` for the labels of some.

    Raises:
        FileNotFoundError: an export or a table of labels is not there.
        ValueError: not of this form, a site twice, or labels of a site that was not given.
    """
    places, tables = _pairs("--site", "EXPORT", exports), _pairs("--labels", "CSV", labels)
    if strangers := tables.keys() - places.keys():
        raise ValueError(f"--labels names {', '.join(sorted(strangers))}, which no --site names")
    return [Site(name, place, tables.get(name)) for name, place in places.items()]


def check_exports(sites: Sequence[Site]) -> None:
    """Refuses two sites that are one.

    Raises:
        ValueError: a name or an export stands twice; each of its cases would be counted twice.
    """
    for first, second in combinations(sites, 2):
        if first.name == second.name:
            raise ValueError(f"two sites are named {first.name}: give each its own name")
        if (first.export.resolve(), first.split) == (second.export.resolve(), second.split):
            raise ValueError(f"{first.name} and {second.name} have the same export: each case would be counted twice")


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle: a path, or the name of one of this project's own bundles.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists those there are.
    """
    own = Path(__file__).parents[2] / "bundles"
    for folder in (Path(bundle).expanduser(), own / bundle):
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    names = sorted(path.parents[1].name for path in own.glob("*/configs/metadata.json"))
    raise FileNotFoundError(
        f"no bundle {str(bundle)!r}: give the folder of a bundle, or one of {', '.join(names) or 'none are installed'}"
    )


def config_files(bundle: Path, overlays: Sequence[str] = OVERLAYS) -> list[Path]:
    """The configuration of a run: the bundle's own, then overlays of this project by name."""
    return [bundle / "configs" / "inference.yaml", *(_SHARED / f"{name}.yaml" for name in overlays)]


def bundle_command(
    bundle: Path,
    site: Site,
    output: Path,
    overlays: Sequence[str] = OVERLAYS,
    settings: Mapping[str, Any] | None = None,
) -> list[str]:
    """The `monai.bundle run` command line that evaluates `site` into the run directory `output`."""
    options = {
        "config_file": [str(path) for path in config_files(bundle, overlays)],
        "logging_file": str(bundle / "configs" / "logging.conf"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "bundle_root": str(bundle),
        "output_dir": str(output),
        **(settings or {}),
        **site.options(),
    }
    # As Python writes them: fire would read a site named 12 as a number, and a path with a comma as two.
    words = [word for name, value in options.items() for word in (f"--{name}", repr(value))]
    return [sys.executable, "-m", "monai.bundle", "run", *words]


class _NothingTwice(yaml.SafeLoader):
    """YAML lets a later entry replace an earlier one of the same name: a hospital would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {str(name) for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(sorted(twice))} stands twice", None)
        return super().construct_mapping(node, deep)


def _check_names(where: str, entries: Any, of: type) -> None:
    known = [field.name for field in fields(of) if field.name != "name"]
    if not isinstance(entries, dict):
        raise ValueError(f"{where}: entries expected, such as `{known[0]}: ...`")
    if strangers := [str(name) for name in entries if name not in known]:
        raise ValueError(f"{where}: {', '.join(strangers)} is not known; known are {', '.join(known)}")


def _placed(folder: Path, entries: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """With paths taken from the folder of the file that states them."""
    placed = {name: folder / Path(entries[name]).expanduser() for name in paths if entries.get(name) is not None}
    return entries | placed


def _pairs(option: str, what: str, given: Sequence[str]) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise ValueError(f"{option} {text!r}: give NAME={what}")
        if name in pairs:
            raise ValueError(f"{option}: {name} stands twice")
        pairs[name] = Path(path).expanduser().resolve()
    return pairs
