"""Which tasks a run uses: names, patterns, clusters, files, data without a task file, and mixes of them.

In:  the spec's `tasks` and `mixture`.
Out: a `Selection`: every task once, the tree of mixes over those that are trained on, and those held out.

    select([TaskRef(name="trec"), TaskRef(data="my/*.jsonl")], MixtureSpec()).mix    # Mix("tasks", members=(…))
"""

import fnmatch
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ift.data import formats
from ift.data.mixture import Leaf, Mix, leaves
from ift.errors import IftError, nearest
from ift.spec import MixtureSpec, TaskRef
from ift.tasks import layouts, task
from ift.tasks.clusters import CLUSTERS, held_out
from ift.tasks.task import Task

_ROWS_LOOKED_AT = 100  # of data without a task file
_MANY_FILES = 10  # of it: so many are likely parts of one data set
REPLAY = "replay"  # the name of the mix that holds the replayed tasks


@dataclass
class Selection:
    """`tasks` by name; `mix` over those trained on; `held_out` are evaluated only; `notes` say what was left out.

    `loss_weights` has the tasks whose supervised tokens do not count 1.
    """

    tasks: dict[str, Task]
    mix: Mix
    replay: Mix | None = None
    held_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loss_weights: dict[str, float] = field(default_factory=dict)

    @property
    def replayed(self) -> list[str]:
        """The names of the tasks that are only replayed."""
        return leaves(self.replay) if self.replay else []

    @property
    def trained(self) -> list[str]:
        """The names of all tasks that are trained on, the replayed ones last."""
        return leaves(self.mix) + self.replayed


def select(
    refs: Sequence[TaskRef], mixture: MixtureSpec | None = None, *, folders: Sequence[str] = ()
) -> Selection:
    """Load what `refs` name and part it into what is trained on and what is held out.

    Raises `IftError` for a task that is not there, is faulty or is named twice, and for a trained task that has
    the rows of one held out.
    """
    mixture = mixture or MixtureSpec()
    selection, catalogue = Selection({}, Mix("tasks")), _Catalogue(folders)
    mix = Mix("tasks", mixture.rule, mixture.cap, mixture.temperature, members=())
    selection.mix = _filled(mix, refs, selection, catalogue)
    if mixture.replay:
        inner = Mix(REPLAY, mixture.replay.rule)
        selection.replay = _filled(inner, mixture.replay.tasks, selection, catalogue)
    if mixture.hold_out:
        _hold_out(selection, mixture)
    return selection


