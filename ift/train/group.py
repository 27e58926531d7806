"""How workers find each other: Ray Train's process group, over the network that Ray itself uses.

In:  the collectives' library, seconds before one that hangs is given up.
Out: what `TorchTrainer` takes as its `torch_config`.

    TorchTrainer(run, torch_config=backend("gloo", 1800), ...)

Gloo asks the system for the host's own name, which often is 127.0.0.1 (Debian writes it so into /etc/hosts), and then
tells the other nodes to connect there. Ray knows the address by which nodes reach each other: the interface that has
it is the one to name.

DeepSpeed makes process groups of its own and gives them no time-out, so torch's default holds for those, half an hour
on gloo: a collective in one of them would hang for that long, whatever the user asked for.
"""

import os
import socket
from datetime import timedelta
from typing import Any

_SETTINGS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # of the libraries; what the user has set stays


def backend(library: str, hang_timeout_s: int) -> Any:
    """`library` is gloo or nccl."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class Backend(_TorchBackend):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(choose_interface)
            worker_group.execute(limit_new_groups, hang_timeout_s)
            super().on_start(worker_group, backend_config)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Nothing: the workers' processes end next. Ray has each leave its group first, and waits 30 s for one
            that was stopped or cannot be reached."""

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config(backend=library, timeout_s=hang_timeout_s)


def choose_interface() -> None:
    """Name this node's interface to gloo and NCCL, unless Ray's address is the loopback one (a single machine)."""
    import ray.util

    name = interface_of(ray.util.get_node_ip_address())
    if name:
        for setting in _SETTINGS:
            os.environ.setdefault(setting, name)


def limit_new_groups(hang_timeout_s: int) -> None:
    """Give up a collective after so many seconds in every group made from now on without a time-out of its own."""
    from torch.distributed import distributed_c10d

    limit = timedelta(seconds=hang_timeout_s)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, default, limit)


def interface_of(address: str) -> str | None:
    """The interface that has `address`; None for a loopback one, or where no interface has it."""
    import psutil

    if address.startswith("127.") or address == "::1":
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            return str(name)
    return None
