"""A head and a worker as `cluster/local/node` starts them, for real: who reaches them, and what `stop` ends."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster.manifests import CLUSTER
from tracking.servers import free_port, until

SMALL = ("--", "--num-cpus=1", "--object-store-memory=100000000")


class Node:
    """The script with a home and ports of its own."""

    def __init__(self, home: Path) -> None:
        self.dashboard, self.port = free_port(), free_port()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "RAY": str(Path(sys.executable).with_name("ray")),
            "IFT_NODE_PORT": str(self.port),
            "IFT_NODE_DASHBOARD_PORT": str(self.dashboard),
            "IFT_NODE_CLIENT_PORT": str(free_port()),
            "RAY_raylet_start_wait_time_s": "300",
        }

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [CLUSTER / "local" / "node", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answer(self, token: str = "") -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.dashboard}/api/jobs/")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            return int(urllib.request.urlopen(request, timeout=120).status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        node.run("stop")


@pytest.mark.slow
def test_the_dashboard_is_for_this_machine_and_wants_the_token(node: Node, tmp_path: Path) -> None:
    said = node.run("head", *SMALL)
    assert f"http://127.0.0.1:{node.dashboard}, for this machine alone" in said
    token = (tmp_path / ".ray" / "auth_token").read_text()
    assert token not in said
    assert (node.answer(), node.answer("0" * 64), node.answer(token)) == (401, 403, 200)
    listening = [
        each
        for each in psutil.net_connections("tcp")
        if each.status == "LISTEN" and each.laddr.port == node.dashboard
    ]
    assert [each.laddr.ip for each in listening] == ["127.0.0.1"]

    assert "joined 127.0.0.1" in node.run("worker", "127.0.0.1", *SMALL)
    numbers = [int(line.split()[2].rstrip(",")) for line in node.run("list").splitlines()]
    assert len(numbers) == 2
    family = [
        each
        for number in numbers
        for each in [psutil.Process(number), *psutil.Process(number).children(recursive=True)]
    ]
    assert len(family) > 6
    assert not any(token in " ".join(each.cmdline()) for each in family if each.is_running())

    stranger = subprocess.Popen(["sleep", "600"])
    try:
        assert "the head has ended" in node.run("stop")
        until(
            lambda: (
                not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
            ),
            60,
        )
        assert node.run("list") == ""
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
