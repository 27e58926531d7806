"""`ift report`: pages out of run folders, and words for folders that are none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_spec

from ift import reporting, storage
from ift import spec as specs
from ift.data.stream import Pack, write
from ift.errors import IftError
from ift.reporting import read, report, stream_lengths

STAGES = ("prepare", "baseline", "train", "evaluate")


def prediction(number: int, output: str, score: float) -> dict[str, Any]:
    return {
        "suite": "task",
        "name": "films",
        "id": f"{number:016x}",
        "kind": "multiple_choice",
        "metric": "accuracy",
        "task_kind": "classification",
        "shots": 0,
        "draw": 0,
        "prompt": f"film {number}",
        "output": output,
        "expected": "positive",
        "predicted": output,
        "label": "positive",
        "score": score,
        "chance": 0.5,
        "detail": "null",
    }


def make_run(folder: Path, *, name: str = "tiny", gain: float = 0.5, rate: float = 1e-3) -> Path:
    """The folder of a finished run, as the stages leave it, without its model."""
    folder.mkdir(parents=True)
    train = {"epochs": 1, "global_batch": 4, "learning_rate": rate}
    spec = specs.load(write_spec(folder, folder / "base", name=name, train=train))
    storage.write_text(folder / "spec.yaml", specs.dump(spec))
    for stage in STAGES:
        storage.write_json(folder / stage / "manifest.json", {"seconds": 1.0})
    for stage, right in (("baseline", 0), ("evaluate", 4)):
        rows = [prediction(i, *(("positive", 1.0) if i < right else ("negative", 0.0))) for i in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), folder / stage / "predictions.parquet")
    documents = [("films", 3), ("films", 3), ("titles", 2)]
    write(
        folder / "prepare" / "stream",
        [Pack([1] * n, [False] + [True] * (n - 1), [n], ["0"], [task], ["ask"]) for task, n in documents],
    )
    storage.write_jsonl(folder / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    change = {"value": gain, "low": gain - 0.1, "high": gain + 0.1}
    scored = {"base": {"value": 0.0}, "tuned": {"value": gain}, "gain": change}
    row = {"name": "films", "metric": "accuracy", "items": 8, "held_out": False, **scored}
    summary = {"name": name, "status": "finished", "run_dir": str(folder), "task": [row], "probes": []}
    storage.write_json(folder / "summary.json", {**summary, "gate": {"verdict": "pass"}})
    return folder


def ift(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ift.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "IFT_CACHE": str(folder / "cache"), "COLUMNS": "200"},
    )


def test_one_run_has_its_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "runs" / "tiny")
    report([run], None)
    page = (run / "report.html").read_text(encoding="utf-8")
    for part in ("wrong → right (4)", "stayed wrong (4)", "Base: 0 of 8 right", "Tuned: 4 of 8 right"):
        assert part in page
    assert capsys.readouterr().out == (
        "tiny: films: accuracy 0.00 → 0.50 (+0.50, 95 % interval 0.40 to 0.60). "
        "No probe was scored, so nothing is known of what was forgotten. Gate: pass.\n"
        f"\nreport      {run / 'report.html'}\n"
    )
    report([run], None)
    assert (run / "report.html").read_text(encoding="utf-8") == page


def test_several_runs_share_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        make_run(tmp_path / name, gain=gain, rate=gain / 10) for name, gain in (("one", 0.5), ("two", 0.25))
    ]
    report(runs, tmp_path / "pages" / "both.html")
    page = (tmp_path / "pages" / "both.html").read_text(encoding="utf-8")
    assert "2 runs compared" in page
    assert "train.<wbr>learning_<wbr>rate" in page
    told = capsys.readouterr().out.splitlines()
    # their specs have the same name, so the folders tell them apart
    assert [line.partition(": ")[0] for line in told[:2]] == ["A one", "B two"]
    assert told[-1] == f"report      {tmp_path / 'pages' / 'both.html'}"
    assert not (runs[0] / "report.html").exists()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one", name="one")
    make_run(tmp_path / "runs" / "two", name="two")
    done = ift("report", "runs/one", "runs/two", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("B two: films: accuracy 0.00 → 0.50")
    assert (tmp_path / "comparison.html").is_file()
    done = ift("report", "runs/three", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IftError) as caught:
        report([tmp_path / "gone"], None)
    assert str(caught.value) == (
        f"there is no folder {tmp_path / 'gone'}\n"
        "  wanted: the folder of a run that is finished\n"
        "  next:   `ift run SPEC` makes one, in runs/NAME unless --output says otherwise"
    )


@pytest.mark.parametrize("file", [False, True])
def test_what_is_no_run(tmp_path: Path, file: bool) -> None:
    given = tmp_path / "spec.yaml" if file else tmp_path
    if file:
        given.write_text("name: x\n")
    with pytest.raises(IftError, match="is no run's folder") as caught:
        report([given], None)
    assert caught.value.wanted == "the folder of a run that is finished, such as runs/quickstart"


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    (run / "summary.json").unlink()
    for stage in ("train", "evaluate"):
        shutil.rmtree(run / stage)
    with pytest.raises(IftError) as caught:
        report([run], None)
    assert str(caught.value) == (
        f"the run in {run} is not finished: train, evaluate are to do\n"
        "  wanted: a run with a summary.json\n"
        f"  next:   `ift run {run / 'spec.yaml'} --output {run}` goes on with it"
    )


def test_an_output_that_is_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    with pytest.raises(IftError, match="is a folder") as caught:
        report([run], tmp_path)
    assert caught.value.hint == f"--output {tmp_path / 'comparison.html'}"


def test_a_second_run_that_was_chosen_is_the_one_that_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    second = make_run(run / "second", name="first-lora", rate=2e-3)
    summary = storage.read_json(second / "summary.json") or {}
    elsewhere = Path("/another/machine/first")
    attempts = [
        {"folder": str(elsewhere), "chosen": False},
        {"folder": str(elsewhere / "second"), "chosen": True},
    ]
    storage.write_json(run / "summary.json", {**summary, "run_dir": str(elsewhere), "attempts": attempts})
    assert read(run).settings["train.learning_rate"] == 2e-3
    assert read(run).summary["name"] == "first-lora"
    attempts[0]["chosen"], attempts[1]["chosen"] = True, False
    storage.write_json(run / "summary.json", {**summary, "attempts": attempts})
    assert read(run).settings["train.learning_rate"] == 1e-3


def test_a_run_without_a_summary_whose_stages_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt inside another run's folder has none of its own."""
    run = make_run(tmp_path / "tiny")
    made = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").unlink()
    monkeypatch.setattr(reporting, "summary_of", lambda spec, folder: {**made, "name": spec.name})
    assert read(run).summary == made


def test_a_page_without_what_was_deleted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    for stage in STAGES:
        shutil.rmtree(run / stage)
    report([run], None)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "No predictions were kept." in page
    assert "films: accuracy 0.00 → 0.50" in page


def test_lengths_of_a_stream_are_counted_by_task(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tiny")
    assert stream_lengths(run / "prepare" / "stream") == {"films": {3: 2}, "titles": {2: 1}}
    assert stream_lengths(tmp_path / "none") == {}
