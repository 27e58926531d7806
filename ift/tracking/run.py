"""A run's copy in MLflow: sent in the background, out of files that are complete without it.

In:  the run folder, where training appends `metrics.jsonl` and `validation.jsonl`; params, tags, results, data sets,
     tables and artefacts that the pipeline tells of; the stages as they begin and end.
Out: a run in MLflow with a child for each stage, and in the run folder `outbox.jsonl` (what was told) and
     `tracking.json` (which run it is, and how much of each file has arrived).

    tracker = Tracker(run_dir, "http://mlflow:5000", "reviews", "reviews-1", notify=print)
    tracker.start({"train": {"epochs": 1}}, {"ift.spec": "4f1c"})   # returns at once
    with tracker.stage("train"):                                    # a child run
        tracker.wake()                                              # metrics.jsonl has grown
    tracker.log_metrics({"test/accuracy": 0.82})
    tracker.close()                                                 # True: everything has arrived

A server that is down costs training nothing: one notice, attempts in the background, and what has not arrived
by the end goes out with `ift sync`, or with the next `Tracker` on the same folder.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ift import storage
from ift.redaction import without_secrets
from ift.tracking.client import NO_ANSWER, cut, reason, status_of
from ift.tracking.nodes import OtherNodes
from ift.tracking.outbox import Outbox
from ift.tracking.sender import Sender
from ift.tracking.system import SystemMetrics
from ift.tracking.values import PARAM_LENGTH, TAG_LENGTH, flatten, key_of, numbers

PARAMS_FULL = "params_full.json"
TABLES = "tables"  # the folder of tables, in the run's and in MLflow
LONGEST_WAIT = 60.0  # seconds between two attempts


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
        system_every: float | None = None,
    ) -> None:
        """In seconds: `timeout` of a request, `interval` of rounds, `system_every` between samples of the machine."""
        self.error: str | None = None  # why nothing gets through, or what MLflow did not take
        self._tell, self._interval = notify, interval
        self._outbox = Outbox(run_dir)
        self._outbox.open({"uri": without_secrets(uri), "experiment": experiment}, run_name=run_name)
        self._sender = Sender(self._outbox, uri, run_name, timeout=timeout, notify=self._notify)
        self._system = SystemMetrics(Path(run_dir), system_every, self.wake) if system_every else None
        self._down = False
        self._deadline: float | None = None  # set by `close`
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="ift-mlflow", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The run in MLflow, once it is known."""
        return self._sender.run_id

    @property
    def closed(self) -> bool:
        """Whether its end was told already."""
        return self._closing.is_set()

    # ── what the pipeline calls: everything is written to the outbox first ──

    def start(
        self, params: Mapping[str, Any], tags: Mapping[str, str], *, parent: Path | None = None
    ) -> None:
        """Begin to send; the thread connects, and creates the run or resumes the one in tracking.json.

        It becomes a child of the run in the folder `parent`, if there is one.
        """
        full = {key: without_secrets(value) for key, value in flatten(params).items()}
        short = {key_of(key): cut(value, PARAM_LENGTH) for key, value in full.items()}
        more = {"parent": os.path.relpath(parent, self._folder)} if parent else {}
        self._append("start", params=short, tags=_tags(tags), **more)
        with self._no_disk_error():
            with self._outbox.alone() as mine:  # where it is another's, that one has told `ift sync` where to
                if mine:
                    self._outbox.save()  # so that `ift sync` knows where to, whatever comes
            if any(len(value) > PARAM_LENGTH for value in full.values()):
                storage.write_json(self._folder / PARAMS_FULL, full)
                self.log_artifact(self._folder / PARAMS_FULL)
        if self._thread.ident is None:
            self._thread.start()
            if self._system:
                self._system.start()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A child run that begins and ends with the block, and fails with it."""
        self._append("start", stage=name, params={}, tags={})
        with ending(lambda status: self._append("end", stage=name, status=status)):
            yield

    @contextmanager
    def nodes_too(self) -> Iterator[None]:
        """Within the block this process is connected to Ray, and the machines of all its nodes are sampled."""
        if self._system is None:
            yield
            return
        with OtherNodes(notify=self._notify) as nodes, self._system.beside(nodes.sample):
            yield

    def wake(self) -> None:
        """There may be new lines."""
        self._wake.set()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, *, stage: str | None = None) -> None:
        """Results under `step`, of the job or of a stage."""
        self._append("metrics", step=step, metrics=numbers(metrics), **_of(stage))

    def log_tags(self, tags: Mapping[str, str], *, stage: str | None = None) -> None:
        """Short texts, of the job or of a stage; a later one takes the place of an earlier."""
        self._append("tags", tags=_tags(tags), **_of(stage))

    def log_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """The data sets that went in, as tracking/lineage.py makes them."""
        self._append("inputs", inputs=list(inputs))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or a folder; it is read when it is sent, so it must stay where it is."""
        self._append("artifact", path=self._outbox.kept(path), folder=folder)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that all have the same keys, as a table that MLflow's pages show."""
        columns = list(rows[0]) if rows else []
        path = self._folder / TABLES / f"{name}.json"
        with self._no_disk_error():
            storage.write_json(
                path, {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}
            )
            self.log_artifact(path, TABLES)
            self._append("table", path=f"{TABLES}/{name}.json")

    def close(self, status: str = "FINISHED", timeout: float = 60) -> bool:
        """Send the rest for up to `timeout` seconds, and say whether everything has arrived."""
        if self._thread.ident is None:  # never started: nothing has been promised
            return False
        if not self._closing.is_set():
            if self._system:
                self._system.stop()
            self._append("end", status=status)
            self._deadline = time.monotonic() + timeout
            self._closing.set()
            self._wake.set()
        self._thread.join(timeout)
        arrived = False
        with suppress(OSError):
            arrived = not self._thread.is_alive() and self._sender.done
        if not arrived:
            self._notify(
                f"MLflow at {self._sender.address}: not everything has arrived. It is kept in {self._folder}; "
                f"`ift sync {self._folder}` sends it, and so does the same run when it is started again"
            )
        return arrived

    @property
    def _folder(self) -> Path:
        return self._outbox.folder

    def _append(self, kind: str, **values: Any) -> None:
        with self._no_disk_error():
            self._outbox.append(kind, **values)
        self._wake.set()

    @contextmanager
    def _no_disk_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._cannot_keep(error)

    def _cannot_keep(self, error: OSError) -> None:
        self._notify(f"nothing can be kept for MLflow in {self._folder} ({error.strerror or error})")

    # ── the thread ──

    def _work(self) -> None:
        told = False
        while True:
            try:
                with self._outbox.alone(self._notify) as mine:
                    if mine:
                        self._send_until_closed()
                        return
            except OSError as error:
                self._cannot_keep(error)
                return
            if not told:
                told = True
                self._notify(
                    f"another process sends what {self._folder} holds for MLflow: this one waits for it"
                )
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return
            self._closing.wait(self._interval) if self._deadline is None else time.sleep(0.1)

    def _send_until_closed(self) -> None:
        failures = 0
        while True:
            try:
                self._sender.round()
                failures = 0
                self._is_up()
            except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
                failures += 1
                self._is_down(error)
            if self._deadline is not None and (
                (not failures and self._sender.done) or time.monotonic() >= self._deadline
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

    # ── what people are told ──

    def _is_down(self, error: Exception) -> None:
        self.error = why = reason(error, self._sender.timeout)
        self._sender.lost(error)
        if not self._down:
            self._down = True
            quiet = why in NO_ANSWER.values() or why.startswith("nothing within")
            verb = (
                "answers with an error"
                if status_of(error)
                else "does not answer"
                if quiet
                else "does not work"
            )
            self._notify(
                f"MLflow at {self._sender.address} {verb} ({why}); the run goes on, and what it logs is kept in "
                f"{self._folder} and sent when MLflow is back"
            )

    def _is_up(self) -> None:
        self.error = self._sender.left_out
        if self._down:
            self._down = False
            self._notify(f"MLflow at {self._sender.address} is back; what had waited has been sent")

    def _notify(self, text: str) -> None:
        with suppress(Exception):
            self._tell(text)


@contextmanager
def ending(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell how the block ended, in MLflow's words: FINISHED, FAILED, or KILLED where somebody interrupted it."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tell(status)


def _of(stage: str | None) -> dict[str, str]:
    return {"stage": stage} if stage else {}


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key_of(key): cut(without_secrets(str(value)), TAG_LENGTH) for key, value in tags.items()}
