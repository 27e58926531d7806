"""Faults in the middle of a run on two nodes, one after the other: what happened, what was lost, how soon it went on.

In:  root on a Linux machine, for network namespaces; which faults.
Out: a table in Markdown, as it stands in docs/fault-tolerance.md, and the numbers behind it as JSON.

    sudo .venv/bin/python benchmarks/faults.py                               # all of them, about an hour on two cores
    sudo .venv/bin/python benchmarks/faults.py worker hang --output out.json   # these two

The nodes are two network namespaces joined by a cable of their own: a Ray head with the driver and one worker in one,
a Ray node with the other worker in the other. Nothing leaves the machine. The model is a random one of 3.5 million
parameters, trained in full under ZeRO-2 on made-up sentences; what is measured is the way back, not the training.

`s until it went on` is from the fault to the end of the first step that had not been done before. What was lost is
counted in packs: each has to be trained on once in the history that leads to the exported model. `losses` compares each
step's loss, as it was first written down, with that of a run of the same spec to which nothing happened.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hosts import BIN, PATIENCE, PORT, A, B, Nodes, ip, missing, wait

from ift import spec as specs
from ift import storage
from ift.models import base

_HOUSE = Path(__file__).resolve().parents[1]
_STEP = 12  # the fault comes behind this one; the last checkpoint then is of step 10
_DISK, _ROOM = (
    250,
    60,
)  # MiB: a disk of its own, and what is left on it when it is nearly full: one checkpoint is 41
_TASK = """\
name: sentences
kind: generation
license: Apache-2.0
source: {files: rows.jsonl}
metric: rouge_l
templates: [{id: ask, prompt: "{{ question }}", completion: "{{ answer }}"}]
"""


@dataclass
class Run:
    """`ift run` in the head's namespace, and what its folder says of it."""

    nodes: Nodes
    name: str
    overrides: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.nodes.folder / "runs" / self.name

    def start(self) -> "Run":
        spec, log = self.nodes.folder / "spec.yaml", f"{self.name}.log"
        command = [str(BIN / "ift"), "run", str(spec), f"name={self.name}", *self.overrides]
        self.process = self.nodes.start(
            self.nodes.names[0], *command, "--output", str(self.folder), log=log, start_new_session=True
        )
        return self

    def end(self) -> int:
        assert self.process
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """The driver, without a word; `ip netns exec` becomes what it executes."""
        assert self.process
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metrics(self) -> list[dict[str, Any]]:
        """A line for each step, of the first time that it was done."""
        return storage.read_jsonl(self.folder / "metrics.jsonl")

    def steps(self) -> int:
        return max((int(line["step"]) for line in self.metrics()), default=0)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in storage.read_jsonl(self.folder / "events.jsonl") if e["kind"] == kind]

    def reach(self, step: int) -> None:
        def there() -> bool:
            assert self.process
            if self.process.poll() is not None and self.steps() < step:
                raise RuntimeError(
                    f"{self.name} ended before step {step}: {self.nodes.folder / self.name}.log"
                )
            return self.steps() >= step

        wait(there, f"step {step} of {self.name}")


# ── the faults: each starts a run, does its harm, sees the run to its end, and says when the harm was done ──


def worker(nodes: Nodes, run: Run) -> float:
    """kill -9 of a worker"""
    return _harm(run, lambda: _hit(nodes.kill(nodes.names[1], "RayTrainWorker")))


def hang(nodes: Nodes, run: Run) -> float:
    """a worker stops without a word (SIGSTOP); a collective is given up after 30 s"""
    run.overrides += ("train.hang_timeout_s=30",)
    return _harm(run, lambda: _hit(nodes.kill(nodes.names[1], "RayTrainWorker", signal.SIGSTOP)))


def controller(nodes: Nodes, run: Run) -> float:
    """kill -9 of Ray Train's controller"""
    return _harm(run, lambda: _hit(sum(nodes.kill(name, "TrainController") for name in nodes.names)))


def node(nodes: Nodes, run: Run) -> float:
    """a node is lost, with all that is on it; `workers: [1, 2]`"""
    run.overrides += ("cluster.workers=[1, 2]",)
    return _harm(run, lambda: _hit(nodes.kill(nodes.names[1])))


def cable(nodes: Nodes, run: Run) -> float:
    """the cable between the nodes is pulled; `workers: [1, 2]`, time-out 30 s"""
    run.overrides += ("cluster.workers=[1, 2]", "train.hang_timeout_s=30")
    return _harm(run, lambda: ip("-n", nodes.names[1], "link", "set", "ift0", "down"))


