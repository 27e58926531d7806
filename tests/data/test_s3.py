"""S3 over the wire: a server that speaks S3, and a proxy before it that breaks what it is told to break."""

import errno
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ift.data import s3, sources
from ift.errors import IftError
from ift.tasks import task as tasks

CONTENT = bytes(i * 7 % 251 for i in range(300_000))
REAL_SLEEP = time.sleep


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one answer. `at` is a share of the body."""

    kind: str  # status, cut, headers, close, silent, trickle, short, longer, flip, replace
    at: float = 0.5
    status: int = 500
    code: str = ""
    pause: float = 0.0  # between two bytes of a trickle
    then: Callable[[], Any] = lambda: None


@dataclass
class Proxy:
    """`plan` are the faults of the next answers to `methods`, None for none; `forever` is that of all others."""

    server: str
    plan: list[Fault | None] = field(default_factory=list)
    forever: Fault | None = None
    methods: tuple[str, ...] = ("HEAD", "GET")
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and range
    sent: int = 0  # bytes of bodies

    def fault(self, method: str) -> Fault | None:
        if method not in self.methods:
            return None
        return self.plan.pop(0) if self.plan else self.forever

    def handle(self, client: socket.socket) -> None:
        request = self._head(client)
        if not request:
            return
        lines = request.split(b"\r\n")
        method = lines[0].split()[0].decode()
        ranges = [line.split(b": ")[1].decode() for line in lines if line.lower().startswith(b"range: ")]
        self.asked.append((method, ranges[0] if ranges else ""))
        fault = self.fault(method)
        if fault and fault.kind == "status":
            body = f"<Error><Code>{fault.code}</Code></Error>".encode() if fault.code else b""
            head = f"HTTP/1.1 {fault.status} No\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            client.sendall(head.encode() + (b"" if method == "HEAD" else body))
        elif fault and fault.kind == "close":
            pass
        elif fault and fault.kind == "silent":
            with suppress(OSError):
                client.recv(1)  # until the other side gives up
        else:
            head, body = self._answer(request)
            self._send(client, head, body, fault)

    def _answer(self, request: bytes) -> tuple[bytes, bytes]:
        host, port = self.server.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as server:
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", body

    def _send(self, client: socket.socket, head: bytes, body: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        cut = int(len(body) * fault.at) if fault else 0
        if kind in ("short", "longer"):
            new = body[:cut] if kind == "short" else body + b"more"
            head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(new))
            body = new
        if kind in ("cut", "replace"):
            body = body[:cut]
        if kind == "headers":
            head, body = head[: head.index(b"\r\n") + 2], b""
        if kind == "flip" and len(body) == len(CONTENT):  # nothing guards a list
            body = body[:cut] + bytes([body[cut] ^ 1]) + body[cut + 1 :]
        if fault:
            fault.then()
        client.sendall(head)
        if fault and kind == "trickle":
            for byte in body:
                client.sendall(bytes([byte]))
                self.sent += 1
                REAL_SLEEP(fault.pause)
            return
        self.sent += len(body)
        client.sendall(body)

    @staticmethod
    def _head(client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(1 << 16)
            if not more:
                return b""
            data += more
        return data


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Keys of nobody, no settings of the user's, and no waiting between attempts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(s3, "_READ", 10)
    return monkeypatch


def impatient(aws: pytest.MonkeyPatch, fault: Fault) -> None:
    """Where the fault is a slow answer, wait for as long as a sound one takes on a busy machine, no longer."""
    if fault.kind in ("silent", "trickle"):
        aws.setattr(s3, "_READ", 1.0)


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    import boto3

    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=server, **keys)


@pytest.fixture
def bucket(server: str, client: Any, aws: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a bucket `films`, empty at first."""
    aws.setenv("AWS_ENDPOINT_URL", server)
    client.create_bucket(Bucket="films")
    yield client
    for entry in client.list_objects_v2(Bucket="films").get("Contents", []):
        client.delete_object(Bucket="films", Key=entry["Key"])
    client.delete_bucket(Bucket="films")


