"""Ray: start it here or connect to a cluster, and leave nothing behind.

In:  an address, or none; how many workers training asks for.
Out: a running Ray for the length of a `with` block.

    with connect(None, workers=2) as resources:
        ...
"""

import gc
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift import stopping
from ift.errors import IftError
from ift.places import Place

_WITHOUT_GPU = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
OBJECT_STORE = 2**30  # bytes, of a Ray that is started here
GPU_WAIT_S = 600.0  # for the first one, where no spec says


@dataclass(frozen=True)
class Resources:
    """What the cluster offers."""

    cpus: int
    gpus: int
    nodes: int


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    address: str
    cpus: int
    gpus: int

    @classmethod
    def of(cls, address: str, resources: Mapping[str, float]) -> "Node":
        return cls(address, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))

    def room(self, *, gpus: bool) -> int:
        """How many workers it has room for: one a GPU, or one a CPU and one CPU left for other work."""
        return self.gpus if gpus else max(0, self.cpus - 1)

    def __str__(self) -> str:
        return f"{self.address} with {_some(self.cpus, 'CPU')}" + (
            f" and {_some(self.gpus, 'GPU')}" if self.gpus else ""
        )


def without_gpu() -> None:
    """Tell DeepSpeed and torch that this process, and those it starts, compute on CPUs.

    Nothing is compiled there, and DeepSpeed imports torch's compiler all the same: 4 s.
    """
    for name, value in _WITHOUT_GPU.items():
        os.environ.setdefault(name, value)


def with_own_gpu() -> None:
    """Take back what `without_gpu` said, in a process that has a GPU and was started by one that saw none."""
    for name, value in _WITHOUT_GPU.items():
        if os.environ.get(name) == value:
            del os.environ[name]


def asked_address(given: str | None) -> str | None:
    """The cluster that is meant: the one that is given, else RAY_ADDRESS, which a submitted job has set."""
    return given or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connect(address: str | None, *, workers: int | None) -> Iterator[Resources]:
    """Connect to `address` (or RAY_ADDRESS, as in a submitted job), else start a Ray that ends with the block.

    A local Ray is told of two CPUs more than training takes: they are logical, and without them the tasks that
    read and tokenize would wait for ever.
    """
    # Ray hides no GPUs from tasks that asked for none, as it will in its next version; these load to the CPU anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # ift.train.trainer looks itself
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a process more, and nobody's business
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Ray has a process a core for it
    if not has_gpu():
        without_gpu()
    import ray

    address = asked_address(address)
    given = _given_by_job()
    runtime_env = {
        "env_vars": {name: os.environ[name] for name in _CARRIED if name in os.environ and name not in given}
    }
    try:
        if address:
            ray.init(address=address, log_to_driver=False, runtime_env=runtime_env)
        else:
            _start(
                address="local",  # without it Ray would join whatever `ray start` has left on this machine
                num_cpus=max(os.cpu_count() or 1, workers or 2) + 2,
                include_dashboard=False,  # idle it takes a tenth of two cores, and the run says what it does
                log_to_driver=False,
                object_store_memory=OBJECT_STORE,
                runtime_env=runtime_env,
            )
    except (ConnectionError, ValueError) as error:
        if not address:
            raise
        raise IftError(
            f"no Ray cluster answers at {address}: {(str(error).splitlines() or [''])[0][:200]}",
            wanted="the address of a cluster that this machine is part of: auto, or HOST:6379",
            hint="leave cluster.address and --address out, and RAY_ADDRESS unset, to run on this machine; a "
            "dashboard's http://HEAD:8265 is for `ift submit`; a head that runs refuses whoever has another token "
            "(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)",
        ) from None
    _tighten_token()
    stopping.heed()
    try:
        yield _resources()
    finally:
        _let_data_end()
        ray.shutdown()


def _resources() -> Resources:
    import ray

    total = ray.cluster_resources()
    return Resources(int(total.get("CPU", 1)), int(total.get("GPU", 0)), len(nodes_now()))


def with_gpu(patience_s: float, tell: Callable[[str], None]) -> Resources:
    """What the cluster offers once it has a GPU, if an autoscaler may add one; else what it offers.

    Groups of GPU nodes begin at none, and what is meant for them would go to the head's few cores. Raises `IftError`
    where none comes within `patience_s`; 0 takes what there is.
    """
    import ray

    if not patience_s or ray.cluster_resources().get("GPU") or not grows():
        return _resources()
    tell("no node has a GPU yet: the autoscaler is asked for one")
    # a task that waits for it, rather than a request to the autoscaler, which would outlive this process
    asked = ray.remote(num_cpus=0, num_gpus=1)(_nothing).remote()
    deadline = time.monotonic() + patience_s
    while not ray.wait([asked], timeout=1)[0]:
        if stopping.asked():
            raise KeyboardInterrupt
        if time.monotonic() > deadline:
            ray.cancel(asked)
            raise IftError(
                f"no node of the cluster has a GPU, and none came within {patience_s / 60:g} minutes",
                wanted="a group of nodes with GPUs, and room for one of them",
                hint="`ray status` on the head says what the autoscaler lacks; cluster.gpu_wait_minutes=0 takes the "
                "CPUs that are there",
            )
    return _resources()


def _nothing() -> None:
    pass


