"""Two hosts on one machine: network namespaces joined by a cable of their own, a Ray node with a token in each.

In:  root on Linux, the command `ip`; a folder for logs.
Out: a Ray head and a Ray node that know each other by their own addresses; commands in either's network.

    with Nodes(Path("build/hosts")) as nodes:
        nodes.run(nodes.names[0], "ift", "submit", "x.yaml", "--address", nodes.dashboard)
        nodes.kill(nodes.names[1])           # the second host is gone, with all that is on it
        nodes.start_node()                   # and back

Nothing leaves the machine. Both hosts see the same disk, which stands for a shared one; `hidden` holds folders of
which the second has its own.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
A, B = "10.77.31.1", "10.77.31.2"
PORT, DASHBOARD_PORT = 6379, 8265
PATIENCE = 900.0  # seconds for anything to happen
_STARTS = 4
_RAY = Path("/tmp/ray")


_ASK = """
import json, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
found = []
for method, url, token in json.load(sys.stdin):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, method=method, headers=headers)
        with opener.open(request, timeout=60) as answer:
            found.append((answer.status, answer.read().decode("utf-8", "replace")))
    except urllib.error.HTTPError as error:
        found.append((error.code, error.read().decode("utf-8", "replace")))
    except OSError as error:
        found.append((0, str(error)))
print(json.dumps(found))
"""


def missing() -> str | None:
    """Why two hosts cannot be made here, or None."""
    if not shutil.which("ip"):
        return "two hosts take the command `ip` (the package iproute2)"
    if os.geteuid() != 0:
        return "two hosts take root, for network namespaces"
    name = f"ift-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    try:
        link = [
            "ip",
            "link",
            "add",
            "ift-try",
            "netns",
            name,
            "type",
            "veth",
            "peer",
            "name",
            "ift-try2",
            "netns",
            name,
        ]
        tried = subprocess.run(link, capture_output=True, text=True, check=False)
        return (
            f"no cable can be laid between namespaces here: {tried.stderr.strip()}"
            if tried.returncode
            else None
        )
    finally:
        ip("netns", "delete", name)


@dataclass
class Nodes:
    """Two Ray nodes in network namespaces of their own."""

    folder: Path
    names: tuple[str, str] = field(default_factory=lambda: (f"ift-a-{os.getpid()}", f"ift-b-{os.getpid()}"))
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    hidden: tuple[Path, ...] = ()  # folders of which the second host has its own

    @property
    def dashboard(self) -> str:
        return f"http://{A}:{DASHBOARD_PORT}"

    def __enter__(self) -> "Nodes":
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        a, b = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "ift0", "netns", a, "type", "veth", "peer", "name", "ift0", "netns", b)
        for name, address in zip(self.names, (A, B), strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/30", "dev", "ift0")
            ip("-n", name, "link", "set", "ift0", "up")
        self.start_head()
        self.start_node()

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            self.kill(name)
        for process in self.processes:
            process.wait()
        for name in self.names:
            with suppress(subprocess.CalledProcessError):  # it may not have come so far
                ip("netns", "delete", name)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": f"{A}:{PORT}",
            "IFT_CACHE": str(self.folder / "cache"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def run(
        self, *command: str, name: str | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """A command on the first host, or on `name`, to its end."""
        return subprocess.run(
            ["ip", "netns", "exec", name or self.names[0], *command],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self, name: str, *command: str, log: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command in a namespace, its output in a file of the work folder."""
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", name, *command],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                **options,
            )

    def _up(self, count: int, name: str, *options: str, before: str = "") -> None:
        """Start Ray in a namespace until there are `count` nodes; again where a busy machine was too slow for it.

        Raises `RuntimeError` with the end of its log.
        """
        ray = [str(BIN / "ray"), "start", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
        command = ["sh", "-c", f"{before} exec {shlex.join([*ray, *options])}"]
        for _ in range(_STARTS):
            self.processes.append(self.start(name, *command, log=f"{name}.log"))
            wait(
                lambda: self.processes[-1].poll() is not None or len(self.alive()) == count, f"{count} nodes"
            )
            if self.processes[-1].poll() is None:
                return
            self.kill(name)
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        raise RuntimeError(f"Ray did not start in {_STARTS} attempts: {log[-500:]}")

    def start_head(self) -> None:
        self._up(
            *(1, self.names[0], "--head", f"--node-ip-address={A}"),
            *(f"--port={PORT}", f"--dashboard-host={A}", f"--dashboard-port={DASHBOARD_PORT}"),
        )

    def start_node(self) -> None:
        """The second host's node. What is mounted in `ip netns exec` nobody else sees."""
        # Ray's own folder too: two nodes that share it take each other's copies of a job's files away
        own = [
            word
            for place in (_RAY, *self.hidden)
            for word in ("mount", "-t", "tmpfs", "ift", str(place), "&&")
        ]
        _RAY.mkdir(exist_ok=True)
        self._up(2, self.names[1], f"--address={A}:{PORT}", f"--node-ip-address={B}", before=" ".join(own))

    def alive(self) -> list[dict[str, Any]]:
        """The nodes that Ray takes for alive, with `id` and `address`; none while its dashboard does not answer."""
        ((status, text),) = self.ask([("GET", f"{self.dashboard}/api/v0/nodes")], token=self.token)
        nodes = json.loads(text)["data"]["result"]["result"] if status == 200 else []
        return [{"id": n["node_id"], "address": n["node_ip"]} for n in nodes if n["state"] == "ALIVE"]

    def ask(self, requests: Sequence[tuple[str, str]], *, token: str = "") -> list[tuple[int, str]]:
        """What the first host is answered to each (method, URL): status and text; status 0 where nobody answers."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[0], sys.executable, "-c", _ASK],
            input=json.dumps([(method, url, token) for method, url in requests]),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return [(int(status), str(text)) for status, text in json.loads(done.stdout)]

    def wait_for_nodes(self, count: int) -> None:
        wait(lambda: len(self.alive()) == count, f"{count} nodes")

    def pids(self, name: str, of: str = "") -> list[int]:
        """The processes in a namespace whose command line holds `of`."""
        found = []
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in map(int, listed.stdout.split()):
            with suppress(psutil.Error):
                if of in " ".join(psutil.Process(pid).cmdline()):
                    found.append(pid)
        return found

    def kill(self, name: str, of: str = "", with_signal: int = signal.SIGKILL) -> int:
        """Send a signal to these processes; how many there were."""
        pids = self.pids(name, of)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, with_signal)
        return len(pids)


def ip(*words: str) -> None:
    """The command `ip`. Raises `CalledProcessError`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wait(until: Callable[[], Any], what: str) -> Any:
    """What `until` gives when it gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := until()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return found
