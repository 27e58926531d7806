"""How the cluster's other nodes fare: where the driver runs there may be no GPU at all.

In:  a Ray that this process is connected to.
Out: their samples, under the address of each.

    with OtherNodes(notify=print) as nodes:
        nodes.sample()      # {"10.0.0.2/gpu_0_utilization_percentage": 97.0, …}

An actor that takes no CPU looks on each node; MLflow shows `system/10.0.0.2/…` beside the driver's own.
"""

from collections.abc import Callable
from typing import Any

from ift.tracking import system

_PATIENCE_S = 5.0  # a node that has not answered by then is told of in a later look


class OtherNodes:
    """Every node that is alive, but for the driver's; nodes may come and go. Used by one thread at a time."""

    def __init__(self, *, notify: Callable[[str], None]) -> None:
        self._notify, self._told = notify, False
        self._lookouts: dict[str, Any] = {}  # by the id of their node
        self._pending: dict[str, Any] = {}  # what they have not answered yet

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
        except Exception as error:  # noqa: BLE001  (a head that is being started again: a look is missed)
            if not self._told:
                self._notify(f"the machines of the other nodes could not be looked at: {error}")
                self._told = True
            return {}

    def _asked(self) -> dict[str, float]:
        import ray

        here = ray.get_runtime_context().get_node_id()
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        nodes.pop(here, None)
        for gone in set(self._lookouts) - set(nodes):
            del self._lookouts[gone]
            self._pending.pop(gone, None)
        for node in nodes:
            if node not in self._lookouts:
                self._lookouts[node] = _lookout(node)
            # one that was late is waited for: on a busy node an actor takes long to start
            if node not in self._pending:
                self._pending[node] = self._lookouts[node].sample.remote()
        if not self._pending:
            return {}
        asked = {answer: node for node, answer in self._pending.items()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE_S)
        found: dict[str, float] = {}
        for answer in answered:
            node = asked[answer]
            del self._pending[node]
            try:
                found |= {f"{nodes[node]}/{key}": value for key, value in ray.get(answer).items()}
            except ray.exceptions.RayError:  # its node, or the actor, is gone: the next look has another
                del self._lookouts[node]
        return found


def _lookout(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_restarts=0)(system.Machine).options(scheduling_strategy=there).remote()
