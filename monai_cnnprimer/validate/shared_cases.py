# SPDX-License-Identifier: Apache-2.0
"""What two runs have in common: cases, files, patients, images that are nearly the same; and what cannot be known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pandas as pd

from monai_cnnprimer.validate.features import features_of
from monai_cnnprimer.validate.overlap import MOST_PAIRS, hashes_from_hex, near_duplicates
from monai_cnnprimer.validate.runs import Run


@dataclass(frozen=True)
class Shared:
    """What two sites have in common.

    Attributes:
        first, second: the sites.
        cases: known by `case_id`, of one key.
        files: known by the SHA-256 of their bytes, for any key.
        patients: known by `patient_key`, of one key.
        one_key: whether the pseudonyms are known to have one key; if not, `cases` and `patients` may be too few.
        alike: pairs of images that are nearly the same, identical ones among them; None where a site has no hashes of
            images, or they are not known to have one key.
    """

    first: str
    second: str
    cases: int
    files: int
    patients: int
    one_key: bool
    alike: int | None

    @property
    def sites(self) -> str:
        """Both, for a sentence."""
        return f"{self.first} and {self.second}"


@dataclass(frozen=True)
class SharedCases:
    """What every two runs have in common, and what a run has within.

    Attributes:
        pairs: one entry for every two sites.
        within: by site, pairs of images of different patients that are nearly the same; None where it has no hashes.
    """

    pairs: list[Shared] = field(default_factory=list)
    within: dict[str, int | None] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """In words: cases, or files, that two sites count both. Pooled they would count twice."""
        return [
            f"{pair.sites}: {max(pair.cases, pair.files)} images stand at both sites"
            for pair in self.pairs
            if pair.cases or pair.files
        ]

    @property
    def patients(self) -> list[str]:
        """In words: patients whom two sites have images of. Their cases are not independent."""
        return [
            f"{pair.sites}: {pair.patients} patients have images at both sites" for pair in self.pairs if pair.patients
        ]

    @property
    def alike(self) -> list[str]:
        """In words: images that are nearly the same, at two sites or of two patients."""
        between = {pair.sites: pair.alike for pair in self.pairs if pair.alike}
        within = {site: count for site, count in self.within.items() if count}
        return [f"{sites}: {_pairs(count)} nearly the same" for sites, count in between.items()] + [
            f"{site}: {_pairs(count)} nearly the same, though of different patients" for site, count in within.items()
        ]

    @property
    def unknown(self) -> list[str]:
        """In words: what the pseudonyms cannot tell."""
        return [
            f"{pair.sites}: their pseudonyms are not known to have one key, so whether a patient stands at both cannot "
            "be told; index both with the same key to know"
            for pair in self.pairs
            if not pair.one_key
        ]


def shared_cases(runs: Sequence[Run]) -> SharedCases:
    """Compares every two runs, and each with itself.

    A case, a patient and the hash of an image are keyed: those of two keys cannot be compared, and then the same
    patient, or the same image saved anew, is not seen. A file is known by its bytes, which needs no key.

    Args:
        runs: complete runs, one a site.

    Raises:
        RunError: see `features_of`.
    """
    hashed = {run.site: _hashed(run) for run in runs}
    pairs = [_shared(a, b, hashed[a.site], hashed[b.site]) for a, b in combinations(runs, 2)]
    return SharedCases(pairs, {site: _alike(table, "patient_key") for site, table in hashed.items()})


def _shared(a: Run, b: Run, ours: pd.DataFrame, theirs: pd.DataFrame) -> Shared:
    cases, files, patients = (_common(a, b, name) for name in ("case_id", "sha256", "patient_key"))
    one_key = bool(a.run.get("key_id")) and a.run.get("key_id") == b.run.get("key_id")
    alike = None
    if one_key and len(ours) and len(theirs):
        alike = _alike(pd.concat([ours.assign(site=0), theirs.assign(site=1)]), "site")
    return Shared(a.site, b.site, cases, files, patients, one_key, alike)


def _common(a: Run, b: Run, column: str) -> int:
    return len((set(a.manifest[column].dropna()) & set(b.manifest[column].dropna())) - {""})


def _hashed(run: Run) -> pd.DataFrame:
    """The cases that have a hash of their image."""
    table = features_of(run)[["patient_key", "image_hash"]]
    return table[table["image_hash"] != ""]


def _alike(table: pd.DataFrame, group: str) -> int | None:
    """Pairs of different groups, a million where there are more; None where no image has a hash."""
    if not len(table):
        return None
    try:
        return len(near_duplicates(hashes_from_hex(table["image_hash"]), table[group]))
    except ValueError:  # one image many times over: that is to be told, and ends no validation
        return MOST_PAIRS


def _pairs(number: int) -> str:
    return "1 pair of images is" if number == 1 else f"{number} pairs of images are"
