"""The other nodes of a cluster are looked at, those that come, and no longer those that are lost."""

import time

import pytest

from ift.tracking.nodes import OtherNodes


@pytest.mark.slow
def test_nodes_that_come_and_go_are_told_of() -> None:
    import ray
    from ray.cluster_utils import Cluster

    store = 100 * 2**20
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
    try:
        ray.init(address=made.address, log_to_driver=False)
        told: list[str] = []
        with OtherNodes(notify=told.append) as nodes:
            assert nodes.sample() == {}, "the driver's own node is looked at by the driver"
            second = made.add_node(num_cpus=0, object_store_memory=store)
            found = _sampled(nodes, wanted=1)
            assert {key.partition("/")[0] for key in found} == {second.node_ip_address}
            assert 0 < found[f"{second.node_ip_address}/system_memory_usage_percentage"] <= 100
            made.remove_node(second)
            while nodes.sample():
                time.sleep(0.2)
        assert told == []
    finally:
        ray.shutdown()
        made.shutdown()


def _sampled(nodes: OtherNodes, wanted: int) -> dict[str, float]:
    """The first sample with so many nodes: an actor takes some seconds to start."""
    found: dict[str, float] = {}
    for _ in range(20):
        found = nodes.sample()
        if len({key.partition("/")[0] for key in found}) >= wanted:
            return found
    raise AssertionError(f"no {wanted} nodes in {found}")
