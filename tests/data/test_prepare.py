"""The prepare stage: a pure function of rows and seed, every example once an epoch, nothing tested trained on.

Most tests word and tokenize in this process; the slow ones let Ray Data do it and compare.
"""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, write_task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ift import cluster, storage
from ift.data import cache as caches
from ift.data import gather as gathering
from ift.data import prepare, stream
from ift.data.draws import Draws
from ift.data.gather import Gathered
from ift.data.selection import select
from ift.data.stream import Pack, Stream
from ift.data.tokens import Tokens
from ift.data.wording import Limits
from ift.errors import IftError
from ift.spec import TaskRef
from ift.tasks import probes

SPLIT = {"train": 40, "validation": 8, "test": 10}
LABELS = ("negative", "positive")


def gather(
    *files: Path,
    max_bad_rows: float = 0.01,
    balanced: bool = True,
    more: Mapping[str, Any] | None = None,
    **split: float | None,
) -> Gathered:
    chosen = select([TaskRef(file=str(file)) for file in files])
    return gathering.gather(
        chosen,
        **{
            "cache": files[0].parent / "cache",
            "balanced": balanced,
            "max_bad_rows": max_bad_rows,
            **SPLIT,
            **split,
            **(more or {}),
        },
    )


def build(
    folder: Path, gathered: Gathered, model: Path, *, max_length: int = 256, **changes: Any
) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "cache": folder.parent / "cache",
        "packing": True,
        "epochs": 2,
        "seed": 17,
        "test_limit": None,
        **changes,
    }
    found = probes.load_probes(["copying"])
    return prepare.build(folder, gathered, found, model_dir=model, limits=Limits(max_length), **numbers)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what Ray Data would be given."""

    def mapped(
        work: Callable[..., Any], parts: Sequence[Any], settings: Mapping[str, Any], _: Sequence[int]
    ) -> Iterator[Any]:
        for part in parts:
            yield work(pickle.loads(pickle.dumps(part)), **settings)

    monkeypatch.setattr(prepare, "_mapped", mapped)


def packs_of(folder: Path, manifest: dict[str, Any], part: str = "stream") -> list[Pack]:
    count = manifest["packs"] if part == "stream" else manifest["validation"]["packs"]
    return Stream(folder / part).read(range(count))


def documents(packs: Sequence[Pack]) -> Iterator[tuple[int, str, str, list[int], list[bool]]]:
    """Epoch, example, template, tokens and marks of every document, in order."""
    for pack in packs:
        start = 0
        for length, example, template in zip(pack.lengths, pack.examples, pack.templates, strict=True):
            end = start + length
            yield pack.epoch, example, template, pack.tokens[start:end], pack.supervised[start:end]
            start = end


# --- gather ---------------------------------------------------------------------------------------------------


def test_rows_are_split_as_asked(tmp_path: Path) -> None:
    gathered = gather(write_task(tmp_path))
    splits = gathered.splits["films"]
    assert {name: len(part) for name, part in splits.items()} == SPLIT
    for part in splits.values():
        counts = Counter(e.label for e in part)
        assert counts["negative"] == counts["positive"]
    assert (gathered.rows, gathered.bad, gathered.dropped) == (60, 0, [])
    assert gathered.examples["films"].twins == []


def test_one_task_twice_is_refused(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    with pytest.raises(IftError, match="the task `films` stands in `tasks` twice"):
        gather(file, file)


def test_broken_rows_below_the_threshold_are_set_aside(tmp_path: Path) -> None:
    gathered = gather(write_task(tmp_path, broken=3), max_bad_rows=0.05)
    assert gathered.rows == 63
    assert gathered.bad == 3
    assert gathered.examples["films"].bad.first == {
        "task": "films",
        "file": str(tmp_path / "rows.jsonl"),
        "line": 1,
        "reason": "not JSON: Expecting property name enclosed in double quotes at column 2",
        "text": "{broken",
    }
    assert {name: len(part) for name, part in gathered.splits["films"].items()} == SPLIT


def test_broken_rows_over_the_threshold_stop_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(IftError) as caught:
        gather(write_task(tmp_path, broken=3), max_bad_rows=0.04)
    assert str(caught.value) == (
        f"{tmp_path}/rows.jsonl:1: 3 of 63 rows of `films` are bad (4.8%): "
        "not JSON: Expecting property name enclosed in double quotes at column 2 (3)\n"
        "  wanted: at most 4.0% (data.max_bad_rows)\n"
        "  next:   mend the file, its task's `fields` or its templates, or raise data.max_bad_rows"
    )


def test_the_faults_of_all_tasks_are_told_at_once(tmp_path: Path) -> None:
    files = [write_task(tmp_path, name=name) for name in ("one", "two", "three")]
    for file in files[:2]:
        file.write_text(file.read_text(encoding="utf-8").replace("rows.jsonl", f"{file.stem}.jsonl"))
    with pytest.raises(IftError) as caught:
        gather(*files)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 tasks cannot be used:"
    assert [line for line in lines if "no data file" in line] == [
        f"no data file {tmp_path}/one.jsonl",
        f"no data file {tmp_path}/two.jsonl",
    ]


def upstream(folder: Path, train: int, test: int) -> Path:
    file = write_task(folder)
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:train]), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(lines[train : train + test]), encoding="utf-8")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("rows.jsonl", "{train: train.jsonl, test: test.jsonl}"), encoding="utf-8")
    return file


@pytest.mark.parametrize(("asked", "count"), [(0.05, 14), (0, 0), (1, 1), (6, 6), (99, 14)])
def test_a_test_set_of_the_source_is_used_whole_or_up_to_a_count(
    tmp_path: Path, asked: float, count: int
) -> None:
    gathered = gather(upstream(tmp_path, 40, 14), train=None, validation=0.1, test=asked, balanced=False)
    sizes = {name: len(part) for name, part in gathered.splits["films"].items()}
    assert sizes == {"train": 36, "validation": 4, "test": count}


def test_a_count_that_suits_large_tasks_leaves_small_ones_some(tmp_path: Path) -> None:
    small = write_task(tmp_path, name="small")
    (tmp_path / "rows.jsonl").rename(tmp_path / "few.jsonl")
    small.write_text(small.read_text(encoding="utf-8").replace("rows.jsonl", "few.jsonl"), encoding="utf-8")
    large = write_task(tmp_path, rows=300)
    gathered = gather(
        small, large, train=None, validation=20, test=20, balanced=False, more={"decontaminate": 0}
    )
    sizes = {name: [len(part) for part in splits.values()] for name, splits in gathered.splits.items()}
    assert sizes == {"small": [12, 12, 36], "films": [20, 20, 260]}
    with pytest.raises(IftError, match="70 examples are asked for"):
        gather(small, validation=70, balanced=False)


def test_a_source_without_training_rows_is_refused(tmp_path: Path) -> None:
    file = upstream(tmp_path, 40, 14)
    file.write_text(file.read_text(encoding="utf-8").replace("train: train.jsonl, ", ""), encoding="utf-8")
    with pytest.raises(IftError, match="the task `films` has no training example"):
        gather(file)


# --- build ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_the_stream_holds_every_example_once_an_epoch(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    manifest = build(tmp_path / "p", gathered, tiny_model, epochs=3)
    packs = packs_of(tmp_path / "p", manifest)
    train = sorted(e.id for e in gathered.splits["films"]["train"])
    assert len(train) == 40
    for epoch in range(3):
        assert sorted(e for p in packs if p.epoch == epoch for e in p.examples) == train
    assert [p.epoch for p in packs] == sorted(p.epoch for p in packs)
    assert manifest["epoch_ends"] == [sum(p.epoch <= epoch for p in packs) for epoch in range(3)]
    assert all(len(p.tokens) <= 256 for p in packs)
    assert manifest["documents"] == sum(manifest["templates"].values()) == 3 * len(train)
    assert manifest["tasks"] == {"films": 3 * len(train)}
    assert manifest["examples"] == len(train)
    assert manifest["fill"] == manifest["tokens"] / (256 * len(packs)) > 0.8
    assert manifest["licenses"] == {"films": "Apache-2.0"}


@pytest.mark.usefixtures("here")
def test_nothing_that_is_tested_is_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    manifest = build(tmp_path / "p", gathered, tiny_model)
    trained = {e for p in packs_of(tmp_path / "p", manifest) for e in p.examples}
    watched = {e for p in packs_of(tmp_path / "p", manifest, "validation") for e in p.examples}
    items = storage.read_jsonl(tmp_path / "p" / "items.jsonl")
    tested = {item["id"] for item in items if item["suite"] == "task"}
    assert (len(trained), len(watched), len(tested)) == (40, 8, 10)
    assert not trained & watched
    assert not (trained | watched) & tested


@pytest.mark.usefixtures("here")
def test_what_is_supervised_is_the_label(tmp_path: Path, tiny_model: Path, tiny_tokenizer: Any) -> None:
    gathered = gather(write_task(tmp_path))
    manifest = build(tmp_path / "p", gathered, tiny_model)
    examples = {e.id: e for part in gathered.splits["films"].values() for e in part}
    count = 0
    for part in ("stream", "validation"):
        for _, name, _, tokens, marks in documents(packs_of(tmp_path / "p", manifest, part)):
            start = marks.index(True)
            assert all(marks[start:])
            assert tiny_tokenizer.decode(tokens[start:]) == f"{examples[name].label}<|im_end|>"
            prompt = tiny_tokenizer.decode(tokens[:start])
            assert prompt.startswith("<|im_start|>user\n")
            assert examples[name].fields["text"] in prompt
            assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
            count += 1
    assert count == 2 * 40 + 8


@pytest.mark.usefixtures("here")
def test_epochs_word_the_same_example_differently(tmp_path: Path, tiny_model: Path) -> None:
    manifest = build(tmp_path / "p", gather(write_task(tmp_path)), tiny_model, epochs=6)
    wordings: dict[str, set[str]] = {}
    orders: dict[int, list[str]] = {}
    for epoch, example, template, *_ in documents(packs_of(tmp_path / "p", manifest)):
        wordings.setdefault(example, set()).add(template)
        orders.setdefault(epoch, []).append(example)
    # with two templates and six epochs, one in 32 examples sees a single one
    assert sum(len(seen) == 2 for seen in wordings.values()) >= 34
    assert len({tuple(order) for order in orders.values()}) == 6
    counts = Counter(manifest["templates"])
    assert set(counts) == {"films/ask", "films/classify"}
    assert abs(counts["films/ask"] - 120) < 5 * 7.75  # five standard deviations of 240 fair coins


@pytest.mark.usefixtures("here")
def test_the_stream_is_a_function_of_content_and_seed(tmp_path: Path, tiny_model: Path) -> None:
    file = write_task(tmp_path)
    one = build(tmp_path / "1", gather(file), tiny_model)
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(rows)
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, rows[0]]), encoding="utf-8")
    again = build(tmp_path / "2", gather(file), tiny_model)
    assert again.pop("rows") == 61
    assert again.pop("duplicates") == 1
    assert again.pop("inputs")["films"]["rows"] == 61
    assert again.pop("dropped") == {"films": {"exact duplicate": 1}}
    assert again == {key: value for key, value in one.items() if key in again}
    assert (tmp_path / "1/items.jsonl").read_bytes() == (tmp_path / "2/items.jsonl").read_bytes()
    assert build(tmp_path / "3", gather(file), tiny_model, seed=18)["hash"] != one["hash"]


@pytest.mark.usefixtures("here")
def test_the_seed_decides_the_order_and_not_the_examples(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    one = build(tmp_path / "1", gathered, tiny_model, packing=False, epochs=1)
    other = build(tmp_path / "3", gathered, tiny_model, packing=False, epochs=1, seed=18)
    orders = [
        [e for p in packs_of(tmp_path / n, m) for e in p.examples] for n, m in (("1", one), ("3", other))
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.usefixtures("here")
def test_more_epochs_leave_the_first_ones_as_they_were(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    one = packs_of(tmp_path / "1", build(tmp_path / "1", gathered, tiny_model, epochs=1))
    three = packs_of(tmp_path / "3", build(tmp_path / "3", gathered, tiny_model, epochs=3))
    assert three[: len(one)] == one


@pytest.mark.usefixtures("here")
def test_without_packing_each_document_is_a_row(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    manifest = build(tmp_path / "p", gathered, tiny_model, packing=False, epochs=1)
    packs = packs_of(tmp_path / "p", manifest)
    assert [len(p.lengths) for p in packs] == [1] * 40
    packed = build(tmp_path / "q", gathered, tiny_model, epochs=1)
    assert packed["packs"] < 20
    assert (packed["tokens"], packed["supervised_tokens"]) == (
        manifest["tokens"],
        manifest["supervised_tokens"],
    )


@pytest.mark.usefixtures("here")
def test_items_hold_every_answer_and_the_right_one(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    manifest = build(tmp_path / "p", gathered, tiny_model, test_limit=7)
    items = storage.read_jsonl(tmp_path / "p" / "items.jsonl")
    tested = [item for item in items if item["suite"] == "task"]
    assert manifest["items"] == {"films": 7, "copying": len(items) - 7}
    labels = {e.id: e.label for e in gathered.splits["films"]["test"]}
    for item in tested:
        assert (item["kind"], item["choices"]) == ("multiple_choice", list(LABELS))
        assert item["choices"][item["answer"]] == item["reference"] == labels[item["id"]]
        assert labels[item["id"]] not in item["prompt"].replace("positive or negative?", "")


@pytest.mark.usefixtures("here")
def test_a_generation_is_asked_openly(tmp_path: Path, tiny_model: Path) -> None:
    file = write_task(tmp_path)
    text = (
        file.read_text(encoding="utf-8")
        .replace("classification", "generation")
        .replace("accuracy", "exact_match")
    )
    file.write_text("".join(x for x in text.splitlines(True) if "choices" not in x), encoding="utf-8")
    build(tmp_path / "p", gather(file, balanced=False), tiny_model)
    item = storage.read_jsonl(tmp_path / "p" / "items.jsonl")[0]
    assert (item["kind"], item["choices"], item["answer"]) == ("generation", [], None)
    assert item["reference"] in ("0", "1")
    assert item["max_new_tokens"] == 64


def long_rows(folder: Path, count: int, broken: int = 0) -> Path:
    """60 reviews and some that are far over any limit."""
    file = write_task(folder, broken=broken)
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as rows:
        for i in range(count):
            text = " ".join(random.Random(i).choices(WORDS, k=300))
            rows.write(json.dumps({"text": f"{i} {text}", "label": i % 2}) + "\n")
    return file


@pytest.mark.usefixtures("here")
def test_what_cannot_be_trained_on_is_set_aside_with_its_reason(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(
        long_rows(tmp_path, 4, broken=1), max_bad_rows=0.2, train=None, validation=4, test=0, balanced=False
    )
    manifest = build(tmp_path / "p", gathered, tiny_model, epochs=1)
    first, *rows = storage.read_jsonl(tmp_path / "p" / "quarantine.jsonl")
    assert (first["line"], first["text"]) == (1, "{broken")
    assert sorted(row["line"] for row in rows) == [62, 63, 64, 65]
    assert manifest["too_long"] == 4
    assert manifest["quarantined"] == 5
    ids = {e.id for part in gathered.splits["films"].values() for e in part}
    for row in rows:
        assert row["reason"].endswith("tokens, over data.max_length 256")
        assert row["example"] in ids
        assert row["text"].startswith('{"text": "')
    seen = {
        e
        for part in ("stream", "validation")
        for p in packs_of(tmp_path / "p", manifest, part)
        for e in p.examples
    }
    assert seen == ids - {row["example"] for row in rows}


@pytest.mark.usefixtures("here")
def test_faulty_instructions_over_the_threshold_stop_the_run(tmp_path: Path, tiny_model: Path) -> None:
    file = write_task(tmp_path)
    text = file.read_text(encoding="utf-8").replace("{{ text }}", "{{ text.split('good')[1] }}")
    file.write_text(text, encoding="utf-8")
    gathered = gather(file)
    with pytest.raises(IftError) as caught:
        build(tmp_path / "p", gathered, tiny_model, epochs=1)
    message = str(caught.value)
    assert re.match(
        rf"{tmp_path}/rows.jsonl:\d+: \d+ of 48 rows of `films` are bad \(\d\d\.\d%\): "
        r"template `(ask|classify)`, prompt: ",
        message,
    )
    assert f"(all are listed in {tmp_path}/p/quarantine.jsonl)" in message
    assert len(storage.read_jsonl(tmp_path / "p" / "quarantine.jsonl")) >= 24


@pytest.mark.usefixtures("here")
def test_what_cannot_be_trained_on_is_told_once_and_not_once_an_epoch(
    tmp_path: Path, tiny_model: Path
) -> None:
    file = chats(tmp_path)
    with (tmp_path / "chats.jsonl").open("a", encoding="utf-8") as rows:
        long = [{"role": ("user", "assistant")[i % 2], "content": "good film " * 9} for i in range(40)]
        rows.write("\n" + json.dumps({"messages": long[:1]}) + "\n" + json.dumps({"messages": long}))
    split = {"train": None, "validation": 0, "test": 0}
    gathered = gather(file, max_bad_rows=0.08, balanced=False, **split)
    manifest = build(tmp_path / "p", gathered, tiny_model, epochs=3)
    [row] = storage.read_jsonl(tmp_path / "p" / "quarantine.jsonl")
    assert row["line"] == 13
    assert (manifest["quarantined"], sum(manifest["reasons"].values())) == (1, 1)
    assert manifest["cut"] == 3  # the long one keeps what fits, each time that it is seen
    gathered = gather(file, max_bad_rows=0.07, balanced=False, **split)
    with pytest.raises(IftError, match="1 of 14 rows of `chats` are bad"):
        build(tmp_path / "q", gathered, tiny_model, epochs=3)


@pytest.mark.usefixtures("here")
def test_nothing_left_stops_the_run_and_says_why(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path))
    with pytest.raises(IftError) as caught:
        build(tmp_path / "p", gathered, tiny_model, max_length=16, epochs=1)
    assert str(caught.value) == (
        "no instruction is left to train on: 48 of 48 are over data.max_length 16\n"
        f"  next:   raise data.max_length; the reasons, one a row, are in {tmp_path}/p/quarantine.jsonl"
    )


def test_a_field_that_no_row_has_stops_the_run_before_a_cluster_starts(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("{{ text }}", "{{ txet }}"), encoding="utf-8")
    with pytest.raises(IftError, match=r"rows.jsonl:1: .*no column `txet`; the row has text, label"):
        gather(file)


# --- the cache ------------------------------------------------------------------------------------------------


def chats(folder: Path, rows: int = 12) -> Path:
    """A task of conversations: one wording, so that every pass reads the same."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"film {i} ?"},
                {"role": "assistant", "content": f"good {i}"},
            ]
        }
        for i in range(rows)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    path = folder / "chats.yaml"
    path.write_text("name: chats\nkind: chat\nlicense: MIT\nsource: {files: chats.jsonl}\n", encoding="utf-8")
    return path


