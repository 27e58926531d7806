"""The best validation and when to stop: counted by hand, and decided alike by a run that was interrupted."""

import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.train.best import Best, Budget

By = Literal["loss", "metric"]
# few different ones, so that some are equal
VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf, -math.inf]), max_size=12)


def through_json(best: Best) -> Best:
    return Best.from_json(json.loads(json.dumps(best.to_json(), allow_nan=False)))


def test_the_example_of_the_docstring() -> None:
    best = Best("loss", patience=2)
    assert [best.take(10, 0.9), best.take(20, 0.8), best.take(30, 0.8)] == [True, True, False]
    assert not best.should_stop
    assert not best.take(40, math.nan)
    assert (best.step, best.should_stop) == (20, True)


def test_patience_begins_anew_behind_a_better_one() -> None:
    best = Best("metric", patience=2)
    stops = []
    for step, score in enumerate([0.1, 0.1, 0.2, 0.2, 0.1, 0.3], start=1):
        best.take(step, score)
        stops.append(best.should_stop)
    assert stops == [False, False, False, False, True, False]
    assert (best.step, best.value) == (6, 0.3)


def test_without_patience_nothing_stops() -> None:
    best = Best("loss")
    for step in range(1, 50):
        best.take(step, float(step))
    assert (best.step, best.should_stop) == (1, False)


def test_without_anything_to_judge_by_no_step_is_the_best() -> None:
    best = Best()
    assert not best.take(1, 0.5)
    assert (best.step, best.should_stop) == (None, False)
    with pytest.raises(AssertionError, match="nothing to judge by"):
        Best(None, patience=3)


@given(by=st.sampled_from(["loss", "metric"]), values=VALUES, patience=st.none() | st.integers(1, 4))
def test_the_best_is_the_first_of_the_extreme_ones(by: By, values: list[float], patience: int | None) -> None:
    best = Best(by, patience)
    for seen, value in enumerate(values, start=1):
        improved = best.take(seen, value)
        numbers = [v for v in values[:seen] if math.isfinite(v)]
        extreme = None if not numbers else min(numbers) if by == "loss" else max(numbers)
        first = None if extreme is None else values.index(extreme) + 1
        assert (best.step, best.value) == (first, extreme)
        assert improved == (first == seen)
        assert best.should_stop == (patience is not None and seen - (first or 0) >= patience)


def decided(by: By, values: list[float], patience: int | None, late: bool, cuts: set[int]) -> list[object]:
    """What stands behind each validation; before those in `cuts` the run goes on from its checkpoint."""
    best = Best(by, patience)
    found: list[object] = []
    for step, value in enumerate(values):
        if step in cuts:
            best = through_json(best)
        if late and best.expects is not None:
            best.take(best.expects, values[best.expects])
        best.expect(step)
        if not late:
            best.take(step, value)
        found.append((best.step, best.value, best.should_stop, best.expects))
        if best.should_stop:
            break
    return found


@given(
    by=st.sampled_from(["loss", "metric"]),
    values=VALUES,
    patience=st.none() | st.integers(1, 4),
    late=st.booleans(),
    cuts=st.sets(st.integers(0, 12)),
)
def test_a_resumed_run_decides_the_same(
    by: By, values: list[float], patience: int | None, late: bool, cuts: set[int]
) -> None:
    assert decided(by, values, patience, late, cuts) == decided(by, values, patience, late, set())


def test_a_score_is_taken_before_the_next_is_expected() -> None:
    best = Best("metric")
    best.expect(10)
    assert through_json(best).expects == 10
    with pytest.raises(AssertionError, match="score of step 10 has not come"):
        best.expect(20)
    with pytest.raises(AssertionError, match="score of step 10 has not come"):
        best.take(20, 0.5)
    assert best.take(10, 0.5)
    assert best.expects is None


@given(st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=12), st.floats(0, 0.9))
def test_a_budget_is_spent_by_the_first_drop_above_it(drops: list[float], limit: float) -> None:
    budget, within = Budget(limit), None
    for step, drop in enumerate(drops, 1):
        budget.expect(step)
        spent = budget.take(step, drop)
        assert budget.expects is None
        assert spent == (not drop <= limit)
        if spent:
            break
        within = step
    assert budget.within == within
    assert Budget(**budget.to_json()) == budget


def test_without_a_limit_nothing_is_spent() -> None:
    budget = Budget()
    assert not budget.take(3, 1.0)
    assert budget.within is None
