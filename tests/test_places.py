"""Local folders and a server that speaks S3 are one kind of place: whole files, or none."""

import os
import pickle
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from ift import places
from ift.errors import IftError
from ift.places import Place, check
from ift.train import checkpoint
from ift.train.checkpoint import KINDS, Stretch, Writer


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
    """Keys of nobody, and no settings of the user's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def bucket(server: str, aws: pytest.MonkeyPatch) -> tuple[Any, str]:
    """A client, and the name of an empty bucket."""
    import boto3

    aws.setenv("AWS_ENDPOINT_URL", server)
    client, name = boto3.client("s3", region_name="us-east-1"), f"b-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture(params=["folder", "s3", "bare bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "new" / "place")
    _, name = request.getfixturevalue("bucket")
    return f"s3://{name}/some/prefix/" if request.param == "s3" else f"s3://{name}"


# ── what a place is ──


def test_files_and_folders(url: str) -> None:
    place = Place(url)
    assert (place.files(), place.folders()) == ({}, [])
    place.write("a/one.json", [b"{", b"}"])
    place.write("a/two.bin", iter([memoryview(bytes(1000)) for _ in range(3)]))
    place.write("b/c/three", [])
    place.write("top", [b"x"])
    assert place.files() == {"a/one.json": 2, "a/two.bin": 3000, "b/c/three": 0, "top": 1}
    assert place.files("a") == {"one.json": 2, "two.bin": 3000}
    assert place.files("none") == {}
    assert place.folders() == ["a", "b"]
    assert place.read("a/one.json") == b"{}"
    place.write("a/one.json", [b"new"])
    assert place.read("a/one.json") == b"new"
    assert str(place) == url.rstrip("/")


def test_a_file_of_many_megabytes(url: str) -> None:
    """More than one part of an upload, more than one read."""
    parts = [bytes([i]) * (7 << 20) for i in range(3)]
    place = Place(url)
    place.write("large", iter(parts))
    assert place.files() == {"large": 21 << 20}
    assert b"".join(place.chunks("large")) == b"".join(parts)
    with place.open("large") as file:
        buffer = bytearray(10)
        place.read_into("large", file, (7 << 20) - 4, memoryview(buffer))
        assert buffer == b"\0\0\0\0\1\1\1\1\1\1"
        with pytest.raises(IftError, match=r"large ends at byte 22020096\n  wanted: 22020099 bytes"):
            place.read_into("large", file, (21 << 20) - 7, memoryview(buffer))


def test_deleting(url: str) -> None:
    place = Place(url)
    for name in ("a/one", "a/b/two", "ab/three", "four"):
        place.write(name, [b"x"])
    place.delete("a")
    place.delete("a")
    place.delete("a/one")
    place.delete("four")
    assert place.files() == {"ab/three": 1}
    assert place.folders() == ["ab"]
    place.delete("")
    place.delete("")
    assert place.files() == {}
    place.write("again", [b"x"])
    assert place.files() == {"again": 1}


def test_what_is_not_there(url: str) -> None:
    place = Place(url)
    with pytest.raises(FileNotFoundError):
        place.read("none")
    with pytest.raises(FileNotFoundError), place.open("none"):
        pass


def test_a_write_that_breaks_off_leaves_nothing(url: str) -> None:
    place = Place(url)

    def chunks() -> Iterator[bytes]:
        yield bytes(6 << 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.write("half", chunks())
    assert place.files() == {}
    place.write("old", [b"old"])
    if "s3" not in url:
        with pytest.raises(KeyboardInterrupt):
            place.write("old", chunks())
        assert place.read("old") == b"old"


def test_a_local_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if path.is_dir() else f"file of {path.stat().st_size}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace(a, b)))
    Place(tmp_path).write("new/file", [b"12", b"345"])
    assert done == ["file of 5", "name", "folder", "folder"]


def test_it_travels(url: str) -> None:
    place = Place(url)
    place.write("a", [b"x"])
    other = pickle.loads(pickle.dumps(place))
    assert (str(other), other.read("a")) == (str(place), b"x")


def test_folders_that_others_made_in_s3(bucket: tuple[Any, str]) -> None:
    """A console and pyarrow leave objects of no bytes whose names end in a stroke."""
    client, name = bucket
    for key in ("run/", "run/step-1/", "run/step-2/", "run/step-2/a.json"):
        client.put_object(Bucket=name, Key=key, Body=b"" if key.endswith("/") else b"{}")
    place = Place(f"s3://{name}/run")
    assert place.files() == {"step-2/a.json": 2}
    assert place.folders() == ["step-1", "step-2"]
    assert place.files("step-2") == {"a.json": 2}


# ── checked before training ──


def test_a_good_place_is_left_as_it_was(url: str) -> None:
    check(url)
    assert Place(url).files() == {}


class Ranks:
    """`gather` for threads that play ranks."""

    def __init__(self, world: int) -> None:
        self.given: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.given[rank] = value
        self.barrier.wait()
        everyones = list(self.given)
        self.barrier.wait()
        return everyones


def checked_by(urls: list[str]) -> list[str | None]:
    """What each rank says, where each has its own."""
    ranks, said = Ranks(len(urls)), list[str | None]([None] * len(urls))

    def run(rank: int) -> None:
        try:
            check(urls[rank], rank=rank, gather=lambda value: ranks.gather(rank, value))
        except IftError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(urls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return said


def test_a_place_that_all_ranks_share(url: str) -> None:
    assert checked_by([url] * 3) == [None] * 3
    assert Place(url).files() == {}


def test_a_folder_that_each_node_has_for_itself(tmp_path: Path) -> None:
    said = checked_by([str(tmp_path / "one"), str(tmp_path / "one"), str(tmp_path / "two")])
    assert said[0] == said[1] == said[2] is not None
    assert said[0].splitlines() == [
        f"{tmp_path}/one is not one place for all: rank 0 does not see what rank 2 wrote there",
        "  wanted: a folder that all nodes share, or s3://BUCKET/PREFIX",
        "  next:   set cluster.storage",
    ]


def test_one_ranks_trouble_is_told_to_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = checked_by([str(tmp_path / "one"), str(tmp_path / "file")])
    assert (
        said == [f"{tmp_path}/file/{name(said[0])}: File exists\n  wanted: a folder that all nodes see"] * 2
    )


def name(said: str | None) -> str:
    assert said is not None
    return said.split(": ")[0].rpartition("/")[2]


def test_what_is_written_to_s3_is_not_held_in_memory(aws: pytest.MonkeyPatch) -> None:
    from pyarrow import fs

    asked: dict[str, Any] = {}
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    aws.setattr(fs, "S3FileSystem", lambda **settings: asked.update(settings))
    Place("s3://films/x")
    assert asked["background_writes"] is False


# ── refusals ──


def refused(url: str) -> str:
    with pytest.raises(IftError) as caught:
        check(url)
    return str(caught.value)


def test_no_such_bucket(bucket: tuple[Any, str], server: str) -> None:
    assert refused("s3://nobodys/x") == (
        f"s3://nobodys/x: there is no bucket nobodys at {server}\n  wanted: s3://BUCKET/PREFIX"
    )


def test_no_bucket_is_named() -> None:
    for url in ("s3://", "s3:///x"):
        with pytest.raises(IftError, match=r"names no bucket\n  wanted: s3://BUCKET/PREFIX"):
            Place(url)


@pytest.fixture
def angry(aws: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """A server that answers everything with the status and code in the list."""
    answers = [(403, "AccessDenied")]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, code = answers[0]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # that of S3 goes before it
        aws.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}/")
        yield answers
        server.shutdown()


@pytest.mark.parametrize(
    "code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"]
)
def test_no_rights(angry: list[tuple[int, str]], code: str) -> None:
    angry[0] = (403, code)
    what, wanted, hint = refused("s3://films/x").splitlines()
    assert what.startswith("s3://films/x/.check-")
    assert f": access refused by {os.environ['AWS_ENDPOINT_URL_S3']}" in what
    assert wanted == "  wanted: the rights to list the bucket, and to read, write and delete objects in it"
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in hint


def test_a_server_in_trouble(angry: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_ATTEMPTS", 2)
    angry[0] = (503, "SlowDown")
    text = refused("s3://films/x")
    assert "SLOW_DOWN" in text
    assert text.endswith("\n  next:   try again later")


def test_out_of_reach(aws: pytest.MonkeyPatch) -> None:
    aws.setattr(places, "_ATTEMPTS", 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        address = f"http://127.0.0.1:{free.server_address[1]}"
    aws.setenv("AWS_ENDPOINT_URL", address)
    what, hint = refused("s3://films/x").splitlines()
    assert f": {address} could not be reached: Failed to connect to 127.0.0.1 port " in what
    assert what.endswith("; tried 2 times")
    assert hint == "  next:   check the network and AWS_ENDPOINT_URL"


def test_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)  # root may write everywhere
    what, wanted = refused(str(tmp_path)).splitlines()
    assert what.endswith(": access refused (Permission denied)")
    assert wanted == "  wanted: the rights to read, write and delete there"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    what, hint = refused(str(tmp_path)).splitlines()
    assert what.endswith(": the disk is full")
    assert hint == "  next:   free some room and run again"


# ── and checkpoints in S3 ──


def test_checkpoints_in_s3(bucket: tuple[Any, str]) -> None:
    client, name = bucket
    place, shapes = f"s3://{name}/ift/run-1/checkpoints", {"a": (1000,), "b": (3, 5)}
    values = {n: torch.arange(torch.Size(shape).numel()).float() for n, shape in shapes.items()}
    writers = [Writer(place, rank=rank, world=2, nonce="a", parameters=shapes, keep=1) for rank in range(2)]
    for step in (1, 2, 3):
        for rank, writer in enumerate(writers):
            held = {n: v[rank * len(v) // 2 : (rank + 1) * len(v) // 2] for n, v in values.items()}
            writer.save(
                step,
                [Stretch(n, k, rank * len(values[n]) // 2, v * step) for n, v in held.items() for k in KINDS],
                {},
            )
        for writer in writers:
            writer.close()
    found = checkpoint.latest(place)
    assert found is not None
    assert found.step == 3
    checkpoint.verify(found)
    for n, shape in shapes.items():
        got = torch.zeros(torch.Size(shape).numel())
        checkpoint.load(found, [Stretch(n, "weight", 0, got)], parameters=shapes)
        assert torch.equal(got, 3 * values[n])
    assert Place(place).folders() == ["step-00000003-a"]
    client.put_object(Bucket=name, Key="ift/run-1/checkpoints/step-00000003-a/x.pt", Body=b"")
    with pytest.raises(IftError, match=r"holds x\.pt, which can hold code"):
        checkpoint.latest(place)
    checkpoint.remove(place)
    assert checkpoint.latest(place) is None
