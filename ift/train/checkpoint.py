"""Checkpoints: weights and moments by parameter name, which any number of ranks under any ZeRO stage goes on from.

In:  this rank's stretches of them, the step, and plain facts about the run.
Out: a folder that is marked complete last of all; loading fills whatever stretches a rank holds then.

    writer = Writer("run/checkpoints", rank=0, world=2, nonce="3f", parameters={"norm": (64,)}, keep=2)
    writer.save(40, stretches, {"seed": 17}); ...; writer.close()
    found = latest("run/checkpoints"); verify(found); load(found, wanted, parameters={"norm": (64,)})

    PLACE/step-00000040-3f/rank-00000.safetensors    what rank 0 held, fp32: `exp_avg.0.norm` begins at element 0
                           rank-00000.json           its size and sum
                           rank-00001.…
                           complete.json             all of that, and the facts: written when all is there

Nothing but JSON and safetensors is read, and what was not written by this file's rules is not used. Training waits
while its stretches are copied to host memory; they are written behind its back.
"""

import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ift.errors import IftError
from ift.places import Place
from ift.train.faults import BrokenCheckpoint

T = TypeVar("T")
KINDS = ("weight", "exp_avg", "exp_avg_sq")
_COMPLETE = "complete.json"
_FILE = re.compile(r"rank-\d{5,}\.safetensors")
_HEADER = 1 << 28  # bytes of a safetensors header, at most
_BLOCK = 1 << 24  # elements
_PAUSES = (5.0, 15.0, 30.0, 60.0, 120.0)  # seconds before S3 is tried again


class Stretch(NamedTuple):
    """Elements `start`, `start + 1`, … of a flattened parameter, or of one of its moments, where they lie now."""

    name: str
    kind: str  # one of KINDS
    start: int
    values: torch.Tensor  # (elements,) fp32


class Piece(NamedTuple):
    """A stretch in a file."""

    start: int
    elements: int
    file: str
    offset: int  # bytes from the start of the file


def bytes_needed(parameters: int) -> int:
    """Bytes of one checkpoint: each trained parameter in fp32, and Adam's two moments of it."""
    return 12 * parameters


# ── saving ──


