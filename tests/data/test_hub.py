"""The hub: the libraries' own HTTP against a small server that speaks as the hub does."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, FakeHub, Repo, environment, sha

from ift.data import hub as hubs
from ift.data import sources
from ift.errors import IftError
from ift.tasks import task as tasks
from ift.tasks.task import Hub

pytestmark = pytest.mark.slow  # each starts a hub of its own and the `datasets` library


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"film {i}", "label": i % 2, "answers": {"text": [f"a{i}"], "start": [i]}}
        for i in range(start, start + count)
    ]


README = """\
---
license: mit
configs:
- config_name: plain
  default: true
  data_files:
  - {split: train, path: "plain/train-*.parquet"}
  - {split: test, path: "plain/test-*.parquet"}
  - {split: unlabelled, path: "plain/unlabelled-*.parquet"}
- config_name: hard
  data_files:
  - {split: dev, path: "hard/dev-*.parquet"}
---
# Films
"""
FILMS = {
    "README.md": README.encode(),
    "plain/train-00000-of-00002.parquet": parquet(rows(0, 5)),
    "plain/train-00001-of-00002.parquet": parquet(rows(5, 5)),
    "plain/test-00000-of-00001.parquet": parquet(rows(100, 3)),
    "plain/unlabelled-00000-of-00001.parquet": parquet(rows(200, 3)),
    "hard/dev-00000-of-00001.parquet": parquet(rows(300, 2)),
}
NO_DEFAULT = {**FILMS, "README.md": README.replace("  default: true\n", "").encode()}
SCRIPT = {"README.md": b"# Old\n", "old.py": b"raise SystemExit('this must never run')\n"}
CONVERTED = {
    "easy/train/0000.parquet": parquet(rows(0, 2)),
    "easy/partial-test/0000.parquet": parquet(rows(2, 2)),
    "hard/train/0000.parquet": parquet(rows(4, 2)),
}
TABLES = {"data/train.csv": b"text,label\nfine,1\ndull,0\n", "data/test.csv": b"text,label\nlong,0\n"}
PICTURES = {
    "train.parquet": parquet([{"image": {"bytes": b"\x89PNG\xff", "path": "a.png"}, "text": "a cat"}]),
}


def repositories() -> dict[str, Repo]:
    """Each time anew: tests push to them."""
    return {
        "acme/films": Repo(FILMS),
        "acme/undecided": Repo(NO_DEFAULT),
        "acme/old": Repo(SCRIPT, refs__convert__parquet=CONVERTED),
        "acme/tables": Repo(TABLES),
        "acme/pictures": Repo(PICTURES),
        "acme/empty": Repo({"README.md": b"# Nothing yet\n"}),
        "acme/gated": Repo(FILMS, gated=True),
        "acme/private": Repo(FILMS, private=True),
    }


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub(repositories())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# Each case in turn: what `fetch` gave, as rows, or why not. One process for many cases: the libraries load slowly.
CLIENT = """
import gc, json, sys
from pathlib import Path
from ift.data import formats, hub
from ift.errors import IftError
from ift.tasks.task import Hub

hub._PAUSES = (0.01, 0.01)
for case in json.load(sys.stdin):
    splits, cache, first = case.pop("splits", None), Path(case.pop("cache")), case.pop("first", None)
    told = []
    def tell(done, total):
        told.append(done)
    try:
        if first:
            got = hub.stream(Hub(**case), splits, first, cache, tell)
        else:
            got = hub.fetch(Hub(**case), splits, cache, tell)
        left = sum(type(held).__name__ == "HfFileSystemFile" for held in gc.get_objects())
        rows = {split: [r.values for f in files for r in formats.read(f)] for split, files in got.files.items()}
        told = max(told, default=0)
        print(json.dumps({"rows": rows, "commit": got.commit, "bytes": told, "left": left}))
    except IftError as error:
        print(json.dumps({"error": str(error)}))
