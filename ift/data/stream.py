"""The stream: the ordered list of packs that a run trains on, written down before training starts.

In:  packs in order.
Out: Parquet shards and an index; read back by pack number, from any machine that sees the folder.

    write(folder, packs)
    stream = Stream(folder); stream.read([0, 8, 16])    # a seek, not a scan

Optimizer step `s` of a run with global batch `B` sees packs `s*B` to `(s+1)*B - 1`, on any world size.
A row of a shard:

    tokens        [ 9 4 4 7 2 | 9 5 7 2 ]     two documents, one behind the other
    supervised    [ . . . x x | . . x x ]     which of them the loss counts
    lengths       [ 5, 4 ]                    document boundaries; positions restart at each
    examples      [ "3f…", "a0…" ]            who they are
    templates     [ "ask", "classify" ]       and how they are worded
    targets       4                           supervised tokens in all
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("lengths", pa.list_(pa.int32())),
        ("examples", pa.list_(pa.string())),
        ("tasks", pa.list_(pa.string())),
        ("templates", pa.list_(pa.string())),
        ("epoch", pa.int32()),
        ("targets", pa.int32()),
    ]
)
PACKS_PER_SHARD = 8192
PACKS_PER_GROUP = 64  # what one seek reads


@dataclass(frozen=True)
class Pack:
    """One training row. `tokens` and `supervised` are as long as `sum(lengths)`."""

    tokens: list[int]
    supervised: list[bool]
    lengths: list[int]
    examples: list[str]
    tasks: list[str]
    templates: list[str]
    epoch: int = 0

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised)


@dataclass(frozen=True)
class Columns:
    """Some packs as arrays: what a row group is made of. `documents` says how many each pack has."""

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    examples: Sequence[str]
    tasks: Sequence[str]
    templates: Sequence[str]
    documents: NDArray[np.int64]
    epochs: NDArray[np.int32]

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.supervised) == self.lengths.sum()
        starts = np.cumsum(self.lengths) - self.lengths
        # a document's first token has nothing before it to be predicted from
        assert not self.supervised[starts].any(), "the first token of a document is supervised"

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> "Columns":
        """The arrays of some packs."""
        return cls(
            np.array([t for p in packs for t in p.tokens], dtype=np.int32),
            np.array([s for p in packs for s in p.supervised], dtype=np.bool_),
            np.array([n for p in packs for n in p.lengths], dtype=np.int32),
            [name for p in packs for name in p.examples],
            [name for p in packs for name in p.tasks],
            [name for p in packs for name in p.templates],
            np.array([len(p.lengths) for p in packs], dtype=np.int64),
            np.array([p.epoch for p in packs], dtype=np.int32),
        )


@dataclass
class Written:
    """What a shard came to. `digests` holds 32 bytes a pack: SHA-256 of its content."""

    number: int
    packs: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    documents: int = 0
    digests: bytes = b""


def shard_name(number: int) -> str:
    """00000.parquet"""
    return f"{number:05d}.parquet"


def write_shard(folder: Path, number: int, groups: Iterable[Columns]) -> Written:
    """One shard, a row group at a time: no more than that is in memory."""
    done = Written(number)
    digests: list[bytes] = []
    with pq.ParquetWriter(folder / shard_name(number), SCHEMA) as writer:
        for group in groups:
            ends = np.cumsum(group.documents)
            token_ends = np.cumsum(group.lengths, dtype=np.int64)[ends - 1]
            targets = np.add.reduceat(group.supervised, np.r_[0, token_ends[:-1]], dtype=np.int32)
            writer.write_table(_table(group, ends, token_ends, targets))
            digests += _digests(group, ends, token_ends)
            done.packs += len(ends)
            done.tokens += len(group.tokens)
            done.supervised_tokens += int(targets.sum())
            done.documents += len(group.lengths)
    done.digests = b"".join(digests)
    return done


def _table(
    group: Columns, ends: NDArray[np.int64], token_ends: NDArray[np.int64], targets: NDArray[np.int32]
) -> pa.Table:
    def lists(values: Any, ends: NDArray[np.int64], kind: pa.DataType) -> pa.ListArray:
        offsets = pa.array(np.r_[0, ends], pa.int32())
        return pa.ListArray.from_arrays(offsets, pa.array(values, kind))

    return pa.Table.from_arrays(
        [
            lists(group.tokens, token_ends, pa.int32()),
            lists(group.supervised, token_ends, pa.bool_()),
            lists(group.lengths, ends, pa.int32()),
            lists(group.examples, ends, pa.string()),
            lists(group.tasks, ends, pa.string()),
            lists(group.templates, ends, pa.string()),
            pa.array(group.epochs, pa.int32()),
            pa.array(targets, pa.int32()),
        ],
        schema=SCHEMA,
    )


def _digests(group: Columns, ends: NDArray[np.int64], token_ends: NDArray[np.int64]) -> Iterator[bytes]:
    """SHA-256 of each pack's content: not of the Parquet bytes, so that another Parquet version gives the same."""
    first, start = 0, 0
    for i, (end, token_end) in enumerate(zip(ends.tolist(), token_ends.tolist(), strict=True)):
        names = (
            int(group.epochs[i]),
            group.lengths[first:end].tolist(),
            *(list(names[first:end]) for names in (group.examples, group.tasks, group.templates)),
        )
        digest = hashlib.sha256(repr(names).encode("utf-8", "surrogatepass"))
        digest.update(group.tokens[start:token_end].astype("<i4").tobytes())
        digest.update(group.supervised[start:token_end].tobytes())
        yield digest.digest()
        first, start = end, token_end


