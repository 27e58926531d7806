"""Two hosts, each with its own network: a run is submitted, trains on both, loses one, and goes on when it is back."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model, write_spec

from ift import storage

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from hosts import A, B, Nodes, ip, missing, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS, EVERY, KILLED_AT = 60, 6, 14


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head on one, a node on the other. `mine` is a folder that the second does not see."""
    if why := missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "mine").mkdir()
    with Nodes(folder, hidden=(folder / "mine",)) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def spec(hosts: Nodes) -> Path:
    """ZeRO-3 over two workers, a checkpoint every few steps."""
    folder = hosts.folder / "job"
    folder.mkdir()
    return write_spec(
        folder,
        make_model(hosts.folder / "model"),
        name="two-hosts",
        rows=120,
        data={
            "max_length": 64,
            "packing": False,
            "split": {"train": 60, "validation": 0, "test": 2},
            "balanced": True,
        },
        train={
            "epochs": STEPS // 15,
            "global_batch": 4,
            "learning_rate": 1e-3,
            "zero_stage": 3,
            "micro_batch": 1,
            "checkpoint_steps": EVERY,
        },
        evaluate={"probes": "none"},
    )


class Submitted:
    """`ift submit` on the first host, at work, and what the run's folder says of it."""

    def __init__(self, hosts: Nodes, spec: Path, name: str, *overrides: str) -> None:
        self.hosts, self.name, self.folder = hosts, name, hosts.folder / "runs" / name
        command = [sys.executable, "-m", "ift.cli", "submit", str(spec), f"name={name}", *overrides]
        self.process = hosts.start(
            hosts.names[0],
            *(*command, "--address", hosts.dashboard, "--output", str(self.folder)),
            *("--add", str(spec.parent / "rows.jsonl")),
            log=f"{name}.log",
        )

    @property
    def shown(self) -> str:
        return (self.hosts.folder / f"{self.name}.log").read_text(encoding="utf-8")

    def end(self) -> int:
        return self.process.wait(timeout=900)

    def metrics(self) -> list[dict[str, Any]]:
        return storage.read_jsonl(self.folder / "metrics.jsonl")

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in storage.read_jsonl(self.folder / "events.jsonl") if e["kind"] == kind]

    def reach(self, step: int) -> None:
        def there() -> bool:
            assert self.process.poll() is None or len(self.metrics()) >= step, self.shown
            return len(self.metrics()) >= step

        wait(there, f"step {step}")


def through(hosts: Nodes, spec: Path, name: str, harm: Callable[[], None], *overrides: str) -> Submitted:
    """A run to which `harm` is done in mid-training, at its end."""
    run = Submitted(hosts, spec, name, *overrides)
    run.reach(KILLED_AT)
    for host in hosts.names:
        assert hosts.pids(host, "RayTrainWorker"), "the two workers are not on the two hosts"
    harm()
    assert run.end() == 0, run.shown
    return run


def each_step_once(run: Submitted) -> None:
    first, *later = run.events("start")
    assert (first["step"], first["world"]) == (0, 2)
    assert [start["world"] for start in later][-1:] == [2]
    assert all(start["step"] and (start["step"] % EVERY == 0 or start["step"] % 15 == 0) for start in later)
    assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))
    assert storage.read_json(run.folder / "train" / "manifest.json")["steps"] == STEPS  # type: ignore[index]


def lose(hosts: Nodes) -> None:
    """The second host is gone with all that is on it; once Ray knows, it is back."""
    assert hosts.kill(hosts.names[1], with_signal=signal.SIGKILL)
    hosts.wait_for_nodes(1)
    hosts.start_node()


def cut(hosts: Nodes) -> None:
    """The cable is pulled until Ray takes the second host for lost; then it is laid again, and the host starts anew."""
    ip("-n", hosts.names[1], "link", "set", "ift0", "down")
    hosts.wait_for_nodes(1)
    hosts.kill(hosts.names[1])
    ip("-n", hosts.names[1], "link", "set", "ift0", "up")
    hosts.start_node()


