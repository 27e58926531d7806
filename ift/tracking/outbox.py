"""What a run has to tell, on disk before anything is sent: append-only files, and how much of each has arrived.

In:  a run's folder, where training appends `metrics.jsonl` and the like; what else is told goes to `outbox.jsonl`.
Out: the lines that have not arrived yet, in order; in `tracking.json` how far each file has, and where to.

    outbox = Outbox(run_dir)
    outbox.append("metrics", step=3, metrics={"test/accuracy": 0.82})
    with outbox.alone() as mine:                     # one process sends at a time
        for end, line in outbox.lines(OUTBOX):
            send(line)
            outbox.acknowledge(OUTBOX, end)          # what was sent and not acknowledged is sent again

Nothing here knows MLflow, or a network.
"""

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ift import storage

STREAMS = {
    "metrics.jsonl": "train/",
    "validation.jsonl": "validation/",
    "looks.jsonl": "look/",
    "system.jsonl": "system/",
}  # file -> prefix of its metrics
OUTBOX = "outbox.jsonl"
ARTIFACTS = "outbox.jsonl:artifacts"  # a position of its own: artefacts that wait hold up nothing else
POSITIONS = (*STREAMS, OUTBOX, ARTIFACTS)
STATE, LOCK = "tracking.json", "tracking.lock"


class Outbox:
    """A run's files for its tracker. Appending is safe from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.state: dict[str, Any] = {}
        self._identity: Mapping[str, Any] | None = None
        self._more: Mapping[str, Any] = {}
        self._appending = threading.Lock()

    # ── what is told ──

    def append(self, kind: str, **values: Any) -> None:
        """Write down one thing, at the time of now. Raises `OSError`."""
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}).encode() + b"\n"
        with self._appending, (self.folder / OUTBOX).open("ab+") as file:
            whole = not file.tell() or _ends_a_line(file, file.tell())
            file.write(line if whole else b"\n" + line)  # a process that was killed may have left half a line

    def kept(self, path: Path) -> str:
        """`path` as a line names it: relative to the folder where it lies inside, so that a run can be moved."""
        path = Path(path).absolute()
        inside = path.is_relative_to(self.folder.absolute())
        return str(path.relative_to(self.folder.absolute()) if inside else path)

    # ── what has not arrived ──

    def lines(self, position: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The complete lines behind a position, each with where it ends; a broken one is an empty mapping."""
        path = self.folder / position.partition(":")[0]
        if not path.exists():
            return
        with path.open("rb") as file:
            end: int = self.state.get("sent", {}).get(position, 0)
            if end and (end > path.stat().st_size or not _ends_a_line(file, end)):
                end = 0  # written anew: sending what is already there again does no harm
            file.seek(end)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # half-written: the next round
                end += len(raw)
                try:
                    line = json.loads(raw)
                except ValueError:
                    line = None
                yield end, line if isinstance(line, dict) else {}

    def acknowledge(self, position: str, end: int) -> None:
        """All up to `end` has arrived."""
        self.state["sent"][position] = end
        self.save()

    def pending(self) -> int:
        """How many lines have not arrived; a file that is to be sent counts as one."""
        artifacts = len([1 for _, line in self.lines(ARTIFACTS) if line.get("kind") == "artifact"])
        return artifacts + sum(1 for position in (*STREAMS, OUTBOX) for _ in self.lines(position))

    def empty(self) -> bool:
        """Whether everything has arrived."""
        return not any(True for position in POSITIONS for _ in self.lines(position))

    # ── where to ──

    def open(self, identity: Mapping[str, Any], **more: Any) -> None:
        """Go on with what `tracking.json` says of this `identity`, or begin anew where it says nothing of it; and keep
        what it says of others. `more` stands in the state whatever it said."""
        self._identity, self._more = identity, more
        saved = saved_state(self.folder)
        known = [saved, *saved.pop("others", [])] if saved else [self.state] if self.state else []
        same = [state for state in known if all(state.get(key) == identity[key] for key in identity)]
        others = [state for state in known if state not in same]
        self.state = {**_new(identity), **(same[0] if same else {}), **more}
        if others:
            self.state["others"] = others

    def reset(self, *identity: str) -> None:
        """Forget what has arrived, and keep these keys of the state."""
        others = {"others": self.state["others"]} if "others" in self.state else {}
        self.state = _new({key: self.state[key] for key in identity}) | others

    def save(self) -> None:
        """Write the state so that a reader never sees half of it; within `alone`, as another process may have written
        more. Raises `OSError`."""
        storage.write_json(self.folder / STATE, self.state)

    @contextmanager
    def alone(self, tell: Callable[[str], None] = lambda _: None) -> Iterator[bool]:
        """Whether no other process sends this folder, nor can until the block ends. The state is then what the last
        one has left.

        Some file systems lock nothing: `tell` hears of it, and the block goes on as if it were alone.
        """
        held = False
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except (BlockingIOError, PermissionError):  # NFS may say the one or the other
                pass
            except OSError as error:
                held = True
                tell(
                    f"{self.folder} cannot be locked ({error.strerror or error}): see that no other process sends "
                    "what it holds"
                )
            if held and self._identity is not None:
                self.open(self._identity, **self._more)
            yield held
        finally:
            os.close(descriptor)


def saved_state(folder: Path) -> dict[str, Any] | None:
    """What `tracking.json` says; None where it is not there or broken."""
    try:
        state = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("sent"), dict) else None


def _new(identity: Mapping[str, Any]) -> dict[str, Any]:
    more: dict[str, Any] = {"experiment_id": None, "run_id": None, "children": {}, "sent": {}}
    return {**identity, **more, "started": round(time.time(), 3), "key": uuid.uuid4().hex}


def _ends_a_line(file: Any, end: int) -> bool:
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")
