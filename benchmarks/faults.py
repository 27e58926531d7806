"""Faults in the middle of a run on two nodes, one after the other: what happened, what was lost, how soon it went on.

In:  root on a Linux machine, for network namespaces; which faults.
Out: a table in Markdown, as it stands in docs/fault-tolerance.md, and the numbers behind it as JSON.

    sudo .venv/bin/python benchmarks/faults.py                               # all of them, about an hour on two cores
    sudo .venv/bin/python benchmarks/faults.py worker hang --output out.json

The nodes are two network namespaces joined by a cable of their own: a Ray head with the driver and one worker in one,
a Ray node with the other worker in the other. Nothing leaves the machine. The model is a random one of 3.5 million
parameters, trained in full under ZeRO-2 on made-up sentences; what is measured is the way back, not the training.

`s until it went on` is from the fault to the first step that had not been done before. What was lost is counted in
packs: each has to be trained on once in the history that leads to the exported model. `losses` compares that history
with a run of the same spec to which nothing happened.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from ift import spec as specs
from ift import storage
from ift.models import base

_HOUSE = Path(__file__).resolve().parents[1]
_BIN = Path(sys.executable).parent
_A, _B = "10.77.31.1", "10.77.31.2"
_PORT = 6379
_STEP = 12  # the fault comes behind this one; the last checkpoint then is of step 10
_PATIENCE = 900.0  # seconds for anything to happen
_TASK = """\
name: sentences
kind: generation
license: Apache-2.0
source: {files: rows.jsonl}
metric: rouge_l
templates: [{id: ask, prompt: "{{ question }}", completion: "{{ answer }}"}]
"""


@dataclass
class Nodes:
    """Two Ray nodes in network namespaces of their own."""

    folder: Path
    names: tuple[str, str] = field(default_factory=lambda: (f"ift-a-{os.getpid()}", f"ift-b-{os.getpid()}"))
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> "Nodes":
        a, b = self.names
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "ift0", "netns", a, "type", "veth", "peer", "name", "ift0", "netns", b)
        for name, address in zip(self.names, (_A, _B), strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", "ift0")
            _ip("-n", name, "link", "set", "ift0", "up")
        self.start_head()
        self.start_node()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            self.kill(name)
        for process in self.processes:
            process.wait()
        for name in self.names:
            _ip("netns", "delete", name)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": f"{_A}:{_PORT}",
            "IFT_CACHE": str(self.folder / "cache"),
            "PATH": f"{_BIN}:{os.environ['PATH']}",
        }

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

    def ray_start(self, name: str, *options: str) -> None:
        ray = [str(_BIN / "ray"), "start", "--block", "--num-cpus=2", "--object-store-memory=200000000"]
        self.processes.append(self.start(name, *ray, *options, log=f"{name}.log"))

    def start_head(self) -> None:
        self.ray_start(
            self.names[0], "--head", f"--node-ip-address={_A}", f"--port={_PORT}", f"--dashboard-host={_A}"
        )
        self.wait_for_nodes(1)

    def start_node(self) -> None:
        self.ray_start(self.names[1], f"--address={_A}:{_PORT}", f"--node-ip-address={_B}")
        self.wait_for_nodes(2)

    def alive(self) -> list[dict[str, Any]]:
        """The nodes that Ray takes for alive."""
        ask = (
            "import json, ray; ray.init(log_to_driver=False, logging_level='error'); alive = "
            "[{'id': n['NodeID'], 'address': n['NodeManagerAddress']} for n in ray.nodes() if n['Alive']]; "
            "print(json.dumps(alive))"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[0], sys.executable, "-c", ask],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
        return found

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

    def kill(self, name: str, of: str = "", with_signal: int = signal.SIGKILL) -> None:
        for pid in self.pids(name, of):
            with suppress(ProcessLookupError):
                os.kill(pid, with_signal)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wait(until: Callable[[], Any], what: str) -> Any:
    """What `until` gives when it gives something."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := until()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {_PATIENCE:.0f} s")
        time.sleep(0.1)
    return found


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
        command = [str(_BIN / "ift"), "run", str(spec), f"name={self.name}", *self.overrides]
        self.process = self.nodes.start(
            self.nodes.names[0], *command, "--output", str(self.folder), log=log, start_new_session=True
        )
        return self

    def end(self) -> int:
        assert self.process
        return self.process.wait(timeout=_PATIENCE)

    def kill(self) -> None:
        """The driver, without a word; `ip netns exec` becomes what it executes."""
        assert self.process
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def steps(self) -> int:
        return max(
            (int(line["step"]) for line in storage.read_jsonl(self.folder / "metrics.jsonl")), default=0
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in storage.read_jsonl(self.folder / "events.jsonl") if e["kind"] == kind]

    def losses(self) -> dict[int, float]:
        return {int(line["step"]): line["loss"] for line in storage.read_jsonl(self.folder / "metrics.jsonl")}

    def reach(self, step: int) -> None:
        def there() -> bool:
            assert self.process
            if self.process.poll() is not None and self.steps() < step:
                raise RuntimeError(
                    f"{self.name} ended before step {step}: {self.nodes.folder / self.name}.log"
                )
            return self.steps() >= step

        wait(there, f"step {step} of {self.name}")

    def went_on(self, since: float) -> float:
        """Seconds from `since` to the first step that had not been done before."""
        before = self.steps()
        self.reach(before + 1)
        return time.monotonic() - since


