"""The guard: an alias that somebody sets in MLflow's pages is checked as `ift promote` would have checked it.

In:  a registry, the aliases that are watched; where the server sends them, its webhooks.
Out: a version that did not pass gets a tag and a line at the top of its page that say so; with `enforce` the alias
     goes back to the version that held it.

    look(registry, ["champion"], enforce=False)    # [Seen("reviews", "champion", 7, ...)]

MLflow (3.17) neither forbids a move of an alias nor says who made it. What it does is send a webhook when an alias is
set, to https addresses on public hosts unless its operator allows others, so the guard looks at all aliases every few
seconds and takes a webhook as a reason to look now. A move is known by its absence from the history that
promotion.py keeps.
"""

import hmac
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ift.errors import IftError
from ift.tracking import promotion
from ift.tracking.card import fit
from ift.tracking.promotion import Decision
from ift.tracking.registry import Registry, Version
from ift.tracking.values import TAG_LENGTH

_GLANCE_S = 0.5  # between looks at whether to stop
WARNING = "> ⚠ "
_BODY = 1 << 20  # bytes of a webhook at most
_EVENTS: list[Any] = ["model_version_alias.created", "model_version_alias.deleted"]


@dataclass(frozen=True)
class Seen:
    """One move that was made in MLflow, and what came of it."""

    name: str
    alias: str
    version: int
    how: str  # one of promotion's
    taken: bool  # whether the alias was taken back
    returned_to: int | None  # the version that has it again
    decision: Decision


def look(
    registry: Registry,
    aliases: Sequence[str],
    *,
    enforce: bool,
    complain: Callable[[str], None],
    names: Sequence[str] = (),
) -> list[Seen]:
    """Check every alias of `aliases` that was moved by other means than `ift`; all models unless `names` are given.

    `complain` hears of a model that cannot be checked; the others are. Raises `IftError` where MLflow does not answer.
    """
    found: list[Seen] = []
    there = registry.names()
    for name in names or there:
        try:
            found += _look_at(registry, name, aliases, enforce=enforce)
        except Exception as error:  # noqa: BLE001  (one model's fault leaves no other unguarded)
            complain(f"{name}: {error.what if isinstance(error, IftError) else repr(error)}")
    return found


def _look_at(registry: Registry, name: str, aliases: Sequence[str], *, enforce: bool) -> Iterator[Seen]:
    for alias, number in registry.aliases(name).items():
        if alias in aliases:
            past = promotion.history(registry, name, alias)
            moved = not past or past[-1].version != number
            again = enforce and not moved and past[-1].how == promotion.NOT_PASSED
            if (moved or again) and (seen := _check(registry, name, alias, number, enforce=enforce)):
                yield seen


def _check(registry: Registry, name: str, alias: str, number: int, *, enforce: bool) -> Seen | None:
    version = registry.version(name, str(number))
    earlier = promotion.holders(registry, name, alias, number)
    champion = earlier[0] if earlier else None
    decision = promotion.decide(registry, version, champion)
    how = promotion.SET if decision.passed else promotion.NOT_PASSED
    why = "; ".join(f"{line['check']}: {line['verdict']}, {line['detail']}" for line in decision.failed)
    try:
        move = promotion.record(registry, version, alias, how=how, reason=why)
    except promotion.Moved:
        return None  # `ift promote` is at work on this alias, or another guard: the next look will tell
    if move is None:
        return None
    if decision.passed:
        _tag(registry, version, alias, f"passed, {promotion.when(move.time)}")
        return Seen(name, alias, number, how, False, None, decision)
    text = f"did not pass, {promotion.when(move.time)}: {why}"
    _tag(registry, version, alias, text)
    _warn(registry, version, alias, text)
    if not enforce:
        return Seen(name, alias, number, how, False, None, decision)
    back = promotion.with_files(registry, earlier)
    try:
        reason = f"version {number} did not pass"
        promotion.return_alias(registry, version, alias, back, by="ift guard", reason=reason)
    except promotion.Moved:
        return Seen(name, alias, number, how, False, None, decision)  # somebody has taken it away meanwhile
    return Seen(name, alias, number, how, True, back.number if back else None, decision)


