"""How the machines fare while a run goes on: CPU, memory, disk, network, GPUs.

In:  the run's folder, and how often to look.
Out: `system.jsonl`, a line a look, under the names that MLflow's page of system metrics knows.

    system = SystemMetrics(run_dir, every=10.0, wake=tracker.wake)
    system.start(); ...; system.stop()

MLflow has a monitor of its own that speaks to the server from its thread: what the server does not take is lost. These
lines wait in the run's folder like all others.
"""

import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

SYSTEM = "system.jsonl"


class SystemMetrics:
    """Samples from a thread of its own, from `start` to `stop`."""

    def __init__(self, folder: Path, every: float, wake: Callable[[], None]) -> None:
        self._path, self._every, self._wake = Path(folder) / SYSTEM, every, wake
        self._over, self._looking = threading.Event(), threading.Lock()
        self._others: Callable[[], Mapping[str, float]] = dict
        self._thread = threading.Thread(target=self._watch, name="ift-system", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @contextmanager
    def beside(self, others: Callable[[], Mapping[str, float]]) -> Iterator[None]:
        """Within the block a look is at what `others` tells as well; none is under way when it ends."""
        with self._looking:
            self._others = others
        try:
            yield
        finally:
            with self._looking:
                self._others = dict

    def stop(self) -> None:
        """No line comes after this."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        machine, step = Machine(), _lines(self._path)
        while not self._over.wait(self._every):
            with self._looking:
                line = {"step": step, "time": round(time.time(), 3), **machine.sample(), **self._others()}
            with suppress(OSError), self._path.open("ab") as file:  # a full disk is told of by others
                file.write(json.dumps(line).encode() + b"\n")
                step += 1
            self._wake()


class Machine:
    """This machine, from the first look on."""

    def __init__(self) -> None:
        self._network, self._gpus = psutil.net_io_counters(), _Gpus()
        psutil.cpu_percent()  # which tells of the time since it was last asked

    def sample(self) -> dict[str, float]:
        """Percentages, and megabytes of 10^6 bytes; the network's since the first look."""
        return {**_sample(self._network), **self._gpus.sample()}


def _sample(network: Any) -> dict[str, float]:
    memory, disk, moved = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": round(disk.used / 1e6, 1),
        "disk_available_megabytes": round(disk.free / 1e6, 1),
        "network_receive_megabytes": round((moved.bytes_recv - network.bytes_recv) / 1e6, 3),
        "network_transmit_megabytes": round((moved.bytes_sent - network.bytes_sent) / 1e6, 3),
    }


class _Gpus:
    """NVIDIA's, through pynvml where it is installed (the package nvidia-ml-py) and a driver answers."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with suppress(ImportError):
            self._nvml = importlib.import_module("pynvml")
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlInit()
                count = self._nvml.nvmlDeviceGetCount()
                self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]

    def sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for i, handle in enumerate(self._handles):
            with suppress(self._nvml.NVMLError):  # not every GPU tells everything
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                found[f"gpu_{i}_memory_usage_megabytes"] = round(memory.used / 1e6, 1)
                found[f"gpu_{i}_memory_usage_percentage"] = round(100 * memory.used / memory.total, 1)
            with suppress(self._nvml.NVMLError):
                used = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                found[f"gpu_{i}_utilization_percentage"] = used.gpu
            with suppress(self._nvml.NVMLError):
                watts = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000
                most = self._nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
                found[f"gpu_{i}_power_usage_watts"] = round(watts, 1)
                found[f"gpu_{i}_power_usage_percentage"] = round(100 * watts / most, 1)
        return found


def _lines(path: Path) -> int:
    """How many lines there are, so that a resumed run counts on; half a line is ended."""
    if not path.exists():
        return 0
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return text.count(b"\n")
