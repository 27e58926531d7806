import json
import math
import os
import shutil
import signal
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
from servers import MlflowServer, free_port, mlflow_server, until

from ift.errors import IftError
from ift.tracking.client import elsewhere, mlflow_client, patience, resolve_uri
from ift.tracking.outbox import Outbox
from ift.tracking.run import Tracker
from ift.tracking.values import flatten


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    with mlflow_server(folder) as server:
        yield server


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


class Notices(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def tracker(run_dir: Path, uri: str, notices: Notices | None = None, **options: Any) -> Tracker:
    options = {"timeout": 5, "interval": 0.1, **options}
    return Tracker(
        run_dir, uri, "reviews", "reviews-1", notify=Notices() if notices is None else notices, **options
    )


def train(run_dir: Path, first: int, last: int, **more: Any) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step in range(first, last):
            line = {
                "step": step,
                "loss": 2 / (step + 1),
                "lr": 1e-5,
                "tokens": 100,
                "time": 1.7e9 + step,
                **more,
            }
            file.write(json.dumps(line) + "\n")


def history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in mlflow_client(uri).get_metric_history(run_id, key)]


def trained(first: int, last: int) -> list[tuple[int, float, int]]:
    return [(step, 2 / (step + 1), (1_700_000_000 + step) * 1000) for step in range(first, last)]


# Into a database


def test_everything_arrives_with_its_steps_and_times(run_dir, uri, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    notices = Notices()
    tracked = tracker(run_dir, uri, notices)
    tracked.start({"train": {"epochs": 1, "method": "full"}, "tasks": ["a", "b"]}, {"ift.spec": "4f1c"})
    train(run_dir, 0, 700)
    (run_dir / "validation.jsonl").write_text('{"step": 700, "epoch": 1, "loss": 0.25}\n')
    (run_dir / "report.html").write_text("<p>report</p>")
    (run_dir / "tables").mkdir()
    (run_dir / "tables" / "a.txt").write_text("a")
    tracked.log_metrics({"test/accuracy": 0.82, "probe: words %": 0.5}, step=700)
    tracked.log_artifact(run_dir / "report.html")
    tracked.log_artifact(run_dir / "tables", "tables")
    tracked.wake()
    assert tracked.close()
    assert (notices, tracked.error) == ([], None)

    client = mlflow_client(uri)
    run = client.get_run(tracked.run_id)
    assert history(uri, tracked.run_id) == trained(0, 700)
    assert len(history(uri, tracked.run_id, "train/lr")) == 700
    assert run.data.metrics["validation/loss"] == 0.25
    assert run.data.metrics["test/accuracy"] == 0.82
    assert run.data.metrics["probe_ words _"] == 0.5
    assert run.data.params == {"train.epochs": "1", "train.method": "full", "tasks": '["a", "b"]'}
    assert run.data.tags["ift.spec"] == "4f1c"
    assert (run.info.run_name, run.info.status) == ("reviews-1", "FINISHED")
    assert {file.path for file in client.list_artifacts(tracked.run_id)} == {"report.html", "tables"}
    assert (tmp_path / "store/mlartifacts/reviews" / tracked.run_id / "artifacts/report.html").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    state = json.loads((run_dir / "tracking.json").read_text())
    assert state["run_id"] == tracked.run_id
    assert state["sent"]["metrics.jsonl"] == (run_dir / "metrics.jsonl").stat().st_size


def test_a_later_process_resumes_the_run_and_sends_the_rest(run_dir, uri):
    first = tracker(run_dir, uri)
    first.start({"train": {"epochs": 1}}, {})
    train(run_dir, 0, 5)
    assert first.close("FAILED")
    train(run_dir, 5, 9)
    second = tracker(run_dir, uri)
    assert second.run_id == first.run_id
    second.start({"train": {"epochs": 2, "method": "full"}}, {"ift.spec": "new"})
    assert second.close()
    run = mlflow_client(uri).get_run(first.run_id)
    assert history(uri, first.run_id) == trained(0, 9)
    assert run.data.params == {"train.epochs": "1", "train.method": "full"}
    assert run.data.tags["ift.changed_params"] == "train.epochs: 1 -> 2"
    assert run.info.status == "FINISHED"
    assert len(mlflow_client(uri).search_runs([run.info.experiment_id])) == 1


def test_sending_again_leaves_one_point_each(run_dir, uri):
    first = tracker(run_dir, uri)
    first.start({}, {})
    train(run_dir, 0, 5)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n')  # without a time
    first.log_metrics({"test/accuracy": 0.5, "broken": math.nan})
    assert first.close()
    state = json.loads((run_dir / "tracking.json").read_text())
    lost = {**state, "sent": {}, "run_id": None}  # the acknowledgements, that of the run's creation too
    (run_dir / "tracking.json").write_text(json.dumps(lost))
    second = tracker(run_dir, uri)
    second.start({}, {})
    assert second.close()
    assert second.run_id == first.run_id
    assert len(history(uri, first.run_id)) == 6
    assert len(history(uri, first.run_id, "test/accuracy")) == 1
    assert len(history(uri, first.run_id, "broken")) == 1


def test_lines_that_are_half_written_broken_or_not_finite(run_dir, uri):
    tracked = tracker(run_dir, uri)
    tracked.start({}, {})
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "loss": NaN, "note": "text", "fine": true}\n')
        file.write(
            'not JSON\n[1]\n{"step": NaN, "loss": 3.0}\n{"step": 1, "loss": Infinity, "time": 1e400}\n'
        )
        file.write('{"step": 2, "tasks": {"a": 0.5}}\n{"step": 3, "loss": 1.')
        file.flush()
        until(lambda: tracked.run_id and len(history(uri, tracked.run_id)) == 3)
        file.write("5}\n")
    tracked.wake()
    assert tracked.close()
    values = {(step, repr(value)) for step, value, _ in history(uri, tracked.run_id)}
    assert values == {(0, "nan"), (0, "3.0"), (1, repr(sys.float_info.max)), (3, "1.5")}
    assert history(uri, tracked.run_id, "train/tasks/a")[0][:2] == (2, 0.5)
    assert tracked.error is None


