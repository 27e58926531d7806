"""Nodes that come and go, as real Ray nodes on this machine: the run goes on with what there is, and misses nothing."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import PACKS, Told, fit, job, with_fault

from ift.data.stream import Stream
from ift.train import trainer
from ift.train.job import Job

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
__all__ = ["job"]  # a fixture


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head with room for one worker; the tests add the others."""
    import ray
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    # what `cluster.connect` sets before it starts or joins a Ray
    patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 2**27})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()


def add(nodes: Any) -> Any:
    return nodes.add_node(num_cpus=2, object_store_memory=2**27)


def gates(*places: tuple[int, int], until: Path) -> Callable[[int, int, Any], None]:
    """In each of these steps, of so many workers, they wait until the driver wants a pause, or a file is there.

    So what the driver does in the meantime is sure to find them at work, however busy the machine.
    """

    def wait(step: int, rank: int, mailbox: Any) -> None:
        import ray

        if (step, torch.distributed.get_world_size()) in places:
            deadline = time.monotonic() + 400
            while not until.exists() and not ray.get(mailbox.asked.remote()):
                assert time.monotonic() < deadline, "nobody asked for a pause"
                time.sleep(0.2)

    return wait


class Watch(Told):
    """Says when a step of so many workers is done."""

    def __init__(self) -> None:
        super().__init__()
        self.world = 0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            self.world = event["world"]
        super().__call__({**event, "world": self.world})

    def wait_for(self, step: int, world: int, run: Future[Any]) -> None:
        while not any(e["step"] == step and e["world"] == world for e in self.of("step")):
            if run.done():
                run.result()
                raise AssertionError(f"the run ended before step {step} of {world} workers: {self.events}")
            time.sleep(0.1)


def drain(node_id: str, address: str) -> None:
    """The notice that a cloud gives of a node that it will take away."""
    subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            f"--address={address}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot",
            "--deadline-remaining-seconds=600",
        ],
        check=True,
        timeout=120,
    )


def test_a_run_shrinks_and_grows_with_its_cluster(
    nodes: Any, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, then a notice for a node: one; a new node: two; that node is lost: one, to the end."""
    job = replace(job, global_batch=1, checkpoint_steps=1, epoch_ends=(PACKS,), validation_packs=0)
    whole = Told()
    fit(job, tmp_path / "whole", whole, workers=1)

    first, told, lost = add(nodes), Watch(), tmp_path / "lost"
    monkeypatch.setattr(trainer.worker, "run", with_fault(gates((3, 2), (6, 1), (9, 2), until=lost)))
    with ThreadPoolExecutor(1) as thread:  # Ray starts nodes on the main thread alone
        run = thread.submit(fit, job, tmp_path / "elastic", told, fewest=1, most=2, max_failures=5)
        told.wait_for(2, 2, run)
        drain(first.node_id, nodes.address)
        told.wait_for(4, 1, run)
        second = add(nodes)
        told.wait_for(8, 2, run)
        nodes.remove_node(second, allow_graceful=False)
        lost.touch()
        result = run.result()
    starts, restarts = told.of("start"), told.of("restart")
    # that a node is lost shows after a while: until then it is counted on, and the other one has both workers
    assert [e["world"] for e in starts][:3] == [2, 1, 2]
    assert [e["reason"] for e in restarts[:2]] == ["preemption", "growth"]
    assert {e["reason"] for e in restarts[2:]} <= {"node", "worker", "controller", "network", "startup"}
    # a pause comes with a checkpoint: not a step is done again for it
    assert [e["step"] for e in starts[:3]] == [0, 3, 6]
    assert [e["step"] for e in restarts[:2]] == [3, 6]
    assert result["steps"] == PACKS
    last = {e["step"]: e for e in told.of("step")}
    tokens = [len(p.tokens) for p in Stream(job.stream_dir).read(range(PACKS))]
    assert [last[step]["tokens"] for step in range(1, PACKS + 1)] == tokens
    for event in whole.of("step"):
        assert last[event["step"]]["loss"] == pytest.approx(event["loss"], rel=1e-5)
