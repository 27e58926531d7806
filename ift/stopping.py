"""A stop that was asked for: SIGTERM, which Ray sends to a job, Kubernetes to a container, `kill` to a process.

In:  the signal.
Out: a `KeyboardInterrupt` on the main thread; at once, or at the end of what is to be finished first.

    with heeded():
        prepare()                  # ends where it is
        with finished_first():
            train()                # looks at `asked()`, writes a checkpoint and returns; then it ends

A second signal ends at once whatever there is to finish.
"""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PATIENCE = "RAY_JOB_STOP_WAIT_TIME_S"  # the variable by which Ray gives a job time to stop
SHORT_S = 60.0  # a stop with less may end without a checkpoint
_asked = threading.Event()
_finishing = threading.Event()


def asked() -> bool:
    """Whether somebody wants this process to stop."""
    return _asked.is_set()


def patience(environment: Mapping[str, str]) -> float:
    """The seconds that Ray waits between asking a job with these variables to stop and killing it."""
    return float(environment.get(PATIENCE, 3))


def heed() -> None:
    """Heed SIGTERM from now on. Ray sets a handler of its own when it connects, so: once more behind that."""
    if threading.current_thread() is threading.main_thread():  # Python takes handlers from no other
        signal.signal(signal.SIGTERM, _on_signal)


@contextmanager
def heeded() -> Iterator[None]:
    """SIGTERM ends the block by a `KeyboardInterrupt`; behind it the signal does what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    _asked.clear()
    heed()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def finished_first() -> Iterator[None]:
    """A signal within the block is only noted, for `asked`; the `KeyboardInterrupt` comes at the block's end."""
    _finishing.set()
    try:
        yield
    finally:
        _finishing.clear()
    if asked():
        raise KeyboardInterrupt


def _on_signal(number: int, frame: Any) -> None:
    again = asked()
    _asked.set()
    if again or not _finishing.is_set():
        raise KeyboardInterrupt
