"""Splits: disjoint, a function of content alone, no group on two sides, and what is tested stays tested."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data.split import count_of, set_apart, take
from ift.errors import IftError

LABELS = ("bad", "good", "neither")
Parts = dict[str, list[int]]

ids = st.integers(0, 2**64 - 1)
pools = st.lists(ids, max_size=60, unique=True)
part = st.integers(0, 12) | st.sampled_from([0.05, 0.1, 0.25, 0.3])


def labels_of(pool: Sequence[int], labels: Sequence[str] = LABELS) -> list[int]:
    """Each example's place in the alphabetical list of labels."""
    names = sorted(set(labels))
    return [names.index(labels[id_ % len(labels)]) for id_ in pool]


def split(
    pool: Sequence[int],
    *,
    train: float | None,
    validation: float,
    test: float,
    balanced: bool = False,
    groups: Sequence[int] | None = None,
    labels: Sequence[str] = LABELS,
) -> Parts:
    """The ids of each part, as the prepare stage cuts them."""
    of_label = np.array(labels_of(pool, labels), dtype=np.int32) if balanced else None
    names = sorted(set(labels))
    apart = set_apart(
        pool,
        range(len(pool)) if groups is None else groups,
        test=test,
        validation=validation,
        labels=of_label,
        names=names,
    )
    rest, left_out = apart.pop("rest"), apart.pop("left_out")
    placed = [*rest.tolist(), *left_out.tolist(), *(i for part in apart.values() for i in part.tolist())]
    assert sorted(placed) == list(range(len(pool)))  # each of them is in one place
    apart["train"] = take(pool, rest, train, total=len(pool), labels=of_label, names=names)
    return {name: [pool[place] for place in places.tolist()] for name, places in apart.items()}


@given(pools, part, part, part | st.none(), st.booleans(), st.randoms(use_true_random=False))
def test_disjoint_and_of_the_content_alone(
    pool: list[int], validation: float, test: float, train: float | None, balanced: bool, random: Any
) -> None:
    numbers: dict[str, Any] = {"train": train, "validation": validation, "test": test, "balanced": balanced}
    try:
        splits = split(pool, **numbers)
    except IftError:
        return  # too few for these numbers
    everyone = [id_ for part in splits.values() for id_ in part]
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(pool)
    if train is None and not balanced:
        assert len(everyone) == len(pool)
    assert all(part == sorted(part) for part in splits.values())
    random.shuffle(pool)
    assert split(pool, **numbers) == splits


@given(pools, part, part, part | st.none())
def test_without_groups_the_lowest_hashes_are_tested_the_next_validated(
    pool: list[int], validation: float, test: float, train: float | None
) -> None:
    counts = [count_of(asked, len(pool)) for asked in (test, validation)]
    counts.append(len(pool) - sum(counts) if train is None else count_of(train, len(pool)))
    if sum(counts) > len(pool) or min(counts) < 0:
        with pytest.raises(IftError, match="are left"):
            split(pool, train=train, validation=validation, test=test)
        return
    ordered = iter(sorted(pool))
    wanted = {
        name: [next(ordered) for _ in range(n)]
        for name, n in zip(("test", "validation", "train"), counts, strict=True)
    }
    assert split(pool, train=train, validation=validation, test=test) == wanted


@given(pools, st.booleans())
def test_asking_for_more_training_moves_no_test_example(pool: list[int], balanced: bool) -> None:
    frozen = None
    for train in (*range(0, 40, 3), None):
        try:
            held = split(pool, train=train, validation=3, test=6, balanced=balanced)
        except IftError:
            break
        held.pop("train")
        assert frozen in (None, held)
        frozen = held


@given(st.lists(ids, min_size=15, max_size=40, unique=True), ids)
def test_a_new_row_moves_at_most_one_example_of_the_test_set(pool: list[int], new: int) -> None:
    before = {*split(pool, train=None, validation=3, test=8)["test"]}
    after = {*split([*dict.fromkeys([*pool, new])], train=None, validation=3, test=8)["test"]}
    assert len(before - after) <= 1


@given(pools, st.integers(0, 15), st.integers(0, 15), st.integers(0, 15))
def test_counts_are_kept_or_refused(pool: list[int], train: int, validation: int, test: int) -> None:
    if train + validation + test > len(pool):
        with pytest.raises(IftError, match="are left"):
            split(pool, train=train, validation=validation, test=test)
    else:
        splits = split(pool, train=train, validation=validation, test=test)
        assert [len(splits[n]) for n in ("train", "validation", "test")] == [train, validation, test]


# ── groups ──


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    pool = draw(pools)
    return pool, draw(st.lists(st.integers(0, 12), min_size=len(pool), max_size=len(pool)))


