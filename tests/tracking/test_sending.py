"""What a run tells arrives once and whole at a real server, whatever lies between: PostgreSQL and S3 behind MLflow."""

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made import check_race
from rich.console import Console
from servers import MlflowServer, Proxy, s3_objects, until, whole_server

from ift import syncing
from ift.console import Terminal
from ift.errors import IftError
from ift.tracking.client import mlflow_client
from ift.tracking.run import Tracker

pytestmark = pytest.mark.slow
STEPS = 300
BATCH = b"/runs/log-batch"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with whole_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[Proxy]:
    server.start()
    with Proxy(server.port) as proxy:
        yield proxy


class Run:
    """A run that tells of everything that there is, and what MLflow should hold of it."""

    def __init__(self, folder: Path, uri: str, name: str = "run", **options: Any) -> None:
        self.folder, self.notices = folder / name, list[str]()
        self.folder.mkdir(exist_ok=True)
        options = {"timeout": 5, "interval": 0.1, **options}
        self.tracker = Tracker(self.folder, uri, folder.name, name, notify=self.notices.append, **options)
        self.steps = 0
        self.files = {"model/weights.bin": os.urandom(300_000), "model/card.md": b"a card"}

    def start(self) -> None:
        self.tracker.start({"train": {"epochs": 2, "prompt": "x" * 9000}}, {"ift.spec": "4f1c"})

    def train(self, count: int = STEPS, every: float = 0.0) -> None:
        """Steps, one line each."""
        for step in range(self.steps, self.steps + count):
            line = {"step": step, "time": 1.7e9 + step, "loss": 2 / (step + 1), "losses": {"a": step / 7}}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.tracker.wake()
            time.sleep(every)
        self.steps += count

    def tell(self) -> None:
        """A stage, data sets, a table, artefacts, results with numbers that are none."""
        for name, data in self.files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(data)
        with self.tracker.stage("train"):
            self.tracker.log_metrics({"seconds": 12.5}, stage="train")
        source = {"source_type": "local", "source": '{"uri": "/rows.jsonl"}', "profile": '{"num_rows": 3}'}
        tags = {"mlflow.data.context": "training", "ift.licence": "MIT"}
        self.tracker.log_inputs([{"name": "trec", "digest": "3f9a", **source, "tags": tags}])
        self.tracker.log_table("mixture", [{"task": "trec", "share": 1.0}])
        self.tracker.log_artifact(self.folder / "model", "model")
        self.tracker.log_metrics({"nan": math.nan, "most": math.inf, "least": -math.inf, "score": 0.5})

    def check(self, server: MlflowServer) -> None:
        """All of it is there, once."""
        client, run_id = mlflow_client(server.uri), self.tracker.run_id
        assert run_id
        loss = client.get_metric_history(run_id, "train/loss")
        wanted = [(step, 2 / (step + 1), (1_700_000_000 + step) * 1000) for step in range(self.steps)]
        assert sorted((m.step, m.value, m.timestamp) for m in loss) == wanted
        assert len(client.get_metric_history(run_id, "train/losses/a")) == self.steps
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["train/loss"] == 2 / self.steps  # the last, not the last to arrive
        assert [len(client.get_metric_history(run_id, key)) for key in ("nan", "most", "least", "score")] == [
            1
        ] * 4
        assert math.isnan(run.data.metrics["nan"])
        assert run.data.metrics["most"] == -run.data.metrics["least"] == sys.float_info.max
        assert run.data.params["train.epochs"] == "2"
        assert len(run.data.params["train.prompt"]) == 6000
        assert run.data.tags["ift.spec"] == "4f1c"
        [data] = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("trec", "3f9a")
        assert {tag.key: tag.value for tag in data.tags}["ift.licence"] == "MIT"
        [child] = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
        assert (child.info.run_name, child.info.status) == (f"{run.info.run_name}/train", "FINISHED")
        assert len(client.get_metric_history(child.info.run_id, "seconds")) == 1
        assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
            {"path": "tables/mixture.json", "type": "table"}
        ]
        mine = {key: data for key, data in s3_objects(server.environment).items() if run_id in key}
        held = {key.partition(f"{run_id}/artifacts/")[2]: data for key, data in mine.items()}
        assert set(held) == {*self.files, "tables/mixture.json", "params_full.json"}
        assert {name: held[name] for name in self.files} == self.files
        assert json.loads(held["params_full.json"])["train.prompt"] == "x" * 9000
        same = [
            r for r in client.search_runs([run.info.experiment_id]) if r.info.run_name == run.info.run_name
        ]
        assert len(same) == 1


