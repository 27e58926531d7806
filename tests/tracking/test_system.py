import json
import sys
import types

from ift.tracking.system import SYSTEM, Machine, SystemMetrics


def test_names_are_those_of_mlflows_own_monitor():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= monitor._metrics
    ours = Machine().sample()
    assert set(ours) == set(theirs)
    assert 0 < ours["system_memory_usage_percentage"] <= 100


def test_a_later_process_counts_on_and_nothing_comes_after_the_stop(tmp_path):
    woken = []
    for _ in range(2):
        system = SystemMetrics(tmp_path, 0.02, lambda: woken.append(1))
        before = len(woken)
        system.start()
        while len(woken) < before + 3:
            pass
        system.stop()
        size = (tmp_path / SYSTEM).stat().st_size
        with (tmp_path / SYSTEM).open("a") as file:
            file.write('{"half')  # killed in the middle of a line
    lines = (tmp_path / SYSTEM).read_text()[:size].splitlines()
    steps = [json.loads(line)["step"] for line in lines if not line.startswith('{"half')]
    assert steps == sorted(set(steps))
    assert len(steps) == len(woken)


def test_gpus_are_sampled_where_nvml_answers(tmp_path, monkeypatch):
    """Against a stand-in: of NVML nothing is here but its documented calls."""

    class NVMLError(Exception):
        pass

    def refuses(handle):
        raise NVMLError

    memory = types.SimpleNamespace(used=4e9, total=8e9)
    stand_in = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetMemoryInfo=lambda handle: memory,
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=refuses,
    )
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    system = SystemMetrics(tmp_path, 0.02, lambda: None)
    system.start()
    while not (tmp_path / SYSTEM).exists() or b"\n" not in (tmp_path / SYSTEM).read_bytes():
        pass
    system.stop()
    line = json.loads((tmp_path / SYSTEM).read_text().splitlines()[0])
    assert {key: value for key, value in line.items() if key.startswith("gpu_1")} == {
        "gpu_1_memory_usage_megabytes": 4000,
        "gpu_1_memory_usage_percentage": 50,
        "gpu_1_utilization_percentage": 97,
    }
