"""The token cache: every instruction that was ever worded and tokenized, to be found again by what it is.

In:  a task's requests, as keys; for those that are not there yet, documents.
Out: for each request where its documents lie and how long they are; their tokens by one read at an offset.

    tokens = Tokens(folder)
    tokens.find(keys_of(requests, examples))      # first row and number of rows of each request; none: not there yet
    Reader().read(tokens.paths[file], start, length)     # int32, the supervised ones negative: [9, 4, ~7, ~2]

A folder holds one task as worded by one version of its file, of its rows, of the tokenizer and of the code (its address
says so). Changing a weight, a seed or a batch size changes which rows are read, and tokenizes nothing again. Its files
come in pairs, of which the second is written last and under its own name at once, so that a process may be killed at
any time:

    3f9a….tokens     the documents' tokens one behind the other, int32, little-endian; ~token where it is supervised
    3f9a….parquet    a row a document: its key, where it begins, how it is worded, or the reason why it is none
"""

import hashlib
import os
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ift.data import cache as caches
from ift.data.draws import Requests
from ift.data.split import mixed
from ift.data.tokenize import Document
from ift.data.wording import Made

SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),
        ("start", pa.int64()),  # in tokens
        ("length", pa.int32()),
        ("supervised", pa.int32()),
        ("template", pa.dictionary(pa.int32(), pa.string())),
        ("shots", pa.int32()),
        ("options", pa.bool_()),
        ("cut", pa.bool_()),
        ("too_long", pa.bool_()),
        ("reason", pa.string()),
    ]
)
_PLAIN = ("key", "start", "length", "supervised", "shots", "options", "cut", "too_long")


def keys_of(requests: Requests, ids: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """A number for each request that says all that its words hang on: the example, the pass, options, exemplars.

    `ids` are those of all the task's examples; only exemplars need them.
    """
    variant = requests.passes.astype(np.uint64) * np.uint64(8) + (requests.options + 1).astype(
        np.uint64
    ) * np.uint64(2)
    variant += np.uint64(requests.split == "validation")
    keys = mixed(requests.ids ^ mixed(variant + np.uint64(1)))
    for i, places in requests.exemplars.items():
        assert ids is not None
        digest = hashlib.blake2b(ids[list(places)].tobytes(), digest_size=8).digest()
        with np.errstate(over="ignore"):
            keys[i] = mixed(keys[i : i + 1] + np.frombuffer(digest, dtype="<u8"))[0]
    return keys


def write(folder: Path, keys: NDArray[np.uint64], made: Sequence[Sequence[Made]]) -> None:
    """The documents of some requests as one more pair of files; a request may have several, or a reason and none."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
    columns: dict[str, list[Any]] = {column: [] for column in SCHEMA.names}
    part = caches.part_of(folder)
    try:
        with part.open("wb") as file:
            start = 0
            for key, documents in zip(keys.tolist(), made, strict=True):
                for one in documents:
                    ids = _marked(one.document) if one.document else np.zeros(0, dtype="<i4")
                    file.write(ids.tobytes())
                    row = (
                        *(key, start, len(ids), int(np.count_nonzero(ids < 0))),
                        *(one.template, one.shots, one.options_shown, one.cut, one.too_long, one.reason),
                    )
                    for column, value in zip(columns.values(), row, strict=True):
                        column.append(value)
                    start += len(ids)
        os.replace(part, folder / f"{name}.tokens")
        pq.write_table(pa.Table.from_pydict(columns, SCHEMA), part)
        os.replace(part, folder / f"{name}.parquet")
    finally:
        part.unlink(missing_ok=True)


def _marked(document: Document) -> NDArray[np.int32]:
    # through `array` and `bytes`: several times as fast as numpy on a list
    ids = np.frombuffer(array("i", document.ids), dtype=np.int32)
    marked: NDArray[np.int32] = np.where(np.frombuffer(bytes(document.supervised), dtype=np.bool_), ~ids, ids)
    return marked.astype("<i4", copy=False)


class Tokens:
    """A task's documents. The arrays have an element a document, sorted by key; `index` is where `find` looks."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []  # of the files that hold the tokens
        tables, file = [], []
        for path in sorted(folder.glob("[!.]*.parquet")):
            try:
                table = pq.read_table(path)
            except FileNotFoundError:  # another run has found it broken
                continue
            except (pa.ArrowInvalid, OSError) as error:
                caches.require_damaged(path, error)
                path.unlink(missing_ok=True)  # cut by a power failure, say: its requests are made anew
                continue
            if not _has_its_tokens(path, table):  # what it lacks is made anew, in other files
                continue
            file.append(np.full(len(table), len(self.paths), dtype=np.int32))
            self.paths.append(str(path.with_suffix(".tokens")))
            tables.append(table)
        table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        keys = table.column("key").to_numpy()
        files = np.concatenate(file) if file else np.zeros(0, dtype=np.int32)
        order = np.argsort(keys, kind="stable")
        # the same request may have been made twice, by two runs at once: one of them will do
        order = order[_first_file_of_each(keys[order], files[order])]
        self.file = files[order]
        for name in _PLAIN:
            setattr(self, name, table.column(name).to_numpy()[order])
        self.key: NDArray[np.uint64]
        self.start: NDArray[np.int64]
        self.length: NDArray[np.int32]
        self.supervised: NDArray[np.int32]
        self.shots: NDArray[np.int32]
        self.options: NDArray[np.bool_]
        self.cut: NDArray[np.bool_]
        self.too_long: NDArray[np.bool_]
        names, codes = _coded(table)
        self.templates: list[str] = names
        self.template: NDArray[np.int32] = codes[order]
        reasons = table.column("reason")
        bad = np.flatnonzero(reasons.is_valid().to_numpy()[order])
        self.reasons = {int(row): reasons[int(order[row])].as_py() for row in bad}

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first document of each key, and how many there are; none says that the request was not made yet."""
        first = np.searchsorted(self.key, keys, side="left")
        return first, np.searchsorted(self.key, keys, side="right") - first


def _has_its_tokens(path: Path, table: pa.Table) -> bool:
    """Whether the file of tokens beside `path` is there and as long as its documents say."""
    ends = table.column("start").to_numpy() + table.column("length").to_numpy()
    file = path.with_suffix(".tokens")
    try:
        return bool(file.stat().st_size >= 4 * ends.max(initial=0))
    except OSError as error:
        caches.require_damaged(file, error)
        return False


def _first_file_of_each(keys: NDArray[np.uint64], files: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which elements of sorted `keys` come from the same file as the first of their key."""
    if not len(keys):
        return np.zeros(0, dtype=np.bool_)
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    counts = np.diff(np.r_[starts, len(keys)])
    same: NDArray[np.bool_] = files == np.repeat(files[starts], counts)
    return same


def _coded(table: pa.Table) -> tuple[list[str], NDArray[np.int32]]:
    """The templates' names, sorted, and for each document the place of its own."""
    plain = table.column("template").cast(pa.string())
    names = sorted(name for name in plain.unique().to_pylist())
    codes = pa.compute.index_in(plain, pa.array(names, pa.string()))
    return names, codes.to_numpy().astype(np.int32)


class Reader:
    """Tokens by file and offset, from any process that sees the folder."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=64)(_Opened)

    def read(self, path: str, start: int, length: int) -> NDArray[np.int32]:
        """`length` tokens from the `start`-th on; the supervised ones as ~token."""
        data = os.pread(self._open(path).number, 4 * length, 4 * start)
        if len(data) != 4 * length:
            raise EOFError(f"{path} ends within the tokens from {start} on")
        return np.frombuffer(data, dtype="<i4")


class _Opened:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)
