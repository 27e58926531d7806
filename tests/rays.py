"""Ray as `ray start` starts it, in processes of its own that end with the test.

`ray stop` would take every Ray on the machine with it, and Ray's own test clusters take their token from a process
that has long decided whether it has one.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracking.servers import free_port

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@contextmanager
def started(log: Path, *options: str, **environment: str) -> Iterator[None]:
    """One node, from the line that says that it runs to the end of the block."""
    # where another Ray on this machine has the agent's port, a node starts without what takes jobs
    agent = f"--dashboard-agent-listen-port={free_port()}"
    with log.open("w") as file:
        node = subprocess.Popen(
            [*RAY, "start", "--block", agent, *options],
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


@contextmanager
def head(folder: Path, port: int, *options: str, **environment: str) -> Iterator[str]:
    """The address of a head with a folder of its own, short enough for the paths of its sockets (107 bytes)."""
    place = tempfile.mkdtemp(prefix="r")
    words = [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={place}", *options]
    try:
        with started(folder / "head.log", "--head", *words, **environment):
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
