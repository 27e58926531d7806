"""benchmarks/run.py: what it reads out of each script's JSON, and that what fails is named while the rest goes on."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    before = set(sys.modules)
    yield importlib.import_module("run")
    for name in {"run", "common"} - before:
        sys.modules.pop(name, None)


RUNS = [{"rows": 100, "seconds": 10.0, "largest": [{"resident": 2**30}]}]
SAID: dict[str, tuple[Any, str]] = {
    "attention": (
        {"results": {"40": {"cpu_seconds": {"sdpa": [4.0, 6.0], "packed": [2.0, 2.0]},
                            "ratio": {"median": 2.5, "low": 2.0, "high": 3.0}}}},
        "| attention | a pass, documents of 40 tokens: how many times faster | 2 CPU s | transformers' sdpa: 5 CPU s "
        "| 2.50 (2.00 – 3.00) |",
    ),
    "tracking": (
        {"results": {
            "no tracker": {"seconds": {"median": 0.02, "to_none": {"median": 1.0, "low": 1.0, "high": 1.0}}},
            "dead": {"seconds": {"median": 0.03, "to_none": {"median": 1.5, "low": 1.4, "high": 1.6}}},
        }},
        "| tracking | a step, MLflow dead: times as long | 0.03 s | no tracker: 0.02 s | 1.50 (1.40 – 1.60) |",
    ),
    "evaluating": (
        {"results": [{"what": "generation", "outputs": "2 of 2 answers equal", "ours_s": 1.0, "beside": "one by one",
                      "its_s": 5.0,
                      "ratio": 5.0, "from": 5.0, "to": 5.0}]},
        "| evaluating | generation (2 of 2 answers equal): how many times faster | 1 s | one by one: 5 s | 5.00 |",
    ),
    "prepare": (
        {"rows": 100, "machine": {"cores": 2}, "prepare": RUNS, "again": RUNS, "trl": RUNS, "datasets": RUNS,
         "tokenizer": RUNS},
        "| prepare | from nothing: times the rows | 5 rows/s a core | TRL: 10 rows/s a core | 0.50 |",
    ),
    "plan": (
        [{"model": "tiny", "workers": 2, "stage": 3, "method": "lora", "again": True, "planned": 2**30,
          "peak": 2**31, "ratio": 0.5}],
        "| plan | tiny, 2 × ZeRO-3, lora, activations again: plan to peak | 1 GiB | the kernel's peak: 2 GiB | 0.50 |",
    ),
    "training": (
        {"results": {
            "cases": [{"model": "1B", "lengths": "flan", "arms": {
                "ours": {"tokens_a_second": {"median": 300.0}}, "trl": {"tokens_a_second": {"median": 200.0}},
                "trl-padded": {"skipped": "no TRL"}}}],
            "logits": {"1B": {"shares": [
                {"share": 0.1, "supervised": {"seconds": [1.0, 2.0]}, "all": {"seconds": [4.0, 4.0]}}]}},
        }},
        "| training | 1B, flan: times the tokens | 300 tokens/s | trl: 200 tokens/s | 1.50 |",
    ),
    "overhead": (
        {"results": {"steps": {"bare": [1.0, 2.0], "run": [1.1, 2.2]}, "starts": {"cold": {"seconds": 40.0}}}},
        "| overhead | a step, run: times as long | 1.65 s | the bare loop: 1.5 s | 1.10 |",
    ),
}  # fmt: skip


def test_every_benchmark_has_an_example_here(run: ModuleType) -> None:
    assert set(SAID) == set(run.BENCHMARKS)
    for benchmark in run.BENCHMARKS.values():
        assert (HERE / benchmark.script).is_file()
    assert sum(benchmark.minutes["short"] for benchmark in run.BENCHMARKS.values()) <= 20


@pytest.mark.parametrize("name", SAID)
def test_what_a_script_has_written_becomes_lines(run: ModuleType, name: str) -> None:
    found, expected = SAID[name]
    text = run.table(["", "", "", "", ""], (line.cells() for line in run.BENCHMARKS[name].read(found)))
    assert expected in text.splitlines()


def test_what_fails_is_named_and_the_rest_goes_on(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(
        f"import pathlib, sys; pathlib.Path(sys.argv[2]).write_text({json.dumps(json.dumps(SAID['overhead'][0]))})"
    )
    bad.write_text("raise SystemExit('no')")

    def benchmark(script: Path, minutes: float = 0.1) -> Any:
        return run.Benchmark(str(script), {"short": ""}, {"short": minutes}, run.overhead)

    chosen = {"bad": benchmark(bad), "good": benchmark(good), "later": benchmark(good, minutes=1000)}
    monkeypatch.setattr(run, "BENCHMARKS", chosen)
    output = tmp_path / "out.json"
    run.main(["--work", str(tmp_path / "work"), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "| overhead | `ift run` to its first step, cold | 40 s |  |  |" in printed
    assert "| bad | left out: ended with 1; see " in printed
    assert "| later | left out: 20 minutes are left, and it may take 1000 |  |  |  |" in printed
    written = json.loads(output.read_text(encoding="utf-8"))
    assert set(written["results"]["left_out"]) == {"bad", "later"}
    assert written["about"]["versions"]["torch"]
    assert written["results"]["began"]["cores"] > 0
