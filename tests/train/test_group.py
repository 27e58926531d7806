"""The interface that workers name to gloo and NCCL; how long they wait for each other."""

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
import ranks
import torch

from ift.train import group


def test_the_interface_is_the_one_that_has_rays_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for a in addresses:
            if a.family == socket.AF_INET and not a.address.startswith("127."):
                assert group.interface_of(a.address) == name


def test_a_single_machine_names_none() -> None:
    assert group.interface_of("127.0.0.1") is None
    assert group.interface_of("::1") is None
    assert group.interface_of("192.0.2.1") is None  # an address for documents: nobody has it


@pytest.mark.parametrize("asked", ["eth7", None])
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> None:
    import ray.util

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr(group, "interface_of", lambda address: {"10.0.0.1": "veth0"}[address])
    monkeypatch.setattr(os, "environ", {"GLOO_SOCKET_IFNAME": asked} if asked else {})
    group.choose_interface()
    assert os.environ == {"GLOO_SOCKET_IFNAME": asked or "veth0", "NCCL_SOCKET_IFNAME": "veth0"}


def _hang(rank: int, world: int, given_up: Path) -> None:
    import torch.distributed as dist

    group.limit_new_groups(2)
    made_later = dist.new_group(range(world))  # as DeepSpeed makes its own
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            dist.all_reduce(torch.ones(1), group=made_later)
        given_up.touch()
    else:
        for _ in range(600):
            if given_up.exists():
                return
            time.sleep(0.1)
        raise AssertionError("the other rank still waits in a group that was made without a time-out")


def test_a_group_that_is_made_without_a_timeout_gives_up_too(tmp_path: Path) -> None:
    ranks.run(_hang, 2, tmp_path, tmp_path / "given-up")


def test_workers_that_are_about_to_end_are_not_waited_for() -> None:
    config = group.backend("gloo", 1800)
    nobody_answers = object()
    config.backend_cls().on_shutdown(nobody_answers, config)