def test_a_run_without_trouble(tmp_path: Path, proxy: Proxy, server: MlflowServer) -> None:
    run = Run(tmp_path, proxy.uri)
    run.start()
    run.train()
    run.tell()
    assert run.tracker.close()
    run.check(server)
    assert run.notices == []


TROUBLES: dict[str, Callable[[Proxy], None]] = {
    "refused connections": lambda proxy: proxy.refuse(),
    "half a request": lambda proxy: proxy.cut_requests(after=400),
    "lost answers": lambda proxy: proxy.cut_answers(),
    "429": lambda proxy: proxy.answer(429, retry_after=1),
    "500": lambda proxy: proxy.answer(500),
    "503": lambda proxy: proxy.answer(503),
    "a server that hangs": lambda proxy: proxy.hang(),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_all_arrives_once_behind_trouble_at_every_turn(
    tmp_path: Path, proxy: Proxy, server: MlflowServer, name: str
) -> None:
    """The trouble comes before the run is created, among its metrics and among its files, and goes each time."""
    run = Run(tmp_path, proxy.uri, timeout=1)
    for turn in (run.start, run.train, run.tell):
        seen = proxy.faults
        TROUBLES[name](proxy)
        turn()
        until(lambda seen=seen: proxy.faults > seen)
        proxy.through()
        until(lambda: run.tracker.error is None and not run.tracker._sender.left, 120)
    assert run.tracker.close()
    run.check(server)
    assert sum("is back" in notice for notice in run.notices) >= 1


def test_answers_that_are_lost_now_and_then(tmp_path: Path, proxy: Proxy, server: MlflowServer) -> None:
    run = Run(tmp_path, proxy.uri)
    proxy.cut_answers(only=b"POST", times=8)  # the run's creation among them
    run.start()
    run.train(60, every=0.02)
    run.tell()
    assert run.tracker.close(timeout=120)
    assert proxy.faults == 8
    run.check(server)


def test_a_server_that_is_slower_than_our_patience(
    tmp_path: Path, proxy: Proxy, server: MlflowServer
) -> None:
    run = Run(tmp_path, proxy.uri, timeout=1)
    run.start()
    until(lambda: run.tracker.run_id)
    proxy.delay(2.5, only=BATCH)
    run.train()
    run.tell()
    assert run.tracker.close(timeout=120)
    run.check(server)


def test_two_runs_at_once_while_the_server_is_killed_and_comes_back(
    tmp_path: Path, server: MlflowServer
) -> None:
    server.start()
    runs = [Run(tmp_path, server.uri, name) for name in ("one", "two")]
    for run in runs:
        run.start()
    threads = [threading.Thread(target=run.train, kwargs={"every": 0.01}) for run in runs]
    for thread in threads:
        thread.start()
    until(lambda: all(run.tracker.run_id for run in runs))
    server.kill()
    for run, thread in zip(runs, threads, strict=True):
        thread.join()
        run.tell()
    assert all(run.tracker.error for run in runs)
    server.start()
    for run in runs:
        assert run.tracker.close(timeout=120)
        run.check(server)


def sync(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ift.cli", "sync", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "300"},
    )


def test_a_later_process_sends_the_rest(tmp_path: Path, proxy: Proxy, server: MlflowServer) -> None:
    first = Run(tmp_path, proxy.uri, "first")
    first.start()
    first.train(100)
    until(lambda: first.tracker.run_id and not first.tracker._sender.left)
    proxy.refuse()
    first.train(100)
    first.tell()
    assert not first.tracker.close(timeout=0.5)
    assert f"`ift sync {first.folder}` sends it" in first.notices[-1]
    second = Run(tmp_path, proxy.uri, "second")  # never heard of
    second.start()
    second.train(50)
    second.tell()
    assert not second.tracker.close(timeout=0.5)
    folders = [str(first.folder), str(second.folder)]
    for run in (first, second):  # a request may still be on its way
        run.tracker._thread.join(30)

    down = sync(folders[0])
    assert down.returncode == 1, down.stdout + down.stderr
    assert "MLflow at" in down.stdout
    assert f"to go. Nothing is lost: `ift sync {first.folder}` goes on" in down.stdout

    proxy.through()
    done = sync(*folders)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{first.folder}: " in done.stdout
    for run in (first, second):
        run.tracker._outbox.state = json.loads((run.folder / "tracking.json").read_text())
        run.check(server)

    again = sync(*folders)
    assert again.returncode == 0
    assert again.stdout.count("nothing to send; all of it is in MLflow at") == 2


def test_two_processes_never_send_one_folder(tmp_path: Path, proxy: Proxy, server: MlflowServer) -> None:
    proxy.refuse()
    run = Run(tmp_path, proxy.uri)
    run.start()
    run.train(10)
    until(lambda: run.tracker.error)
    busy = sync(str(run.folder))
    assert busy.returncode == 1
    assert "another process sends what it holds, the run itself or another `ift sync`; " in busy.stdout
    proxy.through()
    run.tell()
    assert run.tracker.close(timeout=120)
    run.check(server)


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, server: MlflowServer) -> None:
    server.start()
    first = Run(tmp_path, server.uri)
    first.start()
    first.train(100)
    with pytest.raises(KeyboardInterrupt), first.tracker.stage("train"):
        raise KeyboardInterrupt
    assert first.tracker.close("KILLED")
    client = mlflow_client(server.uri)
    assert client.get_run(first.tracker.run_id).info.status == "KILLED"
    child = first.tracker._outbox.state["children"]["train"]
    assert client.get_run(child).info.status == "KILLED"

    second = Run(tmp_path, server.uri)
    second.steps = 100
    second.start()
    second.train(100)
    second.tell()
    assert second.tracker.close()
    assert second.tracker.run_id == first.tracker.run_id
    assert second.tracker._outbox.state["children"]["train"] == child
    second.check(server)


