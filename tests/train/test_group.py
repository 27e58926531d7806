"""The interface that workers name to gloo and NCCL."""

import os
import socket

import psutil
import pytest

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
    for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(setting, raising=False)
    if asked:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", asked)
    group.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == (asked or "veth0")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "veth0"
    for setting in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(setting)
