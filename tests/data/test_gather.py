"""Gathering: what a test set or a probe holds is not trained on, what belongs together stays together, counts hold."""

import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from films import film, jsonl, write_films
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.data import contamination
from ift.data import gather as gathering
from ift.data.gather import Gathered, _limited
from ift.data.selection import select
from ift.errors import IftError
from ift.spec import MixtureSpec, TaskRef
from ift.tasks.probes import Probe, ProbeItem

UPSTREAM = "{files: {train: train.jsonl, test: test.jsonl}}"


def gather(*files: Path, **changes: Any) -> Gathered:
    numbers: dict[str, Any] = {
        "train": None,
        "validation": 0,
        "test": 0,
        "balanced": False,
        "max_bad_rows": 0.0,
        "cache": files[0].parent / "cache",
        **changes,
    }
    return gathering.gather(select([TaskRef(file=str(file)) for file in files]), **numbers)


def plot(seed: int, count: int = 30) -> list[str]:
    """Words of which no two plots share one."""
    return [f"p{seed}w{place}" for place in range(count)]


def told(words: list[str], label: int = 0, **more: object) -> dict[str, object]:
    return {"text": " ".join(words), "label": label, **more}


def trained(gathered: Gathered, task: str = "films") -> set[str]:
    return {example.fields["text"] for example in gathered.splits[task]["train"]}


# ── limit ──