"""


def client(
    url: str, home: Path, *cases: dict[str, Any], cache: Path | None = None, **env: str
) -> list[dict[str, Any]]:
    """The answers, in the cases' order, of a fresh process whose hub is at `url` and that keeps all in `home`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps([{"cache": str(cache or home / "cache"), **case} for case in cases]),
        env={**clean, **environment(url, home), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def texts(answer: dict[str, Any]) -> dict[str, list[str]]:
    return {split: [row["text"] for row in found] for split, found in answer["rows"].items()}


def names(start: int, count: int) -> list[str]:
    return [row["text"] for row in rows(start, count)]


def places(home: Path) -> list[str]:
    """The files of the hub's part of the cache, without the commit."""
    found = (path.relative_to(home / "cache" / "hub") for path in (home / "cache" / "hub").rglob("*"))
    return sorted("/".join(path.parts[2:]) for path in found if path.suffix == ".arrow")


def fetched(hub: FakeHub) -> list[str]:
    """The data files that were sent, not merely looked up."""
    return [
        path.rpartition("/")[2] for path in hub.asked if path.startswith("GET /datasets/") and "." in path
    ]


def test_a_data_set_of_parquet_files(hub: FakeHub, tmp_path: Path) -> None:
    case = {"id": "acme/films"}
    first, again, other, one = client(
        hub.url,
        tmp_path,
        case,
        case,
        {**case, "config": "hard", "splits": {"train": "dev"}},
        {**case, "config": "plain", "splits": {"train": "unlabelled", "validation": "unlabelled"}},
    )
    assert first["rows"] == {
        "train": rows(0, 10),
        "test": rows(100, 3),
    }  # as the files have them, nested values too
    assert again["rows"] == first["rows"]
    assert texts(other) == {"train": names(300, 2)}
    assert texts(one) == {"train": names(200, 3), "validation": names(200, 3)}
    assert {answer["commit"] for answer in (first, again, other, one)} == {sha(FILMS)}
    sent = [name for name in fetched(hub) if name.endswith(".parquet")]
    assert sorted(sent) == sorted(path.rpartition("/")[2] for path in FILMS if path.endswith(".parquet"))
    assert first["bytes"] == sum(
        len(FILMS[f"plain/{name}"]) for name in sent if name.startswith(("train", "test"))
    )


def test_only_the_splits_asked_for_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    (answer,) = client(hub.url, tmp_path, {"id": "acme/films", "splits": {"test": "test"}})
    assert texts(answer) == {"test": names(100, 3)}
    assert [name for name in fetched(hub) if name.endswith(".parquet")] == ["test-00000-of-00001.parquet"]


def test_what_is_kept_serves_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    case = {"id": "acme/films"}
    (first,) = client(hub.url, tmp_path, case)
    nowhere = "http://127.0.0.1:1"
    pinned = {**case, "revision": sha(FILMS)}
    missing = {**case, "config": "hard", "splits": {"train": "dev"}}
    off = client(nowhere, tmp_path, case, pinned, missing, HF_HUB_OFFLINE="1")
    assert off[:2] == [{**first, "bytes": 0}] * 2
    assert off[2]["error"] == (
        "acme/films is not in the cache, and the hub is switched off\n  next:   unset HF_HUB_OFFLINE to fetch it"
    )
    hub.asked.clear()
    refused, kept = client(nowhere, tmp_path, missing, pinned)
    assert kept["rows"] == first["rows"]
    assert refused["error"].startswith(f"acme/films: {nowhere} could not be reached: ")
    assert refused["error"].endswith("  next:   check the network, HF_ENDPOINT and the proxy; try again")


def test_a_new_commit_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    old = {"id": "acme/tables", "revision": sha(TABLES)}
    (first,) = client(hub.url, tmp_path, {"id": "acme/tables"})
    newer = {**TABLES, "data/train.csv": b"text,label\nnew,1\n"}
    hub.repos["acme/tables"].refs = {"main": newer, "v1": TABLES}
    now, tagged, pinned = client(
        hub.url, tmp_path, {"id": "acme/tables"}, {"id": "acme/tables", "revision": "v1"}, old
    )
    assert first["rows"]["train"] == [{"text": "fine", "label": 1}, {"text": "dull", "label": 0}]
    assert (texts(now)["train"], now["commit"]) == (["new"], sha(newer))
    assert tagged["rows"] == pinned["rows"] == first["rows"]


def test_what_the_datasets_library_kept_serves_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    script = "import datasets; datasets.load_dataset('acme/films', 'plain')"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        timeout=120,
    )
    case = {"id": "acme/films", "config": "plain"}
    answers = client(
        "http://127.0.0.1:1", tmp_path, case, {**case, "splits": {"train": "no"}}, HF_HUB_OFFLINE="1"
    )
    assert texts(answers[0]) == {"train": names(0, 10), "test": names(100, 3)}
    assert answers[0]["commit"] == sha(FILMS)
    assert "is not in the cache" in answers[1]["error"]


