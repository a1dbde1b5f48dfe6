# SPDX-License-Identifier: Apache-2.0
"""Paired figures, bins and agreement, against scikit-learn, SciPy, a plain bootstrap and counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score

from monai_cnnprimer.validate.compare.agreement import agreement, on_grid, similarity
from monai_cnnprimer.validate.compare.bins import bins_of
from monai_cnnprimer.validate.compare.differences import clustered, figures_by_bin, paired_figures
from monai_cnnprimer.validate.statistics import compare_auroc


def cases(n: int = 120, patients: int = 80, seed: int = 0) -> pd.DataFrame:
    """Two models of which the second is the better one."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, n)
    common = random.normal(size=n)
    logits = {f"logit_{name}": gain * label + common + random.normal(size=n) for name, gain in (("a", 1.0), ("b", 2.0))}
    table = pd.DataFrame({"patient_key": [f"p{i % patients}" for i in range(n)], "label": label, **logits})
    return table.assign(
        predicted_a=(table["logit_a"] > 0.5).astype(int), predicted_b=(table["logit_b"] > 1).astype(int)
    )


def test_differences_are_b_minus_a_with_the_tests_of_their_kind():
    table = cases()
    figures = paired_figures(table)
    found = figures["auroc"]
    expected = compare_auroc(table["label"], table["logit_b"], table["logit_a"])
    assert (found["difference"]["value"], found["difference"]["p"]) == (expected.difference, expected.p)
    assert found["difference"]["value"] == pytest.approx(found["b"]["value"] - found["a"]["value"])
    assert found["difference"]["value"] > 0
    positives = table[table["label"] == 1]
    found = figures["sensitivity"]
    assert found["difference"]["value"] == pytest.approx((positives["predicted_b"] - positives["predicted_a"]).mean())
    only_a = int(((positives["predicted_a"] == 1) & (positives["predicted_b"] == 0)).sum())
    only_b = int(((positives["predicted_a"] == 0) & (positives["predicted_b"] == 1)).sum())
    assert (found["only_a"], found["only_b"], found["n"]) == (only_a, only_b, len(positives))
    assert found["difference"]["p"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


def test_intervals_come_from_drawing_patients_not_cases():
    """A plain bootstrap that draws patients with all their cases gives the same interval."""
    table = cases()
    gain = (table["predicted_b"] == table["label"]).astype(int) - (table["predicted_a"] == table["label"]).astype(int)
    random = np.random.default_rng(5)
    of = [group.to_numpy() for _, group in gain.groupby(table["patient_key"])]
    drawn = [np.concatenate([of[i] for i in random.integers(len(of), size=len(of))]).mean() for _ in range(4000)]
    found = paired_figures(table)["accuracy"]["difference"]
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.015)


def test_one_class_or_no_case_leaves_figures_unknown_not_wrong():
    table = cases(40)
    figures = paired_figures(table[table["label"] == 1])
    assert figures["auroc"]["difference"]["value"] is None
    assert figures["specificity"]["difference"] == {"value": None, "low": None, "high": None, "p": None}
    assert figures["sensitivity"]["difference"]["value"] is not None


def test_where_no_case_differs_there_is_no_interval_of_width_zero():
    table = cases(30).assign(predicted_a=1, predicted_b=1)
    difference = paired_figures(table)["sensitivity"]["difference"]
    assert (difference["value"], difference["low"], difference["p"]) == (0, None, 1)


def test_a_bin_with_three_findings_is_marked_and_gets_no_figures_nor_a_place_in_holm():
    table = cases(200)
    size = pd.Series("", index=table.index, dtype=object)
    positives = table.index[table["label"] == 1]
    size[positives[:3]] = "4"
    size[positives[3:40]] = "10"
    size[positives[40:]] = "30"
    bins = bins_of(size, table["label"], "size_mm", [3, 8, 22, 40])
    rows = figures_by_bin(table, bins, few=10)
    assert [row["positives"] for row in rows] == [3, 37, len(positives) - 40]
    small, *others = rows
    assert small["sensitivity"]["too_few"]
    assert small["sensitivity"]["n"] == 3
    for metric in ("auroc", "sensitivity"):
        assert small[metric]["difference"] == {"value": None, "low": None, "high": None, "p": None, "p_holm": None}
        p = [row[metric]["difference"]["p"] for row in others]
        assert min(row[metric]["difference"]["p_holm"] for row in others) == pytest.approx(min(1, 2 * min(p)))


def test_bins_of_findings_stand_against_all_cases_without_one():
    table = cases(60)
    size = table["label"].map({0: "0", 1: "12"})  # some tables say 0 where there is no finding
    bins = bins_of(size, table["label"], "size_mm", [3, 20])
    (row,) = figures_by_bin(table, bins, few=1)
    assert bins.of_findings
    assert (row["n"], row["negatives"]) == (60, int((table["label"] == 0).sum()))
    assert "specificity" not in row
    whole = paired_figures(table, 1)["auroc"]["difference"]
    assert {key: row["auroc"]["difference"][key] for key in whole} == whole


