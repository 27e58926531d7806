"""A run's copy in MLflow: sent in the background, out of files that are complete without it.

In:  the run folder, where training appends `metrics.jsonl` and `validation.jsonl`; params, tags, results and
     artefacts that the pipeline stages.
Out: a run in MLflow, and in the run folder `outbox.jsonl` (what was staged) and `tracking.json` (which run it
     is, and how much of each file has arrived).

    tracker = Tracker(run_dir, "http://mlflow:5000", "reviews", "reviews-1", notify=print)
    tracker.start({"train": {"epochs": 1}}, {"ift.spec": "4f1c"})   # returns at once
    tracker.wake()                                                  # metrics.jsonl has grown
    tracker.log_metrics({"test/accuracy": 0.82})
    tracker.close()                                                 # True: everything has arrived

A server that is down costs training nothing: one notice, attempts in the background, and what has not arrived
by the end goes out with the next `Tracker` on the same folder. Sending a metric twice leaves one point in
MLflow, because value, step and time stay the same: a line's own `time` (unix seconds) or, where it has none,
the run's start and as many milliseconds as it has steps.
"""

import json
import logging
import math
import os
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ift.errors import IftError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

STREAMS = {
    "metrics.jsonl": "train/",
    "validation.jsonl": "validation/",
    "looks.jsonl": "look/",
}  # file -> prefix of its metrics
OUTBOX = "outbox.jsonl"
ARTIFACTS = "outbox.jsonl:artifacts"  # a position of its own: artefacts that wait hold up nothing else
STATE = "tracking.json"
PARAMS_FULL = "params_full.json"

