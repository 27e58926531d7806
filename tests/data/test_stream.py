"""The stream: what is written is read, by number, and its hash is of its content."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.data import stream
from ift.data.stream import Columns, Pack, Stream
from ift.train.loop import ranks_packs


@pytest.fixture(autouse=True, scope="module")
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PACKS_PER_SHARD", 6)
        patch.setattr(stream, "PACKS_PER_GROUP", 2)
        yield


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    supervised = [
        i > 0 and draw(st.booleans()) for length in lengths for i in range(length)
    ]  # never a document's first token
    names = st.lists(st.text(max_size=4), min_size=len(lengths), max_size=len(lengths))
    total = sum(lengths)
    return Pack(
        tokens=draw(st.lists(st.integers(0, 2**31 - 1), min_size=total, max_size=total)),
        supervised=supervised,
        lengths=lengths,
        examples=draw(names),
        tasks=draw(names),
        templates=draw(names),
        epoch=draw(st.integers(0, 9)),
    )


def make(number: int) -> Pack:
    return Pack([9, number, 2], [False, True, True], [3], [f"{number:04x}"], ["films"], ["ask"])


@given(st.lists(packs(), max_size=15), st.data())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, written: list[Pack], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "stream"
    manifest = stream.write(folder, iter(written))
    assert manifest["packs"] == sum(shard["packs"] for shard in manifest["shards"]) == len(written)
    assert manifest["tokens"] == sum(len(p.tokens) for p in written)
    assert manifest["supervised_tokens"] == sum(p.supervised_tokens for p in written)
    assert manifest["documents"] == sum(len(p.lengths) for p in written)
    assert len(manifest["shards"]) == -(-len(written) // 6)
    reader = Stream(folder)
    assert reader.read(range(len(written))) == written
    numbers = data.draw(st.lists(st.integers(0, len(written) - 1), max_size=9) if written else st.just([]))
    assert reader.read(numbers) == [written[i] for i in numbers]
    for past in (len(written), len(written) + 1, len(written) + 6, -1):
        with pytest.raises(IndexError):
            reader.read([past])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@settings(max_examples=25)
@given(
    count=st.integers(1, 40),
    global_batch=st.integers(1, 9),
    micro_batch=st.integers(1, 4),
    start=st.integers(0, 9),
)
def test_every_number_of_workers_reads_the_same_global_batches(
    tmp_path_factory: pytest.TempPathFactory,
    world: int,
    count: int,
    global_batch: int,
    micro_batch: int,
    start: int,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranks"
    written = [make(number) for number in range(count)]
    stream.write(folder, written)
    readers = [Stream(folder) for _ in range(world)]
    for step in range(start, -(-count // global_batch)):  # from wherever a run goes on: a seek
        read = [
            pack
            for rank, reader in enumerate(readers)
            for micro in ranks_packs(
                step, global_batch=global_batch, packs=count, rank=rank, world=world, micro_batch=micro_batch
            )
            for pack in reader.read(micro)
        ]
        assert sorted(pack.examples for pack in read) == [
            pack.examples for pack in written[step * global_batch : (step + 1) * global_batch]
        ]


def test_hash_is_of_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make(i) for i in range(8)]
    first = stream.write(tmp_path / "a", rows)["hash"]
    assert first.startswith("sha256:")
    monkeypatch.setattr(stream, "PACKS_PER_SHARD", 3)
    monkeypatch.setattr(stream, "PACKS_PER_GROUP", 3)
    assert stream.write(tmp_path / "b", iter(rows))["hash"] == first
    changed = [
        rows[::-1],
        rows[:-1],
        [replace(rows[0], tokens=[9, 0, 3]), *rows[1:]],
        [replace(rows[0], supervised=[False, False, True]), *rows[1:]],
        [Pack([9, 0, 2], [False, False, True], [1, 2], ["0000"] * 2, ["films"] * 2, ["ask"] * 2), *rows[1:]],
        [replace(rows[0], tasks=["books"]), *rows[1:]],
        [replace(rows[0], templates=["tell"]), *rows[1:]],
        [replace(rows[0], epoch=1), *rows[1:]],
        [replace(rows[0], examples=["other"]), *rows[1:]],
    ]
    hashes = {stream.write(tmp_path / "c", other)["hash"] for other in changed}
    assert len(hashes - {first}) == len(changed)


def test_writing_again_leaves_nothing_of_an_earlier_attempt(tmp_path: Path) -> None:
    stream.write(tmp_path, map(make, range(20)))
    stream.write(tmp_path, map(make, range(6)))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.parquet"]
    with pytest.raises(IndexError, match="has no shard 1"):
        Stream(tmp_path).read([6])


@pytest.mark.parametrize(
    ("supervised", "lengths"),
    [([True, True, True], [3]), ([False, True, True], [2, 1]), ([False, True], [2]), ([False] * 3, [2])],
    ids=["first token", "first token of the second document", "too few marks", "too short"],
)
def test_a_pack_that_cannot_be_is_refused(supervised: list[bool], lengths: list[int]) -> None:
    with pytest.raises(AssertionError):
        Columns.of([Pack([1, 2, 3], supervised, lengths, *[["a"] * len(lengths)] * 3)])


def test_the_drawing(tmp_path: Path) -> None:
    drawn = Pack(
        tokens=[9, 4, 4, 7, 2, 9, 5, 7, 2],
        supervised=[mark == "x" for mark in "...xx..xx"],
        lengths=[5, 4],
        examples=["3f", "a0"],
        tasks=["films", "films"],
        templates=["ask", "classify"],
    )
    assert drawn.supervised_tokens == 4
    stream.write(tmp_path, [drawn])
    assert Stream(tmp_path).read([0]) == [drawn]