def test_the_hubs_own_conversion(hub: FakeHub, tmp_path: Path) -> None:
    converted = {"id": "acme/old", "revision": "refs/convert/parquet"}
    script, several, easy, hard, unknown, none = client(
        hub.url,
        tmp_path,
        {"id": "acme/old"},
        converted,
        {**converted, "config": "easy"},
        {**converted, "config": "hard"},
        {**converted, "config": "soft"},
        {"id": "acme/films", "revision": "refs/convert/parquet"},
    )
    assert script["error"] == (
        "acme/old consists of a loading script, old.py; nothing that is downloaded is run\n"
        "  wanted: a data set of data files\n"
        "  next:   the hub's own conversion of it: `revision: refs/convert/parquet`"
    )
    assert not any(path.endswith("old.py") for path in hub.asked if path.startswith("GET"))
    assert several["error"] == (
        "acme/old has several configurations\n  wanted: one of easy, hard\n"
        "  next:   hub: {id: acme/old, config: easy, revision: refs/convert/parquet}"
    )
    assert texts(easy) == {"train": names(0, 2), "test": names(2, 2)}
    assert texts(hard) == {"train": names(4, 2)}
    assert easy["commit"] == sha(CONVERTED)
    assert unknown["error"] == "acme/old has no configuration `soft`\n  wanted: one of easy, hard"
    assert none["error"].startswith("acme/films has no revision refs/convert/parquet")


def test_configurations_and_splits_that_are_not_there(hub: FakeHub, tmp_path: Path) -> None:
    undecided, soft, other, missing, unnamed, revision, empty = client(
        hub.url,
        tmp_path,
        {"id": "acme/undecided"},
        {"id": "acme/films", "config": "soft"},
        {"id": "acme/tables", "config": "plain"},
        {"id": "acme/films", "splits": {"train": "train", "test": "exam"}},
        {"id": "acme/films", "config": "hard"},
        {"id": "acme/films", "revision": "v9"},
        {"id": "acme/empty"},
    )
    assert undecided["error"] == (
        "acme/undecided has several configurations\n  wanted: one of plain, hard\n"
        "  next:   hub: {id: acme/undecided, config: plain}"
    )
    assert soft["error"] == "acme/films has no configuration `soft`\n  wanted: one of plain, hard"
    assert other["error"] == "acme/tables has no configuration `plain`\n  wanted: one of default"
    assert missing["error"] == "acme/films has no split `exam`\n  wanted: one of train, test, unlabelled"
    assert unnamed["error"] == (
        "acme/films/hard has no split named train, validation, test\n"
        "  wanted: `splits` to say which of its own serve: dev\n  next:   splits: {train: dev}"
    )
    assert revision["error"].startswith(
        "acme/films has no revision v9\n  wanted: a branch, a tag or a commit"
    )
    assert empty["error"] == (
        "acme/empty has no data files that can be read\n  wanted: Parquet, JSON or CSV files in it"
    )


def test_who_may_read(hub: FakeHub, tmp_path: Path) -> None:
    cases = [{"id": f"acme/{name}", "splits": {"test": "test"}} for name in ("private", "gated", "missing")]
    private, gated, missing = client(hub.url, tmp_path, *cases, {"id": "films"})[:3]
    assert gated["error"] == (
        "acme/gated is gated: it is read by those whom its authors have let in\n"
        "  next:   ask on https://huggingface.co/datasets/acme/gated, then `hf auth login`"
    )
    for answer, case in ((private, cases[0]), (missing, cases[2])):
        assert answer["error"] == (
            f"the hub has no data set {case['id']}, or it is private\n"
            "  wanted: the id of a data set, such as CogComp/trec\n"
            "  next:   check the id; for a private one, `hf auth login`"
        )
    let_in = client(hub.url, tmp_path, *cases, HF_TOKEN=TOKEN)
    assert [texts(answer) for answer in let_in[:2]] == [{"test": names(100, 3)}] * 2
    assert let_in[2]["error"].endswith("`hf auth login` with a token that may read it")


def test_an_id_that_moved_or_lacks_its_owner(hub: FakeHub, tmp_path: Path) -> None:
    hub.moved["films"] = "acme/films"
    moved, ownerless = client(hub.url, tmp_path, {"id": "films", "splits": {"test": "test"}}, {"id": "shows"})
    assert texts(moved) == {"test": names(100, 3)}
    assert "next:   check the id, which has an owner: OWNER/NAME; " in ownerless["error"]


