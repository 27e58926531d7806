"""From a run's outbox to MLflow, in order; what arrives twice leaves one copy there.

In:  an `Outbox`, a tracking URI.
Out: a run in MLflow with its params, metrics, tags, data sets and artefacts, and a child run for each stage.

    sender = Sender(outbox, "http://mlflow:5000", "reviews-1", timeout=5.0, notify=print)
    sender.round()          # sends all there is; raises whatever went wrong
    sender.run_id

Sending a metric twice leaves one point, because value, step and time stay the same: a line's own `time` (unix
seconds) or, where it has none, the run's start and as many milliseconds as it has steps. A run, its children and its
data sets are looked up by their keys before they are made, artefacts are written over by themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ift.redaction import without_secrets
from ift.tracking.client import (
    cut,
    ensure_experiment,
    give,
    mlflow_client,
    patience,
    reason,
    refused,
)
from ift.tracking.outbox import ARTIFACTS, OUTBOX, STREAMS, Outbox, saved_state
from ift.tracking.values import TAG_LENGTH, key_of, numbers, whole

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# MLflow's limits for one request.
METRICS_PER_REQUEST, ENTRIES_PER_REQUEST = 1000, 100
LONGEST_TIMEOUT = 60.0  # seconds that a request may come to take where a server is slow
PARENT, TABLES = "mlflow.parentRunId", "mlflow.loggedArtifacts"


class Sender:
    """Sends what an outbox holds. One thread uses it."""

    def __init__(
        self, outbox: Outbox, uri: str, run_name: str, *, timeout: float, notify: Callable[[str], None]
    ) -> None:
        self.outbox, self.uri, self.timeout = outbox, uri, timeout
        self.address = without_secrets(uri)
        self.left_out: str | None = None  # what MLflow did not take, and why
        self.arrived = 0  # lines since the start
        self._run_name, self._notify = run_name, notify
        self._client: MlflowClient | None = None
        self._connected = False

    @property
    def run_id(self) -> str | None:
        """The run in MLflow, once it is known."""
        return self.outbox.state.get("run_id")

    @property
    def done(self) -> bool:
        """Whether everything has arrived."""
        return self._connected and not self._unlinked() and self.outbox.empty()

    @property
    def left(self) -> int:
        """How many lines and files have not arrived."""
        return self.outbox.pending() + self._unlinked()

    def round(self, progress: Callable[[], None] = lambda: None) -> None:
        """Send everything that is there now. Raises whatever MLflow, the network or the disk raise."""
        if not self._connected:
            self._connect()
        for name in STREAMS:
            self._send_stream(name, progress)
        self._send_outbox(progress)
        for end, line in self.outbox.lines(ARTIFACTS):
            if line.get("kind") == "artifact":
                self._send_artifact(line)
                self.arrived += 1
            self.outbox.acknowledge(ARTIFACTS, end)
            progress()
        if self._unlinked():
            self._link()

    def lost(self, error: Exception) -> None:
        """A round has failed: the next one looks first whether the run is still there, and is more patient."""
        self._connected = False
        if reason(error).startswith("nothing within"):
            self.timeout = min(2 * self.timeout, LONGEST_TIMEOUT)
            give(self.timeout)

    # ── runs ──

    @property
    def _mlflow(self) -> "MlflowClient":
        if self._client is None:
            self._client = mlflow_client(self.uri, self.timeout)
        return self._client

    def _connect(self) -> None:
        """Find or create experiment and run; where the run has been deleted, everything goes to a new one."""
        state = self.outbox.state
        if state.get("run_id") and not self._alive(state["run_id"]):
            self._notify(
                f"the run {state['run_id']} is no longer in MLflow at {self.address}: it goes to a new one"
            )
            self.outbox.reset("uri", "experiment", "run_name")
            state = self.outbox.state
        if not state.get("run_id"):
            state["experiment_id"] = ensure_experiment(
                self._mlflow, self.uri, state["experiment"], self.outbox.folder.absolute().parent
            )
            key, started = state["key"], int(state["started"] * 1000)
            state["run_id"] = self._found_run(key) or self._created_run(key, self._run_name, started, {})
            self.outbox.save()
        self._connected = True

    def _found_run(self, key: str) -> str | None:
        """The run that an earlier attempt, or another process, created without our hearing of it."""
        experiment = self.outbox.state["experiment_id"]
        found = self._mlflow.search_runs([experiment], f"tags.`ift.key` = '{key}'")
        return str(found[0].info.run_id) if found else None

    def _created_run(self, key: str, name: str, started: int, tags: Mapping[str, str]) -> str:
        state = self.outbox.state
        self.outbox.save()  # its key, by which it is found again
        made = self._mlflow.create_run(state["experiment_id"], started, {"ift.key": key, **tags}, name)
        return str(made.info.run_id)

    def _run_of(self, line: Mapping[str, Any]) -> str:
        """The run that a line belongs to: the job's, or the child of a stage."""
        state, stage = self.outbox.state, line.get("stage")
        if stage is None:
            return str(state["run_id"])
        if stage not in state["children"]:
            key = f"{state['key']}/{stage}"
            tags = {PARENT: state["run_id"], "ift.stage": stage}
            started = whole(line["time"], 1000) or 0
            state["children"][stage] = self._found_run(key) or self._created_run(
                key, f"{self._run_name}/{stage}", started, tags
            )
            self.outbox.save()
        return str(state["children"][stage])

    def _alive(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._mlflow.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _unlinked(self) -> bool:
        """Whether it is a child of another run, and MLflow does not know."""
        return "parent" in self.outbox.state and not self.outbox.state.get("linked")

    def _link(self) -> None:
        """Make it the child of the run in the folder that it named, once that one is in MLflow."""
        state = self.outbox.state
        parent = saved_state(self.outbox.folder / state["parent"]) or {}
        if parent.get("run_id") and parent.get("uri") == state["uri"]:
            self._mlflow.set_tag(state["run_id"], PARENT, parent["run_id"])
            state["linked"] = True
            self.outbox.save()

    # ── lines ──

    def _send_stream(self, name: str, progress: Callable[[], None]) -> None:
        """A file of metrics alone, in batches, in the order of its lines."""
        batch: list[Metric] = []
        end, count = None, 0
        for end, line in self.outbox.lines(name):
            values = {key: value for key, value in line.items() if key not in ("step", "time")}
            batch += self._metrics(values, line, STREAMS[name])
            count += 1
            if len(batch) > METRICS_PER_REQUEST - 50:
                self._send_metrics(self.outbox.state["run_id"], batch)
                self.outbox.acknowledge(name, end)
                self.arrived += count
                batch, end, count = [], None, 0
                progress()
        if end is not None:
            self._send_metrics(self.outbox.state["run_id"], batch)
            self.outbox.acknowledge(name, end)
            self.arrived += count
            progress()

    def _send_outbox(self, progress: Callable[[], None]) -> None:
        for end, line in self.outbox.lines(OUTBOX):
            if line.get("kind") in self._KINDS:
                run_id = self._run_of(line)
                try:
                    self._KINDS[line["kind"]](self, run_id, line)
                except Exception as error:  # noqa: BLE001  (raised again unless it is final)
                    self._raise_unless_refused(run_id, error)
                    self._leave_out(f"a line of {OUTBOX} of the kind `{line['kind']}`", error)
            self.outbox.acknowledge(OUTBOX, end)
            self.arrived += 1
            progress()

    def _metrics(self, values: Mapping[str, Any], line: Mapping[str, Any], prefix: str) -> "list[Metric]":
        from mlflow.entities import Metric

        step, stamp = whole(line.get("step")) or 0, whole(line.get("time"), 1000)
        if stamp is None:
            stamp = int(self.outbox.state["started"] * 1000) + step
        return [Metric(key_of(prefix + key), value, stamp, step) for key, value in numbers(values).items()]

    def _send_metrics(self, run_id: str, metrics: "Sequence[Metric]") -> None:
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._log_batch(run_id, "metrics", metrics[start : start + METRICS_PER_REQUEST])

    def _send_results(self, run_id: str, line: Mapping[str, Any]) -> None:
        self._send_metrics(run_id, self._metrics(line["metrics"], line, ""))

    def _send_start(self, run_id: str, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        if "stage" not in line:
            self.outbox.state["ended"] = False
        if line.get("parent"):
            self.outbox.state["parent"] = line["parent"]
        run = self._mlflow.get_run(run_id)
        if run.info.status != "RUNNING":
            self._mlflow.update_run(run_id, status="RUNNING")
        there, wanted, tags = run.data.params, line["params"], dict(line["tags"])
        # MLflow refuses another value for a param, so that is said in a tag.
        changed = [
            f"{key}: {there[key]} -> {wanted[key]}"
            for key in wanted
            if there.get(key, wanted[key]) != wanted[key]
        ]
        if changed:
            tags["ift.changed_params"] = cut("\n".join(changed), TAG_LENGTH)
        params = [Param(key, value) for key, value in wanted.items() if key not in there]
        for start in range(0, len(params), ENTRIES_PER_REQUEST):
            self._log_batch(run_id, "params", params[start : start + ENTRIES_PER_REQUEST])
        self._send_tags(run_id, {"tags": tags})

    def _send_end(self, run_id: str, line: Mapping[str, Any]) -> None:
        self._mlflow.set_terminated(run_id, line["status"], whole(line["time"], 1000))
        if "stage" not in line:
            self.outbox.state["ended"] = True

    def _send_tags(self, run_id: str, line: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in line["tags"].items()]
        for start in range(0, len(entries), ENTRIES_PER_REQUEST):
            self._log_batch(run_id, "tags", entries[start : start + ENTRIES_PER_REQUEST])

    def _send_inputs(self, run_id: str, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for found in line["inputs"]:
            dataset = Dataset(**{key: value for key, value in found.items() if key != "tags"})
            tags = [InputTag(key, value) for key, value in found["tags"].items()]
            self._mlflow.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _send_table(self, run_id: str, line: Mapping[str, Any]) -> None:
        """Add to the tag that has MLflow's pages show an artefact as a table."""
        entry = {"path": line["path"], "type": "table"}
        tables = json.loads(self._mlflow.get_run(run_id).data.tags.get(TABLES, "[]"))
        if entry not in tables:
            self._send_tags(run_id, {"tags": {TABLES: json.dumps([*tables, entry])}})

    _KINDS: ClassVar[dict[str, Callable[["Sender", str, Mapping[str, Any]], None]]] = {
        "start": _send_start,
        "metrics": _send_results,
        "tags": _send_tags,
        "inputs": _send_inputs,
        "table": _send_table,
        "end": _send_end,
    }

    def _send_artifact(self, line: Mapping[str, Any]) -> None:
        path, run_id = self.outbox.folder / line["path"], self.outbox.state["run_id"]
        try:
            if not path.exists():
                raise FileNotFoundError("it is no longer there")
            size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
            with patience(self.timeout + size / 2**20):
                send = self._mlflow.log_artifact if path.is_file() else self._mlflow.log_artifacts
                send(run_id, str(path), line.get("folder"))
        except (FileNotFoundError, PermissionError, NotADirectoryError, ImportError) as error:
            self._leave_out(str(path), error)
        except Exception as error:  # noqa: BLE001  (raised again unless it is final)
            self._raise_unless_refused(run_id, error)
            self._leave_out(str(path), error)

    # ── what MLflow does not take ──

    def _log_batch(self, run_id: str, kind: str, entries: Sequence[Any]) -> None:
        """One request; where MLflow refuses it for good, one by one, so that only the culprit is left out."""
        if not entries:
            return
        batch: dict[str, Any] = {kind: entries}
        try:
            self._mlflow.log_batch(run_id, **batch)
        except Exception as error:  # noqa: BLE001  (raised again unless it is final)
            self._raise_unless_refused(run_id, error)
            if len(entries) == 1:
                self._leave_out(f"{kind} {entries[0].key}", error)
                return
            for entry in entries:
                self._log_batch(run_id, kind, [entry])

    def _raise_unless_refused(self, run_id: str, error: Exception) -> None:
        if not refused(error):
            raise error
        if not self._alive(run_id):  # the next round makes a new run
            children = self.outbox.state["children"]
            for stage in [stage for stage, child in children.items() if child == run_id]:
                del children[stage]
            raise error

    def _leave_out(self, what: str, error: Exception) -> None:
        self.left_out = f"does not take {what} ({reason(error, self.timeout)}); it is left out"
        self._notify(f"MLflow at {self.address} {self.left_out}")
