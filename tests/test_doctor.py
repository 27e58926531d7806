"""`ift doctor`: every fault that it knows, planted; what it says, and what to do."""

import json
import os
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rays
from rich.console import Console
from tracking.servers import MlflowServer, Proxy, free_port, s3

from ift import cli, dashboard
from ift.doctor import cluster, look, machine, report, services
from ift.doctor.check import Check, everywhere, worst

GIB = 2**30
NO_GPU: dict[str, Any] = {
    "device_files": False,
    "driver": None,
    "torch": "2.13.0+cpu",
    "cuda": None,
    "names": [],
    "bytes": [],
    "bf16": None,
    "nccl": None,
    "error": None,
}
GPUS: dict[str, Any] = {
    "device_files": True,
    "driver": "570.1",
    "torch": "2.13.0",
    "cuda": "12.8",
    "names": ["H100"] * 2,
    "bytes": [80 * GIB] * 2,
    "bf16": True,
    "nccl": "2.27.3",
    "error": None,
}
OPS: dict[str, Any] = {
    "compiler": "/usr/bin/c++",
    "ninja": True,
    "cuda_home": "/usr/local/cuda",
    "states": {"cpu_adam": "will compile", "async_io": "not compatible"},
    "error": None,
}
FACTS: dict[str, Any] = {
    "host": "a",
    "python": "3.11.9",
    "packages": {"ray": "2.60.0", "torch": "2.13.0", "ift": None},
    "required": {"python": ">=3.11,<3.13", "count": 27, "unmet": []},
    "gpus": NO_GPU,
    "ops": OPS,
    "locks": [],
    "disks": {"/work": {"total": 500 * GIB, "free": 300 * GIB}},
    "shm": {"total": 8 * GIB, "free": 8 * GIB},
    "token": None,
}


def test_a_machine_without_faults_passes() -> None:
    for gpus in (NO_GPU, GPUS):
        checks = machine.judge({**FACTS, "gpus": gpus})
        assert [check.verdict for check in checks] == ["pass"] * 10, checks
        assert not any(check.next_move for check in checks)


@pytest.mark.parametrize(
    ("check", "verdict", "found", "move"),
    [
        (machine.python("3.10.2", ">=3.11,<3.13"), "fail", "3.10.2, and ift takes >=3.11,<3.13", ".venv"),
        (
            machine.packages({"count": 2, "unmet": ["torch 2.1.0, wanted >=2.13"]}),
            "fail",
            "torch 2.1.0, wanted >=2.13",
            "constraints.txt",
        ),
        (machine.torch({**NO_GPU, "torch": None, "error": "ImportError: x"}), "fail", "ImportError", "pip"),
        (machine.cuda({**GPUS, "cuda": None, "names": []}), "fail", "torch is built for CPU", "pytorch.org"),
        (
            machine.cuda({**GPUS, "names": [], "error": "RuntimeError: driver too old"}),
            "fail",
            "driver 570.1, and torch (CUDA 12.8) cannot use them: RuntimeError: driver too old",
            "nvidia-smi",
        ),
        (machine.cuda({**GPUS, "names": ["A100", "H100"]}), "warn", "2 × A100, H100", "of one kind"),
        (machine.cuda({**GPUS, "bf16": False}), "warn", "without bf16", "train.precision=fp32"),
        (machine.nccl({**GPUS, "nccl": None}), "fail", "torch has none", "for CUDA"),
        (machine.deepspeed_ops({**OPS, "error": "ImportError: x"}, gpus=0), "fail", "ImportError: x", "pip"),
        (
            machine.deepspeed_ops({**OPS, "cuda_home": None, "ninja": False}, gpus=1),
            "warn",
            "compiling lacks ninja, the CUDA toolkit (CUDA_HOME): train.offload will not work",
            "DS_BUILD_CPU_ADAM=1",
        ),
        (
            machine.disk({"/tmp": {"total": 100 * GIB, "free": 4 * GIB}}),
            "fail",
            "4.0 GiB free (4%) at /tmp",
            "RAY_TMPDIR",
        ),
        (
            machine.disk(
                {"/a": {"total": 9 * GIB, "free": 5 * GIB}, "/b": {"total": 900 * GIB, "free": 500 * GIB}}
            ),
            "warn",
            "5.0 GiB free (56%) at /a; 500.0 GiB free (56%) at /b",
            "small models",
        ),
        (
            machine.shared_memory({"total": 2**26, "free": 2**26}, store=GIB, gpus=0),
            "warn",
            "64 MiB free of 64 MiB in /dev/shm; Ray's object store takes 1.0 GiB, and would put it into slow files",
            "--shm-size=1g",
        ),
        (
            machine.shared_memory({"total": 2**26, "free": 2**26}, store=GIB, gpus=8),
            "fail",
            "too little for NCCL between 8 GPUs",
            "--shm-size=2g",
        ),
        (machine.shared_memory(None, store=GIB, gpus=0), "fail", "there is no /dev/shm", "--shm-size"),
        (machine.token_file({"path": "/t", "open": True}), "warn", "other users", "chmod 600 /t"),
    ],
    ids=[
        "python",
        "packages",
        "torch",
        "torch for CPU",
        "driver",
        "mixed GPUs",
        "no bf16",
        "no NCCL",
        "no DeepSpeed",
        "no toolkit",
        "full disk",
        "little disk",
        "tiny shm",
        "tiny shm and GPUs",
        "no shm",
        "open token",
    ],
)
def test_a_fault_says_what_to_do(check: Check, verdict: str, found: str, move: str) -> None:
    assert check.verdict == verdict
    assert found in check.found
    assert move in check.next_move


