"""A cluster from outside: whether it answers, whom it lets in, and what a survey of its nodes comes to.

In:  the address of its dashboard (http://head:8265), which takes jobs, or of Ray itself (auto, head:6379).
Out: a `Check` each.

    doors("http://head:8265", None)     # [Check("token", "fail", "nobody is asked for a token …", …), …]
"""

import json
import logging
import shlex
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ift import dashboard
from ift.doctor import look, machine, survey
from ift.doctor.check import Check, everywhere
from ift.doctor.services import LOOPBACK
from ift.errors import IftError

_PATIENCE = 5.0  # seconds for an answer
_JOB_S = 300.0  # for the survey as a job
_AGENT_S = 60.0  # for a head that has only just started
_SKEW_S, _FAR_S = 1.0, 60.0  # clocks apart; AWS refuses what is signed 15 minutes off
# Bytes a second of bus bandwidth below which training would wait for the network: that of 10 and of 1 gigabit Ethernet.
_SLOW = {"nccl": 1.25e9, "gloo": 0.125e9}
_SHUT = ("token", "ray version")  # where one of these fails, no job of ours can be sent
_DASHBOARD = "the dashboard's address is http://HEAD:8265; on the head, `ray status` says whether Ray runs"
_TOKEN = "give the cluster's token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def examine(address: str, *, storage: str | None = None) -> Iterator[Check]:
    """All checks of the cluster at `address`, one after the other; none behind one that no other can do without."""
    if not address.startswith(("http://", "https://")):
        yield from _joined(address, storage)
        return
    check = reachable(address)
    yield check
    if check.verdict == "fail":
        return
    found = doors(address, token())
    yield from found
    if any(check.name in _SHUT and check.verdict == "fail" for check in found):
        return
    seen = _as_job(address, storage)
    yield from [seen] if isinstance(seen, Check) else judge(seen)


# ── from outside ──


def reachable(address: str) -> Check:
    """Whether anything listens there."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), _PATIENCE).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Check("cluster", "fail", f"nothing answers at {address}: {why.lower()}", _DASHBOARD)
    return Check("cluster", "pass", f"{address} answers")


def doors(address: str, token: str | None) -> list[Check]:
    """Whether a stranger may submit jobs, whether we may, and whether its Ray is ours."""
    try:
        status, _ = _get(f"{address.rstrip('/')}/api/jobs/", None)
        mine, _ = _get(f"{address.rstrip('/')}/api/jobs/", token) if token else (status, b"")
        told, body = _get(f"{address.rstrip('/')}/api/version", token)
    except OSError as error:
        return [Check("token", "fail", f"{address} cut the connection: {error}", _DASHBOARD)]
    return [entry(address, status, mine, has_token=token is not None), *_version(told, body, address)]


def entry(address: str, stranger: int, mine: int, *, has_token: bool) -> Check:
    """`stranger` and `mine` are the HTTP statuses that the job API answers without a token and with ours.

    A cluster that lets everyone in takes our job all the same, so that has a name of its own.
    """
    refused = (401, 403)
    if stranger == 404:
        return Check("token", "fail", f"what answers at {address} is no Ray dashboard (HTTP 404)", _DASHBOARD)
    if stranger in refused and mine in refused:
        what = "ours is not the cluster's" if has_token else "we have none"
        return Check("token", "fail", f"the cluster demands a token, and {what} (HTTP {mine})", _TOKEN)
    if mine >= 400:
        return Check("token", "fail", f"the job API answers HTTP {mine}", "see the head's dashboard.log")
    if stranger in refused:
        return Check("token", "pass", "demanded of everybody, and ours is right")
    words = "nobody is asked for a token: whoever reaches the cluster can run code on it"
    move = "start it with RAY_AUTH_MODE=token and a token: ray get-auth-token --generate"
    local = (urlsplit(address).hostname or "") in LOOPBACK
    return Check("open doors", "warn" if local else "fail", words, move)


def _version(status: int, body: bytes, address: str) -> list[Check]:
    theirs = ""
    with suppress(ValueError, AttributeError):
        theirs = str(json.loads(body).get("ray_version", "")) if status == 200 else ""
    return [ray_version(look.version_of("ray"), theirs)] if theirs else []


def ray_version(ours: str | None, theirs: str) -> Check:
    """Ray speaks only to its own version."""
    if ours == theirs:
        return Check("ray version", "pass", f"{theirs}, as here")
    return Check(
        "ray version",
        "fail",
        f"{theirs} on the cluster, {ours} here",
        f"pip install 'ray=={theirs}' here, or an image with {ours} there",
    )


def token() -> str | None:
    """Ray's token, from where Ray itself looks for it; a file that cannot be read holds none."""
    with suppress(IftError):
        found = dashboard.token()
        return found.value if found else None
    return None


def _get(url: str, token: str | None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_PATIENCE
        ) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