def test_a_run_outlives_the_host_that_it_loses(hosts: Nodes, spec: Path) -> None:
    run = through(hosts, spec, "lost", lambda: lose(hosts))
    each_step_once(run)
    assert len(run.events("start")) > 1, "nothing was lost"
    assert "submitted lost-" in run.shown
    assert "training goes on from the checkpoint of step" in run.shown
    assert "has succeeded" in run.shown.splitlines()[-1]


def test_a_real_head_refuses_what_it_should(hosts: Nodes, spec: Path) -> None:
    submit = [sys.executable, "-m", "ift.cli", "submit", str(spec), "--address", hosts.dashboard]
    submit += ["--add", str(spec.parent / "rows.jsonl")]
    done = hosts.run(*submit, RAY_AUTH_TOKEN="wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the cluster at {hosts.dashboard} does not take the token from RAY_AUTH_TOKEN" in done.stderr
    done = hosts.run(*submit, "cluster.workers=9")
    assert done.returncode == 2
    assert f"the cluster has room for 2: {A} with 2 CPUs; {B} with 2 CPUs" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("harm", [lose, cut])
def test_its_losses_are_those_of_a_run_to_which_nothing_happened(
    hosts: Nodes, spec: Path, quiet: list[float], harm: Callable[[Nodes], None]
) -> None:
    run = through(hosts, spec, harm.__name__, lambda: harm(hosts), "train.hang_timeout_s=30")
    each_step_once(run)
    assert len(run.events("start")) > 1, "nothing was lost"
    assert [line["loss"] for line in run.metrics()] == quiet


@pytest.mark.long
def test_a_stopped_job_goes_on_from_its_checkpoint(hosts: Nodes, spec: Path, quiet: list[float]) -> None:
    run = Submitted(hosts, spec, "stopped")
    run.reach(3)
    job = re.search(r"submitted (\S+) to", run.shown)
    assert job
    ask = [sys.executable, "-m", "ift.cli", "jobs", "stop", job[1], "--address", hosts.dashboard]
    done = hosts.run(*ask)
    assert f"{job[1]}: STOPPED" in done.stdout, done.stdout + done.stderr
    assert run.end() == 130
    (found,) = re.findall(r"stopped behind step (\d+), with a checkpoint", run.shown)
    assert len(run.metrics()) == int(found) < STEPS
    again = Submitted(hosts, spec, "stopped")
    assert again.end() == 0, again.shown
    assert f"submitted {job[1]}-2 to" in again.shown
    assert [start["step"] for start in again.events("start")] == [0, int(found)]
    assert [line["loss"] for line in again.metrics()] == quiet


@pytest.fixture(scope="module")
def quiet(hosts: Nodes, spec: Path) -> list[float]:
    """The losses of a run to which nothing happens."""
    run = Submitted(hosts, spec, "quiet")
    assert run.end() == 0, run.shown
    return [line["loss"] for line in run.metrics()]


def test_a_folder_that_only_one_host_sees_is_refused(hosts: Nodes) -> None:
    script = """
import sys
from pathlib import Path
from ift import cluster
from ift.errors import IftError
with cluster.connect(None, workers=None):
    cluster.require_shared({"the shared folder": Path(sys.argv[1])})
    model = Path(sys.argv[2], "model", "config.json")
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    for places, files in (({"the run's folder (--output)": Path(sys.argv[2])}, {}), ({}, {"the model": model})):
        try:
            cluster.require_shared(places, files=files)
        except IftError as error:
            print("refused:", error)
"""
    mine = hosts.folder / "mine"
    done = hosts.run(sys.executable, "-c", script, str(hosts.folder / "shared"), str(mine))
    assert done.returncode == 0, done.stderr
    _, message, other = done.stdout.split("refused: ")
    assert f"the node {B} does not see the run's folder (--output), {mine}" in message
    assert "wanted: a folder that all nodes share" in message
    assert f"the node {B} does not see the model, {mine / 'model'}: it has no config.json" in other
    assert [path.name for path in mine.iterdir()] == ["model"]


# What Ray answers without a token, and what it gives away: that a Ray is there, whether it wants a token, whether it
# is well, and the files of its pages.
OPEN = {"/", "/favicon.ico", "/api/authentication_mode", "/api/gcs_healthz"}
OPEN_ON_NODES = {"/api/healthz", "/api/local_raylet_healthz"}


def routes() -> list[tuple[str, str]]:
    """Every route in the source of Ray's dashboard and of the agents on its nodes: a method and a path."""
    import ray

    found = set()
    for file in (Path(ray.__file__).parent / "dashboard").rglob("*.py"):
        for method, path in re.findall(
            r"""[rR]outes?\w*\.(get|post|put|delete|patch|head)\(\s*f?"([^"]+)""", file.read_text("utf-8")
        ):
            found.add((method.upper(), re.sub(r"\{[^}]*\}", "x", path)))
    return sorted(found)


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["no token", "a wrong token"])
def test_without_the_token_every_route_is_closed(hosts: Nodes, token: str) -> None:
    known = routes()
    assert len(known) > 60
    for path in (
        "/api/jobs/",
        "/api/version",
        "/api/cluster_status",
        "/nodes",
        "/api/v0/nodes",
        "/api/serve/applications/",
    ):
        assert any(route == path for _, route in known), path
    agent = f"http://{A}:52365"
    more = [
        ("GET", path)
        for path in ("/metrics", "//api/jobs/", "/api/jobs/.", "/static/../api/jobs/", "/nowhere")
    ]
    closed = {401} if not token else {403}
    for base, left in ((hosts.dashboard, OPEN), (agent, OPEN_ON_NODES)):
        asked = [(method, base + path) for method, path in [*known, *more]]
        answers = hosts.ask(asked, token=token)
        for (method, path), (status, text) in zip([*known, *more], answers, strict=True):
            if path in left:
                assert status == 200, (base, method, path, status)
            elif path in OPEN | OPEN_ON_NODES or path.startswith("/static/"):
                assert status in {401, 403, 404}, (base, method, path, status)
            else:
                assert status in closed, (base, method, path, status, text[:100])


