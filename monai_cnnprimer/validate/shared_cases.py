# SPDX-License-Identifier: Apache-2.0
"""Cases, files and patients that stand in two runs, and what cannot be known where the pseudonyms have two keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from monai_cnnprimer.validate.runs import Run


@dataclass(frozen=True)
class SharedCases:
    """What two or more runs have in common.

    Attributes:
        cases: in words, two sites each: a case, or a file, that both count. Pooled it would count twice.
        patients: in words, two sites each: patients whom both have images of. Their cases are not independent.
        unknown: in words: what the pseudonyms cannot tell.
    """

    cases: list[str]
    patients: list[str]
    unknown: list[str]


def shared_cases(runs: Sequence[Run]) -> SharedCases:
    """Compares every two runs.

    A case is known by its `case_id` and a patient by the `patient_key`, hashes with the site's key: those of two keys
    cannot be compared, and then the same patient, or the same image saved anew, is not seen. A file is known by the
    SHA-256 of its bytes, which needs no key.

    Args:
        runs: complete runs, one a site.
    """
    shared = SharedCases([], [], [])
    for a, b in combinations(runs, 2):
        where = f"{a.site} and {b.site}"
        cases, files, patients = (_common(a, b, name) for name in ("case_id", "sha256", "patient_key"))
        if count := max(cases, files):
            shared.cases.append(f"{where}: {count} images stand at both sites")
        if patients:
            shared.patients.append(f"{where}: {patients} patients have images at both sites")
        if not a.run.get("key_id") or a.run.get("key_id") != b.run.get("key_id"):
            shared.unknown.append(
                f"{where}: their pseudonyms are not known to have one key, so whether a patient stands at both cannot "
                "be told; index both with the same key to know"
            )
    return shared


def _common(a: Run, b: Run, column: str) -> int:
    return len(set(a.manifest[column]) & set(b.manifest[column]))