def test_a_folder_of_that_name_is_not_read(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme" / "tables").mkdir(parents=True)
    (tmp_path / "acme" / "tables" / "train.csv").write_text("text,label\nlocal,1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (answer,) = client(hub.url, tmp_path, {"id": "acme/tables"})
    assert texts(answer) == {"train": ["fine", "dull"], "test": ["long"]}


def test_pictures_stay_as_they_are(hub: FakeHub, tmp_path: Path) -> None:
    (answer,) = client(hub.url, tmp_path, {"id": "acme/pictures"})
    assert answer["rows"] == {"train": [{"image": {"bytes": None, "path": "a.png"}, "text": "a cat"}]}


def test_a_hub_that_is_out_of_order(hub: FakeHub, tmp_path: Path) -> None:
    (kept,) = client(hub.url, tmp_path, {"id": "acme/films"})
    hub.broken = True
    same, other = client(hub.url, tmp_path, {"id": "acme/films"}, {"id": "acme/tables"})
    assert same["rows"] == kept["rows"]
    assert other["error"] == "acme/tables: the hub answered with HTTP 500\n  next:   try again later"
    hub.broken, hub.stumbles = False, 2  # a hub that recovers is asked again
    (answer,) = client(hub.url, tmp_path, {"id": "acme/tables"})
    assert texts(answer)["test"] == ["long"]


def test_data_that_cannot_be_read(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/broken"] = Repo({"train.parquet": b"PAR1 but not quite PAR1"})
    (answer,) = client(hub.url, tmp_path, {"id": "acme/broken"})
    assert answer["error"].startswith("acme/broken could not be read: ArrowInvalid: ")
    assert not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, [1, 3]),
        ({"retry-after": "40"}, [40, 40]),
        ({"retry-after": "4000"}, [300, 300]),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, [1, 3]),
        ({"ratelimit": '"api";r=0;t=55'}, [55, 55]),
    ],
)
def test_a_hub_that_is_asked_too_often_says_when_to_come_again(
    headers: dict[str, str], wanted: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    def dataset_info(*_: Any, **__: Any) -> Any:
        response: Any = SimpleNamespace(headers=headers, request=None, status_code=429)
        raise HfHubHTTPError("429", response=response)

    slept, told = list[float](), list[str]()
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(hubs, "time", SimpleNamespace(sleep=slept.append))  # other threads sleep as they did
    with pytest.raises(IftError, match="the hub answered with HTTP 429"):
        hubs.fetch(Hub(id="acme/films"), None, tmp_path, status=told.append)
    assert slept == wanted
    assert told == [f"acme/films: the hub answered with HTTP 429; asked again in {s:.0f} s" for s in wanted]


# ── streaming ──


def noise(start: int, count: int) -> list[dict[str, Any]]:
    """Rows of about 1 KiB that hardly compress."""
    return [
        {"text": f"film {i}", "noise": hashlib.shake_128(str(i).encode()).hexdigest(500)}
        for i in range(start, start + count)
    ]


def shards(kind: str) -> dict[str, bytes]:
    """Data sets of some size: one file of 100 MB with groups of a thousand rows, or forty of half a megabyte."""
    if kind == "groups":
        return {"train.parquet": parquet(noise(0, 100_000), row_group_size=1000, compression="none")}
    found = {}
    for number in range(40):
        some = noise(500 * number, 500)
        data = parquet(some) if kind == "parquet" else "\n".join(map(json.dumps, some)).encode()
        found[f"data/train-{number:05}.{kind}"] = data
    return found


def test_the_first_rows_of_each_split(hub: FakeHub, tmp_path: Path) -> None:
    case = {"id": "acme/films", "streaming": True}
    three, again, seven, all_, dev = client(
        hub.url,
        tmp_path,
        {**case, "first": 4},
        {**case, "first": 4},
        {**case, "first": 7, "splits": {"train": "train"}},
        {**case, "first": 999, "splits": {"test": "train"}},
        {**case, "first": 1, "config": "hard", "splits": {"validation": "dev"}},
    )
    assert three["rows"] == {"train": rows(0, 4), "test": rows(100, 3)}
    assert again["rows"] == three["rows"]
    assert texts(seven) == {"train": names(0, 7)}  # over the end of a file
    assert texts(all_) == {"test": names(0, 10)}
    assert texts(dev) == {"validation": names(300, 1)}
    assert {answer["commit"] for answer in (three, again, seven, all_, dev)} == {sha(FILMS)}
    assert places(tmp_path) == sorted(
        f"{place}/00000.arrow"
        for place in (
            "default@4/train",
            "default@4/test",
            "default@7/train",
            "default@999/train",
            "hard@1/dev",
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "groups"])
def test_a_stream_does_not_fetch_it_all(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    files = shards(kind)
    hub.repos["acme/big"] = Repo(files)
    size = sum(map(len, files.values()))
    case = {"id": "acme/big", "streaming": True, "splits": {"train": "train"}}
    (answer,) = client(hub.url, tmp_path, {**case, "first": 50})
    assert texts(answer)["train"] == [f"film {i}" for i in range(50)]
    assert answer["left"] == 0  # a file left open is closed when Python ends, which may abort it
    # of many files one or two are read; of one file so much as the library asks for at a time
    assert hub.sent < size / (2 if kind == "groups" else 10), f"{hub.sent} of {size} bytes"
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept < size / 50, f"{kept} of {size} bytes"
    before = hub.sent
    (same,) = client(hub.url, tmp_path, {**case, "first": 50})  # the second time only the commit is asked for
    assert same["rows"] == answer["rows"]
    assert hub.sent - before < 10_000


def test_a_streams_first_rows_serve_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    case = {"id": "acme/films", "streaming": True, "first": 2}
    (first,) = client(hub.url, tmp_path, case)
    same, pinned, other = client(
        "http://127.0.0.1:1",
        tmp_path,
        case,
        {**case, "revision": sha(FILMS)},
        {**case, "first": 3},
        HF_HUB_OFFLINE="1",
    )
    assert same["rows"] == pinned["rows"] == first["rows"]
    assert "is not in the cache, and the hub is switched off" in other["error"]


def test_a_stream_that_cannot_be_read(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/broken"] = Repo({"train.jsonl": b'{"text": "a"}\n' * 20_000 + b"{broken"})
    hub.repos["acme/hollow"] = Repo({"train.csv": b"text,label\n"})
    case = {"streaming": True, "first": 30_000}
    broken, script, split, hollow = client(
        hub.url,
        tmp_path,
        {**case, "id": "acme/broken"},
        {**case, "id": "acme/old"},
        {**case, "id": "acme/films", "splits": {"train": "exam"}},
        {**case, "id": "acme/hollow"},
    )
    assert broken["error"].startswith("acme/broken could not be read: ")
    assert script["error"].startswith("acme/old consists of a loading script")
    assert split["error"] == "acme/films has no split `exam`\n  wanted: one of train, test, unlabelled"
    assert hollow["error"] == "acme/hollow: its split `train` has no rows"
    assert places(tmp_path) == []
    assert not list(tmp_path.rglob(".part-*"))


def test_pictures_in_a_stream_stay_as_they_are(hub: FakeHub, tmp_path: Path) -> None:
    (streamed, whole) = client(
        hub.url, tmp_path, {"id": "acme/pictures", "streaming": True, "first": 5}, {"id": "acme/pictures"}
    )
    assert streamed["rows"] == whole["rows"]


def test_a_hubs_own_conversion_as_a_stream(hub: FakeHub, tmp_path: Path) -> None:
    case = {"id": "acme/old", "revision": "refs/convert/parquet", "config": "easy", "streaming": True}
    (answer,) = client(hub.url, tmp_path, {**case, "first": 1})
    assert texts(answer) == {"train": names(0, 1), "test": names(2, 1)}


def test_a_task_that_streams_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def values(source: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "text", "license": "MIT", "source": source}

    def load(source: dict[str, Any]) -> tasks.Task:
        return tasks.of_values("films", values(source), tmp_path, where="films.yaml")

    with pytest.raises(IftError, match="`streaming` needs a `limit`"):
        load({"hub": {"id": "acme/films", "streaming": True}})
    asked: list[Any] = []

    def stream(source: Any, splits: Any, first: int, cache: Path, *_: object) -> hubs.Fetched:
        asked.extend([source.id, splits, first, cache])
        return hubs.Fetched({"train": [tmp_path / "a"]}, "f00")

    monkeypatch.setattr(hubs, "stream", stream)
    task = load(
        {"hub": {"id": "acme/films", "streaming": True}, "limit": 7, "splits": {"train": "unlabelled"}}
    )
    files = sources.files_of(task, tmp_path)
    assert asked == ["acme/films", {"train": "unlabelled"}, 7, tmp_path]
    assert (files.splits, files.commit) == ({"train": [tmp_path / "a"]}, "f00")
