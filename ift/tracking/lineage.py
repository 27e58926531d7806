"""Where a run comes from, in MLflow's words: its data sets, its command, its code, its packages.

In:  the tasks and the manifest of the prepare stage; the working directory.
Out: plain values for `Tracker.log_inputs` and for tags.

    datasets(selection.tasks, manifest, trained={"trec"})
    # [{"name": "trec", "digest": "3f9a…", "source_type": "local", "source": '{"uri": "/data/trec.jsonl"}', …}]
    provenance(Path.cwd())["mlflow.source.git.commit"]
"""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ift import cluster, storage
from ift.redaction import without_secrets
from ift.tasks.task import Task

_DIGEST, _TAG = 32, 500  # characters; MLflow takes 36 and 500
_FILES = 50  # that a data set's profile names
CONTEXT = "mlflow.data.context"
# the variable with the tags of `code` where a job was submitted: what is sent to a cluster has no git beside it
CODE = "IFT_CODE"


def datasets(
    tasks: Mapping[str, Task], prepared: Mapping[str, Any], *, trained: Collection[str]
) -> list[dict[str, Any]]:
    """A data set for each task: its digest is of the files' content, its licence and templates are tags.

    What the source is in the user's words, how many rows it has and its first files stand in the profile.
    """
    found = []
    for name, task in tasks.items():
        read = prepared["inputs"][name]
        kind, source = _source(task, read["files"], prepared["commits"].get(name))
        profile = {
            "num_rows": read["rows"],
            "bad_rows": read["bad"],
            "licence": task.license,
            "source": task.source.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            "files": [dict(file) for file in read["files"][:_FILES]],
        }
        tags = {
            CONTEXT: "training" if name in trained else "evaluation",
            "ift.licence": task.license,
            "ift.templates": templates_digest(task),
        }
        found.append(
            {
                "name": name,
                "digest": _digest([[file["split"], file["sha256"]] for file in read["files"]]),
                "source_type": kind,
                "source": without_secrets(json.dumps(source)),
                "profile": without_secrets(json.dumps(profile)),
                "tags": {key: value[:_TAG] for key, value in tags.items()},
            }
        )
    return found


def templates_digest(task: Task) -> str:
    """A digest of how a task is worded."""
    return _digest([template.model_dump(mode="json") for template in task.templates])


def all_templates_digest(tasks: Mapping[str, Task]) -> str:
    """A digest of how all tasks of a run are worded."""
    return _digest({name: templates_digest(task) for name, task in tasks.items()})


def provenance(folder: Path) -> dict[str, str]:
    """Tags that MLflow's pages know: who ran what, and the commit of the code; of who submitted it, in a job."""
    program = Path(sys.argv[0])
    words = ["ift" if program.stem in ("ift", "__main__", "cli") else program.name, *sys.argv[1:]]
    tags = {
        "ift.command": " ".join(words),
        # MLflow's pages show what is behind the last slash
        "mlflow.source.name": " ".join(Path(word).name for word in words[:3]),
        "mlflow.source.type": "JOB" if cluster.in_job() else "LOCAL",
    }
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return {**tags, **(json.loads(os.environ.get(CODE, "{}")) or code(folder))}


def code(folder: Path) -> dict[str, str]:
    """The commit of the git repository that `folder` lies in, and whether that is all; empty where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = "uncommitted changes" if _git(folder, "status", "--porcelain") else "none"
    return {"mlflow.source.git.commit": commit, "ift.git_changes": changes}


def packages() -> str:
    """Every installed distribution with its version, a line each, as `pip freeze` has them."""
    found = {f"{one.name}=={one.version}" for one in metadata.distributions() if one.name}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _source(
    task: Task, files: list[Mapping[str, str | None]], commit: str | None
) -> tuple[str, dict[str, Any]]:
    """Its kind, and what MLflow's own sources of that kind are made of."""
    source = task.source
    if source.hub:
        hub = {"path": source.hub.id, "config_name": source.hub.config}
        hub |= {
            "revision": commit or source.hub.revision,
            "split": None,
            "data_dir": None,
            "data_files": None,
        }
        return "hugging_face", hub
    given = source.files if isinstance(source.files, str) else next(iter((source.files or {}).values()), "")
    if given.startswith("s3://"):
        return "s3", {"uri": given}
    paths = [str(file["file"]) for file in files]
    return "local", {"uri": os.path.commonpath(paths) if paths else ""}


def _digest(value: Any) -> str:
    return storage.value_digest(value)[:_DIGEST]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
