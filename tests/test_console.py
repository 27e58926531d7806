"""What reaches people: the terminal is the pipeline's alone, with a live bar on a real terminal and lines elsewhere."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ift import console
from ift.console import own_terminal

SCRIPT = """
import logging, os, sys, time
from pathlib import Path
from ift.console import own_terminal
with own_terminal(Path(sys.argv[1])) as terminal, terminal.stage("train") as stage:
    stage.progress(3, 40, "loss 0.41")
    time.sleep(0.5)  # the bar is drawn ten times a second
    print("chatter of print")
    logging.basicConfig(stream=sys.stderr); logging.warning("chatter of logging")
    os.write(1, b"chatter of C\\n"); os.write(2, b"chatter of C\\n")
    os.system("echo chatter of a child")
    stage.note("something to know")
    stage.result("40 steps, loss 0.12")
print("after")
"""
CHATTER = ("chatter of print", "chatter of logging", "chatter of C", "chatter of a child")


def on_a_terminal(log: Path) -> str:
    """What a person sees of SCRIPT on a real (pseudo) terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(log)],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        seen += part
    assert process.wait(timeout=60) == 0, seen
    return seen.decode()


def check(seen: str, log: Path) -> None:
    assert "something to know" in seen
    assert "40 steps, loss 0.12" in seen
    assert "after" in seen  # stdout is as it was
    for text in CHATTER:
        assert text not in seen
        assert text in log.read_text()


def test_on_a_terminal_there_is_a_bar_and_no_chatter(tmp_path: Path) -> None:
    seen = on_a_terminal(tmp_path / "run.log")
    assert "3/40" in seen
    assert "loss 0.41" in seen
    check(seen, tmp_path / "run.log")


def test_in_a_pipe_there_are_lines_and_no_chatter(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    seen = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log)], capture_output=True, text=True, check=True
    ).stdout
    assert seen.startswith("- train …")
    assert "\x1b" not in seen
    check(seen, log)


def test_brackets_of_a_user_are_text(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    saved = os.dup(1)
    target = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    try:
        with own_terminal(tmp_path / "run.log") as terminal:
            terminal.note("[/x] [red]not a style")
            terminal.done("train", 1.0, "[bold]not a style")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(target)
    assert "[/x] [red]not a style" in out.read_text()
    assert "[bold]not a style" in out.read_text()


@pytest.mark.parametrize("word", ["gain", "drop"])
def test_a_change_that_is_no_number_is_red(word: str) -> None:
    nan = float("nan")
    assert console._change({"value": nan, "low": None, "high": None}, word) == f"[red]{word} +nan[/]"
    assert console._change({"value": -0.2, "low": None, "high": None}, "drop").startswith("[green]")