def summed(shards: Iterable[Written]) -> dict[str, Any]:
    """The counts and the hash that the manifest records, of all shards."""
    written = sorted(shards, key=lambda shard: shard.number)
    digest = hashlib.sha256(b"".join(shard.digests for shard in written))
    return {
        **{
            name: sum(getattr(shard, name) for shard in written)
            for name in ("packs", "tokens", "supervised_tokens", "documents")
        },
        "hash": f"sha256:{digest.hexdigest()}",
        "shards": [{"file": shard_name(shard.number), "packs": shard.packs} for shard in written],
    }


def cleared(folder: Path) -> Path:
    """`folder`, without what an attempt that broke off has left: reading past the end must fail."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.parquet"):
        stale.unlink()
    return folder


def write(folder: Path, packs: Iterable[Pack]) -> dict[str, Any]:
    """Write the shards of a stream that is small; return the counts and the hash that the manifest records."""
    cleared(folder)
    return summed(
        write_shard(folder, number, map(Columns.of, _batched(shard, PACKS_PER_GROUP)))
        for number, shard in enumerate(_batched(packs, PACKS_PER_SHARD))
    )


def _batched(items: Iterable[Pack], size: int) -> Iterator[list[Pack]]:
    batch: list[Pack] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class Stream:
    """Reads packs by number. Every shard but the last holds `PACKS_PER_SHARD` packs, so a seek is arithmetic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._group = lru_cache(maxsize=8)(self._read_group)

    def read(self, numbers: Sequence[int]) -> list[Pack]:
        """The packs with these numbers, in the order asked for. Raises `IndexError` past the end."""
        packs = []
        for number in numbers:
            shard, row = divmod(number, PACKS_PER_SHARD)
            group, row = divmod(row, PACKS_PER_GROUP)
            packs.append(self._group(shard, group)[row])
        return packs

    def _read_group(self, shard: int, group: int) -> list[Pack]:
        path = self.folder / shard_name(shard)
        if not path.is_file():
            raise IndexError(f"{self.folder} has no shard {shard}")
        file = pq.ParquetFile(path)
        if group >= file.num_row_groups:
            raise IndexError(f"{path} has no row group {group}")
        names = list(Pack.__dataclass_fields__)
        return [Pack(**row) for row in file.read_row_group(group, columns=names).to_pylist()]