def test_a_column_that_all_cases_have_makes_strata_with_all_figures():
    table = cases(60)
    bins = bins_of(pd.Series(["F", "M"] * 30), table["label"], "sex")
    rows = figures_by_bin(table, bins)
    assert (bins.kind, bins.names, bins.of_findings) == ("values", ("F", "M"), False)
    assert [row["n"] for row in rows] == [30, 30]
    assert "accuracy" in rows[0]


def test_quarters_hold_every_case_and_state_their_edges():
    values = pd.Series(np.arange(100) * 0.37 + 2)
    bins = bins_of(values, pd.Series([0, 1] * 50), "mm")
    assert bins.kind == "quantiles"
    assert bins.bin_of.value_counts().between(24, 26).all()
    assert bins.bin_of.notna().all()
    assert bins.names == ("2 to 11.2", "11.2 to 20.3", "20.3 to 29.5", "29.5 to 38.6")


def test_cases_in_no_bin_are_counted():
    values = pd.Series(["", "5", "5", "50", None])
    bins = bins_of(values, pd.Series([1, 0, 1, 1, 0]), "mm", [3, 8])
    assert (bins.not_stated, bins.outside) == (2, 1)


@pytest.mark.parametrize(
    ("values", "edges", "message"),
    [
        (["", ""], None, "no case has a value in column 'x'"),
        (["1", "2"], [3, 3], "must rise"),
        (["1", "2"], [3], "two or more"),
        (["AP", "PA"], [1, 2], "holds words"),
        ([f"w{i}" for i in range(30)], None, "30 different words"),
    ],
)
def test_columns_that_cannot_be_binned_are_refused(values, edges, message):
    with pytest.raises(ValueError, match=message):
        bins_of(pd.Series(values), pd.Series([0, 1] * (len(values) // 2)), "x", edges)


def test_agreement_as_scikit_learn_and_scipy_have_it():
    table = cases()
    found = agreement(table)
    a, b = table["logit_a"], table["logit_b"]
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(table["predicted_a"], table["predicted_b"]))
    assert found["pearson"]["value"] == pytest.approx(pearsonr(a, b).statistic)
    assert found["spearman"]["value"] == pytest.approx(spearmanr(a, b).statistic)
    gap = b - a
    assert found["bias"]["value"] == pytest.approx(gap.mean())
    assert found["limits"]["upper"]["value"] == pytest.approx(gap.mean() + 1.959964 * gap.std(ddof=1))
    assert found["bias"]["patients"] == 80
    for figures in (*(found[name] for name in ("kappa", "pearson", "spearman", "bias")), *found["limits"].values()):
        assert figures["low"] < figures["value"] < figures["high"]
    assert sum(found["calls"].values()) == len(table)


def test_kappa_of_two_models_that_always_say_the_same_word_is_unknown():
    found = agreement(cases().assign(predicted_a=1, predicted_b=1))
    assert (found["kappa"]["value"], found["same_call"]["value"]) == (None, 1)


def test_a_mean_over_no_case_is_unknown():
    found = clustered({"x": np.empty(0)}, pd.Series([], dtype=str), {"x": lambda sums: sums["x"]})
    assert (found["x"]["value"], found["x"]["n"]) == (None, 0)


def test_maps_are_compared_with_those_of_other_patients_of_the_class():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 6, 4, 4))
    second[0] = first[0] * 3 + 1
    second[1] = -first[1]
    second[5] = 7.0  # of one value
    groups, patients = [0, 0, 0, 1, 1, 1], ["p", "q", "q", "r", "s", "t"]
    found = similarity(first, second, groups, patients)
    assert found.pearson[:2] == pytest.approx([1, -1])
    assert found.spearman[2] == pytest.approx(spearmanr(first[2].ravel(), second[2].ravel()).statistic)
    assert math.isnan(found.pearson[5])
    assert found.other_cases[1] == pytest.approx(pearsonr(first[1].ravel(), second[0].ravel()).statistic)
    assert found.other_cases[3] == pytest.approx(pearsonr(first[3].ravel(), second[4].ravel()).statistic)


def test_mass_in_common_is_that_of_the_positive_parts():
    first = np.array([[[3.0, 1.0, -9.0]]])
    second = np.array([[[1.0, 0.0, 3.0]]])
    assert similarity(first, second, [0], ["p"]).common_mass == pytest.approx([0.25])
    assert math.isnan(similarity(-np.abs(first), second, [0], ["p"]).common_mass[0])


def test_maps_over_inputs_of_other_sizes_come_to_one_grid():
    ramp = np.tile(np.linspace(0, 1, 160), (160, 1))
    finer = np.tile(np.linspace(0, 1, 224), (224, 1))
    assert on_grid(ramp, 8) == pytest.approx(on_grid(finer, 8), abs=0.002)
