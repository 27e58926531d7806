"""A job's log on this terminal: what `Terminal` writes into a file comes out as bars, however it is cut."""

import io

import pytest
from rich.console import Console

from ift import console
from ift.console import Terminal
from ift.following import Screen


def written(monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run writes where it has no terminal."""
    monkeypatch.setattr(console, "_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(console, "_TELLS_STATUS", True)
    file = io.StringIO()
    terminal = Terminal(Console(file=file, width=100))
    with terminal.stage("train") as stage:
        stage.status("starting 2 workers")
        stage.progress(3, 40, "loss 0.41")
        stage.note("training goes on")
        stage.progress(4_000, None, "")
        stage.result("40 steps")
    terminal.say("wanted: nothing")
    return file.getvalue()


class Bars:
    """In place of rich's `Progress`: what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def add_task(self, name: str, **_: object) -> str:
        self.told.append(("begin", name))
        return name

    def update(self, bar: str, **values: object) -> None:
        self.told.append((bar, values))

    def remove_task(self, bar: str) -> None:
        self.told.append(("end", bar))

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_log_becomes_bars_again(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    text = (
        "2026-11-26 22:35:28,319\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job x-1: python -m ift.cli run job/x.yaml\n" + written(monkeypatch)
    )
    file, bars = io.StringIO(), Bars()
    terminal = Terminal(Console(file=file, width=100))
    terminal.progress = bars  # type: ignore[assignment]
    with Screen(terminal) as screen:
        for at in range(0, len(text), size):
            screen.feed(text[at : at + size])
    assert bars.told == [
        ("begin", "train"),
        ("train", {"text": "starting 2 workers"}),
        ("train", {"completed": 3, "total": 40, "text": "loss 0.41"}),
        ("train", {"completed": 4000, "total": None, "text": ""}),
        ("end", "train"),
    ]
    shown = file.getvalue()
    assert "! training goes on" in shown
    assert "✓ train" in shown
    assert "40 steps" in shown
    assert "wanted: nothing" in shown
    assert "entrypoint" not in shown


def test_without_a_terminal_lines_stay_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch)
    file = io.StringIO()
    with Screen(Terminal(Console(file=file, width=100))) as screen:
        screen.feed(text)
        screen.feed("a last line without its end")
    assert file.getvalue() == text + "a last line without its end\n"


def test_nothing_in_a_log_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(Terminal(Console(width=100))) as screen:
        screen.feed("\x1b]0;title\x07[red]text[/]\n")
    assert capsys.readouterr().out == "␛]0;title␇[red]text[/]\n"
