"""Tasks of the lm-evaluation-harness as probes."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ift.errors import IftError
from ift.evaluate import forgetting, harness
from ift.evaluate.store import Store

TASK = """\
task: little_films
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: a
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'ift[harness]'"
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [{"q": f"film {i} was", "choices": ["good", "bad", "dull"], "a": i % 3} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "little_films.yaml").write_text(TASK.format(folder=tmp_path), encoding="utf-8")
    return tmp_path


def test_without_the_harness_its_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(IftError) as caught:
        harness.check(["hellaswag"])
    assert str(caught.value) == (
        "`evaluate.harness` names tasks, and the lm-evaluation-harness is not installed\n"
        "  wanted: the package lm-eval\n"
        "  next:   pip install -c constraints.txt '.[harness]' in the checkout, or leave evaluate.harness out"
    )
    harness.check([])


def test_an_item_counts_once_in_however_many_ways_its_answer_is_read() -> None:
    logged = [
        {"doc_id": doc, "filter": way, "exact_match": float(way == "strict-match")}
        for way in ("strict-match", "flexible-extract")
        for doc in (3, 1)
    ]
    assert [(s["doc_id"], s["filter"]) for s in harness._first(logged)] == [
        (3, "strict-match"),
        (1, "strict-match"),
    ]


def test_what_was_asked_in_another_way_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def ask(folder: Path, names: list[str], **how: Any) -> list[dict[str, Any]]:
        heard.append(how)
        return [{"score": 1.0}]

    monkeypatch.setattr(harness, "harness_predictions", ask)
    monkeypatch.setattr(harness.metadata, "version", lambda _: "0.4")
    monkeypatch.setattr("ift.evaluate.store._code", lambda: "")
    store = Store(tmp_path, model="tiny")
    ways: list[dict[str, Any]] = [{}, {"shots": 5}, {"include": tmp_path}, {"shots": 5}, {}]
    for way in ways:
        harness.kept_predictions(store, tmp_path, ["films"], limit=10, dtype="float32", device="cpu", **way)
    assert [{key: how[key] for key in how if key in ("shots", "include")} for how in heard] == ways[:3]


@installed
@pytest.mark.slow
def test_items_of_the_harness_are_probes(tasks: Path, tiny_model: Path, tmp_path: Path) -> None:
    how = {"dtype": "float32", "device": "cpu", "include": tasks}
    store = Store(tmp_path / "cache", model="tiny")
    found = harness.kept_predictions(store, tiny_model, ["little_films"], limit=10, **how)
    assert harness.kept_predictions(store, tiny_model, ["little_films"], limit=10, **how) == found
    assert [p["id"] for p in found] == [str(i) for i in range(10)]
    assert {p["chance"] for p in found} == {1 / 3}
    assert found[3]["prompt"] == "film 3 was"
    _, [row] = forgetting.compare(found, found)
    assert (row["name"], row["kind"], row["metric"]) == ("little_films", "multiple_choice", "acc norm")
    assert row["drop"]["value"] == 0


@installed
def test_an_unknown_task_names_its_neighbour(tasks: Path) -> None:
    with pytest.raises(IftError, match="did you mean `little_films`"):
        harness.check(["little_film"], include=tasks)
