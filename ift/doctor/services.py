"""Judgements of what a run talks to: the storage of its checkpoints, and MLflow.

In:  a storage's URL, a tracking URI.
Out: a `Check` each.

    mlflow("https://mlflow.example.com").found      # "access denied, HTTP 401"
"""

import json
import os
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from ift import places
from ift.doctor.check import Check
from ift.errors import IftError

_PATIENCE = 5.0  # seconds for an answer
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def storage(url: str) -> Check:
    """A small file is written, read, listed and deleted in the folder or bucket."""
    try:
        places.check(url)
    except IftError as error:
        moves = [error.hint, f"wanted: {error.wanted}" if error.wanted else None]
        return Check("storage", "fail", error.what, "; ".join(filter(None, moves)) or "see cluster.storage")
    return Check("storage", "pass", f"{url}: written, read, listed and deleted")


def mlflow(uri: str, *, on_cluster: bool = False) -> Check:
    """Whether MLflow answers and lets us in; and whether it lets in everyone."""
    from ift.redaction import without_secrets
    from ift.tracking.client import mlflow_client, reason, resolve_uri, status_of

    shown = without_secrets(uri)
    try:
        uri = resolve_uri(uri, Path.cwd())
    except IftError as error:
        return Check("mlflow", "fail", error.what, f"wanted: {error.wanted}")
    if uri.startswith("sqlite"):
        return _file(uri, on_cluster=on_cluster)
    try:
        mlflow_client(uri, _PATIENCE).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  (whatever MLflow's client raises is what we came to see)
        why = f"{shown}: {reason(error, _PATIENCE)}"
        if status_of(error) in (401, 403):
            keys = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            given = any(name in os.environ for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"))
            move = f"see whether these are right: {keys}" if given else f"set {keys}"
            return Check("mlflow", "fail", why, move)
        return Check("mlflow", "fail", why, "see that the server runs, and tracking.uri; `ift ui` starts one")
    host = urlsplit(uri).hostname or ""
    if uri.startswith("http") and host not in LOOPBACK and _lets_in_everyone(uri):
        return Check(
            "mlflow",
            "warn",
            f"{shown} answers, and asks nobody who they are: whoever reaches it can read and change everything",
            "start it with passwords (cluster/mlflow/README.md), or let the network keep others out",
        )
    return Check("mlflow", "pass", f"{shown} answers, and lets us in")


def _file(uri: str, *, on_cluster: bool) -> Check:
    path = Path(uri.partition("://")[2].partition("?")[0].removeprefix("/"))
    if str(path) == ":memory:":
        return Check("mlflow", "warn", "a database in memory, gone with the run", "name a file or a server")
    parent = next(p for p in path.parents if p.exists())
    if not os.access(path if path.exists() else parent, os.W_OK):
        return Check("mlflow", "fail", f"{path} cannot be written", "choose another tracking.uri")
    if path.exists():
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:
            return Check("mlflow", "fail", f"{path}: {error}", "choose another tracking.uri")
    words = f"the file {path}" + ("" if path.exists() else ", made by the first run")
    if on_cluster:
        return Check(
            "mlflow",
            "warn",
            f"{words}: on a cluster it is on whichever node the job starts",
            "name a server, such as tracking.uri=https://mlflow.example.com (cluster/mlflow)",
        )
    return Check("mlflow", "pass", words)


def _lets_in_everyone(uri: str) -> bool:
    """Whether it tells of its experiments without being told who asks."""
    question = urllib.request.Request(
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(question, timeout=_PATIENCE) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
