"""Tables with bars: confusion matrices, lengths, the mixture."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_pages import mixed, prediction
from sklearn.metrics import confusion_matrix

from ift.tracking import tables

CLASSES = ["cat", "dog", "eel"]
LENGTHS = st.dictionaries(st.integers(1, 5_000), st.integers(1, 50), min_size=1, max_size=20)


def classified(labels: list[str], base: list[str], tuned: list[str]) -> list[Any]:
    sides = [
        [
            prediction("pets", i, task_kind="classification", label=label, predicted=predicted)
            for i, (label, predicted) in enumerate(zip(labels, side, strict=True))
        ]
        for side in (base, tuned)
    ]
    return list(zip(*sides, strict=True))


@given(st.lists(st.tuples(*[st.sampled_from(CLASSES)] * 3), min_size=1, max_size=30))
def test_a_matrix_counts_as_scikit_learn_does(items: list[tuple[str, str, str]]) -> None:
    labels, *sides = (list(column) for column in zip(*items, strict=True))
    (matrix,) = tables.confusions(classified(labels, *sides))
    known = sorted(set(labels))
    for side, predicted in zip(matrix["sides"], sides, strict=True):
        counts = [[cell["count"] for cell in row["cells"]] for row in side["rows"]]
        wanted = confusion_matrix(labels, predicted, labels=[*known, "none of them"])
        assert [row[: len(known)] for row in counts] == wanted[: len(known), : len(known)].tolist()
        assert sum(map(sum, counts)) == len(items)  # what is no class stands in the last column
        assert side["right"] == sum(a == b for a, b in zip(labels, predicted, strict=True))
        for row in side["rows"]:
            assert sum(cell["share"] for cell in row["cells"]) == pytest.approx(1.0)
    assert matrix["columns"] == [
        *known,
        *(["others"] if any(set(side) - set(known) for side in sides) else []),
    ]


def test_rare_classes_stand_together() -> None:
    labels = [f"class {i:02}" for i in range(30) for _ in range(2 if i < 11 else 1)]
    (matrix,) = tables.confusions(classified(labels, labels, labels))
    assert matrix["others"] == 19
    assert len(matrix["columns"]) == tables.CLASSES
    assert matrix["columns"][-1] == matrix["sides"][0]["rows"][-1]["label"] == "others"
    assert matrix["sides"][0]["rows"][-1]["cells"][-1]["count"] == 19
    assert matrix["sides"][1]["right"] == len(labels)


def test_only_classifications_have_a_matrix() -> None:
    assert tables.confusions([(prediction("lists", 0), prediction("lists", 0))]) == []


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20))
def test_every_written_answer_is_in_one_bar(words: list[tuple[int, int]]) -> None:
    pairs = [
        tuple(prediction("lists", i, output="word " * n) for n in lengths) for i, lengths in enumerate(words)
    ]
    (group,) = tables.answer_lengths(pairs)  # type: ignore[arg-type]
    assert [sum(bar["counts"][side] for bar in group["bars"]) for side in (0, 1)] == [len(words)] * 2
    assert max(share for bar in group["bars"] for share in bar["shares"]) == 1.0
    assert any(group["bars"][-1]["counts"])


def test_words_of_tasks_and_probes_stand_apart_and_choices_are_none() -> None:
    def one(suite: str, kind: str, base: str, tuned: str) -> Any:
        return tuple(prediction("x", 0, suite=suite, kind=kind, output=output) for output in (base, tuned))

    found = tables.answer_lengths(
        [
            one("probe", "generation", "a b c", "a"),
            one("task", "generation", "", "a b"),
            one("task", "multiple_choice", "a", "b"),
        ]
    )
    assert [(group["title"], group["items"], group["medians"]) for group in found] == [
        ("Tasks", 1, (0, 2)),
        ("Probes", 1, (3, 1)),
    ]
    assert [bar["label"] for bar in found[1]["bars"]] == ["no word", "1", "2", "3 to 4"]


@given(st.dictionaries(st.text(max_size=3), LENGTHS, min_size=1, max_size=3))
def test_every_instruction_is_in_one_bar(lengths: dict[str, dict[int, int]]) -> None:
    found = tables.stream_lengths(lengths)
    total = sum(sum(of_task.values()) for of_task in lengths.values())
    assert sum(bar["count"] for bar in found["bars"]) == found["total"] == total
    assert sum(bar["share"] for bar in found["bars"]) == pytest.approx(1.0)
    assert len(found["bars"]) <= tables.BARS
    for name, of_task in lengths.items():
        every = sorted(n for n, count in of_task.items() for _ in range(count))
        summed = found["tasks"][name]
        assert (summed["median"], summed["longest"]) == (every[(len(every) - 1) // 2], every[-1])


def test_a_mixture_is_told_in_shares_of_all() -> None:
    rows = [mixed("small", 10, 9, 100, 10), mixed("large", 30, 31, 900, 10)]
    found = tables.mixture({"mixture": rows}, {"large": {"median": 29}})
    assert [row["task"] for row in found["rows"]] == ["large", "small"]
    assert found["rows"][0]["asked"] == {"count": 30.0, "share": 0.75}
    assert found["rows"][0]["instructions"]["share"] == 31 / 40
    assert found["rows"][0]["tokens"]["share"] == 0.9
    assert found["rows"][0]["lengths"] == {"median": 29}
    many = tables.mixture({"mixture": [mixed(f"t{i}", i + 1, 1, 1, 1) for i in range(96)]}, {})
    assert (len(many["rows"]), many["left_out"]) == (tables.TASKS, 96 - tables.TASKS)
    assert tables.mixture({}, {}) == {"rows": [], "left_out": 0}
    assert tables.mixture({"mixture": [{"task": "x"}]}, {})["rows"][0]["asked"]["share"] == 0.0