def test_prebuilt_kernels_need_no_compiler() -> None:
    ops = {**OPS, "compiler": None, "cuda_home": None, "states": {"cpu_adam": "prebuilt"}}
    assert machine.deepspeed_ops(ops, gpus=8) == Check("deepspeed ops", "pass", "cpu_adam prebuilt")


# ── what is looked at ──


def test_a_stale_lock_is_told_from_a_build_that_goes_on(tmp_path: Path) -> None:
    stale, held = tmp_path / "py311_cpu" / "cpu_adam" / "lock", tmp_path / "py311_cpu" / "async_io" / "lock"
    for path in (stale, held):
        path.parent.mkdir(parents=True)
    stale.touch()
    found = machine.build_locks(look.locks([tmp_path, tmp_path / "none"]))
    assert found.verdict == "fail"
    assert found.next_move == f"where no build is running, remove: rm {stale}"
    descriptor = os.open(held, os.O_CREAT | os.O_EXCL)  # as torch holds it
    try:
        assert look.locks([held.parent]) == [{"path": str(held), "holder": os.getpid()}]
        assert machine.build_locks(look.locks([held.parent])).verdict == "pass"
    finally:
        os.close(descriptor)


def test_packages_are_held_against_what_ift_asks_for() -> None:
    found = look.unmet(["click>=8.2", "click>=900", "no-such-package>=1", 'absent; extra == "dev"'])
    assert found["count"] == 3
    assert found["unmet"] == [
        f"click {look.version_of('click')}, wanted >=900",
        "no-such-package missing, wanted >=1",
    ]
    assert look.unmet()["unmet"] == []


def test_a_token_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert look.token_file() is None
    path.write_text("abc\n")
    path.chmod(0o644)
    assert look.token_file() == {"path": str(path), "open": True}
    path.chmod(0o600)
    assert look.token_file() == {"path": str(path), "open": False}


# ── services ──


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, Any]]:
    with s3() as made:
        yield made


