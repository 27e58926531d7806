import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task

from ift.tasks.task import load
from ift.tracking import lineage


def inputs(*files: Any, rows: int = 60) -> dict[str, Any]:
    return {"inputs": {"films": {"files": list(files), "rows": rows, "bad": 2}}, "commits": {}}


def file(path: Path, split: str | None = None, sha256: str = "aa") -> dict[str, Any]:
    return {"split": split, "file": str(path), "sha256": sha256}


def one(folder: Path, *files: Any, trained: tuple[str, ...] = ("films",), **source: Any) -> dict[str, Any]:
    task = load(file=str(write_task(folder)))
    if source:
        task = task.model_copy(update={"source": type(task.source)(**source)})
    [found] = lineage.datasets({"films": task}, inputs(*files), trained=trained)
    return found


def test_a_data_set_has_digest_source_licence_and_what_it_was_used_for(tmp_path):
    found = one(tmp_path, file(tmp_path / "rows.jsonl"))
    assert found["name"] == "films"
    assert json.loads(found["source"]) == {"uri": str(tmp_path / "rows.jsonl")}
    assert found["source_type"] == "local"
    profile = json.loads(found["profile"])
    assert (profile["num_rows"], profile["bad_rows"], profile["licence"]) == (60, 2, "Apache-2.0")
    assert found["tags"]["mlflow.data.context"] == "training"
    assert found["tags"]["ift.licence"] == "Apache-2.0"
    assert one(tmp_path, trained=())["tags"]["mlflow.data.context"] == "evaluation"


def test_the_digest_is_of_the_content_alone(tmp_path):
    digest = one(tmp_path, file(tmp_path / "rows.jsonl"))["digest"]
    assert len(digest) <= 36
    assert one(tmp_path, file(tmp_path / "moved.jsonl"))["digest"] == digest
    assert one(tmp_path, file(tmp_path / "rows.jsonl", sha256="bb"))["digest"] != digest


def test_sources_of_the_hub_and_of_s3_are_mlflows_own(tmp_path):
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json

    hub = one(tmp_path, file(tmp_path / "a.parquet"), hub={"id": "CogComp/trec", "revision": "abc"})
    read = get_dataset_source_from_json(hub["source"], hub["source_type"])
    assert (read.path, read.revision) == ("CogComp/trec", "abc")
    s3 = one(tmp_path, file(tmp_path / "a"), files={"train": "s3://bucket/a.jsonl"})
    assert get_dataset_source_from_json(s3["source"], s3["source_type"]).to_dict() == {
        "uri": "s3://bucket/a.jsonl"
    }


def test_a_password_in_a_source_is_left_out(tmp_path):
    found = one(
        tmp_path, file(tmp_path / "a"), mlflow={"dataset": "faq", "uri": "http://me:hunter2@host:5000"}
    )
    assert "hunter2" not in json.dumps(found)


def test_a_template_that_is_worded_otherwise_has_another_digest(tmp_path):
    task = load(file=str(write_task(tmp_path)))
    path = tmp_path / "films.yaml"
    path.write_text(path.read_text().replace("Review: ", "A review: "))
    other = load(file=str(path))
    assert lineage.templates_digest(task) != lineage.templates_digest(other)
    assert lineage.all_templates_digest({"films": task}) != lineage.all_templates_digest({"films": other})


def test_the_commit_of_the_working_directory_and_whether_it_is_all(tmp_path):
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert "mlflow.source.git.commit" not in lineage.provenance(tmp_path)
    git("init", "-q")
    (tmp_path / "a").write_text("a")
    git("add", ".")
    git("commit", "-qm", "a")
    tags = lineage.provenance(tmp_path)
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["ift.git_changes"] == "none"
    (tmp_path / "a").write_text("b")
    assert lineage.provenance(tmp_path)["ift.git_changes"] == "uncommitted changes"


def test_where_there_is_no_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "mlflow.source.git.commit" not in lineage.provenance(tmp_path)


def test_a_submitted_job_is_called_one(tmp_path, monkeypatch):
    assert lineage.provenance(tmp_path)["mlflow.source.type"] == "LOCAL"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert lineage.provenance(tmp_path)["mlflow.source.type"] == "JOB"
    monkeypatch.setenv(lineage.CODE, json.dumps({"mlflow.source.git.commit": "f" * 40}))
    assert lineage.provenance(tmp_path)["mlflow.source.git.commit"] == "f" * 40, (
        "of the repository it was sent from"
    )


def test_packages_are_listed_with_their_versions():
    lines = lineage.packages().splitlines()
    assert f"pytest=={pytest.__version__}" in lines
    assert lines == sorted(lines, key=str.lower)