@settings(max_examples=20)
@given(st.integers(0, 30), st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_limit_chooses_by_content_alone(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int, order: random.Random
) -> None:
    folder = tmp_path_factory.getbasetemp()
    source = f"{{files: rows.jsonl, limit: {limit}}}"
    numbers = [*range(count), *range(0, count, 3), 99]
    first = gather(write_films(folder, source, rows=list(map(film, numbers))))
    order.shuffle(numbers)
    again = gather(write_films(folder, source, rows=[*map(film, numbers), "{broken"]), max_bad_rows=1)
    assert trained(first) == trained(again)
    assert first.sizes == {"films": min(limit, count + 1)}
    assert (first.rows, again.rows) == (len(numbers), len(numbers) + 1)


def test_the_limit_is_of_each_split_and_moves_with_the_seed(tmp_path: Path) -> None:
    source = "{files: {train: train.jsonl, test: test.jsonl}, limit: 10}"
    rows = {"train": [film(n) for n in range(100)], "test": [film(n) for n in range(100, 105)]}
    file = write_films(tmp_path, source, **rows)
    found = [gather(file, seed=seed, test=0.5).splits["films"] for seed in (0, 0, 1)]
    ids = [{part: set(pool.ids.tolist()) for part, pool in splits.items()} for splits in found]
    assert ids[0] == ids[1]
    assert {part: len(some) for part, some in ids[2].items()} == {"validation": 0, "test": 5, "train": 10}
    assert ids[0]["train"] != ids[2]["train"]


def test_it_says_which_task_it_is_about(tmp_path: Path) -> None:
    told = list[str]()
    gather(write_films(tmp_path, "{files: rows.jsonl}", rows=[film(1)]), status=told.append)
    assert told == ["fetching films", "reading the rows of films"]


def test_the_limit_of_a_large_task_takes_a_few_numbers_a_row() -> None:
    count = 200_000
    examples: Any = SimpleNamespace(ids=np.arange(count, dtype=np.uint64))
    tracemalloc.start()
    kept = _limited(examples, np.arange(count), 1000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 1000
    assert peak < 64 * count
    quarters = np.bincount(kept // (count // 4))  # and they are drawn from everywhere
    assert quarters.min() > 150


# ── what is tested is not trained on ──


def two_tasks(folder: Path, train: list[Any], test: list[Any]) -> tuple[Path, Path]:
    """One task that trains on these rows and one that is tested with those."""
    tested = write_films(
        folder,
        UPSTREAM.replace("train.jsonl", "other.jsonl"),
        name="tested",
        test=test,
        other=[told(plot(900))],
    )
    return write_films(folder, "{files: train.jsonl}", train=train), tested


@pytest.mark.parametrize(
    ("shared", "n", "kept"), [(12, 13, True), (13, 13, False), (5, 5, False), (30, 0, True)]
)
def test_what_another_tasks_test_set_holds_is_dropped_and_reported(
    tmp_path: Path, shared: int, n: int, kept: bool
) -> None:
    planted = [*plot(1), *plot(2)[8 : 8 + shared], *plot(3)]
    rows = [told(plot(4)), "{broken", told(planted), told(plot(5))]
    gathered = gather(*two_tasks(tmp_path, rows, [told(plot(2))]), test=5, decontaminate=n, max_bad_rows=1)
    every = {" ".join(words) for words in (plot(4), planted, plot(5))}
    assert trained(gathered) == (every if kept else every - {" ".join(planted)})
    assert gathered.dropped == (
        []
        if kept
        else [
            {
                "task": "films",
                "file": str(tmp_path / "train.jsonl"),
                "line": 3,
                "example": gathered.dropped[0]["example"],
                "kind": "contaminated",
                "reason": f"the test set of `tested` has these {n} words in a row: {' '.join(plot(2)[8 : 8 + n])}",
            }
        ]
    )


def test_a_short_row_that_asks_the_same_is_dropped(tmp_path: Path) -> None:
    files = two_tasks(tmp_path, [told(["Good?"], 1), told(["bad"])], [told(["good"])])
    gathered = gather(*files, test=5)
    assert trained(gathered) == {"bad"}
    [row] = gathered.dropped
    assert (row["line"], row["reason"]) == (1, "the test set of `tested` asks the same")
    assert trained(gather(*files, test=5, decontaminate=0)) == {"Good?", "bad"}


def test_a_probes_questions_are_dropped(tmp_path: Path) -> None:
    item = ProbeItem("1", " ".join(plot(2)), reference=" ".join(plot(3)))
    probe = Probe("heldback", "reference", "", "MIT", "en", None, (item,))
    rows = [told([*plot(4), *plot(2)[:13]]), told(plot(5)), told([*plot(3)[5:20], *plot(6)]), told(plot(2))]
    gathered = gather(write_films(tmp_path, rows=rows), probes=[probe])
    assert trained(gathered) == {" ".join(plot(5))}
    assert sorted((row["line"], row["reason"].partition(" has ")[0]) for row in gathered.dropped) == [
        (1, "the probe `heldback`"),
        (3, "the probe `heldback`"),
        (4, "the probe `heldback` asks the same"),
    ]


def test_a_replayed_tasks_test_set_is_no_test_set(tmp_path: Path) -> None:
    trained_, replayed = two_tasks(tmp_path, [told(plot(2)), told(plot(3))], [told(plot(2))])
    mixture = MixtureSpec.model_validate({"replay": {"tasks": [{"file": str(replayed)}], "share": 0.1}})
    chosen = select([TaskRef(file=str(trained_))], mixture)
    gathered = gathering.gather(
        chosen,
        cache=tmp_path / "cache",
        train=None,
        validation=0,
        test=0,
        balanced=False,
        max_bad_rows=0,
    )
    assert len(trained(gathered)) == 2


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = two_tasks(tmp_path, [told([*plot(1), *plot(2)]), told(plot(3))], [told(plot(2))])
    first = gather(*files, test=5)
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "decide", None)
        again = gather(*files, test=5)
    assert first.dropped == again.dropped
    assert len(first.dropped) == 1
    for found in tmp_path.rglob("found.json"):
        found.write_text("")  # cut by a power failure
    assert gather(*files, test=5).dropped == first.dropped
    assert all(found.read_text() for found in tmp_path.rglob("found.json"))


@pytest.mark.parametrize("train", [3, 4, 0.5])
def test_a_count_holds_where_enough_is_left(tmp_path: Path, train: float) -> None:
    probe = Probe(
        "p", "reference", "", "MIT", "en", None, tuple(ProbeItem(f"{n}", f"film {n}") for n in range(4))
    )
    file = write_films(tmp_path, rows=[film(n) for n in range(8)])
    gathered = gather(file, train=train, probes=[probe])
    assert gathered.sizes == {"films": 4 if train == 0.5 else train}
    assert len(gathered.dropped) == 4
    assert not trained(gathered) & {f"film {n}" for n in range(4)}


def test_a_count_that_does_not_hold_is_refused_and_among_many_tasks_taken_in_part(tmp_path: Path) -> None:
    probe = Probe(
        "p", "reference", "", "MIT", "en", None, tuple(ProbeItem(f"{n}", f"film {n}") for n in range(4))
    )
    file = write_films(tmp_path, rows=[film(n) for n in range(8)])
    with pytest.raises(IftError, match="5 examples are asked for"):
        gather(file, train=5, probes=[probe])
    other = write_films(
        tmp_path, "{files: others.jsonl}", name="others", others=[film(n) for n in range(10, 30)]
    )
    assert gather(file, other, train=5, probes=[probe]).sizes == {"films": 4, "others": 5}


# ── what belongs together ──


def pairs(count: int) -> list[dict[str, object]]:
    """Rows of 60 words, each twice: the second time with another last word."""
    rows = [[told(plot(n, 60)), told([*plot(n, 59), f"other{n}"], 1)] for n in range(count)]
    return [row for pair in rows for row in pair]


def test_near_duplicates_are_dropped_when_that_is_asked_for(tmp_path: Path) -> None:
    rows = pairs(6)
    file = write_films(tmp_path, rows=[*rows, told(plot(99, 60))])
    assert gather(file).sizes == {"films": 13}
    gathered = gather(file, deduplicate="near")
    assert gathered.sizes == {"films": 7}
    left = {str(row["text"]).split()[0] for row in rows} | {plot(99)[0]}
    assert {text.split()[0] for text in trained(gathered)} == left
    kept = {example.id: example for example in gathered.splits["films"]["train"]}
    for row in gathered.dropped:
        assert row["kind"] == "near duplicate"
        twin = kept[row["reason"].removeprefix("near duplicate of ")]
        assert twin.id < row["example"]  # the lowest hash stays, whatever the order of rows
        assert twin.fields["text"].split()[0] == str(rows[row["line"] - 1]["text"]).split()[0]


@pytest.mark.parametrize("test", [3, 0.25, 0.5])
def test_near_duplicates_are_on_one_side(tmp_path: Path, test: float) -> None:
    gathered = gather(write_films(tmp_path, rows=pairs(20)), test=test, validation=4, decontaminate=0)
    sides = [
        {example.fields["text"].split()[0] for example in gathered.splits["films"][part]}
        for part in ("test", "validation", "train")
    ]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert all(sides)


def test_a_declared_group_is_on_one_side_and_its_rows_are_no_duplicates(tmp_path: Path) -> None:
    rows = [told(plot(n), by=f"author {n % 10}") for n in range(60)]
    file = write_films(tmp_path, more="group: by", rows=rows)
    author = {str(row["text"]): str(row["by"]) for row in rows}
    for changes in ({}, {"deduplicate": "near"}):
        gathered = gather(file, test=5, validation=5, **changes)
        sides = [
            {author[example.fields["text"]] for example in gathered.splits["films"][part]}
            for part in ("test", "validation", "train")
        ]
        assert sum(map(len, sides)) == len(set().union(*sides))
        left = {text for text, by in author.items() if by in sides[2]}
        assert trained(gathered) == left  # all of those whose author is not tested
        assert {row["kind"] for row in gathered.dropped} == {"of a tested group"}
        assert len(gathered.dropped) == 60 - 10 - len(left)


def test_rows_that_share_a_preamble_by_the_dozen_are_no_duplicates(tmp_path: Path) -> None:
    preamble = plot(0, 200)
    file = write_films(tmp_path, rows=[told([*preamble, f"film{n}"], n % 2) for n in range(60)])
    gathered = gather(file, deduplicate="near")
    assert gathered.sizes == {"films": 60}
    assert any("rows are nearly alike" in note for note in gathered.notes)


def test_exact_duplicates_are_listed(tmp_path: Path) -> None:
    file = write_films(tmp_path, rows=[film(1), film(2), film(1)])
    gathered = gather(file)
    assert gathered.sizes == {"films": 2}
    assert [row["line"] for row in gathered.examples["films"].twins] == [3]
    assert jsonl(gathered.examples["films"].twins).count("example") == 1
