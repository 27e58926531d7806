"""A cluster from outside: whether it answers, whom it lets in, and what a survey of its nodes comes to.

In:  the address of its dashboard (http://head:8265), which takes jobs, or of Ray itself (auto, head:6379).
Out: a `Check` each.

    list(examine("http://head:8265"))     # [Check("cluster", "pass", …), Check("token", "pass", …), …]
"""

import json
import shlex
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
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
_SKEW_S, _FAR_S = 1.0, 60.0  # clocks apart; AWS refuses what is signed 15 minutes off
# Bytes a second of bus bandwidth below which training would wait for the network: that of 10 and of 1 gigabit Ethernet.
_SLOW = {"nccl": 1.25e9, "gloo": 0.125e9}
_DASHBOARD = "the dashboard's address is http://HEAD:8265; on the head, `ray status` says whether Ray runs"
_TOKEN = "give the cluster's token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def examine(address: str, *, storage: str | None = None) -> Iterator[Check]:
    """All checks of the cluster at `address`, one after the other; none behind one that no other can do without."""
    if not address.startswith(("http://", "https://")):
        yield from _joined(address, storage)
        return
    head = _reached(address)
    if isinstance(head, Check):
        yield head
        return
    yield Check("cluster", "pass", f"{address} answers, and has this Ray")
    yield entry(head)
    seen = _as_job(head, storage)
    yield from [seen] if isinstance(seen, Check) else judge(seen)


# ── from outside ──


def _reached(address: str) -> dashboard.Dashboard | Check:
    """The head, or the line that says why there is none for us."""
    try:
        return dashboard.reach(address, open_too=True, note=lambda _: None)
    except IftError as error:
        return Check("cluster", "fail", error.what, error.hint or f"wanted: {error.wanted}")


def entry(head: dashboard.Dashboard) -> Check:
    """Whether a stranger may submit jobs; that has a name of its own."""
    if head.token:
        return Check("token", "pass", "demanded of everybody, and ours is right")
    words = "nobody is asked for a token: whoever reaches the cluster can run code on it"
    move = "start it with RAY_AUTH_MODE=token and a token: ray get-auth-token --generate"
    local = (urlsplit(head.address).hostname or "") in LOOPBACK
    return Check("open doors", "warn" if local else "fail", words, move)


# ── from inside ──


def _runtime_env() -> dict[str, Any]:
    """Our own code, so that the nodes need none of it: it is asked what a node has, not which `ift`."""
    import ift

    return {"py_modules": [str(Path(ift.__file__).parent)], "excludes": ["__pycache__", "*.pyc"]}


def _joined(address: str, storage: str | None) -> Iterator[Check]:
    """As a driver of our own, where Ray's own address was given."""
    if address != "auto" and (why := _silence(address)):
        yield Check("cluster", "fail", f"nothing answers at {address}: {why}", _DASHBOARD)
        return
    import ray

    context = _join(address)
    if isinstance(context, Check):
        yield context
        return
    try:
        yield Check("cluster", "pass", f"{address} answers")
        head = _reached(f"http://{getattr(context, 'dashboard_url', None) or ''}")
        if not isinstance(head, Check):  # it may be bound to the head's loopback address
            yield entry(head)
        yield from judge(survey.survey(storage=storage))
    finally:
        ray.shutdown()


def _silence(address: str) -> str | None:
    """Why nothing answers there, or None; Ray itself would try for half a minute."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), _PATIENCE).close()
    except (OSError, ValueError) as error:
        return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    return None


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


def _as_job(head: dashboard.Dashboard, storage: str | None) -> dict[str, Any] | Check:
    """The survey as a job, which is removed when it has ended."""
    from ray.job_submission import JobStatus

    job = f"ift-doctor-{uuid.uuid4().hex[:8]}"
    words = [head.python(), "-m", "ift.doctor.survey", *(["--storage", storage] if storage else [])]
    try:
        head.submit(entrypoint=shlex.join(words), submission_id=job, runtime_env=_runtime_env())
        deadline = time.monotonic() + _JOB_S
        while not (status := head.client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        logs = head.client.get_job_logs(job)
        if not status.is_terminal():
            head.client.stop_job(job)
            return Check(
                "survey", "fail", f"the job {job} did not end in {_JOB_S:.0f} s", f"ray job logs {job}"
            )
    except Exception as error:  # noqa: BLE001  (the client raises RuntimeError, ConnectionError and requests' own)
        return Check("survey", "fail", " ".join(str(error).split())[:300], "see the head's dashboard.log")
    if status == JobStatus.SUCCEEDED and survey.MARK in logs:
        head.client.delete_job(job)
        seen: dict[str, Any] = json.loads(logs.rpartition(survey.MARK)[2].splitlines()[0])
        return seen
    last = (logs.strip().splitlines() or ["no word of it"])[-1][:300]
    return Check("survey", "fail", f"the job {job} ended as {status}: {last}", f"ray job logs {job}")


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
