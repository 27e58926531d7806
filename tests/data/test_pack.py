"""Packs: every document once, none too full, none far from its place, and few of them."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data.pack import bucket, pack


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[int], int, int]:
    capacity = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, capacity), max_size=60))
    return lengths, capacity, draw(st.integers(1, 70))


@st.composite
def cut_packs(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Full packs cut into documents and shuffled: how many packs suffice is known."""
    capacity = draw(st.integers(2, 40))
    count = draw(st.integers(1, 12))
    lengths: list[int] = []
    for _ in range(count):
        cuts = draw(st.sets(st.integers(1, capacity - 1), max_size=5))
        lengths += [b - a for a, b in pairwise(sorted({0, capacity, *cuts}))]
    return draw(st.permutations(lengths)), capacity, count


@given(documents())
def test_every_document_is_in_one_pack_that_holds_it(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, window = case
    packs = pack(lengths, capacity=capacity, window=window)
    assert sorted(i for members in packs for i in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= capacity for members in packs)


@given(documents())
def test_order_is_kept_but_for_the_window(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, window = case
    packs = pack(lengths, capacity=capacity, window=window)
    assert all(members == sorted(members) for members in packs)
    assert [members[0] for members in packs] == sorted(members[0] for members in packs)
    seen = [i for members in packs for i in members]
    assert all(abs(place - i) < window for place, i in enumerate(seen))


@given(documents())
def test_packing_is_a_pure_function(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, window = case
    assert pack(lengths, capacity=capacity, window=window) == pack(
        tuple(lengths), capacity=capacity, window=window
    )


@given(documents())
def test_no_two_packs_of_a_window_would_fit_into_one(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, _ = case
    fills = sorted(sum(lengths[i] for i in m) for m in pack(lengths, capacity=capacity, window=10**6))
    assert len(fills) < 2 or fills[0] + fills[1] > capacity
    # so all but one are more than half full
    assert len(fills) <= max(1, -(-2 * sum(lengths) // capacity)) or not fills


@given(cut_packs())
def test_at_most_eleven_ninths_of_the_best(case: tuple[list[int], int, int]) -> None:
    lengths, capacity, best = case
    assert len(pack(lengths, capacity=capacity)) <= 11 / 9 * best + 6 / 9


def test_an_order_that_misleads_first_fit() -> None:
    # a seventh, a third and a half, each a little over: six packs hold one of each, first fit takes ten
    lengths = [61] * 6 + [141] * 6 + [211] * 6
    assert len(pack(lengths, capacity=420)) == 6


@given(st.integers(1, 50), st.integers(0, 50))
def test_a_window_of_one_packs_nothing(capacity: int, count: int) -> None:
    assert pack([1] * count, capacity=capacity, window=1) == [[i] for i in range(count)]


def test_the_example() -> None:
    assert pack([5, 3, 4, 2], capacity=7) == [[0, 3], [1, 2]]
    assert pack([], capacity=7) == []


@pytest.mark.parametrize("length", [0, -1, 8])
def test_a_document_that_cannot_be_packed_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"a document of {length} tokens does not fit into packs of 7"):
        pack([3, length], capacity=7)


@pytest.mark.parametrize("seed", range(5))
def test_packs_of_dialogues_are_98_percent_full(seed: int) -> None:
    """Lengths as DialogSum has them in SmolLM2's tokens: mean 265, log-normal (5.49, 0.41), none over 1,024."""
    draw = random.Random(seed)
    lengths = [min(1024, max(40, round(draw.lognormvariate(5.495, 0.406)))) for _ in range(4000)]
    packs = pack(lengths, capacity=1024)
    assert sum(lengths) / (1024 * len(packs)) >= 0.98


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(1, 9), st.integers(1, 30), st.text(max_size=3))
def test_buckets_hold_every_document_once_beside_others_of_its_length(
    lengths: list[int], size: int, window: int, key: str
) -> None:
    rows = bucket(lengths, key=key, size=size, window=window)
    order = [position for row in rows for position in row]
    assert all(len(row) == 1 for row in rows)
    assert sorted(order) == list(range(len(lengths)))
    assert all(abs(place - position) < window for place, position in enumerate(order))
    if window >= len(lengths):  # runs of `size`, and between two of them at most one short run
        by_length = sorted(range(len(lengths)), key=lambda p: (lengths[p], p))
        runs = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        assert sorted(map(sorted, runs)) == sorted(map(sorted, _runs(order, runs)))
    assert rows == bucket(lengths, key=key, size=size, window=window)


def _runs(order: list[int], runs: list[list[int]]) -> list[list[int]]:
    """`order` cut where the runs end: each begins with the first of a run."""
    firsts = {run[0]: len(run) for run in runs}
    found, at = [], 0
    while at < len(order):
        found.append(order[at : at + firsts[order[at]]])
        at += firsts[order[at]]
    return found
