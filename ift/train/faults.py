"""What ended an attempt, in words, and what can be done about it.

In:  whatever Ray or Ray Train raised on the driver.
Out: a `Lost` with its kind, or the `IftError` that a worker raised.

    classify(error)    # Lost("worker", "a worker was lost: it was killed, or its host ran out of memory")
"""

import re

from ift.errors import IftError

_AGAIN = "run again to go on from the last checkpoint"
# The kind, what shows it in the text of an error, and the words for it. The first that fits.
_KINDS = [
    ("startup", r"WorkerGroupStartup", "the workers could not be started"),
    ("disk", r"No space left on device", "the disk is full: a checkpoint could not be written"),
    ("memory", r"out of memory|OutOfMemoryError|running low on memory", "training ran out of memory"),
    (
        "node",
        r"node .*(died|dead)|NodeDiedError|unexpectedly unavailable|raylet.*(died|dead)",
        "a node was lost",
    ),
    ("hang", r"[Tt]imed out|[Tt]imeout(?!_)|Watchdog caught collective", "a collective operation hung"),
    (
        "network",
        r"connectFullMesh",
        "the workers cannot reach each other; GLOO_SOCKET_IFNAME can name each node's interface",
    ),
    (
        "worker",
        r"ActorDiedError|ActorUnavailableError|The actor died|worker process has died|[Cc]onnection (closed|reset)",
        "a worker was lost: it was killed, or its host ran out of memory",
    ),
]


class Lost(Exception):
    """An attempt that ended before its time. `kind` says why, `text` in words, `detail` as it was reported."""

    def __init__(self, kind: str, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.kind, self.text, self.detail = kind, text, detail

    def explained(self) -> IftError:
        """What the user is told when there are no more attempts."""
        if self.kind == "disk":
            return IftError(self.text, hint="free some room and run again")
        if self.kind == "memory":
            return IftError(
                f"{self.text}: {self.detail}",
                hint="lower train.micro_batch or data.max_length, or add workers; `ift plan SPEC` shows what fits",
            )
        return IftError(
            f"training failed: {self.text}" + (f" ({self.detail})" if self.detail else ""),
            hint=f"the whole error is in the log; {_AGAIN}",
        )


class BrokenCheckpoint(Exception):
    """The checkpoint to go on from is not what it was when it was written; an older one may be."""


def classify(error: BaseException) -> Exception:
    """The `IftError` that a worker raised, which no restart would mend; else what was lost."""
    failures = list((getattr(error, "worker_failures", None) or {}).values())
    causes = [_cause(failure) for failure in failures] or [_cause(error)]
    for cause in causes:
        if isinstance(cause, IftError):
            return cause
        if isinstance(cause, BrokenCheckpoint):
            return Lost("broken_checkpoint", str(cause))
    texts = [f"{type(cause).__name__}: {cause}" for cause in causes]
    if causes == [error]:  # of workers the controller tells in an error of its own, with theirs inside
        return Lost("controller", "Ray Train's controller was lost", _last_line(texts[0]))
    for kind, pattern, words in _KINDS:
        for cause, text in zip(causes, texts, strict=True):
            if re.search(pattern, text):
                return Lost(kind, words, _last_line(str(cause)))
    if not failures:
        return Lost("controller", "Ray Train's controller was lost", _last_line(texts[0]))
    # one worker's own fault shows in the others as a connection that was closed; the fault itself is not among those
    return Lost("error", _last_line(texts[0]))


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, out of what Ray and Ray Train wrapped it in."""
    for name in ("_base_exc", "cause", "controller_failure", "health_check_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    return error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
