"""`ift inspect RUN`: what a step sees and when an example is seen is what stands in the stream, and nothing else."""

import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import write_spec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ift import cli, looking, storage
from ift.data import stream
from ift.data.stream import Pack
from ift.errors import IftError
from ift.models.base import load_tokenizer
from ift.spec import Spec
from ift.train.loop import ranks_packs

ONE, TWO, TESTED, TWIN = "3f0c000000000001", "3f0c000000000002", "aaaa000000000003", "bbbb000000000004"


def pack(*documents: tuple[str, list[int], int], epoch: int = 0) -> Pack:
    """A pack of documents: the example's id, its tokens, how many of the last are supervised."""
    return Pack(
        tokens=[t for _, ids, _ in documents for t in ids],
        supervised=[i >= len(ids) - n for _, ids, n in documents for i in range(len(ids))],
        lengths=[len(ids) for _, ids, _ in documents],
        examples=[example for example, _, _ in documents],
        tasks=["films"] * len(documents),
        templates=["ask"] * len(documents),
        epoch=epoch,
    )


def write_run(folder: Path, model: Path, packs: Sequence[Pack], *, validation: Sequence[Pack] = ()) -> Path:
    """A run's folder, two packs a step, as the prepare stage leaves it, so far as it is looked at."""
    write_spec(folder, model, train={"epochs": 2, "global_batch": 2, "learning_rate": 1e-3})
    write_prepared(folder / "prepare", packs, validation)
    return folder


def write_prepared(prepare: Path, packs: Sequence[Pack], validation: Sequence[Pack] = ()) -> dict[str, Any]:
    """The folder of the prepare stage; returns its manifest."""
    written = stream.write(prepare / "stream", packs)
    epochs = Counter(pack.epoch for pack in packs)
    manifest = {
        **written,
        "max_length": 128,
        "fill": written["tokens"] / (written["packs"] * 128),
        "epoch_ends": [sum(epochs[e] for e in range(last + 1)) for last in range(max(epochs) + 1)],
        "examples": len({example for pack in packs for example in pack.examples}),
        "mixture": [
            {
                "task": "films",
                "available": 40,
                "asked": 80,
                "seen_each": 2.0,
                "instructions": written["documents"],
                "tokens": written["tokens"],
                "supervised_tokens": written["supervised_tokens"],
                "few_shot": 0,
                "options": 0,
            }
        ],
        "validation": stream.write(prepare / "validation", validation),
        "items": {"films": 1, "copying": 2},
        "dropped": {"films": {"exact duplicate": 1}},
        "quarantined": 3,
        "too_long": 1,
        "cut": 0,
        "notes": ["`films`: \x1b[31mred"],
    }
    storage.write_json(prepare / "manifest.json", manifest)
    items = [
        {"name": "films", "id": TESTED, "suite": "task"},
        {"name": "copying", "id": TESTED[:8], "suite": "probe"},
    ]
    storage.write_jsonl(prepare / "items.jsonl", items)
    row = {"task": "films", "file": "rows.jsonl"}
    bad = [
        {**row, "line": 7, "example": TWO, "reason": "no \x1b]0;label"},
        {**row, "line": 8, "reason": "not JSON"},
    ]
    storage.write_jsonl(prepare / "quarantine.jsonl", bad)
    drops = [
        {**row, "line": 9, "example": ONE, "reason": "exact duplicate"},
        {**row, "line": 4, "example": TWIN, "reason": f"near duplicate of {TESTED}"},
    ]
    storage.write_jsonl(prepare / "dropped.jsonl", drops)
    return manifest


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, tiny_tokenizer: Any) -> Path:
    """Three steps of two packs; the second has packs of both epochs, the last has one alone."""

    def spelt(example: str, question: str, answer: str) -> tuple[str, list[int], int]:
        asked, answered = (tiny_tokenizer(text)["input_ids"] for text in (question, answer))
        return example, asked + answered, len(answered)

    first = pack(
        spelt(ONE, "the film was [/red] bright ", "positive"), spelt(TWO, "the film was dull ", "negative")
    )
    filler = [spelt(f"{i:016x}", "a long review ", "not bad") for i in range(4)]
    again = pack(spelt(ONE, "is this film good or bad? ", "good"), epoch=1)
    return write_run(
        tmp_path,
        tiny_model,
        [pack(filler[0]), first, pack(filler[1], filler[2]), again, pack(filler[3], epoch=1)],
        validation=[pack(filler[0], spelt(TWIN, "a short review", " is dull"))],
    )


