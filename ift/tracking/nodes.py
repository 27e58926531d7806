"""How the cluster's other nodes fare: where the driver runs there may be no GPU at all.

In:  a Ray that this process is connected to.
Out: their samples, under the address of each.

    with OtherNodes() as nodes:
        nodes.sample()      # {"10.0.0.2/gpu_0_utilization_percentage": 97.0, …}

An actor that takes no CPU looks on each node; MLflow shows `system/10.0.0.2/…` beside the driver's own.
"""

from contextlib import suppress
from typing import Any

from ift.tracking import system

_PATIENCE_S = 5.0  # a node that does not answer misses a look


class OtherNodes:
    """Every node that is alive, but for the driver's; nodes may come and go. Used by one thread at a time."""

    def __init__(self) -> None:
        self._lookouts: dict[str, Any] = {}  # by the id of their node

    def __enter__(self) -> "OtherNodes":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for lookout in self._lookouts.values():
            ray.kill(lookout)
        self._lookouts.clear()

    def sample(self) -> dict[str, float]:
        """What each of them answers within five seconds; a node that is being lost is left out."""
        try:
            return self._asked()
        except Exception:  # noqa: BLE001  (a head that is being started again: a look is missed, the run goes on)
            return {}

    def _asked(self) -> dict[str, float]:
        import ray

        here = ray.get_runtime_context().get_node_id()
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        nodes.pop(here, None)
        for gone in set(self._lookouts) - set(nodes):
            del self._lookouts[gone]
        for node in set(nodes) - set(self._lookouts):
            self._lookouts[node] = _lookout(node)
        asked = {self._lookouts[node].sample.remote(): node for node in nodes}
        answered, late = (
            ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE_S) if asked else ([], [])
        )
        for answer in late:
            ray.cancel(answer)
        found: dict[str, float] = {}
        for answer in answered:
            with suppress(
                ray.exceptions.RayError
            ):  # its node, or the actor, is gone: the next look sees to it
                sampled = ray.get(answer)
                found |= {f"{nodes[asked[answer]]}/{key}": value for key, value in sampled.items()}
        return found


class _Lookout:
    """On a node."""

    def __init__(self) -> None:
        self._machine = system.Machine()

    def sample(self) -> dict[str, float]:
        return self._machine.sample()


def _lookout(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_restarts=0)(_Lookout).options(scheduling_strategy=there).remote()
