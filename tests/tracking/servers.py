"""Real servers for tests, on loopback: PostgreSQL, S3 over the wire, MLflow, and a proxy that makes trouble.

In:  a folder for their files.
Out: context managers that end what they started; each gives an address.

    with postgresql() as database, s3() as storage, mlflow_server(folder, database, **storage) as server:
        MlflowClient(server.uri)
        server.kill(); server.start()             # the same address, the same data
        with Proxy(server.port) as proxy:
            proxy.cut_answers(only=b"log-batch")  # proxy.uri stands for the server, whose answers get lost
            proxy.through()
"""

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

BUCKET = "mlflow"
_ANY = random.SystemRandom()  # Hypothesis seeds the other one, alike in all processes


def free_port() -> int:
    """A loopback port that nobody listens on.

    Below 32768, where the kernel's own begin: those it gives to whoever asks for any, while a test has its server down.
    """
    while True:
        with socket.socket() as free, suppress(OSError):
            port = _ANY.randrange(20_000, 32_000)
            free.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# ── PostgreSQL ──


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of the distribution's package, empty, as a URI for MLflow. Skips the test where there is none."""
    pytest.importorskip("psycopg2", reason="needs the package psycopg2-binary")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [shutil.which("initdb")]
    if found[-1] is None:
        pytest.skip("needs PostgreSQL: the package postgresql of Debian or Ubuntu")
    programs = Path(found[-1]).parent
    root = os.geteuid() == 0  # as whom PostgreSQL refuses to run
    prefix = ["runuser", "-u", "postgres", "--"] if root else []
    folder, port = Path(tempfile.mkdtemp(prefix="ift-pg-")), free_port()
    if root:
        shutil.chown(folder, "postgres")

    def run(program: str, *options: str) -> None:
        subprocess.run(
            [*prefix, programs / program, "-D", folder / "data", *options],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            timeout=120,
        )

    try:
        run("initdb", "-A", "trust", "-U", "me", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://me@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ── S3 ──


@contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """moto's S3 server with a bucket, as `mlflow_server` takes it: where artefacts go, and the environment for that."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        endpoint = f"http://{host}:{port}"
        boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).create_bucket(Bucket=BUCKET)
        settings = {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1", **keys}
        yield {"artifacts": f"s3://{BUCKET}/artifacts", "environment": settings}
    finally:
        server.stop()


def s3_objects(environment: Mapping[str, str]) -> dict[str, bytes]:
    """All that is in the bucket, by key."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


# ── MLflow ──


class MlflowServer:
    """A real MLflow server on a port of its own, which it keeps over restarts."""

    def __init__(
        self, folder: Path, database: str, artifacts: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.environment = dict(environment or {})
        self.options: list[str] = []  # more of `mlflow server`'s
        self._stores = ["--backend-store-uri", database, "--artifacts-destination", artifacts]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers; nothing where it runs already."""
        if self.process is not None:
            return
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--serve-artifacts"]
        options += self.options
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, *self._stores],
                cwd=self.folder,
                env={**own, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self.answers, 180)

    def answers(self) -> bool:
        assert self.process is None or self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(100)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, as a lost machine would."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(
    folder: Path,
    database: str | None = None,
    *,
    artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[MlflowServer]:
    """A server that runs; on SQLite and with its artefacts in `folder` where nothing else is said."""
    server = MlflowServer(
        folder,
        database or f"sqlite:///{folder / 'mlflow.db'}",
        artifacts or str(folder / "artifacts"),
        environment,
    )
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def whole_server(folder: Path) -> Iterator[MlflowServer]:
    """MLflow as it is run in earnest: rows in PostgreSQL, artefacts in S3, handed on by the server."""
    with ExitStack() as stack:
        database, storage = stack.enter_context(postgresql()), stack.enter_context(s3())
        yield stack.enter_context(mlflow_server(folder, database, **storage))


# ── trouble ──


class Proxy:
    """Stands before a server and does one kind of harm at a time; `faults` counts how often it did.

    Setting what it does cuts the connections that there are, so that it holds from the next request on. `only` is a
    part of the request's first line: others pass.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.faults = 0
        self._do, self._only, self._times = "pass", b"", -1
        self._value: Any = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._cut_all()

    def through(self) -> None:
        """Hand on everything."""
        self._set("pass")

    def refuse(self) -> None:
        """Cut each connection as it is made."""
        self._set("refuse")

    def cut_requests(self, after: int = 50, *, only: bytes = b"", times: int = -1) -> None:
        """Hand on `after` bytes of a request, then cut: the server gets half of it."""
        self._set("cut_request", after, only, times)

    def cut_answers(self, *, only: bytes = b"", times: int = -1) -> None:
        """Hand on the request and cut before the answer: the server does its work, and nobody hears of it."""
        self._set("cut_answer", None, only, times)

    def delay(self, seconds: float, *, only: bytes = b"") -> None:
        """Hand each request on so much later."""
        self._set("delay", seconds, only)

    def hang(self) -> None:
        """Take requests and never answer."""
        self._set("hang")

    def answer(
        self, status: int, *, retry_after: int | None = None, only: bytes = b"", times: int = -1
    ) -> None:
        """Answer with this status instead of the server; the server does not hear of the request."""
        more = f"Retry-After: {retry_after}\r\n" if retry_after is not None else ""
        text = f"HTTP/1.1 {status} No\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n"
        self._set("answer", text.encode(), only, times)

    def _set(self, do: str, value: Any = None, only: bytes = b"", times: int = -1) -> None:
        with self._lock:
            self._do, self._value, self._only, self._times = do, value, only, times
        self._cut_all()

    def _cut_all(self) -> None:
        with self._lock:
            sockets, self._open = list(self._open), set()
        for each in sockets:
            _cut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _harm(self, request: bytes) -> tuple[str, Any]:
        """What is to be done to this request."""
        with self._lock:
            if self._do == "pass" or self._times == 0 or self._only not in request.partition(b"\r\n")[0]:
                return "pass", None
            self._times -= 1
            self.faults += 1
            return self._do, self._value

    def _serve(self, client: socket.socket) -> None:
        if self._do == "refuse":
            self.faults += 1
            _cut(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            _cut(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        threading.Thread(target=self._back, args=(server, client), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(1 << 16):
                first = data.split(b" ", 1)[0] in (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD")
                do, value = self._harm(data) if first else ("pass", None)
                if do == "answer":
                    client.settimeout(0.2)  # the rest of the request, so that the answer is read
                    with suppress(TimeoutError):
                        while client.recv(1 << 16):
                            pass
                    client.sendall(value)
                    client.shutdown(socket.SHUT_RDWR)
                    break
                if do == "cut_request":
                    server.sendall(data[:value])
                    break
                if do == "hang":
                    continue
                if do == "delay":
                    time.sleep(value)
                if do == "cut_answer":
                    with self._lock:
                        self._open.discard(client)
                    server.sendall(data)
                    time.sleep(0.5)  # for the server to do it; what it answers goes nowhere
                    break
                server.sendall(data)
        _cut(client)
        _cut(server)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                with self._lock:
                    if client not in self._open:
                        break
                client.sendall(data)
        _cut(client)


def _cut(connection: socket.socket) -> None:
    """Close at once, with a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
