"""`ift promote`, `ift rollback` and `ift guard`: which version serves, decided line by line.

In:  the tracking URI; a model's name and a version, or the aliases that are watched.
Out: the decision on the terminal, and where it allows it, an alias that has moved.

    promote("sqlite:///mlflow.db", "reviews", "7", "champion", terminal=terminal)
"""

import getpass
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ift import cluster, storage
from ift.console import VERDICT_COLOURS, Terminal
from ift.errors import IftError
from ift.tracking import guard as guards
from ift.tracking import promotion
from ift.tracking.promotion import Decision
from ift.tracking.registry import Registry, Version


def promote(
    uri: str,
    name: str,
    which: str,
    alias: str,
    *,
    terminal: Terminal,
    max_drop: float | None = None,
    min_gain: float = 0.0,
    accepted: Sequence[str] = (),
    override: str = "",
    ask: bool = False,
    address: str | None = None,
) -> None:
    """Decide on a version, print the decision, and move `alias` to it. With `ask`, the version that holds the alias is
    first asked the items of the new one.

    Raises `IftError` where the decision is against it and there is no `override`.
    """
    promotion.check_alias(alias)
    registry = Registry(uri)
    version = registry.version(name, which)
    holder = registry.aliases(name).get(alias)
    champion = registry.version(name, str(holder)) if holder else None
    if champion and champion.number == version.number:
        terminal.say(f"{alias} of {name} is version {version.number} already: nothing to do")
        return
    asked = _ask(registry, champion, version, terminal, address) if ask and champion else None
    decision = promotion.decide(
        registry, version, champion, max_drop=max_drop, min_gain=min_gain, accepted=accepted, asked=asked
    )
    show(decision, alias, terminal)
    move = promotion.promote(registry, version, alias, decision, by=user(), override=override)
    instead = f", in the place of version {champion.number}" if champion else ""
    terminal.say(f"\n{alias} of {name} is version {version.number} now{instead}")
    if move.how == promotion.OVERRIDDEN:
        terminal.note(f"against the gate's {decision.verdict}, by {move.by}: {override}")
    terminal.say(f"load it   mlflow.artifacts.download_artifacts('models:/{name}@{alias}')")
    terminal.say(f"go back   ift rollback {name} --alias {alias}")


