"""The whole pipeline against MLflow on PostgreSQL and S3, whose server is killed and restarted in the middle."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_spec
from servers import s3_objects, whole_server

from ift import storage
from ift.tracking.client import mlflow_client


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", output: Path) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def whole_run(folder: Path, model: Path, uri: str) -> Path:
    return write_spec(
        folder,
        model,
        rows=40,
        data={"max_length": 128, "split": {"train": 24, "validation": 4, "test": 6}, "balanced": True},
        evaluate={"probes": ["definitions"]},
        train={"epochs": 1, "global_batch": 2, "learning_rate": 1e-3, "zero_stage": 0},
        cluster={"workers": 1},
        tracking={"uri": uri, "experiment": "films"},
    )


@pytest.mark.long
def test_the_whole_pipeline_with_its_server_killed_and_restarted(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "server").mkdir()
    run, output = tmp_path / "runs" / "tiny", tmp_path / "output.txt"
    with whole_server(tmp_path / "server") as server:
        spec = whole_run(tmp_path, tiny_model, server.uri)
        with output.open("w") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", "ift.cli", "run", spec.name],
                cwd=tmp_path,
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "IFT_CACHE": str(tmp_path / "cache")},
            )
        try:
            wait_for((run / "baseline" / "manifest.json").exists, process, output)
            server.kill()
            wait_for(lambda: "does not answer" in output.read_text(), process, output)
            server.start()  # workers start and train meanwhile, and the model is asked again
            assert process.wait(900) == 0, output.read_text()
        finally:
            process.kill()
        assert "is back; what had waited has been sent" in output.read_text()
        check(run, server)


def check(folder: Path, server: Any) -> None:
    """Everything that the run knows is in MLflow, once."""
    summary = storage.read_json(folder / "summary.json") or {}
    client, run_id = mlflow_client(server.uri), summary["mlflow"]["run_id"]
    run = client.get_run(run_id)
    tags, metrics = run.data.tags, run.data.metrics
    assert run.info.status == "FINISHED"

    steps = storage.read_jsonl(folder / "metrics.jsonl")
    per_step = (
        "loss lr grad_norm tokens_per_second supervised_tokens_per_second padding memory_gib data_seconds"
    )
    for key in per_step.split():
        history = client.get_metric_history(run_id, f"train/{key}")
        assert sorted((m.step, m.value) for m in history) == [(s["step"], s[key]) for s in steps], key
    assert len(client.get_metric_history(run_id, "validation/loss")) == len(
        storage.read_jsonl(folder / "validation.jsonl")
    )
    cpu = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert len(cpu) == len(storage.read_jsonl(folder / "system.jsonl")) > 0
    assert metrics["mixture/films/tokens"] == 1
    assert metrics["task/films/tuned"] == summary["task"][0]["tuned"]["value"]

    assert run.data.params["train.global_batch"] == "2"
    assert run.data.params["versions.torch"] == summary["versions"]["torch"]
    assert tags["ift.stream"] == summary["stream"]["hash"]
    assert tags["ift.plan"].startswith("full, ZeRO-0")
    assert len(tags["ift.templates"]) == 32
    assert tags["mlflow.source.name"] == "ift run spec.yaml"
    assert tags["mlflow.note.content"].startswith("# tiny")

    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "films"
    assert json.loads(data.dataset.source) == {"uri": str(folder.parents[1] / "rows.jsonl")}
    assert json.loads(data.dataset.profile)["num_rows"] == 40
    wanted = {"mlflow.data.context": "training", "ift.licence": "Apache-2.0"}
    assert wanted.items() <= {tag.key: tag.value for tag in data.tags}.items()

    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {child.info.run_name for child in children} == {
        f"tiny/{stage}" for stage in ("prepare", "baseline", "train", "evaluate", "register")
    }
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.metrics["seconds"] > 0
    assert len(client.search_runs([run.info.experiment_id])) == 1 + len(children)

    held = {
        key.partition(f"{run_id}/artifacts/")[2]: data
        for key, data in s3_objects(server.environment).items()
        if run_id in key
    }
    for name in (
        "report.html",
        "summary.json",
        "spec.yaml",
        "packages.txt",
        "train/plan.json",
        "baseline/predictions.parquet",
        "evaluate/predictions.parquet",
        "model/model.safetensors",
        "tables/mixture.json",
        "tables/predictions.json",
    ):
        assert held[name] == (folder / name).read_bytes(), name
    table = json.loads(held["tables/predictions.json"])
    assert {"name", "prompt", "expected", "base", "tuned"} <= set(table["columns"])
    assert len(table["data"]) == summary["task"][0]["items"] + summary["probes"][0]["items"]
    assert [entry["path"] for entry in json.loads(tags["mlflow.loggedArtifacts"])] == [
        "tables/mixture.json",
        "tables/predictions.json",
    ]
    assert [str(v.version) for v in client.search_model_versions("name = 'tiny'")] == ["1"]
