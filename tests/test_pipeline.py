"""The real pipeline on a tiny random model: two ZeRO workers under Ray, MLflow on SQLite, the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import write_spec

from ift import pipeline, storage
from ift.tracking import gate
from ift.tracking.client import mlflow_client

pytestmark = pytest.mark.slow
IFT = [sys.executable, "-m", "ift.cli"]
BROKEN, ROWS = 2, 60


@dataclass
class Finished:
    """A run that has ended: its folder, what it printed, its exit status."""

    folder: Path
    output: str
    status: int

    @property
    def summary(self) -> dict[str, Any]:
        return storage.read_json(self.folder / "summary.json") or {}

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in storage.read_jsonl(self.folder / "metrics.jsonl")]


def start(folder: Path, arguments: list[str], output: Path) -> "subprocess.Popen[str]":
    """`ift` in `folder`, in a process group of its own, as a terminal would start it."""
    return subprocess.Popen(
        [*IFT, *arguments],
        cwd=folder,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "IFT_CACHE": str(folder / "cache")},
    )


def ift(folder: Path, *arguments: str, name: str = "tiny") -> Finished:
    output = folder / "output.txt"
    process = start(folder, list(arguments), output)
    status = process.wait(timeout=1000)
    return Finished(folder / "runs" / name, output.read_text(encoding="utf-8"), status)


def spec_in(folder: Path, model: Path, **sections: Any) -> Path:
    data = {
        "max_length": 128,
        "split": {"train": 40, "validation": 8, "test": 10},
        "balanced": True,
        "max_bad_rows": 0.05,
    }
    return write_spec(folder, model, rows=ROWS, broken=BROKEN, data=data, **sections)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Finished:
    folder = tmp_path_factory.mktemp("whole")
    evaluate = {"probes": ["copying", "word_relations", "definitions"], "shots": [1, 3], "draws": 2}
    spec_in(folder, tiny_model, evaluate=evaluate)
    return ift(folder, "run", "spec.yaml")


def test_one_command_goes_from_rows_to_a_registered_model(finished: Finished) -> None:
    assert finished.status == 0, finished.output
    summary = finished.summary
    assert summary["status"] == "finished"
    assert summary["train"]["steps"] == len(finished.losses)
    assert [step for step, _ in finished.losses] == list(range(1, summary["train"]["steps"] + 1))
    assert summary["train"]["workers"] == 2
    assert summary["train"]["zero_stage"] == 2
    assert summary["stream"]["documents"] == 2 * 40  # two epochs
    assert summary["mlflow"]["model_version"] == "1"
    stages = {"prepare", "baseline", "prompting", "train", "evaluate", "register"}
    assert set(summary["timings"]) == {*stages, "total"}
    assert finished.losses[-1][1] < finished.losses[0][1]
    assert not (finished.folder / "train" / "checkpoints").exists()  # they would be the largest thing in it


def test_every_line_of_metrics_has_the_promised_keys(finished: Finished) -> None:
    lines = storage.read_jsonl(finished.folder / "metrics.jsonl")
    wanted = {"step", "loss", "lr", "grad_norm", "supervised_tokens", "tokens", "seconds"}
    assert all(wanted <= set(line) for line in lines)
    assert sum(line["tokens"] for line in lines) == finished.summary["stream"]["tokens"]
    assert sum(line["supervised_tokens"] for line in lines) == finished.summary["stream"]["supervised_tokens"]


def test_broken_lines_are_set_aside_with_file_line_and_reason(finished: Finished) -> None:
    quarantine = storage.read_jsonl(finished.folder / "prepare" / "quarantine.jsonl")
    assert [row["line"] for row in quarantine] == list(range(1, BROKEN + 1))
    assert all("not JSON" in row["reason"] and row["file"].endswith("rows.jsonl") for row in quarantine)
    assert finished.summary["stream"]["quarantined"] == BROKEN
    assert f"{BROKEN} rows are set aside: " in finished.output


def test_the_table_the_summary_and_mlflow_hold_the_same_numbers(finished: Finished) -> None:
    from mlflow import MlflowClient

    summary = finished.summary
    client = MlflowClient(summary["mlflow"]["tracking_uri"])
    run = client.get_run(summary["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    for row in summary["task"]:
        assert run.data.metrics[f"task/{row['name']}/tuned"] == pytest.approx(row["tuned"]["value"])
        assert re.search(
            rf"{row['name']} .*{row['base']['value']:.2f}.*{row['tuned']['value']:.2f}", finished.output
        )
    for row in summary["probes"]:
        assert run.data.metrics[f"probe/{row['name']}/drop"] == pytest.approx(row["drop"]["value"])
        assert re.search(
            rf"{row['name']} .*{row['base']['value']:.2f}.*{row['tuned']['value']:.2f}", finished.output
        )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == finished.losses
    assert run.data.params["train.epochs"] == "2"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "summary.json", "spec.yaml", "model"} <= artifacts
    version = client.get_model_version_by_alias("tiny", "candidate")
    assert str(version.version) == "1"
    assert version.tags["ift.stream"] == summary["stream"]["hash"]
    assert "How to load it" in version.description


def test_the_model_is_an_ordinary_hugging_face_folder(finished: Finished) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished.folder / "model"
    assert not list(folder.glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert model.config.use_cache
    assert sum(p.numel() for p in model.parameters()) == finished.summary["train"]["parameters"]
    assert "How to load it" in (folder / "README.md").read_text()
    assert (
        json.loads((folder / "ift.json").read_text())["stream"]["hash"] == finished.summary["stream"]["hash"]
    )


def test_the_report_opens_without_a_network(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "films" in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)


def test_a_browser_shows_the_report(finished: Finished, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("needs the package chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    page = subprocess.run(
        [
            browser,
            *options,
            offline,
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            (finished.folder / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "films: accuracy" in page
    assert page.count("<svg") >= 3


def test_no_chatter_of_libraries_reaches_the_terminal(finished: Finished) -> None:
    assert "ray" not in finished.output.lower().replace(str(finished.folder).lower(), "")
    assert "Traceback" not in finished.output
    assert "Started a local Ray instance" in (finished.folder / "run.log").read_text()


def test_prompting_stands_beside_tuning(finished: Finished) -> None:
    [row] = finished.summary["prompting"]
    assert [way["way"] for way in row["ways"]] == ["base, 0 shots", "base, 1 shot", "base, 3 shots", "tuned"]
    assert row["items"] == 10
    zero, one, three, tuned = row["ways"]
    assert zero["prompt_tokens"] == tuned["prompt_tokens"] < one["prompt_tokens"] < three["prompt_tokens"]
    assert (one["shots_given"], three["shots_given"], three["draws"]["count"]) == (1, 3, 2)
    assert zero["score"] == finished.summary["task"][0]["base"]
    assert tuned["score"] == finished.summary["task"][0]["tuned"]
    assert row["verdict"]["words"] in finished.output


def test_other_shots_are_asked_later_and_nothing_is_trained_again(finished: Finished) -> None:
    weights = finished.folder / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    later = ift(finished.folder.parents[1], "compare", "spec.yaml", "--shots", "2,3", "--draws", "2")
    assert later.status == 0, later.output
    [row] = later.summary["prompting"]
    assert [way["shots"] for way in row["ways"]] == [0, 1, 2, 3, 0]
    assert weights.stat().st_mtime_ns == before
    assert "train     done before" in later.output
    assert later.summary["mlflow"]["model_version"] == "1"


def test_a_runs_own_items_are_asked_again_without_being_computed_again(
    finished: Finished, tiny_model: Path
) -> None:
    folder = finished.folder.parents[1]
    done = ift(folder, "evaluate", "runs/tiny", "--against", str(tiny_model), "--output", "again")
    assert done.status == 0, done.output
    again = storage.read_json(folder / "again" / "summary.json") or {}
    assert again["task"] == finished.summary["task"]
    assert again["probes"] == finished.summary["probes"]
    assert again["forgetting"] == finished.summary["forgetting"]
    assert set(again["forgetting"]) == {"breach", "mean_drop", "worst", "probes"}
    assert {"base", "tuned", "drop", "low", "high"} <= set(again["forgetting"]["probes"]["copying"])
    assert "the frozen items of the run, 87; name --tasks or --probes to ask others" in done.output


def test_a_sequence_that_ends_with_the_same_model_forgot_nothing(finished: Finished) -> None:
    folder = finished.folder.parents[1]
    done = ift(folder, "transfer", "runs/tiny", "runs/tiny", "--output", "sequence")
    assert done.status == 0, done.output
    found = storage.read_json(folder / "sequence" / "transfer.json") or {}
    assert found["backward_transfer"] == 0
    [first, last] = found["runs"]
    assert first == last
    assert first["own"] == finished.summary["task"][0]["tuned"]["value"]
    assert "backward transfer +0.00" in done.output


def test_a_version_is_reproduced_to_the_bit_and_other_rows_are_told_before_training(
    finished: Finished,
) -> None:
    folder = finished.folder.parents[1]
    again = ift(folder, "reproduce", "tiny", "1", name="tiny-1-again")
    assert again.status == 0, again.output
    found = storage.read_json(again.folder / "reproduced.json") or {}
    assert (found["stream"], found["same_kind"], found["losses"]) == (True, True, True)
    assert (found["steps"], found["worst_difference"]) == (len(finished.losses), 0.0)
    assert all(row["then"] == row["now"] for row in found["scores"])
    assert "tiny/1: reproduced" in again.output
    assert not (again.folder / "register").exists()
    rows = folder / "rows.jsonl"
    text = rows.read_text(encoding="utf-8")
    try:
        rows.write_text(text.replace("good", "fine"), encoding="utf-8")
        refused = ift(folder, "reproduce", "tiny", "1", "--output", "other")
    finally:
        rows.write_text(text, encoding="utf-8")
    assert refused.status == 2
    assert "the stream of tiny/1 cannot be made again: sha256:" in refused.output
    assert not (folder / "other" / "train").exists()


def test_a_held_out_task_that_fell_is_why_a_second_run_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without probes: there is no worst one to name."""
    told: list[str] = []
    forgetting = SimpleNamespace(on_breach="replay")
    job: Any = SimpleNamespace(
        spec=SimpleNamespace(forgetting=forgetting),
        folder=Path("run"),
        terminal=SimpleNamespace(note=told.append),
    )
    again = SimpleNamespace(check=lambda: None)
    monkeypatch.setattr(pipeline, "_other", lambda *_: again)
    fell = {"name": "nli", "held_out": True, "gain": {"value": -1.0, "low": -1.0, "high": -1.0}}
    found = {"gate": gate.decide([fell], [], max_drop=0.05), "train": {"method": "full"}}
    assert pipeline._second(job, found) is again
    assert told == [
        "it forgot too much (task nli: drop +1.000 [+1.000, +1.000], at most 0.05 allowed): a second run, with general "
        "data mixed in (forgetting.on_breach)"
    ]