def test_half_a_line_in_the_outbox_of_a_killed_process_costs_only_itself(run_dir, uri):
    (run_dir / "outbox.jsonl").write_text('{"kind": "metrics", "time": 1, "step": 0, "metr')
    tracked = tracker(run_dir, uri)
    tracked.start({"a": 1}, {})
    tracked.log_metrics({"b": 2.0}, step=3)
    assert tracked.close()
    assert mlflow_client(uri).get_run(tracked.run_id).data.params == {"a": "1"}
    assert history(uri, tracked.run_id, "b")[0][:2] == (3, 2.0)


def test_a_metrics_file_that_was_written_anew_is_sent_from_its_start(run_dir, uri):
    first = tracker(run_dir, uri)
    first.start({}, {})
    train(run_dir, 0, 8)
    assert first.close()
    (run_dir / "metrics.jsonl").unlink()
    train(run_dir, 0, 5)  # back to the checkpoint at step 5
    second = tracker(run_dir, uri)
    second.start({}, {})
    assert second.close()
    third = tracker(run_dir, uri)
    third.start({}, {})
    train(run_dir, 5, 10)
    assert third.close()
    assert history(uri, first.run_id) == trained(0, 10)


def test_long_params_are_cut_and_kept_whole_in_an_artefact_without_secrets(run_dir, uri):
    tracked = tracker(run_dir, uri)
    params = {
        "prompt": "x" * 20_000,
        "uri": "postgresql://me:hunter2@db/mlflow",
        **dict.fromkeys(map(str, range(250)), 1),
    }
    tracked.start(params, {"long": "y" * 20_000})
    assert tracked.close()
    client = mlflow_client(uri)
    data = client.get_run(tracked.run_id).data
    assert len(data.params) == 252
    assert len(data.params["prompt"]) == 6000
    assert data.params["uri"] == "postgresql://db/mlflow"
    assert len(data.tags["long"]) == 5000
    whole = json.loads(Path(client.download_artifacts(tracked.run_id, "params_full.json")).read_text())
    assert whole["prompt"] == "x" * 20_000
    assert not any("hunter2" in file.read_text() for file in run_dir.iterdir())


