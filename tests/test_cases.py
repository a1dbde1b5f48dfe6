# SPDX-License-Identifier: Apache-2.0
"""Which cases are chosen: shares, bounds, and that neither order nor batch size matters."""

from __future__ import annotations

import hashlib
import hmac
import math
import random

import pytest
import torch

from monai_cnnprimer.explain.cases import ChosenCases, ExplainedCase, batch_cases, predicted_classes

LARGE = 2**30


def case(
    case_id: str, logits: list[float], label: int | None = None, side: int = 2, threshold: float = 0.5
) -> ExplainedCase:
    return ExplainedCase(case_id, torch.zeros(1, side, side), {}, torch.tensor(logits), label, threshold=threshold)


def by_log_odds(*log_odds: float, wrong: tuple[int, ...] = (), side: int = 2) -> list[ExplainedCase]:
    """Cases named a, b, c ... with these log odds for class 1; labels are right but for those named."""
    return [case(chr(97 + i), [0.0, x], int((x > 0) != (i in wrong)), side=side) for i, x in enumerate(log_odds)]


def choose(cases: list[ExplainedCase], *bounds: int, seed: int = 0) -> list[tuple[str, str]]:
    chosen = ChosenCases(*bounds, seed=seed)
    for one in cases:
        chosen.offer(one)
    return [(kept.case_id, kept.chosen_as) for kept in chosen.cases]


def draw(name: str, seed: int) -> str:
    """Sorts as the random sample does."""
    return hmac.new(str(seed).encode(), name.encode(), hashlib.sha256).hexdigest()[:12]


def by_hand(cases: list[ExplainedCase], max_images: int, quarter: int, seed: int) -> list[tuple[str, str]]:
    """The rule with everything in memory: rank all, cut at the bounds, choose in turn."""
    odds = {c.case_id: float(c.logits[1] - c.logits[0]) for c in cases}
    sure = sorted(odds, key=lambda name: (-abs(odds[name]), name))
    groups = {
        "error": [name for name in sure if next(c for c in cases if c.case_id == name).is_error],
        "least confident": sorted(odds, key=lambda name: (abs(odds[name]), name)),
        "most confident": sure,
        "random": sorted(odds, key=lambda name: draw(name, seed)),
    }
    size = {c.case_id: 4 * c.image.numel() for c in cases}
    for group, names in groups.items():
        within = [i for i in range(len(names) + 1) if sum(size[name] for name in names[:i]) <= quarter]
        groups[group] = names[: min(max(within), max_images)]
    chosen: dict[str, str] = {}
    for _ in range(max_images):
        for group, names in groups.items():
            free = [name for name in names if name not in chosen]
            if free and len(chosen) < max_images:
                chosen[free[0]] = group
    return list(chosen.items())


