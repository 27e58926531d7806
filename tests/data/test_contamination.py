import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.data import contamination
from ift.data.contamination import Drop, Hits, Tested, decide, phrase
from ift.data.shingles import spelled, words

Rows = list[list[str]]

Tested.__test__ = False  # for pytest: it holds no tests

QUESTION = (
    "A farmer has 17 sheep, and all but nine of them run away over the hill before noon; "
    "how many sheep are left in the field?"
)
STORY = (
    "It rained the whole night. In the morning the old lighthouse keeper climbed the stairs, counted the ships that "
    "had come in, and wrote their names into the book."
)


def hits(tested: Tested, rows: Rows, sizes: list[int] | None = None) -> Hits:
    """All hits in `rows`, read in batches of `sizes`."""
    parts, first = [], 0
    for size in sizes or [len(rows)]:
        batch = rows[first : first + size]
        found = words([field for row in batch for field in row])
        parts.append(tested.hits(found, [len(row) for row in batch], first))
        first += size
    return tested.joined(parts)


def drops(tested: Tested, rows: Rows, sizes: list[int] | None = None) -> list[Drop]:
    return decide(tested, hits(tested, rows, sizes))


def test_the_example_in_the_docstring():
    tested = Tested.of([("films", [["What a long, dull film it was.", "bad"]])], n=5)
    rows = [["nice"], ["He said: What a LONG dull film!", "I left"]]
    found = tested.hits(words([field for row in rows for field in row]), [len(row) for row in rows])
    assert decide(tested, found) == [Drop(row=1, test="films", at=2)]
    assert phrase(rows[1], 2, tested.n) == "what a long dull film"


def test_planted_questions_are_found_however_they_are_set():
    tested = Tested.of([("stories", [[STORY]]), ("sheep", [[QUESTION, "nine"]])])
    rows = [
        [
            "Tell me something.",
            "The keeper of the old lighthouse sat on the stairs. It rained the whole night, he wrote.",
        ],
        ["Riddle:\n" + QUESTION.upper().replace(" ", "\n"), "9"],
        ["Sum this up.", "“" + STORY.replace(",", " –").replace(".", "!?") + "” A story."],
        ["A farmer has 17 sheep, and all but nine of them run.", "nine"],  # twelve words and no more
        ["A farmer has 17 sheep, and all but nine of them run away!", "nine"],  # thirteen
    ]
    found = drops(tested, rows)
    assert found == [Drop(1, "sheep", 1), Drop(2, "stories", 3), Drop(4, "sheep", 0)]
    first = phrase(rows[1], 1, tested.n)
    assert first == "a farmer has 17 sheep and all but nine of them run away"
    assert len(spelled(first)) == tested.n


def test_words_in_a_row_do_not_span_fields():
    tested = Tested.of([("test", [["one two three", "four five six"]])], n=4)
    assert drops(tested, [["one two three four five"], ["zero three", "four five six"]]) == []
    tested = Tested.of([("test", [["one two three four five six"]])], n=4)
    assert drops(tested, [["one two", "three four five"]]) == []


def test_a_short_row_counts_only_as_a_whole():
    tested = Tested.of([("test", [["Great film!", "positive"], ["Dull.", "negative"]])])
    rows = [
        ["great film", "Positive"],
        ["a great film", "positive"],
        ["dull", "positive"],
        ["great", "film: positive."],
    ]
    assert drops(tested, rows) == [Drop(0, "test", None), Drop(3, "test", None)]


def test_rows_without_words_are_not_equal():
    assert drops(Tested.of([("test", [["..."], [], [""]])]), [["?"], [], ["", "!"]]) == []


def test_what_stands_in_more_than_ten_rows_is_boilerplate():
    preamble = "You are given a review of a film. Decide whether its writer liked the film or not."
    tested = Tested.of([("films", [[preamble, "It was long."]])])
    rows = [[f"{preamble} Review {i}: so so"] for i in range(11)]
    assert drops(tested, rows) == []
    assert drops(tested, rows[:10]) == [Drop(i, "films", 0) for i in range(10)]
    # words of a test row beside the preamble still count, and so do whole rows
    planted = Tested.of([("films", [[preamble, STORY]])])
    assert drops(planted, [*rows, [preamble, STORY]]) == [Drop(11, "films", None)]
    assert drops(planted, [*rows, [preamble, STORY, "x"]]) == [Drop(11, "films", len(spelled(preamble)))]
    assert len(drops(planted, [*rows, *[[preamble, STORY]] * 20])) == 20