def test_what_mlflow_or_the_disk_refuses_is_left_out_and_named(run_dir, uri):
    notices = Notices()
    tracked = tracker(run_dir, uri, notices)
    tracked.start({}, {})
    tracked.log_artifact(run_dir / "missing.html")
    tracked.log_metrics({"fine": 1.0})
    assert tracked.close()
    assert len(notices) == 1
    assert "missing.html" in notices[0]
    assert "missing.html" in str(tracked.error)
    assert history(uri, tracked.run_id, "fine")[0][1] == 1.0


def test_only_the_refused_metric_of_a_batch_is_left_out(run_dir, uri, monkeypatch):
    monkeypatch.setattr("ift.tracking.sender.key_of", lambda text: text)
    notices = Notices()
    tracked = tracker(run_dir, uri, notices)
    tracked.start({}, {})
    tracked.log_metrics({"fine": 1.0, "not%fine": 2.0, "also fine": 3.0})
    assert tracked.close()
    assert ["not%fine" in notice for notice in notices] == [True]
    assert set(mlflow_client(uri).get_run(tracked.run_id).data.metrics) == {"fine", "also fine"}


def test_a_run_that_was_deleted_is_sent_anew(run_dir, uri):
    notices = Notices()
    first = tracker(run_dir, uri, notices)
    first.start({}, {})
    train(run_dir, 0, 3)
    until(lambda: first.run_id and len(history(uri, first.run_id)) == 3)
    deleted = first.run_id
    mlflow_client(uri).delete_run(deleted)
    train(run_dir, 3, 5)
    assert first.close()
    assert first.run_id != deleted
    assert history(uri, first.run_id) == trained(0, 5)
    assert any("no longer in MLflow" in notice for notice in notices)


def test_another_address_gets_a_run_of_its_own(run_dir, uri, tmp_path, database):
    first = tracker(run_dir, uri)
    first.start({}, {})
    train(run_dir, 0, 3)
    assert first.close()
    other = f"sqlite:///{shutil.copy(database, tmp_path / 'other.db')}"
    second = tracker(run_dir, other)
    assert second.run_id is None
    second.start({}, {})
    assert second.close()
    assert history(other, second.run_id) == trained(0, 3)
    train(run_dir, 3, 5)
    third = tracker(run_dir, uri)
    assert third.run_id == first.run_id
    third.start({}, {})
    assert third.close()
    assert history(uri, third.run_id) == trained(0, 5)


def test_two_trackers_of_one_folder_share_its_run(run_dir, uri):
    first, second = tracker(run_dir, uri), tracker(run_dir, uri)  # both before anything is known of it
    first.start({}, {})
    train(run_dir, 0, 3)
    assert first.close()
    second.start({}, {})
    train(run_dir, 3, 5)
    assert second.close()
    assert second.run_id == first.run_id
    assert history(uri, first.run_id) == trained(0, 5)
    run = mlflow_client(uri).get_run(first.run_id)
    assert len(mlflow_client(uri).search_runs([run.info.experiment_id])) == 1


def test_a_tracker_that_waits_for_another_writes_nothing_over(run_dir, uri):
    other = Outbox(run_dir)
    other.open({"uri": "http://elsewhere:5000", "experiment": "reviews"})
    with other.alone() as mine:
        assert mine
        other.state["run_id"] = "8c1e"
        other.save()
        waiting = tracker(run_dir, uri)
        waiting.start({}, {})
        assert json.loads((run_dir / "tracking.json").read_text())["run_id"] == "8c1e"
        assert not waiting.close(timeout=0.2)


def test_two_runs_at_once_share_an_experiment(tmp_path, uri):
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        train(tmp_path / name, 0, 50)
        found.append(tracker(tmp_path / name, uri))
    for tracked in found:
        tracked.start({}, {})
    assert [tracked.close() for tracked in found] == [True, True]
    assert len({tracked.run_id for tracked in found}) == 2
    assert [history(uri, tracked.run_id) for tracked in found] == [trained(0, 50)] * 2


