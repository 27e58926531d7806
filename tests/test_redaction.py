"""No secret in what is told or saved: addresses, queries, headers, keys, and values of the environment."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_spec
from rich.console import Console

from ift import pipeline
from ift import spec as specs
from ift.console import Terminal, own_terminal
from ift.redaction import clean, secret_name, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "see http://me:pa@ss@host:5/x?a=1&access_token=abc now",
            "see http://host:5/x?a=1&access_token=… now",
        ),
        ("postgresql+psycopg2://ada:hunter2@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        (
            "https://x/y?X-Amz-Signature=abc&X-Amz-Credential=d",
            "https://x/y?X-Amz-Signature=…&X-Amz-Credential=…",
        ),
        ('{"uri": "http://host", "mail": "a@b"}', '{"uri": "http://host", "mail": "a@b"}'),
        ("Authorization: Bearer 0123abcd", "Authorization: Bearer …"),
        ("{'authorization': 'Basic YWRhOmh1bnRlcjI='}", "{'authorization': 'Basic …'}"),
        ("key AKIAIOSFODNN7EXAMPLE of", "key … of"),
        ("hf_abcdefghijklmnopqrstuvwx", "…"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", "…"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----.", "…."),
        ("-----BEGIN PRIVATE KEY-----\ncut short", "…"),
        ("https://h/c?sv=2024&sig=a%2Fb%3D&se=1", "https://h/c?sv=2024&sig=…&se=1"),
        ("postgresql://me:p/w@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://me:p/w@db:5432/x, s3://a@b", "postgresql://db:5432/x, s3://b"),
        ("host=db password=hunter2 port=1", "host=db password=… port=1"),
        ("db(password='it is \\'so', port=1)", "db(password='…', port=1)"),
        (
            "AccountName=me;AccountKey=aB3/+x==;EndpointSuffix=core",
            "AccountName=me;AccountKey=…;EndpointSuffix=core",
        ),
        ("with sk-proj-abcdefghij0123456789 in", "with … in"),
        ("glpat-abcdefghij0123456789", "…"),
        ("Authorization: token 0123abcd", "Authorization: token …"),
        ("Authorization: ApiKey 0123abcd", "Authorization: ApiKey …"),
        ("-H 'Authorization: Splunk 0123-4567-89ab'", "-H 'Authorization: Splunk …'"),
        ("authorization: 0123456789abcdef", "authorization: …"),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0f",
            "Authorization: AWS4-HMAC-SHA256 …",
        ),
        ("x-api-key: abcdef", "x-api-key: …"),
        ("{'api_key': 'abc def', 'n': 1}", "{'api_key': '…', 'n': 1}"),
        ('{"password": "a b", "user": "me"}', '{"password": "…", "user": "me"}'),
        # no secrets
        (
            "http://host:8080/guide@v2 and http://host/a:b@c",
            "http://host:8080/guide@v2 and http://host/a:b@c",
        ),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        (
            "max_new_tokens=96 pad_token=</s> eos_token: <s>",
            "max_new_tokens=96 pad_token=</s> eos_token: <s>",
        ),
        ("The password: a word that opens a door", "The password: a word that opens a door"),
        ("if password == other or api_key=None:", "if password == other or api_key=None:"),
        ("Authorization: who may submit jobs", "Authorization: who may submit jobs"),
        ("Authorization: token based, in 12 steps", "Authorization: token based, in 12 steps"),
        ("task-specific, risk-averse-and-long-winded", "task-specific, risk-averse-and-long-winded"),
        ("a sk-learn-like-interface-for-all", "a sk-learn-like-interface-for-all"),
        ("?signal=1&sigma=2", "?signal=1&sigma=2"),
        ("models:/reviews@champion me@example.org", "models:/reviews@champion me@example.org"),
        ("Basic understanding of tokens: a key question?", "Basic understanding of tokens: a key question?"),
        ("s3://bucket/a@b/key=1", "s3://bucket/a@b/key=1"),
    ],
)
def test_what_opens_something_is_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_any_depth_and_nothing_but_texts() -> None:
    value = {"a": ["http://u:p@h", 1, None, ("x", {"b": "http://u:p@h"})], "c": 0.5}
    assert without_secrets(value) == {"a": ["http://h", 1, None, ("x", {"b": "http://h"})], "c": 0.5}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        ),
        *(
            (name, True)
            for name in ("MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY", "IFT_GUARD_SECRET", "API_KEY")
        ),
        *((name, False) for name in ("RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "KEYBOARD", "HOME")),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert secret_name(name) is secret


def test_values_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a/secret+word")
    monkeypatch.setenv("MY_PASSWORD", "short")
    assert without_secrets("with a/secret+word, or a%2Fsecret%2Bword; short") == "with …, or …; short"
    monkeypatch.delenv("HF_TOKEN")
    assert without_secrets("with a/secret+word") == "with a/secret+word"


def test_a_run_says_and_saves_none(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame-1")
    folder = tmp_path / "run"
    uri = "postgresql://ada:hunter2@db/mlflow?password=open-sesame-1"
    spec = specs.load(write_spec(tmp_path, tiny_model, tracking={"uri": uri, "experiment": "open-sesame-1"}))
    with own_terminal(folder / "run.log") as terminal:
        pipeline.claim(folder, spec)
        terminal.say("told: hunter2 of postgresql://ada:hunter2@db and open-sesame-1")
        terminal.note("open-sesame-1")
        terminal.header([("uri", uri)])
        terminal.done("stage", 1.0, uri)
        os.write(1, b"a library: open-sesame-1\n")
        os.write(2, b"another: http://u:pw@host\n")
    told = capfd.readouterr().out + (folder / "run.log").read_text() + (folder / "spec.yaml").read_text()
    assert "sesame" not in told
    assert "ada:" not in told
    assert "a library: …" in told
    pipeline.claim(folder, spec)  # the same spec as what was saved of it
    saved: dict[str, Any] = yaml.safe_load((folder / "spec.yaml").read_text())
    assert saved["tracking"]["uri"] == "postgresql://db/mlflow?password=…"


def test_a_file_without_secrets_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe plain\n")
    before = path.stat().st_mtime_ns
    clean(path)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"\xff http://u:p@h\n")
    clean(path)
    assert path.read_bytes() == b"\xff http://h\n"
    clean(tmp_path / "none")


def test_a_terminal_shows_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "open-sesame-2")
    Terminal(Console()).say("open-sesame-2")
    assert capsys.readouterr().out == "…\n"