# ── from inside ──


def _runtime_env() -> dict[str, Any]:
    """Our own code, so that the nodes need none of it: it is asked what a node has, not which `ift`."""
    import ift

    return {"py_modules": [str(Path(ift.__file__).parent)], "excludes": ["__pycache__", "*.pyc"]}


def _joined(address: str, storage: str | None) -> Iterator[Check]:
    """As a driver of our own, where Ray's own address was given."""
    if address != "auto":
        check = reachable(address)
        if check.verdict == "fail":
            yield check
            return
    import ray

    context = _join(address)
    if isinstance(context, Check):
        yield context
        return
    try:
        yield Check("cluster", "pass", f"{address} answers")
        page = f"http://{getattr(context, 'dashboard_url', None) or ''}"
        if reachable(page).verdict == "pass":  # it may be bound to the head's loopback address
            yield from doors(page, token())
        yield from judge(survey.survey(storage=storage))
    finally:
        ray.shutdown()


def _join(address: str) -> Any:
    """Ray's context, or the `Check` that says why there is none."""
    import ray

    with look.silence() as chatter:  # Ray tells the terminal, and not its exception, that a token is missing
        try:
            return ray.init(
                address=address, log_to_driver=False, logging_level="ERROR", runtime_env=_runtime_env()
            )
        except Exception as error:  # noqa: BLE001  (Ray raises what it likes: no cluster, another version, no token)
            text = " ".join(str(error).split())[:300]
            if "InvalidAuthToken" in chatter() or "auth" in text.lower():
                return Check(
                    "token", "fail", f"{address} demands a token, and ours is missing or wrong", _TOKEN
                )
            return Check("cluster", "fail", f"{address}: {text}", _DASHBOARD)


def _as_job(address: str, storage: str | None) -> dict[str, Any] | Check:
    """The survey as a job, which is removed when it has ended."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    job = f"ift-doctor-{uuid.uuid4().hex[:8]}"
    command = "python -m ift.doctor.survey" + (f" --storage {shlex.quote(storage)}" if storage else "")
    for name in ("ray.dashboard", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)  # both tell of every package that they send
    try:
        client = JobSubmissionClient(address)
        _submit(client, entrypoint=command, submission_id=job, runtime_env=_runtime_env())
        deadline = time.monotonic() + _JOB_S
        while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        logs = client.get_job_logs(job)
        if not status.is_terminal():
            client.stop_job(job)
            return Check(
                "survey", "fail", f"the job {job} did not end in {_JOB_S:.0f} s", f"ray job logs {job}"
            )
    except Exception as error:  # noqa: BLE001  (the client raises RuntimeError, ConnectionError and requests' own)
        return Check("survey", "fail", " ".join(str(error).split())[:300], "see the head's dashboard.log")
    if status == JobStatus.SUCCEEDED and survey.MARK in logs:
        client.delete_job(job)
        seen: dict[str, Any] = json.loads(logs.rpartition(survey.MARK)[2].splitlines()[0])
        return seen
    last = (logs.strip().splitlines() or ["no word of it"])[-1][:300]
    return Check("survey", "fail", f"the job {job} ended as {status}: {last}", f"ray job logs {job}")


def _submit(client: Any, **job: Any) -> None:
    """Ray has no agent that takes jobs until some time after its start."""
    deadline = time.monotonic() + _AGENT_S
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


# ── what the nodes have ──


def judge(seen: Mapping[str, Any]) -> list[Check]:
    """Of what ift/doctor/survey.py saw."""
    nodes = {node["address"]: node for node in _named(seen["nodes"])}
    well = {name: node for name, node in nodes.items() if "error" not in node}
    checks = [members(nodes, seen["dead"])]
    if not well:
        return checks
    checks.append(versions({name: _versions_of(node["facts"]) for name, node in well.items()}))
    checks.append(clocks({name: node["clock"] for name, node in well.items()}))
    checks += everywhere({name: _of_node(node) for name, node in well.items()})
    checks.append(object_store({name: node["moved"] for name, node in well.items()}))
    stored = {name: [Check(**node["storage"])] for name, node in well.items() if "storage" in node}
    checks += everywhere(stored)
    checks.append(all_reduce(seen["all_reduce"]))
    return checks


def _named(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Nodes by their address; several at one address get a number."""
    known: dict[str, int] = {}
    named = []
    for node in nodes:
        address = node["address"]
        known[address] = known.get(address, 0) + 1
        more = f"#{known[address]}" if known[address] > 1 else ""
        named.append({**node, "address": f"{address}{more}"})
    return named


def _of_node(node: Mapping[str, Any]) -> list[Check]:
    """What is judged of every machine; its Python and packages are compared instead."""
    checks = machine.judge(node["facts"], store=node["store"])
    return [check for check in checks if check.name not in ("python", "token file")]


