"""Every task's rows as examples, split, the bad ones set aside: what can be refused before a cluster starts.

In:  a `Selection` of tasks, and how many examples go to train, validation and test.
Out: `Gathered`: the examples of each task by split, what was dropped and why, and how many rows are bad.

    gather(select([TaskRef(name="trec")]), cache=cache, train=None, validation=0.05, test=0.05, …).sizes
    # {"trec": 4906}

What is tested is set apart first, over all tasks; then what may be trained on loses the rows that a test set or a
probe holds, and near duplicates where that is asked for; of the rest as many are taken as the spec says.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ift import storage
from ift.data import cache as caches
from ift.data import contamination, duplicates, shingles
from ift.data import split as splitting
from ift.data.examples import Examples, Pool, contents_of, examples_of, texts_of
from ift.data.selection import Selection
from ift.data.sources import Progress, Status, unheard
from ift.errors import IftError
from ift.spec import Spec
from ift.tasks.probes import Probe
from ift.tasks.task import SPLITS, Task

_FAULTS_SHOWN = 10
_TRIED = 5  # examples that each template has to word before anything starts, one of them at least
_BATCH = 2000  # examples whose words are looked at together
_BOILERPLATE = (
    0.5  # of a task's rows: more near duplicates than that share a preamble, and are told apart by the rest
)

Deduplicate = Literal["exact", "near"]
PoolsBySplit = dict[str, Pool]


@dataclass
class Gathered:
    """Every task's examples by split. `dropped` are rows left out of training: task, file, line, example, reason."""

    selection: Selection
    splits: dict[str, PoolsBySplit]
    max_bad_rows: float | int = 0.01
    dropped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, Examples] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, Task]:
        return self.selection.tasks

    @property
    def sizes(self) -> dict[str, int]:
        """The number of training examples of each task."""
        return {name: len(splits["train"]) for name, splits in self.splits.items()}

    @property
    def rows(self) -> int:
        """All rows that were read."""
        return sum(examples.total for examples in self.examples.values())

    @property
    def bad(self) -> int:
        """How many of them are in a quarantine."""
        return sum(examples.bad.count for examples in self.examples.values())

    @property
    def commits(self) -> dict[str, str]:
        """The commits of hub data sets, by task."""
        return {name: examples.commit for name, examples in self.examples.items() if examples.commit}


def settings_of(spec: Spec) -> dict[str, Any]:
    """How a spec would have its rows read and split, as `gather` takes it."""
    data, split = spec.data, spec.data.split
    return {
        "train": split.train,
        "validation": split.validation,
        "test": split.test,
        "balanced": data.balanced,
        "max_bad_rows": data.max_bad_rows,
        "seed": spec.seed,
        "deduplicate": data.deduplicate,
        "decontaminate": data.decontaminate,
    }


def gather(
    selection: Selection,
    *,
    cache: Path,
    train: float | None,
    validation: float,
    test: float,
    balanced: bool,
    max_bad_rows: float | int,
    seed: int = 0,
    deduplicate: Deduplicate = "exact",
    decontaminate: int = 13,
    probes: Sequence[Probe] = (),
    progress: Progress | None = None,
    counting: Progress | None = None,
    status: Status = unheard,
) -> Gathered:
    """Read and split every task's rows; word some examples of each, so that a faulty template is found now.

    `seed` decides which rows a source's `limit` keeps. `decontaminate` is the n of the n-grams that a training row
    must not share with a test set or a probe; 0 lets it. `progress` hears of bytes fetched, `counting` of rows,
    `status` of which task it is about.

    Raises `IftError` where a source is missing, too many of its rows are bad, or there are too few examples.
    """
    gathered = Gathered(selection, {}, max_bad_rows, notes=list(selection.notes))
    faults: list[IftError] = []
    alone = len(set(selection.tasks) - set(selection.replayed)) == 1
    parts: dict[str, _Parts] = {}
    for task in selection.tasks.values():
        try:
            status(f"fetching {task.name}")
            examples = examples_of(task, cache, progress, counting, status)
            gathered.examples[task.name] = examples
            if examples.empty:
                gathered.notes.append(f"`{task.name}`: no rows in {', '.join(examples.empty[:3])}")
            examples.bad.refuse(task.name, examples.total, max_bad_rows)
            parts[task.name] = _Parts.of(
                task,
                examples,
                {"train": train, "validation": validation, "test": test},
                balanced=balanced,
                alone=alone and task.name not in selection.replayed,
                seed=seed,
                keep_near=deduplicate != "near",
                notes=gathered.notes,
            )
        except IftError as fault:
            faults.append(fault)  # of many tasks all faults are told at once
    if decontaminate and not faults:
        _decontaminate(gathered, parts, probes, decontaminate, cache, counting)
    for name, part in parts.items():
        try:
            gathered.dropped += part.drop(
                part.left_out,
                "of a tested group",
                ["near duplicate, or of the group, of a row that is tested or validated"]
                * len(part.left_out),
            )
            if deduplicate == "near":
                gathered.dropped += part.without_near_duplicates()
            gathered.splits[name] = part.splits()
            _try_wordings(selection.tasks[name], gathered.splits[name])
        except IftError as fault:
            faults.append(fault)
    _refuse(faults, len(selection.tasks))
    _refuse_empty(gathered)
    return gathered