def shown(run: Path, *, width: int = 80, **asked: Any) -> str:
    opened = looking.open_run(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        console = Console(width=width, file=io.StringIO(), force_terminal=False, record=True)
        if "step" in asked:
            looking.show_step(opened, asked["step"], count=asked.get("count"), console=console)
        elif "example" in asked:
            looking.show_example(opened, looking.example_rows(opened, asked["example"]), console=console)
        else:
            looking.show_overview(looking.overview(opened), console=console)
    return console.export_text()


def answered(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[Any], str]:
    """The exit status of `ift inspect`, its JSON lines, and what went to stderr."""
    with pytest.raises(SystemExit) as end:
        cli.main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), [json.loads(line) for line in out.splitlines()], err


# ── the rows say what the stream holds ──


@contextmanager
def small_groups() -> Iterator[None]:
    """Row groups of 2 packs and shards of 4, so that small streams have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PACKS_PER_GROUP", 2)
        patch.setattr(stream, "PACKS_PER_SHARD", 4)
        yield


@st.composite
def streams(draw: st.DrawFn) -> list[Pack]:
    """Some packs of few examples, which come again and again; epochs follow each other."""
    ids = st.sampled_from([f"{i:04x}000000000000" for i in range(6)])
    documents = st.integers(2, 6).flatmap(
        lambda n: st.tuples(ids, st.lists(st.integers(3, 90), min_size=n, max_size=n), st.integers(0, n - 1))
    )
    packs = draw(st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=11))
    turn = draw(st.integers(1, len(packs)))
    return [pack(*of_pack, epoch=int(i >= turn)) for i, of_pack in enumerate(packs)]


def a_run(folder: Path, prepared: dict[str, Any], batch: int) -> looking.Run:
    spec = Spec.model_validate(
        {
            "name": "tiny",
            "model": {"source": "tiny"},
            "tasks": ["trec"],
            "train": {"global_batch": batch, "learning_rate": 1e-3},
        }
    )
    return looking.Run(folder, spec, prepared)


@given(streams(), st.integers(1, 5))
def test_every_document_is_found_by_its_step_and_by_its_id(
    tiny_tokenizer: Any, packs: list[Pack], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_groups():
        run = a_run(Path(folder), write_prepared(Path(folder) / "prepare", packs), batch)
        assert run.steps == math.ceil(len(packs) / batch)
        by_step = []
        for step in range(1, run.steps + 1):
            read = looking.packs_of(run, step)
            assert list(read.values()) == packs[(step - 1) * batch : step * batch]
            row = looking.step_row(run, step, read)
            assert [p["supervised_tokens"] for p in row["packs"]] == [
                p.supervised_tokens for p in read.values()
            ]
            assert row["epochs"] == sorted({p.epoch + 1 for p in read.values()})
            for document in looking.document_rows(read, tiny_tokenizer):
                epoch = packs[document["pack"]].epoch + 1
                del document["parts"]
                by_step.append({**document, "kind": "train", "step": step, "epoch": epoch, "trained": False})
        by_id = []
        for example in {example for pack in packs for example in pack.examples}:
            head, *rows = looking.example_rows(run, example[:4])
            assert head["train"] == sum(pack.examples.count(example) for pack in packs)
            by_id += [row for row in rows if row["kind"] == "train"]
        places = [(row["pack"], row["place"]) for row in by_step]
        assert sorted(by_id, key=lambda row: (row["pack"], row["place"])) == by_step
        assert places == [(n, i + 1) for n, p in enumerate(packs) for i in range(len(p.lengths))]


def test_a_step_is_told_in_numbers_and_in_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, (step, *documents), _ = answered(capsys, run, "--step", 1, "--json")
    assert status == 0
    assert (step["kind"], step["step"], step["steps"], step["epochs"], step["metrics"]) == (
        "step",
        1,
        3,
        [1],
        None,
    )
    assert [p["documents"] for p in step["packs"]] == [1, 2]
    assert [(d["pack"], d["place"], d["of"], d["example"]) for d in documents] == [
        (0, 1, 1, f"{0:016x}"),
        (1, 1, 2, ONE),
        (1, 2, 2, TWO),
    ]
    assert documents[1]["parts"] == [
        {"text": "the film was [/red] bright ", "supervised": False},
        {"text": "positive", "supervised": True},
    ]
    assert len(answered(capsys, run, "--step", 1, "--json", "--count", 1)[1]) == 2


def test_a_step_shows_its_documents_with_the_supervised_text_marked(run: Path) -> None:
    text = shown(run, step=1)
    assert "1 of 3, in epoch 1 of 2" in text
    assert "not yet" in text
    assert "the film was [/red] bright ⟦positive⟧" in text
    assert "the film was dull ⟦negative⟧" in text
    assert f"{ONE} · films · template ask" in text
    assert "more document" not in text
    assert "in epoch 1 and 2 of 2" in shown(run, step=2)
    few = shown(run, step=1, count=2)
    assert "dull" not in few
    assert "1 more document in this step; `--count 3` shows all" in few


def test_a_terminal_underlines_what_is_supervised(run: Path) -> None:
    out = io.StringIO()
    console = Console(width=80, file=out, force_terminal=True, color_system="standard", legacy_windows=False)
    looking.show_step(looking.open_run(run), 2, console=console)
    text = out.getvalue()
    assert "\x1b[1;4;32mgood\x1b[0m" in text
    assert "⟦" not in text


def test_a_narrow_terminal_cuts_no_id_and_a_terminal_obeys_no_text(tmp_path: Path, tiny_model: Path) -> None:
    ids = load_tokenizer(tiny_model)("a\x1b[2J\x9b review")["input_ids"]
    strange = Pack(ids, [False] * len(ids), [len(ids)], [ONE], ["t" * 50], ["u" * 50])
    text = shown(write_run(tmp_path, tiny_model, [strange]), width=60, step=1)
    assert max(map(len, text.splitlines())) == 60
    assert ONE in text
    assert "a␛[2J� review" in text


# ── what training adds ──

MEASURED = {"loss": 0.25, "lr": 1e-3, "grad_norm": 1.5, "seconds": 2.0}


def test_what_was_measured_stands_beside_the_step(run: Path) -> None:
    lines = [{**MEASURED, "step": 1, "loss": 0.5}, {**MEASURED, "step": 2}]
    (run / "metrics.jsonl").write_text(
        "".join(map(storage.json_line, lines)) + '{"step": 3, "lo'
    )  # as it is written
    assert "loss 0.2500, learning rate 1.00e-03, gradient norm 1.500, 2.0 s" in shown(run, step=2)
    assert "not yet" in shown(run, step=3)
    assert "2 of 3 steps" in shown(run)
    assert [
        row["trained"] for row in looking.example_rows(looking.open_run(run), ONE) if "trained" in row
    ] == [
        True,
        True,
    ]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2))
def test_the_rank_is_that_of_the_worker_that_read_the_pack(
    tmp_path_factory: pytest.TempPathFactory, first: int, second: int, batch: int, lost: int, kept: int
) -> None:
    """A run of `first` workers that was lost behind step `lost`, and went on from `kept` with `second`."""
    folder = tmp_path_factory.mktemp("run")
    run = a_run(folder, {"packs": 9}, batch)
    kept = min(kept, lost, run.steps - 1)
    starts = [{"kind": "start", "step": 0, "world": first}, {"kind": "start", "step": kept, "world": second}]
    storage.write_jsonl(folder / "events.jsonl", starts)
    storage.write_jsonl(folder / "metrics.jsonl", [{"step": step} for step in range(1, run.steps + 1)])
    for step in range(1, run.steps + 1):
        world = first if step <= kept else second
        ranks = run.ranks(step)
        packs = range((step - 1) * batch, min(step * batch, 9))
        assert sorted(ranks) == list(packs)
        for rank in range(world):
            read = ranks_packs(step - 1, global_batch=batch, packs=9, rank=rank, world=world, micro_batch=1)
            assert [p for p, r in sorted(ranks.items()) if r == rank] == [p for some in read for p in some]


def test_the_rank_is_a_column_where_it_is_known(run: Path) -> None:
    storage.write_jsonl(run / "events.jsonl", [{"kind": "start", "step": 0, "world": 2}])
    assert "rank" not in shown(run, step=1)
    storage.write_jsonl(run / "metrics.jsonl", [{"step": 1, **MEASURED}])
    assert "rank" in shown(run, step=1)
    assert "rank" not in shown(run, step=2)


# ── an example ──


def test_an_example_is_found_wherever_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, (head, *rows), _ = answered(capsys, run, "--example", ONE.upper(), "--json")
    none = dict.fromkeys(("train", "validation", "tested", "quarantined", "dropped"), 0)
    assert head == {"kind": "example", "example": ONE, **none, "train": 2, "dropped": 1}
    assert [(r["epoch"], r["step"], r["pack"], r["place"], r["of"]) for r in rows[:2]] == [
        (1, 1, 1, 1, 2),
        (2, 2, 3, 1, 1),
    ]
    assert rows[2]["line"] == 9
    opened = looking.open_run(run)
    assert looking.example_rows(opened, TESTED[:5])[0] == {
        "kind": "example", "example": TESTED, **none, "tested": 1,
    }  # fmt: skip
    assert looking.example_rows(opened, TWIN)[0] == {
        "kind": "example", "example": TWIN, **none, "validation": 1, "dropped": 1,
    }  # fmt: skip
    assert looking.example_rows(opened, TWO)[0] == {
        "kind": "example", "example": TWO, **none, "train": 1, "quarantined": 1,
    }  # fmt: skip


def test_an_example_is_told_in_words(run: Path) -> None:
    text = shown(run, example=ONE)
    assert "in the stream: 2 times" in text
    assert "rows.jsonl:9: exact duplicate" in text
    assert "the run has trained 0 of its 3 steps" in text
    assert "--step 1` shows what stands around it" in text
    assert "rows.jsonl:7: no ␛]0;label" in shown(run, example=TWO)
    assert "in the stream: never" in shown(run, example=TESTED)
    assert "one of the test items" in shown(run, example=TESTED)
    assert "in the packs for validation: 1 time\n" in shown(run, example=TWIN)


def test_a_prefix_of_several_examples_lists_them(run: Path) -> None:
    with pytest.raises(IftError, match="2 examples begin with `3f0c`") as caught:
        looking.example_rows(looking.open_run(run), "3f0c")
    assert str(caught.value).endswith(f"next:   they are {ONE} (films), {TWO} (films)")


@pytest.mark.parametrize("id_", ["3f0", "3f0x", "", "3f0c0000000000011"])
def test_what_is_no_id_is_refused(run: Path, id_: str) -> None:
    with pytest.raises(IftError, match="16 hexadecimal digits, or its first 4 or more"):
        looking.example_rows(looking.open_run(run), id_)


def test_nowhere_is_an_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows, _ = answered(capsys, run, "--example", "dead", "--json")
    assert status == 1
    assert [row["example"] for row in rows] == ["dead"]
    assert not any(value for key, value in rows[0].items() if key not in ("kind", "example"))
    assert f"dead is nowhere in {run}" in shown(run, width=500, example="dead")


# ── the whole stream, and what cannot be looked at ──


def test_the_overview_counts_what_the_stream_holds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, (row,), _ = answered(capsys, run, "--json")
    assert (row["packs"], row["documents"], row["examples"], row["steps"]) == (5, 7, 6, 3)
    assert [(e["epoch"], e["packs_seen"], e["last_step"]) for e in row["epochs"]] == [(1, 3, 2), (2, 5, 3)]
    text = shown(run)
    for words in (
        "7 made of 6 examples",
        "3 of 2 packs of 128 tokens; epoch 1 ends with step 2, epoch 2 ends with step 3",
        "1 exact duplicate (prepare/dropped.jsonl)",
        "3, 1 of them too long (prepare/quarantine.jsonl)",
        row["hash"],
        "! `films`: ␛[31mred",
    ):
        assert words in " ".join(text.split()), words


@pytest.mark.parametrize("step", [0, -1, 4])
def test_a_step_out_of_range_names_the_range(run: Path, step: int) -> None:
    with pytest.raises(IftError, match="a step from 1 to 3"):
        looking.packs_of(looking.open_run(run), step)


def test_a_stream_that_is_not_whole_is_no_answer(run: Path) -> None:
    (run / "prepare" / "stream" / "00000.parquet").unlink()
    opened = looking.open_run(run)
    for look in (lambda: looking.packs_of(opened, 1), lambda: looking.example_rows(opened, ONE)):
        with pytest.raises(IftError, match="the stream is not whole"):
            look()


def test_only_a_prepared_run_can_be_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = answered(capsys, run / "spec.yaml", "--step", 2)
    assert status == 2
    assert f"next:   `ift inspect {run} --step 2`" in error
    (run / "prepare" / "manifest.json").unlink()
    status, _, error = answered(capsys, run / "spec.yaml", "--example", ONE)
    assert (
        f"`ift prepare {run / 'spec.yaml'}` writes the stream; then `ift inspect runs/tiny --example" in error
    )
    status, _, error = answered(capsys, run, "--step", 2)
    assert status == 2
    assert f"`ift prepare {run / 'spec.yaml'} --output {run}` writes the stream" in error
    status, _, error = answered(capsys, run / "prepare")
    assert status == 2
    assert "it has no spec.yaml" in error


@pytest.mark.parametrize(
    "options", [["--step", "1", "--example", ONE], ["--count", "1"], ["--task", "films"], ["train.epochs=2"]]
)
def test_options_that_say_nothing_of_a_run_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    status, _, error = answered(capsys, run, *options)
    assert status == 2
    assert "Usage: ift inspect" in error


def test_json_is_of_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = answered(capsys, run / "spec.yaml", "--json")
    assert status == 2
    assert "--json goes with a run's folder" in error