@pytest.mark.long
def test_a_run_that_forgets_too_much_is_followed_by_one_with_lora(tmp_path: Path, tiny_model: Path) -> None:
    """A learning rate that ruins all weights; the adapter's ruins less."""
    train = {"epochs": 2, "global_batch": 4, "learning_rate": 0.9, "zero_stage": 2}
    evaluate = {"probes": ["definitions"]}
    spec_in(
        tmp_path,
        tiny_model,
        name="forgetful",
        train=train,
        evaluate=evaluate,
        forgetting={"on_breach": "lora"},
    )
    both = ift(tmp_path, "run", "spec.yaml", name="forgetful")
    assert both.status == 0, both.output
    assert "a second run, with LoRA instead of all weights (forgetting.on_breach)" in both.output
    first, second = both.summary["attempts"]
    assert (first["method"], first["breach"], first["chosen"]) == ("full", True, False)
    assert (second["method"], second["breach"], second["chosen"]) == ("lora", False, True)
    assert both.summary["mlflow"]["alias"] == "candidate"
    assert Path(both.summary["model_dir"]) == both.folder / "second" / "model"
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db", 5)
    experiment = client.get_experiment_by_name("forgetful")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    page = runs["forgetful"]
    assert page.data.tags["mlflow.note.content"].startswith("forgetful-lora was chosen in its place")
    assert "report.html" in {file.path for file in client.list_artifacts(page.info.run_id)}


