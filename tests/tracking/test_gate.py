import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.evaluate.forgetting import compare
from ift.tracking.gate import BEST_TO_WORST, beside, breached, breaches, decide

GOOD_TASK = {
    "name": "reviews",
    "metric": "accuracy",
    "items": 300,
    "gain": {"value": 0.3, "low": 0.2, "high": 0.4},
}


def probe(
    value: float | None, low: float | None = None, high: float | None = None, name: str = "words"
) -> dict:
    return {
        "name": name,
        "metric": "accuracy",
        "items": 60,
        "drop": {"value": value, "low": low, "high": high},
    }


def task(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"name": "reviews", "items": 300, "gain": {"value": value, "low": low, "high": high}}


def verdict(tasks: list, probes: list, max_drop: float = 0.05) -> str:
    return decide(tasks, probes, max_drop=max_drop)["verdict"]


@pytest.mark.parametrize(
    ("gain", "wanted"),
    [
        ((0.3, 0.2, 0.4), "pass"),
        ((0.1, -0.1, 0.3), "unclear"),
        ((0.1, 0.0, 0.2), "unclear"),
        ((0.1, None, None), "unclear"),
        ((0.0, None, None), "fail"),
        ((-0.1, -0.3, 0.1), "fail"),
        ((0.1, -0.3, 0.0), "fail"),
        ((None, None, None), "unclear"),
        ((math.nan, None, None), "fail"),
    ],
)
def test_a_task_passes_only_where_its_whole_interval_is_above_zero(gain, wanted):
    assert verdict([task(*gain)], [probe(0.0, -0.1, 0.1)]) == wanted


@pytest.mark.parametrize(
    ("items", "more", "wanted"),
    [
        (2, {}, "unclear"),
        (5, {}, "unclear"),
        (6, {}, "pass"),
        (120, {"p_gain": 1 / 16}, "unclear"),
        (120, {"p_gain": 1 / 32}, "pass"),
    ],
)
def test_a_gain_of_few_items_is_no_gain_yet(items, more, wanted):
    gain = {"value": 1.0, "low": 1.0, "high": 1.0}  # the bootstrap of equal values has no width
    [line, _] = decide(
        [{"name": "reviews", "items": items, "gain": gain, **more}], [probe(0.0)], max_drop=0.05
    )["lines"]
    assert line["verdict"] == wanted
    assert ("too few items to tell this gain apart from chance" in line["detail"]) == (wanted == "unclear")


@pytest.mark.parametrize(
    ("drop", "wanted"),
    [
        ((-0.2, -0.3, -0.1), "pass"),
        ((0.05, 0.01, 0.1), "pass"),
        ((0.06, 0.01, 0.1), "fail"),
        ((0.06, 0.0, 0.1), "unclear"),
        ((0.5, None, None), "unclear"),
        ((None, None, None), "unclear"),
        ((math.nan, math.nan, math.nan), "fail"),
    ],
)
def test_a_probe_fails_only_where_its_drop_is_too_large_and_not_chance(drop, wanted):
    assert verdict([GOOD_TASK], [probe(*drop)]) == wanted


def test_what_was_not_measured_is_unclear_and_says_so():
    decision = decide([GOOD_TASK], [], max_drop=0.05)
    assert decision["verdict"] == "unclear"
    assert "forgetting was not measured" in decision["lines"][-1]["detail"]
    assert decision["mean_drop"] is decision["worst_drop"] is decision["worst_probe"] is None
    assert verdict([], [probe(0.0)]) == "unclear"


def test_the_worst_line_decides_and_every_line_says_why():
    decision = decide([GOOD_TASK], [probe(0.01, name="a"), probe(0.2, 0.1, 0.3, name="b")], max_drop=0.05)
    assert decision["verdict"] == "fail"
    assert (decision["worst_probe"], decision["worst_drop"]) == ("b", 0.2)
    assert decision["mean_drop"] == pytest.approx(0.105)
    assert decision["lines"][2] == {
        "of": "forgetting",
        "check": "probe b (accuracy)",
        "verdict": "fail",
        "detail": "drop +0.200 [+0.100, +0.300] over 60 items, at most 0.05 allowed",
    }
    unclear = decide([GOOD_TASK], [probe(0.5)], max_drop=0.05)
    assert "chance" in unclear["lines"][1]["detail"]


NUMBERS = st.floats(-1, 1)


@st.composite
def intervals(draw: st.DrawFn) -> dict[str, float | None]:
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    if draw(st.booleans()):
        return {"value": value, "low": low, "high": high}
    return {"value": value, "low": None, "high": None}


def shifted(interval: dict[str, float | None], by: float) -> dict[str, float | None]:
    return {key: None if number is None else number + by for key, number in interval.items()}


LISTS = st.lists(intervals(), max_size=5)


def named(quantity: str, found: list) -> list[dict[str, Any]]:
    return [{"name": str(place), quantity: interval} for place, interval in enumerate(found)]