def notice(nodes: Nodes, run: Run) -> float:
    """a notice that a node will be taken away; `workers: [1, 2]`"""
    run.overrides += ("cluster.workers=[1, 2]",)
    (going,) = (n["id"] for n in nodes.alive() if n["address"] == B)

    def harm() -> None:
        nodes.start(
            nodes.names[0],
            str(BIN / "ray"),
            "drain-node",
            f"--address={A}:{PORT}",
            f"--node-id={going}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot",
            "--deadline-remaining-seconds=600",
            log="drain.log",
        ).wait()

    return _harm(run, harm)


def growth(nodes: Nodes, run: Run) -> float:
    """a second node comes while one worker trains; `workers: [1, 2]`"""
    run.overrides += ("cluster.workers=[1, 2]",)
    nodes.kill(nodes.names[1])
    nodes.wait_for_nodes(1)
    return _harm(run, nodes.start_node)


def driver(nodes: Nodes, run: Run) -> float:
    """kill -9 of the driver, and the same command again"""

    def harm() -> float:
        run.kill()
        since = time.time()
        run.start()
        return since

    return _harm(run, harm)


def broken_checkpoint(nodes: Nodes, run: Run) -> float:
    """the driver is killed, a byte of the last checkpoint turns over, and the same command again"""

    def harm() -> float:
        wait(lambda: run.events("checkpoint")[-1]["step"] >= _STEP, f"the checkpoint of step {_STEP}")
        run.kill()
        since = time.time()
        newest = max(run.folder.glob("train/checkpoints/step-*/complete.json")).parent
        with (newest / "rank-00001.safetensors").open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        run.start()
        return since

    run.overrides += ("train.checkpoint_steps=4",)
    return _harm(run, harm)


def disk(nodes: Nodes, run: Run) -> float:
    """the disk of the checkpoints is full; room is made, and the same command again"""
    place = nodes.folder / "small"
    filler = place / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (_DISK - _ROOM) << 20)
    run.overrides += (f"cluster.storage={place}",)
    run.start()
    if run.end() == 0:
        raise RuntimeError("the run did not notice that the disk is full")
    since = time.time()
    filler.unlink()
    run.start().end()
    return since


def diverged(nodes: Nodes, run: Run) -> float:
    """the loss is no number: training stops with step, packs and examples"""
    run.overrides += ("train.weight_decay=1.0e+5",)  # each step multiplies the weights by up to -100
    run.start().end()
    return time.time()


FAULTS = [worker, node, cable, notice, growth, hang, controller, driver, broken_checkpoint, disk, diverged]


def _harm(run: Run, harm: Callable[[], float | None]) -> float:
    """`harm` says when it was done, unless that was when it began."""
    run.start()
    run.reach(_STEP)
    began = time.time()
    since = harm() or began
    run.end()
    return since


def _hit(processes: int) -> None:
    if not processes:
        raise RuntimeError("no process was hit: nothing was injected")


# ── the table ──


def measure(nodes: Nodes, fault: Callable[[Nodes, Run], float], quiet: Run) -> dict[str, Any]:
    """One fault, from a cluster of two nodes to the end of its run."""
    run = Run(nodes, fault.__name__.replace("_", "-"))
    shutil.rmtree(run.folder, ignore_errors=True)
    (nodes.folder / f"{run.name}.log").unlink(missing_ok=True)
    since, failed = time.time(), None
    try:
        since = fault(nodes, run)
    except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
        failed = str(error)  # the other faults are to have their turn
    return {
        "name": fault.__name__,
        "fault": fault.__doc__,
        "failed": failed,
        **compare(run, since, {line["step"]: line for line in quiet.metrics()}),
    }