def show(decision: Decision, alias: str, terminal: Terminal) -> None:
    """The decision, a line a check."""
    version, champion = decision.version, decision.champion
    beside = f"version {champion.number}, which holds it now" if champion else "nobody holds it yet"
    terminal.say(f"version {version.number} of {version.name} for {alias}; {beside}\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(max_width=44)
    table.add_column()
    for line in decision.lines:
        verdict = line["verdict"]
        table.add_row(
            Text(verdict, style=VERDICT_COLOURS[verdict]), Text(line["check"]), Text(line["detail"])
        )
    terminal.console.print(table)
    colour = VERDICT_COLOURS[decision.verdict]
    terminal.console.print(f"[bold]gate  [{colour}]{decision.verdict}[/][/]", highlight=False)


def rollback(uri: str, name: str, alias: str, *, terminal: Terminal, reason: str = "") -> None:
    """Give `alias` back to the version that held it before."""
    registry = Registry(uri)
    held = registry.aliases(name).get(alias)
    version, _ = promotion.rollback(registry, name, alias, by=user(), reason=reason)
    terminal.say(
        f"{alias} of {name} is version {version.number} again, in the place of version {held or 'none'}"
    )


def guard(
    uri: str,
    aliases: Sequence[str],
    *,
    terminal: Terminal,
    names: Sequence[str] = (),
    enforce: bool = False,
    every: float = 5.0,
    once: bool = False,
    listen: str | None = None,
    url: str | None = None,
) -> bool:
    """Check the aliases that people set in MLflow's pages, until interrupted; with `once`, one look.

    `listen` (HOST:PORT) and `url`, by which MLflow reaches it, add MLflow's webhooks. Returns whether all that was
    seen had passed.
    """
    for alias in aliases:
        promotion.check_alias(alias)
    registry = Registry(uri)
    for name in names:
        registry.model(name)
    if bool(listen) != bool(url):
        raise IftError(
            "--listen and --url go together", wanted="where the guard listens, and how MLflow reaches it"
        )
    if once:
        found = guards.look(registry, aliases, enforce=enforce, names=names)
        for seen in found:
            _tell(seen, terminal)
        if not found:
            terminal.say(f"nothing was moved by other means than ift: {', '.join(aliases)}")
        return all(seen.decision.passed for seen in found)
    wake, passed = threading.Event(), True

    def tell(seen: guards.Seen) -> None:
        nonlocal passed
        passed = passed and seen.decision.passed
        _tell(seen, terminal)

    with ExitStack() as stack:
        how = f"looks every {every:g} s"
        if listen and url:
            host, _, port = listen.rpartition(":")
            if not port.isdecimal():
                raise IftError(f"--listen is {listen!r}", wanted="HOST:PORT, such as 127.0.0.1:8800")
            token = os.environ.get("IFT_GUARD_SECRET") or secrets.token_urlsafe(32)
            stack.enter_context(
                guards.webhooks(registry, host=host, port=int(port), url=url, secret=token, wake=wake)
            )
            how = f"listens to MLflow's webhooks at {url}, and {how}"
        does = "and takes back what did not pass" if enforce else "and marks what did not pass"
        terminal.say(f"ift guard on {registry.address}: {', '.join(aliases)}; {how}, {does}. Ctrl-C stops it")
        sys.stdout.flush()
        stop = threading.Event()
        with _interrupted(stop), suppress(KeyboardInterrupt):
            guards.watch(
                registry,
                aliases,
                enforce=enforce,
                every=every,
                names=names,
                tell=tell,
                complain=lambda what: terminal.note(f"{what}; the guard waits for it"),
                wake=wake,
                stop=stop,
            )
    return passed


@contextmanager
def _interrupted(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop` as well: where the exception comes in the middle of a library's work, the library
    may keep it to itself."""

    def on_signal(*_: Any) -> None:
        stop.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(seen: guards.Seen, terminal: Terminal) -> None:
    version, verdict = f"version {seen.version} of {seen.name}", seen.decision.verdict
    if seen.decision.passed:
        terminal.say(f"{seen.alias} was set to {version} in MLflow: it passes")
        return
    where = (
        f", back to version {seen.returned_to}" if seen.returned_to else ", taken away" if seen.taken else ""
    )
    terminal.note(f"{seen.alias} was set to {version} in MLflow, and the gate says {verdict}{where}")
    for line in seen.decision.failed:
        terminal.say(f"    {line['verdict']}: {line['check']}: {line['detail']}")


def _ask(
    registry: Registry, champion: Version, version: Version, terminal: Terminal, address: str | None
) -> list[Mapping[str, Any]]:
    """The champion's answers to the items of `version`."""
    from ift.evaluate.evaluator import timed

    with tempfile.TemporaryDirectory() as scratch:
        path = registry.artifact(version, "prepare/items.jsonl", Path(scratch))
        items = storage.read_jsonl(path)
        folder = Path(scratch) / "champion"
        with terminal.stage("champion") as stage:
            stage.status(f"fetching version {champion.number}")
            registry.pull(champion, folder)
            with cluster.connect(address, workers=None):
                resources = cluster.with_gpu(cluster.GPU_WAIT_S, terminal.note)
                found, _ = timed(
                    folder,
                    items,
                    gpus=resources.gpus,
                    dtype="bfloat16" if resources.gpus else "float32",
                    cache=storage.cache_dir(),
                    batch_tokens="auto",
                    progress=lambda done, total: stage.progress(done, total, "items"),
                )
            stage.result(
                f"version {champion.number} answered {len(items):,} items of version {version.number}"
            )
    return list(found)


def user() -> str:
    """Who promotes: the user that MLflow knows, else the one of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return f"uid {os.getuid()}"
