"""MLflow, set up so that it neither waits for minutes nor writes on the terminal; and what its errors mean.

In:  a tracking URI; an exception.
Out: a client; a reason in a few plain words.

    try:
        mlflow_client("http://mlflow:5000").search_experiments()
    except Exception as error:
        print(reason(error))        # 'connection refused'
"""

import logging
import math
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ift.errors import IftError
from ift.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

_ours: set[str] = set()  # the environment variables that we have set, not the user
_patience = threading.RLock()
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def mlflow_client(uri: str, timeout: float | None = None) -> "MlflowClient":
    """A client for `uri`, without MLflow's global state. Takes seconds the first time: it imports MLflow.

    The timeout, in seconds for a request, holds for the whole process; 5 where nobody has set one.
    """
    _check_database(uri, timeout or 5.0)
    quiet = {
        RETRIES: "0",
        TIMEOUT: str(math.ceil(timeout)) if timeout else os.environ.get(TIMEOUT, "5"),
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    _set(quiet)

    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" in _ours:  # MLflow may have been imported before
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def patience(seconds: float, retries: int = 0) -> Iterator[None]:
    """Give a request this long, for files; MLflow knows only one setting for the whole process."""
    wanted = {
        TIMEOUT: str(math.ceil(seconds)),
        RETRIES: str(retries),
    }
    with _patience:
        before = {name: os.environ[name] for name in wanted if name in _ours}
        _set(wanted)
        try:
            yield
        finally:
            os.environ.update(before)


def give(seconds: float) -> None:
    """Let every request from now on take so long, unless the user has said how long."""
    with _patience:
        _set({TIMEOUT: str(math.ceil(seconds))})


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if name in _ours or name not in os.environ:
            _ours.add(name)
            os.environ[name] = value


# MLflow's pages of an experiment are those of training, and not those of prompts and traces
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def ensure_experiment(client: "MlflowClient", uri: str, name: str, folder: Path) -> str:
    """The id of the experiment; created where missing, a database's with artefacts beside it or in `folder`."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    location = None
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite" or scheme in DATABASE_PORTS:
        root = (
            Path(_sqlite_path(uri)).absolute().parent if scheme == "sqlite" and _sqlite_path(uri) else folder
        )
        location = (root / "mlartifacts" / (re.sub(r"[^\w.-]+", "_", name).strip(".") or "_")).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return ensure_experiment(client, uri, name, folder)  # another run was faster


def resolve_uri(uri: str, base: Path) -> str:
    """`uri` with a relative SQLite path made absolute below `base`.

    resolve_uri("sqlite:///mlflow.db", Path("/data")) == "sqlite:////data/mlflow.db"
    """
    parts, path = urlsplit(uri), _sqlite_path(uri)
    if parts.scheme == "file" or (not parts.scheme and uri != "databricks"):
        raise IftError(
            f"the tracking URI is '{without_secrets(uri)}', and MLflow no longer keeps runs in plain folders",
            wanted="a database or a server: sqlite:///mlflow.db, http://host:5000",
        )
    if not parts.scheme.startswith("sqlite") or not path:
        return uri
    absolute = Path(os.path.abspath(base / Path(path).expanduser()))
    return f"{parts.scheme}:///{absolute}" + (f"?{parts.query}" if parts.query else "")


def elsewhere(uri: str) -> str | None:
    """What MLFLOW_TRACKING_URI says where that is another place than a run's `uri`; else None."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        return None
    with suppress(IftError):
        named = resolve_uri(named, Path.cwd())
    return None if named.rstrip("/") == uri.rstrip("/") else without_secrets(named)


def existing_uri(uri: str, base: Path) -> str:
    """`resolve_uri`; raises `IftError` where it is a database file that is not there."""
    uri = resolve_uri(uri, base)
    path = _sqlite_path(uri)
    if uri.startswith("sqlite") and path and not Path(path).exists():
        raise IftError(
            f"no tracking database at {path}",
            wanted="the folder in which `ift run` was started, or its --uri",
            hint="the summary at the end of a run names it",
        )
    return uri


def _sqlite_path(uri: str) -> str:
    """The file of a SQLite URI, empty for a database in memory."""
    path = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    return "" if path == ":memory:" else path


NO_ANSWER = {
    "connection refused": "connection refused",
    "name or service not known|name resolution|nameresolution|getaddrinfo": "the host's name is not known",
    "connection aborted|reset by peer|remotedisconnected|broken pipe": "the connection was cut",
    "no route to host|network is unreachable": "the network does not reach it",
}


def reason(error: BaseException, timeout: float = 5.0) -> str:
    """Why MLflow failed, in a few plain words."""
    told = cut(without_secrets(" ".join(str(error).partition("(Background on")[0].split())), 200)
    if status := status_of(error):
        known = {401: "access denied", 403: "access denied", 429: "too many requests"}
        if status == 404 and type(error).__name__ != "RestException":
            return "there is no MLflow at this address, HTTP 404"
        return f"{known.get(status) or ('server error' if status >= 500 else told)}, HTTP {status}"
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed"
    if re.search("timed out|timeout", str(error), re.I):
        return f"nothing within {timeout:g} s"
    for pattern, words in NO_ANSWER.items():
        if re.search(pattern, str(error), re.I):
            return words
    return told or type(error).__name__


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a server's answer, if the error came from one."""
    if (answer := getattr(error, "response", None)) is not None and getattr(answer, "status_code", None):
        return int(answer.status_code)
    if found := re.search(r"too many (\d{3}) error responses|failed with error code (\d{3})", str(error)):
        return int(found[1] or found[2])
    if type(error).__name__ == "RestException":
        return int(error.get_http_status_code())  # type: ignore[attr-defined]
    return None


def refused(error: Exception) -> bool:
    """Whether MLflow will never take this, however often it is sent."""
    codes = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
    return getattr(error, "error_code", None) in codes or status_of(error) in (400, 413, 422)


def _check_database(uri: str, timeout: float) -> None:
    """MLflow tries a database that it cannot open for minutes; this says so at once."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite") and (path := _sqlite_path(uri)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout).close()


def cut(text: str, length: int) -> str:
    """`text`, with an ellipsis at its end where it was longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "…"
