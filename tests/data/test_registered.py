"""MLflow: a server on loopback, with data sets and runs as people make them, read as a task would."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tracking.servers import free_port

from ift.data import registered, sources
from ift.errors import IftError
from ift.tasks import task as tasks
from ift.tasks.task import Mlflow, Source

ROWS = '{"text": "fine", "label": 1}\n{"text": "dull", "label": 0}\n'

# What people do with MLflow, and the ids that come of it.
PEOPLE = """
import json, sys
from pathlib import Path
import mlflow
import mlflow.genai.datasets as datasets
import pandas as pd
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource

folder, ids = Path(sys.argv[1]), {}
faq = datasets.create_dataset(name="faq", experiment_id="0")
faq.merge_records([
    {"inputs": {"question": f"Why {i}?"}, "expectations": {"expected_response": f"So {i}."}} for i in range(1200)
])
datasets.create_dataset(name="it's empty", experiment_id="0")
for answer in ("a", "b"):
    twin = datasets.create_dataset(name="twin", experiment_id="0")
    twin.merge_records([{"inputs": {"q": answer}}])
    ids[f"twin_{answer}"] = twin.dataset_id
ids["faq"] = faq.dataset_id

rows = folder / "rows.jsonl"
frame = pd.DataFrame([{"text": "fine", "label": 1}])
with mlflow.start_run() as run:
    ids["run"] = run.info.run_id
    mlflow.log_input(mlflow.data.from_pandas(frame, source=str(rows), name="local"), context="training")
    mlflow.log_input(mlflow.data.from_pandas(frame, source=str(rows), name="local"), context="validation")
    mlflow.log_input(mlflow.data.from_pandas(frame, source=str(folder / "gone.csv"), name="gone"))
    mlflow.log_input(mlflow.data.from_pandas(frame, source=sys.argv[2] + "/web.jsonl", name="web"))
    mlflow.log_input(mlflow.data.from_pandas(frame, source="s3://films/a.jsonl", name="s3"))
    mlflow.log_input(mlflow.data.from_pandas(frame, name="memory"))
    hub = HuggingFaceDatasetSource("acme/films", config_name="plain", split="test", revision="v1")
    mlflow.log_input(mlflow.data.from_pandas(frame, source=hub, name="hub"))
    for text in ("a", "b"):
        other = pd.DataFrame([{"text": text}])
        mlflow.log_input(mlflow.data.from_pandas(other, source=str(rows), name="several"))
    mlflow.log_input(datasets.get_dataset(name="faq"))
    mlflow.log_artifact(rows)
    mlflow.log_artifact(rows, "data/deep")
    mlflow.log_text("x", "data/notes.txt")
    ids["digests"] = {i.dataset.name: i.dataset.digest for i in mlflow.get_run(ids["run"]).inputs.dataset_inputs}
