"""What passes between rank 0 and the driver while an attempt goes on.

In:  events of rank 0, requests and scores of the driver.
Out: each to the other, when it looks.

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    mailbox.put.remote({"kind": "step", "step": 1}); ray.get(mailbox.take.remote())    # [{"kind": "step", …}]

A file of its own: the actor's process loads nothing that trains.
"""

from typing import Any

Event = dict[str, Any]


class Mailbox:
    """An actor: events one way, requests and scores the other."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._workers: dict[int, tuple[str, Any]] = {}
        self._asked: str | None = None
        self._scores: dict[str, float | str] = {}

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken

    def join(self, rank: int, node: str, actor: Any) -> None:
        """A worker is there: the id of its node, and the actor that it runs in."""
        self._workers[rank] = (node, actor)

    def workers(self) -> dict[int, tuple[str, Any]]:
        return self._workers

    def ask(self, reason: str) -> None:
        """Have the workers write a checkpoint and leave."""
        self._asked = reason

    def asked(self) -> str | None:
        return self._asked

    def tell_score(self, key: str, score: float | str) -> None:
        """What an exported model came to ("candidate/50", "look/50"), or why it has no score."""
        self._scores[key] = score

    def score(self, key: str) -> float | str | None:
        return self._scores.get(key)
