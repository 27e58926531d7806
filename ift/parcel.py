"""What a submitted job is sent: the spec, its task files with their hooks, what the user adds, the source of `ift`.

In:  a spec's path and overrides, files to add.
Out: a `Parcel`: where each file of this machine lies in the folder that the job starts in.

    parcel = pack(Path("jobs/x.yaml"), ["train.epochs=2"], add=[])
    parcel.spec        # "job/jobs/x.yaml", with the overrides in it
    parcel.write(folder)

No data and no models: what a task reads lies where all nodes see it, and is named by an absolute path, s3://, the hub,
a package or MLflow. Files keep their places beside each other, so relative paths mean there what they mean here.
"""

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ift
from ift import spec as specs
from ift.errors import IftError
from ift.spec import Spec, TaskRef
from ift.tasks import task as tasks
from ift.tasks.task import LIBRARY, Task

LIMIT = 100 * 2**20  # bytes: what Ray's dashboard takes in one request
_HOUSE = Path(ift.__file__).resolve().parent
_LEFT_OUT = ("__pycache__", ".git", ".venv")
_SHARED = "an absolute path that all nodes see, s3://BUCKET/…, or --add FILE for a small one"


@dataclass(frozen=True)
class Parcel:
    """`text` is the spec's, `spec` its place; `files` are the others, by their place."""

    name: str
    spec: str
    text: str
    files: dict[str, Path]
    code: dict[str, Path]  # of `ift` itself, empty where the cluster has its own

    @property
    def size(self) -> int:
        """Bytes in all."""
        sizes = (path.stat().st_size for path in (*self.files.values(), *self.code.values()))
        return len(self.text.encode()) + sum(sizes)

    def digest(self) -> str:
        """Of what the job is to do, as hexadecimal digits; not of the code that does it."""
        digest = hashlib.sha256(self.text.encode())
        for place, path in sorted(self.files.items()):
            digest.update(f"\n{place}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def require_size(self) -> None:
        """Raise `IftError` where it is more than Ray takes, with what makes it so large."""
        if self.size <= LIMIT:
            return
        sizes = {place: path.stat().st_size for place, path in {**self.files, **self.code}.items()}
        largest = sorted(sizes, key=lambda place: -sizes[place])[:3]
        raise IftError(
            f"what the job would be sent is {mib(self.size)}: "
            + ", ".join(f"{place.removeprefix(_JOB)} {mib(sizes[place])}" for place in largest)
            + (f" and {len(sizes) - 3:,} more" if len(sizes) > 3 else ""),
            wanted=f"at most {mib(LIMIT)}, which is what Ray takes",
            hint="put data where all nodes see it and name it by an absolute path or s3://…, without --add",
        )

    def write(self, folder: Path) -> None:
        """All of it below `folder`, which is empty."""
        for place, path in {**self.files, **self.code}.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / self.spec).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.spec).write_text(self.text, encoding="utf-8")


_JOB = "job/"  # what is the user's stands apart from `ift/`


def pack(path: Path, overrides: Sequence[str], *, add: Sequence[Path], code: bool = True) -> Parcel:
    """What the job of this spec is sent. `code`: the source of `ift` too, so that it runs what runs here.

    Raises `IftError` for what the cluster could not find: relative paths to what is not sent.
    """
    written = specs.read(path, overrides)
    spec = specs.resolve_paths(written, path.parent)
    added = set(_added(add))
    needed = set(_task_files(spec)) | added
    _require_sent(written, spec, path, added)
    root = Path(os.path.commonpath([path.resolve().parent, *(p.parent for p in needed)]))

    def place(file: Path) -> str:
        return _JOB + file.relative_to(root).as_posix()

    home = path.resolve().parent
    text = specs.moved(
        written, lambda name: os.path.relpath((home / Path(name).expanduser()).resolve(), home)
    )
    files = {place(file): file for file in sorted(needed)}
    return Parcel(spec.name, place(path.resolve()), text, files, dict(_code()) if code else {})