class Writer:
    """Saves one rank's part of each checkpoint; rank 0 marks it complete when all parts are there.

    `nonce` is the same on all ranks of an attempt and differs from attempt to attempt, so that what a killed one left
    is never taken for part of a newer checkpoint. `on_complete` hears of each step whose checkpoint is whole, on rank
    0, from another thread. `note` is told when training waits for the checkpoint before.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        rank: int,
        world: int,
        nonce: str,
        parameters: Mapping[str, Sequence[int]],
        keep: int,
        on_complete: Callable[[int], None] = lambda step: None,
        note: Callable[[str], None] = lambda text: None,
        patience: float = 1800.0,
    ) -> None:
        assert keep >= 1, keep
        self._place, self._rank, self._world, self._nonce = Place(place), rank, world, nonce
        self._parameters = {name: list(shape) for name, shape in parameters.items()}
        self._keep, self._on_complete, self._note, self._patience = keep, on_complete, note, patience
        self._protected: frozenset[int] = frozenset()
        self._memory = _Memory()
        self._thread: threading.Thread | None = None
        self._step = 0  # that the thread writes
        self._failure: BaseException | None = None

    def protect(self, steps: Iterable[int]) -> None:
        """Keep the checkpoints of these steps, however old, until other steps are named."""
        self._protected = frozenset(steps)

    def save(self, step: int, stretches: Iterable[Stretch], meta: Mapping[str, Any]) -> float:
        """Begin to save; returns the seconds that it took, for which training stood still. `meta` is plain JSON.

        Raises what went wrong with the checkpoint before.
        """
        started = time.monotonic()
        waiting = self._thread is not None and self._thread.is_alive()
        self.close()
        if waiting:
            waited = time.monotonic() - started
            self._note(f"the checkpoint of step {self._step} was still being written: waited {waited:.1f} s")
        pieces = self._memory.hold(stretches)
        self._step = step
        self._thread = threading.Thread(
            target=self._write, args=(step, pieces, dict(meta)), name="checkpoint", daemon=True
        )
        self._thread.start()
        return time.monotonic() - started

    def close(self) -> None:
        """Wait until all is written, on rank 0 by every rank; raises what went wrong."""
        if self._thread:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure:
            raise failure

    def _write(self, step: int, pieces: dict[str, int], meta: dict[str, Any]) -> None:
        try:
            folder = f"step-{step:08d}-{self._nonce}"
            self._patiently(lambda: self._put(folder, pieces))
            if self._rank == 0:
                facts = self._everyones(folder, step)
                self._patiently(lambda: self._mark_complete(folder, step, meta, facts))
                self._on_complete(step)
                self._prune()
        except Exception as error:  # noqa: BLE001  (a thread: the next `save` or `close` raises it)
            self._failure = error

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it; again and again where the place is far away, for a store that is down for minutes is no end."""
        for pause in _PAUSES if self._place.remote else ():
            try:
                return action()
            except IftError as error:
                self._note(f"{error.what}; the checkpoint is tried again in {pause:.0f} s")
                time.sleep(pause)
        return action()

    def _put(self, folder: str, pieces: dict[str, int]) -> None:
        digest, size = hashlib.sha256(), 0

        def chunks() -> Iterator[Any]:
            nonlocal size
            chunk: bytes | memoryview
            for chunk in chain[bytes | memoryview]([_header(pieces)], self._memory.held()):
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        file = _file(self._rank)
        self._place.write(f"{folder}/{file}", chunks())
        facts = {"file": file, "bytes": size, "sha256": digest.hexdigest()}
        self._place.write(f"{folder}/{_facts(file)}", [_json(facts)])

    def _everyones(self, folder: str, step: int) -> list[dict[str, Any]]:
        """What each rank says of its file, in the order of ranks, when all are there."""
        files = [_file(rank) for rank in range(self._world)]
        deadline, pause = time.monotonic() + self._patience, 0.02
        while True:
            there = self._patiently(lambda: self._place.files(folder))
            missing = [file for file in files if _facts(file) not in there]
            if not missing:
                break
            if time.monotonic() > deadline:
                raise IftError(
                    f"the checkpoint of step {step} is not complete: {missing[0]} is not in "
                    f"{self._place}/{folder} after {self._patience / 60:.0f} minutes",
                    hint="see whether all nodes write to the same place: cluster.storage",
                )
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        read = self._place.read
        facts = [json.loads(self._patiently(partial(read, f"{folder}/{_facts(f)}"))) for f in files]
        for fact in facts:
            if there.get(fact["file"]) != fact["bytes"]:
                raise IftError(
                    f"{self._place}/{folder}/{fact['file']} has {there.get(fact['file'])} bytes",
                    wanted=f"the {fact['bytes']} bytes that were written",
                )
        return facts

    def _mark_complete(
        self, folder: str, step: int, meta: Mapping[str, Any], files: list[dict[str, Any]]
    ) -> None:
        earlier, _ = _completed(self._place)
        facts: dict[str, Any] = {
            # not the time: a clock may go back, and a run may go on from an older step
            "number": 1 + max((found.number for found in earlier), default=0),
            "step": step,
            "parameters": self._parameters,
            "meta": meta,
            "files": files,
        }
        facts["sha256"] = hashlib.sha256(_json(facts)).hexdigest()
        self._place.write(f"{folder}/{_COMPLETE}", [_json(facts)])

    def _prune(self) -> None:
        """Delete all but the last `keep` and those protected; what cannot be deleted stays and ends nothing."""
        try:
            found, broken = self._patiently(lambda: _completed(self._place))
            old = [f.name for f in found[: -self._keep] if f.step not in self._protected]
            for folder in [*old, *broken]:
                self._patiently(partial(self._delete, folder))
        except IftError as error:
            self._note(f"older checkpoints stay for now: {error.what}")

    def _delete(self, folder: str) -> None:
        self._place.delete(f"{folder}/{_COMPLETE}")  # first of all: half a checkpoint is none
        self._place.delete(folder)


