import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data import duplicates
from ift.data.duplicates import bands, groups
from ift.data.shingles import words

short_texts = st.lists(st.text("ab ,", max_size=24), max_size=12)


def test_the_examples_in_the_docstring():
    texts = ["one two three four five six", "One, two, three, four, five: six!", "something else"]
    found = bands(words(texts))
    assert found.shape == (3, 14)
    assert (found[0] == found[1]).all()
    assert not (found[0] == found[2]).any()
    assert groups(np.array([[7, 1], [8, 2], [7, 3], [9, 2]], np.uint64)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("shared", "own"),  # 5-grams in both texts, and in each of them alone
    [
        (2, 1),  # texts of 7 words, s = 0.5
        (8, 4),  # 16 words, 0.5
        (14, 3),  # 21 words, 0.7
        (16, 2),  # 22 words, 0.8
        (9, 1),  # 14 words, 0.82
        (18, 1),  # 23 words, 0.9
        (100, 50),
        (140, 30),
        (160, 20),
        (180, 10),
        (800, 100),
    ],
)
def test_similar_texts_share_a_band_as_often_as_the_formula_says(shared, own):
    pairs = 1000
    rng = np.random.default_rng(shared)
    left, right = [], []
    for _ in range(pairs):
        start, *ends = np.split(rng.integers(0, 10**9, shared + 4 + 2 * own), [shared + 4, shared + 4 + own])
        left.append(" ".join(map(str, [*start, *ends[0]])))
        right.append(" ".join(map(str, [*start, *ends[1]])))
    found = float((bands(words(left)) == bands(words(right))).any(axis=1).mean())
    similarity = shared / (shared + 2 * own)
    wanted = 1 - (1 - similarity**8) ** 14
    # four standard errors of a share of this many pairs, and a little for what depends between the bands
    assert abs(found - wanted) < 4 * (wanted * (1 - wanted) / pairs) ** 0.5 + 0.015


def test_unlike_texts_share_no_band():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**6, 3 + i % 200))) for i in range(4000)]
    assert groups(bands(words(texts))).tolist() == list(range(len(texts)))


def test_one_changed_word_in_a_long_text_is_found():
    text = [f"word{i}" for i in range(300)]
    changed = [*text[:150], "another", *text[151:]]
    found = bands(words([" ".join(text), " ".join(changed).upper()]))
    assert groups(found).tolist() == [0, 0]


def test_texts_too_short_for_a_shingle_are_alike_only_as_a_whole():
    found = bands(words(["a b c d", "A b-c d", "A, b; c d!", "a b c", "a b d c", "a b c d e"]))
    assert groups(found).tolist() == [0, 1, 0, 3, 4, 5]


def test_a_text_without_words_is_like_no_other():
    found = bands(words(["", "...", "?!"]))
    assert not found.any()
    assert groups(found, [np.zeros(3, np.uint64)]).tolist() == [0, 1, 2]


@given(short_texts, st.integers(1, 400))
def test_bands_do_not_depend_on_the_batch(texts, together):
    alone = [bands(words([text]))[0].tolist() for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_TOGETHER", together)
        assert bands(words(texts)).tolist() == alone


def test_the_bands_are_the_same_everywhere():
    # they stand in caches: a change of these numbers is a change of format
    assert bands(words(["one two three four five six seven", "我"]))[:, 0].tolist() == [
        12522620877478958646,
        14354430806994842587,
    ]


def naive(rows: list[list[int]]) -> list[int]:
    """The first row that each row reaches over shared values."""
    first = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, left in enumerate(rows):
            for j, right in enumerate(rows):
                if first[i] > first[j] and any(a == b != 0 for a, b in zip(left, right, strict=True)):
                    first[i], changed = first[j], True
    return first


tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), max_size=24)
)


def table(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(len(rows), len(rows[0]) if rows else 2)


@given(tables, st.integers(0, 2))
def test_groups_are_the_rows_that_reach_each_other(rows, extra):
    every = table(rows)
    split = max(every.shape[1] - extra, 0)
    assert groups(every[:, :split], list(every[:, split:].T)).tolist() == naive(rows)


@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_only_the_names_of_groups(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    before, after = groups(table(rows)), groups(table([rows[i] for i in order]))
    together = [before[i] for i in order]
    both = set(zip(together, after.tolist(), strict=True))
    assert len(both) == len(set(together)) == len(set(after.tolist()))


def test_a_long_chain_is_one_group():
    # row i shares one value with row i - 1 and another with row i + 1
    count = 20_000
    chain = np.stack([np.arange(count) // 2 + 1, (np.arange(count) + 1) // 2 + 1], axis=1).astype(np.uint64)
    shuffled = chain[np.random.default_rng(0).permutation(count)]
    assert not groups(chain).any()
    assert not groups(shuffled).any()