@pytest.mark.slow
def test_a_fresh_database_is_made_without_a_word_on_the_terminal(tmp_path):
    (tmp_path / "cwd").mkdir()
    script = (
        "from pathlib import Path; from ift.tracking.run import Tracker; import sys; "
        "t = Tracker(Path(sys.argv[1]), sys.argv[2], 'a b/c', 'n', notify=print); "
        "assert 'mlflow' not in sys.modules; "
        "t.start({'a': 1}, {}); t.log_metrics({'b': 1.0}); sys.exit(not t.close())"
    )
    uri = resolve_uri("sqlite:///new folder/x.db", tmp_path)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), uri],
        capture_output=True,
        text=True,
        cwd=tmp_path / "cwd",
        env={**plain, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "cwd").iterdir()) == []


# Servers in trouble


def test_a_closed_port_costs_one_notice_and_no_time(run_dir):
    notices = Notices()
    tracked = tracker(run_dir, f"http://me:hunter2@127.0.0.1:{free_port()}", notices)
    began = time.monotonic()
    tracked.start({"a": 1}, {})
    for step in range(200):
        train(run_dir, step, step + 1)
        tracked.wake()
    tracked.log_metrics({"test/accuracy": 0.5})
    assert time.monotonic() - began < 30
    until(lambda: notices)
    time.sleep(1)
    assert len(notices) == 1
    assert "does not answer (connection refused); the run goes on" in notices[0]
    assert "hunter2" not in notices[0]
    assert tracked.error == "connection refused"
    began = time.monotonic()
    assert not tracked.close(timeout=1)
    assert time.monotonic() - began < 30
    assert len(notices) == 2
    assert "hunter2" not in "".join(file.read_text() for file in run_dir.iterdir())


def test_a_server_that_answers_500(run_dir):
    class Broken(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"Internal error")

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        notices = Notices()
        tracked = tracker(run_dir, f"http://127.0.0.1:{broken.server_port}", notices)
        tracked.start({}, {})
        until(lambda: notices)
        assert "answers with an error (server error, HTTP 500); the run goes on" in notices[0]
        assert not tracked.close(timeout=0.5)
        broken.shutdown()


def test_a_server_that_accepts_and_says_nothing(run_dir):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        notices = Notices()
        tracked = tracker(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}", notices, timeout=1)
        tracked.start({}, {})
        until(lambda: notices)
        assert "does not answer (nothing within 1 s)" in notices[0]
        assert not tracked.close(timeout=0.5)


def test_a_database_that_is_not_there_is_told_at_once(run_dir):
    notices = Notices()
    tracked = tracker(run_dir, f"postgresql://me:hunter2@127.0.0.1:{free_port()}/mlflow", notices)
    tracked.start({}, {})
    until(lambda: notices, 5)
    assert "does not answer (connection refused)" in notices[0]
    assert not tracked.close(timeout=0.1)


def test_a_file_that_is_no_database_is_told_at_once(run_dir, tmp_path):
    (tmp_path / "notes.db").write_text("shopping list\n" * 1000)
    notices = Notices()
    tracked = tracker(run_dir, f"sqlite:///{tmp_path}/notes.db", notices)
    tracked.start({}, {})
    until(lambda: notices, 5)
    assert "does not work (file is not a database)" in notices[0]
    assert not tracked.close(timeout=0.1)


def test_a_notice_that_fails_harms_nothing(run_dir):
    def fails(text: str) -> None:
        raise RuntimeError(text)

    tracked = Tracker(run_dir, f"http://127.0.0.1:{free_port()}", "e", "r", notify=fails, interval=0.1)
    tracked.start({}, {})
    until(lambda: tracked.error)
    assert not tracked.close(timeout=0.1)
    shutil.rmtree(run_dir)
    tracked.log_metrics({"a": 1.0})


def test_a_tracker_that_never_started_closes(run_dir, uri):
    assert not tracker(run_dir, uri).close()
    assert list(run_dir.iterdir()) == []


