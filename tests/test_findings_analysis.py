# SPDX-License-Identifier: Apache-2.0
"""The verdict follows from what each arm sees; the tests keep their error rates; thin bins get no figures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from simulated_arms import cases, coarse, scores, steady
from sklearn.linear_model import LogisticRegression

from monai_cnnprimer.validate.findings.analysis import analyse
from monai_cnnprimer.validate.findings.interaction import interaction
from monai_cnnprimer.validate.findings.result import Compared, conclusion, write_result
from monai_cnnprimer.validate.findings.scoring import by_arm, locked, packed, taken, unpacked
from monai_cnnprimer.validate.findings.verdict import Rules
from monai_cnnprimer.validate.statistics import AurocOf, clustered_bootstrap

RULES = Rules(pairs=(("fpn", "resnet50"),), resamples=300)
TABLE = cases(80)


def _analysis(fpn, resnet50, table=TABLE, rules=RULES, **how):
    arms = {"fpn": fpn, "resnet50": resnet50}
    return analyse(
        table, [scores(table, arm, seed, lift, **how) for arm, lift in arms.items() for seed in range(3)], rules
    )


@pytest.mark.parametrize(
    ("fpn", "resnet50", "word"),
    [
        (steady, coarse, "holds"),
        (coarse, steady, "reversed"),
        (steady, steady, "does not hold"),
        (lambda mm: steady(mm) + 1.0, steady, "better at every size"),
    ],
)
def test_the_verdict_is_what_the_arms_see(fpn, resnet50, word):
    found = _analysis(fpn, resnet50, cases(160), noise=0.2)
    assert found["verdicts"][0]["verdict"] == word


def test_an_arm_that_fails_the_gate_is_shown_but_not_compared():
    found = _analysis(steady, coarse, gate=0.9)
    assert found["verdicts"][0]["verdict"] == "not learnt"
    assert found["pairs"] == found["interactions"] == []
    assert len(found["by_bin"]) == 10


def test_a_thin_bin_is_labelled_and_gets_no_figures():
    thin = TABLE.drop(TABLE.index[TABLE["size_bin"] == "5-8 mm"][3:]).reset_index(drop=True)
    found = _analysis(steady, coarse, thin)
    record = next(one for one in found["by_bin"] if one["bin"] == "5-8 mm")
    assert record["n"] == 3
    assert record["too_few"]
    assert record["auroc"] is record["sensitivity"] is record["cpm"] is None
    pair = next(one for one in found["pairs"] if one["bin"] == "5-8 mm")
    assert pair["mcnemar_p"] is pair["mcnemar_p_holm"] is None
    assert pair["detectable_sensitivity"] > 0.3


def test_figures_of_one_seed_are_those_of_the_plain_statistics():
    one = [scores(TABLE, arm, 0, lift) for arm, lift in (("fpn", steady), ("resnet50", coarse))]
    found = analyse(TABLE, one, dataclasses.replace(RULES, resamples=1500))
    kept = TABLE["size_bin"].isin(["none", "8-13 mm"])
    frame = TABLE.assign(logit=one[0].logit)[kept]
    oracle = clustered_bootstrap(AurocOf("label", "logit"), frame, "patient_key", n=1500)
    record = next(r for r in found["by_bin"] if r["arm"] == "fpn" and r["bin"] == "8-13 mm")["auroc"]
    assert record["value"] == pytest.approx(oracle.value)
    assert [record["low"], record["high"]] == pytest.approx([oracle.low, oracle.high], abs=0.01)
    plain = next(r for r in found["by_seed"] if r["arm"] == "fpn" and r["bin"] == "8-13 mm")
    assert plain["auroc"]["value"] == pytest.approx(oracle.value)
    called = one[0].called[TABLE["size_bin"] == "8-13 mm"]
    assert plain["sensitivity"]["k"] == int(called.sum())


def test_seeds_that_differ_widen_the_interval():
    alike = [scores(TABLE, arm, seed, steady) for arm in ("fpn", "resnet50") for seed in range(3)]
    apart = [
        dataclasses.replace(one, logit=one.logit + np.where(TABLE["label"] == 1, one.seed - 1, 0).astype(np.float32))
        for one in alike
    ]
    errors = [analyse(TABLE, some, RULES)["by_bin"][2]["auroc"]["error"] for some in (alike, apart)]
    assert errors[1] > 1.5 * errors[0]


def test_mcnemar_counts_findings_that_most_seeds_call():
    found = _analysis(steady, coarse)
    called = [scores(TABLE, "fpn", seed, steady).called for seed in range(3)]
    other = [scores(TABLE, "resnet50", seed, coarse).called for seed in range(3)]
    inside = (TABLE["size_bin"] == "5-8 mm").to_numpy()
    only = ((np.sum(called, 0) >= 2) & (np.sum(other, 0) < 2) & inside).sum()
    assert next(one for one in found["pairs"] if one["bin"] == "5-8 mm")["only_arm"] == only
    assert all(one["mcnemar_p_holm"] >= one["mcnemar_p"] for one in found["pairs"])


def test_other_cases_other_seeds_and_missing_arms_are_refused():
    some = [scores(TABLE, "fpn", 0, steady), scores(TABLE, "resnet50", 0, coarse)]
    with pytest.raises(ValueError, match="scored on other cases"):
        analyse(TABLE.iloc[:-1], some, RULES)
    with pytest.raises(ValueError, match="same seeds"):
        by_arm([*some, scores(TABLE, "fpn", 1, steady)])
    with pytest.raises(ValueError, match="no scores of resnet50"):
        analyse(TABLE, some[:1], RULES)


def _simulated(random, difference, patients=60):
    """Detections of two models over findings of patients who differ, four a patient, three seeds."""
    patient = np.repeat(np.arange(patients), 4)
    mm = np.exp(random.uniform(np.log(3), np.log(40), patient.size))
    common = random.normal(0, 0.8, patients)[patient] + random.normal(0, 1, patient.size)
    size = np.log2(mm) - 3.5
    called = {}
    for name, slope in (("resnet50", 1.0), ("fpn", 1.0 + difference)):
        expected = 1 / (1 + np.exp(-(common + slope * size)))
        called[name] = random.random((patient.size, 3)) < expected[:, None]
    return mm, called, patient


@pytest.mark.parametrize(("difference", "low", "high"), [(0.0, 0.01, 0.09), (-0.5, 0.85, 1.0)])
def test_the_interaction_keeps_its_error_rates(difference, low, high):
    found = [
        interaction(*_simulated(np.random.default_rng(seed), difference), "resnet50").slopes["fpn"].p
        for seed in range(200)
    ]
    assert low <= np.mean(np.array(found) < 0.05) <= high


def test_the_slope_is_that_of_two_plain_logistic_regressions():
    mm, called, patient = _simulated(np.random.default_rng(1), -0.4)
    found = interaction(mm, called, patient, "resnet50")
    size = np.log2(np.repeat(mm, 3))[:, None]
    slopes = {
        name: LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(size, some.ravel()).coef_[0, 0]
        for name, some in called.items()
    }
    assert found.slopes["fpn"].value == pytest.approx(slopes["fpn"] - slopes["resnet50"], abs=1e-4)
    assert found.p == pytest.approx(found.slopes["fpn"].p, rel=1e-6)  # of one slope, the joint test is its own


def test_repeating_seeds_adds_no_certainty_about_patients():
    mm, called, patient = _simulated(np.random.default_rng(2), -0.4)
    once = interaction(mm, {name: some[:, :1] for name, some in called.items()}, patient, "resnet50")
    thrice = interaction(mm, {name: some[:, [0, 0, 0]] for name, some in called.items()}, patient, "resnet50")
    assert thrice.slopes["fpn"].p == pytest.approx(once.slopes["fpn"].p)


def test_what_cannot_be_fitted_says_why():
    mm, called, patient = _simulated(np.random.default_rng(3), 0)
    assert "calls all" in interaction(mm, called | {"fpn": np.ones_like(called["fpn"])}, patient, "resnet50").reason
    apart = {name: np.repeat((mm > 10)[:, None], 3, axis=1) for name in called}
    assert "no finite solution" in interaction(mm, apart, patient, "resnet50").reason
    assert (
        "too few" in interaction(mm[:8], {name: some[:8] for name, some in called.items()}, patient[:8], "fpn").reason
    )


def test_a_lock_keeps_the_specificity_and_needs_both_classes():
    logit = np.arange(20.0)
    lock = locked(np.r_[np.zeros(10, int), np.ones(10, int)], logit, "specificity=0.90")
    assert (logit[:10] < lock.threshold).mean() == 0.9
    assert lock.gate_auroc == 1
    unlearnt = locked(np.array([0, 0, 1]), np.zeros(3), "specificity=0.90")
    assert unlearnt.threshold > 0
    with pytest.raises(ValueError, match="both classes"):
        locked(np.zeros(3, int), np.zeros(3), "specificity=0.90")


def test_scores_come_back_from_their_file_and_a_damaged_one_is_refused(tmp_path):
    one = scores(TABLE, "fpn", 2, steady)
    path = tmp_path / "one.npz"
    path.write_bytes(packed(one))
    back = unpacked(path, "fpn", 2)
    assert packed(back) == packed(one) == path.read_bytes()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"one\.npz: damaged"):
        unpacked(path, "fpn", 2)


def test_scores_of_some_cases_are_scored_as_if_alone():
    chosen = (TABLE["patient_key"] < "p3").to_numpy()
    one = taken(scores(TABLE, "fpn", 0, steady), chosen)
    whole = scores(TABLE, "fpn", 0, steady)
    assert one.logit.tolist() == whole.logit[chosen].tolist()
    places = np.flatnonzero(chosen)
    assert (places[one.marked.false_case] == whole.marked.false_case[chosen[whole.marked.false_case]]).all()


def _verdict(word, setting):
    record = {"verdict": word, "arm": "fpn", "reference": "resnet50"}
    return Compared(setting, "fixed", 64, {"verdicts": [record]})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("holds", "holds"), "loses holds in 2"),
        (("does not hold", "reversed"), "loses does not hold in 2"),
        (("holds", "does not hold"), "loses depends in 2 comparisons (holds: a, fixed; does not hold: b, fixed)"),
        (("undecided", "does not hold"), "loses was not shown in 2"),
        (("not learnt",), "loses was not shown in 1 comparison ("),
    ],
)
def test_the_sentence_falls_by_rule_whichever_way(words, told):
    assert told in conclusion([_verdict(word, setting) for word, setting in zip(words, "ab", strict=False)])


def test_the_result_is_the_same_bytes_again_and_holds_seeds_n_and_intervals(tmp_path):
    found = _analysis(steady, coarse)
    results = [Compared("labels 224", "fixed", 64, found)]
    costs = {64: pd.DataFrame({"network": ["fpn", "resnet50"], "parameters": [2, 1], "multiply_adds": [20, 10]})}
    about = {"about": "A simulation.", "command": "cnnprimer findings"}
    for name in ("one", "two"):
        sentence = write_result(tmp_path / name, about, results, costs, 0.05)
    first = {path.name: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert first == second
    assert json.loads(first["result.json"])["conclusion"] == sentence
    assert {"auroc-fixed.png", "froc-fixed.png", "forest-fixed.png", "cost-fixed.png"} <= set(first)
    text = first["result.md"].decode()
    assert "seeds 0, 1, 2" in text
    assert "80 patients" not in text
    assert "40 patients" in text
    value = next(r for r in found["by_bin"] if r["arm"] == "fpn" and r["bin"] == "3-5 mm")["auroc"]
    assert f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})" in text


def test_no_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no setting was run"):
        write_result(tmp_path, {}, [], {}, 0.05)