def test_what_is_open_gives_nothing_of_the_cluster_away(hosts: Nodes) -> None:
    paths = [f"{hosts.dashboard}{path}" for path in sorted(OPEN)] + [
        f"http://{A}:52365{p}" for p in sorted(OPEN_ON_NODES)
    ]
    told = {
        url: text for url, (_, text) in zip(paths, hosts.ask([("GET", url) for url in paths]), strict=True)
    }
    assert told[f"{hosts.dashboard}/api/authentication_mode"] == json.dumps({"authentication_mode": "token"})
    assert told[f"{hosts.dashboard}/api/gcs_healthz"] == "success"
    for url, text in told.items():
        for secret in (hosts.token, A, B, "two-hosts", "session_"):
            assert secret not in text, (url, secret)


def test_metrics_are_open_to_whoever_reaches_the_port(hosts: Nodes) -> None:
    """Ray asks for no token here, on all interfaces of every node: a firewall or a network policy has to."""
    ((_, text),) = hosts.ask([("GET", f"{hosts.dashboard}/nodes?view=summary")], token=hosts.token)
    # nodes that were lost before are listed as well, and answer no more
    living = [n for n in json.loads(text)["data"]["summary"] if n["raylet"]["state"] == "ALIVE"]
    ports = [(n["ip"], n["raylet"]["metricsExportPort"]) for n in living]
    assert {address for address, _ in ports} == {A, B}
    answers = hosts.ask([("GET", f"http://{address}:{port}/metrics") for address, port in ports])
    assert {status for status, _ in answers} == {200}
    assert not any(hosts.token in text for _, text in answers)
