"""The head of a Ray cluster as one reaches it from outside: its address, its token, its version, its nodes, its jobs.

In:  an address, and a token where Ray itself looks for one.
Out: a `Dashboard` that answers, or an `IftError` that says what is wrong with which of them.

    head = reach("http://127.0.0.1:8265", open_too=False, note=print)
    head.nodes()          # [Node(address="10.0.0.1", cpus=8, gpus=1)]
    head.client           # Ray's own JobSubmissionClient

The token is sent as it is: where the address is not https, whoever is on the way can read it.
"""

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ift.cluster import Node, autoscales
from ift.errors import IftError

_WANTED = "the address of the cluster's dashboard, such as http://127.0.0.1:8265"
_OTHER_PORTS = {6379: "Ray's own port", 10001: "the port of Ray's client"}
_PATIENCE_S = 20.0
_AGENT_S = 60.0
# which of these Ray's client takes instead of the address that it is given
_OVERRULING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Token:
    """What a cluster wants to see, and where it was found."""

    value: str
    where: str


def token() -> Token | None:
    """The token that Ray itself would send: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        value = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        if given:
            raise IftError(
                f"RAY_AUTH_TOKEN_PATH is {given}, and that file cannot be read: {error.strerror}",
                wanted="a file that holds the cluster's token and nothing else",
            ) from None
        return None
    return Token(value, str(path)) if value else None


@dataclass(frozen=True)
class Dashboard:
    """A head that was reached, and takes the token."""

    address: str
    token: Token | None

    @cached_property
    def client(self) -> Any:
        """Ray's `JobSubmissionClient`."""
        import logging

        from ray.job_submission import JobSubmissionClient

        for name in (
            "dashboard.modules.dashboard_sdk",
            "dashboard.modules.job.sdk",
            "_private.runtime_env.packaging",
        ):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # each upload, each end of a log
        with _without(_OVERRULING):
            return JobSubmissionClient(self.address, headers=_headers(self.token))

    def submit(self, **job: Any) -> None:
        """Ray's `submit_job`. For some seconds behind its start a head has no agent that takes jobs: it is asked again.

        Raises `RuntimeError` as Ray does.
        """
        deadline = time.monotonic() + _AGENT_S
        while True:
            try:
                self.client.submit_job(**job)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def get(self, path: str) -> Any:
        """What a route answers, out of its JSON."""
        status, text = _ask(self.address + path, self.token)
        if status != 200:
            raise IftError(f"{self.address}{path} answers with status {status}: {text[:200]}")
        return json.loads(text)

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        found = self.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        return [Node.of(n["node_ip"], n["resources_total"]) for n in found if n["state"] == "ALIVE"]

    def grows(self) -> bool:
        """Whether an autoscaler may add nodes; also where that is not known yet."""
        report = (self.get("/api/cluster_status")["data"].get("clusterStatus") or {}).get("autoscalerReport")
        return report is None or autoscales(report.get("nodeTypeMapping"))

    def python(self) -> str:
        """The interpreter that the head runs its own workers with; jobs' PATH may well have another first."""
        found = self.get("/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        for node in found:
            if node["is_head_node"] and node["state"] == "ALIVE":
                detail = self.get(f"/nodes/{node['node_id']}")["data"]["detail"]
                for word in detail.get("cmdline") or ():
                    if word.startswith(_WORKERS):
                        return str(word.removeprefix(_WORKERS).split()[0])
        return "python"


_WORKERS = "--python_worker_command="


def reach(address: str, *, open_too: bool, note: Callable[[str], None]) -> Dashboard:
    """The cluster at `address`. `open_too`: also one that asks nobody for a token.

    Raises `IftError` for an address at which no Ray answers, a token that is missing or wrong, another version of
    Ray, and a cluster that anybody can use.
    """
    url = _url(address)
    status, text = _ask(f"{url}/api/version", None)
    if status == 200:
        there = _version(text, url)
        if not open_too:
            raise IftError(
                f"the cluster at {url} asks nobody for a token: whoever reaches it can run code on it",
                wanted="a cluster that was started with RAY_AUTH_MODE=token and a token",
                hint="`ray get-auth-token --generate` makes one; --open-cluster goes on all the same",
            )
        note(f"the cluster at {url} asks nobody for a token: whoever reaches it can run code on it")
        found = Dashboard(url, None)
    elif status == 401:
        found = Dashboard(url, _accepted(url))
        there = _version(_ask(f"{url}/api/version", found.token)[1], url)
        if url.startswith("http://") and not _private(url):
            note(f"the token goes to {url} unencrypted; an https address or a tunnel would hide it")
    else:
        raise IftError(f"{url} answers with status {status}, and is no Ray dashboard", wanted=_WANTED)
    _require_version(there, url)
    return found


def _url(address: str) -> str:
    """`address` as the URL of a dashboard."""
    full = address if "://" in address else f"http://{address}"
    parts = urllib.parse.urlsplit(full)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise IftError(f"the address {address!r}", wanted=_WANTED)
    if parts.username or parts.password:
        raise IftError(
            "the address holds a user or a password", wanted=f"{_WANTED}; the token is found as Ray does"
        )
    if parts.path.strip("/") or parts.query:
        raise IftError(f"the address {address!r} names a page", wanted=_WANTED)
    return f"{parts.scheme}://{parts.netloc}"


def _headers(found: Token | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {found.value}"} if found else {}


def _ask(url: str, found: Token | None) -> tuple[int, str]:
    """The status and the text of a GET. Raises `IftError` where nobody answers."""
    request = urllib.request.Request(url, headers=_headers(found))
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return int(answer.status), answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        parts = urllib.parse.urlsplit(url)
        reason = getattr(error, "reason", error)
        other = _OTHER_PORTS.get(parts.port or 0)
        raise IftError(
            f"no Ray dashboard answers at {parts.scheme}://{parts.netloc}: "
            + (
                "what does speaks no HTTP"
                if isinstance(error, http.client.HTTPException)
                else str(getattr(reason, "strerror", None) or reason)
            ),
            wanted=_WANTED,
            hint=f"{parts.port} is {other}; the dashboard's is 8265"
            if other
            else "see that the head runs (`ray status` there) and that this machine reaches it; a tunnel may help",
        ) from None


def _version(text: str, url: str) -> str:
    try:
        return str(json.loads(text)["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise IftError(f"{url} answers, and is no Ray dashboard", wanted=_WANTED) from None


def _accepted(url: str) -> Token:
    """The token that was found, once the cluster has taken it."""
    found = token()
    if found is None:
        raise IftError(
            f"the cluster at {url} asks for a token, and none was found",
            wanted="its token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token",
            hint="whoever started the cluster has it; in Kubernetes it is a secret",
        )
    status, _ = _ask(f"{url}/api/version", found)
    if status in (401, 403):
        raise IftError(
            f"the cluster at {url} does not take the token from {found.where}",
            wanted="the token that the cluster was started with",
            hint="RAY_AUTH_TOKEN goes before RAY_AUTH_TOKEN_PATH, and that before ~/.ray/auth_token",
        )
    return found


def _require_version(there: str, url: str) -> None:
    """Raise `IftError` where the cluster has another Ray than this client, patch releases aside."""
    import ray

    here = str(ray.__version__)
    if there.split(".")[:2] != here.split(".")[:2]:
        raise IftError(
            f"the cluster at {url} runs Ray {there}, and this is Ray {here}",
            wanted="the same minor version on both sides",
            hint=f"pip install 'ray[default,train,data]=={there}' here, or start the cluster with {here}",
        )


def _private(url: str) -> bool:
    """Whether the address is of this machine or of a network that is not the public one; names are taken to be."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return True


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The block does not see these environment variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