@given(grouped(), part, part, st.booleans())
def test_a_group_is_on_one_side(
    case: tuple[list[int], list[int]], validation: float, test: float, balanced: bool
) -> None:
    pool, groups = case
    try:
        splits = split(pool, train=None, validation=validation, test=test, balanced=balanced, groups=groups)
    except IftError:
        return
    group_of = dict(zip(pool, groups, strict=True))
    sides = [{group_of[id_] for id_ in part} for part in splits.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))


@given(grouped(), part, part)
def test_what_is_left_of_a_cut_group_is_nowhere_and_all_else_is_trained_on(
    case: tuple[list[int], list[int]], validation: float, test: float
) -> None:
    pool, groups = case
    try:
        splits = split(pool, train=None, validation=validation, test=test, groups=groups)
    except IftError:
        return
    group_of = dict(zip(pool, groups, strict=True))
    held = {group_of[id_] for part in ("test", "validation") for id_ in splits[part]}
    assert splits["train"] == sorted(id_ for id_ in pool if group_of[id_] not in held)
    for part, asked in (("test", test), ("validation", validation)):
        assert len(splits[part]) == count_of(asked, len(pool))


def test_the_drawing() -> None:
    pool = [0x0A, 0x1B, 0x2C, 0x3D, 0x4E, 0x5F]
    splits = split(pool, train=None, validation=1, test=3, groups=[0, 1, 0, 2, 1, 3])
    assert splits == {"test": [0x0A, 0x2C, 0x1B], "validation": [0x3D], "train": [0x5F]}


@given(grouped(), st.integers(0, 20))
def test_no_more_than_one_group_is_torn(case: tuple[list[int], list[int]], test: int) -> None:
    pool, groups = case
    test = min(test, len(pool))
    group_of = dict(zip(pool, groups, strict=True))
    sizes = Counter(groups)
    tested = Counter(
        group_of[id_] for id_ in split(pool, train=None, validation=0, test=test, groups=groups)["test"]
    )
    assert sum(tested[group] < sizes[group] for group in tested) <= 1


def test_a_group_larger_than_the_test_set_is_trained_on() -> None:
    splits = split(range(40), train=None, validation=0, test=5, groups=[0] * 20 + list(range(1, 21)))
    assert splits["test"] == [20, 21, 22, 23, 24]
    assert len(splits["train"]) == 35


# ── shares and labels ──


@pytest.mark.parametrize(("total", "share", "count"), [(100, 0.05, 5), (10, 0.05, 0), (199, 0.25, 50)])
def test_shares_are_of_all_examples(total: int, share: float, count: int) -> None:
    splits = split(range(total), train=share, validation=share, test=share)
    assert {len(part) for part in splits.values()} == {count}


def test_a_share_below_one_and_a_count_of_one() -> None:
    splits = split(range(40), train=None, validation=1, test=0.5)
    assert {name: len(part) for name, part in splits.items()} == {"test": 20, "validation": 1, "train": 19}


@pytest.mark.parametrize("count", [6, 7, 8])
def test_balanced_takes_as_many_of_every_label(count: int) -> None:
    splits = split(range(90), train=3 * count, validation=count, test=2 * count, balanced=True)
    for part in splits.values():
        counts = Counter(labels_of(part))
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= 1


SKEWED = ("bad", "good", "good", "good")


def test_balanced_leaves_as_much_as_the_rarest_label_has() -> None:
    splits = split(range(60), train=None, validation=4, test=6, balanced=True, labels=SKEWED)  # 15 bad
    assert Counter(labels_of(splits["train"], SKEWED)) == {0: 10, 1: 10}


def test_too_few_examples() -> None:
    with pytest.raises(IftError) as caught:
        split(range(60), train=50, validation=5, test=10)
    assert str(caught.value) == (
        "50 examples are asked for `data.split.train`; 45 are left\n"
        "  wanted: at most 60 in all (train + validation + test)\n"
        "  next:   lower the counts in data.split, or give shares such as 0.05"
    )
    with pytest.raises(
        IftError, match=r"^20 examples labelled `bad` are asked for `data\.split\.train`; 10 are left"
    ):
        split(range(60), train=40, validation=4, test=6, balanced=True, labels=SKEWED)


def test_a_label_of_which_none_is_left_still_counts() -> None:
    held: dict[str, Any] = {"validation": 0, "test": 30, "balanced": True, "labels": SKEWED}  # all 15 bad
    assert split(range(60), train=None, **held)["train"] == []
    with pytest.raises(IftError, match=r"^5 examples labelled `bad` .* 0 are left"):
        split(range(60), train=10, **held)


def test_shares_of_more_than_all() -> None:
    with pytest.raises(IftError, match=r"`data\.split\.validation`"):
        split(range(10), train=None, validation=0.6, test=0.6)