class _Catalogue:
    """The tasks that have names: the user's folders and the library. All of them are read once, if at all."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = folders

    @cached_property
    def names(self) -> list[str]:
        return task.library(self.folders)

    @cached_property
    def tasks(self) -> list[Task]:
        return [self.load(name) for name in self.names]

    def load(self, name: str) -> Task:
        return task.load(name, folders=self.folders)


def _filled(mix: Mix, refs: Sequence[TaskRef], selection: Selection, catalogue: _Catalogue) -> Mix:
    """`mix` with the members that `refs` name; their tasks go to `selection.tasks`."""
    members: list[Leaf | Mix] = []
    for ref in refs:
        if mix.rule == "fixed" and ref.weight is None:
            raise IftError(
                f"`{ref}` has no weight, and the rule of "
                + ("`mixture`" if mix.name == "tasks" else f"the mix `{mix.name}`")
                + " is fixed",
                wanted="`weight` on each of its members",
                hint=f"{{{'mix' if ref.mix else 'file' if ref.file else 'name'}: {ref}, weight: 2}}",
            )
        if ref.mix:
            inner = Mix(ref.mix, ref.rule, ref.cap, ref.temperature, weight=ref.weight or 1.0)
            members.append(_filled(inner, ref.tasks, selection, catalogue))
            continue
        for found in _found(ref, catalogue, selection.notes):
            if found.name in selection.tasks:
                raise IftError(f"the task `{found.name}` stands in `tasks` twice", wanted="each task once")
            selection.tasks[found.name] = found
            if ref.loss_weight is not None:
                selection.loss_weights[found.name] = ref.loss_weight
            members.append(Leaf(found.name, ref.weight or 1.0))
    return replace(mix, members=tuple(members))


def _found(ref: TaskRef, catalogue: _Catalogue, notes: list[str]) -> list[Task]:
    found = _loaded(ref, catalogue, notes)
    return [task.only(ref.templates) for task in found] if ref.templates else found


def _loaded(ref: TaskRef, catalogue: _Catalogue, notes: list[str]) -> list[Task]:
    if ref.file:
        return [task.load(file=ref.file)]
    if ref.data:
        return _of_data(ref, notes)
    if ref.cluster:
        if found := [t for t in catalogue.tasks if t.cluster == ref.cluster]:
            return found
        raise IftError(
            f"no task of the cluster `{ref.cluster}`",
            wanted=f"one of {', '.join(CLUSTERS)}",
            hint=nearest(ref.cluster, CLUSTERS),
        )
    name = str(ref.name)
    if any(sign in name for sign in "*?["):
        names = fnmatch.filter(catalogue.names, name)
        if not names:
            raise IftError(
                f"no task is called like `{name}`", wanted="a pattern that fits some task (`ift tasks list`)"
            )
        return [catalogue.load(match) for match in names]
    return [catalogue.load(name)]


def _of_data(ref: TaskRef, notes: list[str]) -> list[Task]:
    """One task a file; of several files the empty ones are left out."""
    pattern = str(ref.data)
    found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
    paths = [path for path in map(Path, sorted(found)) if path.is_file()]
    if not paths:
        raise IftError(
            f"no data file {pattern}",
            wanted="a path, or a pattern such as data/*.jsonl",
            hint=_if_of_the_hub(Path(pattern)),
        )
    tasks: list[Task] = []
    empty: list[Path] = []
    for path in paths:
        try:
            row, broken = _first_row(path)
        except formats.Empty:
            if len(paths) == 1:
                raise
            empty.append(path)
            continue
        layout = layouts.detect(row)
        if layout is None:
            raise _without_layout(path, row, broken)
        if tools := [column for column in layouts.TOOLS if row.get(column)]:
            raise IftError(
                f"{path} has a column `{tools[0]}`, and calls of tools are not trained",
                wanted="rows without it",
                hint="a task file that maps the other columns leaves it out knowingly: docs/tasks.md",
            )
        values = {**layouts.values(layout), "source": {"files": str(path.resolve())}}
        for key in ("cluster", "license", "metric", "system"):
            if given := getattr(ref, key):
                values[key] = given
        name = _name_of(path)
        if twin := next((t for t in tasks if t.name == name), None):
            raise IftError(
                f"{path} and {twin.path} would both be the task `{name}`",
                wanted="files of different names",
                hint="rename one, or give each a task file",
            )
        # what the first rows lack, later ones may have
        tasks.append(task.of_values(name, values, path.parent, where=str(path), told=layouts.TOLD))
    if empty:
        some = ", ".join(path.name for path in empty[:3]) + (", …" if len(empty) > 3 else "")
        notes.append(f"{len(empty)} of {len(paths)} files of {pattern} have no rows and are left out: {some}")
    if len(tasks) >= _MANY_FILES:
        notes.append(
            f"{pattern} is {len(tasks)} tasks, one a file; parts of one data set want a task file with "
            f"`source: {{files: {Path(pattern).name}}}` (docs/tasks.md)"
        )
    return tasks


def _if_of_the_hub(path: Path) -> str | None:
    """What to do where `path` was meant as the id of a data set of the hub, such as HuggingFaceH4/no_robots."""
    name = f"{path.parent.name}/{path.name}"
    if (
        path.suffix.lower() in formats.ENDINGS
        or path.parent.is_dir()
        or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    ):
        return None
    own = re.sub(r"\W+", "_", path.name.lower())
    return (
        f"a data set of the hub has a task file: `- {{file: {own}.yaml}}` in `tasks`, and in it, where its rows are "
        f"conversations: {{name: {own}, kind: chat, source: {{hub: {{id: {name}}}}}, "
        "fields: {messages: {turns: messages}}, max_new_tokens: 512} (docs/tasks.md has it in full)"
    )


def _first_row(path: Path) -> tuple[dict[str, Any], str]:
    """The columns of a file's first rows, each with the first value that is not empty: the order of rows says nothing.
    And why the first row that cannot be read cannot be.
    """
    found: dict[str, Any] = {}
    broken = ""
    for row in islice(formats.read(path), _ROWS_LOOKED_AT):
        if isinstance(row, formats.Bad):
            broken = broken or f"line {row.line}: {row.reason}"
            continue
        for column, value in row.values.items():
            found[column] = found.get(column) or value
    return found, broken


def _without_layout(path: Path, row: Mapping[str, Any], broken: str) -> IftError:
    has = f"has the columns {', '.join(row)}" if row else f"has no row that can be read ({broken})"
    prose = path.suffix.lower() == ".txt"
    return IftError(
        f"{path} {has}",
        wanted=f"the columns of {layouts.WANTED}",
        hint='prose goes into rows {"text": "…"}, one a document, in a .jsonl file'
        if prose
        else "or a task file that maps them: docs/tasks.md",
    )


def _name_of(path: Path) -> str:
    """`My-Data.v2.jsonl.gz` -> `my_data_v2`."""
    stem = (path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path).stem.lower()
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in stem) or "data"


def _hold_out(selection: Selection, mixture: MixtureSpec) -> None:
    """Take the held-out clusters and their neighbours out of the mix; mind rows that both sides would have."""
    tasks = selection.tasks
    clusters = held_out(mixture.hold_out, {t.cluster for t in tasks.values()})
    out = [name for name, t in tasks.items() if t.cluster in clusters]
    asked = [name for name in out if tasks[name].cluster in mixture.hold_out]
    if not asked:
        raise IftError(
            f"no task of the held-out {_plural(mixture.hold_out)} stands in `tasks`",
            wanted="the tasks to evaluate there, beside those to train on",
            hint=f"the clusters in `tasks` are {', '.join(sorted({t.cluster for t in tasks.values()}))}",
        )
    selection.held_out = out
    mix = _without(selection.mix, set(out))
    if mix is None:
        raise IftError(
            f"every task belongs to the held-out {_plural(mixture.hold_out)} or a neighbour of it",
            wanted="one or more tasks to train on",
        )
    selection.mix = mix
    if selection.replay:
        selection.replay = _without(selection.replay, set(out))
    if selection.replay is None and mixture.replay:
        raise IftError(
            f"every task of `mixture.replay` belongs to the held-out {_plural(mixture.hold_out)} or a neighbour of it",
            wanted="one or more tasks to replay, or no `replay`",
        )
    both = [
        (one, other) for one in selection.trained for other in out if tasks[one].shares_rows(tasks[other])
    ]
    if both and mixture.overlap == "error":
        raise IftError(
            "; ".join(
                f"`{one}` would be trained on the rows of `{other}`, which is held out" for one, other in both
            ),
            wanted="other rows in training than in the held-out evaluation",
            hint="leave one out, or say `mixture.overlap: allow` (trains on them) or `remove` (does not)",
        )
    if both and mixture.overlap == "remove":
        removed = {one for one, _ in both}
        left = _without(mix, removed)
        replay = _without(selection.replay, removed) if selection.replay else None
        if left is None or (selection.replay and replay is None):
            raise IftError(
                f"no task is left to {'train on' if left is None else 'replay'}: "
                f"{', '.join(sorted(removed))} have rows that are held out",
                hint="say `mixture.overlap: allow`, or hold out less",
            )
        selection.mix, selection.replay = left, replay
        selection.notes.append(f"not trained on, for its rows are held out: {', '.join(sorted(removed))}")
        for name in removed:
            del tasks[name]


def _without(mix: Mix, names: set[str]) -> Mix | None:
    kept: list[Leaf | Mix] = []
    for member in mix.members:
        if isinstance(member, Leaf):
            if member.name not in names:
                kept.append(member)
        elif inner := _without(member, names):
            kept.append(inner)
    return replace(mix, members=tuple(kept)) if kept else None


def _plural(names: Sequence[str]) -> str:
    return f"cluster{'s' if len(names) > 1 else ''} {', '.join(names)}"