# ── the faults: each starts a run, does its harm, and says how long it took to go on ──


def worker(nodes: Nodes, run: Run) -> float:
    """kill -9 of a worker"""
    return _harm(run, lambda: nodes.kill(nodes.names[1], "RayTrainWorker"))


def hang(nodes: Nodes, run: Run) -> float:
    """a worker stops without a word (SIGSTOP); a collective is given up after 30 s"""
    run.overrides += ("train.hang_timeout_s=30",)
    return _harm(run, lambda: nodes.kill(nodes.names[1], "RayTrainWorker", signal.SIGSTOP))


def controller(nodes: Nodes, run: Run) -> float:
    """kill -9 of Ray Train's controller"""

    def harm() -> None:
        for name in nodes.names:
            nodes.kill(name, "TrainController")

    return _harm(run, harm)


def node(nodes: Nodes, run: Run) -> float:
    """a node is lost, with all that is on it; `workers: [1, 2]`"""
    run.overrides += ("cluster.workers=[1, 2]",)
    return _harm(run, lambda: nodes.kill(nodes.names[1]))


def cable(nodes: Nodes, run: Run) -> float:
    """the cable between the nodes is pulled; `workers: [1, 2]`, time-out 30 s"""
    run.overrides += ("cluster.workers=[1, 2]", "train.hang_timeout_s=30")
    return _harm(run, lambda: _ip("-n", nodes.names[1], "link", "set", "ift0", "down"))


def notice(nodes: Nodes, run: Run) -> float:
    """a notice that a node will be taken away; `workers: [1, 2]`"""
    run.overrides += ("cluster.workers=[1, 2]",)

    def harm() -> None:
        (going,) = (n["id"] for n in nodes.alive() if n["address"] == _B)
        nodes.start(
            nodes.names[0],
            str(_BIN / "ray"),
            "drain-node",
            f"--address={_A}:{_PORT}",
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
    return _harm(run, nodes.start_node, until=lambda: len(run.events("start")) > 1)


def driver(nodes: Nodes, run: Run) -> float:
    """kill -9 of the driver, and the same command again"""

    def harm() -> None:
        run.kill()
        run.start()

    return _harm(run, harm)


def broken_checkpoint(nodes: Nodes, run: Run) -> float:
    """the driver is killed, a byte of the last checkpoint turns over, and the same command again"""

    def harm() -> None:
        run.kill()
        newest = max(run.folder.glob("train/checkpoints/step-*/rank-00001.safetensors"))
        with newest.open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        run.start()

    run.overrides += ("train.checkpoint_steps=4",)
    return _harm(run, harm)


def disk(nodes: Nodes, run: Run) -> float:
    """the disk of the checkpoints is full; room is made, and the same command again"""
    place = nodes.folder / "small"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "ift", str(place)], check=True)
    try:
        run.overrides += (f"cluster.storage={place}",)
        run.start()
        if run.end() == 0:
            raise RuntimeError("the run did not notice that the disk is full")
        since = time.monotonic()
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        run.start()
        took = run.went_on(since)
        run.end()
        return took
    finally:
        subprocess.run(["umount", str(place)], check=True)