@given(LISTS, st.lists(intervals(), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1), st.data())
def test_raising_a_drop_or_lowering_a_gain_never_improves_the_verdict(gains, drops, max_drop, by, data):
    rank = BEST_TO_WORST.index
    before = rank(verdict(named("gain", gains), named("drop", drops), max_drop))
    place = data.draw(st.integers(0, len(drops) - 1))
    worse = [*drops[:place], shifted(drops[place], by), *drops[place + 1 :]]
    assert rank(verdict(named("gain", gains), named("drop", worse), max_drop)) >= before
    lowered = [shifted(gain, -by) for gain in gains]
    assert rank(verdict(named("gain", lowered), named("drop", drops), max_drop)) >= before


@given(LISTS, LISTS, st.floats(0, 1), st.floats(0, 1))
def test_tolerating_more_never_worsens_the_verdict(gains, drops, max_drop, more):
    tasks, probes = named("gain", gains), named("drop", drops)
    rank = BEST_TO_WORST.index
    assert rank(verdict(tasks, probes, max_drop + more)) <= rank(verdict(tasks, probes, max_drop))


@given(LISTS, LISTS, st.floats(0, 1))
def test_the_decision_is_plain_json_and_its_order_does_not_matter(gains, drops, max_drop):
    tasks, probes = named("gain", gains), named("drop", drops)
    decision = decide(tasks, probes, max_drop=max_drop)
    assert json.loads(json.dumps(decision, allow_nan=False)) == decision
    assert verdict(tasks[::-1], probes[::-1], max_drop) == decision["verdict"]
    if drops:
        assert decision["worst_drop"] >= decision["mean_drop"] - 1e-9
        assert decision["worst_drop"] == max(drop["value"] for drop in drops)


def test_a_held_out_task_need_not_gain_but_may_not_lose() -> None:
    def verdict(value: float, low: float, high: float) -> str:
        task = {"name": "nli", "held_out": True, "gain": {"value": value, "low": low, "high": high}}
        return str(decide([task], [], max_drop=0.05)["lines"][0]["verdict"])

    assert verdict(0.0, -0.1, 0.1) == "pass"
    assert verdict(-0.04, -0.06, -0.02) == "pass"
    assert verdict(-0.2, -0.3, -0.1) == "fail"
    assert verdict(-0.2, -0.5, 0.1) == "unclear"


def test_of_held_out_tasks_alone_no_gain_is_known() -> None:
    held_out = {"name": "nli", "held_out": True, "gain": {"value": 0.3, "low": 0.2, "high": 0.4}}
    decision = decide([held_out], [probe(0.0)], max_drop=0.05)
    assert decision["verdict"] == "unclear"
    assert "what the model gained is unknown" in decision["lines"][-1]["detail"]
    assert verdict([held_out, GOOD_TASK], [probe(0.0)]) == "pass"


def test_a_drop_that_is_no_number_is_the_worst_everywhere() -> None:
    decision = decide([GOOD_TASK], [probe(math.nan, name="broken"), probe(0.4, name="lost")], max_drop=0.05)
    assert decision["worst_probe"] == "broken"
    assert math.isnan(decision["worst_drop"])
    assert math.isnan(decision["mean_drop"])


@pytest.mark.parametrize(("items", "base", "tuned"), [(40, 2.0, math.inf), (1, 2.0, math.inf)])
def test_a_loss_that_became_infinite_fails(items: int, base: float, tuned: float) -> None:
    def asked(score: float) -> list[dict[str, Any]]:
        item = {"suite": "probe", "name": "words", "kind": "reference", "metric": None, "output": ""}
        return [{**item, "id": str(i), "score": score} for i in range(items)]

    _, probes = compare(asked(base), asked(tuned))
    assert probes[0]["drop"]["value"] == 1.0
    [_, line] = decide([GOOD_TASK], probes, max_drop=0.05)["lines"]
    assert (line["verdict"], line["detail"]) == (
        "fail",
        "the tuned model's loss is infinite: its scores are broken",
    )
    _, back = compare(asked(tuned), asked(base))
    assert decide([GOOD_TASK], back, max_drop=0.05)["verdict"] == "unclear"


def test_the_lines_that_say_that_too_much_was_forgotten_are_named() -> None:
    held_out = {"name": "nli", "held_out": True, "gain": {"value": -0.2, "low": -0.3, "high": -0.1}}
    decision = decide([GOOD_TASK, held_out], [], max_drop=0.05)
    assert breached(decision)
    assert breaches(decision) == ["task nli"]


@pytest.mark.parametrize(("items", "wanted"), [(2, "unclear"), (40, "fail")])
def test_two_items_do_not_tell_a_worse_task_than_the_champions(items: int, wanted: str) -> None:
    def answers(score: float) -> list[dict[str, Any]]:
        item = {"suite": "task", "name": "reviews", "kind": "multiple_choice", "metric": "accuracy"}
        return [{**item, "id": str(i), "score": score, "output": ""} for i in range(items)]

    tasks, probes = compare(answers(1.0), answers(0.0), may_gain=False)
    assert [line["verdict"] for line in beside(tasks, probes, max_drop=0.05)] == [wanted]
