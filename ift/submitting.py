"""`ift submit` and `ift jobs`: a run on a cluster, and what becomes of it.

In:  a spec, a cluster's address.
Out: a Ray job that does what `ift run` does; its log on this terminal.

    head = dashboard.reach("http://127.0.0.1:8265", open_too=False, note=terminal.note)
    job = submit(head, Path("jobs/x.yaml"), ["train.epochs=2"], terminal=terminal)
    follow(head, job, terminal)          # Outcome("SUCCEEDED", 0)

A job is called after its run and a digest of what it is to do, so the same submission twice is seen to be that. What
has ended can be submitted again, under the next number, and goes on: the run's folder on the cluster says from where.
"""

import asyncio
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ift import cluster, parcel, stopping
from ift import spec as specs
from ift.console import Terminal
from ift.dashboard import Dashboard
from ift.errors import IftError, nearest
from ift.following import Screen
from ift.redaction import secret_name, without_secrets
from ift.spec import Spec
from ift.tracking import lineage

STOP_S = 600  # what `ift jobs stop` gives a job for its checkpoint
_LINE_EVERY_S = 2
_LOOK_EVERY_S = 1.0
_RECONNECT_S = 600.0  # a head that is started again, a laptop that slept
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: Ray's word for it, and the exit status of its command where there was one."""

    status: str
    code: int | None


# ── submitting ──


def submit(
    head: Dashboard,
    path: Path,
    overrides: Sequence[str],
    *,
    terminal: Terminal,
    output: str | None = None,
    add: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    code: bool = True,
) -> str:
    """Start the run of this spec on the cluster; the job's id.

    `output` is the run's folder there, `env` are variables of its environment, `code` says whether it brings the
    source of `ift`. Raises `IftError` for what would fail there anyway, and where the very job is at work.
    """
    spec = specs.load(path, overrides)
    _refuse_secrets(spec, env or {})
    sent = parcel.pack(path, overrides, add=add, code=code)
    sent.require_size()
    if not head.grows():
        cluster.require_room(spec.cluster.workers, head.nodes())
    folder = output or _folder_there(spec)
    name = _name_for(head, sent, folder)
    width = str(terminal.console.width)
    variables = {
        stopping.PATIENCE: str(STOP_S),
        "IFT_LINE_EVERY_S": str(_LINE_EVERY_S),
        "COLUMNS": width,
        lineage.CODE: json.dumps(lineage.code(Path.cwd())),
        **(env or {}),
    }
    words = [head.python(), "-m", "ift.cli", "run", sent.spec, *(["--output", output] if output else [])]
    with tempfile.TemporaryDirectory(prefix="ift-submit-") as temporary:
        sent.write(Path(temporary))
        try:
            head.submit(
                entrypoint=shlex.join(words),
                submission_id=name,
                runtime_env={"working_dir": temporary, "env_vars": variables},
                metadata={"ift.run": spec.name, "ift.folder": folder},
            )
        except RuntimeError as error:
            if "already exists" in str(error):  # somebody was faster by a second
                raise _at_work(head, name) from None
            raise _refused(head, error) from None
    terminal.say(
        f"submitted {name} to {head.address}: {parcel.mib(sent.size)} sent, the run's folder there is {folder}"
        + " (in IFT_HOME for ~/ift where the cluster sets it)" * folder.startswith("~/ift/")
    )
    return name


def _refuse_secrets(spec: Spec, env: Mapping[str, str]) -> None:
    """Raise `IftError` for what must not lie in the cluster's store and in its dashboard for all who have a token."""
    if without_secrets(spec.tracking.uri) != spec.tracking.uri:
        raise IftError(
            "`tracking.uri` holds a password or a token, and what a job is sent is kept on the cluster",
            wanted="an address without",
            hint="give the cluster's nodes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in Kubernetes "
            "from a secret",
        )
    for name in env:
        if secret_name(name):
            raise IftError(
                f"--env {name}: Ray shows a job's environment to all who may look at its dashboard",
                wanted="secrets in the environment or in files of the cluster's nodes, in Kubernetes from a secret",
            )


