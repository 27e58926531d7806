"""`ift evaluate` and `ift transfer`: which items are asked, and in which way."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import write_spec
from rich.console import Console
from tracking.made import predictions

from ift import evaluating, storage
from ift import spec as specs
from ift.cli import cli
from ift.cluster import Resources
from ift.console import Terminal
from ift.evaluate import evaluator


def finished(folder: Path, spec: Path) -> Path:
    """A run's folder as it is behind its last stage, with no more in it than is read of it."""
    answers = predictions(0.8, 0.8)
    evaluator.write(folder / "evaluate" / "predictions.parquet", answers, [0.0] * len(answers))
    storage.write_json(folder / "evaluate" / "manifest.json", {"items": len(answers)})
    storage.write_jsonl(folder / "prepare" / "items.jsonl", answers)
    storage.write_text(folder / "spec.yaml", specs.dump(specs.load(spec)))
    storage.write_text(folder / "model" / "config.json", "{}")
    return folder


def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No model is asked, and every item is answered right; how each was to be asked, as it comes."""
    heard: list[dict[str, Any]] = []

    def timed(folder: Path, items: list[dict[str, Any]], **how: Any) -> Any:
        heard.append(how)
        return [{"score": 1.0, **item, "cut": False} for item in items], [0.0] * len(items)

    monkeypatch.setattr("ift.cluster.connect", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr("ift.cluster.with_gpu", lambda *_: Resources(cpus=2, gpus=0, nodes=1))
    monkeypatch.setattr(evaluator, "timed", timed)
    return heard


def test_a_sequence_is_asked_as_each_run_was(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for number, (ranking, precision) in enumerate(
        [("unconditional", "bf16"), ("raw", "fp32"), ("length", "fp32")]
    ):
        (tmp_path / f"{number}").mkdir()
        asked = {"ranking": ranking, "batch_tokens": 600 + number, "allow_code": number == 1}
        spec = write_spec(tmp_path / f"{number}", tiny_model, evaluate=asked, train={"precision": precision})
        runs.append(str(finished(tmp_path / "runs" / f"{number}", spec)))
    heard = without_a_cluster(monkeypatch)
    evaluating.transfer(runs, terminal=Terminal(Console()), output=tmp_path / "out")
    keys = ("ranking", "engine", "allow_code", "batch_tokens", "dtype")
    assert [tuple(how[key] for key in keys) for how in heard] == [
        ("unconditional", "transformers", False, 600, "bfloat16"),
        ("raw", "transformers", True, 601, "float32"),
    ]


def test_of_a_runs_own_items_all_are_asked_if_no_limit_is_given(tmp_path: Path) -> None:
    items = [{"suite": "task", "name": "films", "id": f"{i}"} for i in range(700)]
    items += [{"suite": "probe", "name": "words", "id": f"{i}"} for i in range(5)]
    storage.write_jsonl(tmp_path / "prepare" / "items.jsonl", items)

    def asked(limit: int | None) -> list[dict[str, Any]]:
        return evaluating._items(str(tmp_path), Terminal(Console()), (), (), "default", limit, False)

    assert asked(None) == items
    assert asked(40) == [*items[:40], *items[700:]]


def test_of_other_tasks_five_hundred_are_asked_if_no_limit_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def items_of(*_: Any, limit: int, **__: Any) -> Any:
        limits.append(limit)
        return [{"name": "trec"}], []

    monkeypatch.setattr("ift.data.gather.gather", lambda *_, **__: None)
    monkeypatch.setattr("ift.data.items.items_of", items_of)
    for limit in (None, 40):
        evaluating._items("someone/model", Terminal(Console()), ["trec"], (), "none", limit, False)
    assert limits == [500, 40]


def test_the_command_asks_all_of_a_runs_own_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}
    monkeypatch.setattr(evaluating, "evaluate", lambda *_, **how: heard.update(how))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["evaluate", "runs/tiny"])
    assert done.exit_code == 0, done.output
    assert heard["limit"] is None


def test_a_runs_model_is_asked_as_its_spec_says_and_beside_its_base(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"ranking": "raw", "batch_tokens": 600}
    spec = write_spec(tmp_path, tiny_model, evaluate=asked, train={"precision": "bf16"})
    run = finished(tmp_path / "run", spec)
    shutil.copytree(tiny_model, run / "model", dirs_exist_ok=True)
    answers = predictions(0.5, 0.5)
    evaluator.write(run / "baseline" / "predictions.parquet", answers, [0.0] * len(answers))
    heard = without_a_cluster(monkeypatch)
    told = Terminal(Console())
    evaluating.evaluate(str(run), terminal=told, output=tmp_path / "out")
    evaluating.evaluate(str(run), terminal=told, output=tmp_path / "out", ranking="length", limit=2)
    evaluating.evaluate(str(tiny_model), terminal=told, output=tmp_path / "out", probes="definitions")
    keys = ("ranking", "engine", "batch_tokens", "dtype")
    assert [tuple(how[key] for key in keys) for how in heard] == [
        ("raw", "transformers", 600, "bfloat16"),
        ("length", "transformers", 600, "bfloat16"),
        ("length", "transformers", "auto", "float32"),
    ]
    assert [p["id"] for p in heard[0]["base"]] == [p["id"] for p in answers]
    assert len(heard[1]["base"]) < len(answers)
    assert heard[2]["base"] is None
