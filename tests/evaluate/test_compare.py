"""Prompting beside tuning: what is said, and when."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ift import storage
from ift.evaluate.compare import Way, compare
from ift.summary import _trained_tokens


def answers(
    scores: Any, *, tokens: int = 30, draw: int = 0, shots: int = 0, name: str = "trec"
) -> list[dict[str, Any]]:
    shared = {"suite": "task", "name": name, "kind": "multiple_choice", "metric": "accuracy", "chance": 0.5}
    return [
        {**shared, "id": f"{i}", "score": float(s), "draw": draw, "shots": shots}
        | {"prompt_tokens": tokens, "new_tokens": 4}
        for i, s in enumerate(scores)
    ]


def right(share: float, count: int = 200) -> list[int]:
    """So many of `count` right, spread evenly."""
    return [int((i * 7919) % count < share * count) for i in range(count)]


def verdict(
    zero: float, few: float, tuned: float, *, count: int = 200, trained: int = 10_000
) -> dict[str, Any]:
    [row] = compare(
        [
            Way("base, 0 shots", answers(right(zero, count))),
            Way("base, 3 shots", answers(right(few, count), tokens=230, shots=3), shots=3),
            Way("tuned", answers(right(tuned, count)), trained=True),
        ],
        context=2048,
        trained_tokens={"tuned": trained},
    )
    return row["verdict"]


def test_tuning_pays_where_it_is_better_beyond_chance() -> None:
    found = verdict(0.5, 0.7, 0.9)
    assert found["kind"] == "tuning"
    assert found["words"].startswith("tuning pays: 0.90 against 0.70 with 3 shots (+0.20 [+0.1")
    # 6 operations a token trained on, 2 a token read: 3 x 10,000 / 200 saved
    assert found["break_even_calls"] == 150
    assert "from 150 calls on also in compute: each saves 200 tokens of the prompt" in found["words"]


def test_prompting_suffices_where_tuning_is_no_better() -> None:
    found = verdict(0.5, 0.9, 0.8)
    assert found["kind"] == "prompting"
    assert found["words"].startswith("prompting suffices: tuned 0.80 against 0.90 with 3 shots")
    assert "but from 150 calls on tuning pays in compute" in found["words"]


def test_no_shots_that_are_best_leave_nothing_to_save() -> None:
    found = verdict(0.7, 0.6, 0.95)
    assert found["break_even_calls"] is None
    assert found["words"].endswith("it saves no compute: its prompt is as long")


def test_neither_works_where_both_guess() -> None:
    found = verdict(0.5, 0.5, 0.5)
    assert found["kind"] == "neither"
    assert found["words"].endswith("is no better than guessing (0.50)")


def test_few_items_cannot_tell() -> None:
    found = verdict(0.6, 0.8, 0.9, count=20)
    assert found["kind"] == "unclear"
    assert found["words"].startswith("these 20 items cannot tell: tuned 0.90 against 0.80")


def test_draws_are_averaged_item_by_item_and_their_spread_is_shown() -> None:
    several = answers(right(0.6), draw=0) + answers(right(0.8), draw=1)
    [row] = compare(
        [Way("base, 1 shot", several, shots=1), Way("tuned", answers(right(0.9)), trained=True)],
        context=100,
        trained_tokens={},
    )
    prompted, tuned = row["ways"]
    assert row["items"] == 200
    assert prompted["score"]["value"] == pytest.approx(0.7)
    assert prompted["draws"] == {"lowest": pytest.approx(0.6), "highest": pytest.approx(0.8), "count": 2}
    assert row["verdict"]["gain"]["value"] == pytest.approx(0.2)
    assert tuned["context_left"] == 100 - 34
    assert tuned["normalised"] == pytest.approx(0.8)


def test_each_task_has_its_own_verdict_and_probes_have_none() -> None:
    probe = [{**p, "suite": "probe", "name": "words"} for p in answers([1, 0])]
    rows = compare(
        [
            Way("base, 0 shots", answers(right(0.6)) + answers(right(0.9), name="boolq") + probe),
            Way("tuned", answers(right(0.9)) + answers(right(0.9), name="boolq") + probe, trained=True),
        ],
        context=None,
        trained_tokens={},
    )
    assert {row["name"]: row["verdict"]["kind"] for row in rows} == {"trec": "tuning", "boolq": "prompting"}
    assert all(way["context_left"] is None for row in rows for way in row["ways"])


def test_a_side_that_was_not_measured_has_no_verdict() -> None:
    [row] = compare([Way("base, 0 shots", answers(np.ones(3)))], context=None, trained_tokens={})
    assert row["verdict"] == {"kind": "unknown", "words": "one side was not measured"}


@pytest.mark.parametrize(("packs", "tokens"), [(80, 8_000), (20, 2_000), (None, 8_000)])
def test_a_training_that_ended_early_cost_less(tmp_path: Path, packs: int | None, tokens: int) -> None:
    storage.write_json(tmp_path / "prepare" / "manifest.json", {"packs": 80, "tokens": 8_000})
    storage.write_json(tmp_path / "train" / "manifest.json", {"packs": packs} if packs else {})
    assert _trained_tokens(tmp_path) == tokens


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_items_cannot_tell_though_all_say_the_same(count: int) -> None:
    found = verdict(0.0, 0.0, 1.0, count=count)
    assert found["kind"] == "unclear"
    assert f"{'this item' if count == 1 else f'these {count} items'} cannot tell" in found["words"]


def test_scores_that_are_no_numbers_are_said_to_be_none() -> None:
    ways = [
        Way("base, 0 shots", answers(right(0.5))),
        Way("tuned", answers([float("nan")] * 200), trained=True),
    ]
    [row] = compare(ways, context=2048, trained_tokens={"tuned": 1})
    assert row["verdict"]["words"] == "the scores of tuned are no numbers: the model is broken"