def _folder_there(spec: Spec) -> str:
    """The run's folder on the cluster if nobody says, in words; `cluster.workplace` decides."""
    storage = spec.cluster.storage
    return f"{storage if storage and '://' not in storage else '~/ift'}/runs/{spec.name}"


def _name_for(head: Dashboard, sent: parcel.Parcel, folder: str) -> str:
    """The id for this submission: the run's name, a digest, and a number where it has been submitted before."""
    base = f"{sent.name}-{sent.digest()[:8]}"
    numbers = [0]
    for job in _jobs(head):
        same = re.fullmatch(re.escape(base) + r"(?:-(\d+))?", job.submission_id)
        if not _over(job):
            if same:
                raise _at_work(head, job.submission_id)
            if (job.metadata or {}).get("ift.folder") == folder:
                raise IftError(
                    f"{job.submission_id} is at work in the same folder, {folder}, on something else",
                    wanted="one run at a time in a folder",
                    hint=f"`ift jobs stop {job.submission_id}` first, or another `name`, or --output DIR",
                )
        if same:
            numbers.append(int(same[1] or 1))
    number = max(numbers) + 1
    return base if number == 1 else f"{base}-{number}"


def _at_work(head: Dashboard, job: str) -> IftError:
    return IftError(
        f"this very run is at work already, as {job}",
        wanted="another spec, or the end of that job",
        hint=f"`ift jobs logs {job} --follow --address {head.address}` shows it; `ift jobs stop {job}`, with the same "
        "address, ends it, and what it did is kept",
    )


# ── following ──


def follow(head: Dashboard, job: str, terminal: Terminal, *, behind: int = 0) -> Outcome:
    """Show the job's log until it ends, but for its first `behind` characters.

    A connection that is lost is made again, for ten minutes.
    """
    seen, lost_since = behind, None
    with Screen(terminal) as screen:
        while True:
            try:
                seen = asyncio.run(_tail(head.client, job, seen, screen))
            except _LOST as error:
                seen = max(seen, getattr(error, "seen", 0))
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _RECONNECT_S:
                    raise IftError(
                        f"{head.address} has not answered for {_RECONNECT_S / 60:.0f} minutes: {_reason(error)}",
                        hint=f"the job runs on; `ift jobs logs {job} --follow` shows it once the head answers",
                    ) from None
                time.sleep(2 * _LOOK_EVERY_S)
                continue
            found = _asked(head, lambda: head.client.get_job_info(job))
            if _over(found):
                return Outcome(_status(found), found.driver_exit_code)
            lost_since = None
            time.sleep(_LOOK_EVERY_S)


class _Cut(Exception):
    """The connection was lost behind so many characters of the log."""

    def __init__(self, seen: int, why: str) -> None:
        super().__init__(why)
        self.seen = seen


_LOST = (_Cut, ConnectionError, OSError)


async def _tail(client: Any, job: str, seen: int, screen: Screen) -> int:
    """Show what comes behind the first `seen` characters; how many there are. Raises `_Cut`."""
    import aiohttp

    at = 0
    try:
        async for text in client.tail_job_logs(job):
            new = text[max(0, seen - at) :]
            at += len(text)
            if new:
                screen.feed(new)
    except (aiohttp.ClientError, RuntimeError, OSError) as error:
        raise _Cut(max(at, seen), _reason(error)) from None
    return max(at, seen)


# ── jobs ──


def listed(head: Dashboard) -> list[dict[str, Any]]:
    """The cluster's submitted jobs, the newest first, in plain values."""
    return [
        {
            "id": job.submission_id,
            "status": _status(job),
            "run": (job.metadata or {}).get("ift.run"),
            "folder": (job.metadata or {}).get("ift.folder"),
            "started": job.start_time and job.start_time / 1000,
            "ended": job.end_time and job.end_time / 1000,
            "command": job.entrypoint,
        }
        for job in _jobs(head)
    ]