def diverged(nodes: Nodes, run: Run) -> float:
    """the loss is no number: training stops with step, packs and examples"""
    run.overrides += ("train.learning_rate=0.999", "train.max_grad_norm=0", "train.schedule=constant")
    run.start()
    run.end()
    return float("nan")


FAULTS = [worker, hang, controller, node, cable, notice, growth, driver, broken_checkpoint, disk, diverged]


def _harm(run: Run, harm: Callable[[], None], until: Callable[[], bool] = lambda: True) -> float:
    run.start()
    run.reach(_STEP)
    since = time.monotonic()
    harm()
    wait(until, f"what comes of it in {run.name}")
    took = run.went_on(since)
    run.end()
    return took


# ── the table ──


def measure(nodes: Nodes, fault: Callable[[Nodes, Run], float], quiet: dict[int, float]) -> dict[str, Any]:
    """One fault, from a cluster of two nodes to the end of its run."""
    run = Run(nodes, fault.__name__.replace("_", "-"))
    shutil.rmtree(run.folder, ignore_errors=True)
    took = fault(nodes, run)
    summary = storage.read_json(run.folder / "train" / "manifest.json")
    losses = run.losses()
    last = (nodes.folder / f"{run.name}.log").read_text(errors="replace").splitlines()
    starts = run.events("start")
    again = sum(
        max(0, max((s for s in losses if s <= _STEP + 3), default=0) - start["step"]) for start in starts[1:2]
    )
    return {
        "fault": fault.__doc__,
        "ended": "ok" if summary else "stopped",
        "starts": [(start["step"], start["world"]) for start in starts],
        "reasons": [event["reason"] for event in run.events("restart")],
        "seconds": round(took, 1),
        "steps_again": again,
        "steps": len(losses),
        "worst_difference": max(
            (abs(losses[s] - quiet[s]) / abs(quiet[s]) for s in losses if s in quiet), default=None
        ),
        "said": [line for line in last if line.startswith(("error", "!", "  wanted", "  next"))][-6:],
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
    rows = ({"question": f"What comes after {i}, and {i + 1}?", "answer": f"{i + 2}"} for i in range(1200))
    storage.write_jsonl(folder / "rows.jsonl", rows)
    (folder / "sentences.yaml").write_text(_TASK, encoding="utf-8")
    spec = {
        "name": "faults",
        "model": {"source": str(model)},
        "tasks": [{"file": "sentences.yaml"}],
        "data": {"max_length": 256, "split": {"train": 1000, "validation": 0, "test": 2}},
        "train": {
            "method": "full",
            "zero_stage": 2,
            "micro_batch": 1,
            "global_batch": 4,
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
    """Two nodes, anew for each fault: none inherits what another did."""
    nodes = Nodes(folder)
    with nodes:
        yield nodes


def table(found: list[dict[str, Any]]) -> str:
    """What was found, in Markdown."""
    lines = [
        "| fault | what happened | s until it went on | steps done again | packs | losses |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        starts = ", then ".join(
            f"{world} worker{'s' * (world > 1)} from step {step}" for step, world in row["starts"]
        )
        worst = row["worst_difference"]
        same = "–" if worst is None else "equal to the bit" if worst == 0 else f"within {worst:.0e}"
        seconds = "–" if row["seconds"] != row["seconds"] else f"{row['seconds']:.0f}"
        what = starts if row["ended"] == "ok" else f"{starts}; stopped: {' '.join(row['said'])}"
        packs = "each once" if row["ended"] == "ok" else "–"
        lines.append(f"| {row['fault']} | {what} | {seconds} | {row['steps_again']} | {packs} | {same} |")
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
    if os.geteuid() != 0 or not shutil.which("ip"):
        parser.error("needs root and the package iproute2, for network namespaces")
    folder: Path = asked.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    with cluster(folder) as nodes:
        quiet = Run(nodes, "quiet")
        if not (quiet.folder / "summary.json").is_file():
            shutil.rmtree(quiet.folder, ignore_errors=True)
            if quiet.start().end() != 0:
                sys.exit(f"the run without a fault failed: {folder / 'quiet.log'}")
    found = []
    for fault in FAULTS:
        if not asked.faults or fault.__name__ in asked.faults:
            print(f"{fault.__name__} …", file=sys.stderr, flush=True)
            with cluster(folder) as nodes:
                found.append(measure(nodes, fault, quiet.losses()))
            if asked.output:
                storage.write_text(asked.output, json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