@pytest.fixture
def aws(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The endpoint of an S3 with the bucket `mlflow`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    endpoint = str(store["environment"]["MLFLOW_S3_ENDPOINT_URL"])
    for name, value in {**store["environment"], "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    return endpoint


def test_s3_takes_and_gives_back(aws: str) -> None:
    assert services.storage("s3://mlflow/ift") == Check(
        "storage", "pass", "s3://mlflow/ift: written, read, listed and deleted"
    )


def test_s3_that_refuses(aws: str) -> None:
    missing = services.storage("s3://elsewhere/ift")
    assert missing.verdict == "fail"
    assert missing.found == f"s3://elsewhere/ift: there is no bucket elsewhere at {aws}"
    plain = {"Content-Type": "text/plain"}
    demand = urllib.request.Request(f"{aws}/moto-api/reset-auth", data=b"0", headers=plain)
    urllib.request.urlopen(demand).close()  # from now on keys have to be known
    try:
        refused = services.storage("s3://mlflow/ift")
    finally:
        demand.data = b"1000000000"
        urllib.request.urlopen(demand).close()
    assert refused.verdict == "fail"
    assert f"access refused by {aws}" in refused.found
    assert refused.next_move.startswith("see whose keys these are: AWS_ACCESS_KEY_ID")


def test_a_folder_as_storage(tmp_path: Path) -> None:
    assert services.storage(str(tmp_path)).verdict == "pass"
    (tmp_path / "file").touch()
    assert services.storage(str(tmp_path / "file" / "below")).verdict == "fail"


def test_mlflow_in_a_file(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sqlite3.connect(tmp_path / "mlflow.db").execute("create table runs (id)").connection.close()
    assert services.mlflow(uri) == Check("mlflow", "pass", f"the file {tmp_path}/mlflow.db")
    fresh = services.mlflow(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert fresh == Check("mlflow", "pass", f"the file {tmp_path}/new/mlflow.db, made by the first run")
    assert not (tmp_path / "new").exists()
    assert services.mlflow(uri, on_cluster=True).verdict == "warn"
    (tmp_path / "not.db").write_text("no database " * 100)
    assert "not a database" in services.mlflow(f"sqlite:///{tmp_path}/not.db").found
    assert "no longer keeps runs in plain folders" in services.mlflow("mlruns").found


def test_mlflow_out_of_reach_keeps_its_password() -> None:
    found = services.mlflow(f"http://ada:secret@127.0.0.1:{free_port()}")
    assert found.verdict == "fail"
    assert found.found.endswith(": connection refused")
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("status", "found", "move"),
    [
        (401, "access denied, HTTP 401", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (503, "server error, HTTP 503", "see that the server runs"),
    ],
)
def test_mlflow_that_refuses(
    aws: str, monkeypatch: pytest.MonkeyPatch, status: int, found: str, move: str
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with Proxy(int(aws.rpartition(":")[2])) as proxy:  # before some server that it keeps the questions from
        proxy.answer(status)
        check = services.mlflow(proxy.uri)
    assert check.verdict == "fail"
    assert check.found == f"{proxy.uri}: {found}"
    assert check.next_move.startswith(move)


@pytest.mark.slow
@pytest.mark.long
def test_mlflow_that_wants_to_know_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask_wtf")
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    settings = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": "correct horse battery",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 40,
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
    }
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = MlflowServer(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), settings)
    server.options = ["--app-name", "basic-auth"]
    server.start()
    try:
        stranger = services.mlflow(server.uri)
        assert stranger.verdict == "fail"
        assert stranger.found == f"{server.uri}: access denied, HTTP 401"
        assert stranger.next_move.startswith("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert services.mlflow(server.uri).next_move.startswith("see whether these are right")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
        assert services.mlflow(server.uri) == Check("mlflow", "pass", f"{server.uri} answers, and lets us in")
    finally:
        server.kill()


# ── a cluster ──


def node(address: str, **changes: Any) -> dict[str, Any]:
    return {
        "address": address,
        "store": GIB,
        "gpus": 0,
        "facts": FACTS,
        "clock": {"ahead": 0.0, "give_or_take": 0.001},
        "moved": {"bytes": 2**24, "seconds": 0.1},
        **changes,
    }


REDUCED = {"library": "gloo", "ranks": 2, "bytes": 2**24, "times": 5, "seconds": 0.01, "bus": 1.7e9}


def judged(*nodes: dict[str, Any], **changes: Any) -> dict[str, Check]:
    checks = cluster.judge({"nodes": nodes, "dead": 0, "all_reduce": REDUCED, **changes})
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_two_nodes_alike_pass() -> None:
    found = judged(node("10.0.0.1"), node("10.0.0.1"))
    assert worst(list(found.values())) == "pass"
    assert found["nodes"].found == "2 nodes, 0 GPUs: 10.0.0.1, 10.0.0.1#2"
    assert found["versions"].found.endswith("torch 2.13.0, no ift; the same on all 2 nodes")
    assert found["all-reduce"].found.startswith("1.70 GB/s bus bandwidth (gloo, one rank on each of 2 nodes")


def test_a_node_with_other_versions_is_named() -> None:
    other = {**FACTS, "packages": {**FACTS["packages"], "torch": "2.12.0"}}
    found = judged(node("10.0.0.1"), node("10.0.0.2", facts=other))["versions"]
    assert found.verdict == "fail"
    assert found.found == "torch: 2.13.0 on 10.0.0.1, 2.12.0 on 10.0.0.2"
    assert "same image" in found.next_move


@pytest.mark.parametrize(("ahead", "verdict"), [(0.5, "pass"), (2.0, "warn"), (-3600.0, "fail")])
def test_clocks_that_are_apart(ahead: float, verdict: str) -> None:
    skewed = node("10.0.0.2", clock={"ahead": ahead, "give_or_take": 0.2})
    found = judged(node("10.0.0.1"), skewed)["clocks"]
    assert found.verdict == verdict
    if verdict == "fail":
        assert found.found.startswith("10.0.0.1 is 3,599.8 s ahead of 10.0.0.2")


def test_a_slow_answer_is_no_skew() -> None:
    assert cluster.clocks(
        {"a": {"ahead": 0.0, "give_or_take": 0.0}, "b": {"ahead": 4.0, "give_or_take": 3.5}}
    ).verdict == ("pass")


def test_what_one_node_lacks_is_told_of_that_node() -> None:
    full = {**FACTS, "disks": {"/tmp": {"total": 100 * GIB, "free": GIB}}, "shm": None}
    found = judged(node("10.0.0.1"), node("10.0.0.2", facts=full))
    assert found["disk"].verdict == found["shared memory"].verdict == "fail"
    assert found["disk"].found.startswith("10.0.0.2: 1.0 GiB free (1%) at /tmp")
    assert found["cuda"].verdict == "pass"


def test_a_node_on_which_nothing_starts() -> None:
    lost = {"address": "10.0.0.2", "store": 0, "gpus": 8, "error": "TimeoutError: no process"}
    found = judged(node("10.0.0.1"), lost)["nodes"]
    assert found.verdict == "fail"
    assert "10.0.0.2: TimeoutError: no process" in found.found
    assert list(judged(lost)) == ["nodes"]
    assert judged(node("a"), dead=1)["nodes"].verdict == "warn"


def test_storage_that_one_node_alone_reaches() -> None:
    refusal = Check("storage", "fail", "s3://b: access refused", "see whose keys these are").as_json()
    well = Check("storage", "pass", "s3://b: written").as_json()
    found = judged(node("10.0.0.1", storage=well), node("10.0.0.2", storage=refusal))["storage"]
    assert (found.verdict, found.found) == ("fail", "10.0.0.2: s3://b: access refused")


def test_an_all_reduce_that_hangs_or_crawls() -> None:
    hung = judged(node("a"), all_reduce={**REDUCED, "error": "no answer within 120 s"})["all-reduce"]
    assert hung.verdict == "fail"
    assert "GLOO_SOCKET_IFNAME" in hung.next_move
    slow = judged(node("a"), all_reduce={**REDUCED, "library": "nccl", "bus": 1e9})["all-reduce"]
    assert slow.verdict == "warn"
    assert "less than 10 gigabit Ethernet has" in slow.found
    assert judged(node("a"), all_reduce=None)["all-reduce"].verdict == "pass"


@pytest.mark.parametrize(
    ("address", "has_token", "name", "verdict"),
    [
        ("http://head:8265", True, "token", "pass"),
        ("http://head:8265", False, "open doors", "fail"),
        ("http://127.0.0.1:8265", False, "open doors", "warn"),
    ],
)
def test_who_may_submit_jobs(address: str, has_token: bool, name: str, verdict: str) -> None:
    token = dashboard.Token("t" * 32, "RAY_AUTH_TOKEN") if has_token else None
    check = cluster.entry(dashboard.Dashboard(address, token))
    assert (check.name, check.verdict) == (name, verdict)


@pytest.mark.parametrize(
    ("scheme", "found"),
    [
        ("http://", "no Ray dashboard answers at {}: Connection refused"),
        ("ray://", "nothing answers at {}: connection refused"),
        ("", "nothing answers at {}: connection refused"),
    ],
)
def test_an_address_where_nothing_answers(scheme: str, found: str) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    [check] = cluster.examine(address)
    assert (check.name, check.verdict) == ("cluster", "fail")
    assert check.found == found.format(address)
    assert check.next_move


def test_the_same_of_all_nodes_is_said_once() -> None:
    same, other = Check("gpu", "pass", "8 × H100"), Check("gpu", "pass", "4 × H100")
    assert everywhere({"a": [same], "b": [same]}) == [same]
    assert everywhere({"a": [same], "b": [other]})[0].found == "well on all 2 nodes; a: 8 × H100"
    assert everywhere({}) == []


# ── the command ──


def test_lines_name_the_place_the_verdict_and_the_move(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(look, "facts", lambda: {**FACTS, "locks": [{"path": "/x/lock", "holder": None}]})
    arguments = {"address": None, "storage": None, "tracking": None}
    assert not report.show(**arguments, as_json=False, console=Console(width=120))
    told = capsys.readouterr().out
    assert "✗ fail  build locks" in told
    assert "next" in told
    assert "rm /x/lock" in told
    assert told.strip().endswith("fail: 9 pass, 1 fail")
    monkeypatch.setattr(look, "facts", lambda: FACTS)
    assert report.show(**arguments, as_json=False, console=Console(width=120))


@pytest.mark.slow
def test_the_command_on_this_machine_ends_with_1_where_something_fails(tmp_path: Path) -> None:
    lock = tmp_path / "cache" / "torch_extensions" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    done = subprocess.run(
        [sys.executable, "-m", "ift.cli", "doctor", "--json", "--storage", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "IFT_CACHE": str(tmp_path / "cache"), "RAY_ADDRESS": ""},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    by_name = {check["name"]: check for check in found["checks"]}
    assert found["verdict"] == "fail"
    assert str(lock) in by_name["build locks"]["next_move"]
    assert by_name["python"]["verdict"] == by_name["torch"]["verdict"] == "pass"
    assert by_name["deepspeed ops"]["found"].startswith("cpu_adam ")
    assert by_name["storage"]["verdict"] == "pass"


def test_a_spec_names_storage_and_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(report, "show", lambda **given: not asked.update(given))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: x\nmodel: {source: no/model}\ntasks: [trec]\n")
    overrides = ["cluster.storage=s3://bucket/x", "tracking.uri=http://mlflow:5000"]
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", str(spec), *overrides])
    assert end.value.code == 0
    assert asked["storage"] == "s3://bucket/x"
    assert asked["tracking"] == "http://mlflow:5000"
    assert asked["address"] is None


@pytest.mark.parametrize(("options", "address"), [([], "auto"), (["--local"], None)])
def test_a_container_that_knows_its_cluster_looks_at_itself(
    monkeypatch: pytest.MonkeyPatch, options: list[str], address: str | None
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(report, "show", lambda **given: not asked.update(given))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(SystemExit):
        cli.main(["doctor", *options])
    assert asked["address"] == address


@pytest.mark.slow
@pytest.mark.long
def test_a_cluster_of_two_nodes_with_a_token(tmp_path: Path) -> None:
    """As a job and as a driver; with the wrong token; and its nodes see what is planted on them."""
    token, port, dashboard_port = "0123456789abcdef" * 2, free_port(), free_port()
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "IFT_CACHE": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    (tmp_path / "torch_extensions").mkdir()
    (tmp_path / "torch_extensions" / "lock").touch()
    options = ["--num-cpus=2", f"--object-store-memory={200 * 2**20}"]

    def doctor(address: str, token: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "ift.cli", "doctor", "--json", "--address", address],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **settings, "RAY_AUTH_TOKEN": token},
        )
        assert done.returncode == 1, done.stderr
        return {
            check["name"]: check for check in json.loads(done.stdout)["checks"] if check["place"] == address
        }

    with (
        rays.head(tmp_path, port, *options, f"--dashboard-port={dashboard_port}", **settings) as ray_address,
        rays.started(tmp_path / "second.log", f"--address={ray_address}", *options, **settings),
    ):
        dashboard_address = f"http://127.0.0.1:{dashboard_port}"
        for address in (dashboard_address, ray_address):
            found = doctor(address, token)
            failing = {name for name, check in found.items() if check["verdict"] == "fail"}
            assert failing == {"build locks"}, found
            assert found["token"]["found"] == "demanded of everybody, and ours is right"
            assert found["nodes"]["found"].startswith("2 nodes, 0 GPUs")
            assert found["versions"]["found"].endswith("the same on all 2 nodes")
            assert "gloo, one rank on each of 2 nodes" in found["all-reduce"]["found"]
        for address, name, words in (
            (dashboard_address, "cluster", "does not take the token from RAY_AUTH_TOKEN"),
            (ray_address, "token", "ours is missing or wrong"),
        ):
            wrong = doctor(address, "f" * 32)
            assert wrong[name]["verdict"] == "fail"
            assert words in wrong[name]["found"]
            assert "nodes" not in wrong