def _code() -> Iterator[tuple[str, Path]]:
    for file in sorted(_HOUSE.rglob("*")):
        if file.is_file() and not set(_LEFT_OUT) & set(file.parts):
            yield f"ift/{file.relative_to(_HOUSE).as_posix()}", file


def _added(given: Iterable[Path]) -> Iterator[Path]:
    """The files that the user adds; of folders all that is in them, but for what is never meant."""
    for path in given:
        if not path.exists():
            raise IftError(f"--add {path}: there is no such file", wanted="a file or a folder to send along")
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in inside:
            if file.is_file() and not set(_LEFT_OUT) & set(file.relative_to(path).parts):
                yield file.resolve()


def _all_refs(spec: Spec) -> Iterator[TaskRef]:
    def each(refs: Sequence[TaskRef]) -> Iterator[TaskRef]:
        for ref in refs:
            yield ref
            yield from each(ref.tasks)

    yield from each(spec.tasks)
    for section in (spec.mixture, spec.forgetting):
        if section.replay:
            yield from each(section.replay.tasks)


def _own_tasks(spec: Spec) -> dict[Path, tuple[Task, bool]]:
    """The user's tasks by file, each with whether the run uses it; of a folder of tasks all are sent."""
    refs = list(_all_refs(spec))
    own = {Path(ref.file).resolve(): (tasks.load(file=ref.file), True) for ref in refs if ref.file}
    for name, path in tasks.available(spec.task_folders).items():
        if path.parent != LIBRARY:
            task = tasks.load(name, folders=spec.task_folders)
            used = any(
                fnmatch.fnmatchcase(name, ref.name or "") or ref.cluster == task.cluster
                for ref in refs
                if not ref.data
            )
            own.setdefault(path.resolve(), (task, used))
    return own


def _task_files(spec: Spec) -> Iterator[Path]:
    for path, (task, _) in _own_tasks(spec).items():
        yield path
        if task.hook:
            yield task.path_of(task.hook.partition(":")[0]).resolve()


def _require_sent(written: Spec, spec: Spec, path: Path, added: set[Path]) -> None:
    """Raise `IftError` for a relative path to something that does not go along."""
    for file, (task, used) in _own_tasks(spec).items():
        source = task.source.files or {}
        for name in [source] if isinstance(source, str) else source.values():
            if used and not _reachable(name, task.folder, added):
                raise IftError(
                    f"the task `{task.name}` reads {name}, beside its file, and data is not sent",
                    wanted=_SHARED,
                    where=str(file),
                )
    for ref in _all_refs(written):
        if ref.data and not _reachable(ref.data, path.resolve().parent, added):
            raise IftError(
                f"`tasks` reads {ref.data}, relative to the spec, and data is not sent",
                wanted="an absolute path that all nodes see, or --add FILE for a small one",
                hint="what is in S3 is named by a task file: `source: {files: s3://BUCKET/…}`",
                where=str(path),
            )
    source = written.model.source
    if not os.path.isabs(source) and (path.parent / Path(source).expanduser()).is_dir():
        raise IftError(
            f"`model.source` is {source}, a folder of this machine, and models are not sent",
            wanted="a model of the hub, a package or the registry, or an absolute path that all nodes see",
            where=str(path),
        )
    storage = written.cluster.storage
    if storage and "://" not in storage and not os.path.isabs(storage):
        raise IftError(
            f"`cluster.storage` is {storage}, relative to a folder that Ray removes behind the job",
            wanted="an absolute path that all nodes see, or s3://BUCKET/PREFIX",
            where=str(path),
        )


def _reachable(name: str, folder: Path, added: set[Path]) -> bool:
    """Whether a node may find `name`: it is a full address, or goes along."""
    if "://" in name or os.path.isabs(name):
        return True
    pattern = str(folder / Path(name).expanduser())
    return any(file == Path(pattern).resolve() or fnmatch.fnmatchcase(str(file), pattern) for file in added)


def mib(size: int) -> str:
    """Bytes in MiB, for people."""
    return f"{size / 2**20:,.1f} MiB"