def _refuse(faults: Sequence[IftError], tasks: int) -> None:
    if len(faults) == 1:
        raise faults[0]
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        raise IftError(
            f"{len(faults)} of {tasks} tasks cannot be used:\n" + "\n".join(map(str, faults[:_FAULTS_SHOWN])),
            hint=f"{more} more are like these" if more > 0 else None,
        )


@dataclass
class _Parts:
    """One task while it is parted: `rest` is what may be trained on."""

    task: Task
    examples: Examples
    near: NDArray[np.int64]  # which examples are near duplicates of each other
    apart: splitting.Splits
    rest: splitting.Places
    left_out: splitting.Places  # neither tested nor trained on
    train: float | None
    labels: NDArray[np.int32] | None
    pool: splitting.Places  # what the parts are cut from
    alone: bool  # no other task is trained on or tested

    @classmethod
    def of(
        cls,
        task: Task,
        examples: Examples,
        wanted: Mapping[str, float | None],
        *,
        balanced: bool,
        alone: bool,
        seed: int,
        keep_near: bool,
        notes: list[str],
    ) -> "_Parts":
        """A split that the source brings is used whole, or up to the count asked for; the others are cut from `train`.

        A task among others gives at most a fifth of its examples for a count, and what it has where more are asked for
        to train on: what suits large tasks leaves some to small ones.
        """
        limit = task.source.limit
        brought = {name: _limited(examples, examples.of_split(name), limit, seed) for name in (None, *SPLITS)}
        upstream = {str(name): places for name, places in brought.items() if name and len(places)}
        pool = brought[None] if len(brought[None]) else upstream.pop("train", brought[None])
        asked = {"validation": float(wanted["validation"] or 0), "test": float(wanted["test"] or 0)}
        cut = {
            name: 0
            if name in upstream or not len(pool)
            else share
            if alone or share < 1
            else min(share, len(pool) // 5)
            for name, share in asked.items()
        }
        train = wanted["train"]
        if not len(pool):
            train = 0
        elif not alone and train is not None and train > len(pool) - sum(map(int, cut.values())):
            train = None
        needed = any(cut.values()) or not keep_near
        near = _near(task, examples, notes) if needed else np.arange(len(examples))
        groups = duplicates.groups(near.astype(np.uint64)[:, None] + np.uint64(1), [examples.groups])
        labels = examples.lookup.labels if balanced and task.kind == "classification" else None
        try:
            apart = splitting.set_apart(
                examples.ids[pool],
                groups[pool],
                test=cut["test"],
                validation=cut["validation"],
                labels=None if labels is None else labels[pool],
                names=examples.lookup.label_names,
            )
        except IftError as error:
            raise _of_task(error, task) from None
        apart = {name: pool[places] for name, places in apart.items()}
        rest, left_out = apart.pop("rest"), apart.pop("left_out")
        for name, places in upstream.items():
            count = asked[name]
            most = int(count) if count == int(count) else len(places)
            apart[name] = places[np.argsort(examples.ids[places], kind="stable")][:most]
        elsewhere = examples.groups[
            np.concatenate([*upstream.values(), rest[:0]])
        ]  # in a split that the source brings
        torn = np.isin(examples.groups[rest], elsewhere[elsewhere > 0])
        rest, left_out = rest[~torn], np.concatenate([left_out, rest[torn]])
        return cls(task, examples, near, apart, rest, left_out, train, labels, pool, alone)

    @property
    def seen(self) -> splitting.Places:
        """What training sees or is watched by."""
        return np.concatenate([self.rest, self.apart["validation"]])

    def drop(self, places: splitting.Places, kind: str, reasons: Sequence[str]) -> list[dict[str, Any]]:
        """Leave `places` out of training and validation; a row of the report for each."""
        self.rest = self.rest[~np.isin(self.rest, places)]
        watched = self.apart["validation"]
        self.apart["validation"] = watched[~np.isin(watched, places)]
        return [
            {**self.examples.where(place), "kind": kind, "reason": reason}
            for place, reason in zip(places.tolist(), reasons, strict=True)
        ]

    def without_near_duplicates(self) -> list[dict[str, Any]]:
        """Of near duplicates the one with the lowest id is trained on; the others are dropped."""
        ordered = self.rest[np.argsort(self.examples.ids[self.rest], kind="stable")]
        _, first, group = np.unique(self.near[ordered], return_index=True, return_inverse=True)
        kept = ordered[first][group]  # for each the one that stands for it
        gone = ordered != kept
        return self.drop(
            ordered[gone],
            "near duplicate",
            [f"near duplicate of {int(self.examples.ids[k]):016x}" for k in kept[gone].tolist()],
        )

    def splits(self) -> PoolsBySplit:
        """The examples of each split."""
        known = [] if self.labels is None else np.unique(self.labels[self.pool]).tolist()
        count, most = self.train, len(self.rest)
        if self.labels is not None:
            most = len(known) * min(
                (int((self.labels[self.rest] == label).sum()) for label in known), default=0
            )
        if not self.alone and count is not None and splitting.count_of(count, len(self.pool)) > most:
            count = None  # a small task among others gives what it has
        try:
            train = splitting.take(
                self.examples.ids,
                self.rest,
                count,
                total=len(self.pool),
                labels=self.labels,
                known=known,
                names=self.examples.lookup.label_names,
            )
        except IftError as error:
            raise _of_task(error, self.task) from None
        return {name: Pool(self.examples, places) for name, places in {**self.apart, "train": train}.items()}


def _of_task(error: IftError, task: Task) -> IftError:
    return IftError(
        f"task `{task.name}`: {error.what}", wanted=error.wanted, hint=error.hint, where=str(task.path)
    )


def _limited(examples: Examples, places: splitting.Places, limit: int | None, seed: int) -> splitting.Places:
    """`limit` of the places, in their order; which ones depends on the seed and on the examples' content alone."""
    if limit is None or len(places) <= limit:
        return places
    salt = hashlib.sha256(f"limit/{seed}".encode()).digest()[:8]
    drawn = splitting.mixed(examples.ids[places] ^ np.frombuffer(salt, dtype="<u8"))
    lowest = np.argsort(drawn, kind="stable")
    kept: splitting.Places = places[np.sort(lowest[:limit])]
    return kept


def _near(task: Task, examples: Examples, notes: list[str]) -> NDArray[np.int64]:
    """A number for each row, the same for near duplicates.

    Near duplicates by the dozen are rows that share a preamble and differ in what counts: they are told apart.
    """
    if not len(examples):
        return np.zeros(0, dtype=np.int64)
    near = duplicates.groups(examples.bands)
    sizes = np.bincount(near, minlength=len(near))
    many = sizes[near] > _BOILERPLATE * len(near)
    if many.any():
        notes.append(
            f"`{task.name}`: {int(many.sum()):,} rows are nearly alike, as rows with the same preamble are; "
            "they count as different ones"
        )
    columns = near.astype(np.uint64) + np.uint64(1)
    columns[many] = 0
    return duplicates.groups(columns[:, None], [examples.contents])


def _decontaminate(
    gathered: Gathered,
    parts: Mapping[str, _Parts],
    probes: Sequence[Probe],
    n: int,
    cache: Path,
    counting: Progress | None,
) -> None:
    """Leave out of training what a test set or a probe of this run holds, whatever task it is in."""
    selection = gathered.selection
    tests = {
        name: part
        for name, part in parts.items()
        if name not in selection.replayed and len(part.apart["test"])
    }
    asked = _Asked.of(
        [
            *((_test_set(name), part.examples.contents[part.apart["test"]]) for name, part in tests.items()),
            *((_probe(probe), contents_of([[i.prompt] for i in probe.items])[0]) for probe in probes),
        ]
    )
    tested = contamination.Tested.of(
        [
            *((_test_set(name), _texts(part.examples, part.apart["test"])) for name, part in tests.items()),
            *((_probe(probe), [[i.prompt, i.reference or ""] for i in probe.items]) for probe in probes),
        ],
        n=n,
    )
    for name in selection.trained:
        part = parts[name]
        tests_of = asked.find(part.examples.contents[part.seen])
        gathered.dropped += part.drop(
            part.seen[[test is not None for test in tests_of]],
            "contaminated",
            [f"{test} asks the same" for test in tests_of if test],
        )
        found = _shared(part, tested, cache, counting)
        gathered.dropped += part.drop(
            np.array([place for place, _ in found], dtype=np.int64), "contaminated", [why for _, why in found]
        )


@dataclass(frozen=True)
class _Asked:
    """What test sets and probes ask, as hashes of whole contents, sorted, each with the first that asks it."""

    contents: NDArray[np.uint64]
    owners: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, tests: Sequence[tuple[str, NDArray[np.uint64]]]) -> "_Asked":
        """From the contents of each test set; 0 is none."""
        everything = np.concatenate([np.zeros(0, dtype=np.uint64), *(contents for _, contents in tests)])
        owners = np.repeat(np.arange(len(tests)), [len(contents) for _, contents in tests])
        contents, first = np.unique(everything, return_index=True)
        return cls(contents[contents > 0], owners[first][contents > 0], tuple(name for name, _ in tests))

    def find(self, contents: NDArray[np.uint64]) -> list[str | None]:
        """For each of `contents` the test set that asks the same."""
        place = np.searchsorted(self.contents, contents)
        there = np.isin(contents, self.contents)
        return [
            self.names[self.owners[p]] if found else None
            for p, found in zip(place.tolist(), there.tolist(), strict=True)
        ]


