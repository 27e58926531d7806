"""Predictions as rows: every word of them, what differs marked, what changed first."""

import itertools
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_pages import prediction

from ift.tracking.predictions import CHANGES, LONGEST_TEXT, _differing, table

WORDS = st.lists(
    st.sampled_from(["the", "sea", "is", "wide", "blue", "\n", "  ", "海", "は", "é"]), max_size=12
)
TEXTS = WORDS.map(" ".join)
SCORES = st.sampled_from([0.0, 1.0, 0.5, 0.25, None])


def pair(before: dict[str, Any], after: dict[str, Any], name: str = "sea", number: int = 0) -> Any:
    return prediction(name, number, **before), prediction(name, number, **after)


def answers(base: str, tuned: str, expected: str | None = None) -> list[dict[str, Any]]:
    (row,) = table([pair({"output": base, "expected": expected}, {"output": tuned, "expected": expected})])[
        "rows"
    ]
    found: list[dict[str, Any]] = row["answers"]
    return found


def marked(answer: dict[str, Any]) -> list[str]:
    return [text for text, mark, _ in answer["pieces"] if mark]


def test_words_are_marked_where_they_differ() -> None:
    base, tuned = answers("the sea is wide", "the sea is very blue and wide", "the sea is blue")
    assert marked(base) == []
    assert marked(tuned) == ["very", "blue", "and"]
    assert [text for text, _, beside in base["pieces"] if beside] == ["wide"]
    assert [text for text, _, beside in tuned["pieces"] if beside] == ["very", "and", "wide"]
    base, tuned = answers("a long and dull film", "a short film")
    assert (marked(base), marked(tuned)) == (["long and dull"], ["short"])


def test_signs_of_scripts_without_spaces_are_words() -> None:
    base, tuned = answers("海は青い", "海は広い")
    assert (marked(base), marked(tuned)) == (["青"], ["広"])


@given(base=TEXTS, tuned=TEXTS, expected=TEXTS)
def test_no_word_is_lost_and_marks_are_the_difference(base: str, tuned: str, expected: str) -> None:
    found = answers(base, tuned, expected)
    for answer, text in zip(found, (base, tuned), strict=True):
        assert "".join(piece for piece, *_ in answer["pieces"]) == text
        assert all(piece == piece.strip() for piece in marked(answer))
    kept = [" ".join(p for p, mark, _ in answer["pieces"] if not mark).split() for answer in found]
    assert "".join(kept[0]) == "".join(kept[1])  # what is not marked is the same on both sides
    if base == tuned:
        assert marked(found[0]) == marked(found[1]) == []


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_as_few_words_are_marked_as_can_be(one: list[str], other: list[str]) -> None:
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]  # by the book: of each two beginnings
    for i, j in itertools.product(range(len(one)), range(len(other))):
        longer = max(lengths[i][j + 1], lengths[i + 1][j])
        lengths[i + 1][j + 1] = lengths[i][j] + 1 if one[i] == other[j] else longer
    marks = _differing(" ".join(one), " ".join(other))
    assert [len(one) - len(marks[0]), len(other) - len(marks[1])] == [lengths[-1][-1]] * 2


@pytest.mark.parametrize("words", [["so"], ["so", "it"], ["so", "it", "goes", "on"]])
def test_answers_that_go_in_circles_take_no_time(words: list[str]) -> None:
    """difflib takes a second for such a pair; here it is some 10 ms, and the bound leaves room for a busy machine."""
    drawn = random.Random(5)
    one, other = (" ".join(drawn.choices(words, k=700)) for _ in range(2))
    started = time.process_time()
    _differing(f"now {one}", f"then {other}")
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize(
    ("before", "after", "kind", "change"),
    [
        (0.0, 1.0, "generation", "fixed"),
        (1.0, 0.0, "generation", "broken"),
        (1.0, 1.0, "multiple_choice", "right"),
        (0.0, 0.0, "multiple_choice", "wrong"),
        (0.2, 0.6, "generation", "better"),
        (0.6, 0.0, "generation", "worse"),
        (0.6, 0.6, "generation", "same"),
        (1.0, 2.0, "reference", "worse"),  # a loss
        (1.0, 0.0, "reference", "better"),
        (None, 1.0, "generation", "ungraded"),
        (float("nan"), 1.0, "generation", "ungraded"),
    ],
)
def test_what_became_of_an_item(before: Any, after: Any, kind: str, change: str) -> None:
    found = table([pair({"score": before, "kind": kind}, {"score": after, "kind": kind})])
    assert found["rows"][0]["change"] == change
    assert found["changes"] == [(change, CHANGES[change][0], 1)]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), SCORES, SCORES), max_size=30),
    st.integers(0, 12),
    st.integers(0, 9_000),
)
def test_what_is_left_out_is_counted_and_changed_the_least(items: list[Any], most: int, text: int) -> None:
    pairs = [pair({"score": b}, {"score": a}, name, i) for i, (name, b, a) in enumerate(items)]
    found, whole = table(pairs, most=most, text=text), table(pairs)
    assert len(found["rows"]) + found["left_out"] == found["total"] == len(pairs)
    assert len(found["rows"]) <= most
    assert whole["left_out"] == 0
    changed = {"broken", "fixed", "worse", "better"}
    left = Counter(row["change"] for row in whole["rows"]) - Counter(row["change"] for row in found["rows"])
    if any(row["change"] not in changed for row in found["rows"]):
        assert not changed & set(left)
    assert sum(count for *_, count in found["tasks"]) == len(found["rows"])
    assert sum(count for *_, count in found["changes"]) == len(found["rows"])


def test_tasks_are_cut_alike() -> None:
    pairs = [pair({"score": 0.0}, {"score": 1.0}, name, i) for name in ("long", "short") for i in range(10)]
    assert [count for *_, count in table(pairs, most=6)["tasks"]] == [3, 3]


def test_long_answers_are_cut_and_counted() -> None:
    base, tuned = answers("word " * 1_000, "word")
    assert sum(len(text) for text, *_ in base["pieces"]) == LONGEST_TEXT
    assert (base["more"], tuned["more"]) == (5_000 - LONGEST_TEXT, 0)


@pytest.mark.parametrize("detail", [None, "", "no JSON", '{"length": [-1.0]}', "[-1.0, -2.0]", "[]"])
def test_details_that_are_no_rules_are_not_told(detail: Any) -> None:
    (row,) = table([pair({"detail": detail}, {"detail": '["1 word, at least 3 wanted", "no list"]'})])["rows"]
    assert [answer["why"] for answer in row["answers"]] == ["", "1 word, at least 3 wanted; no list"]