def show_jobs(rows: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    """A line a job."""
    from rich.table import Table

    if not rows:
        terminal.say("no jobs")
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("job", "status", "started", "took", "run's folder there"):
        table.add_column(column, no_wrap=column != "run's folder there")
    for row in rows:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"])) if row["started"] else ""
        took = (row["ended"] or time.time()) - row["started"] if row["started"] else 0.0
        table.add_row(row["id"], row["status"], began, _duration(took), row["folder"] or "")
    terminal.console.print(table, highlight=False)


def show_log(head: Dashboard, job: str, terminal: Terminal) -> None:
    """The job's log so far, as it is."""
    terminal.say(str(_asked(head, lambda: head.client.get_job_logs(known(head, job)))).rstrip("\n"))


def wait(head: Dashboard, job: str) -> Outcome:
    """Return when the job ends."""
    known(head, job)
    while not _over(found := _asked(head, lambda: head.client.get_job_info(job))):
        time.sleep(_LOOK_EVERY_S)
    return Outcome(_status(found), found.driver_exit_code)


def stop(head: Dashboard, job: str, terminal: Terminal) -> Outcome:
    """Have the job write a checkpoint and end; show its log until it has."""
    found = _asked(head, lambda: head.client.get_job_info(known(head, job)))
    if _over(found):
        terminal.say(f"{job} has ended before: {_status(found)}")
        return Outcome(_status(found), found.driver_exit_code)
    seconds = stopping.patience((found.runtime_env or {}).get("env_vars") or {})
    if seconds < stopping.SHORT_S:
        terminal.note(
            f"{job} was not submitted by `ift submit`: Ray kills it {seconds:g} s from now, ready or not"
        )
    shown = len(_asked(head, lambda: head.client.get_job_logs(job)))
    _asked(head, lambda: head.client.stop_job(job))
    terminal.say(f"asked {job} to stop: a checkpoint at the end of its step, if it trains, and then the end")
    return follow(head, job, terminal, behind=shown)


def tell_end(job: str, outcome: Outcome, terminal: Terminal) -> int:
    """Words for how it ended; the exit status of the command that waited for it."""
    if outcome.status == "SUCCEEDED":
        terminal.say(f"{job} has succeeded")
        return 0
    if outcome.status == "STOPPED":
        terminal.say(f"{job} was stopped; submitted again, it goes on")
        return 130
    terminal.note(
        f"{job} has failed; once what its log says is mended, it goes on when it is submitted again"
    )
    return outcome.code if outcome.code and 0 < outcome.code < 126 else 1


def known(head: Dashboard, job: str) -> str:
    """`job`, if the cluster knows it; else `IftError`, with those that it knows."""
    names = [found.submission_id for found in _jobs(head)]
    if job not in names:
        raise IftError(
            f"{head.address} knows no job {job}",
            wanted=f"one of {', '.join(names[:8])}"
            if names
            else "one that was submitted to it; there is none",
            hint=nearest(job, names) or "`ift jobs list` shows them",
        )
    return job


def _jobs(head: Dashboard) -> list[Any]:
    """Ray's details of the submitted jobs, the newest first."""
    found = [job for job in _asked(head, head.client.list_jobs) if job.submission_id]
    return sorted(found, key=lambda job: -(job.start_time or 0))


def _status(job: Any) -> str:
    return str(getattr(job.status, "value", job.status))


def _over(job: Any) -> bool:
    return _status(job) in _OVER


def _asked(head: Dashboard, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except (RuntimeError, ConnectionError, OSError) as error:
        raise _refused(head, error) from None


def _refused(head: Dashboard, error: Exception) -> IftError:
    return IftError(
        f"{head.address} does not do it: {_reason(error)}", hint="try again; `ray status` on the head"
    )


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return (
        f"{seconds:.0f} s" if minutes < 1 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    )


def environment(given: Sequence[str]) -> dict[str, str]:
    """`--env NAME=VALUE` as a mapping; NAME alone takes the value that it has here."""
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or (not equals and name not in os.environ):
            raise IftError(f"--env {name}", wanted="NAME=VALUE, or the name of a variable that is set here")
        found[name] = value if equals else os.environ[name]
    return found