@pytest.mark.parametrize("seed", range(12))
def test_one_pass_in_any_order_gives_what_sorting_all_of_them_gives(seed):
    generator = random.Random(seed)
    cases = [
        case(f"c{i}", [0.0, generator.choice([-1, 1]) * i], generator.choice([0, 1, None]), generator.randint(1, 9))
        for i in range(40)
    ]
    max_images, max_bytes = generator.choice([1, 3, 8, 16, 60]), generator.choice([1500, 4000, LARGE])
    expected = by_hand(cases, max_images, max_bytes // 4, seed)
    for _ in range(5):
        generator.shuffle(cases)
        assert choose(cases, max_images, max_bytes, seed=seed) == expected
    assert len(expected) <= max_images


def test_each_group_has_a_quarter_and_what_one_cannot_fill_goes_to_the_others():
    cases = by_log_odds(*(0.1 * i + 0.1 for i in range(20)), wrong=(3, 4, 5, 6))
    groups = [group for _, group in choose(cases, 16)]
    assert {group: groups.count(group) for group in groups} == {
        "error": 4, "least confident": 4, "most confident": 4, "random": 4,
    }  # fmt: skip
    groups = [group for _, group in choose(by_log_odds(*(0.1 * i + 0.1 for i in range(20)), wrong=(3,)), 16)]
    assert {group: groups.count(group) for group in groups} == {
        "error": 1, "least confident": 5, "most confident": 5, "random": 5,
    }  # fmt: skip


def test_order_of_choice_is_most_confident_error_first():
    cases = by_log_odds(3, -0.2, 5, -4, 1, -2, wrong=(0, 4))
    chosen = choose(cases, 6)
    assert chosen[:3] == [("a", "error"), ("b", "least confident"), ("c", "most confident")]
    assert ("e", "error") in chosen
    assert sorted(name for name, _ in chosen) == list("abcdef")


def test_the_random_sample_follows_the_seed_and_nothing_else():
    cases = by_log_odds(*range(1, 27))
    samples = [[name for name, group in choose(cases, 12, seed=seed) if group == "random"] for seed in range(6)]
    assert len({tuple(sample) for sample in samples}) > 4
    changed = [ExplainedCase(c.case_id, c.image + 1, {}, c.logits, c.label) for c in cases]
    assert [name for name, group in choose(changed, 12, seed=5) if group == "random"] == samples[5]


def test_equals_go_by_case_id_and_no_number_ranks_last():
    cases = [case(name, [0.0, logit]) for name, logit in [("x", 1.0), ("b", 1.0), ("a", 1.0), ("n", math.nan)]]
    assert choose(cases, 2) == [("a", "least confident"), ("b", "most confident")]
    assert choose(cases[::-1], 2) == [("a", "least confident"), ("b", "most confident")]


def test_the_last_digits_of_a_logit_do_not_rank():
    """They depend on the batch that a case happens to be in."""
    assert choose([case("b", [0, 2.0000]), case("a", [0, 2.00001])], 1)[0][0] == "a"
    assert choose([case("b", [0, 2.00001]), case("a", [0, 2.0000])], 1)[0][0] == "a"


def test_bytes_bound_what_is_held_at_any_time():
    chosen = ChosenCases(max_images=100, max_bytes=4 * 1000)
    for one in by_log_odds(*(3.0 + 0.01 * i for i in range(60)), side=8):  # 256 bytes each
        chosen.offer(one)
        held = list(chosen._held.values())
        assert sum(kept.nbytes for kept in held) <= 4 * 1000
        assert len(held) <= 4 * 3
    assert len(chosen.cases) >= 3
    assert chosen.too_large == 0
    chosen.offer(case("huge", [0.0, 99.0], side=16))
    assert chosen.too_large == 1
    assert "huge" not in [kept.case_id for kept in chosen.cases]


def test_bytes_count_the_image_its_raw_maps_and_the_maps_that_are_written():
    one = ExplainedCase(
        "a", torch.zeros(2, 6, 8), {"x": torch.zeros(1, 2, 3), "y": torch.zeros(1, 3, 4)}, torch.zeros(2)
    )
    assert one.nbytes == 4 * (2 * 48 + 6 + 12 + 2 * 48)


def test_a_case_seen_twice_is_chosen_once():
    cases = by_log_odds(1, 2, 3)
    assert choose([*cases, *cases], 3) == choose(cases, 3)


def test_none_or_fewer_than_none():
    assert choose(by_log_odds(1, 2), 0) == []
    assert choose([], 5) == []
    with pytest.raises(ValueError, match="must not be negative"):
        ChosenCases(-1)
    with pytest.raises(ValueError, match="must not be negative"):
        ChosenCases(1, -1)


def test_confidence_still_ranks_where_probabilities_are_one():
    sure, surer = case("a", [0.0, 60.0]), case("b", [0.0, 80.0])
    assert sure.probability == surer.probability == 1
    assert choose([sure, surer], 3)[1] == ("b", "most confident")


def test_a_single_logit_is_a_class_by_its_sign():
    single = case("a", [-2.0], label=1)
    assert (single.predicted, single.is_error) == (0, True)
    assert single.probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert single.confidence == pytest.approx(2)


def test_the_operating_point_decides_what_is_predicted_and_what_is_an_error():
    cases = [case("a", [0.0, 0.6], 0, threshold=t) for t in (0.5, 0.7)]  # probability of class 1: 0.646
    assert [one.predicted for one in cases] == [1, 0]
    assert [one.is_error for one in cases] == [True, False]
    assert [one.probability for one in cases] == pytest.approx([0.6457, 0.3543], abs=1e-4)
    assert [one.confidence for one in cases] == pytest.approx([0.6, math.log(0.7 / 0.3) - 0.6])
    assert predicted_classes(torch.tensor([[0.0, 0.6, 2.0]]), 0.9).tolist() == [2]  # of three, the highest


def test_batches_that_cannot_be_told_apart_are_refused():
    maps, logits = {"x": torch.zeros(2, 1, 1, 1)}, torch.zeros(2, 2)
    with pytest.raises(ValueError, match="last forward had 2 images, the batch has 3"):
        batch_cases({"image": torch.zeros(3, 1, 4, 4)}, maps, logits)
    with pytest.raises(ValueError, match="a batch must be a dictionary"):
        batch_cases(torch.zeros(3, 1, 4, 4), maps, logits)