@pytest.mark.usefixtures("here")
def test_only_what_is_new_is_worded(tmp_path: Path, tiny_model: Path) -> None:
    file, numbers = write_task(tmp_path), iter(range(99))

    def fresh(*files: Path, more: Mapping[str, Any] | None = None, **changes: Any) -> int:
        gathered = gather(*files, more=more)
        manifest = build(tmp_path / str(next(numbers)), gathered, tiny_model, **changes)
        return int(manifest["fresh"])

    assert fresh(file) == 8 + 2 * 40
    assert fresh(file) == 0
    assert fresh(file, seed=18) == 0
    assert fresh(file, epochs=1) == 0
    assert fresh(file, packing=False) == 0
    assert fresh(file, epochs=3) == 40
    assert (
        fresh(file, more={"train": 44, "test": 6}, epochs=3) == 4 + 3 * 4
    )  # four more validate, four more train
    assert fresh(file, draws=Draws(size=20)) == 0
    assert fresh(file, draws=Draws(few_shot=1.0)) == 2 * 40
    assert fresh(file, seed=19, draws=Draws(few_shot=1.0)) == 0
    # another task beside it, and its weight in the mixture
    other = chats(tmp_path)
    unbalanced = {"train": None, "validation": 2, "test": 0, "balanced": False}
    assert fresh(other, more=unbalanced) == 2 + 10
    assert fresh(other, more=unbalanced, epochs=5, seed=9) == 0
    assert fresh(other, more=unbalanced, epochs=2, draws=Draws(size=55)) == 0


