"""A cluster seen from inside: what every node has, its clock, its way to the others.

In:  a Ray that this process is connected to.
Out: what JSON can hold, for the judgements in ift/doctor/cluster.py.

As a job's entrypoint (`python -m ift.doctor.survey`) it prints that as one line behind `MARK`.
"""

import argparse
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

MARK = "ift-doctor:"
_START_S = 120.0  # for a process on a node, with the packages that it imports
_COLLECTIVE_S = 60  # before a collective that hangs is given up
_PINGS = 9
_MOVED = 16 << 20  # bytes that every node fetches out of the object store
_SIZES = {"gloo": (16 << 20, 5), "nccl": (256 << 20, 20)}  # bytes of an all-reduce, and how many


def survey(*, storage: str | None = None) -> dict[str, Any]:
    """Every node's facts, its clock against this process's, and an all-reduce between nodes, one rank a node."""
    import numpy as np
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    looks = {node["NodeID"]: _on(node, _Look) for node in alive}
    asked = {name: actor.facts.remote() for name, actor in looks.items()}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_START_S)
    block = ray.put(np.zeros(_MOVED, dtype=np.uint8))
    nodes = []
    for node in alive:
        actor, facts = looks[node["NodeID"]], asked[node["NodeID"]]
        found: dict[str, Any] = {
            "address": node["NodeManagerAddress"],
            "store": int(node["Resources"].get("object_store_memory", 0)),
            "gpus": int(node["Resources"].get("GPU", 0)),
        }
        try:
            if facts not in ready:
                raise TimeoutError(f"no process of ift's began on it within {_START_S:.0f} s")
            found["facts"] = ray.get(facts)
            found["clock"] = _clock(actor)
            started = time.monotonic()
            ray.get(actor.take.remote(block), timeout=60)
            found["moved"] = {"bytes": _MOVED, "seconds": time.monotonic() - started}
            if storage:
                found["storage"] = ray.get(actor.storage.remote(storage), timeout=120)
        except (ray.exceptions.RayError, TimeoutError) as error:
            found["error"] = _short(error)
        nodes.append(found)
    for actor in looks.values():
        ray.kill(actor)
    return {
        "nodes": nodes,
        "dead": sum(not node["Alive"] for node in ray.nodes()),
        "all_reduce": all_reduce(alive),
    }


class _Look:
    """A process on a node."""

    def facts(self) -> dict[str, Any]:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray hides the GPUs from whoever asked for none
            del os.environ["CUDA_VISIBLE_DEVICES"]
        from ift.doctor import look

        return look.facts()

    def now(self) -> float:
        return time.time()

    def take(self, block: Any) -> int:
        """Ray has brought `block` here when this begins."""
        return len(block)

    def storage(self, url: str) -> dict[str, Any]:
        from ift.doctor import services

        return services.storage(url).as_json()


def _on(node: dict[str, Any], kind: type, **options: Any) -> Any:
    """An actor of that kind, there and nowhere else."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=there, **options).remote()


def _clock(actor: Any) -> dict[str, float]:
    """Seconds by which a node's clock is ahead of ours, and how sure that is: the quickest answer counts, whose
    moment lies between question and arrival (as NTP has it, RFC 5905)."""
    import ray

    best = (float("inf"), 0.0)
    for _ in range(_PINGS):
        asked = time.time()
        there = ray.get(actor.now.remote(), timeout=60)
        came = time.time()
        best = min(best, ((came - asked) / 2, there - (asked + came) / 2))
    return {"ahead": best[1], "give_or_take": best[0]}


# ── an all-reduce between nodes ──


def all_reduce(nodes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How fast a sum over nodes is, one rank a node: NCCL between those with GPUs, else gloo. None of one node.

    `bus` is bytes a second as nccl-tests counts them (PERFORMANCE.md there, "Bus bandwidth"): what was summed by the
    time it took, times 2(n-1)/n for n ranks, which is what each has to send and to receive. It can be compared with the
    speed of the network whatever the number of ranks.
    """
    import ray

    with_gpus = [node for node in nodes if node["Resources"].get("GPU")]
    ranks, library = (with_gpus, "nccl") if with_gpus else (list(nodes), "gloo")
    if len(ranks) < 2:
        return None
    size, times = _SIZES[library]
    found: dict[str, Any] = {"library": library, "ranks": len(ranks), "bytes": size, "times": times}
    options = {"num_gpus": 1} if library == "nccl" else {}
    actors = [_on(node, _Rank, **options) for node in ranks]
    try:
        meeting = ray.get([actor.meet.remote() for actor in actors], timeout=_START_S)[0]
        jobs = [
            actor.reduce.remote(library, rank, len(ranks), meeting, size, times)
            for rank, actor in enumerate(actors)
        ]
        seconds = max(ray.get(jobs, timeout=2 * _COLLECTIVE_S))
        found |= {"seconds": seconds, "bus": size / seconds * 2 * (len(ranks) - 1) / len(ranks)}
    except ray.exceptions.GetTimeoutError:
        busy = ": are all GPUs taken?" if library == "nccl" else ""
        found["error"] = f"no answer within {_START_S:.0f} s{busy}"
    except ray.exceptions.RayError as error:
        found["error"] = _short(error)
    finally:
        for actor in actors:
            ray.kill(actor)
    return found


class _Rank:
    """A rank of the all-reduce, in a process of its own."""

    def meet(self) -> str:
        """Where rank 0 waits for the others: this node's address and a port that was free."""
        import ray

        from ift.train.group import choose_interface

        choose_interface()
        address = ray.util.get_node_ip_address()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
            free.bind((address, 0))
            return f"tcp://{f'[{address}]' if ':' in address else address}:{free.getsockname()[1]}"

    def reduce(self, library: str, rank: int, ranks: int, meeting: str, size: int, times: int) -> float:
        """Seconds of one all-reduce of `size` bytes, the mean of `times`; the first ones are not counted."""
        import torch
        import torch.distributed as dist

        device = torch.device("cuda", 0) if library == "nccl" else torch.device("cpu")
        dist.init_process_group(
            library,
            init_method=meeting,
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=_COLLECTIVE_S),
        )
        try:
            block = torch.ones(size // 4, dtype=torch.float32, device=device)
            for _ in range(2):
                dist.all_reduce(block)
            wait = torch.cuda.synchronize if library == "nccl" else dist.barrier
            wait()
            started = time.monotonic()
            for _ in range(times):
                dist.all_reduce(block)
            wait()
            return (time.monotonic() - started) / times
        finally:
            dist.destroy_process_group()


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:300]


def main() -> None:
    """A job's entrypoint."""
    import ray

    parser = argparse.ArgumentParser()
    parser.add_argument("--storage")
    arguments = parser.parse_args()
    ray.init(log_to_driver=False)
    print(f"\n{MARK}{json.dumps(survey(storage=arguments.storage))}", flush=True)


if __name__ == "__main__":
    main()
