"""`ift promote`, `rollback`, `guard` and `models` as people type them."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tracking.made import make_version, predictions

from ift import promoting, storage
from ift.cli import cli
from ift.cluster import Resources
from ift.console import Terminal
from ift.errors import IftError
from ift.evaluate import evaluator
from ift.reproducing import compared
from ift.tracking.registry import Registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three versions: a good one, one that forgot, a better one."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    for name, tuned in (("a", (0.8, 0.8)), ("b", (0.9, 0.5)), ("c", (0.95, 0.8))):
        make_version(uri, folder / name, "reviews", tuned=tuned)
    return folder


def ift(folder: Path, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(
        cli, [*arguments, "--uri", f"sqlite:///{folder}/mlflow.db"]
    )


def test_from_the_list_of_models_to_a_rollback(folder: Path) -> None:
    listed = ift(folder, "models", "list")
    assert listed.exit_code == 0, listed.output
    assert "reviews" in listed.output
    assert "candidate 3" in listed.output

    first = ift(folder, "promote", "reviews", "1", "--to", "champion")
    assert "nobody holds it yet" in first.output
    assert "champion of reviews is version 1 now\n" in first.output

    refused = ift(folder, "promote", "reviews", "2", "--to", "champion")
    assert isinstance(refused.exception, IftError)
    assert "version 2 of reviews is not promoted to champion: probe words (accuracy): fail" in str(
        refused.exception
    )
    assert "probe words (accuracy) against version 1" in refused.output

    second = ift(folder, "promote", "reviews", "@candidate", "--to", "champion")
    assert "champion of reviews is version 3 now, in the place of version 1" in second.output
    again = ift(folder, "promote", "reviews", "3", "--to", "champion")
    assert "champion of reviews is version 3 already: nothing to do" in again.output

    back = ift(folder, "rollback", "reviews", "--reason", "complaints")
    assert "champion of reviews is version 1 again, in the place of version 3" in back.output
    shown = ift(folder, "models", "show", "reviews")
    assert "version 1, rolled back by " in shown.output
    assert ": complaints" in shown.output
    moves = json.loads(ift(folder, "models", "show", "reviews", "--json").output)["moves"]["champion"]
    assert [move["version"] for move in moves] == [1, 3, 1]


def test_what_tells_two_versions_apart(folder: Path) -> None:
    found = json.loads(ift(folder, "models", "diff", "reviews/1", "reviews/2", "--json").output)
    assert found["tasks"]["reviews"] == pytest.approx([0.8, 0.9], abs=0.01)
    assert found["probes"]["words"] == pytest.approx([0.8, 0.5], abs=0.01)
    assert found["spec"] == {}
    printed = ift(folder, "models", "diff", "reviews/1", "reviews/2").output
    assert "words" in printed
    assert "-0.300" in printed
    assert "do not differ" in ift(folder, "models", "diff", "reviews/1", "reviews/1").output


def test_a_versions_card_and_its_files(folder: Path) -> None:
    card = ift(folder, "models", "show", "reviews", "2").output
    assert "What it forgot" in card
    assert "ift.gate" in card
    pulled = ift(folder, "models", "pull", "reviews/2", str(folder / "out"))
    assert pulled.exit_code == 0, pulled.output
    assert (folder / "out" / "model.safetensors").stat().st_size == 1000


def test_the_guard_looks_once(folder: Path) -> None:
    from ift.tracking.client import mlflow_client

    client = mlflow_client(f"sqlite:///{folder}/mlflow.db")
    client.set_registered_model_alias("reviews", "production", "2")
    seen = ift(folder, "guard", "--alias", "production", "--once", "--enforce")
    assert seen.exit_code == 1
    assert (
        "production was set to version 2 of reviews in MLflow, and the gate says fail, taken away"
        in seen.output
    )
    assert "fail: probe words (accuracy): drop +0.300" in seen.output
    quiet = ift(folder, "guard", "--alias", "production", "--once")
    assert quiet.exit_code == 0
    assert "nothing was moved by other means than ift: production" in quiet.output


def test_an_alias_that_was_taken_or_set_by_hand_opens_no_way_past_the_gate(
    tmp_path: Path, database: Path
) -> None:
    from ift.tracking.client import mlflow_client

    shutil.copy(database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow_client(uri)
    for name, tuned in (("a", (0.95, 0.8)), ("b", (0.8, 0.8)), ("c", (0.97, 0.8))):
        make_version(uri, tmp_path / name, "reviews", tuned=tuned)
    assert ift(tmp_path, "promote", "reviews", "1", "--to", "champion").exit_code == 0

    client.delete_registered_model_alias("reviews", "champion")
    worse = ift(tmp_path, "promote", "reviews", "2", "--to", "champion")
    assert "task reviews (accuracy) against version 1: fail" in str(worse.exception)
    assert "for champion; version 1, which held it last" in worse.output

    client.set_registered_model_alias("reviews", "champion", "2")
    worse = ift(tmp_path, "promote", "reviews", "2", "--to", "champion")
    assert "task reviews (accuracy) against version 1: fail" in str(worse.exception)

    client.set_registered_model_alias("reviews", "champion", "3")
    passed = ift(tmp_path, "promote", "reviews", "3", "--to", "champion")
    assert "champion of reviews is version 3 now\n" in passed.output
    again = ift(tmp_path, "promote", "reviews", "3", "--to", "champion")
    assert "nothing to do" in again.output


# --- --ask ------------------------------------------------------------------------------------------------

SPEC = """\
name: reviews
model: {{source: someone/base, revision: main}}
tasks: [rotten_tomatoes]
evaluate: {{ranking: unconditional, engine: vllm, batch_tokens: 512{more}}}
"""


class Asked:
    """Two versions of which the second was asked other items; and what the first is asked with `--ask`."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "", metric: str = ""
    ) -> None:
        uri = f"sqlite:///{folder}/mlflow.db"
        make_version(uri, folder / "a", "reviews")
        make_version(uri, folder / "b", "reviews", items="b")
        self.registry, self.folder, self.how = Registry(uri), folder, {}
        self.champion, self.version = (self.registry.version("reviews", which) for which in "12")
        self.answers = predictions(0.5, 0.5, items="b")
        items = [
            {
                **{key: p[key] for key in ("suite", "name", "id", "kind", "prompt")},
                "metric": metric,
                "check": None,
            }
            for p in self.answers
        ]
        (folder / "spec.yaml").write_text(SPEC.format(more=more))
        storage.write_jsonl(folder / "items.jsonl", items)
        run = self.version.run_id
        assert run
        self.registry.client.log_artifact(run, str(folder / "spec.yaml"))
        self.registry.client.log_artifact(run, str(folder / "items.jsonl"), "prepare")
        monkeypatch.setattr("ift.cluster.connect", lambda *_, **__: contextlib.nullcontext())
        monkeypatch.setattr("ift.cluster.with_gpu", lambda *_: Resources(cpus=2, gpus=0, nodes=1))
        monkeypatch.setattr(evaluator, "timed", self.timed)

    def timed(self, folder: Path, items: Any, **how: Any) -> Any:
        self.how = how
        return self.answers, []

    def add(self, stage: str, name: str, version: Any, more: list[dict[str, Any]]) -> None:
        """`more` predictions of a stage of the version's run, behind those that are there."""
        path = self.folder / name / stage / "predictions.parquet"
        there = self.registry.predictions(version, stage) or []
        evaluator.write(path, [*there, *more], [0.0] * (len(there) + len(more)))
        self.registry.client.log_artifact(version.run_id, str(path), stage)

    def __call__(self) -> list[Any]:
        return promoting._ask(self.registry, self.champion, self.version, Terminal(Console()), None)