def test_words_repeated_within_a_row_are_one_row():
    tested = Tested.of([("test", [[STORY]])])
    assert drops(tested, [[" ".join([STORY] * 30)]]) == [Drop(0, "test", 0)]


def test_a_preamble_in_every_row_leaves_few_hits():
    tested = Tested.of([("test", [[STORY]])])
    rows = [[STORY, str(i)] for i in range(500)]
    grams = len(spelled(STORY)) - 13 + 1
    assert len(hits(tested, rows).rows) == 11 * grams
    assert len(hits(tested, rows, [100] * 5).rows) == 11 * grams
    assert drops(tested, rows, [100] * 5) == []
    again = [[STORY]] * 500
    assert len(drops(tested, again, [100] * 5)) == 500


def naive(tests: list[tuple[str, Rows]], rows: Rows, n: int, max_rows: int) -> list[Drop]:
    """The drops, by tuples of words."""

    def grams(row: list[str]) -> list[tuple[int, tuple[str, ...]]]:
        found, at = [], 0
        for field in map(spelled, row):
            found += [(at + i, tuple(field[i : i + n])) for i in range(len(field) - n + 1)]
            at += len(field)
        return found

    def whole(row: list[str]) -> tuple[str, ...]:
        return tuple(word for field in row for word in spelled(field))

    result = []
    for number, row in enumerate(rows):
        equal = [name for name, rows_ in tests if whole(row) and whole(row) in map(whole, rows_)]
        if equal:
            result.append(Drop(number, equal[0], None))
            continue
        for at, gram in grams(row):
            names = [name for name, rows_ in tests if any(gram == own for r in rows_ for _, own in grams(r))]
            if names and sum(gram in [own for _, own in grams(r)] for r in rows) <= max_rows:
                result.append(Drop(number, names[0], at))
                break
    return result


# few words, so that much is shared
fields = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)
tables = st.lists(st.lists(fields, max_size=3), max_size=9)
test_sets = st.lists(tables, max_size=3).map(lambda sets: [(f"set {i}", rows) for i, rows in enumerate(sets)])


@given(test_sets, tables, st.integers(1, 4), st.integers(0, 4))
def test_the_drops_are_those_found_by_comparing_words(tests, rows, n, max_rows):
    assert drops(Tested.of(tests, n=n, max_rows=max_rows), rows) == naive(tests, rows, n, max_rows)


@given(test_sets, tables, st.data())
def test_batches_and_the_order_of_rows_change_nothing(tests, rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    sizes = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    tested = Tested.of(tests, n=2, max_rows=2)
    before = drops(tested, rows)
    after = drops(tested, [rows[i] for i in order], [*sizes, len(rows)])
    assert sorted((order[drop.row], drop.test, drop.at) for drop in after) == [
        (drop.row, drop.test, drop.at) for drop in before
    ]


@given(test_sets, st.data())
def test_the_digest_is_of_what_is_tested(tests, data):
    tested = Tested.of(tests, n=2)
    shuffled = [(name, data.draw(st.permutations(rows))) for name, rows in tests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BATCH", 2)
        assert Tested.of(((name, iter(rows)) for name, rows in shuffled), n=2).digest == tested.digest
    assert Tested.of([(name, rows * 2) for name, rows in tests], n=2).digest == tested.digest
    others = [
        Tested.of(tests, n=3),
        Tested.of(tests, n=2, max_rows=9),
        Tested.of([*tests, ("another", [])], n=2),
        Tested.of([*tests, ("another", [["new words here"]])], n=2),
        Tested.of([*tests, ("another", [["new words there"]])], n=2),
        Tested.of([*tests, ("another", [["new"]])], n=2),
        Tested.of([*tests, ("another", [["words"]])], n=2),
    ]
    assert len({tested.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_unrelated_texts_share_nothing_with_many_test_rows():
    rng = np.random.default_rng(0)

    def made(count: int) -> Rows:
        return [[" ".join(map(str, rng.integers(0, 1000, 60)))] for _ in range(count)]

    tests, rows = made(2000), made(2000)
    tested = Tested.of([("first", tests[:1000]), ("second", tests[1000:])])
    assert len(hits(tested, rows).rows) == 0
    assert len(hits(tested, tests).rows) == 2000 * (60 - 13 + 1) + 2000
    strange = np.random.default_rng(1).integers(1, 2**64, 100_000, np.uint64)
    assert contamination._through(tested.sieve, strange).mean() < 1 / 16
    rows[7] = ["so: " + " ".join(tests[3][0].split()[20:33])]
    rows[9] = ["so: " + " ".join(tests[1500][0].split()[40:])]
    assert drops(tested, rows) == [Drop(7, "first", 1), Drop(9, "second", 1)]
