"""The driver's side of training: attempts, until one reaches the end.

In:  a `Job`, how many workers it may have, where checkpoints lie.
Out: rank 0's summary; `on_event` hears of every step while it goes on.

    fit(job, fewest=1, most=2, gpus=0, scratch=run / "train", max_failures=3, on_event=print)

Each attempt is one Ray Train run, without the restarts of its own: every restart is decided here, so that it can be
counted and told. What ended an attempt decides what comes next:

    a worker, node or controller is lost, a collective hangs    again from the last checkpoint, on what is left
    a notice that a node will go, or room for more workers      a checkpoint at once, then again
    a stop that was asked for (SIGTERM)                         a checkpoint at once, then the end
    out of memory                                               again with what the planner would choose next
    a refusal, a loss that is not finite                        the end, with the reason
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ift import cluster, places, stopping
from ift.cluster import Node
from ift.errors import IftError
from ift.train import checkpoint, faults, worker
from ift.train.feed import WORKER_CPUS
from ift.train.group import backend
from ift.train.job import Job
from ift.train.mailbox import Event, Mailbox

_LOOK_EVERY_S = 1.0  # at what workers tell, at the nodes
_WAIT_FOR_NODES_S = 3600.0
_SURE_S = 5.0  # so long must room for more workers last before training stops for it
# On CPUs, glibc gives each large tensor back to the kernel and gets it anew, zeroed: a seventh of a step. So what was
# freed is kept, in the one arena that is not cut into heaps of 64 MiB (mallopt(3)). Where memory is short, and the plan
# divides the model or computes activations again, that would take a fifth to a third more of it.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def fit(
    job: Job,
    *,
    fewest: int,
    most: int,
    gpus: int,
    scratch: Path,
    max_failures: int,
    on_event: Callable[[Event], None],
    hang_timeout_s: int = 1800,
    smaller: Callable[[Job], tuple[Job, str] | None] = lambda _: None,
    score: Callable[[Path], float] | None = None,
    look: Callable[[int, Path], float] | None = None,
    wait_for_nodes_s: float = _WAIT_FOR_NODES_S,
) -> dict[str, Any]:
    """Train to the end; where `job.checkpoints` holds a checkpoint, go on from it.

    `max_failures` counts attempts that were lost since a checkpoint last came out of one. `smaller` gives a job that
    takes less memory and says what is different; `score` grades an exported model, `look` says what the one behind
    a step has forgotten. Both are called on a thread of their own, one after the other, while training goes on.

    Raises `IftError` where training refuses or fails; the workers' last error is in its text. Raises
    `KeyboardInterrupt` behind a checkpoint where a stop was asked for (stopping.py).
    """
    places.check(job.checkpoints)
    failures, furthest, broken, nodes = 0, -1, set[str](), _Nodes(gpus)
    while True:
        checkpoint.clean(job.checkpoints)
        found = checkpoint.latest(
            job.checkpoints,
            passed_over=broken,
            note=lambda text: on_event({"kind": "note", "text": text}),
        )
        if found and found.step > furthest:
            failures, furthest = 0, found.step
        world = _room(fewest, most, nodes, wait_for_nodes_s, on_event)
        attempt = _Attempt(job, found, world, most, nodes, scratch, hang_timeout_s, on_event, score, look)
        try:
            summary = attempt.run()
        except faults.Lost as lost:
            if lost.kind == "broken_checkpoint" and found:
                broken.add(found.name)
            elif lost.kind == "memory" and (less := smaller(job)):
                job, words = less
                on_event({"kind": "note", "text": f"{lost.text}; it goes on with {words}"})
                continue
            else:
                failures += 1
            if failures > max_failures or lost.kind == "memory":
                raise lost.explained() from lost
            on_event({"kind": "restart", "reason": lost.kind, "text": lost.text, "failures": failures})
        else:
            if "paused" not in summary:
                return summary
            if summary["paused"] == "stop":
                on_event(
                    {"kind": "note", "text": f"stopped behind step {summary['step']:,}, with a checkpoint"}
                )
                raise KeyboardInterrupt
            on_event({"kind": "restart", "reason": summary["paused"], "step": summary["step"]})


@dataclass
class _Nodes:
    """What the cluster has for workers."""

    gpus: int
    left: set[str] = field(default_factory=set)  # ids; a node that leaves never comes back under the same one

    def leaving(self) -> set[str]:
        """The ids of nodes of which it is known that they will go, or went: Ray lists some as alive after that."""
        import ray

        self.left.update(ray._private.state.state.get_draining_nodes() or {})
        return self.left

    def capacity(self) -> int:
        """How many workers the nodes have room for."""
        import ray

        leaving = self.leaving()
        return sum(
            Node.of(node["NodeManagerAddress"], node["Resources"]).room(gpus=bool(self.gpus))
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in leaving
        )


@dataclass
class _Attempt:
    """One Ray Train run: from the last checkpoint to the end, to a fault, or to a pause that was asked for."""

    job: Job
    found: checkpoint.Found | None
    world: int
    most: int
    nodes: _Nodes
    scratch: Path
    hang_timeout_s: int
    on_event: Callable[[Event], None]
    score: Callable[[Path], float] | None
    look: Callable[[int, Path], float] | None
    failure: Exception | None = None  # of whoever listens to what the workers tell

    def run(self) -> dict[str, Any]:
        """Rank 0's summary. Raises `faults.Lost`, or the `IftError` that a worker or `on_event` raised."""
        import ray
        import ray.exceptions
        import ray.train
        from ray.train.torch import TorchTrainer

        class Trainer(TorchTrainer):  # type: ignore[misc]
            """Leaves Ctrl-C to us; Ray Train's own handler would end this process by `sys.exit`."""

            def _register_sigint_handler(self, controller: Any) -> None:
                """Nothing: `fit` then ends in a KeyboardInterrupt, and the workers with their cluster or job."""

        mailbox = ray.remote(num_cpus=0, scheduling_strategy=_here())(Mailbox).remote()
        name = uuid.uuid4().hex[:12]
        trainer = Trainer(
            worker.run,
            train_loop_config={
                "job": self.job,
                "mailbox": mailbox,
                "found": self.found,
                "attempt": name,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.world,
                use_gpu=bool(self.nodes.gpus),
                resources_per_worker={"CPU": WORKER_CPUS, **({"GPU": 1} if self.nodes.gpus else {})},
                # GPUs of a node are near each other; on CPU each worker should have a node's memory
                placement_strategy="PACK" if self.nodes.gpus else "SPREAD",
            ),
            torch_config=backend("nccl" if self.nodes.gpus else "gloo", self.hang_timeout_s),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=str(self.scratch / "ray"),
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": self._environment()},
            ),
        )
        self.mailbox, self.over = mailbox, threading.Event()
        self.to_grade: queue.Queue[Event | None] = queue.Queue()
        grader = threading.Thread(target=self._grade_all, daemon=True)
        grader.start()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            result = trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            if self.failure is None:
                raise faults.classify(error) from error
        finally:
            self.over.set()
            watcher.join(timeout=60)
            self._end_workers()
            self.to_grade.put(None)
        if self.failure is not None:
            raise self.failure
        grader.join()  # the last looks; where an attempt failed, whoever grades for it is left to itself
        summary: dict[str, Any] = result.return_value or {}
        return summary

    def _environment(self) -> dict[str, str]:
        """Variables of the workers' processes, read before our code begins."""
        if not self.nodes.gpus:
            return {} if self.job.zero_stage or self.job.activation_checkpointing else KEEP_MEMORY
        if self.job.offload == "none":
            return {}
        # an optimizer in the host's memory works with a GPU's share of the cores; Ray would give it one thread
        least = min((node.cpus / node.gpus for node in cluster.nodes_now() if node.gpus), default=1)
        return {"OMP_NUM_THREADS": str(max(1, int(least)))}

    def _watch(self) -> None:
        """Hand on what rank 0 tells, look after the nodes; what goes wrong is left in `failure`."""
        last = False
        room_since: float | None = None
        try:
            while not last:
                last = self.over.wait(_LOOK_EVERY_S / 2)
                self._hand_on()
                if not last:
                    room_since = self._look_at_nodes(room_since)
        except Exception as error:  # noqa: BLE001  (a thread: `run` raises it on the main one)
            self.failure = error
            self._end_workers()  # or `fit` would train on without anybody who listens

    def _hand_on(self) -> None:
        import ray

        for event in ray.get(self.mailbox.take.remote(), timeout=60):
            if event["kind"] in ("candidate", "look"):
                self.to_grade.put(event)
            else:
                self.on_event(event)

    def _grade_all(self) -> None:
        while event := self.to_grade.get():
            self._grade(event)

    def _grade(self, event: Event) -> None:
        """Grade an exported model while training goes on."""
        kind, step, folder = event["kind"], event["step"], Path(event["folder"])
        try:
            if kind == "look":
                assert self.look is not None, "a model to look at, and nobody who does"
                found: float | str = self.look(step, folder)
            else:
                assert self.score is not None, "a candidate, and nobody to grade it"
                found = self.score(folder)
        except Exception as error:  # noqa: BLE001  (a thread: the workers are told, and refuse)
            found = f"{type(error).__name__}: {error}"
            if kind == "look":  # nobody may wait for it
                self.on_event({"kind": "note", "text": f"no look at the probes behind step {step}: {found}"})
        self.mailbox.tell_score.remote(f"{kind}/{step}", found)

    def _look_at_nodes(self, room_since: float | None) -> float | None:
        """Ask for a pause where a worker's node will go, or where more workers have had room for a while."""
        import ray

        if stopping.asked():
            self.mailbox.ask.remote("stop")
            return room_since
        leaving = self.nodes.leaving()
        joined = ray.get(self.mailbox.workers.remote(), timeout=60)
        if leaving & {node for node, _ in joined.values()}:
            self.mailbox.ask.remote("preemption")
        elif len(joined) == self.world < self.most and self.nodes.capacity() > self.world:
            room_since = room_since or time.monotonic()
            if time.monotonic() - room_since >= _SURE_S:
                self.mailbox.ask.remote("growth")
            return room_since
        return None

    def _end_workers(self) -> None:
        """Kill what is left of this attempt, such as a worker whose controller was lost before it could."""
        import ray
        import ray.exceptions

        try:
            joined: Mapping[int, tuple[str, Any]] = ray.get(self.mailbox.workers.remote(), timeout=30)
            for _, actor in joined.values():
                ray.kill(actor)
        except (ray.exceptions.RayError, ValueError):
            pass  # the mailbox or the actor is gone already


