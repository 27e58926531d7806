"""What people see on the terminal: stages, bars, a summary. Everything else goes to the run's log.

In:  what the pipeline tells.
Out: on a terminal, live bars; elsewhere (a pipe, a job's log), a line now and then.

    with own_terminal(run / "run.log") as terminal, terminal.stage("train") as stage:
        stage.progress(3, 40, "loss 0.41")
        stage.result("40 steps, loss 0.12")
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ift.redaction import clean, without_secrets

# Where there is no terminal to redraw, a line now and then; a submitted job's are drawn where it was submitted.
_LINE_EVERY_S = float(os.environ.get("IFT_LINE_EVERY_S", "15"))
_TELLS_STATUS = "IFT_LINE_EVERY_S" in os.environ

_GAP = 2  # columns between the columns of a table
_SHORTEST_NAME = 16  # characters that stay of a long name in a narrow table
_WIDE = 160  # columns of a terminal that has room for the whole table

# What a terminal would obey stands as a picture: ␛ for escape, ␍ for carriage return. Tabs and line ends stay.
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_PICTURES |= {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


VERDICT_COLOURS = {"pass": "green", "unclear": "yellow", "fail": "red"}  # of the gate


class Stage:
    """One stage of the pipeline while it runs."""

    def __init__(self, terminal: "Terminal", name: str) -> None:
        self._terminal, self.name = terminal, name
        self._result = ""
        self._last_line = time.monotonic()
        self._bar = terminal.progress.add_task(name, total=None, text="") if terminal.progress else None

    def progress(self, done: int, total: int | None, text: str = "") -> None:
        """`done` of `total`, with a few words beside the bar."""
        if self._terminal.progress and self._bar is not None:
            self._terminal.progress.update(self._bar, completed=done, total=total, text=text)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            of = f"{done:,} of {total:,}" if total else f"{done:,}"
            self._terminal.say(f"  {self.name:<9} {of}  {text}")

    def status(self, text: str) -> None:
        """What goes on, where there is nothing to count yet."""
        if self._terminal.progress and self._bar is not None:
            self._terminal.progress.update(self._bar, text=text)
        elif _TELLS_STATUS:
            self._terminal.say(f"  {self.name:<9} {text} …")

    def note(self, text: str) -> None:
        self._terminal.note(text)

    def result(self, text: str) -> None:
        """The words that stay on the screen when the stage is over."""
        self._result = text

    def _end(self, seconds: float, failed: bool) -> None:
        if self._terminal.progress and self._bar is not None:
            self._terminal.progress.remove_task(self._bar)
        if not failed:
            self._terminal.done(self.name, seconds, self._result)


class Terminal:
    """Where the pipeline speaks to people."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description:<9}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                redirect_stdout=False,  # what libraries write belongs in the log, not above the bar
                redirect_stderr=False,
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage that takes a while. Its result is printed when it ends well."""
        started, failed = time.monotonic(), True
        stage = Stage(self, name)
        if self.progress:
            self.progress.start()
        else:
            self.say(f"- {name} …")
        try:
            yield stage
            failed = False
        finally:
            stage._end(time.monotonic() - started, failed)
            if self.progress:
                self.progress.stop()

    def say(self, text: str) -> None:
        self.console.print(escape(without_secrets(text)), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something that the user should know and that stops nothing."""
        self.console.print(f"[yellow]![/] {escape(without_secrets(text))}", highlight=False, soft_wrap=True)

    def done(self, name: str, seconds: float, result: str) -> None:
        self.console.print(
            f"[green]✓[/] [bold]{name:<9}[/] [dim]{seconds:7.1f} s[/]  {escape(without_secrets(result))}",
            highlight=False,
            soft_wrap=True,
        )

    def header(self, rows: Sequence[tuple[str, str]]) -> None:
        for key, value in rows:
            self.console.print(
                f"[dim]{key:<9}[/] {escape(without_secrets(value))}", highlight=False, soft_wrap=True
            )
        self.console.print()

    def mixture(self, prepared: Mapping[str, Any]) -> None:
        """What the prepare stage wrote down: the mixture as it came out, and the stream's hash."""
        rows = prepared["mixture"]
        total = sum(row["asked"] for row in rows) or 1
        tokens = sum(row["tokens"] for row in rows) or 1
        shown = [
            {
                "task": row["task"],
                "available": f"{row['available']:,}",
                "asked": f"{row['asked']:,}",
                "share": f"{row['asked'] / total:.1%}",
                "instructions": f"{row['instructions']:,}",
                "tokens": f"{row['tokens']:,}",
                "of all": f"{row['tokens'] / tokens:.1%}",
                "supervised": f"{row['supervised_tokens']:,}",
                "few-shot": f"{row['few_shot']:,}",
                "options": f"{row['options']:,}",
                "seen each": f"{row['seen_each']:.2f}",
            }
            for row in rows
        ]
        columns = list(shown[0]) if shown else []
        spare = ("asked", "of all", "seen each", "options", "available")
        table = numbers_table(columns, shown, width=self.console.width, dispensable=spare)
        self.console.print()
        self.console.print(table, highlight=False)
        self.say(
            f"\nstream      {prepared['packs']:,} packs, {prepared['fill']:.1%} full, {prepared['hash']}"
        )

    def scores(self, tasks: Sequence[Mapping[str, Any]], probes: Sequence[Mapping[str, Any]]) -> None:
        """What was gained and what was forgotten; of one model alone, how it does."""
        both = any("tuned" in row for row in [*tasks, *probes])
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        names = ("", "measured by", "items", "base", "tuned", "change, 95 % interval") if both else (
            "", "measured by", "items", "score, 95 % interval", "above guessing"
        )  # fmt: skip
        for column in names:
            table.add_column(column, justify="right" if column == "items" else "left")
        for row in tasks:
            shown = [_with_interval(row["base"])]
            shown += [_with_interval(row["tuned"]), _change(row["gain"], "gain")] if both else [_above(row)]
            table.add_row(f"[bold]{escape(row['name'])}[/]", row["metric"], str(row["items"]), *shown)
        for row in probes:
            shown = [_plain(row["base"]), _plain(row["tuned"]), _change(row["drop"], "drop")] if both else [
                _with_interval(row["base"]), _above(row)
            ]  # fmt: skip
            table.add_row(escape(row["name"]), row["metric"], str(row["items"]), *shown)
        self.console.print()
        self.console.print(table, highlight=False)

    def transfer(self, found: Mapping[str, Any]) -> None:
        """What later runs did to the tasks of earlier ones."""
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for column in ("run", "its own model", "the last model", "change"):
            table.add_column(column, justify="left" if column == "run" else "right")
        for row in found["runs"]:
            table.add_row(
                escape(row["run"]), f"{row['own']:.3f}", f"{row['last']:.3f}", _signed(row["change"])
            )
        self.console.print()
        self.console.print(table, highlight=False)
        self.say(
            f"\nbackward transfer {_signed(found['backward_transfer'])}: the mean change over all but the last; "
            "below 0 is forgetting"
        )

    def prompting(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Would prompting have done: a block a task, a line a way, and the verdict in words."""
        for row in rows:
            table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
            for column in (
                f"{row['name']}: {row['metric']}, {row['items']} items", "score, 95 % interval", "draws",
                "prompt tokens", "context left", "s an item",
            ):  # fmt: skip
                table.add_column(column, justify="left" if table.columns == [] else "right")
            for way in row["ways"]:
                draws = way["draws"]
                table.add_row(
                    f"[bold]{escape(way['way'])}[/]" if way["trained"] else escape(way["way"]),
                    _with_interval(way["score"]),
                    f"{draws['lowest']:.2f}–{draws['highest']:.2f}" if draws["count"] > 1 else "",
                    f"{way['prompt_tokens']:,.0f}",
                    "" if way["context_left"] is None else f"{way['context_left']:,}",
                    "" if way["seconds"] is None else f"{way['seconds']:.2f}",
                )
            self.console.print()
            self.console.print(table, highlight=False)
            colour = {"tuning": "green", "prompting": "green", "neither": "red"}.get(
                row["verdict"]["kind"], "yellow"
            )
            self.console.print(
                f"[{colour}]{escape(row['verdict']['words'])}[/]", highlight=False, soft_wrap=True
            )

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The table at the end: what was gained, what was forgotten, the verdict, where everything is."""
        self.scores(summary["task"], summary["probes"])
        gate = summary["gate"]
        colour = VERDICT_COLOURS[gate["verdict"]]
        if summary["probes"]:
            worst = f"worst {_signed(gate['worst_drop'])} ({gate['worst_probe']})"
            meaning = "a drop is what a score of at most 1 has lost"
            self.say(f"\nforgetting  mean drop {_signed(gate['mean_drop'])}, {worst}; {meaning}")
        self.console.print(f"[bold]gate        [{colour}]{gate['verdict']}[/][/]", highlight=False)
        for line in gate["lines"]:
            if line["verdict"] != "pass":
                self.say(f"            {line['verdict']}: {line['check']}: {line['detail']}")
        for attempt in summary.get("attempts", ()):
            worst = f"worst drop {_signed(attempt['worst_drop'])} ({attempt['worst_probe'] or 'no probe'})"
            if attempt.get("breaches"):
                worst += f", too much on {escape(', '.join(attempt['breaches'][:4]))}"
            gains = ", ".join(f"{name} {_signed(gain)}" for name, gain in list(attempt["gains"].items())[:4])
            chosen = "  [bold]chosen[/]" if attempt["chosen"] else ""
            self.console.print(
                f"attempt     {escape(attempt['name'])}: {attempt['verdict']}, {worst}, gain {escape(gains)}{chosen}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        if summary.get("prompting"):
            self.prompting(summary["prompting"])
        timings = summary["timings"]
        spent = " · ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items() if name != "total")
        self.say(f"\ntime        {timings['total'] / 60:.1f} min: {spent}")
        train = summary["train"]
        worker = train.get("gpu_peak_memory_gib") or train["worker_peak_memory_gib"]
        self.say(
            f"memory      {summary['peak_memory_gib']:.1f} GiB at most, in all processes that this command started; "
            f"{worker:.1f} in training's largest worker, {train['planned_memory_gib']:.1f} planned"
        )
        self.say(f"model       {summary['model_dir']}")
        self.say(f"report      {summary['report']}")
        mlflow = summary["mlflow"]
        if mlflow.get("model_version"):
            alias = (
                f"alias `{mlflow['alias']}`"
                if mlflow.get("alias")
                else "no alias: it forgot too much to be a candidate"
            )
            self.say(f"registered  {mlflow['model_name']} version {mlflow['model_version']}, {alias}")
            self.say(f"MLflow      ift ui --uri {mlflow['tracking_uri']}")
        else:
            later = f"`ift sync {summary['run_dir']}` registers it later, and so does the same command again"
            self.note(f"not registered: {mlflow.get('error')}; {later}")


def numbers_table(
    names: Sequence[str], rows: Sequence[Mapping[str, str]], *, width: int, dispensable: Sequence[str] = ()
) -> Table:
    """A table of `rows` by column name, for a terminal of `width` columns; a row's `style` is how it is printed.

    Where room is short, columns go that are `dispensable`, the first named first, then the names in the first column
    are cut; the numbers never are.
    """
    kept = list(names)
    size = {name: max([len(name), *(len(row.get(name, "")) for row in rows)]) for name in names}

    def needed() -> int:
        return min(size[kept[0]], _SHORTEST_NAME) + sum(size[n] for n in kept[1:]) + _GAP * len(kept)

    for name in dispensable:
        if needed() > width and name in kept:
            kept.remove(name)
    table = Table(box=None, header_style="dim", padding=(0, _GAP, 0, 0))
    for place, name in enumerate(kept):
        left = name in ("task", "kind", "cluster", "template")
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, min_width=size[name] if place else None
        )
    for row in rows:
        table.add_row(*(escape(row.get(name, "")) for name in kept), style=row.get("style"))
    return table


def widened(console: Console | None) -> Console:
    """`console`, or the usual one; as wide as tables like where it writes to a file, which has no width."""
    console = console or Console()
    if not console.is_terminal and console.width < _WIDE and "COLUMNS" not in os.environ:
        console.width = _WIDE
    return console


def supervised_parts(
    ids: Sequence[int], supervised: Sequence[bool], decode: Callable[[list[int]], str]
) -> list[tuple[str, bool]]:
    """The text of some tokens, part by part, and whether it is supervised; neighbours of a kind are decoded at once."""
    runs: list[tuple[list[int], bool]] = []
    for token, counts in zip(ids, supervised, strict=True):
        if not runs or runs[-1][1] != counts:
            runs.append(([], counts))
        runs[-1][0].append(token)
    return [(decode(run), counts) for run, counts in runs]


def marked(parts: Iterable[tuple[str, bool]], *, marks: bool) -> Text:
    """The parts as one text, what is supervised underlined; between `marks` where nothing can be underlined."""
    text = Text()
    for part, supervised in parts:
        part = f"⟦{part}⟧" if marks and supervised else part
        text.append(printable(part), style="bold green underline" if supervised else "dim")
    return text


def printable(text: str) -> str:
    """`text` without what a terminal would obey: rows of data may hold anything."""
    return text.translate(_PICTURES)


def _with_interval(score: Mapping[str, float | None]) -> str:
    if score["low"] is None:
        return f"{score['value']:.2f}"
    return f"[bold]{score['value']:.2f}[/] [dim]{score['low']:.2f}–{score['high']:.2f}[/]"


def _plain(score: Mapping[str, float | None]) -> str:
    return f"{score['value']:.2f}"


def _above(row: Mapping[str, Any]) -> str:
    """A score with guessing as 0 and all right as 1."""
    return f"{row['normalised']['base']:.2f}" if row.get("normalised", {}).get("chance") else ""


def _change(change: Mapping[str, float | None], word: str) -> str:
    value = change["value"] or 0.0
    colour = "green" if (value > 0) == (word == "gain") else "red"
    if not math.isfinite(value):
        colour = "red"
    elif round(value, 2) == 0:
        colour = "dim"
    text = f"{word} {_signed(value)}"
    if change["low"] is not None:
        text += f" [{_signed(change['low'])}, {_signed(change['high'])}]"
    return f"[{colour}]{escape(text)}[/]"


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.2f}".replace("-", "−")


@contextmanager
def own_terminal(log: Path) -> Iterator[Terminal]:
    """Everything that any library writes to stdout or stderr goes to `log`; only the `Terminal` reaches people.

    File descriptors are moved, not Python's objects, because much of the chatter comes from C++ and children. What
    libraries wrote of secrets is taken out of `log` at the end of the block.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    stream = os.fdopen(out, "w", buffering=1, encoding="utf-8")
    width = None if stream.isatty() else int(os.environ.get("COLUMNS", _WIDE)) if _TELLS_STATUS else _WIDE
    terminal = Terminal(Console(file=stream, width=width))

    def on_interrupt(number: int, frame: Any) -> None:
        terminal.say("stopping …")  # at once: ending the workers takes some seconds
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield terminal
    finally:
        signal.signal(signal.SIGINT, before)
        sys.stdout.flush()
        sys.stderr.flush()
        stream.flush()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(err)
        stream.close()
        clean(log)