class _Memory:
    """Host memory for one rank's part of a checkpoint, taken once and used for each.

    In blocks, for the first save comes stretch by stretch, and nobody knows how much will come: only a few of them
    may be in memory at a time. Pinned where they come from a GPU, which copies several times as fast.
    """

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []
        self._used = 0  # elements

    def hold(self, stretches: Iterable[Stretch]) -> dict[str, int]:
        """Copy them; returns their names in a file, and the elements of each, in order."""
        self._used, pieces = 0, {}
        gpu = False
        for name, kind, start, values in stretches:
            assert kind in KINDS, kind
            assert values.dtype == torch.float32, (name, kind, values.dtype)
            assert values.dim() == 1, (name, kind, values.shape)
            if len(values):
                key = f"{kind}.{start}.{name}"
                assert key not in pieces, key
                pieces[key] = len(values)
                gpu |= values.is_cuda
                self._copy(values)
        if gpu:
            torch.cuda.synchronize()
        return pieces

    def _copy(self, values: torch.Tensor) -> None:
        while len(values):
            number, inside = divmod(self._used, _BLOCK)
            if number == len(self._blocks):
                self._blocks.append(torch.empty(_BLOCK, dtype=torch.float32, pin_memory=values.is_cuda))
            count = min(len(values), _BLOCK - inside)
            self._blocks[number][inside : inside + count].copy_(values[:count], non_blocking=True)
            self._used, values = self._used + count, values[count:]

    def held(self) -> Iterator[memoryview]:
        """The bytes, in order."""
        for number, block in enumerate(self._blocks):
            count = min(_BLOCK, self._used - number * _BLOCK)
            if count <= 0:
                return
            yield block[:count].numpy().data.cast("B")


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _facts(file: str) -> str:
    return file.replace(".safetensors", ".json")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _header(pieces: Mapping[str, int]) -> bytes:
    """What stands before the tensors in a safetensors file: its own length, and where each tensor lies."""
    entries, end = {}, 0
    for key, count in pieces.items():
        begin, end = end, end + 4 * count
        entries[key] = {"dtype": "F32", "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def clean(place: str | Path) -> None:
    """Delete the checkpoints that were never completed; for the start of an attempt, when nobody writes."""
    within = Place(place)
    there = within.files()
    for folder in _folders(within):
        if f"{folder}/{_COMPLETE}" not in there:
            within.delete(folder)


def remove(place: str | Path) -> None:
    """Delete all checkpoints: nothing will go on from them any more."""
    Place(place).delete("")


# ── finding ──


@dataclass(frozen=True)
class Found:
    """A complete checkpoint. `pieces` are sorted by where they start, and cover every parameter when it is whole."""

    place: Place
    name: str  # of its folder
    facts: Mapping[str, Any]
    pieces: Mapping[tuple[str, str], Sequence[Piece]]  # by name and kind

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    @property
    def number(self) -> int:
        return int(self.facts["number"])

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    @property
    def meta(self) -> Mapping[str, Any]:
        meta: Mapping[str, Any] = self.facts["meta"]
        return meta

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(map(int, shape)) for name, shape in self.facts["parameters"].items()}

    @property
    def files(self) -> list[tuple[str, int, str]]:
        """Name, bytes and sum of each rank's."""
        return [(str(f["file"]), int(f["bytes"]), str(f["sha256"])) for f in self.facts["files"]]

    def checked(self) -> "Found":
        """Itself; raises one of Python's own errors where `facts` are not of the form that `Writer` writes."""
        _ = self.number, self.step, self.parameters, self.files, self.meta.items()
        return self

    def require(self, facts: Mapping[str, Any]) -> None:
        """Raise `IftError` where `meta` says otherwise than `facts`: the run is not the one that saved it."""
        for name, wanted in facts.items():
            if self.meta.get(name) != json.loads(json.dumps(wanted)):
                raise IftError(
                    f"the checkpoint of step {self.step} in {self} was made with "
                    f"{name} {self.meta.get(name)!r}; this run has {wanted!r}",
                    wanted="the settings, the data and the model of before",
                    hint=f"put them back, or delete {self.place} to start over",
                )


