# SPDX-License-Identifier: Apache-2.0
"""Groups of cases: their figures, the verdicts, and where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from monai_cnnprimer.validate.statistics import auroc, compare_proportions, proportion
from monai_cnnprimer.validate.subgroups import subgroups


def _table(n: int = 800, harm: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Cases whose signal is weaker by `harm` in women; a quarter has no sex, all views are alike."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"label": random.integers(0, 2, n), "view": random.choice(["PA", "AP"], n)})
    table["sex"] = random.choice(["F", "M", "M", ""], n)
    strength = np.where(table["sex"] == "F", 2.0 - harm, 2.0)
    table["logit"] = random.normal(size=n) + strength * (table["label"] - 0.5)
    return table.assign(predicted=(table["logit"] > 0).astype(int), patient_key=np.arange(n))


def _group(groups, *names):
    return next(group for group in groups if group["group"] == list(names))


def test_columns_come_first_then_their_pairs_in_order():
    table = _table(60).assign(age_band=["18-39", "5-17", "0-4"] * 20, manufacturer="one vendor")
    groups = subgroups(table)
    assert list(dict.fromkeys(tuple(group["by"]) for group in groups)) == [
        ("view",), ("sex",), ("age_band",), ("view", "sex"), ("view", "age_band"), ("sex", "age_band")
    ]  # fmt: skip
    assert [group["group"] for group in groups if group["by"] == ["age_band"]] == [["0-4"], ["5-17"], ["18-39"]]
    assert [group["group"] for group in groups if group["by"] == ["sex"]] == [[""], ["F"], ["M"]]
    for by in (["view"], ["sex"], ["view", "sex"]):
        assert sum(group["n"] for group in groups if group["by"] == by) == 60


def test_figures_are_those_of_the_cases_of_the_group():
    table = _table()
    group = _group(subgroups(table), "AP", "F")
    kept = table[(table["view"] == "AP") & (table["sex"] == "F")]
    assert group["auroc"]["value"] == auroc(kept["label"], kept["logit"]).value
    positive = kept[kept["label"] == 1]
    assert (group["sensitivity"]["k"], group["sensitivity"]["n"]) == (positive["predicted"].sum(), len(positive))
    negative = kept[kept["label"] == 0]
    assert (group["specificity"]["k"], group["specificity"]["n"]) == ((negative["predicted"] == 0).sum(), len(negative))
    assert (group["n"], group["labelled"], group["positives"]) == (len(kept), len(kept), len(positive))


def test_a_group_that_is_harmed_is_found_and_no_other():
    groups = subgroups(_table(1600, harm=1.5), columns=["view", "sex"])
    women = _group(groups, "F")["against_rest"]
    assert {women[figure]["verdict"] for figure in women} == {"lower"}
    assert _group(groups, "M")["against_rest"]["auroc"]["verdict"] == "higher"
    assert _group(groups, "PA")["against_rest"]["auroc"]["verdict"] == "no difference shown"
    rest = _table(1600, harm=1.5).query("label == 1 and sex != 'F'")["predicted"]
    inside = _table(1600, harm=1.5).query("label == 1 and sex == 'F'")["predicted"]
    apart = compare_proportions(proportion(inside.sum(), len(inside)), proportion(rest.sum(), len(rest)))
    assert women["sensitivity"]["difference"] == pytest.approx(apart.difference)


def test_without_harm_a_table_with_any_verdict_is_rare():
    """Holm holds the chance of any wrong verdict in a table at 5 %."""
    wrong = 0
    for seed in range(100, 130):
        tests = [group["against_rest"] or {} for group in subgroups(_table(300, seed=seed))]
        wrong += any(test["verdict"] != "no difference shown" for told in tests for test in told.values() if test)
    assert wrong <= 4  # P(5 or more of 30 at 5 %) = 1.6 %


def test_too_few_patients_have_no_verdict():
    table = _table(200)
    table["sex"] = np.where(np.arange(200) < 30, "F", "M")
    table["label"] = np.where(np.arange(200) < 30, np.arange(200) < 22, np.arange(200) % 2)
    women = subgroups(table, columns=["sex"])[0]
    assert (women["positives"], women["n"]) == (22, 30)
    assert women["against_rest"]["auroc"] is None
    assert women["against_rest"]["specificity"] is None
    assert women["against_rest"]["sensitivity"]["verdict"]
    assert women["no_verdict"] == "8 patients without the finding in the group and 85 outside, 20 are needed"
    few = subgroups(table.head(40), columns=["sex"])[0]
    assert few["against_rest"] is None
    assert "with the finding" in few["no_verdict"]
    assert "without the finding" in few["no_verdict"]


def test_patients_are_counted_not_images():
    table = _table(400).assign(patient_key=np.arange(400) // 40)
    assert {group["against_rest"] for group in subgroups(table)} == {None}
    assert _group(subgroups(table), "PA")["patients"] == 10


def test_unlabelled_cases_count_among_the_called_only():
    table = _table(100)
    table["label"] = pd.array([None] * 50 + [0, 1] * 25, dtype="Int64")
    group = _group(subgroups(table), "PA")
    assert group["called_positive"]["n"] == group["n"] > group["labelled"]
    assert group["auroc"]["n"] == group["labelled"]
    assert subgroups(table.assign(label=pd.array([None] * 100, dtype="Int64")))[0]["auroc"]["value"] is None


def test_missing_columns_and_one_value_divide_nothing():
    assert subgroups(_table(20).drop(columns=["view", "sex"])) == []
    assert subgroups(_table(20).assign(view="PA", sex=None)) == []