def test_a_second_run_becomes_the_child_of_the_first(
    tmp_path: Path, proxy: Proxy, server: MlflowServer
) -> None:
    """Also where the first is not in MLflow yet when the second begins."""
    proxy.refuse()
    first = Run(tmp_path, proxy.uri, "first")
    second = Run(first.folder, proxy.uri, "second")
    second.tracker.start({}, {}, parent=first.folder)
    first.start()
    until(lambda: first.tracker.error and second.tracker.error)
    proxy.through()
    assert first.tracker.close(timeout=120)
    assert second.tracker.close(timeout=120)
    client = mlflow_client(server.uri)
    assert client.get_run(second.tracker.run_id).data.tags["mlflow.parentRunId"] == first.tracker.run_id


def test_a_stage_whose_run_was_deleted_gets_a_new_one(tmp_path: Path, server: MlflowServer) -> None:
    server.start()
    run = Run(tmp_path, server.uri)
    run.start()
    with run.tracker.stage("train"):
        until(lambda: run.tracker._outbox.state["children"])
        client = mlflow_client(server.uri)
        client.delete_run(run.tracker._outbox.state["children"]["train"])
    run.train()
    run.tell()
    assert run.tracker.close(timeout=120)
    run.check(server)


def test_of_two_promotions_at_once_one_wins_on_a_server_too(tmp_path: Path, server: MlflowServer) -> None:
    server.start()
    check_race(server.uri, tmp_path)


def test_a_folder_that_is_no_runs_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    terminal = Terminal(Console())
    with pytest.raises(IftError, match=r"is no run's folder: it has neither spec\.yaml nor tracking\.json"):
        syncing.sync([tmp_path / "other"], terminal)
    with pytest.raises(IftError, match="there is no folder"):
        syncing.sync([tmp_path / "nowhere"], terminal)


def test_a_run_that_told_nothing_has_nothing_to_send(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: x\n")
    said = io.StringIO()
    assert syncing.sync([tmp_path], Terminal(Console(file=said, width=200)))
    assert "nothing to send; the run has not begun to tell MLflow of anything" in said.getvalue()