def _tag(registry: Registry, version: Version, alias: str, text: str) -> None:
    with registry.errors("written to"):
        registry.client.set_model_version_tag(
            version.name, str(version.number), f"ift.guard.{alias}", text[:TAG_LENGTH]
        )


def _warn(registry: Registry, version: Version, alias: str, text: str) -> None:
    """A line at the top of the version's page, in the place of an earlier one for the same alias."""
    mark = f"{WARNING}**`{alias}` was set here in MLflow, and this version** "
    rest = [line for line in version.description.split("\n") if not line.startswith(mark)]
    page = "\n".join([f"{mark}{promotion.short(text)}", "", *rest])  # the tag has all of it
    with registry.errors("written to"):
        registry.client.update_model_version(version.name, str(version.number), fit(page))


def watch(
    registry: Registry,
    aliases: Sequence[str],
    *,
    enforce: bool,
    every: float,
    tell: Callable[[Seen], None],
    complain: Callable[[str], None],
    wake: threading.Event,
    stop: threading.Event,
    names: Sequence[str] = (),
) -> None:
    """Look every `every` seconds, and at once when `wake` is set, until `stop` is. A server that is down is waited for;
    `complain` hears of it once, and once of each model that cannot be checked."""
    told: set[str] = set()
    while not stop.is_set():
        wrong: list[str] = []
        try:
            for seen in look(registry, aliases, enforce=enforce, complain=wrong.append, names=names):
                tell(seen)
        except IftError as error:
            wrong.append(error.what)
        for what in wrong:
            if what not in told:
                complain(what)
        told = set(wrong)
        until = time.monotonic() + every
        while not (stop.is_set() or wake.wait(min(every, _GLANCE_S)) or time.monotonic() >= until):
            pass
        wake.clear()


@contextmanager
def webhooks(
    registry: Registry, *, host: str, port: int, url: str, secret: str, wake: threading.Event
) -> Iterator[None]:
    """Listen on `host:port` for MLflow's webhooks, which reach it as `url`; each that is signed sets `wake`.

    The webhook is made in MLflow for as long as the block lasts. Raises `IftError` where MLflow refuses it.
    """
    server = ThreadingHTTPServer((host, port), _listener(secret, wake))
    threading.Thread(target=server.serve_forever, name="ift-guard", daemon=True).start()
    try:
        with registry.errors("asked for webhooks"):
            made = registry.client.create_webhook(
                name="ift-guard",
                url=url,
                events=_EVENTS,
                secret=secret,
                description="ift guard listens",
            )
        try:
            yield
        finally:
            with registry.errors("freed of the webhook"):
                registry.client.delete_webhook(made.webhook_id)
    finally:
        server.shutdown()
        server.server_close()


def _listener(secret: str, wake: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length") or "0"
            if not length.isdecimal():
                self.send_response(400)
                self.end_headers()
                return
            body = self.rfile.read(int(length)) if int(length) <= _BODY else b""
            signed = signature(
                secret,
                self.headers.get("X-MLflow-Delivery-Id", ""),
                self.headers.get("X-MLflow-Timestamp", ""),
                body,
            )
            came = self.headers.get("X-MLflow-Signature", "")
            good = hmac.compare_digest(
                signed.encode(), came.encode()
            )  # as bytes: a header may hold any letter
            if good:
                wake.set()  # what it says is not believed: the registry is asked
            self.send_response(204 if good else 403)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing on the terminal."""

    return Listener


def signature(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """What MLflow signs a webhook with: HMAC-SHA256 over `delivery.timestamp.body`, base64, after `v1,`."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.new(secret.encode(), signed, sha256).digest()).decode()