@pytest.mark.slow
def test_a_server_that_is_down_at_first_and_later_hangs(run_dir, server):
    server.kill()
    notices = Notices()
    tracked = tracker(run_dir, server.uri, notices, timeout=3)
    tracked.start({"epochs": 1}, {"ift.spec": "4f1c"})
    train(run_dir, 0, 400)
    tracked.log_metrics({"base/accuracy": 0.5, "nan": math.nan})
    (run_dir / "report.html").write_text("report")
    tracked.log_artifact(run_dir / "report.html", "reports")
    until(lambda: notices)
    server.start()
    until(lambda: len(notices) == 2)
    assert "does not answer (connection refused)" in notices[0]
    assert "is back" in notices[1]
    assert history(server.uri, tracked.run_id) == trained(0, 400)

    server.signal(signal.SIGSTOP)
    try:
        train(run_dir, 400, 800)
        tracked.wake()
        until(lambda: len(notices) == 3)
        assert "does not answer (nothing within 3 s)" in notices[2]
    finally:
        server.signal(signal.SIGCONT)
    train(run_dir, 800, 1000)
    assert tracked.close()
    assert len(notices) == 4
    run = mlflow_client(server.uri).get_run(tracked.run_id)
    assert history(server.uri, tracked.run_id) == trained(0, 1000)
    assert run.data.metrics["base/accuracy"] == 0.5
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.params == {"epochs": "1"}
    assert len(mlflow_client(server.uri).search_runs([run.info.experiment_id])) == 1
    assert (
        mlflow_client(server.uri).list_artifacts(tracked.run_id, "reports")[0].path == "reports/report.html"
    )
    assert tracked.error is None


@pytest.mark.slow
def test_a_server_that_is_killed_in_mid_run_and_a_run_that_ends_before_it_is_back(run_dir, server):
    server.start()
    tracked = tracker(run_dir, server.uri)
    tracked.start({}, {})
    until(lambda: tracked.run_id)
    writing = threading.Thread(
        target=lambda: [(train(run_dir, s, s + 1), tracked.wake()) for s in range(2000)]
    )
    writing.start()
    until(lambda: len(history(server.uri, tracked.run_id)) > 10)
    server.kill()
    writing.join()
    tracked.log_metrics({"test/accuracy": 0.8})
    assert not tracked.close(timeout=1)
    server.start()
    later = tracker(run_dir, server.uri)
    later.start({}, {})
    assert later.close()
    assert later.run_id == tracked.run_id
    assert history(server.uri, later.run_id) == trained(0, 2000)
    assert mlflow_client(server.uri).get_run(later.run_id).info.status == "FINISHED"


# Small parts


def test_another_server_than_the_specs_is_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = f"sqlite:///{tmp_path}/mlflow.db"
    assert elsewhere(own) is None
    for named in ("sqlite:///mlflow.db", own):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
        assert elsewhere(own) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert elsewhere("http://mlflow:5000") is None
    assert elsewhere(own) == "http://mlflow:5000/"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow:5000")
    assert "hunter2" not in elsewhere(own)


def test_resolve_uri_makes_a_relative_database_absolute(tmp_path):
    assert resolve_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert (
        resolve_uri("sqlite:///../x.db?timeout=9", tmp_path) == f"sqlite:///{tmp_path.parent}/x.db?timeout=9"
    )
    for same in ("sqlite:////data/x.db", "sqlite:///:memory:", "sqlite://", "http://a:1", "postgresql://a/b"):
        assert resolve_uri(same, tmp_path) == same


@pytest.mark.parametrize("uri", ["mlruns", "file:///data/mlruns", "/data/mlruns"])
def test_resolve_uri_refuses_a_plain_folder(uri, tmp_path):
    with pytest.raises(IftError, match="no longer keeps runs in plain folders"):
        resolve_uri(uri, tmp_path)


def test_settings_of_the_user_stay_and_patience_ends(monkeypatch):
    monkeypatch.setattr("ift.tracking.client._ours", set())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    mlflow_client("http://127.0.0.1:1", timeout=2.5)
    with patience(99, retries=1):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"


def test_flatten():
    assert flatten({"a": {"b": {"c": 1.5}, "d": []}, "e": None, "f": "x", "g": {}}) == {
        "a.b.c": "1.5",
        "a.d": "[]",
        "e": "null",
        "f": "x",
        "g": "{}",
    }
