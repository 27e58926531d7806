"""The interface that workers name to gloo and NCCL; how long they wait for each other."""

import os
import socket
import time
from pathlib import Path
from typing import Any

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


def _slow_work(rank: int, world: int, folder: Path) -> None:
    from types import SimpleNamespace

    import torch.distributed as dist

    from ift.train.engine import DeepSpeedEngine

    engine: Any = object.__new__(DeepSpeedEngine)
    engine.device = torch.device("cpu")
    written = list[dict[str, Any]]()

    def save_pretrained(_: Path, **settings: Any) -> None:
        time.sleep(4)
        written.append(settings)

    model = SimpleNamespace(
        config=SimpleNamespace(use_cache=False), save_pretrained=save_pretrained, state_dict=dict
    )
    engine.engine = SimpleNamespace(module=model, zero_optimization_stage=lambda: 2)
    engine._job = SimpleNamespace(adapter=None)
    group.limit_new_groups(1)
    whole, dist.group.WORLD = dist.group.WORLD, dist.new_group(range(world))  # which waits for a second
    started = time.monotonic()
    engine.export(folder)
    dist.group.WORLD = whole
    assert time.monotonic() - started >= 4
    assert written == ([{"state_dict": {}, "max_shard_size": "5GB"}] if rank == 0 else [])

    def failing() -> None:
        raise OSError("the disk is full")

    if rank:
        engine._while_all_wait(None)
    else:
        with pytest.raises(OSError, match="the disk is full"):
            engine._while_all_wait(failing)


def test_an_export_may_take_longer_than_a_group_waits(tmp_path: Path) -> None:
    ranks.run(_slow_work, 2, tmp_path, tmp_path / "model")


def test_a_group_that_is_made_without_a_timeout_gives_up_too(tmp_path: Path) -> None:
    ranks.run(_hang, 2, tmp_path, tmp_path / "given-up")


def test_workers_that_are_about_to_end_are_not_waited_for() -> None:
    config = group.backend("gloo", 1800)
    nobody_answers = object()
    config.backend_cls().on_shutdown(nobody_answers, config)
