"""What counts as a gain and a drop, and how sure that is."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.evaluate.forgetting import compare
from ift.evaluate.statistics import interval

SCORES = st.lists(st.floats(0, 4), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=12)
few = settings(max_examples=25, deadline=None)


def predictions(
    scores: Any,
    *,
    suite: str = "probe",
    name: str = "trial",
    kind: str = "multiple_choice",
    metric: str | None = None,
) -> list[dict[str, Any]]:
    return [
        {
            "suite": suite,
            "name": name,
            "id": f"{i}",
            "kind": kind,
            "metric": metric,
            "output": "a b",
            "score": float(score),
        }
        for i, score in enumerate(scores)
    ]


@few
@given(SCORES)
def test_an_interval_holds_its_mean(scores: list[float]) -> None:
    found = interval(np.array(scores))
    assert found["value"] == pytest.approx(np.mean(scores))
    if len(scores) == 1:
        assert (found["low"], found["high"]) == (None, None)
    else:
        assert found["low"] is not None
        assert found["high"] is not None
        assert found["low"] - 1e-9 <= found["value"] <= found["high"] + 1e-9
        assert min(scores) - 1e-9 <= found["low"]
        assert found["high"] <= max(scores) + 1e-9


def test_an_interval_is_that_of_the_normal_approximation() -> None:
    """300 answers, 210 of them right: a bootstrap and the textbook's interval agree."""
    found = interval(np.repeat([1.0, 0.0], [210, 90]))
    half = 1.96 * math.sqrt(0.7 * 0.3 / 300)
    assert found["value"] == pytest.approx(0.7)
    assert found["low"] == pytest.approx(0.7 - half, abs=0.006)
    assert found["high"] == pytest.approx(0.7 + half, abs=0.006)


def test_an_interval_is_the_same_every_time() -> None:
    scores = np.random.default_rng(3).random(40)
    assert interval(scores) == interval(scores)


@few
@given(PAIRS)
def test_swapped_models_mirror_the_drop(pairs: list[tuple[float, float]]) -> None:
    base, tuned = predictions(b for b, _ in pairs), predictions(t for _, t in pairs)
    _, (there,) = compare(base, tuned)
    _, (back,) = compare(tuned, base)
    assert (there["base"], there["tuned"]) == (back["tuned"], back["base"])
    drop, gain = there["drop"], back["drop"]
    assert drop["value"] == pytest.approx(-gain["value"], abs=1e-9)
    assert drop["value"] == pytest.approx(there["base"]["value"] - there["tuned"]["value"], abs=1e-9)
    if drop["low"] is not None:
        spread = max(abs(b - t) for b, t in pairs)
        assert drop["low"] == pytest.approx(-gain["high"], abs=0.02 * spread + 1e-9)
        assert drop["high"] == pytest.approx(-gain["low"], abs=0.02 * spread + 1e-9)


@few
@given(PAIRS)
def test_the_drop_of_a_reference_is_the_share_of_likelihood_lost(pairs: list[tuple[float, float]]) -> None:
    base, tuned = (
        predictions((pair[side] for pair in pairs), name="texts", kind="reference") for side in (0, 1)
    )
    _, (row,) = compare(base, tuned)
    drop = row["drop"]
    rise = np.mean([t - b for b, t in pairs])
    assert drop["value"] == pytest.approx(1 - math.exp(-rise), abs=1e-9)
    if drop["low"] is not None:
        assert drop["low"] - 1e-9 <= drop["value"] <= drop["high"] + 1e-9
    assert drop["value"] <= 1


def test_a_loss_that_doubles_the_perplexity_is_a_drop_of_one_half() -> None:
    base, tuned = (predictions([loss] * 3, kind="reference") for loss in (2.0, 2.0 + math.log(2)))
    _, (row,) = compare(base, tuned)
    assert [row["drop"][key] for key in ("value", "low", "high")] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("kind", ["multiple_choice", "reference", "generation"])
def test_an_unchanged_model_drops_nothing(kind: str) -> None:
    same = predictions([1, 0, 0.5, 1], kind=kind)
    _, (row,) = compare(same, same)
    assert row["drop"] == {"value": 0, "low": 0, "high": 0}
    assert row["base"] == row["tuned"]


def test_one_item_has_no_interval() -> None:
    tasks, probes = compare(
        predictions([1], suite="task") + predictions([1], kind="reference"),
        predictions([0], suite="task") + predictions([2], kind="reference"),
    )
    assert tasks[0]["gain"] == {"value": -1, "low": None, "high": None}
    assert probes[0]["drop"] == {"value": pytest.approx(1 - math.exp(-1)), "low": None, "high": None}


def test_tasks_gain_and_probes_drop_each_in_the_items_order() -> None:
    def both(right: int) -> list[dict[str, Any]]:
        scores = [1] * right + [0] * (4 - right)
        return [
            *predictions(scores, suite="task", name="reviews"),
            *predictions(scores, suite="task", name="answers", kind="generation", metric="exact_match"),
            *predictions(scores, name="words"),
            *predictions(scores, name="lists", kind="generation"),
        ]

    tasks, probes = compare(both(1), both(3))
    assert [(row["name"], row["metric"], row["items"]) for row in tasks] == [
        ("reviews", "accuracy", 4),
        ("answers", "exact match", 4),
    ]
    assert [(row["name"], row["metric"]) for row in probes] == [
        ("words", "accuracy"),
        ("lists", "rules kept"),
    ]
    assert all(row["gain"]["value"] == 0.5 and "drop" not in row for row in tasks)
    assert all(row["drop"]["value"] == -0.5 and "gain" not in row for row in probes)
    assert probes[1]["answer_words"] == {"base": 2, "tuned": 2}


@pytest.mark.parametrize(
    "after", [predictions([1, 1, 0]), predictions([1, 1], name="other"), predictions([1, 1])[::-1], []]
)
def test_other_items_are_refused(after: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="not asked the same items"):
        compare(predictions([1, 0]), after)
