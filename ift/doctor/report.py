"""`ift doctor`: this machine, what a spec names, and a cluster; a line a check as it comes.

In:  an address, a storage, a tracking URI, each or none.
Out: lines on the terminal or JSON, and whether nothing failed.

    show(address=None, storage=None, tracking=None, as_json=False)      # True
"""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ift.console import printable, widened
from ift.doctor import cluster, look, machine, services
from ift.doctor.check import Check, worst

_SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✗"}
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
_NAME = 15  # columns


def examine(*, address: str | None, storage: str | None, tracking: str | None) -> Iterator[tuple[str, Check]]:
    """Every check with the place that it is of, as it is done."""
    here = "this machine"
    for check in machine.judge(look.facts()):
        yield here, check
    if storage:
        yield here, services.storage(storage)
    if tracking:
        yield here, services.mlflow(tracking, on_cluster=address is not None)
    if address:
        for check in cluster.examine(address, storage=storage):
            yield address, check


def show(
    *,
    address: str | None,
    storage: str | None,
    tracking: str | None,
    as_json: bool,
    console: Console | None = None,
) -> bool:
    """Print the checks; whether none failed."""
    console = widened(console)
    done: list[tuple[str, Check]] = []
    last = None
    for place, check in examine(address=address, storage=storage, tracking=tracking):
        done.append((place, check))
        if as_json:
            continue
        if place != last:
            console.print(f"{'' if last is None else chr(10)}[bold]{escape(place)}[/]", highlight=False)
        last = place
        console.print(_line(check))
    checks = [check for _, check in done]
    verdict = worst(checks)
    if as_json:
        rows = [{"place": place, **check.as_json()} for place, check in done]
        console.print_json(data={"verdict": verdict, "checks": rows}, indent=2)
    else:
        counts = {kind: sum(check.verdict == kind for check in checks) for kind in _SYMBOLS}
        words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        console.print(f"\n[bold {_COLOURS[verdict]}]{verdict}[/]: {words}", highlight=False)
    return verdict != "fail"


def _line(check: Check) -> Table:
    colour = _COLOURS[check.verdict]
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True, style=colour)
    line.add_column(no_wrap=True, min_width=_NAME)
    line.add_column(overflow="fold")
    line.add_row(
        f"{_SYMBOLS[check.verdict]} {check.verdict}", escape(check.name), escape(printable(check.found))
    )
    if check.next_move:
        line.add_row("", "[dim]next[/]", escape(printable(check.next_move)))
    return line