def in_job() -> bool:
    """Whether Ray started this process for a job that was submitted."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _given_by_job() -> set[str]:
    """The environment variables that the submitted job gives its tasks anyway; Ray refuses one that comes twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def workplace(storage: str | None) -> Path:
    """Where runs and the tracking database lie if nobody says: in the folder that the command was given in.

    Ray gives a submitted job a folder that it removes later. There it is `storage` (the spec's `cluster.storage`)
    where that is a folder, else `IFT_HOME`, else `ift` in the home of whom the cluster runs as.
    """
    if not in_job():
        return Path.cwd()
    if storage and "://" not in storage:
        return Path(storage)
    return Path(os.environ.get("IFT_HOME") or Path.home() / "ift")


def require_room(workers: str | int | tuple[int, int], nodes: Sequence[Node]) -> None:
    """Raise `IftError` where `nodes` have no room for the fewest `workers` that a run goes on with."""
    fewest = workers[0] if isinstance(workers, tuple) else 1 if isinstance(workers, str) else workers
    gpus = any(node.gpus for node in nodes)
    room = sum(node.room(gpus=gpus) for node in nodes)
    if room >= fewest:
        return
    there = "; ".join(str(node) for node in sorted(nodes, key=lambda node: node.address)[:8]) + (
        f"; and {len(nodes) - 8} nodes more" if len(nodes) > 8 else ""
    )
    takes = "a worker takes a GPU" if gpus else "a worker takes a CPU, and each node keeps one for other work"
    raise IftError(
        f"cluster.workers asks for {_some(fewest, 'worker')}, and the cluster has room for {room}: {there}",
        wanted=f"room for {fewest}; {takes}",
        hint=f"cluster.workers={max(room, 1)}, or more nodes first; [fewest, most] takes what there is",
    )


def nodes_now() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    import ray

    return [Node.of(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def free_gpus() -> int:
    """The most GPUs that nothing uses now on one node of the cluster that this process is connected to."""
    from ray._private.state import available_resources_per_node

    return max((int(free.get("GPU", 0)) for free in available_resources_per_node().values()), default=0)


def grows() -> bool:
    """Whether an autoscaler can add nodes to the cluster that this process is connected to."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    return autoscales(report.get("node_type_mapping")) or bool(is_autoscaler_v2())


def autoscales(types: Mapping[str, str] | None) -> bool:
    """Whether nodes of these types (by the node's id) are an autoscaler's.

    Where there is none Ray's monitor reports all the same, with each node as a type of its own.
    """
    return any(kind != f"node_{node}" for node, kind in (types or {}).items())


def require_shared(
    places: Mapping[str, str | Path], *, files: Mapping[str, Path] | None = None, patience_s: float = 60.0
) -> None:
    """Raise `IftError` where a node does not see what is written here to one of `places`, or one of `files` as it is
    here; each with its words.

    `{"the run's folder (--output)": Path("/shared/runs/x")}`
    """
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    others = [node for node in ray.nodes() if node["Alive"]]
    if len(others) < 2:
        return
    mark = f".seen-{uuid.uuid4().hex}"
    for place in places.values():
        Place(place).write(mark, [mark.encode()])
    wanted = {words: (str(place), mark, _digest(mark.encode())) for words, place in places.items()}
    for words, path in (files or {}).items():
        wanted[words] = (str(path.parent), path.name, _digest(path.read_bytes()))
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_unseen)
        asked = {
            node["NodeManagerAddress"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(wanted)
            for node in others
        }
        for address, answer in asked.items():
            try:
                unseen = ray.get(answer, timeout=patience_s)
            except ray.exceptions.GetTimeoutError:
                raise IftError(
                    f"the node {address} has not answered for {patience_s:.0f} s",
                    hint="see `ray status` and that node's logs; run again when it is well",
                ) from None
            for words, why in unseen.items():
                raise IftError(
                    f"the node {address} does not see {words}, {wanted[words][0]}: {why}",
                    wanted="a folder that all nodes share, such as a network file system or a persistent volume",
                    hint="give another, or mount it on every node",
                )
    finally:
        for place in places.values():
            Place(place).delete(mark)


def _unseen(wanted: Mapping[str, tuple[str, str, str]], *, patience_s: float = 10.0) -> dict[str, str]:
    """Where a file of that name and digest is not in its place here, and why; it may take a moment to get through."""
    found, deadline = dict[str, str](), time.monotonic() + patience_s
    for words, (place, name, digest) in wanted.items():
        while True:
            try:
                if _digest(Place(place).read(name)) == digest:
                    found.pop(words, None)
                    break
                found[words] = f"{name} is another file there"
            except FileNotFoundError:
                own = name.startswith(".seen-")
                found[words] = "what the driver wrote there is not there" if own else f"it has no {name}"
            except IftError as error:
                found[words] = error.what
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


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
# Of this process's environment, for all of the run's. Nothing that depends on the machine: a head without GPUs drives
# workers with some.
_CARRIED = (
    "HF_HUB_OFFLINE",
    "IFT_TRUSTED_CODE",
    "RAY_CHDIR_TO_TRIAL_DIR",
    "TOKENIZERS_PARALLELISM",
)


def _tighten_token() -> None:
    """Ray leaves the token that lets anyone run code on the cluster readable for all users of the machine."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):  # a secret of a container, which cannot be written
        if token.is_file() and token.stat().st_uid == os.getuid():
            token.chmod(0o600)


def has_gpu() -> bool:
    """Whether this machine has a GPU, without importing torch: NVIDIA's, AMD's, or one of Windows' (WSL 2)."""
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


def workers_of(
    asked: str | int | tuple[int, int], resources: Resources, global_batch: int
) -> tuple[int, int]:
    """The fewest and the most workers. `auto` is one a GPU, or two on a machine without; never more than packs in a
    global batch."""
    if isinstance(asked, tuple):
        return asked
    workers = min(resources.gpus or 2, global_batch) if asked == "auto" else int(asked)
    return workers, workers