def latest(
    place: str | Path,
    *,
    step: int | None = None,
    passed_over: Collection[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Found | None:
    """The newest checkpoint whose files are all there and of their size, or that of `step`; None where there is none.

    `verify` looks at the bytes. One that is broken, or named in `passed_over`, is passed over, which `note` is told.
    Raises `IftError` where none is left, or where one holds what can hold code.
    """
    found, broken = _completed(Place(place))
    of_step = [f for f in found if step in (None, f.step)]
    passed = [
        f"the checkpoint {place}/{name} is broken and passed over: {why}" for name, why in broken.items()
    ]
    for text in passed:
        note(text)
    for candidate in reversed(of_step):
        if candidate.name in passed_over:
            passed.append(f"the checkpoint {candidate} is not what was written")
            continue
        try:
            return _whole(candidate)
        except BrokenCheckpoint as why:
            passed.append(f"the checkpoint {candidate} is broken and passed over: {why}")
            note(passed[-1])
    if passed:
        raise IftError(
            f"no checkpoint in {place} is whole: {passed[-1]}",
            wanted="one whose files are all there as they were written",
            hint=f"put the files back, or delete {place} to start over",
        )
    return None


def _folders(place: Place) -> list[str]:
    return [folder for folder in place.folders() if folder.startswith("step-")]


def _completed(place: Place) -> tuple[list[Found], dict[str, str]]:
    """What is marked complete, in the order in which it was; and where the mark is broken, by folder, how."""
    found, broken = [], {}
    for folder in _folders(place):
        try:
            facts = json.loads(place.read(f"{folder}/{_COMPLETE}"))
            if facts.pop("sha256") != hashlib.sha256(_json(facts)).hexdigest():
                raise ValueError(folder)
            found.append(Found(place, folder, facts, {}).checked())
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken[folder] = f"{_COMPLETE} is not what was written"
    return sorted(found, key=lambda f: f.number), broken


def _whole(found: Found) -> Found:
    """With its pieces. Raises `BrokenCheckpoint`, and `IftError` where it may hold code."""
    there = found.place.files(found.name)
    for name in sorted(there):
        if not name.endswith((".safetensors", ".json")) or "/" in name:
            raise IftError(
                f"the checkpoint {found} holds {name}, which can hold code: it is not trusted",
                wanted="safetensors and JSON files alone",
                hint="find out who put it there; delete it if you trust the rest",
            )
    pieces: dict[tuple[str, str], list[Piece]] = {}
    for name, size, _ in found.files:
        if not _FILE.fullmatch(name):
            raise BrokenCheckpoint(f"{name} is no name of its files")
        if there.get(name) != size:
            raise BrokenCheckpoint(
                f"{name} has {there[name]} of {size} bytes" if name in there else f"{name} is missing"
            )
        for at, piece in _pieces(found, name, size):
            pieces.setdefault(at, []).append(piece)
    for of in pieces.values():
        of.sort()
    whole = replace(found, pieces=pieces)
    if gap := _gap(whole):
        raise BrokenCheckpoint(gap)
    return whole


def _pieces(found: Found, file: str, size: int) -> Iterator[tuple[tuple[str, str], Piece]]:
    """What a file's header says is in it: (name, kind) and where."""
    name = f"{found.name}/{file}"
    try:
        with found.place.open(name) as opened:
            (length,) = struct.unpack("<Q", _read(found.place, name, opened, 0, 8))
            if length > min(_HEADER, size - 8):
                raise ValueError(length)
            header = json.loads(_read(found.place, name, opened, 8, length))
        for key, entry in header.items():
            kind, start, parameter = key.split(".", 2)
            begin, end, count = map(int, (*entry["data_offsets"], *entry["shape"]))
            if entry["dtype"] != "F32" or kind not in KINDS or not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(key)
            if end - begin != 4 * count:
                raise ValueError(key)
            yield (parameter, kind), Piece(int(start), count, file, 8 + length + begin)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise BrokenCheckpoint(f"the header of {file} cannot be read") from None


def _read(place: Place, name: str, opened: Any, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    place.read_into(name, opened, offset, memoryview(data))
    return data


def _gap(found: Found) -> str | None:
    """The first elements that are in no file."""
    for name, shape in found.parameters.items():
        for kind in KINDS:
            at, end = 0, torch.Size(shape).numel()
            for piece in found.pieces.get((name, kind), ()):
                if piece.start > at:
                    break
                at = max(at, piece.start + piece.elements)
            if at < end:
                return f"elements {at} to {end - 1} of the {kind} of {name} are not all there"
    return None


# ── loading ──


def verify(found: Found, *, rank: int = 0, world: int = 1) -> None:
    """Read this rank's share of the files; raise `BrokenCheckpoint` where one is not what was written.

    When every rank has, all were looked at once.
    """
    for name, _, said in found.files[rank::world]:
        digest = hashlib.sha256()
        try:
            for chunk in found.place.chunks(f"{found.name}/{name}"):
                digest.update(chunk)
        except FileNotFoundError:
            raise BrokenCheckpoint(f"{name} of {found} is gone") from None
        if digest.hexdigest() != said:
            raise BrokenCheckpoint(f"{name} of {found} is not what was written: its sum differs")


def load(found: Found, wanted: Iterable[Stretch], *, parameters: Mapping[str, Sequence[int]]) -> None:
    """Fill these stretches, reading what they need and no more. `parameters` are all that this run trains.

    Raises `IftError` where the checkpoint is of another model.
    """
    _refuse_other_model(found, {name: tuple(shape) for name, shape in parameters.items()})
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for stretch in wanted:
            at, end = stretch.start, stretch.start + len(stretch.values)
            for piece in found.pieces[stretch.name, stretch.kind]:
                upto = min(end, piece.start + piece.elements)
                if piece.start <= at < upto:
                    if piece.file not in files:
                        files[piece.file] = stack.enter_context(
                            found.place.open(f"{found.name}/{piece.file}")
                        )
                    values = stretch.values[at - stretch.start : upto - stretch.start]
                    _fill(found, piece, files[piece.file], at - piece.start, values)
                    at = upto
            assert at == end, (stretch.name, stretch.kind, at, end)


def _fill(found: Found, piece: Piece, file: Any, first: int, values: torch.Tensor) -> None:
    """The elements of `piece` from its `first` on, into `values`."""
    for done in range(0, len(values), _BLOCK):
        part = values[done : done + _BLOCK]
        buffer = torch.empty(len(part), dtype=torch.float32)
        place, name = found.place, f"{found.name}/{piece.file}"
        place.read_into(name, file, piece.offset + 4 * (first + done), buffer.numpy().data.cast("B"))
        part.copy_(buffer)


def _refuse_other_model(found: Found, parameters: Mapping[str, tuple[int, ...]]) -> None:
    saved = found.parameters
    what = None
    if lacking := sorted(parameters.keys() - saved.keys()):
        what = f"it lacks {_some(lacking)}, which this run trains"
    elif more := sorted(saved.keys() - parameters.keys()):
        what = f"it holds {_some(more)}, which this run does not train"
    elif other := [name for name in sorted(saved) if saved[name] != parameters[name]]:
        what = f"{other[0]} is {saved[other[0]]} there and {parameters[other[0]]} in this run"
    if what:
        raise IftError(
            f"the checkpoint {found} is of another model: {what}",
            wanted="a checkpoint of this model with this adapter",
            hint=f"put back the model and train.adapter of before, or delete {found.place} to start over",
        )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more parameters"