print(json.dumps(ids))
"""


class Web(BaseHTTPRequestHandler):
    """Serves the rows; what is not theirs gets the status that its server carries."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/web.jsonl" else self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(ROWS)))
        self.end_headers()
        self.wfile.write(ROWS.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.status = 403  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def clean() -> dict[str, str]:
    """The environment without the user's MLflow."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, web: ThreadingHTTPServer
) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """A server's address, the ids of what people left in it, and its folder."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    options += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=folder,
            env={**clean(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        uri, pages = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{web.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", PEOPLE, str(folder), pages],
            cwd=folder,
            env={**clean(), "MLFLOW_TRACKING_URI": uri, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ids = next(line for line in done.stdout.splitlines() if line.startswith("{"))
        yield uri, json.loads(ids), folder
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No settings of the user's."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return monkeypatch


def refused(source: dict[str, Any], tmp_path: Path) -> str:
    with pytest.raises(IftError) as caught:
        registered.fetch(Mlflow(**source), tmp_path, tmp_path / "cache")
    return str(caught.value)


def left(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


# ── the file ──


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({}, "rows come from a `dataset` or from an `artifact`, one of them"),
        (
            {"dataset": "faq", "artifact": "a"},
            "rows come from a `dataset` or from an `artifact`, one of them",
        ),
        ({"artifact": "a.jsonl"}, "`artifact` goes with `run`"),
        ({"dataset": ""}, "at least 1 character"),
        ({"dataset": "faq", "run": "a/b"}, "pattern"),
        ({"name": "faq"}, "Extra inputs"),
    ],
)
def test_what_a_task_may_not_say(said: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Source(mlflow=said)


def test_one_source_only() -> None:
    with pytest.raises(ValueError, match="`hub`, `package`, `mlflow` or `files`, one of them"):
        Source(mlflow=Mlflow(dataset="faq"), files="a.jsonl")


# ── the server ──


@pytest.mark.slow
def test_a_registered_data_set(
    tmp_path: Path, server: tuple[str, dict[str, Any], Path], mlflow: pytest.MonkeyPatch
) -> None:
    uri, ids, _ = server
    mlflow.setenv("MLFLOW_TRACKING_URI", uri)
    values = {
        "kind": "generation",
        "license": "MIT",
        "source": {"mlflow": {"dataset": "faq"}},
        "fields": {"question": "inputs.question", "answer": "expectations.expected_response"},
        "metric": "token_f1",
        "templates": [{"id": "ask", "prompt": "{{ question }}", "completion": "{{ answer }}"}],
    }
    task = tasks.of_values("faq", values, tmp_path, where="faq.yaml")
    files = sources.files_of(task, tmp_path / "cache")
    (path,) = files.splits[None]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = sorted((task.example(row).fields["question"], task.example(row).fields["answer"]) for row in rows)
    assert found == sorted((f"Why {i}?", f"So {i}.") for i in range(1200))  # more than a page of the server's
    assert files.commit == ids["digests"]["faq"]
    same = [Mlflow(dataset=ids["faq"], uri=uri), Mlflow(dataset="faq", run=ids["run"], uri=uri)]
    for source in same:  # by its id, and as a run logged it
        assert registered.fetch(source, tmp_path, tmp_path / "cache") == ([path], files.commit)
    assert left(tmp_path / "cache") == [str(path.relative_to(tmp_path / "cache"))]


@pytest.mark.slow
def test_what_is_not_there(
    tmp_path: Path, server: tuple[str, dict[str, Any], Path], mlflow: pytest.MonkeyPatch
) -> None:
    uri, ids, _ = server
    run, at = ids["run"], f"MLflow at {uri}"
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"dataset": "fax"},
            f"{at} has no data set named fax\n  wanted: one of faq, it's empty, twin\n"
            "  next:   did you mean `faq`?",
        ),
        (
            {"dataset": "d-" + "0" * 32},
            f"{at} has no data set d-{'0' * 32}\n  wanted: a data set's name or id",
        ),
        ({"dataset": "it's empty"}, "the data set it's empty has no records yet\n  wanted: one with records"),
        (
            {"dataset": "twin"},
            f"{at} has 2 data sets named twin\n"
            f"  wanted: an id: one of {', '.join(sorted([ids['twin_a'], ids['twin_b']]))}",
        ),
        (
            {"dataset": "a", "run": "0" * 32},
            f"{at} has no run {'0' * 32}\n  wanted: a run's id, 32 hexadecimal digits",
        ),
        (
            {"dataset": "locale", "run": run},
            f"the run {run} has logged no data set named locale\n"
            "  wanted: one of faq, gone, hub, local, memory, s3, several, web\n  next:   did you mean `local`?",
        ),
        (
            {"artifact": "row.jsonl", "run": run},
            f"the run {run} has no artefact row.jsonl\n  wanted: one of data, rows.jsonl\n"
            "  next:   did you mean `rows.jsonl`?",
        ),
    ]
    for source, says in cases:
        assert refused({**source, "uri": uri}, tmp_path) == says
    assert left(tmp_path) == []


@pytest.mark.slow
def test_what_a_run_logged(
    tmp_path: Path,
    server: tuple[str, dict[str, Any], Path],
    mlflow: pytest.MonkeyPatch,
) -> None:
    uri, ids, folder = server

    def fetched(name: str) -> tuple[list[Path], str]:
        source = Mlflow(dataset=name, run=ids["run"], uri=uri)
        return registered.fetch(source, tmp_path, tmp_path / "cache")

    assert fetched("local") == ([folder / "rows.jsonl"], ids["digests"]["local"])  # logged for two ends
    (path,), digest = fetched("web")
    assert (path.read_text(), path.name, digest) == (ROWS, "web.jsonl", ids["digests"]["web"])
    several = refused({"dataset": "several", "run": ids["run"], "uri": uri}, tmp_path)
    assert several.startswith(f"the data set several of the run {ids['run']} is one of 2 of that name\n")
    first = several.rpartition("one of ")[2].split(", ")[0]
    assert fetched(first) == ([folder / "rows.jsonl"], first)
    for name, says in {
        "gone": f"was read from {folder}/gone.csv, which is not on this machine",
        "memory": "was not read from files (its source is of the kind `code`)\n  wanted: one that was logged",
    }.items():
        text = refused({"dataset": name, "run": ids["run"], "uri": uri}, tmp_path)
        assert text.startswith(f"the data set {name} of the run {ids['run']} {says}")

    asked: list[Any] = []

    def from_hub(hub: Any, splits: Any, cache: Path, progress: Any) -> Any:
        asked.append((hub.id, hub.config, hub.revision, splits))
        return registered.hub.Fetched({"train": [tmp_path / "a"]}, "c0")

    mlflow.setattr(registered.hub, "fetch", from_hub)
    mlflow.setattr(registered.s3, "fetch", lambda url, *_: [Path(url)])
    assert fetched("hub") == ([tmp_path / "a"], ids["digests"]["hub"])
    assert asked == [("acme/films", "plain", "v1", {"train": "test"})]
    assert fetched("s3") == ([Path("s3://films/a.jsonl")], ids["digests"]["s3"])


@pytest.mark.slow
def test_artefacts_of_a_run(
    tmp_path: Path, server: tuple[str, dict[str, Any], Path], mlflow: pytest.MonkeyPatch
) -> None:
    uri, ids, _ = server
    found = {}
    for path in ("rows.jsonl", "data", "**/*.jsonl", "data/*"):
        source = Mlflow(artifact=path, run=ids["run"], uri=uri)
        files, digest = registered.fetch(source, tmp_path, tmp_path / "cache")
        place = tmp_path / "cache" / "mlflow" / digest
        found[path] = {str(file.relative_to(place)): file.read_text() for file in files}
        assert registered.fetch(source, tmp_path, tmp_path / "cache") == (files, digest)
    assert found == {
        "rows.jsonl": {"rows.jsonl": ROWS},
        "data": {"data/deep/rows.jsonl": ROWS, "data/notes.txt": "x"},
        "**/*.jsonl": {"rows.jsonl": ROWS, "data/deep/rows.jsonl": ROWS},
        "data/*": {"data/notes.txt": "x"},
    }
    assert not list((tmp_path / "cache" / "mlflow").glob(".part-*"))


@pytest.mark.slow
def test_a_database_without_a_server(
    tmp_path: Path, server: tuple[str, dict[str, Any], Path], mlflow: pytest.MonkeyPatch
) -> None:
    _, ids, folder = server
    source = Mlflow(dataset="faq", uri="sqlite:///mlflow.db")  # relative to the task's file
    (path,), digest = registered.fetch(source, folder, tmp_path)
    assert (len(path.read_text().splitlines()), digest) == (1200, ids["digests"]["faq"])


# ── no answer ──


def test_nobody_says_where_mlflow_is(tmp_path: Path, mlflow: pytest.MonkeyPatch) -> None:
    assert refused({"dataset": "faq"}, tmp_path).startswith("nothing says where MLflow is\n  wanted: `uri`")
    missing = refused({"dataset": "faq", "uri": "sqlite:///no/mlflow.db"}, tmp_path)
    assert missing.startswith(f"there is no database {tmp_path}/no/mlflow.db\n")
    assert not (tmp_path / "no").exists()  # MLflow would have made one
    text = refused({"dataset": "faq", "uri": f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x"}, tmp_path)
    assert text.startswith("MLflow's database at postgresql://127.0.0.1:")
    assert "could not be reached: " in text
    assert "hunter2" not in text


@pytest.mark.slow
def test_no_answer(tmp_path: Path, mlflow: pytest.MonkeyPatch, web: ThreadingHTTPServer) -> None:
    mlflow.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    mlflow.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def says(port: int) -> str:
        text = refused({"dataset": "faq", "uri": f"http://me:hunter2@127.0.0.1:{port}"}, tmp_path)
        assert "hunter2" not in text
        start = f"MLflow at http://127.0.0.1:{port} "
        assert text.startswith(start), text
        return text.removeprefix(start)

    assert says(free_port()) == "could not be reached\n  next:   check the address and the network"
    assert says(web.server_address[1]).startswith("refused access (HTTP 403)\n  next:   set MLFLOW_TRACKING_")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert says(silent.getsockname()[1]).startswith("did not answer in time\n")
    assert left(tmp_path) == []