def _shared(
    part: _Parts, tested: contamination.Tested, cache: Path, counting: Progress | None
) -> list[tuple[int, str]]:
    """The places in `part.seen` that share n words in a row with a test set, and which words. Kept in the cache."""
    if not tested.names:
        return []
    examples, places = part.examples, np.sort(part.seen)
    seen = hashlib.sha256(places.tobytes()).hexdigest()
    folder = caches.address(
        cache, "contamination", part.task.name, tested.digest, examples.lookup.folder.name, seen
    )
    kept = _kept(folder)
    if kept is None:

        def hits_from(start: int) -> contamination.Hits:
            rows = list(_texts(examples, places[start : start + _BATCH]))
            words = shingles.words([field for row in rows for field in row])
            return tested.hits(words, [len(row) for row in rows], start)

        hits = tested.joined([])
        starts = range(0, len(places), _BATCH)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it is arithmetic, without Python's lock
            for start, some in zip(starts, pool.map(hits_from, starts), strict=True):
                hits = tested.joined([hits, some])
                if counting:
                    counting(min(start + _BATCH, len(places)), len(places))
        kept = []
        for drop in contamination.decide(tested, hits):
            place = int(places[drop.row])
            if drop.at is not None:
                words_ = contamination.phrase(texts_of(examples[place].fields), drop.at, tested.n)
                kept.append((place, f"{drop.test} has these {tested.n} words in a row: {words_}"))
            else:
                kept.append((place, f"{drop.test} holds the same"))
        with caches.made(folder) as making:
            storage.write_json(making / "found.json", {"found": kept})
    return kept


