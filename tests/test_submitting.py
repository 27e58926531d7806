"""`ift submit` and `ift jobs` before any job: each thing that can be wrong is said at once, and what to do about it.

The head is a small HTTP server that answers as Ray's does; tests/cluster/test_two_hosts.py has the real one.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner
from conftest import write_spec

from ift import dashboard, parcel, submitting
from ift.cli import cli
from ift.errors import IftError

TOKEN = "t0ken-" + "f" * 32


class Head:
    """What the server answers; `token` None asks for none."""

    def __init__(self) -> None:
        self.token: str | None = TOKEN
        self.version: Any = {"version": "4", "ray_version": ray.__version__}
        self.nodes = [("10.0.0.1", {"CPU": 4.0})]
        self.types: dict[str, str] | None = {"a": "node_a"}
        self.jobs: list[dict[str, Any]] = []
        self.submitted: list[dict[str, Any]] = []
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if head.token and self.headers.get("Authorization") != f"Bearer {head.token}":
                    self.tell(403 if self.headers.get("Authorization") else 401, "no")
                elif (found := head.answer(self.path)) is None:
                    self.tell(404, "not here")
                else:
                    self.tell(200, found if isinstance(found, str) else json.dumps(found))

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.tell(200, "")

            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                head.submitted.append(job)
                self.tell(
                    200, json.dumps({"job_id": job["submission_id"], "submission_id": job["submission_id"]})
                )

            def tell(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str) -> Any:
        path = path.partition("?")[0]
        if path == "/api/version":
            return self.version
        if path == "/api/jobs/":
            return self.jobs
        if path == "/api/cluster_status":
            report = None if self.types is None else {"nodeTypeMapping": self.types}
            return {"data": {"clusterStatus": {"autoscalerReport": report}}}
        if path == "/api/v0/nodes":
            nodes = [
                {
                    "node_id": str(i),
                    "node_ip": ip,
                    "resources_total": has,
                    "state": "ALIVE",
                    "is_head_node": i == 0,
                }
                for i, (ip, has) in enumerate(self.nodes)
            ]
            return {"data": {"result": {"result": nodes}}}
        if path == "/nodes/0":
            words = [
                "/x/raylet",
                "--python_worker_command=/opt/venv/bin/python setup_worker.py default_worker.py",
            ]
            return {"data": {"detail": {"cmdline": words}}}
        return None


def job(name: str, status: str, folder: str = "~/ift/runs/tiny") -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": status,
        "entrypoint": "python",
        "start_time": 1,
        "metadata": {"ift.run": "tiny", "ift.folder": folder},
    }


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Head]:
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv(
        "RAY_ADDRESS", "10.255.255.1:6379"
    )  # Ray's client would take it instead of what it is given
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Head()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = write_spec(tmp_path, Path("/shared/model"))
    task = tmp_path / "films.yaml"
    task.write_text(task.read_text().replace("rows.jsonl", "/shared/rows.jsonl"))
    return path


def reached(head: Head, **options: Any) -> dashboard.Dashboard:
    return dashboard.reach(head.url, **{"open_too": False, "note": lambda _: None, **options})


def submit(head: Head, spec: Path, *arguments: str) -> Any:
    return CliRunner().invoke(
        cli, ["submit", str(spec), "--address", head.url, "--detach", *arguments], env={"COLUMNS": "160"}
    )


def refusal(head: Head, spec: Path, *arguments: str) -> str:
    done = submit(head, spec, *arguments)
    assert isinstance(done.exception, IftError), done.output
    assert head.submitted == []
    assert TOKEN not in str(done.exception)
    return str(done.exception)


def test_a_job_is_submitted_with_what_it_needs(head: Head, spec: Path) -> None:
    done = submit(
        head, spec, "train.epochs=3", "--env", "GLOO_SOCKET_IFNAME=eth0", "--output", "/shared/a run"
    )
    assert done.exit_code == 0, done.output
    (sent,) = head.submitted
    name = sent["submission_id"]
    assert f"submitted {name} to {head.url}" in done.output
    assert "the run's folder there is /shared/a run" in done.output
    assert sent["entrypoint"] == "/opt/venv/bin/python -m ift.cli run job/spec.yaml --output '/shared/a run'"
    assert sent["metadata"] == {"ift.run": "tiny", "ift.folder": "/shared/a run"}
    assert sent["runtime_env"]["working_dir"].startswith("gcs://")
    variables = sent["runtime_env"]["env_vars"]
    assert variables["GLOO_SOCKET_IFNAME"] == "eth0"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 300, "a stop leaves time for a checkpoint"
    assert TOKEN not in json.dumps(sent)


def test_the_same_submission_is_told_so(head: Head, spec: Path) -> None:
    name = f"tiny-{parcel.pack(spec, [], add=[]).digest()[:8]}"
    for status in ("PENDING", "RUNNING"):
        head.jobs = [job(name, status)]
        message = refusal(head, spec)
        assert f"this very run is at work already, as {name}" in message
        assert f"`ift jobs stop {name}`, with the same address, ends it" in message
    head.jobs = [job("tiny-00000000", "RUNNING")]
    assert "tiny-00000000 is at work in the same folder, ~/ift/runs/tiny, on something else" in refusal(
        head, spec
    )
    assert submit(head, spec, "--output", "/other").exit_code == 0


def test_what_has_ended_is_submitted_under_the_next_number(head: Head, spec: Path) -> None:
    name = f"tiny-{parcel.pack(spec, [], add=[]).digest()[:8]}"
    head.jobs = [job(name, "FAILED"), job(f"{name}-2", "STOPPED"), job("other", "RUNNING", "/other")]
    assert submit(head, spec).exit_code == 0
    assert head.submitted[0]["submission_id"] == f"{name}-3"


def test_more_workers_than_there_is_room_for(head: Head, spec: Path) -> None:
    message = refusal(head, spec, "cluster.workers=8")
    assert (
        "cluster.workers asks for 8 workers, and the cluster has room for 3: 10.0.0.1 with 4 CPUs" in message
    )
    assert "next:   cluster.workers=3, or more nodes first" in message
    head.nodes = [("10.0.0.1", {"CPU": 64.0}), ("10.0.0.2", {"CPU": 64.0, "GPU": 4.0})]
    message = refusal(head, spec, "cluster.workers=8")
    assert "room for 4: 10.0.0.1 with 64 CPUs; 10.0.0.2 with 64 CPUs and 4 GPUs" in message
    assert "a worker takes a GPU" in message
    assert submit(head, spec, "cluster.workers=[2, 8]").exit_code == 0


@pytest.mark.parametrize(
    "types", [None, {"a": "node_a", "b": "gpu-group"}], ids=["not known", "an autoscaler"]
)
def test_a_cluster_that_can_grow_is_given_the_time(
    head: Head, spec: Path, types: dict[str, str] | None
) -> None:
    head.types = types
    assert submit(head, spec, "cluster.workers=8").exit_code == 0


def test_tokens(head: Head, spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "does not take the token from RAY_AUTH_TOKEN" in refusal(head, spec)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    message = refusal(head, spec)
    assert "asks for a token, and none was found" in message
    assert "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token" in message
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    assert reached(head).token == dashboard.Token(TOKEN, str(tmp_path / ".ray" / "auth_token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert "that file cannot be read: No such file or directory" in refusal(head, spec)


def test_a_cluster_that_asks_nobody_is_refused(head: Head, spec: Path) -> None:
    head.token = None
    message = refusal(head, spec)
    assert "asks nobody for a token: whoever reaches it can run code on it" in message
    assert "RAY_AUTH_MODE=token" in message
    done = submit(head, spec, "--open-cluster")
    assert done.exit_code == 0
    assert "! the cluster at" in done.output


def test_another_version_of_ray(head: Head, spec: Path) -> None:
    head.version = {"version": "4", "ray_version": "2.9.3"}
    message = refusal(head, spec)
    assert f"runs Ray 2.9.3, and this is Ray {ray.__version__}" in message
    assert "wanted: the same minor version on both sides" in message
    head.version = {"ray_version": ".".join([*ray.__version__.split(".")[:2], "99"])}
    assert reached(head).nodes()[0].cpus == 4


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "no Ray dashboard answers at http://127.0.0.1:1: Connection refused"),
        ("no-such-host.invalid:8265", "no Ray dashboard answers at http://no-such-host.invalid:8265"),
        ("ray://head:10001", "the address 'ray://head:10001'"),
        ("http://head:port", "the address 'http://head:port'"),
        ("http://me:secret@head:8265", "the address holds a user or a password"),
        ("http://head:8265/jobs", "names a page"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(IftError) as error:
        dashboard.reach(address, open_too=False, note=lambda _: None)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert "wanted: the address of the cluster's dashboard, such as http://127.0.0.1:8265" in str(error.value)


def test_what_is_no_ray(head: Head) -> None:
    head.token, head.version = None, "<html>"
    with pytest.raises(IftError, match="answers, and is no Ray dashboard"):
        reached(head)
    head.version = None
    with pytest.raises(IftError, match="answers with status 404, and is no Ray dashboard"):
        reached(head)


def test_secrets_are_not_sent(head: Head, spec: Path) -> None:
    message = refusal(head, spec, "tracking.uri=http://ada:hunter2@ml.example")
    assert "`tracking.uri` holds a password or a token" in message
    assert "hunter2" not in message
    assert "--env HF_TOKEN: Ray shows a job's environment" in refusal(head, spec, "--env", "HF_TOKEN=x")
    assert "--env 1X" in refusal(head, spec, "--env", "1X=y")
    assert submitting.environment(["A=b=c", "HOME"])["A"] == "b=c"


def test_jobs_are_listed_and_known(head: Head) -> None:
    head.jobs = [job("tiny-1", "RUNNING"), {**job("old", "FAILED"), "end_time": 61_001}]
    run = CliRunner()
    rows = json.loads(run.invoke(cli, ["jobs", "list", "--address", head.url, "--json"]).output)
    assert {row["id"]: row["status"] for row in rows} == {"tiny-1": "RUNNING", "old": "FAILED"}
    shown = run.invoke(cli, ["jobs", "list", "--address", head.url], env={"COLUMNS": "160"}).output
    assert "1 min" in shown
    done = run.invoke(cli, ["jobs", "wait", "tiny-l", "--address", head.url])
    assert f"{head.url} knows no job tiny-l" in str(done.exception)
    assert "did you mean `tiny-1`?" in str(done.exception)
