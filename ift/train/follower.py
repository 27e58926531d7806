"""Hears of every training step: writes it down, shows it, wakes the tracker.

In:  the events that rank 0 and the trainer tell (see worker.py, trainer.py).
Out: `metrics.jsonl`, a line a step; `validation.jsonl`, a line a validation; `events.jsonl`, a line a start, restart
     and checkpoint.

    follower = Follower(run_dir, steps=45, stage=stage, wake=tracker.wake, work=lambda tokens, supervised: 1e12)
    trainer.fit(job, ..., on_event=follower)
    follower.totals()    # {"steps": 45, "tokens_per_second": 104.2, "final_loss": 0.21, ...}
"""

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift import storage
from ift.console import Stage
from ift.models.speed import utilization

_WRITTEN = ("start", "restart", "checkpoint", "best")  # what happened to the run, for whoever asks later
_WHY = {
    "preemption": "a worker's node will go",
    "growth": "there is room for more workers",
}


@lru_cache(maxsize=1)
def processor() -> str:
    """The name of this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Follower:
    """What `trainer.fit` calls with each event."""

    def __init__(
        self,
        folder: Path,
        *,
        steps: int,
        stage: Stage,
        wake: Callable[[], None],
        work: Callable[[int, int], float] | None = None,
    ) -> None:
        """`work` says how many operations a step of so many tokens and supervised tokens takes, for its MFU."""
        self._folder, self._steps, self._stage, self._wake, self._work = folder, steps, stage, wake, work
        self._devices = ("cpu", 1)  # what the workers train on, and how many they are
        for name in ("metrics.jsonl", "validation.jsonl", "events.jsonl"):
            storage.drop_half_line(folder / name)
        self._metrics = storage.read_jsonl(folder / "metrics.jsonl")
        self._validation = storage.read_jsonl(folder / "validation.jsonl")
        self._events = storage.read_jsonl(folder / "events.jsonl")

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["kind"] in _WRITTEN:
            self._append("events.jsonl", self._events, {**event, "time": time.time()})
        event = dict(event)
        kind = event.pop("kind")
        if kind == "step":
            # after a restart, steps come again that are written down already; they are the same
            event |= self._speed(event)
            if not self._metrics or event["step"] > self._metrics[-1]["step"]:
                self._append("metrics.jsonl", self._metrics, event)
            rate = event["supervised_tokens_per_second"]
            self._stage.progress(
                event["step"],
                self._steps,
                f"loss {event['loss']:.3f}  lr {event['lr']:.1e}  {rate:.1f} supervised tokens/s",
            )
        elif kind == "validation":
            if not any(line["step"] == event["step"] for line in self._validation):
                self._append("validation.jsonl", self._validation, {**event, "time": time.time()})
        elif kind == "start":
            self._devices = (event["device"], event["world"])
            if event["step"]:
                workers = f"{event['world']} worker{'s' * (event['world'] > 1)}"
                self._stage.note(f"training goes on from the checkpoint of step {event['step']:,}, {workers}")
        elif kind == "restart":
            self._stage.note(_WHY.get(event["reason"]) or event["text"])
        elif kind == "note":
            self._stage.note(event["text"])
        elif kind == "status":
            self._stage.status(event["text"])

    def _speed(self, event: Mapping[str, Any]) -> dict[str, float]:
        """Tokens a second, and the share of the GPUs' peak where it is known."""
        seconds = event["seconds"]
        found = {
            "tokens_per_second": event["tokens"] / seconds,
            "supervised_tokens_per_second": event["supervised_tokens"] / seconds,
        }
        device, count = self._devices
        if self._work and device != "cpu":
            work = self._work(event["tokens"], event["supervised_tokens"])
            share = utilization(work, seconds=seconds, device=device, count=count)
            found |= {"mfu": share} if share is not None else {}
        return found

    def _append(self, name: str, lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
        lines.append(line)
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(storage.json_line(line))
        self._wake()

    def totals(self) -> dict[str, Any]:
        """Steps, speed (tokens of the packs a second of stepping) and losses."""
        seconds = sum(line["seconds"] for line in self._metrics)
        tail = self._metrics[-max(1, len(self._metrics) // 10) :]
        return {
            "steps": len(self._metrics),
            "tokens_per_second": sum(line["tokens"] for line in self._metrics) / seconds,
            "final_loss": sum(line["loss"] for line in tail) / len(tail),  # mean of the last tenth
            "first_loss": self._metrics[0]["loss"],
            "validation_loss": self._validation[-1]["loss"] if self._validation else None,
            "restarts": sum(event["kind"] == "restart" for event in self._events),
            "device": processor() if self._devices[0] == "cpu" else self._devices[0],
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