def test_a_finished_run_is_left_alone(finished: Finished) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*.safetensors")}
    again = ift(finished.folder.parents[1], "run", "spec.yaml")
    assert again.status == 0
    assert "is finished already" in again.output
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*.safetensors")} == before


def test_a_folder_of_another_spec_is_refused(finished: Finished) -> None:
    again = ift(finished.folder.parents[1], "run", "spec.yaml", "train.learning_rate=2e-3")
    assert again.status == 2
    assert (
        "holds a run of another spec; it differs in `train.learning_rate`: 0.001 there, 0.002 here"
        in again.output
    )
    assert "--output DIR" in again.output


def test_interrupted_without_mlflow_and_continued_equals_uninterrupted(
    tmp_path: Path, tiny_model: Path, finished: Finished
) -> None:
    """Ctrl-C behind the first checkpoint; then on, with MLflow down all the time; then MLflow is back."""
    spec_in(tmp_path, tiny_model, tracking={"uri": "http://someone:hunter2@127.0.0.1:9"})
    process = start(tmp_path, ["run", "spec.yaml"], tmp_path / "first.txt")
    folder = tmp_path / "runs" / "tiny"
    wait_for(lambda: bool(list(folder.glob("train/checkpoints/*/complete.json"))), process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=400) == 130
    output = (tmp_path / "first.txt").read_text()
    assert f"stopped; what is done is kept in {folder}" in output
    assert "to go on: ift run spec.yaml" in output
    _, alive = psutil.wait_procs(children, timeout=90)
    assert not alive, f"left behind: {alive}"

    on = ift(tmp_path, "run", "spec.yaml")
    assert on.status == 0, on.output
    assert "done before" in on.output
    assert "training goes on from the checkpoint of step" in on.output
    assert "MLflow at http://127.0.0.1:9 does not answer" in on.output
    assert "not registered" in on.output
    assert on.losses == finished.losses  # to the bit
    assert on.summary["stream"]["hash"] == finished.summary["stream"]["hash"]
    assert "error" in on.summary["mlflow"]
    texts = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert not [p for p in texts if b"hunter2" in p.read_bytes()], "a password was written down"
    assert "hunter2" not in on.output

    late = ift(tmp_path, "sync", "runs/tiny", "--uri", f"sqlite:///{tmp_path / 'late.db'}")
    assert late.status == 0, late.output
    assert "tiny version 1, alias candidate" in late.output
    assert late.summary["mlflow"]["model_version"] == "1"
    assert "error" not in late.summary["mlflow"]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'late.db'}")
    version = client.get_model_version_by_alias("tiny", "candidate")
    assert version.tags["ift.stream"] == on.summary["stream"]["hash"]
    assert "model.safetensors" in {
        Path(f.path).name for f in client.list_artifacts(version.run_id or "", "model")
    }
    assert "is finished already" in ift(tmp_path, "run", "spec.yaml").output


def test_the_same_weights_come_out(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run is a function of its spec: the run that was interrupted above exported the same bytes."""
    others = [
        p
        for p in finished.folder.parents[2].rglob("runs/tiny/model/model.safetensors")
        if finished.folder not in p.parents
    ]
    for path in others:
        assert path.read_bytes() == (finished.folder / "model" / "model.safetensors").read_bytes()
    assert others
