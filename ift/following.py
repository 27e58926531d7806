"""A job's log, shown as the run itself would have shown it: its lines, and bars where there is a terminal.

In:  the lines that `console.Terminal` writes where it has no terminal.
Out: the same on this one.

    with Screen(terminal) as screen:
        screen.feed("- train …\\n  train     3 of 40  loss 0.41\\n")     # a bar at 3 of 40

A log comes in pieces that may end anywhere; a line is shown once it is whole.
"""

import re
from typing import Any

from ift.console import Terminal, printable

_BEGUN = re.compile(r"- (\S+) …$")
_DONE = re.compile(r"✓ (\S+) +([\d.]+) s  (.*)$")
_COUNTED = re.compile(r"  (\S+) +([\d,]+)(?: of ([\d,]+))?  (.*)$")
_STATUS = re.compile(r"  (\S+) +(.*) …$")
_NOTE = re.compile(r"! (.*)$")
_OF_RAY = re.compile(r"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job ")


class Screen:
    """Shows what it is fed. A context: at its end no bar is left."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self._rest = terminal, ""
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._show(self._rest)
            self._rest = ""
        self._end()

    def feed(self, text: str) -> None:
        """The next piece of the log."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._show(line)

    def _show(self, line: str) -> None:
        line = printable(line.rstrip("\r"))
        if _OF_RAY.match(line):
            return
        if self.terminal.progress is None:
            self.terminal.say(line)
        elif found := _BEGUN.match(line):
            self._begin(found[1])
        elif found := _DONE.match(line):
            self._end()
            self.terminal.done(found[1], float(found[2]), found[3])
        elif found := _COUNTED.match(line):
            if found[1] != self._stage:  # its beginning was not shown
                self._begin(found[1])
            done, total = (int(n.replace(",", "")) if n else None for n in (found[2], found[3]))
            self.terminal.progress.update(self._bar, completed=done, total=total, text=found[4])
        elif (found := _STATUS.match(line)) and found[1] == self._stage:
            self.terminal.progress.update(self._bar, text=found[2])
        elif found := _NOTE.match(line):
            self.terminal.note(found[1])
        else:
            self.terminal.say(line)

    def _begin(self, stage: str) -> None:
        self._end()
        assert self.terminal.progress is not None
        self._stage, self._bar = stage, self.terminal.progress.add_task(stage, total=None, text="")
        self.terminal.progress.start()

    def _end(self) -> None:
        if self._bar is not None and self.terminal.progress is not None:
            self.terminal.progress.remove_task(self._bar)
            self.terminal.progress.stop()
        self._stage, self._bar = "", None
