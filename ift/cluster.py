"""Ray: start it here or connect to a cluster, and leave nothing behind.

In:  an address, or none; how many workers training asks for.
Out: a running Ray for the length of a `with` block.

    with connect(None, workers=2) as resources:
        ...
"""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift.errors import IftError

OBJECT_STORE = 2**30  # bytes, of a Ray that is started here


@dataclass(frozen=True)
class Resources:
    """What the cluster offers."""

    cpus: int
    gpus: int
    nodes: int


@contextmanager
def connect(address: str | None, *, workers: int | None) -> Iterator[Resources]:
    """Connect to `address` (or RAY_ADDRESS, which a submitted job has set), else start a Ray that ends with the block.

    A local Ray is told of two CPUs more than training takes: they are logical, and without them the tasks that
    read and tokenize would wait for ever.
    """
    # Workers see the accelerators that Ray gives them, and no more; a task without GPUs should see none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # ift.train.trainer looks itself
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a process more, and nobody's business
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Ray has a process a core for it
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_gpu() else "cpu")
    if (
        not _has_gpu()
    ):  # nothing is compiled on a CPU, and DeepSpeed imports torch's compiler all the same: 4 s
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    runtime_env = {"env_vars": {name: os.environ[name] for name in _CARRIED if name in os.environ}}
    try:
        if address:
            ray.init(address=address, log_to_driver=False, runtime_env=runtime_env)
        else:
            _start(
                address="local",  # without it Ray would join whatever `ray start` has left on this machine
                num_cpus=max(os.cpu_count() or 1, workers or 2) + 2,
                include_dashboard=True,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE,
                runtime_env=runtime_env,
            )
    except ConnectionError as error:
        raise IftError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0][:200]}",
            wanted="the address of a running head, such as ray://head:10001 or auto",
            hint="leave cluster.address out to run on this machine",
        ) from None
    _tighten_token()
    try:
        total = ray.cluster_resources()
        yield Resources(int(total.get("CPU", 1)), int(total.get("GPU", 0)), len(ray.nodes()))
    finally:
        _let_data_end()
        ray.shutdown()


def _let_data_end() -> None:
    """Ray Data ends a data set in a thread of its own, and Ray ends this whole process where something asks it for
    anything behind its shutdown."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(10)
    gc.collect()  # handles of actors ask Ray too, when they go


def _start(**options: Any) -> None:
    """Start a Ray here. It gives its own processes 30 s, of which a busy machine may need more: then once more."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises nothing more special
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


_STARTS = 4
_CARRIED = (
    "DS_ACCELERATOR",
    "HF_HUB_OFFLINE",
    "RAY_CHDIR_TO_TRIAL_DIR",
    "TOKENIZERS_PARALLELISM",
    "TORCHDYNAMO_DISABLE",
)


def _tighten_token() -> None:
    """Ray leaves the token that lets anyone run code on the cluster readable for all users of the machine."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


def workers_of(
    asked: str | int | tuple[int, int], resources: Resources, global_batch: int
) -> tuple[int, int]:
    """The fewest and the most workers. `auto` is one a GPU, or two on a machine without; never more than packs in a
    global batch."""
    if isinstance(asked, tuple):
        return asked
    workers = min(resources.gpus or 2, global_batch) if asked == "auto" else int(asked)
    return workers, workers
