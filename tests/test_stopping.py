"""SIGTERM: at once, or behind what is to be finished."""

import os
import signal
import time

import pytest

from ift import stopping


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # Python runs a handler between two instructions


def test_a_signal_ends_the_block_and_no_more() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping.heeded():
        terminate()
    assert signal.getsignal(signal.SIGTERM) is before


def work(done: list[str], *, signals: int) -> None:
    with stopping.heeded():
        with stopping.finished_first():
            assert not stopping.asked()
            for _ in range(signals):
                terminate()
            assert stopping.asked()
            done.append("a checkpoint")
        done.append("more")


def test_what_is_to_be_finished_is_finished_first() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, signals=1)
    assert done == ["a checkpoint"]
    with stopping.heeded():
        assert not stopping.asked(), "a stop is over with the run that it was for"


def test_a_second_signal_does_not_wait() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done, signals=2)
    assert done == []


def test_without_a_signal_nothing_happens() -> None:
    with stopping.heeded(), stopping.finished_first():
        pass