@pytest.fixture
def proxy(server: str, bucket: Any, aws: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, and behind it an object `a.bin`."""
    bucket.put_object(Bucket="films", Key="a.bin", Body=CONTENT)
    proxy = Proxy(server)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # the client hangs up on a trickle
                proxy.handle(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as listener:
        listener.daemon_threads = listener.allow_reuse_address = True
        listener.server_bind()
        listener.server_activate()
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.server_address[1]}")
        yield proxy
        listener.shutdown()


def refused(url: str, cache: Path) -> str:
    with pytest.raises(IftError) as caught:
        s3.fetch(url, cache)
    return str(caught.value)


def left(cache: Path) -> list[str]:
    """All files of the cache, by their names; of half-written ones the folder too."""
    return sorted(
        path.parent.name + "/" + path.name if path.parent.name.startswith(".") else path.name
        for path in cache.rglob("*")
        if path.is_file()
    )


# ── what is there, and what is not ──


def put(client: Any, key: str, content: bytes = b"x") -> None:
    client.put_object(Bucket="films", Key=key, Body=content)


def test_an_object_is_fetched_once_and_again_when_it_changes(tmp_path: Path, bucket: Any) -> None:
    put(bucket, "deep/a b.jsonl", b"one")
    (path,) = s3.fetch("s3://films/deep/a b.jsonl", tmp_path)
    assert (path.name, path.read_bytes()) == ("a b.jsonl", b"one")
    before = path.stat().st_mtime_ns
    assert s3.fetch("s3://films/deep/a b.jsonl", tmp_path) == [path]
    assert path.stat().st_mtime_ns == before
    put(bucket, "deep/a b.jsonl", b"two")
    (newer,) = s3.fetch("s3://films/deep/a b.jsonl", tmp_path)
    assert (newer.read_bytes(), path.read_bytes()) == (b"two", b"one")
    newer.write_bytes(b"")  # not of its size: fetched again
    assert [p.read_bytes() for p in s3.fetch("s3://films/deep/a b.jsonl", tmp_path)] == [b"two"]


def test_a_task_names_objects_beside_local_files(tmp_path: Path, bucket: Any) -> None:
    put(bucket, "a.txt", b"one")
    (tmp_path / "b.txt").write_text("two", encoding="utf-8")
    values = {
        "kind": "text",
        "license": "MIT",
        "source": {"files": {"train": "s3://films/a.txt", "test": "b.txt"}},
    }
    task = tasks.of_values("films", values, tmp_path, where="films.yaml")
    told: list[tuple[int, int | None]] = []
    files = sources.files_of(task, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert files.splits == {
        "train": list((tmp_path / "cache").glob("s3/*/a.txt")),
        "test": [tmp_path / "b.txt"],
    }
    assert (files.commit, told) == (None, [(3, 3)])


def test_a_star_in_a_key(tmp_path: Path, bucket: Any) -> None:
    for key in ("d/2.jsonl", "d/1.jsonl", "d/e/3.jsonl", "d/4.csv", "dd/5.jsonl", "d/.jsonl/"):
        put(bucket, key, key.encode())
    put(bucket, "d/empty.jsonl", b"")
    for star, wanted in (("d/*.jsonl", "1 2 "), ("d/**/*.jsonl", "1 2 e/3 "), ("d/e/*", "e/3 ")):
        found = s3.fetch(f"s3://films/{star}", tmp_path)
        texts = [path.read_text() for path in found if path.name != "empty.jsonl"]
        assert texts == [f"d/{name}.jsonl" for name in wanted.split()]
    assert [p.name for p in s3.fetch("s3://films/d/em*", tmp_path)] == ["empty.jsonl"]
    assert refused("s3://films/no/*.jsonl", tmp_path) == (
        "no object is called like s3://films/no/*.jsonl\n  wanted: a key, where `*` stands for any letters"
    )


def test_what_is_missing(tmp_path: Path, bucket: Any, server: str) -> None:
    assert refused("s3://films/d/no.jsonl", tmp_path) == (
        "there is no object s3://films/d/no.jsonl\n  next:   `aws s3 ls s3://films/d/` lists what there is"
    )
    for url in ("s3://books/a.jsonl", "s3://books/*.jsonl"):
        assert refused(url, tmp_path) == (
            f"{url}: there is no bucket books at {server}\n  wanted: s3://BUCKET/KEY"
        )
    for url in ("s3://films", "s3://films/", "s3:///a.jsonl", "s3://*/a.jsonl"):
        assert refused(url, tmp_path) == f"'{url}' names no object\n  wanted: s3://BUCKET/KEY"
    assert "Invalid bucket name" in refused("s3://no bucket/a.jsonl", tmp_path)


def test_who_may_read(tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch) -> None:
    proxy.forever = Fault("status", status=403, code="AccessDenied")
    for url, named in (("s3://films/a.bin", "HTTP 403"), ("s3://films/*", "HTTP 403, AccessDenied")):
        proxy.asked.clear()
        assert refused(url, tmp_path) == (
            f"{url}: access refused ({named})\n"
            "  wanted: the rights to list the bucket and to read the object\n"
            "  next:   see whose keys these are, and what they may read: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
        assert len(proxy.asked) == 1  # to ask again would not help
    proxy.forever, proxy.methods = Fault("status", status=403), ("GET",)  # may list, but not read
    assert "access refused (HTTP 403)" in refused("s3://films/a.bin", tmp_path)
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    assert refused("s3://films/a.bin", tmp_path).startswith("s3://films/a.bin: there are no keys for S3")
    aws.setenv("AWS_PROFILE", "nobody")
    assert "(nobody)" in refused("s3://films/a.bin", tmp_path)
    assert left(tmp_path) == []


# ── faults that pass ──


KINDS = [
    Fault("status", status=500),
    Fault("status", status=500, code="InternalError"),
    Fault("status", status=503, code="SlowDown"),
    Fault("status", status=503),
    Fault("status", status=429),
    Fault("status", status=429, code="SlowDown"),
    Fault("close"),
    Fault("flip"),
    Fault("longer"),
    Fault("headers"),
]
shares = st.sampled_from([0.0, 0.001, 0.3, 0.999])
faults = st.one_of(
    st.none(),
    st.sampled_from(KINDS),
    st.builds(Fault, st.sampled_from(["cut", "short"]), shares),
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(plan=st.lists(faults, max_size=4), star=st.booleans())
def test_faults_that_pass_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, proxy: Proxy, plan: list[Fault | None], star: bool
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    proxy.plan = list(plan)
    (path,) = s3.fetch("s3://films/a*" if star else "s3://films/a.bin", cache)
    assert path.read_bytes() == CONTENT
    assert left(cache) == ["a.bin"]


@pytest.mark.parametrize(
    "fault",
    [*KINDS, pytest.param(Fault("silent"), marks=pytest.mark.slow)],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.code}",
)
def test_each_fault_is_met_and_passes(
    tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch, fault: Fault
) -> None:
    impatient(aws, fault)
    proxy.plan, proxy.methods = [fault], ("GET",)
    (path,) = s3.fetch("s3://films/a.bin", tmp_path)
    assert path.read_bytes() == CONTENT
    assert [method for method, _ in proxy.asked] == ["HEAD", "GET", "GET"]


@pytest.mark.slow
@given(cuts=st.lists(st.tuples(st.sampled_from(["cut", "short"]), shares), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
def test_a_body_that_breaks_off_is_read_on_from_there(
    tmp_path_factory: pytest.TempPathFactory, proxy: Proxy, cuts: list[tuple[str, float]]
) -> None:
    proxy.plan, proxy.methods = [Fault(kind, at) for kind, at in cuts], ("GET",)
    proxy.asked, proxy.sent = [], 0
    (path,) = s3.fetch("s3://films/a.bin", tmp_path_factory.mktemp("cache"))
    assert path.read_bytes() == CONTENT
    done, wanted = 0, [""]
    for _, at in cuts:
        done += int((len(CONTENT) - done) * at)
        wanted.append(f"bytes={done}-" if done else "")
    assert [asked for method, asked in proxy.asked if method == "GET"] == wanted
    assert proxy.sent == len(CONTENT)  # no byte twice


def test_a_store_that_knows_no_ranges(tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch) -> None:
    proxy.plan, proxy.methods = [Fault("cut")], ("GET",)
    answer = proxy._answer
    aws.setattr(proxy, "_answer", lambda request: answer(request.replace(b"Range: ", b"X-Range: ")))
    (path,) = s3.fetch("s3://films/a.bin", tmp_path)
    assert path.read_bytes() == CONTENT
    assert len(proxy.asked) == 3


@pytest.mark.parametrize("fault", [Fault("cut", 0.0), Fault("cut"), Fault("short", 0.0), Fault("headers")])
@pytest.mark.parametrize("url", ["s3://films/a.bin", "s3://films/*"])
def test_a_list_cut_short_is_not_taken_for_an_empty_one(
    tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch, fault: Fault, url: str
) -> None:
    aws.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.forever = fault
    proxy.methods = ("HEAD",) if url.endswith("a.bin") and fault.kind == "headers" else ("GET",)
    text = refused(url, tmp_path)
    assert "tried 2 times" in text
    assert "no object" not in text


def test_a_long_body_may_break_off_more_often(tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_MAX_ATTEMPTS", "2")
    aws.setattr(s3, "_STRETCH", 50_000)
    proxy.plan, proxy.methods = [Fault("cut", 0.3)] * 5, ("GET",)
    (path,) = s3.fetch("s3://films/a.bin", tmp_path)
    assert path.read_bytes() == CONTENT


# ── faults that stay ──


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", status=500), "{at} answered with HTTP 500; tried {n} times"),
        (Fault("status", status=503), "{at} answered with HTTP 503; tried {n} times"),
        (Fault("status", status=429), "{at} answered with HTTP 429; tried {n} times"),
        (Fault("close"), "{at} cut the connection; tried {n} times"),
        pytest.param(Fault("silent"), "{at} did not answer in time; tried {n} times", marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_fault_that_stays_is_named(
    tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch, fault: Fault, says: str, method: str
) -> None:
    aws.setenv("AWS_MAX_ATTEMPTS", "2")
    impatient(aws, fault)
    proxy.forever, proxy.methods = fault, (method,)
    wanted = "s3://films/a.bin: " + says.format(at=os.environ["AWS_ENDPOINT_URL"], n=2)
    start = time.monotonic()
    text = refused("s3://films/a.bin", tmp_path)
    assert text.startswith(wanted + "\n  next:   "), text
    assert [asked for asked, _ in proxy.asked].count(method) == 2
    assert time.monotonic() - start < 180
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("cut", 0.0), "the connection was cut, after 0 of 300000 bytes; tried 3 times"),
        (Fault("cut"), "the connection was cut, after 262500 of 300000 bytes; tried 3 times"),
        (Fault("short"), "the answer ended early, after 262500 of 300000 bytes; tried 3 times"),
        (
            Fault("flip"),
            "what came does not have the object's CRC32 sum, after 300000 of 300000 bytes; tried 3 ",
        ),
        (
            Fault("longer"),
            "the answer was longer than the 300000 bytes announced, after 300004 of 300000 bytes",
        ),
        pytest.param(Fault("trickle", pause=0.01), "the answer trickled, ", marks=pytest.mark.slow),
        pytest.param(
            Fault("trickle", pause=20), "the answer stopped for 1 s, a time-out", marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: f"{value.kind}-{value.at}-{value.pause}" if isinstance(value, Fault) else "",
)
def test_a_body_that_never_arrives(
    tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch, fault: Fault, says: str
) -> None:
    aws.setenv("AWS_MAX_ATTEMPTS", "3")
    impatient(aws, fault)
    proxy.forever, proxy.methods = fault, ("GET",)
    start = time.monotonic()
    text = refused("s3://films/a.bin", tmp_path)
    assert text.startswith("s3://films/a.bin: " + says), text
    assert "tried 3 times\n  next:   check the network, or try again later" in text
    assert [method for method, _ in proxy.asked].count("GET") == 3
    assert time.monotonic() - start < 180
    assert left(tmp_path) == []


def test_out_of_reach(tmp_path: Path, aws: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    aws.setenv("AWS_ENDPOINT_URL", url)
    text = refused("s3://films/a.bin", tmp_path)
    assert text.startswith(f"s3://films/a.bin: {url} could not be reached: Could not connect")
    assert "; tried 5 times\n" in text
    aws.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert refused("s3://films/a.bin", tmp_path) == "s3://films/a.bin: Invalid endpoint: nonsense"


# ── settings ──


@pytest.mark.parametrize(
    ("variables", "config", "attempts", "mode"),
    [
        ({}, "", 5, "standard"),
        ({"AWS_MAX_ATTEMPTS": "1"}, "", 1, "standard"),
        ({}, "[default]\nmax_attempts = 2\nretry_mode = adaptive\n", 2, "adaptive"),
        ({"AWS_PROFILE": "p", "AWS_RETRY_MODE": "legacy"}, "[profile p]\nmax_attempts = 3\n", 3, "legacy"),
    ],
)
def test_the_users_settings_go_before(
    tmp_path: Path,
    proxy: Proxy,
    aws: pytest.MonkeyPatch,
    variables: dict[str, str],
    config: str,
    attempts: int,
    mode: str,
) -> None:
    (tmp_path / "config").write_text(config, encoding="utf-8")
    for name, value in {**variables, "AWS_CONFIG_FILE": str(tmp_path / "config")}.items():
        aws.setenv(name, value)
    proxy.forever = Fault("status", status=500)
    tried = "once" if attempts == 1 else f"{attempts} times"
    assert f"; tried {tried}\n" in refused("s3://films/a.bin", tmp_path / "cache")
    assert len(proxy.asked) == attempts
    proxy.forever, proxy.methods, proxy.asked = Fault("cut", 0.0), ("GET",), []
    assert f"; tried {tried}\n" in refused("s3://films/a.bin", tmp_path / "cache")  # of bodies, too
    assert len(proxy.asked) == 1 + attempts
    assert s3._client().meta.config.retries["mode"] == mode


def test_an_endpoint_of_the_profile(tmp_path: Path, proxy: Proxy, aws: pytest.MonkeyPatch) -> None:
    url = os.environ["AWS_ENDPOINT_URL"]
    aws.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(f"[profile near]\nendpoint_url = {url}\n", encoding="utf-8")
    aws.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    aws.setenv("AWS_PROFILE", "near")
    assert s3.fetch("s3://films/a.bin", tmp_path / "cache")[0].read_bytes() == CONTENT
    assert proxy.asked


# ── in the middle ──


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_an_object_replaced_while_it_is_read(tmp_path: Path, proxy: Proxy, bucket: Any, at: float) -> None:
    newer = CONTENT[::-1]
    proxy.plan, proxy.methods = [Fault("replace", at, then=lambda: put(bucket, "a.bin", newer))], ("GET",)
    text = refused("s3://films/a.bin", tmp_path)
    assert text == "s3://films/a.bin was replaced while it was read\n  next:   try again"
    assert proxy.sent < len(CONTENT) * at + 1000  # nothing of the new one is sent
    assert left(tmp_path) == []
    assert s3.fetch("s3://films/a.bin", tmp_path)[0].read_bytes() == newer


def test_a_store_that_knows_no_conditions(
    tmp_path: Path, proxy: Proxy, bucket: Any, aws: pytest.MonkeyPatch
) -> None:
    proxy.plan = [Fault("replace", 1.0, then=lambda: put(bucket, "a.bin", CONTENT[::-1]))]  # behind the HEAD
    answer = proxy._answer
    aws.setattr(proxy, "_answer", lambda request: answer(request.replace(b"If-Match: ", b"X-If-Match: ")))
    assert "was replaced while it was read" in refused("s3://films/a.bin", tmp_path)
    assert left(tmp_path) == []


CLIENT = """
import sys
from pathlib import Path
from ift.data import s3

print("on the way", flush=True)
s3.fetch("s3://films/a.bin", Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle(tmp_path: Path, proxy: Proxy) -> None:
    proxy.plan, proxy.methods = [Fault("trickle", pause=0.001)], ("GET",)
    process = subprocess.Popen([sys.executable, "-c", CLIENT, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while proxy.sent < 500:
            assert time.monotonic() < deadline
            assert process.poll() is None
            REAL_SLEEP(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (half,) = left(tmp_path)
    assert half.startswith(".part-")  # never under the name of a whole one
    proxy.plan.clear()
    (path,) = s3.fetch("s3://films/a.bin", tmp_path)
    assert path.read_bytes() == CONTENT
    assert not path.parent.name.startswith(".")


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path, proxy: Proxy) -> None:
    for name, age in {".part-old": 25, ".part-new": 1}.items():
        (tmp_path / "s3" / name).mkdir(parents=True)
        (tmp_path / "s3" / name / "a.bin").write_bytes(b"half")
        os.utime(tmp_path / "s3" / name, (time.time() - age * 3600,) * 2)
    s3.fetch("s3://films/a.bin", tmp_path)
    assert left(tmp_path) == [".part-new/a.bin", "a.bin"]


def test_a_disk_that_fails_costs_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = SimpleNamespace(address="http://here", bucket="films")
    monkeypatch.setattr(s3, "_download", lambda *arguments: arguments[4].write_bytes(b"one"))
    path = s3._object(store, "a.jsonl", "etag", 3, tmp_path, None)
    stat = Path.stat

    def failing(self: Path, **options: Any) -> os.stat_result:
        if self == path:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", failing)
        with pytest.raises(IftError, match="cannot be read: Stale file handle"):
            s3._object(store, "a.jsonl", "etag", 3, tmp_path, None)
    assert path.read_bytes() == b"one"
