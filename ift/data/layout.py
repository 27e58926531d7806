"""Where every document goes: which packs an epoch has, in what order, and which shard holds them.

In:  the requests of a run, and where the token cache has their documents.
Out: packs, as places of documents; shards, as plain values from which any process writes its file.

    found = {"trec": Tokens(folder)}
    layout = Layout(found)
    packs = layout.packs([documents_of(requests, found["trec"], keys)], epoch=0, seed=17, capacity=1024)
    [write_shard(shard, folder=stream, **layout.settings) for shard in shards([packs])]

A few numbers a document are all that is in memory; tokens are read where a shard is written.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift.data import stream
from ift.data.draws import Requests
from ift.data.pack import bucket, pack
from ift.data.stream import Columns, Written
from ift.data.tokens import Reader, Tokens


@dataclass(frozen=True)
class Documents:
    """The documents of some requests: rows of the task's `Tokens`, good and bad, and the example each is of."""

    task: str
    split: str
    epoch: int
    tokens: Tokens
    rows: NDArray[np.int64]
    ids: NDArray[np.uint64]
    passes: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which of them can be trained on."""
        good: NDArray[np.bool_] = self.tokens.length[self.rows] > 0
        return good

    @property
    def used(self) -> NDArray[np.int64]:
        """The rows of those."""
        return self.rows[self.good]


def documents_of(some: Requests, found: Tokens, keys: NDArray[np.uint64]) -> Documents:
    """The documents of some requests, all of which the cache has."""
    first, count = found.find(keys)
    assert (count > 0).all(), "a request was not made"
    which = np.repeat(np.arange(len(some)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    return Documents(
        some.task,
        some.split,
        some.epoch,
        found,
        first[which] + within,
        some.ids[which],
        some.passes[which],
        some.places[which],
    )


@dataclass(frozen=True)
class Packs:
    """The packs of an epoch: places of documents in `table`."""

    epoch: int
    groups: list[list[int]]
    table: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.groups)


class Layout:
    """Where every document goes: packs as places in arrays, and shards as work for Ray."""

    def __init__(self, found: Mapping[str, Tokens]) -> None:
        self.names = sorted(found)
        self.templates = sorted({name for tokens in found.values() for name in tokens.templates})
        self.paths = [path for name in self.names for path in found[name].paths]
        self._first_path = dict(
            zip(self.names, np.cumsum([0, *(len(found[n].paths) for n in self.names)]).tolist(), strict=False)
        )

    def packs(self, documents: Sequence[Documents], epoch: int, seed: int, capacity: int | None) -> Packs:
        """The packs of an epoch in order: a function of the seed, the epoch and the examples' ids alone."""
        columns = [self._columns(d) for d in documents]
        if not columns:
            return Packs(epoch, [], {})
        table = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
        # stable: pieces of a text stay in order
        order = np.lexsort((table["passes"], table["ids"], table["tasks"])).tolist()
        random.Random(f"order/{seed}/{epoch}").shuffle(order)
        table = {name: column[order] for name, column in table.items()}
        lengths = table["lengths"].tolist()
        if capacity is None:
            return Packs(epoch, bucket(lengths, key=f"{seed}/{epoch}"), table)
        return Packs(epoch, pack(lengths, capacity=capacity), table)

    def _columns(self, documents: Documents) -> dict[str, NDArray[Any]]:
        found, good, rows = documents.tokens, documents.good, documents.used
        own = np.array([self.templates.index(name) for name in found.templates], dtype=np.int32)
        return {
            "tasks": np.full(len(rows), self.names.index(documents.task), dtype=np.int32),
            "ids": documents.ids[good],
            "passes": documents.passes[good],
            "paths": found.file[rows] + np.int32(self._first_path[documents.task]),
            "starts": found.start[rows],
            "lengths": found.length[rows],
            "templates": own[found.template[rows]],
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What it takes to write a shard beside the shard itself."""
        return {
            "names": self.names,
            "templates": self.templates,
            "paths": self.paths,
            "per_group": stream.PACKS_PER_GROUP,
        }


@dataclass(frozen=True)
class Shard:
    """Which documents make a shard: `table` has them in order, `counts` how many each pack has."""

    number: int
    counts: NDArray[np.int64]
    epochs: NDArray[np.int32]
    table: dict[str, NDArray[Any]]


def shards(epochs: Sequence[Packs]) -> Iterator[Shard]:
    """All packs of all epochs, `PACKS_PER_SHARD` at a time."""
    size = stream.PACKS_PER_SHARD
    total = sum(map(len, epochs))
    starts = np.cumsum([0, *map(len, epochs)]).tolist()
    for number, first in enumerate(range(0, total, size)):
        counts: list[int] = []
        of_epoch: list[int] = []
        tables: list[dict[str, NDArray[Any]]] = []
        for packs, start in zip(epochs, starts, strict=False):
            groups = packs.groups[max(0, first - start) : max(0, first + size - start)]
            if groups:
                places = [place for group in groups for place in group]
                tables.append({name: column[places] for name, column in packs.table.items()})
                counts += map(len, groups)
                of_epoch += [packs.epoch] * len(groups)
        table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        yield Shard(number, np.array(counts), np.array(of_epoch, dtype=np.int32), table)


def write_shard(
    shard: Shard,
    *,
    folder: str,
    names: Sequence[str],
    templates: Sequence[str],
    paths: Sequence[str],
    per_group: int,
) -> Written:
    """One shard of the stream, its tokens read from the cache a row group at a time."""

    def groups() -> Iterator[Columns]:
        reader, ends = Reader(), np.cumsum(shard.counts)
        for first in range(0, len(shard.counts), per_group):
            last = min(first + per_group, len(shard.counts))
            these = slice(int(ends[first - 1]) if first else 0, int(ends[last - 1]))
            table = {name: column[these] for name, column in shard.table.items()}
            marked = np.concatenate(
                [
                    reader.read(paths[path], start, length)
                    for path, start, length in zip(
                        *(table[name].tolist() for name in ("paths", "starts", "lengths")), strict=True
                    )
                ]
            )
            supervised = marked < 0
            yield Columns(
                np.where(supervised, ~marked, marked),
                supervised,
                table["lengths"],
                [f"{id_:016x}" for id_ in table["ids"].tolist()],
                [names[i] for i in table["tasks"].tolist()],
                [templates[i] for i in table["templates"].tolist()],
                shard.counts[first:last],
                shard.epochs[first:last],
            )

    return stream.write_shard(Path(folder), shard.number, groups())