def _kept(folder: Path) -> list[tuple[int, str]] | None:
    """What was found before; None where nothing was, or its file is damaged and is gone now."""
    try:
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        return [(int(place), str(why)) for place, why in found["found"]]
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        caches.require_damaged(folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _texts(examples: Examples, places: splitting.Places) -> Iterator[list[str]]:
    return (texts_of(examples[place].fields) for place in places.tolist())


def _test_set(name: str) -> str:
    return f"the test set of `{name}`"


def _probe(probe: Probe) -> str:
    return f"the probe `{probe.name}`"


def _try_wordings(task: Task, splits: PoolsBySplit) -> None:
    """Word some examples with every template: one that fits none of them is found before a cluster starts."""
    examples = [e for part in ("train", "validation", "test") for e in splits[part][:_TRIED]][:_TRIED]
    for template in task.wordings if examples else ():
        faults = []
        for example in examples:
            try:
                template.word(example.fields, key=example.id)
            except IftError as error:
                faults.append(error)
        if len(faults) == len(examples):
            lacking = sorted(template.fields - set(examples[0].fields))
            raise IftError(
                f"task `{task.name}`: {faults[0].what}",
                wanted=faults[0].wanted or f"one of the fields {', '.join(examples[0].fields)}",
                hint=faults[0].hint
                or (
                    f"`{lacking[0]}` is no column of the source, or `fields` leaves it out"
                    if lacking
                    else None
                ),
                where=str(task.path),
            ) from None


def _refuse_empty(gathered: Gathered) -> None:
    selection = gathered.selection
    trained = selection.trained
    empty = [name for name in trained if not gathered.splits[name]["train"]]
    if len(empty) == len(trained) or (len(gathered.tasks) == 1 and empty):
        where = gathered.tasks[empty[0]].source.where
        among = f": no row has {', '.join(f'`{k}` {v!r}' for k, v in where.items())}" if where else ""
        raise IftError(f"the task `{empty[0]}` has no training example{among}", wanted="one or more")
    if empty:
        gathered.notes.append(f"not trained on, for want of training examples: {', '.join(empty)}")
    for name, other in combinations(trained, 2):
        if gathered.tasks[name].shares_rows(gathered.tasks[other]):
            gathered.notes.append(
                f"`{name}` and `{other}` read the same rows: one may be trained on what the other is tested with"
            )
