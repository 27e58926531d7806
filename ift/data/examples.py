"""A task's rows as examples on disk: read and checked once, then looked up by place.

In:  a task and the cache folder.
Out: `Examples`: every usable row in the order of its files, its neighbours in content, and the bad rows.

    examples = examples_of(load("rotten_tomatoes"), cache)
    len(examples), examples[0]        # 10662, Example(id="3f9a…", fields={"text": "…"}, label="positive")

The folder, under an address that is made of the files' content, the task and the code:

    examples.jsonl       an example's fields a line, read by offset
    index.npz            a value an example: id, where its line begins, label, split, file, line, group, content, bands
    quarantine.jsonl     rows that are none, with file, line and reason
    meta.json            names and counts, written last
"""

import hashlib
import json
import os
import re
import shutil
from array import array
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ift import storage
from ift.data import cache as caches
from ift.data import duplicates, formats, shingles
from ift.data.formats.rows import TOO_DEEP, checked
from ift.data.quarantine import Quarantine, Tally
from ift.data.sources import Progress, Status, files_of, unheard
from ift.errors import IftError
from ift.tasks.fields import as_text, get
from ift.tasks.task import SPLITS, Example, Skip, Task

_BATCH = 2000  # examples whose words are looked at together
_AHEAD = 4  # batches that wait for it
_NONE = -1
_DIGIT, _SIGNS = re.compile(r"\d"), re.compile(r"[-/*.,:;%()\[\]{}'!&\\]")
_SUSPECT = re.compile(rb"\\u0000|\xed[\xa0-\xbf]")  # a NUL, half of a surrogate pair
_REASONS = 1000  # that are told apart in a summary


@dataclass(frozen=True)
class Lookup:
    """What it takes to look an example up by its place; the arrays have an element an example."""

    folder: Path
    ids: NDArray[np.uint64]
    starts: NDArray[np.int64]  # where its line begins in examples.jsonl
    lengths: NDArray[np.int32]  # bytes of it
    labels: NDArray[np.int32]  # place in `label_names`; -1 without
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Example:
        label = int(self.labels[place])
        return Example(
            f"{int(self.ids[place]):016x}",
            json.loads(self.line(place)),
            None if label == _NONE else self.label_names[label],
        )

    def line(self, place: int) -> bytes:
        """An example's fields as they are written: JSON in UTF-8."""
        return os.pread(self._file, int(self.lengths[place]), int(self.starts[place]))

    @cached_property
    def _file(self) -> int:
        return os.open(self.folder / "examples.jsonl", os.O_RDONLY)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __del__(self) -> None:
        if "_file" in vars(self):
            os.close(self._file)


