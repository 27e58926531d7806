"""What ended an attempt: told by what Ray and its workers really say, and in words that hold a next move."""

import pickle
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from ift.errors import IftError
from ift.train.faults import BrokenCheckpoint, Lost, classify


class Failed(Exception):
    """As Ray Train's: what each rank raised."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


class Wrapped(Exception):
    """As Ray Train wraps what a worker raised."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("Traceback …")
        self._base_exc = inner


# Texts as Ray 2.60, gloo and CUDA wrote them.
TEXTS = [
    ("worker", "ActorDiedError: The actor died unexpectedly before finishing this task."),
    (
        "worker",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5029",
    ),
    ("node", "The actor died because its node has died. Node Id: 3f0c, Ip: 10.0.0.2"),
    ("hang", "[unbound_buffer.cc:116] Timed out waiting 60000ms for recv operation to complete"),
    ("hang", "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE)"),
    ("memory", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"),
    ("memory", "Task was killed due to the node running low on memory."),
    ("disk", "[Errno 28] No space left on device: '/mnt/step-40'"),
    ("network", "Gloo connectFullMesh failed with [pair.cc:144] no error"),
    ("startup", "WorkerGroupStartupTimeoutError: The worker group startup timed out after 60.0 seconds"),
    ("error", "list index out of range"),
]


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_the_kind_of_a_fault_is_told_from_its_text(kind: str, text: str) -> None:
    found = classify(Failed(rank_0=Wrapped(RuntimeError(text))))
    assert isinstance(found, Lost)
    assert found.kind == kind


def test_a_fault_of_one_worker_counts_before_the_connections_that_it_closed() -> None:
    closed, full = RuntimeError("Connection reset by peer"), RuntimeError("CUDA out of memory. Tried to")
    found: Any = classify(Failed(rank_0=closed, rank_1=full))
    assert found.kind == "memory"


def test_a_mistake_of_the_users_is_handed_on_as_it_is() -> None:
    mistake = IftError("no such module `q_prj`", hint="did you mean `q_proj`?")
    assert (
        classify(Failed(rank_0=RuntimeError("Connection reset by peer"), rank_1=Wrapped(mistake))) is mistake
    )


def test_a_broken_checkpoint_is_told_apart() -> None:
    found: Any = classify(Failed(rank_0=Wrapped(BrokenCheckpoint("rank-00001.safetensors is cut"))))
    assert (found.kind, found.text) == ("broken_checkpoint", "rank-00001.safetensors is cut")
    assert str(pickle.loads(pickle.dumps(BrokenCheckpoint("x")))) == "x"  # it comes from another process


def test_what_is_no_workers_fault_is_the_controllers() -> None:
    found: Any = classify(RuntimeError("The actor 3f0c is gone"))
    assert (found.kind, found.text) == ("controller", "Ray Train's controller was lost")


def test_a_dead_actor_is_a_worker_where_ray_train_reports_it_and_else_its_controller() -> None:
    dead = ActorDiedError()
    assert "The actor died" in str(dead)
    found: Any = classify(Failed(rank_0=dead))
    assert found.kind == "worker"
    found = classify(dead)
    assert found.kind == "controller"


def test_the_detail_is_what_was_said_without_the_name_of_its_class() -> None:
    found: Any = classify(Failed(rank_0=Wrapped(MemoryError("CUDA out of memory. Tried to"))))
    assert found.detail == "CUDA out of memory. Tried to"
    found = classify(Failed(rank_0=KeyError("question")))  # in words of ours there is nothing to say
    assert found.text == "KeyError: 'question'"


def test_the_words_hold_the_next_move() -> None:
    last = Lost("worker", "a worker was lost", "The actor died").explained()
    assert str(last).splitlines() == [
        "training failed: a worker was lost (The actor died)",
        "  next:   the whole error is in the log; run again to go on from the last checkpoint",
    ]
    assert "`ift plan SPEC` shows what fits" in str(Lost("memory", "training ran out of memory").explained())
    assert "free some room and run again" in str(Lost("disk", "the disk is full").explained())