# MLflow's limits: for one request, for a key, for a param's and a tag's value.
METRICS_PER_REQUEST, ENTRIES_PER_REQUEST, KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 250, 6000, 5000
LONGEST_WAIT = 60.0  # seconds between two attempts

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Tracker:
    """Mirrors a run folder to MLflow from a thread of its own; no method raises, none waits for the network
    but `close`."""

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        notify: Callable[[str], None],
        timeout: float = 5.0,
        interval: float = 2.0,
    ) -> None:
        self.error: str | None = None  # why nothing gets through, or what MLflow did not take
        self._left_out: str | None = None
        self._run_dir, self._uri, self._experiment, self._run_name = Path(run_dir), uri, experiment, run_name
        self._tell, self._timeout, self._interval = notify, timeout, interval
        self._address = without_secrets(uri)
        self._client: MlflowClient | None = None
        self._connected = self._down = False
        self._deadline: float | None = None  # set by `close`
        self._wake, self._closing, self._append_lock = threading.Event(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="ift-mlflow", daemon=True)
        self._state = self._saved_state()

    @property
    def run_id(self) -> str | None:
        """The run in MLflow, once it is known."""
        return self._state.get("run_id")

    @property
    def closed(self) -> bool:
        """Whether its end was told already."""
        return self._closing.is_set()

    # What the pipeline calls. Everything is written to the outbox first.

    def start(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Begin to send; the thread connects, and creates the run or resumes the one in tracking.json."""
        full = {key: without_secrets(value) for key, value in flatten(params).items()}
        short = {_key(key): _cut(value, PARAM_LENGTH) for key, value in full.items()}
        shown_tags = {_key(key): _cut(without_secrets(str(value)), TAG_LENGTH) for key, value in tags.items()}
        self._append("start", params=short, tags=shown_tags)
        if any(len(value) > PARAM_LENGTH for value in full.values()):
            with self._no_disk_error():
                _write(self._run_dir / PARAMS_FULL, full)
            self.log_artifact(self._run_dir / PARAMS_FULL)
        if self._thread.ident is None:
            self._thread.start()

    def wake(self) -> None:
        """There may be new lines."""
        self._wake.set()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Stage results, to be sent under `step`."""
        self._append("metrics", step=step, metrics=_numbers(metrics))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Stage a file or a folder; it is read when it is sent, so it must stay where it is."""
        path = Path(path).absolute()
        if path.is_relative_to(self._run_dir.absolute()):  # so that a run folder can be moved
            path = path.relative_to(self._run_dir.absolute())
        self._append("artifact", path=str(path), folder=folder)

    def close(self, status: str = "FINISHED", timeout: float = 60) -> bool:
        """Send the rest for up to `timeout` seconds, and say whether everything has arrived."""
        if self._thread.ident is None:  # never started: nothing has been promised
            return False
        if not self._closing.is_set():
            self._append("end", status=status)
            self._deadline = time.monotonic() + timeout
            self._closing.set()
            self._wake.set()
        self._thread.join(timeout)
        arrived = False
        with suppress(OSError):
            arrived = not self._thread.is_alive() and self._everything_sent()
        if not arrived:
            self._notify(
                f"MLflow at {self._address}: not everything has arrived. It is kept in {self._run_dir} and "
                "goes out when the same run is started again."
            )
        return arrived

    # The thread.

    def _work(self) -> None:
        failures = 0
        while True:
            try:
                self._round()
                failures = 0
                self._is_up()
            except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
                failures += 1
                self._is_down(error)
            if self._deadline is not None and (
                (not failures and self._everything_sent()) or time.monotonic() >= self._deadline
            ):
                return
            if not failures:
                self._wake.wait(self._interval)
                self._wake.clear()
                self._closing.wait(self._interval / 4)  # many wakes, one batch
            elif self._deadline is None:
                self._closing.wait(min(self._interval * 2 ** (failures - 1), LONGEST_WAIT))
            else:
                time.sleep(max(0.0, min(self._interval, 1.0, self._deadline - time.monotonic())))

    def _round(self) -> None:
        """Send everything that is there now."""
        if not self._connected:
            self._connect()
        for name in (*STREAMS, OUTBOX):
            self._send_file(name)
        for end, line in self._lines(OUTBOX, ARTIFACTS):
            if line.get("kind") == "artifact":
                self._send_artifact(line)
            self._acknowledge(ARTIFACTS, end)

    @property
    def _mlflow(self) -> "MlflowClient":
        if self._client is None:
            self._client = mlflow_client(self._uri, self._timeout)
        return self._client

    def _connect(self) -> None:
        """Find or create experiment and run; where the run has been deleted, everything goes to a new one."""
        state = self._state
        if state.get("run_id") and not self._alive(state["run_id"]):
            self._notify(
                f"the run {state['run_id']} is no longer in MLflow at {self._address}: it goes to a new one"
            )
            state = self._state = self._new_state()
        if not state.get("run_id"):
            state["experiment_id"] = ensure_experiment(
                self._mlflow, self._uri, self._experiment, self._run_dir.absolute().parent
            )
            state["run_id"] = self._found_run() or self._created_run()
            self._save()
        self._connected = True

    def _found_run(self) -> str | None:
        """The run that an earlier attempt created without our hearing of it."""
        if not self._state.get("attempted"):
            return None
        wanted = f"tags.`ift.key` = '{self._state['key']}'"
        found = self._mlflow.search_runs([self._state["experiment_id"]], wanted)
        return str(found[0].info.run_id) if found else None

    def _created_run(self) -> str:
        state = self._state
        state["attempted"] = True
        self._save()
        started, tags = int(state["started"] * 1000), {"ift.key": state["key"]}
        return str(self._mlflow.create_run(state["experiment_id"], started, tags, self._run_name).info.run_id)

    def _alive(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._mlflow.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _send_file(self, name: str) -> None:
        """Metrics go in batches, in the order of the lines; what is between them waits for them."""
        batch: list[Metric] = []
        end = None
        for end, line in self._lines(name, name):
            if name in STREAMS:
                values = {key: value for key, value in line.items() if key not in ("step", "time")}
                batch += self._metrics(values, line, STREAMS[name])
            elif line.get("kind") == "metrics":
                batch += self._metrics(line["metrics"], line, "")
            elif line.get("kind") in ("start", "end"):
                self._send_metrics(batch)
                batch = []
                (self._send_start if line["kind"] == "start" else self._send_end)(line)
                self._acknowledge(name, end)
            if len(batch) > METRICS_PER_REQUEST - 50:
                self._send_metrics(batch)
                batch = []
                self._acknowledge(name, end)
        if end is not None:
            self._send_metrics(batch)
            self._acknowledge(name, end)

    def _metrics(self, values: Mapping[str, Any], line: Mapping[str, Any], prefix: str) -> "list[Metric]":
        from mlflow.entities import Metric

        step, stamp = _whole(line.get("step")) or 0, _whole(line.get("time"), 1000)
        if stamp is None:
            stamp = int(self._state["started"] * 1000) + step
        return [Metric(_key(prefix + key), value, stamp, step) for key, value in _numbers(values).items()]

    def _send_metrics(self, metrics: "Sequence[Metric]") -> None:
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._log_batch("metrics", metrics[start : start + METRICS_PER_REQUEST])

    def _send_start(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        run = self._mlflow.get_run(self._state["run_id"])
        if run.info.status != "RUNNING":
            self._mlflow.update_run(self._state["run_id"], status="RUNNING")
        there, wanted, tags = run.data.params, line["params"], dict(line["tags"])
        # MLflow refuses another value for a param, so that is said in a tag.
        changed = [
            f"{key}: {there[key]} -> {wanted[key]}"
            for key in wanted
            if there.get(key, wanted[key]) != wanted[key]
        ]
        if changed:
            tags["ift.changed_params"] = _cut("\n".join(changed), TAG_LENGTH)
        params = [Param(key, value) for key, value in wanted.items() if key not in there]
        for start in range(0, len(params), ENTRIES_PER_REQUEST):
            self._log_batch("params", params[start : start + ENTRIES_PER_REQUEST])
        entries = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entries), ENTRIES_PER_REQUEST):
            self._log_batch("tags", entries[start : start + ENTRIES_PER_REQUEST])

    def _send_end(self, line: Mapping[str, Any]) -> None:
        self._mlflow.set_terminated(self._state["run_id"], line["status"], _whole(line["time"], 1000))

    def _log_batch(self, kind: str, entries: Sequence[Any]) -> None:
        """One request; where MLflow refuses it for good, one by one, so that only the culprit is left out."""
        batch: dict[str, Any] = {kind: entries}
        try:
            self._mlflow.log_batch(self._state["run_id"], **batch)
        except Exception as error:  # noqa: BLE001  (raised again unless it is final)
            self._raise_unless_refused(error)
            if len(entries) == 1:
                self._leave_out(f"{kind} {entries[0].key}", error)
                return
            for entry in entries:
                self._log_batch(kind, [entry])

    def _send_artifact(self, line: Mapping[str, Any]) -> None:
        path = self._run_dir / line["path"]
        try:
            if not path.exists():
                raise FileNotFoundError("it is no longer there")
            size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
            with patience(self._timeout + size / 2**20):
                send = self._mlflow.log_artifact if path.is_file() else self._mlflow.log_artifacts
                send(self._state["run_id"], str(path), line.get("folder"))
        except (FileNotFoundError, PermissionError, NotADirectoryError, ImportError) as error:
            self._leave_out(str(path), error)
        except Exception as error:  # noqa: BLE001  (raised again unless it is final)
            self._raise_unless_refused(error)
            self._leave_out(str(path), error)

    def _raise_unless_refused(self, error: Exception) -> None:
        if not _refused(error):
            raise error
        if not self._alive(self._state["run_id"]):  # the next round makes a new run
            raise error

    def _leave_out(self, what: str, error: Exception) -> None:
        self._left_out = f"does not take {what} ({reason(error, self._timeout)}); it is left out"
        self._notify(f"MLflow at {self._address} {self._left_out}")

    # Files.

    def _append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}).encode() + b"\n"
        with self._append_lock, self._no_disk_error(), (self._run_dir / OUTBOX).open("ab+") as file:
            whole = not file.tell() or _ends_a_line(file, file.tell())
            file.write(line if whole else b"\n" + line)  # a process that was killed may have left half a line
        self._wake.set()

    @contextmanager
    def _no_disk_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._notify(f"nothing can be kept for MLflow in {self._run_dir} ({error.strerror or error})")

    def _lines(self, name: str, position: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The complete lines of file `name` that have not been sent, each with where it ends."""
        path = self._run_dir / name
        if not path.exists():
            return
        with path.open("rb") as file:
            end = self._state["sent"].get(position, 0)
            if end and (end > path.stat().st_size or not _ends_a_line(file, end)):
                end = 0  # written anew: sending what is already there again does no harm
            file.seek(end)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # half-written: the next round
                end += len(raw)
                try:
                    line = json.loads(raw)
                except ValueError:
                    line = None
                yield end, line if isinstance(line, dict) else {}

    def _everything_sent(self) -> bool:
        positions = {**dict.fromkeys(STREAMS), OUTBOX: None, ARTIFACTS: None}
        return self._connected and not any(
            True for position in positions for _ in self._lines(position.partition(":")[0], position)
        )

    def _acknowledge(self, position: str, end: int) -> None:
        self._state["sent"][position] = end
        self._save()

    def _save(self) -> None:
        _write(self._run_dir / STATE, self._state)

    def _saved_state(self) -> dict[str, Any]:
        new = self._new_state()
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads((self._run_dir / STATE).read_text(encoding="utf-8"))
            if all(saved[key] == new[key] for key in ("uri", "experiment")):
                return {**new, **saved}
        return new

    def _new_state(self) -> dict[str, Any]:
        identity = {
            "uri": self._address,
            "experiment": self._experiment,
            "experiment_id": None,
            "run_id": None,
        }
        return {**identity, "sent": {}, "started": round(time.time(), 3), "key": uuid.uuid4().hex}

    # What people are told.

    def _is_down(self, error: Exception) -> None:
        self._connected = False  # the next round looks first whether the run is still there
        self.error = why = reason(error, self._timeout)
        if not self._down:
            self._down = True
            quiet = why in NO_ANSWER.values() or why.startswith("nothing within")
            verb = (
                "answers with an error" if _status(error) else "does not answer" if quiet else "does not work"
            )
            self._notify(
                f"MLflow at {self._address} {verb} ({why}); the run goes on, and what it logs is kept in "
                f"{self._run_dir} and sent when MLflow is back"
            )

    def _is_up(self) -> None:
        self.error = self._left_out
        if self._down:
            self._down = False
            self._notify(f"MLflow at {self._address} is back; what had waited has been sent")

    def _notify(self, text: str) -> None:
        with suppress(Exception):
            self._tell(text)


# MLflow, set up so that it neither waits for minutes nor writes on the terminal. Shared with the registry.

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


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if name in _ours or name not in os.environ:
            _ours.add(name)
            os.environ[name] = value


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
        return str(client.create_experiment(name, artifact_location=location))
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


def _sqlite_path(uri: str) -> str:
    """The file of a SQLite URI, empty for a database in memory."""
    path = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    return "" if path == ":memory:" else path


def without_secrets(text: str) -> str:
    """`text` with the user, the password and the query's tokens taken out of every URI."""
    text = re.sub(r"(\w[\w+.-]*://)[^/\s]*@", r"\1", text)
    return re.sub(
        r"([?&][^=&\s]*(?:password|passwd|token|secret|key|signature)[^=&\s]*=)[^&\s]+",
        r"\1…",
        text,
        flags=re.I,
    )


NO_ANSWER = {
    "connection refused": "connection refused",
    "name or service not known|name resolution|nameresolution|getaddrinfo": "the host's name is not known",
    "connection aborted|reset by peer|remotedisconnected|broken pipe": "the connection was cut",
    "no route to host|network is unreachable": "the network does not reach it",
}


def reason(error: BaseException, timeout: float = 5.0) -> str:
    """Why MLflow failed, in a few plain words."""
    told = _cut(without_secrets(" ".join(str(error).partition("(Background on")[0].split())), 200)
    if status := _status(error):
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


def _status(error: BaseException) -> int | None:
    """The HTTP status of a server's answer, if the error came from one."""
    if (answer := getattr(error, "response", None)) is not None and getattr(answer, "status_code", None):
        return int(answer.status_code)
    if found := re.search(r"too many (\d{3}) error responses|failed with error code (\d{3})", str(error)):
        return int(found[1] or found[2])
    if type(error).__name__ == "RestException":
        return int(error.get_http_status_code())  # type: ignore[attr-defined]
    return None


def _refused(error: Exception) -> bool:
    """Whether MLflow will never take this, however often it is sent."""
    codes = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
    return getattr(error, "error_code", None) in codes or _status(error) in (400, 413, 422)


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


# Small change.


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, every value as text: {"train": {"epochs": 1}} is {"train.epochs": "1"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                item if isinstance(item, str) else json.dumps(item, default=str, ensure_ascii=False)
            )
    return flat


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in `values`, nested ones under keys joined with a slash; NaN and infinities stay."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif (number := _float(value)) is not None:
            found[f"{prefix}{key}"] = number
    return found


def _float(value: Any) -> float | None:
    if isinstance(value, str | bool | None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value: Any, times: int = 1) -> int | None:
    number = _float(value)
    return int(number * times) if number is not None and math.isfinite(number) else None


def _key(text: str) -> str:
    """`text` as a key that MLflow takes, one that is a clean relative path."""
    clean = re.sub(r"[^\w./ -]", "_", text, flags=re.ASCII)
    return "/".join(part for part in clean.split("/") if part.strip(".")).strip()[:KEY_LENGTH] or "_"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _ends_a_line(file: Any, end: int) -> bool:
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")


def _write(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
