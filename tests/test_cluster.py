"""What is known of a cluster without one: room, growth, where a submitted job works."""

import os
from pathlib import Path

import pytest

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