def compare(run: Run, since: float, quiet: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What became of a run to which something happened at the time `since`, beside `quiet`, the steps of another."""
    lines, starts = run.metrics(), run.events("start")
    restarts = [event for event in run.events("restart") if event["time"] > since]
    # a step that was done before the harm may be told after it, so what ends the first attempt is its restart;
    # where the driver was lost or ended nobody tells of one
    over = restarts[0]["time"] if restarts else since
    before = max((line["step"] for line in lines if line["time"] <= over), default=0)
    went_on = min((line["time"] for line in lines if line["step"] > before), default=None)
    again = [start["step"] for start in starts if start["time"] > over]
    common = [line for line in lines if line["step"] in quiet]
    said = (run.nodes.folder / f"{run.name}.log").read_text(errors="replace").splitlines()
    return {
        "ended": "ok" if (run.folder / "train" / "manifest.json").is_file() else "stopped",
        "starts": [(start["step"], start["world"]) for start in starts],
        "reasons": [event["reason"] for event in restarts],
        "seconds": went_on and round(went_on - since, 1),
        "steps_again": before - again[0] if again else None,
        "steps": len(lines),
        "each_once": len(common) == len(quiet) == len(lines)
        and all(line["tokens"] == quiet[line["step"]]["tokens"] for line in lines),
        "worst_difference": max(
            (
                abs(line["loss"] - quiet[line["step"]]["loss"]) / abs(quiet[line["step"]]["loss"])
                for line in common
            ),
            default=None,
        ),
        "said": [line.strip() for line in said if line.lstrip().startswith(("error:", "wanted:", "next:"))][
            -3:
        ],
    }


def prepare(folder: Path) -> None:
    """The model, the rows and the spec."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = specs.load(_HOUSE / "jobs/quickstart.yaml").model
    model = folder / "model"
    if not (model / "config.json").is_file():
        tokenizer = base.load_tokenizer(
            base.resolve(source.source, cache=folder / "cache", sha256=source.sha256)
        )
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=6,
                num_attention_heads=4,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).save_pretrained(model)
        tokenizer.save_pretrained(model)
    rows = ({"question": f"What comes after {i}, and {i + 1}?", "answer": f"{i + 2}"} for i in range(4400))
    storage.write_jsonl(folder / "rows.jsonl", rows)
    (folder / "sentences.yaml").write_text(_TASK, encoding="utf-8")
    spec = {
        "name": "faults",
        "model": {"source": str(model)},
        "tasks": [{"file": "sentences.yaml"}],
        "data": {"max_length": 256, "split": {"train": 4000, "validation": 0, "test": 2}},
        "train": {
            "method": "full",
            "zero_stage": 2,
            "micro_batch": 1,
            "global_batch": 8,
            "learning_rate": 1.0e-3,
            "checkpoint_steps": 5,
        },
        "evaluate": {"probes": "none"},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "cluster": {"workers": 2},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")


@contextmanager
def cluster(folder: Path) -> Iterator[Nodes]:
    """Two nodes, anew for each fault: none inherits what another did. `small` is a disk of their own.

    It is mounted first: a namespace does not see what is mounted after it was made.
    """
    small = folder / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}m", "ift", str(small)], check=True)
    try:
        with Nodes(folder) as nodes:
            yield nodes
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def table(found: list[dict[str, Any]]) -> str:
    """What was found, in Markdown."""
    lines = [
        "| fault | what happened | s until it went on | steps done again | packs | losses |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        what = ", then ".join(
            f"{world} worker{'s' * (world > 1)} from step {step}" for step, world in row["starts"]
        )
        if row["reasons"]:
            what += f" ({', '.join(row['reasons'])})"
        if row["failed"]:
            what += f"; not as it should: {row['failed']}"
        if row["ended"] != "ok":
            what += f"; stopped: {' '.join(row['said'])}"
        worst = row["worst_difference"]
        same = (
            "–"
            if worst is None or row["ended"] != "ok"
            else "equal to the bit"
            if worst == 0
            else f"within {worst:.0e}"
        )
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        again = "–" if row["steps_again"] is None else row["steps_again"]
        packs = "each once" if row["each_once"] else "–" if row["ended"] != "ok" else "not each once"
        lines.append(f"| {row['fault']} | {what} | {seconds} | {again} | {packs} | {same} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    names = [fault.__name__ for fault in FAULTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(names)}; all if not given")
    parser.add_argument("--work", type=Path, default=_HOUSE / "build" / "faults")
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    asked = parser.parse_args()
    if unknown := set(asked.faults) - set(names):
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if why := missing():
        parser.error(why)
    folder: Path = asked.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    quiet = Run(Nodes(folder), "quiet")
    if not (quiet.folder / "summary.json").is_file():
        shutil.rmtree(quiet.folder, ignore_errors=True)
        with cluster(folder) as quiet.nodes:
            if quiet.start().end() != 0:
                sys.exit(f"the run without a fault failed: {folder / 'quiet.log'}")
    kept = storage.read_json(asked.output) if asked.output else None
    found = {row["name"]: row for row in kept["rows"]} if kept else {}  # of faults injected before
    for fault in FAULTS:
        if not asked.faults or fault.__name__ in asked.faults:
            print(f"{fault.__name__} …", file=sys.stderr, flush=True)
            with cluster(folder) as nodes:
                found[fault.__name__] = row = measure(nodes, fault, quiet)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if asked.output:
                storage.write_json(asked.output, {"rows": list(found.values())})
    print(table([found[name] for name in names if name in found]))


if __name__ == "__main__":
    main()