def _here() -> Any:
    """On the driver's own node, so that no other node's end takes it away."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _room(fewest: int, most: int, nodes: _Nodes, patience_s: float, on_event: Callable[[Event], None]) -> int:
    """The number of workers for the next attempt; waits for nodes where there is no room for the fewest.

    An autoscaler is asked for them: it would not know, nothing is running that lacks them. Raises `IftError` where
    there are none after `patience_s`.
    """
    from ray.autoscaler.sdk import request_resources

    deadline, told = time.monotonic() + patience_s, False
    while True:
        if stopping.asked():
            raise KeyboardInterrupt
        if (room := nodes.capacity()) >= fewest:
            if told:
                request_resources(bundles=[])
            return min(most, room)
        if time.monotonic() > deadline:
            raise IftError(
                f"the cluster has had room for {room} workers for {patience_s / 60:.0f} minutes",
                wanted=f"room for {fewest}" + (", each with a GPU" if nodes.gpus else ""),
                hint="run again when its nodes are back, or lower cluster.workers; [fewest, most] goes on with fewer",
            )
        if not told:
            on_event(
                {
                    "kind": "status",
                    "text": f"waiting for nodes: room for {room} of {fewest} workers",
                    "room": room,
                }
            )
            told = True
            request_resources(bundles=[{"GPU": 1} if nodes.gpus else {"CPU": 1}] * fewest)
        time.sleep(_LOOK_EVERY_S)
