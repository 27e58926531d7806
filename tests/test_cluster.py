"""What is known of a cluster without one: room, growth, where a submitted job works."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rays
from tracking.servers import free_port

from ift import cluster, stopping
from ift.cluster import Node
from ift.errors import IftError

CPU, GPU = Node("10.0.0.1", 8, 0), Node("10.0.0.2", 64, 4)


@pytest.mark.parametrize(
    ("workers", "nodes", "enough"),
    [
        (7, [CPU], True),  # one CPU of a node is left for other work
        (8, [CPU], False),
        (14, [CPU, CPU], True),
        (4, [CPU, GPU], True),  # where there are GPUs each worker takes one
        (5, [CPU, GPU], False),
        ((4, 99), [GPU], True),
        ((5, 99), [GPU], False),
        ("auto", [CPU], True),
        (1, [], False),
    ],
)
def test_room(workers: str | int | tuple[int, int], nodes: list[Node], enough: bool) -> None:
    if enough:
        cluster.require_room(workers, nodes)
    else:
        with pytest.raises(IftError, match="and the cluster has room for"):
            cluster.require_room(workers, nodes)


def test_an_autoscaler_is_told_from_rays_own_report() -> None:
    assert not cluster.autoscales(None)
    assert not cluster.autoscales({"f00": "node_f00", "ba4": "node_ba4"})
    assert cluster.autoscales({"f00": "node_f00", "ba4": "gpu-group"})


def test_a_submitted_job_does_not_work_in_rays_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert cluster.workplace("/shared") == tmp_path
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert cluster.workplace("/shared") == Path("/shared")
    assert cluster.workplace("s3://bucket/ift") == cluster.workplace(None) == Path.home() / "ift"
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "600")
    assert stopping.patience(os.environ) == 600


@pytest.mark.parametrize("device", ["nvidiactl", "kfd", "dxg"])
def test_gpus_of_all_kinds_are_seen(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(cluster.os.path, "exists", there.__contains__)
    assert not cluster.has_gpu()
    there.add(f"/dev/{device}")
    assert cluster.has_gpu()


def test_a_worker_with_a_gpu_takes_back_what_a_driver_without_one_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    cluster.without_gpu()
    assert (os.environ["DS_ACCELERATOR"], os.environ["TORCHDYNAMO_DISABLE"]) == ("cpu", "1")
    cluster.with_own_gpu()
    assert not {"DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"} & set(os.environ)
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")  # somebody else's word
    cluster.with_own_gpu()
    assert os.environ["DS_ACCELERATOR"] == "xpu"


@pytest.mark.slow
def test_a_head_without_gpus_says_nothing_of_itself_to_workers_that_have_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster, "has_gpu", lambda: False)
    asked: dict[str, Any] = {}

    def init(**options: Any) -> None:
        asked.update(options)
        raise ConnectionError("enough seen")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(IftError, match="no Ray cluster answers"), cluster.connect("auto", workers=None):
        pass
    assert os.environ["DS_ACCELERATOR"] == "cpu"  # for this process
    assert not {"DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"} & set(asked["runtime_env"]["env_vars"])


def test_gpu_nodes_that_an_autoscaler_has_yet_to_start_are_waited_for(tmp_path: Path) -> None:
    """With Ray's own autoscaler, which starts nodes as processes here and says of them that they have GPUs."""
    with autoscaling(tmp_path, {"CPU": 1, "GPU": 2}) as ask:
        assert ask(0) == ["Resources(cpus=2, gpus=0, nodes=1)"], "nobody waits"
        told, found = ask(120)
        assert told == "no node has a GPU yet: the autoscaler is asked for one"
        assert found == "Resources(cpus=3, gpus=2, nodes=2)"


@pytest.mark.slow
def test_gpu_nodes_that_do_not_come_are_told_of(tmp_path: Path) -> None:
    with autoscaling(tmp_path, {"CPU": 1}) as ask:
        said = "\n".join(ask(3))
    assert "no node of the cluster has a GPU, and none came within 0.05 minutes" in said
    assert "cluster.gpu_wait_minutes=0" in said


ASK = """
import sys
from ift import cluster
from ift.errors import IftError

with cluster.connect(sys.argv[1], workers=None):
    try:
        print(cluster.with_gpu(float(sys.argv[2]), print))
    except IftError as error:
        print(error)
"""


@contextmanager
def autoscaling(folder: Path, worker: dict[str, int]) -> Iterator[Callable[[float], list[str]]]:
    """A Ray whose autoscaler may add one such node, and what a process is told that waits so long for a GPU.

    Ray's own `AutoscalingCluster` ends with `ray stop`, which takes every Ray on the machine with it.
    """
    port = free_port()
    config = {
        "cluster_name": "growing",
        "max_workers": 1,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",  # by its own name it wants a file that the wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",  # by another name it would start a second
        "upscaling_speed": 1.0,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{key}_commands": [] for key in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{key}_start_ray_commands": [] for key in ("head", "worker")},
    }
    (folder / "autoscaling.json").write_text(json.dumps(config))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    settings = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
    }
    options = ["--num-cpus=2", f"--object-store-memory={80 * 2**20}", "--include-dashboard=false"]
    options += [f"--autoscaling-config={folder / 'autoscaling.json'}"]
    with rays.head(folder, port, *options, **settings, **token) as address:
        yield lambda seconds: subprocess.run(
            [sys.executable, "-c", ASK, address, str(seconds)],
            env={**os.environ, **token},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
        ).stdout.splitlines()


@pytest.mark.parametrize("error", [ConnectionError("nobody is there"), ValueError("no such protocol")])
def test_an_address_that_leads_to_no_cluster_is_named_with_where_it_may_be_from(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(**how: object) -> None:
        assert how["address"] == "http://head:8265"
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(IftError) as caught, cluster.connect(None, workers=None):
        pass
    assert caught.value.what == f"no Ray cluster answers at http://head:8265: {error}"
    assert "auto, or HOST:6379" in (caught.value.wanted or "")
    assert "RAY_ADDRESS" in (caught.value.hint or "")
