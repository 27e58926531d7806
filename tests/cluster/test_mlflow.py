"""The team's MLflow, as `cluster/mlflow/serve` starts it: PostgreSQL, S3, passwords, host names, secrets in files."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from tracking.made import make_version
from tracking.servers import free_port, postgresql, s3, until

from ift.errors import IftError
from ift.tracking.registry import Registry

SERVE = Path(__file__).resolve().parents[2] / "cluster" / "mlflow" / "serve"
PASSWORD = "correct horse battery staple"
SETTINGS = {
    "MLFLOW_DATABASE_URI": "postgresql+psycopg2://me@127.0.0.1/mlflow",
    "MLFLOW_ADMIN_PASSWORD": PASSWORD,
    "MLFLOW_SESSION_KEY": "k" * 40,
    "MLFLOW_ARTIFACTS": "s3://bucket/artifacts",
    "MLFLOW_ALLOWED_HOSTS": "mlflow.example.com",
}


def status(port: int, *, host: str = "mlflow.example.com", user: str = "", password: str = "") -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    )
    request.add_header("Host", host)
    if user:
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        )
    try:
        return int(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return error.code


def environment(settings: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    return {**own, "PYTHON": sys.executable, **settings}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server whose secrets lie in files."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    with ExitStack() as stack:
        database, storage = stack.enter_context(postgresql()), stack.enter_context(s3())
        secrets = {**SETTINGS, "MLFLOW_DATABASE_URI": database.replace("me@", "me:hidden%40word@")}
        settings = {
            **storage["environment"],
            "MLFLOW_ARTIFACTS": storage["artifacts"],
            "MLFLOW_ALLOWED_HOSTS": f"mlflow.example.com,127.0.0.1:{port}",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        for name in ("MLFLOW_DATABASE_URI", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SESSION_KEY"):
            (folder / name).write_text(secrets[name])
            settings[f"{name}_FILE"] = str(folder / name)
        log = (folder / "log").open("w")
        process = subprocess.Popen([SERVE], env=environment(settings), stdout=log, stderr=log, cwd=folder)
        try:
            until(lambda: process.poll() is not None or _listens(port), 120)
            assert process.poll() is None, (folder / "log").read_text()
            yield port
            shown = [" ".join(p.cmdline()) for p in psutil.Process(process.pid).children(recursive=True)]
            assert shown
            assert not any(word in line for line in shown for word in ("hidden", "horse", "k" * 40))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        assert not list(Path("/tmp").glob("tmp.*/auth.ini"))


def _listens(port: int) -> bool:
    try:
        return status(port) > 0
    except OSError:
        return False


@pytest.mark.slow
def test_nobody_gets_in_without_a_password_or_by_another_name(server: int) -> None:
    assert status(server) == 401
    assert status(server, user="admin", password="wrong") == 401
    assert status(server, user="admin", password=PASSWORD) == 200
    assert status(server, user="admin", password=PASSWORD, host="evil.example.com") == 403


ROUTES = """
import json
from mlflow.server import app
from mlflow.server.auth import routes as auth
from mlflow.server.fastapi_app import create_fastapi_app

found = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods}
found |= {("GET", path) for path in vars(auth).values() if isinstance(path, str) and path.startswith("/")}
for path, methods in create_fastapi_app().openapi()["paths"].items():
    found |= {(method.upper(), path) for method in methods}
print(json.dumps(sorted(found)))
"""
# that it lives, its version, the kind of its store; scripts and pictures of its pages
OPEN = {
    "/health",
    "/version",
    "/api/3.0/mlflow/server-info",
    "/ajax-api/3.0/mlflow/server-info",
    "/static-files/<path:path>",
}


@pytest.mark.slow
def test_every_route_is_closed_to_who_has_no_password(server: int, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", ROUTES],
        env=environment({"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/x.db"}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    routes = {
        (method, re.sub(r"<[^>]*>|\{[^}]*\}", "x", path))
        for method, path in json.loads(told.splitlines()[-1])
        if method in ("GET", "POST", "PUT", "PATCH", "DELETE") and path not in OPEN
    }
    assert len(routes) > 300

    def answer(route: tuple[str, str]) -> int:
        method, path = route
        body = None if method == "GET" else b"{}"
        headers = {"Host": "mlflow.example.com", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{server}{path}", data=body, headers=headers, method=method
        )
        try:
            return int(urllib.request.urlopen(request, timeout=60).status)
        except urllib.error.HTTPError as error:
            return error.code

    with ThreadPoolExecutor(4) as threads:
        answers = dict(zip(sorted(routes), threads.map(answer, sorted(routes)), strict=True))
    assert {route: code for route, code in answers.items() if code not in (401, 403)} == {}


@pytest.mark.long
def test_a_run_is_tracked_and_registered_by_who_has_the_password(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    make_version(uri, tmp_path / "a", "reviews")
    version = Registry(uri).named("reviews@candidate")
    assert Registry(uri).files(version)["model.safetensors"] == 1000
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(IftError, match="could not be read: access denied, HTTP 401"):
        Registry(uri).names()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"MLFLOW_ADMIN_PASSWORD": ""},
            "MLFLOW_ADMIN_PASSWORD is not set; wanted: a value, or MLFLOW_ADMIN_PASSWORD_FILE",
        ),
        (
            {"MLFLOW_ADMIN_PASSWORD": "short"},
            "MLFLOW_ADMIN_PASSWORD has 5 characters; MLflow wants 12 or more",
        ),
        (
            {"MLFLOW_SESSION_KEY_FILE": "/nowhere"},
            "MLFLOW_SESSION_KEY_FILE is /nowhere, which cannot be read",
        ),
        ({"MLFLOW_ALLOWED_HOSTS": ""}, "MLFLOW_ALLOWED_HOSTS is not set"),
        ({"MLFLOW_ARTIFACTS": ""}, "MLFLOW_ARTIFACTS is not set; wanted: s3://BUCKET/PREFIX"),
    ],
)
def test_what_is_missing_is_named_before_a_server_starts(change: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [SERVE],
        env=environment({**SETTINGS, **change}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