def _versions_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    return {"python": facts["python"], **facts["packages"]}


def members(nodes: Mapping[str, Mapping[str, Any]], dead: int) -> Check:
    """Which nodes there are, and on which of them nothing can be started."""
    lost = {name: node["error"] for name, node in nodes.items() if "error" in node}
    gpus = sum(node["gpus"] for node in nodes.values())
    words = f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {gpus} GPU{'s' * (gpus != 1)}: {', '.join(nodes)}"
    if lost:
        told = "; ".join(f"{name}: {error}" for name, error in lost.items())
        return Check("nodes", "fail", f"{words}; {told}", "see /tmp/ray/session_latest/logs on that node")
    if dead:
        return Check(
            "nodes", "warn", f"{words}; {dead} more have died", "`ray list nodes` says which and why"
        )
    return Check("nodes", "pass", words)


def versions(by_node: Mapping[str, Mapping[str, str | None]]) -> Check:
    """Equal on every node: models and checkpoints pass between processes as these libraries write them."""
    names = list(next(iter(by_node.values())))
    differing = []
    for name in names:
        found: dict[str | None, list[str]] = {}
        for node, has in by_node.items():
            found.setdefault(has[name], []).append(node)
        if len(found) > 1:
            told = ", ".join(f"{version or 'none'} on {', '.join(on)}" for version, on in found.items())
            differing.append(f"{name}: {told}")
    if differing:
        return Check(
            "versions", "fail", "; ".join(differing), "run the same image, or the same .venv, on all nodes"
        )
    first = next(iter(by_node.values()))
    told = ", ".join(f"{name} {version}" if version else f"no {name}" for name, version in first.items())
    return Check("versions", "pass", f"{told}; the same on {_all(len(by_node))}")


def clocks(by_node: Mapping[str, Mapping[str, float]]) -> Check:
    """How far apart the nodes' clocks are, in seconds; what the measurement cannot tell counts as no skew."""
    ahead = {node: clock["ahead"] for node, clock in by_node.items()}
    first, last = max(ahead, key=ahead.__getitem__), min(ahead, key=ahead.__getitem__)
    sure = by_node[first]["give_or_take"] + by_node[last]["give_or_take"] if first != last else 0.0
    skew = max(0.0, ahead[first] - ahead[last] - sure)
    if skew < _SKEW_S:
        apart = ahead[first] - ahead[last]
        return Check(
            "clocks", "pass", f"{apart * 1000:.0f} ms apart at most, give or take {sure * 1000:.0f} ms"
        )
    return Check(
        "clocks",
        "fail" if skew >= _FAR_S else "warn",
        f"{first} is {skew:,.1f} s ahead of {last}: times in logs and metrics lie"
        + (", and S3 and tokens may be refused" if skew >= _FAR_S else ""),
        "set the clocks by NTP on every node: timedatectl set-ntp true",
    )


def object_store(by_node: Mapping[str, Mapping[str, float]]) -> Check:
    """Whether every node gets an object that another holds, and how fast."""
    slowest = max(by_node, key=lambda node: by_node[node]["seconds"])
    took = by_node[slowest]
    size = f"{took['bytes'] / 2**20:.0f} MiB"
    words = f"{size} reached {_all(len(by_node))}, in {took['seconds']:.2f} s at most ({slowest})"
    if took["seconds"] > 30:
        return Check("object store", "warn", words, "see the network between the nodes, and `ray memory`")
    return Check("object store", "pass", words)


def all_reduce(seen: Mapping[str, Any] | None) -> Check:
    """`seen` is of survey.all_reduce: library, ranks, bytes, seconds and bus, or an error."""
    name = "all-reduce"
    if seen is None:
        return Check(name, "pass", "one node with workers: no network between nodes to measure")
    how = f"{seen['library']}, one rank on each of {seen['ranks']} nodes"
    if "error" in seen:
        return Check(
            name,
            "fail",
            f"{how}: {seen['error']}",
            "open all ports between the nodes; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface, "
            "NCCL_DEBUG=INFO says more; with all GPUs taken, try again when they are free",
        )
    words = (
        f"{seen['bus'] / 1e9:.2f} GB/s bus bandwidth ({how}; {seen['bytes'] / 2**20:.0f} MiB in "
        f"{seen['seconds'] * 1000:.1f} ms, times 2(n−1)/n as in nccl-tests)"
    )
    if seen["bus"] < _SLOW[seen["library"]]:
        least = _SLOW[seen["library"]] * 8 / 1e9
        return Check(
            name,
            "warn",
            f"{words}: less than {least:.0f} gigabit Ethernet has; training will wait for it",
            "see which interface is used (NCCL_DEBUG=INFO), and that RDMA or EFA is on where there is one",
        )
    return Check(name, "pass", words)


def _all(count: int) -> str:
    return f"all {count} nodes" if count > 1 else "the one node"