def test_the_champion_is_asked_as_the_spec_of_the_new_version_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(tmp_path, monkeypatch)
    assert asked() == asked.answers
    how = asked.how
    assert (how["ranking"], how["engine"], how["batch_tokens"]) == ("unconditional", "vllm", 512)
    assert (how["dtype"], how["allow_code"]) == ("float32", False)
    assert how["base"] == asked.registry.predictions(asked.version, "baseline")


def test_programs_that_the_champion_writes_run_where_the_spec_of_the_new_version_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(tmp_path, monkeypatch, more=", allow_code: true", metric="code")
    asked()
    assert asked.how["allow_code"] is True


def test_what_the_champion_answered_to_the_harness_counts_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(tmp_path, monkeypatch, more=", harness: [arc_easy]")
    of_harness = [
        {**p, "name": "arc_easy"} for p in predictions(0.0, 0.9, items="h") if p["suite"] == "probe"
    ]
    asked.add("evaluate", "b", asked.version, of_harness)
    with pytest.raises(IftError, match="version 2 was asked arc_easy of the lm-evaluation-harness") as caught:
        asked()
    assert "cannot ask the harness's tasks" in caught.value.what
    lost = [{**p, "score": 0.0} for p in of_harness]
    asked.add("evaluate", "a", asked.champion, lost)
    assert [(p["id"], p["score"]) for p in asked()[len(asked.answers) :]] == [(p["id"], 0.0) for p in lost]


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for arguments in (
        ["models", "list"],
        ["promote", "reviews", "1", "--to", "champion"],
        ["rollback", "reviews"],
    ):
        done = ift(tmp_path, *arguments)
        assert isinstance(done.exception, IftError)
        assert "no tracking database at" in str(done.exception)
    assert not (tmp_path / "mlflow.db").exists()


def test_losses_are_judged_on_the_same_kind_of_hardware_only() -> None:
    row = {"name": "reviews", "tuned": {"value": 0.9}}
    run = {
        "stream": {"hash": "x"},
        "train": {"device": "cpu", "workers": 2, "precision": "fp32"},
        "task": [row],
        "probes": [],
    }
    same = compared(run, run, {1: 2.0, 2: 1.0}, {1: 2.0, 2: 1.0})
    assert (same["losses"], same["worst_difference"]) == (True, 0.0)
    assert compared(run, run, {1: 2.0}, {1: 2.0000001})["losses"] is False
    assert compared(run, run, {1: 2.0, 2: 1.0}, {1: 2.0})["losses"] is False  # a step is missing
    other = {**run, "train": {**run["train"], "workers": 1}}
    assert compared(run, other, {1: 2.0}, {1: 2.1})["losses"] is None
    gpu = {**run, "train": {**run["train"], "gpu_peak_memory_gib": 3.0}}
    assert compared(gpu, gpu, {1: 2.0}, {1: 2.001})["losses"] is True
    assert compared(gpu, gpu, {1: 2.0}, {1: 2.1})["losses"] is False
