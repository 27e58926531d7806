"""`ift sync RUN…`: send what a run's folder still holds for MLflow, its model too, from a process of its own.

In:  folders of runs; where MLflow is, if not where `tracking.json` says.
Out: a line a run, and whether all of them have arrived.

    sync([Path("runs/quickstart")], terminal)      # True
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ift import reporting, storage
from ift.console import Stage, Terminal
from ift.errors import IftError
from ift.redaction import without_secrets
from ift.stages import VERSION
from ift.summary import done
from ift.tracking import registry
from ift.tracking.client import reason
from ift.tracking.outbox import STATE, Outbox, saved_state
from ift.tracking.report import write_report
from ift.tracking.sender import Sender

_TIMEOUT_S = 30.0  # of a request: here somebody waits for it, and nothing else does
_ATTEMPTS, _BETWEEN_S = 4, 2.0  # before a server is given up, and how much longer to wait each time


def sync(
    folders: Sequence[Path], terminal: Terminal, *, uri: str | None = None, attempts: int = _ATTEMPTS
) -> bool:
    """Send what these runs hold, and the further runs inside them, and register their models; whether nothing is left.

    Raises `IftError` for a folder that is no run's, before anything is sent.
    """
    found = [inner for folder in folders for inner in _with_inner(folder)]
    arrived = [_sync(folder, terminal, uri, attempts) for folder in found]
    registered = [
        _register(folder, terminal, uri) for folder, sent in zip(found, arrived, strict=True) if sent
    ]
    return all(arrived) and all(registered)


def _with_inner(folder: Path) -> list[Path]:
    """The folder of a run, and behind it those of its further runs: they become children of the first."""
    if not folder.is_dir():
        raise IftError(f"there is no folder {folder}", wanted="a run's folder, such as runs/quickstart")
    if not (folder / "spec.yaml").exists() and saved_state(folder) is None:
        raise IftError(
            f"{folder} is no run's folder: it has neither spec.yaml nor {STATE}",
            wanted="a folder that `ift run` has written, such as runs/quickstart",
        )
    return [folder, *sorted(path.parent for path in folder.glob(f"*/{STATE}"))]


def _sync(folder: Path, terminal: Terminal, uri: str | None, attempts: int) -> bool:
    """One folder; says how it ended."""
    state = saved_state(folder)
    if state is None:
        terminal.say(f"- {folder}: nothing to send; the run has not begun to tell MLflow of anything")
        return True
    outbox = Outbox(folder)
    outbox.open(
        {"uri": without_secrets(uri or state["uri"]), "experiment": state["experiment"]},
        run_name=state.get("run_name") or folder.name,
    )
    with outbox.alone(terminal.note) as mine:
        if not mine:
            terminal.note(
                f"{folder}: another process sends what it holds, the run itself or another `ift sync`; "
                f"{outbox.pending():,} lines and files to go"
            )
            return False
        address = uri or state["uri"]
        sender = Sender(outbox, address, outbox.state["run_name"], timeout=_TIMEOUT_S, notify=terminal.note)
        if outbox.state["run_id"] and not sender.left:
            terminal.say(f"- {folder}: nothing to send; all of it is in MLflow at {sender.address}")
        elif not _send(folder, sender, terminal, attempts):
            return False
    if not outbox.state.get("ended"):
        terminal.note(f"{folder}: the run was cut short; MLflow shows it as running until it goes on")
    return True


def _send(folder: Path, sender: Sender, terminal: Terminal, attempts: int) -> bool:
    total = sender.left
    try:
        with terminal.stage("sync") as stage:
            _try(sender, stage, total, attempts)
            stage.result(
                f"{folder}: {_things(sender.arrived)} sent to MLflow at {sender.address}, run {sender.run_id}"
            )
    except Exception as error:  # noqa: BLE001  (whatever it is, it is told)
        terminal.note(
            f"{folder}: MLflow at {sender.address}: {reason(error, sender.timeout)}; "
            f"{_things(sender.arrived)} sent, {sender.left:,} to go. Nothing is lost: `ift sync {folder}` goes on"
        )
        return False
    return True


def _try(sender: Sender, stage: Stage, total: int, attempts: int) -> None:
    """Rounds until everything has arrived. Raises the last error where nothing more gets through."""
    failures, before = 0, -1
    while True:
        try:
            stage.status(f"to MLflow at {sender.address}")
            sender.round(lambda: stage.progress(sender.arrived, total, "lines and files"))
            if sender.left:
                raise IftError("the run that it belongs to is not there yet")
            return
        except Exception as error:
            sender.lost(error)
            failures = 1 if sender.arrived > before else failures + 1
            before = sender.arrived
            if failures >= attempts:
                raise
        time.sleep(_BETWEEN_S * failures)


def _register(folder: Path, terminal: Terminal, uri: str | None) -> bool:
    """Make the run's model a version where it should be one and is not; whether it is, as far as it should be."""
    asked, state = storage.read_json(folder / VERSION), saved_state(folder)
    if asked is None or state is None:
        return True  # it has not come so far, or another run of its folder was the better one
    into = (folder / asked.pop("into")).resolve()
    with Outbox(folder).alone() as mine:  # a run that is at work registers its model itself
        if not mine:
            terminal.note(f"{folder}: another process is at work on it; `ift sync {folder}` tries again")
            return False
        return done(into, "register") is not None or _registered(folder, into, asked, state, terminal, uri)


def _registered(
    folder: Path,
    into: Path,
    asked: dict[str, Any],
    state: Mapping[str, Any],
    terminal: Terminal,
    uri: str | None,
) -> bool:
    summary, address = storage.read_json(into / "summary.json") or {}, uri or state["uri"]
    try:
        with terminal.stage("register") as stage:
            stage.status(f"uploading the model of {folder}")
            number = registry.register(state["run_id"], folder / "model", uri=address, **asked)
            named = f", alias {asked['alias']}" if asked["alias"] else ""
            stage.result(f"{asked['name']} version {number}{named}")
            place = {"tracking_uri": without_secrets(address), "run_id": state["run_id"]}
            mlflow = {**summary.get("mlflow", {}), **place, "model_version": number}
            mlflow.pop("error", None)
            summary["mlflow"] = mlflow
            storage.write_json(into / "summary.json", summary)
            write_report(into / "report.html", reporting.read(into))
            pages = registry.Registry(address)
            with pages.errors("written to"):
                for name in ("summary.json", "report.html"):
                    pages.client.log_artifact(state["run_id"], str(into / name))
            storage.write_json(into / "register" / "manifest.json", mlflow)
    except IftError as error:
        terminal.note(f"{folder}: {error.what}; `ift sync {folder}` tries again")
        return False
    return True


def _things(count: int) -> str:
    return f"{count:,} line{'s' * (count != 1)} and files"