@dataclass(frozen=True)
class Examples:
    """The usable rows of a task, each once; the arrays have an element an example."""

    task: str
    lookup: Lookup
    splits: NDArray[np.int8]  # place in SPLITS, as the source has it; -1 without
    files: NDArray[np.int32]  # place in `inputs`
    lines: NDArray[np.int64]
    groups: NDArray[np.uint64]  # equal for rows that belong together, such as one document's; 0 for none
    contents: NDArray[np.uint64]  # equal for texts that differ in case, punctuation and space alone
    bands: NDArray[np.uint64]  # (n, 14): two rows that share a column's value are near duplicates
    inputs: tuple[dict[str, str | None], ...]  # the files that were read: split, file, sha256
    twins: list[dict[str, Any]]  # exact duplicates that were left out: task, file, line, example
    bad: Tally
    empty: tuple[str, ...] = ()  # files without rows, passed over
    commit: str | None = None

    def __len__(self) -> int:
        return len(self.lookup)

    def __getitem__(self, place: int) -> Example:
        return self.lookup[place]

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Their ids: equal content has equal ones."""
        return self.lookup.ids

    @property
    def total(self) -> int:
        """All rows of the source, the bad ones and the duplicates too."""
        return len(self) + len(self.twins) + self.bad.count

    def where(self, place: int) -> dict[str, Any]:
        """The file and the line that an example stands in, and its id."""
        return {
            "task": self.task,
            "file": self.inputs[int(self.files[place])]["file"],
            "line": int(self.lines[place]),
            "example": f"{int(self.ids[place]):016x}",
        }

    def of_split(self, split: str | None) -> NDArray[np.int64]:
        """The places of the examples that the source has in this split; None where it has no splits."""
        wanted = _NONE if split is None else SPLITS.index(split)
        return np.flatnonzero(self.splits == wanted)


class Pool(Sequence[Example]):
    """Some of a task's examples: `places` of them, looked up as they are asked for."""

    def __init__(self, examples: Examples, places: NDArray[np.int64]) -> None:
        self.examples, self.places = examples, places

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Their ids."""
        return self.examples.ids[self.places]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Pool": ...
    def __getitem__(self, index: int | slice) -> "Example | Pool":
        if isinstance(index, slice):
            return Pool(self.examples, self.places[index])
        return self.examples[int(self.places[index])]


def examples_of(
    task: Task,
    cache: Path,
    progress: Progress | None = None,
    counting: Progress | None = None,
    status: Status = unheard,
) -> Examples:
    """Every usable example of the task.

    Exact duplicates are left out: one row, one example. Where the source has splits of its own, a row that stands in
    two of them stays in the one tested last (test before validation before train), so that nothing tested is trained
    on. `progress` hears of bytes that are fetched, `counting` of rows that are read,
    `status` of what goes on.

    Raises `IftError` where a source is missing, is broken as a whole, or has no row.
    """
    files = files_of(task, cache, progress, status)
    order: list[str | None] = sorted(files.splits, key=[*reversed(SPLITS), None].index)
    for path in (path for paths in files.splits.values() for path in paths if not path.is_file()):
        raise formats.no_file(path)
    named = [(split, path) for split in order for path in files.splits[split]]
    inputs = [{"split": split, "file": str(path), "sha256": caches.digest_of(path)} for split, path in named]
    folder = caches.address(cache, "examples", task.name, task.identity, inputs)
    try:
        return _opened(task.name, folder, inputs, files.commit)
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:  # not there, or damaged since
        caches.require_damaged(folder, error)
        shutil.rmtree(folder, ignore_errors=True)
    status(f"reading the rows of {task.name}")
    with caches.made(folder) as making:
        _write(task, named, making, counting)
    return _opened(task.name, folder, inputs, files.commit)


def _opened(task: str, folder: Path, inputs: list[dict[str, str | None]], commit: str | None) -> Examples:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    with np.load(folder / "index.npz") as index:
        arrays = {name: index[name] for name in index.files}
    own = {name: arrays.pop(name) for name in ("ids", "starts", "lengths", "labels")}
    ends = own["starts"] + own["lengths"]
    if (folder / "examples.jsonl").stat().st_size < ends.max(initial=0):
        raise ValueError(f"{folder} has lost the end of its examples")
    return Examples(
        task,
        Lookup(folder, **own, label_names=tuple(meta["label_names"])),
        **arrays,
        inputs=tuple(inputs),
        twins=storage.read_jsonl(folder / "duplicates.jsonl"),
        bad=Tally(meta["bad"], Counter(meta["reasons"]), meta["first"]),
        empty=tuple(meta["empty"]),
        commit=commit,
    )


# ── reading ──


class _Index:
    """The columns of the index as they grow."""

    KINDS = (
        *(("ids", "Q"), ("starts", "q"), ("lengths", "i"), ("labels", "i"), ("splits", "b"), ("files", "i")),
        *(("lines", "q"), ("groups", "Q")),
    )

    def __init__(self) -> None:
        self.columns = {name: array(kind) for name, kind in self.KINDS}
        self.seen: list[
            tuple[NDArray[np.uint64], NDArray[np.uint64]]
        ] = []  # contents and bands, a batch each
        self.waiting: list[list[str]] = []  # texts of the last examples
        # beside the reading: most of it is arithmetic, for which Python's lock is not needed
        self.beside = ThreadPoolExecutor(1)
        self.looking: deque[Future[tuple[NDArray[np.uint64], NDArray[np.uint64]]]] = deque()

    def add(self, texts: list[str], *values: int) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self.waiting.append(texts)
        if len(self.waiting) == _BATCH:
            self.look()

    def look(self) -> None:
        """Have the words of the waiting texts looked at; no more than a few batches wait for it."""
        self.looking.append(self.beside.submit(_seen, self.waiting))
        self.waiting = []
        while len(self.looking) > _AHEAD:
            self.seen.append(self.looking.popleft().result())

    def arrays(self) -> dict[str, NDArray[Any]]:
        self.look()
        self.seen += [future.result() for future in self.looking]
        self.beside.shutdown()
        contents, bands = (np.concatenate(parts) for parts in zip(*self.seen, strict=True))
        columns = {name: np.array(column) for name, column in self.columns.items()}
        return {**columns, "contents": contents, "bands": bands}


def _seen(texts: list[list[str]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    contents, found = contents_of(texts)
    return contents, duplicates.bands(found)


def _write(
    task: Task, paths: Sequence[tuple[str | None, Path]], folder: Path, counting: Progress | None
) -> None:
    """Read all rows once, in bounded memory; the index is the only thing that grows with them."""
    index, empty = _Index(), list[str]()
    labels: dict[str | None, int] = {None: _NONE}
    start = 0
    with (
        Quarantine(folder / "quarantine.jsonl") as quarantine,
        (folder / "examples.jsonl").open("wb") as file,
    ):
        for number, (split, path) in enumerate(paths):
            try:
                for row in formats.read(path, task.source.columns):
                    example = example_of(task, row)
                    if example is None:
                        continue
                    line = _line(task, example, row) if isinstance(example, Example) else example
                    if isinstance(line, formats.Bad) or isinstance(example, formats.Bad):
                        bad = line if isinstance(line, formats.Bad) else example
                        assert isinstance(bad, formats.Bad)
                        quarantine.add(
                            task=task.name,
                            file=str(path),
                            line=bad.line,
                            reason=bad.reason,
                            text=bad.text,
                            item=bad.item,
                        )
                        continue
                    file.write(line)
                    index.add(
                        texts_of({name: example.fields.get(name) for name in task.asked}),
                        int(example.id, 16),
                        start,
                        len(line),
                        labels.setdefault(example.label, len(labels) - 1),
                        _NONE if split is None else SPLITS.index(split),
                        number,
                        row.line,
                        _number_of(example.group),
                    )
                    start += len(line)
                    if counting and len(index.columns["ids"]) % _BATCH == 0:
                        counting(len(index.columns["ids"]), None)
            except formats.Empty:
                empty.append(str(path))
                siblings = [other for of, other in paths if of == split]
                if len(siblings) == sum(str(other) in empty for other in siblings):
                    raise
    arrays = index.arrays()
    if task.group and len(arrays["groups"]) and not arrays["groups"].any():
        raise IftError(
            f"no row of `{task.name}` has anything in `{task.group}`, its `group`",
            wanted="a column that says which rows belong together",
            where=str(task.path),
        )
    _finish(task, arrays, labels, [str(path) for _, path in paths], quarantine.tally, empty, folder)


def _line(task: Task, example: Example, row: formats.Row | formats.Bad) -> bytes | formats.Bad:
    """An example's fields in JSON. A hook, and JSON in a text, may bring what no file may hold, such as NUL."""
    line = json.dumps(example.fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    if task.hook or _SUSPECT.search(line):
        found = checked(formats.Row(row.line, example.fields, row.item))
        return found if isinstance(found, formats.Bad) else line
    return line


def _finish(
    task: Task,
    arrays: dict[str, NDArray[Any]],
    labels: dict[str | None, int],
    files: list[str],
    bad: Tally,
    empty: list[str],
    folder: Path,
) -> None:
    """Leave out the rows that were there before, put the labels in alphabetical order, write the index."""
    _, first = np.unique(arrays["ids"], return_index=True)
    again = np.ones(len(arrays["ids"]), dtype=np.bool_)
    again[first] = False
    twins = (
        {"task": task.name, "file": files[file], "line": line, "example": f"{id_:016x}"}
        for id_, file, line in zip(
            *(arrays[name][again].tolist() for name in ("ids", "files", "lines")), strict=True
        )
    )
    storage.write_jsonl(folder / "duplicates.jsonl", twins)
    arrays = {name: column[~again] for name, column in arrays.items()}
    names = sorted(label for label in labels if label is not None)
    place = np.array([_NONE, *(names.index(label) for label in labels if label is not None)], dtype=np.int32)
    arrays["labels"] = place[arrays["labels"] + 1]
    np.savez(folder / "index.npz", allow_pickle=False, **arrays)
    meta = {
        "label_names": names,
        "bad": bad.count,
        "reasons": dict(bad.reasons.most_common(_REASONS)),
        "first": bad.first,
        "empty": empty,
    }
    storage.write_json(folder / "meta.json", meta)


def example_of(task: Task, row: formats.Row | formats.Bad) -> Example | formats.Bad | None:
    """The example that a row of a file is; `Bad` with the reason, or None for a row that the task does not want."""
    if isinstance(row, formats.Bad):
        return row
    for column, value in task.source.where.items():
        if as_text(get(row.values, column, missing=None)) != value:
            return None
    try:
        return task.example(row.values)
    except Skip:
        return None
    except ValueError as error:
        return formats.Bad(row.line, str(error), str(row.values)[:500], row.item)
    except RecursionError:  # what a hook made of it
        return formats.Bad(row.line, f"it {TOO_DEEP}", str(row.values)[:500], row.item)


def texts_of(value: Any) -> list[str]:
    """All that can be read in an example's fields: texts and numbers, one by one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for child in value.values() for text in texts_of(child)]
    if isinstance(value, list | tuple):
        return [text for child in value for text in texts_of(child)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def contents_of(rows: Sequence[Sequence[str]]) -> tuple[NDArray[np.uint64], shingles.Words]:
    """A number for what each row's texts say, equal where they differ in case, punctuation and space alone; 0 for none.

    Beside digits punctuation is part of what is said: 5 - 3 is not 5 / 3. The words come with it.
    """
    found = shingles.words([text for texts in rows for text in texts]).joined([len(texts) for texts in rows])
    contents = shingles.content(found)
    for i, texts in enumerate(rows):
        if _DIGIT.search(text := "\n".join(texts)):
            signs = hashlib.blake2b("".join(_SIGNS.findall(text)).encode(), digest_size=8).digest()
            contents[i] ^= np.uint64(int.from_bytes(signs))
    return contents, found


def _number_of(group: str | None) -> int:
    """A number for what the task's `group` column holds: equal for equal values, 0 for none."""
    if group is None:
        return 0
    return int.from_bytes(hashlib.blake2b(group.encode("utf-8", "replace"), digest_size=8).digest()) or 1
