"""Intervals that hold what they promise, and drops that are no accident."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ift.evaluate import statistics
from ift.evaluate.forgetting import backward_transfer, compare, mean_drop, normalised, summary
from ift.evaluate.statistics import holm, interval, p_of_drop
from ift.tracking.gate import decide

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("items", "wanted"), [(20, 0.88), (40, 0.91), (120, 0.93)])
def test_an_interval_covers_the_truth_about_as_often_as_it_says(items: int, wanted: float) -> None:
    """400 simulated comparisons of right and wrong answers, of which a third change. A coin's own scatter is 1 %."""
    rng, covered, trials = np.random.default_rng(7), 0, 400
    for _ in range(trials):
        base = rng.random(items) < 0.7
        tuned = np.where(rng.random(items) < 0.3, rng.random(items) < 0.5, base)
        found = interval(base.astype(float) - tuned)
        truth = 0.3 * (0.7 - 0.5)
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] <= truth <= found["high"]
    assert wanted <= covered / trials <= 0.98


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 20))
def test_right_or_wrong_answers_are_tested_as_mcnemar_does(lost: int, won: int, same: int) -> None:
    differences = np.array([1.0] * lost + [-1.0] * won + [0.0] * same)
    if lost + won == 0:
        return
    wanted = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue  # McNemar 1947, exact
    assert p_of_drop(differences) == pytest.approx(wanted, abs=0.02)


@given(st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=8))
def test_of_few_items_all_signs_are_tried(differences: list[float]) -> None:
    values = np.array(differences)
    all_signs = [np.mean(values * signs) for signs in itertools.product([1, -1], repeat=len(values))]
    assert p_of_drop(values) == pytest.approx(np.mean(np.array(all_signs) >= values.mean() - 1e-12), abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "p"), [([], 1.0), ([0, 0], 1.0), ([1], 0.5), ([-1], 1.0), ([1, math.nan], 1.0)]
)
def test_what_cannot_be_told_is_chance(differences: list[float], p: float) -> None:
    assert p_of_drop(np.array(differences, dtype=float)) == p


def test_an_infinite_difference_is_larger_than_all_others() -> None:
    assert p_of_drop(np.full(40, math.inf)) < 0.001
    assert p_of_drop(np.array([math.inf, -1.0, -2.0])) == p_of_drop(np.array([9.0, -1.0, -2.0]))
    assert interval(np.array([math.inf, 1.0]))["low"] == math.inf


def test_holm_by_hand() -> None:
    """The smallest counts four times, the next three times; none ends below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_correcting_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(c >= p for p, c in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_normalised_scores() -> None:
    assert normalised(0.25, 0.25) == 0
    assert normalised(1, 0.25) == 1
    assert normalised(0.5, 0.25) == pytest.approx(1 / 3)
    assert normalised(0.4, 0) == 0.4
    assert normalised(0, 0.5) == -1


def test_backward_transfer_by_hand() -> None:
    scores = [[0.8, 0.1, 0.0], [0.7, 0.9, 0.1], [0.5, 0.8, 0.9]]
    assert backward_transfer(scores) == pytest.approx(((0.5 - 0.8) + (0.8 - 0.9)) / 2)
    with pytest.raises(ValueError, match="two or more"):
        backward_transfer([[1.0]])


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 40))
def test_a_gain_of_which_few_items_differ_has_the_probability_of_its_signs(
    won: int, lost: int, same: int
) -> None:
    if not won + lost + same:
        return
    shared = {"suite": "task", "name": "t", "kind": "generation", "metric": "exact_match", "output": "a"}
    before = [{**shared, "id": f"{i}", "score": float(i < lost)} for i in range(won + lost + same)]
    after = [{**p, "score": float(lost <= i < lost + won)} for i, p in enumerate(before)]
    [row], _ = compare(before, after)
    if won + lost > 12:
        assert "p_gain" not in row
    elif won + lost:
        wanted = binomtest(won, won + lost, 0.5, alternative="greater").pvalue
        assert row["p_gain"] == pytest.approx(wanted, abs=1e-9)


# --- a gate over many probes ------------------------------------------------------------------------------


def answers(rights: Any, name: str) -> list[dict[str, Any]]:
    shared = {"suite": "probe", "kind": "multiple_choice", "metric": None, "output": "a", "chance": 0.25}
    return [{**shared, "name": name, "id": f"{i}", "score": float(right)} for i, right in enumerate(rights)]


def verdict(rng: np.random.Generator, *, lost: float, probes: int = 10, items: int = 40) -> str:
    """The gate's word on two models whose ability on a probe differs by `lost`, and whose answers vary otherwise."""
    before, after = [], []
    for n in range(probes):
        base = rng.random(items) < 0.7
        again = rng.random(items) < 0.7
        tuned = np.where(rng.random(items) < 0.4, again, base) & (rng.random(items) >= lost)
        before += answers(base, f"probe {n}")
        after += answers(tuned, f"probe {n}")
    _, rows = compare(before, after)
    lines = decide([{"name": "t", "gain": {"value": 0.2, "low": 0.1, "high": 0.3}}], rows, max_drop=0.05)[
        "lines"
    ]
    return "fail" if any(line["verdict"] == "fail" for line in lines) else "no breach"


def test_a_model_that_forgot_nothing_is_accused_in_less_than_one_of_twenty_runs() -> None:
    rng = np.random.default_rng(11)
    assert sum(verdict(rng, lost=0.0) == "fail" for _ in range(200)) < 10


def test_a_model_that_lost_a_third_of_its_answers_is_caught() -> None:
    rng = np.random.default_rng(12)
    assert sum(verdict(rng, lost=0.35) == "fail" for _ in range(40)) >= 38


@pytest.mark.parametrize("items", [13, 500])
def test_how_much_is_drawn_at_a_time_changes_no_number(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.1, 1, items)
    before = [
        {"suite": "probe", "name": "words", "id": f"{i}", "kind": "generation", "score": value}
        for i, value in enumerate(values)
    ]
    after = [{**p, "score": p["score"] - 0.1 * i} for i, p in enumerate(before)]
    whole = interval(values), p_of_drop(values), mean_drop(before, after)
    monkeypatch.setattr(statistics, "_AT_ONCE", items * 37)
    assert (interval(values), p_of_drop(values), mean_drop(before, after)) == whole


def test_many_items_take_no_more_memory_than_few() -> None:
    """Of 4,000 resamples at once, 20,000 items would take 640 MB, and as much again for what is drawn."""
    import tracemalloc

    values = np.random.default_rng(3).random(20_000)
    tracemalloc.start()
    interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


@pytest.mark.parametrize("order", [1, -1])
def test_a_probe_whose_scores_are_no_numbers_is_the_worst(order: int) -> None:
    def row(name: str, drop: float) -> dict[str, Any]:
        value = {"value": drop, "low": drop, "high": drop}
        return {"name": name, "base": value, "tuned": value, "drop": value, "p_corrected": 1.0}

    found = summary([row("broken", math.nan), row("lost", 0.9)][::order], breach=True)
    assert found["worst"] == "broken"
    assert math.isnan(found["mean_drop"])
