"""Rows that are in MLflow, as files in the cache.

In:  what a task's `source.mlflow` says, the folder of the task's file, and the cache folder.
Out: the files, and the digest of what they hold.

    fetch(Mlflow(dataset="faq"), folder, cache)    # ([CACHE/mlflow/5b1e…/records.jsonl], "9e1c2b7a")

Three things can be named: a registered data set (a row a record: inputs, expectations, outputs, tags), one that a
run logged with `mlflow.log_input`, whose source is followed to its files, and files among a run's artefacts. Any of
them may change, so MLflow is asked every time; what it gives lies under a digest of its content:

    mlflow/DIGEST/...

MLflow itself is met in a process of its own, ift.data.from_mlflow: it keeps its address and its time-outs process-wide.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ift.data import cache as caches
from ift.data import hub, s3
from ift.errors import IftError
from ift.redaction import without_secrets
from ift.tasks.task import Hub, Mlflow

Progress = Callable[[int, int | None], None]
_HOUSE = Path(__file__).resolve().parents[2]
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT = 10.0  # seconds
# Where the user has set nothing: MLflow by itself would try for minutes, and talk.
_QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def fetch(
    source: Mlflow, folder: Path, cache: Path, progress: Progress | None = None
) -> tuple[list[Path], str]:
    """The files with the rows, and the digest by which MLflow knows them; of artefacts, one of their content.

    Raises `IftError` that says which it is: nothing of that name, several, no answer, or nothing that can be read.
    """
    uri = _uri(source, folder)
    root = cache / "mlflow"
    root.mkdir(parents=True, exist_ok=True)
    # the name is such as `made` removes a day after a process was killed
    with tempfile.TemporaryDirectory(prefix=".part-", dir=root) as work:
        asked = {"uri": uri, "folder": work, **source.model_dump(include={"dataset", "run", "artifact"})}
        answer = _answer(asked)
        if "s3" in answer:
            return s3.fetch(answer["s3"], cache, progress), answer["digest"]
        if "hub" in answer:
            splits = {"train": answer["split"]} if answer["split"] else None
            fetched = hub.fetch(_hub(answer["hub"]), splits, cache, progress)
            return [path for paths in fetched.files.values() for path in paths], answer["digest"]
        if "local" in answer:
            return _files(Path(answer["local"])), answer["digest"]
        return _kept(Path(work), root, answer["digest"])


def _hub(said: dict[str, Any]) -> Hub:
    try:
        return Hub(**said)
    except ValueError:
        raise IftError(f"the data set was read from {said['id']!r}, which is not on the hub") from None


def _kept(work: Path, root: Path, digest: str | None) -> tuple[list[Path], str]:
    """The files in `work` under a digest of what they hold."""
    names = [path.relative_to(work) for path in _files(work)]
    content = json.dumps([[str(name), caches.digest_of(work / name)] for name in names])
    address = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    place = root / address
    if not place.is_dir():
        with caches.made(place) as making:
            for name in names:
                (making / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / name, making / name)
    return [place / name for name in names], digest or address


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _uri(source: Mlflow, folder: Path) -> str:
    """The address of MLflow; what would be waited for in vain, or be made anew, is refused here."""
    uri = source.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise IftError(
            "nothing says where MLflow is",
            wanted="`uri` beside the data set, or MLFLOW_TRACKING_URI: http://HOST:5000, sqlite:///mlflow.db",
        )
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind == "sqlite":
        path = Path(uri.partition("://")[2].partition("?")[0].removeprefix("/")).expanduser()
        path = (folder if source.uri else Path.cwd()) / path
        if not path.is_file():
            raise IftError(f"there is no database {path}", wanted="the file in which MLflow keeps its runs")
        return f"{parts.scheme}:///{path}" + (f"?{parts.query}" if parts.query else "")
    if kind in _PORTS and parts.hostname:
        try:
            socket.create_connection((parts.hostname, parts.port or _PORTS[kind]), _CONNECT).close()
        except OSError as error:
            raise IftError(
                f"MLflow's database at {without_secrets(uri)} could not be reached: {error}",
                hint="check the address and the network",
            ) from None
    return uri


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What MLflow says; the files that it gives lie in `asked["folder"]` then."""
    paths = [str(_HOUSE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ift.data.from_mlflow"],
        input=json.dumps(asked),
        env={**_QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = without_secrets((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        raise IftError(f"MLflow at {without_secrets(asked['uri'])} could not be read: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise IftError(**answer["refused"])
    return answer
