"""A checkpoint is whole or is not there, says what it is of, and holds nothing that could run."""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ift.errors import IftError
from ift.places import Place
from ift.train import checkpoint
from ift.train.checkpoint import KINDS, Found, Stretch, Writer, clean, latest, load, remove, verify
from ift.train.faults import BrokenCheckpoint


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


SHAPES: dict[str, tuple[int, ...]] = {"embed.weight": (5, 7), "layers.0.norm": (3,), "scale": ()}


def values(
    name: str, kind: str, *, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> torch.Tensor:
    """Made up, the same each time."""
    generator = torch.Generator().manual_seed(random.Random(f"{name}/{kind}/{seed}").getrandbits(32))
    return torch.randn(torch.Size(shapes[name]).numel(), generator=generator)


def stretches(
    rank: int, world: int, *, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> list[Stretch]:
    """An equal part of each parameter."""
    held = []
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        low, high = rank * count // world, (rank + 1) * count // world
        held += [Stretch(name, k, low, values(name, k, seed=seed, shapes=shapes)[low:high]) for k in KINDS]
    return held


def writer(place: str | Path, rank: int = 0, world: int = 1, **changes: Any) -> Writer:
    settings: dict[str, Any] = {"nonce": "a", "parameters": SHAPES, "keep": 2, "patience": 60.0, **changes}
    return Writer(place, rank=rank, world=world, **settings)


def saved(place: str | Path, step: int, *, world: int = 1, seed: int = 0, nonce: str = "a") -> None:
    """A whole checkpoint."""
    writers = [writer(place, rank, world, nonce=nonce) for rank in range(world)]
    for rank, each in enumerate(writers):
        each.save(step, stretches(rank, world, seed=seed), {"seed": seed})
    for each in writers:
        each.close()


def empty() -> list[Stretch]:
    return [
        Stretch(name, kind, 0, torch.full((torch.Size(shape).numel(),), torch.nan))
        for name, shape in SHAPES.items()
        for kind in KINDS
    ]


def loaded(found: Found) -> dict[tuple[str, str], torch.Tensor]:
    wanted = empty()
    load(found, wanted, parameters=SHAPES)
    return {(s.name, s.kind): s.values for s in wanted}


def is_of(found: Found | None, seed: int) -> bool:
    assert found is not None
    return all(torch.equal(v, values(*at, seed=seed)) for at, v in loaded(found).items())


def found_in(place: str | Path) -> Found:
    found = latest(place)
    assert found is not None
    return found


def only(place: Path, pattern: str) -> Path:
    (path,) = place.glob(pattern)
    return path


# ── from any partition into any other ──

COUNTS = {"a": 11, "b": 1, "c.d": 4}


@st.composite
def partitions(draw: st.DrawFn) -> list[list[tuple[str, str, int, int]]]:
    """What each of up to five ranks holds: (name, kind, start, end); together everything, once."""
    world = draw(st.integers(1, 5))
    held: list[list[tuple[str, str, int, int]]] = [[] for _ in range(world)]
    for name, count in COUNTS.items():
        for kind in KINDS:
            cuts = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
            for low, high in zip([0, *cuts], [*cuts, count], strict=True):
                held[draw(st.integers(0, world - 1))].append((name, kind, low, high))
    return [draw(st.permutations(of)) for of in held]


@given(before=partitions(), after=partitions(), block=st.integers(1, 9))
def test_what_was_saved_in_one_partition_is_loaded_in_another(
    tmp_path_factory: pytest.TempPathFactory, before: Any, after: Any, block: int
) -> None:
    place = tmp_path_factory.mktemp("place")
    shapes = {name: (count,) for name, count in COUNTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_BLOCK", block)  # so that stretches lie across blocks
        writers = [writer(place, rank, len(before), parameters=shapes) for rank in range(len(before))]
        for each, held in zip(writers, before, strict=True):
            each.save(1, (Stretch(n, k, lo, values(n, k, shapes=shapes)[lo:hi]) for n, k, lo, hi in held), {})
        for each in writers:
            each.close()
        found = found_in(place)
        for held in after:
            wanted = [Stretch(n, k, lo, torch.full((hi - lo,), torch.nan)) for n, k, lo, hi in held]
            load(found, iter(wanted), parameters=shapes)
            for name, kind, start, got in wanted:
                assert torch.equal(got, values(name, kind, shapes=shapes)[start : start + len(got)])


def test_what_is_written_is_safetensors(tmp_path: Path) -> None:
    saved(tmp_path, 40, world=2)
    seen = {}
    for path in tmp_path.glob("*/*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (no dict)
                seen[key] = file.get_tensor(key)
    assert torch.equal(seen["exp_avg.17.embed.weight"], values("embed.weight", "exp_avg")[17:])
    assert torch.equal(seen["weight.0.scale"], values("scale", "weight"))
    assert {value.dtype for value in seen.values()} == {torch.float32}
    assert sum(map(len, seen.values())) == 3 * (35 + 3 + 1)
    facts = json.loads(only(tmp_path, "*/complete.json").read_text())
    assert [file["file"] for file in facts["files"]] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    for file in facts["files"]:
        data = only(tmp_path, f"*/{file['file']}").read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_values_that_are_no_ordinary_numbers_are_kept(tmp_path: Path) -> None:
    odd = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45, -torch.inf])
    writing = writer(tmp_path, parameters={"odd": (5,)})
    writing.save(1, [Stretch("odd", kind, 0, odd) for kind in KINDS], {"loss": float("nan")})
    writing.close()
    got = torch.zeros(5)
    load(found_in(tmp_path), [Stretch("odd", "weight", 0, got)], parameters={"odd": (5,)})
    assert got.numpy().tobytes() == odd.numpy().tobytes()


def test_meta_comes_back(tmp_path: Path) -> None:
    writing = writer(tmp_path)
    writing.save(40, stretches(0, 1), {"seed": 17, "best": {"step": 20, "value": 0.1}, "stream": "9f3c"})
    writing.close()
    found = found_in(tmp_path)
    assert found.step == 40
    assert found.meta == {"seed": 17, "best": {"step": 20, "value": 0.1}, "stream": "9f3c"}
    assert found.parameters == SHAPES
    assert pickle.loads(pickle.dumps(found)).pieces == found.pieces  # it travels to the workers
    assert str(found) == f"{tmp_path}/step-00000040-a"


# ── written behind the back of training ──


class Slow(Place):
    """A place where writing waits for leave."""

    def __init__(self, url: str | Path, leave: threading.Event) -> None:
        super().__init__(url)
        self._leave = leave

    def write(self, name: str, chunks: Any) -> None:
        assert self._leave.wait(60)
        super().write(name, chunks)


def test_training_goes_on_while_it_is_written(tmp_path: Path) -> None:
    leave, told = threading.Event(), list[str]()
    completed: list[int] = []
    writing = writer(tmp_path, note=told.append, on_complete=completed.append)
    writing._place = Slow(tmp_path, leave)
    weights = stretches(0, 1)
    writing.save(1, weights, {"seed": 0})  # returns, and nothing is written
    assert latest(tmp_path) is None
    for stretch in weights:
        stretch.values.mul_(0)  # training goes on
    timer = threading.Timer(0.3, leave.set)
    timer.start()
    waited = writing.save(2, stretches(0, 1, seed=2), {"seed": 2})
    assert waited >= 0.2
    assert len(told) == 1
    assert told[0].startswith("the checkpoint of step 1 was still being written: waited ")
    writing.close()
    assert completed == [1, 2]
    assert is_of(latest(tmp_path, step=1), 0)  # as it was when it was saved
    assert is_of(latest(tmp_path), 2)


def test_memory_is_used_again(tmp_path: Path) -> None:
    writing = writer(tmp_path)
    blocks = []
    for step in (1, 2, 3):
        writing.save(step, stretches(0, 1), {})
        blocks.append([block.data_ptr() for block in writing._memory._blocks])
    writing.close()
    assert blocks[0] == blocks[1] == blocks[2]
    assert len(blocks[0]) == 1


def test_what_went_wrong_is_raised_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in ("save", "close"):
        writing = writer(tmp_path / "file" / "place")
        writing.save(1, stretches(0, 1), {})
        with pytest.raises(IftError, match="Not a directory"):
            writing.save(2, stretches(0, 1), {}) if call == "save" else writing.close()
        writing.close()  # once


def test_it_is_complete_when_all_ranks_files_are_there(tmp_path: Path) -> None:
    first, second = writer(tmp_path, 0, 2), writer(tmp_path, 1, 2)
    first.save(1, stretches(0, 2), {"seed": 0})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/rank-00000.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    assert latest(tmp_path) is None
    second.save(1, stretches(1, 2), {"seed": 0})
    second.close()
    first.close()
    assert is_of(latest(tmp_path), 0)


class Failing(Place):
    """A place behind a network that is down each time the named method is called, the first `times`."""

    remote = True

    def __init__(self, url: str | Path, method: str, times: int) -> None:
        super().__init__(url)
        self.left, whole = times, getattr(self, method)

        def failing(*arguments: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                raise IftError(f"{url} could not be reached")
            return whole(*arguments)

        setattr(self, method, failing)


@pytest.mark.parametrize("method", ["write", "files", "read", "folders", "delete"])
def test_a_short_outage_of_a_remote_place_ends_nothing(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PAUSES", (0.0,) * 3)
    told = list[str]()
    writing = writer(tmp_path, keep=1, note=told.append)
    for step in (1, 2):
        writing._place = Failing(tmp_path, method, 3 if step == 2 else 0)
        writing.save(step, stretches(0, 1, seed=step), {})
        writing.close()
    assert told == [f"{tmp_path} could not be reached; the checkpoint is tried again in 0 s"] * 3
    assert steps_in(tmp_path) == [2]


def test_what_cannot_be_deleted_stays_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PAUSES", ())
    told = list[str]()
    writing = writer(tmp_path, keep=1, note=told.append)
    for step in (1, 2, 3):
        writing._place = Failing(tmp_path, "delete", 1 if step == 2 else 0)
        writing.save(step, stretches(0, 1, seed=step), {})
        writing.close()
    assert told == [f"older checkpoints stay for now: {tmp_path} could not be reached"]
    assert steps_in(tmp_path) == [3]


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    writing = writer(tmp_path, 0, 2, patience=0.2)
    writing.save(40, stretches(0, 2), {})
    with pytest.raises(IftError) as caught:
        writing.close()
    assert caught.value.what == (
        "the checkpoint of step 40 is not complete: rank-00001.safetensors is not in "
        f"{tmp_path}/step-00000040-a after 0 minutes"
    )
    assert caught.value.hint == "see whether all nodes write to the same place: cluster.storage"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ift.places import Place
from test_checkpoint import KILLS, stretches, writer

write = Place.write
for place, kill in zip(sys.argv[2:], KILLS, strict=True):
    if os.fork():
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
        continue

    def killed(self, name, chunks, kill=kill):
        if name.endswith(kill):
            write(self, name, half(chunks))
        write(self, name, chunks)

    def half(chunks):
        yield bytes(next(iter(chunks)))[:20]
        os._exit(9)

    Place.write = killed
    writing = writer(place, nonce="b")
    writing.save(2, stretches(0, 1, seed=2), {})
    writing.close()
"""
KILLS = [".safetensors", "rank-00000.json", "complete.json"]


def test_killed_while_writing(tmp_path: Path) -> None:
    places = [tmp_path / kill for kill in KILLS]
    for place in places:
        saved(place, 1, seed=1)
    subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), *map(str, places)], check=True)
    for place in places:
        left = place / "step-00000002-b"
        assert left.exists()
        assert not (left / "complete.json").exists()
        assert is_of(latest(place), 1)
        clean(place)
        assert not left.exists()
        assert is_of(latest(place), 1)


# ── which are kept ──


def steps_in(place: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in place.iterdir())


def test_the_last_ones_and_the_protected_are_kept(tmp_path: Path) -> None:
    writing = writer(tmp_path, keep=2)
    for step, protected in [
        (10, {10}),
        (20, {10}),
        (30, {10}),
        (40, {10}),
        (50, {40}),
        (60, {40}),
        (70, {40}),
    ]:
        writing.protect(protected)
        writing.save(step, stretches(0, 1, seed=step), {})
    writing.close()
    assert steps_in(tmp_path) == [40, 60, 70]
    assert is_of(latest(tmp_path, step=40), 40)
    assert latest(tmp_path, step=10) is None


def test_the_newest_is_what_was_written_last(tmp_path: Path) -> None:
    """Where a run went on from an older one, later steps are those of a way that was left."""
    saved(tmp_path, 40, seed=40)
    saved(tmp_path, 25, seed=25, nonce="b")
    assert is_of(latest(tmp_path), 25)
    saved(tmp_path, 30, seed=30, nonce="b")
    assert steps_in(tmp_path) == [25, 30]


def test_the_same_step_again_after_a_kill(tmp_path: Path) -> None:
    writer(tmp_path, 0, 2, nonce="a")._put("step-00000040-a", {})  # what a killed attempt left
    saved(tmp_path, 40, seed=1, nonce="b")
    assert is_of(latest(tmp_path), 1)
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000040-b"]


def test_a_place_without_checkpoints(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    clean(tmp_path / "none")
    remove(tmp_path / "none")
    saved(tmp_path / "some", 1)
    (tmp_path / "some" / "notes").mkdir()  # not ours
    assert found_in(tmp_path / "some").step == 1
    remove(tmp_path / "some")
    assert not (tmp_path / "some").exists()


# ── broken ones ──


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def put_header(path: Path, header: bytes) -> None:
    """Another header in the same number of bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes(data[:8] + header.ljust(length) + data[8 + length :])


def mark(folder: Path, **changes: Any) -> None:
    """Another `complete.json`, with the sum that it should have."""
    facts = json.loads((folder / "complete.json").read_text())
    del facts["sha256"]
    facts |= changes
    facts["sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / "complete.json").write_text(json.dumps(facts))


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda f: (f / "rank-00001.safetensors").unlink(), "rank-00001.safetensors is missing"),
    (
        "truncated",
        lambda f: os.truncate(f / "rank-00000.safetensors", 100),
        "rank-00000.safetensors has 100 of ",
    ),
    (
        "longer",
        lambda f: (f / "rank-00000.safetensors").open("ab").write(b"more"),
        "rank-00000.safetensors has ",
    ),
    (
        "header",
        lambda f: flip(f / "rank-00000.safetensors", 8),
        "the header of rank-00000.safetensors cannot be read",
    ),
    (
        "length",
        lambda f: flip(f / "rank-00000.safetensors", 6),
        "the header of rank-00000.safetensors cannot be read",
    ),
    (
        "type",
        lambda f: put_header(
            f / "rank-00000.safetensors",
            b'{"weight.0.a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 4]}}',
        ),
        "the header of rank-00000.safetensors cannot be read",
    ),
    (
        "beyond",
        lambda f: put_header(
            f / "rank-00000.safetensors",
            b'{"weight.0.a": {"dtype": "F32", "shape": [999], "data_offsets": [0, 3996]}}',
        ),
        "the header of rank-00000.safetensors cannot be read",
    ),
    (
        "less in it",
        lambda f: put_header(f / "rank-00001.safetensors", b"{}"),
        "elements 17 to 34 of the weight of embed.weight are not all there",
    ),
    ("mark", lambda f: flip(f / "complete.json", 30), "complete.json is not what was written"),
    ("half a mark", lambda f: os.truncate(f / "complete.json", 30), "complete.json is not what was written"),
    ("another mark", lambda f: mark(f, files=[3]), "complete.json is not what was written"),
    (
        "a path",
        lambda f: mark(f, files=[{"file": "../x.safetensors", "bytes": 1, "sha256": ""}]),
        "../x.safetensors is no name of its files",
    ),
]


@pytest.mark.parametrize(("broken", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_one_is_passed_over(tmp_path: Path, broken: Callable[[Path], Any], says: str) -> None:
    saved(tmp_path, 1, world=2, seed=1)
    saved(tmp_path, 2, world=2, seed=2)
    broken(tmp_path / "step-00000002-a")
    told: list[str] = []
    assert is_of(latest(tmp_path, note=told.append), 1)
    assert len(told) == 1
    assert told[0].startswith(f"the checkpoint {tmp_path}/step-00000002-a is broken and passed over: {says}")
    remove(tmp_path / "step-00000001-a")
    with pytest.raises(IftError) as caught:
        latest(tmp_path)
    what, wanted, hint = str(caught.value).splitlines()
    assert what.startswith(f"no checkpoint in {tmp_path} is whole: {told[0]}"[:-1])
    assert wanted == "  wanted: one whose files are all there as they were written"
    assert hint == f"  next:   put the files back, or delete {tmp_path} to start over"


def test_a_changed_bit_is_found_before_it_is_used(tmp_path: Path) -> None:
    saved(tmp_path, 1, world=2, seed=1)
    saved(tmp_path, 2, world=2, seed=2)
    path = tmp_path / "step-00000002-a" / "rank-00001.safetensors"
    flip(path, path.stat().st_size - 3)
    found = found_in(tmp_path)
    assert found.step == 2  # all is there
    verify(found, rank=0, world=2)  # whoever reads the other file
    for share in ({"rank": 1, "world": 2}, {"rank": 0, "world": 1}):
        with pytest.raises(BrokenCheckpoint, match=r"rank-00001\.safetensors of .* its sum differs"):
            verify(found, **share)
    older = latest(tmp_path, passed_over={found.name})
    assert is_of(older, 1)
    with pytest.raises(IftError, match=r"no checkpoint in .* is whole"):
        latest(tmp_path, passed_over={found.name, "step-00000001-a"})
    path.unlink()
    with pytest.raises(BrokenCheckpoint, match="is gone"):
        verify(found)


@given(world=st.integers(1, 5), ranks=st.integers(1, 5))
def test_every_file_is_verified_by_somebody(
    tmp_path_factory: pytest.TempPathFactory, world: int, ranks: int
) -> None:
    place = tmp_path_factory.mktemp("place")
    saved(place, 1, world=world)
    found = found_in(place)
    for path in sorted(place.glob("*/*.safetensors")):
        flip(path, -1)
        refused = 0
        for rank in range(ranks):
            try:
                verify(found, rank=rank, world=ranks)
            except BrokenCheckpoint:
                refused += 1
        assert refused == 1
        flip(path, -1)


# ── not to be trusted ──


class _Touch:
    """Unpickled, it creates a file: what a poisoned checkpoint could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["state.pt", "rank-00000.py", "convert.sh", "more/x.json", ".hidden"])
def test_what_can_hold_code_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    saved(place, 1)
    saved(place, 2)
    intruder = place / "step-00000002-a" / name
    intruder.parent.mkdir(exist_ok=True)
    intruder.write_bytes(pickle.dumps(_Touch(tmp_path / "ran")))
    with pytest.raises(IftError) as caught:
        latest(place)
    what, wanted, hint = str(caught.value).splitlines()
    assert what == (
        f"the checkpoint {place}/step-00000002-a holds {name}, which can hold code: it is not trusted"
    )
    assert wanted == "  wanted: safetensors and JSON files alone"
    assert hint == "  next:   find out who put it there; delete it if you trust the rest"
    assert not (tmp_path / "ran").exists()
    intruder.unlink()
    assert found_in(place).step == 2


def test_a_pickle_under_the_name_of_a_file_is_not_unpickled(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    folder = tmp_path / "step-00000001-a"
    data = pickle.dumps(_Touch(tmp_path / "ran"))
    (folder / "rank-00000.safetensors").write_bytes(data)
    facts = {"file": "rank-00000.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    mark(folder, files=[facts])
    with pytest.raises(IftError, match=r"the header of rank-00000\.safetensors cannot be read"):
        latest(tmp_path)
    assert not (tmp_path / "ran").exists()


# ── another run's, another model's ──


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (
            {**SHAPES, "head": (2,), "more": (1,)},
            "it lacks head and 1 more parameters, which this run trains",
        ),
        ({"embed.weight": (5, 7), "scale": ()}, "it holds layers.0.norm, which this run does not train"),
        ({**SHAPES, "embed.weight": (7, 5)}, "embed.weight is (5, 7) there and (7, 5) in this run"),
        ({"lora": (2,)}, "it lacks lora, which this run trains"),
    ],
)
def test_another_models_is_refused(tmp_path: Path, shapes: dict[str, Sequence[int]], says: str) -> None:
    saved(tmp_path, 1)
    with pytest.raises(IftError) as caught:
        load(found_in(tmp_path), [], parameters=shapes)
    what, wanted, hint = str(caught.value).splitlines()
    assert what == f"the checkpoint {tmp_path}/step-00000001-a is of another model: {says}"
    assert wanted == "  wanted: a checkpoint of this model with this adapter"
    assert hint == (
        f"  next:   put back the model and train.adapter of before, or delete {tmp_path} to start over"
    )


def test_another_runs_is_refused(tmp_path: Path) -> None:
    writing = writer(tmp_path)
    writing.save(40, stretches(0, 1), {"stream": "9f3c", "global_batch": 8, "seed": 17})
    writing.close()
    found = found_in(tmp_path)
    found.require({"stream": "9f3c", "global_batch": 8})
    for facts, says in [
        ({"stream": "9f3c", "seed": 18}, "seed 17; this run has 18"),
        ({"global_batch": 16}, "global_batch 8; this run has 16"),
        ({"stream": "07d1"}, "stream '9f3c'; this run has '07d1'"),
        ({"schedule": "linear"}, "schedule None; this run has 'linear'"),
    ]:
        with pytest.raises(IftError) as caught:
            found.require(facts)
        what, wanted, hint = str(caught.value).splitlines()
        assert what == f"the checkpoint of step 40 in {found} was made with {says}"
        assert wanted == "  wanted: the settings, the data and the model of before"
        assert hint == f"  next:   put them back, or delete {tmp_path} to start over"


def test_the_estimate_is_what_is_written(tmp_path: Path) -> None:
    saved(tmp_path, 1, world=2)
    data = sum(len(s.values) * 4 for rank in range(2) for s in stretches(rank, 2))
    assert checkpoint.bytes_needed(35 + 3 + 1) == data