@pytest.mark.usefixtures("here")
def test_the_cache_has_its_folders_before_anybody_looks(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a look at a folder that is not there is remembered for longer than others take to fill it."""
    looked = list[bool]()

    def tokens_of(folder: Path) -> Tokens:
        looked.append(folder.is_dir())
        return Tokens(folder)

    monkeypatch.setattr(prepare, "Tokens", tokens_of)
    build(tmp_path / "p", gather(write_task(tmp_path)), tiny_model)
    assert len(looked) >= 2
    assert all(looked)


def add_a_row(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as rows:
        rows.write(json.dumps({"text": "another film", "label": 1}))


def reword(folder: Path) -> None:
    path = folder / "films.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("Is this review", "Is it"), encoding="utf-8")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("edit", [add_a_row, reword])
def test_an_edit_makes_that_tasks_words_anew_and_no_others(
    tmp_path: Path, tiny_model: Path, edit: Callable[[Path], None]
) -> None:
    files = [write_task(tmp_path), chats(tmp_path)]
    numbers: dict[str, Any] = {"train": 40, "validation": 0, "test": 0, "balanced": False}
    first = build(tmp_path / "1", gather(*files, more=numbers), tiny_model, epochs=1)
    edit(tmp_path)
    second = build(tmp_path / "2", gather(*files, more=numbers), tiny_model, epochs=1)
    assert first["fresh"] == 40 + 12
    assert second["fresh"] == 40


@pytest.mark.usefixtures("here")
def test_another_tokenizer_length_or_code_makes_all_anew(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = gather(write_task(tmp_path))
    build(tmp_path / "1", gathered, tiny_model)
    assert build(tmp_path / "2", gathered, tiny_model, max_length=255)["fresh"] == 88
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    assert build(tmp_path / "3", gathered, other)["fresh"] == 0  # the same tokenizer elsewhere
    (other / "model.safetensors").write_bytes(b"other weights")
    assert build(tmp_path / "4", gathered, other)["fresh"] == 0
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert build(tmp_path / "5", gathered, other)["fresh"] == 88
    (other / "qwen.tiktoken").write_bytes(b"IQ== 0")
    assert build(tmp_path / "6", gathered, other)["fresh"] == 88
    monkeypatch.setattr(caches, "code_version", lambda: "another")
    assert build(tmp_path / "7", gathered, tiny_model)["fresh"] == 88


def test_an_adapter_without_a_tokenizer_tokenizes_as_its_base(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny_model)}), encoding="utf-8"
    )
    assert prepare.tokenizer_files(tmp_path) == prepare.tokenizer_files(tiny_model)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("few_shot", [0.0, 0.5])
def test_what_is_made_together_or_was_made_before_changes_no_byte(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, few_shot: float
) -> None:
    gathered = gather(long_rows(tmp_path, 3), max_bad_rows=0.5)
    changes: dict[str, Any] = {"draws": Draws(few_shot=few_shot)}
    wanted = build(tmp_path / "1", gathered, tiny_model, **changes)
    wanted.pop("fresh")
    for number, block in enumerate((1, 7, 33), 2):
        monkeypatch.setattr(prepare, "_REQUESTS_A_BLOCK", block)
        own: dict[str, Any] = {**changes, "cache": tmp_path / f"cache{number}"}
        if block == 7:  # some of it is there already, in other blocks and under another seed
            build(tmp_path / "before", gathered, tiny_model, **{**own, "epochs": 1, "seed": 3})
        found = build(tmp_path / str(number), gathered, tiny_model, **own)
        assert found.pop("fresh") > 0
        assert found == wanted
        assert content_of(tmp_path / str(number)) == content_of(tmp_path / "1")


@pytest.mark.usefixtures("here")
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(per_shard=st.integers(1, 9), per_group=st.integers(1, 9))
def test_the_size_of_a_shard_changes_no_pack(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, per_shard: int, per_group: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "sizes"
    folder.mkdir(exist_ok=True)
    gathered = gather(write_task(folder))
    wanted = build(folder / "1", gathered, tiny_model)
    packs = packs_of(folder / "1", wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PACKS_PER_SHARD", per_shard)
        patch.setattr(stream, "PACKS_PER_GROUP", per_group)
        found = build(folder / "2", gathered, tiny_model)
        assert found["hash"] == wanted["hash"]
        assert len(found["shards"]) == -(-len(packs) // per_shard)
        assert packs_of(folder / "2", found) == packs
        reader = Stream(folder / "2" / "stream")
        assert [reader.read([number])[0] for number in reversed(range(len(packs)))] == packs[::-1]


@pytest.mark.usefixtures("here")
def test_dropped_rows_are_listed_with_their_reason(tmp_path: Path, tiny_model: Path) -> None:
    file = write_task(tmp_path)
    found = probes.load_probes(["copying"])[0]
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as rows:
        for text in ("film 3 was good and very good", found.items[0].prompt):
            rows.write(json.dumps({"text": text, "label": 1}) + "\n")
    gathered = gather(file, more={"train": None, "balanced": False, "probes": [found]})
    manifest = build(tmp_path / "p", gathered, tiny_model)
    listed = storage.read_jsonl(tmp_path / "p" / "dropped.jsonl")
    assert [(row["line"], row["reason"]) for row in listed] == [
        (61, "exact duplicate"),
        (62, "the probe `copying` asks the same"),
    ]
    assert manifest["dropped"] == {"films": {"exact duplicate": 1, "contaminated": 1}}
    assert found.items[0].prompt not in {e.fields["text"] for e in gathered.splits["films"]["train"]}


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.usefixtures("here")
def test_a_run_that_dies_anywhere_and_starts_again_writes_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_task(tmp_path)
    monkeypatch.setattr(prepare, "_REQUESTS_A_BLOCK", 20)
    monkeypatch.setattr(stream, "PACKS_PER_SHARD", 5)

    def run(folder: Path) -> dict[str, Any]:
        gathered = gather(file, more={"cache": folder / "cache"})
        return build(folder / "p", gathered, tiny_model, cache=folder / "cache")

    wanted = run(tmp_path / "whole")
    wanted.pop("fresh")
    real = {name: getattr(os, name) for name in ("replace", "rename")}
    died = 0
    for at in range(99):
        calls = iter(range(at))

        def dying(name: str, *arguments: Any, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise Killed
            real[name](*arguments)

        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", partial(dying, "replace"))
            patch.setattr(os, "rename", partial(dying, "rename"))
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody clears up behind a dead process
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            try:
                run(folder)
            except Killed:
                died += 1
            else:
                break
        again = run(folder)
        again.pop("fresh")
        assert again == wanted
        assert content_of(folder / "p").keys() - content_of(tmp_path / "whole" / "p").keys() == set()
        for name, content in content_of(tmp_path / "whole" / "p").items():
            assert (folder / "p" / name).read_bytes() == content
    assert died >= 8


# --- with Ray Data --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[cluster.Resources]:
    with cluster.connect(None, workers=2) as resources:
        yield resources


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_carries_and_decides_nothing(
    tmp_path: Path, tiny_model: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = gather(
        long_rows(tmp_path, 1), max_bad_rows=0.5, train=None, validation=8, test=10, balanced=False
    )
    progress: list[tuple[int, int | None]] = []
    changes: dict[str, Any] = {"epochs": 5}
    one = build(tmp_path / "1", gathered, tiny_model, progress=lambda *p: progress.append(p), **changes)
    monkeypatch.setattr(prepare, "_REQUESTS_A_BLOCK", 20)  # a dozen tasks of Ray where one did
    two = build(tmp_path / "2", gathered, tiny_model, cache=tmp_path / "two", **changes)
    again = build(tmp_path / "4", gathered, tiny_model, **{**changes, "seed": 18})
    assert again["fresh"] == 0
    request.getfixturevalue("here")
    here = build(tmp_path / "3", gathered, tiny_model, cache=tmp_path / "own", **changes)
    assert {made.pop("fresh") for made in (one, two, here)} == {5 * 43 + 8}
    assert one == two == here
    assert progress[-1] == (5 * 43 + 8, 5 * 43 + 8)
    assert content_of(tmp_path / "1") == content_of(tmp_path / "2") == content_of(tmp_path / "3")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_sets_bad_rows_aside_and_stops_at_the_threshold(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path, broken=2), max_bad_rows=0.05)
    manifest = build(tmp_path / "p", gathered, tiny_model)
    assert manifest["quarantined"] == len(storage.read_jsonl(tmp_path / "p" / "quarantine.jsonl")) == 2
    with pytest.raises(IftError, match=r"over data\.max_length 16"):
        build(tmp_path / "q", gathered, tiny_model, max_length=16)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_run_without_validation(tmp_path: Path, tiny_model: Path) -> None:
    gathered = gather(write_task(tmp_path), validation=0, test=0)
    manifest = build(tmp_path / "p", gathered, tiny_model, epochs=1)
    assert manifest["validation"]["packs"] == 0
    assert manifest["documents"] == 40


RUN = """
import pickle, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import test_prepare
from ift.data import prepare, stream

def mapped(work, parts, settings, _):
    for part in parts:
        yield work(pickle.loads(pickle.dumps(part)), **settings)

prepare._mapped, prepare._REQUESTS_A_BLOCK, stream.PACKS_PER_SHARD = mapped, 10, 4
folder = Path({folder!r})
gathered = test_prepare.gather(Path({file!r}), more={{"cache": folder / "cache"}})
print("gathered", flush=True)
made = test_prepare.build(folder / "p", gathered, Path({model!r}), cache=folder / "cache", epochs=3)
print(made["hash"], flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_what_the_next_one_can_build_on(
    tmp_path: Path, tiny_model: Path
) -> None:
    file = write_task(tmp_path, rows=400)

    def start(folder: Path) -> "subprocess.Popen[str]":
        script = RUN.format(
            tests=str(Path(__file__).parents[1]),
            here=str(Path(__file__).parent),
            folder=str(folder),
            file=str(file),
            model=str(tiny_model),
        )
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    wanted = whole.communicate()[0]
    assert whole.returncode == 0
    folder, died = tmp_path / "killed", 0
    for appears in (  # each time a little further
        "cache/examples/.part-*/examples.jsonl",
        "cache/tokens/*/*.tokens",
        "cache/tokens/*/*.parquet",
        "p/stream/*.parquet",
    ):
        process = start(folder)
        while process.poll() is None and not list(folder.glob(appears)):
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        died += process.returncode == -signal.SIGKILL
    assert died >= 3
    again = start(folder)
    assert again.communicate()[0] == wanted
    for path in sorted((tmp_path / "whole" / "p").rglob("*")):
        if path.is_file():
            assert (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
