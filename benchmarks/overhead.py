"""What the system costs: a run's steps beside the bare engine's, two workers beside one, a start, a restart.

In:  how many steps; a small random model, or the quickstart's.
Out: tables in Markdown, and the numbers behind them as JSON.

    .venv/bin/python benchmarks/overhead.py --output overhead.json          # the real model; half an hour on two cores
    .venv/bin/python benchmarks/overhead.py --model tiny --steps 6 --rounds 1    # a try, some minutes

Every run is `ift run` on this machine, with tracking (SQLite) and checkpoints on; the bare loop is the same engine with
the same packs in a process without Ray, tracking or checkpoints. They take turns. A step's time is from the end of the
one before it to its own end by the clock, so that what happens between steps counts. benchmarks/README.md says more.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import HOUSE, machine, machine_in_words, ratios, spread, table, write

from ift import spec as specs
from ift import storage
from ift.models import base
from ift.train.trainer import KEEP_MEMORY

_PATIENCE = 1800.0  # seconds for anything to happen
_TASK = """\
name: sums
kind: generation
license: Apache-2.0
source: {files: rows.jsonl}
metric: rouge_l
templates: [{id: ask, prompt: "{{ question }}", completion: "{{ answer }}"}]
"""
_WORDS = (
    "apple autumn bell bird boat book branch bread bridge bright brook candle castle chair cliff cloud coast copper "
    "corner cotton cradle crown dawn desert door dust eagle early east ember engine evening farm feather fence field "
    "fire fish floor flower forest fox frost garden gate glass gold grain grass green harbour hill honey horse house "
    "island ivory kettle key lake lamp leaf letter light lion market meadow mill mirror moon morning mountain mouse"
)


# What is run.


def prepare(folder: Path, model: str, *, length: int, batch: int, steps: int) -> Path:
    """Rows, task and spec in `folder`; a random model too where `model` is `tiny`. The spec's path."""
    folder.mkdir(parents=True, exist_ok=True)
    quickstart = specs.load(HOUSE / "jobs" / "quickstart.yaml").model
    source: dict[str, Any] = {"source": quickstart.source, "sha256": quickstart.sha256}
    if model == "tiny":
        _random_model(
            folder / "model",
            base.resolve(quickstart.source, cache=storage.cache_dir(), sha256=quickstart.sha256),
        )
        source = {"source": str(folder / "model")}
    count = steps * batch * length // 50 + 2  # a row has about so many tokens
    words, rng = _WORDS.split(), random.Random(0)
    rows = (
        {"question": " ".join(rng.choices(words, k=12)), "answer": " ".join(rng.choices(words, k=6))}
        for _ in range(count)
    )
    storage.write_jsonl(folder / "rows.jsonl", rows)
    (folder / "sums.yaml").write_text(_TASK, encoding="utf-8")
    spec = {
        "name": "overhead",
        "model": source,
        "tasks": [{"file": "sums.yaml"}],
        "data": {"max_length": length, "split": {"validation": 0, "test": 2}},
        "train": {
            "method": "full",
            "zero_stage": 0,
            "micro_batch": 1,
            "activation_checkpointing": False,
            "global_batch": batch,
            "learning_rate": 1.0e-5,
            "checkpoint_steps": max(2, steps // 3),
        },
        "evaluate": {"probes": "none"},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "cluster": {"workers": 1},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def _random_model(folder: Path, real: Path) -> None:
    """A Llama of three million weights with the real one's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = base.load_tokenizer(real)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Run:
    """`ift run` in a process of its own, and what its folder says of it."""

    def __init__(self, spec: Path, name: str, *overrides: str, cache: Path | None = None) -> None:
        self.folder = spec.parent / "runs" / name
        self._log = spec.parent / f"{name}.log"
        self._command = [
            sys.executable,
            "-c",
            "from ift.cli import main; main()",
            "run",
            str(spec),
            f"name={name}",
        ]
        self._command += [*overrides, "--output", str(self.folder)]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(HOUSE),
            **({"IFT_CACHE": str(cache)} if cache else {}),
        }
        self.start()

    def start(self) -> None:
        """Again, where it was killed."""
        self.started = time.time()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def lines(self) -> list[dict[str, Any]]:
        return storage.read_jsonl(self.folder / "metrics.jsonl")

    def reach(self, step: int) -> dict[str, Any]:
        """The line of the first step at or behind this one."""
        return self.wait(
            lambda: next((line for line in self.lines() if line["step"] >= step), None), f"step {step}"
        )

    def wait(self, until: Callable[[], Any], what: str) -> Any:
        """What `until` gives when it gives something."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := until()):
            ended = self.process.poll()
            if ended is not None and not (found := until()):
                sys.exit(f"`ift run` ended with {ended} before {what}:\n\n{self._tail()}")
            if found:
                break
            if time.monotonic() > deadline:
                self.end()
                sys.exit(f"{what}: not within {_PATIENCE:.0f} s:\n\n{self._tail()}")
            time.sleep(0.05)
        return found

    def finish(self) -> None:
        """Wait for its end."""
        if self.process.wait(timeout=_PATIENCE):
            sys.exit(f"`ift run` failed:\n\n{self._tail()}")

    def workers(self) -> list[psutil.Process]:
        """The training processes under it."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def end(self) -> None:
        """Kill it, and what it started."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGKILL)
            for child in children:
                with suppress(psutil.Error):
                    child.kill()
        self.process.wait()

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


# The bare loop.


def bare(folder: Path, steps: int) -> dict[str, Any]:
    """The engine of a run on its packs, in this process: seconds of each step and losses."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")
    import torch
    import torch.distributed as dist

    from ift.data.stream import Stream
    from ift.models import attention
    from ift.train import loop
    from ift.train.engine import DeepSpeedEngine
    from ift.train.job import Job
    from ift.train.loss import collate

    spec = specs.load(folder / "spec.yaml")
    stream_dir = folder / "prepare" / "stream"
    stream = Stream(stream_dir)
    batch, micro = spec.train.global_batch, int(spec.train.micro_batch)
    meeting = Path(tempfile.mkdtemp()) / uuid.uuid4().hex
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    torch.set_num_threads(int(os.environ["IFT_BENCHMARK_THREADS"]))
    torch.manual_seed(spec.seed)
    model_dir = base.resolve(spec.model.source, cache=storage.cache_dir(), sha256=spec.model.sha256)
    job = Job(
        model_dir=model_dir,
        stream_dir=stream_dir,
        validation_dir=stream_dir,
        packs=batch * steps,
        validation_packs=0,
        epoch_ends=(),
        export_dir=folder,
        checkpoints=str(folder),
        global_batch=batch,
        learning_rate=spec.train.rate("full"),
        schedule="constant",
        warmup=0.0,
        weight_decay=spec.train.weight_decay,
        max_grad_norm=spec.train.max_grad_norm,
        seed=spec.seed,
        micro_batch=micro,
        zero_stage=int(spec.train.zero_stage),
        precision="fp32",
        threads=0,
    )
    engine = DeepSpeedEngine(job, 1, torch.device("cpu"))
    attention.use(engine.module, "packed")
    there = (storage.read_json(folder / "prepare" / "manifest.json") or {})["packs"]
    packs = stream.read(range(min(batch * steps, there)))  # the last step may have fewer
    batches = (
        [collate(packs[i : i + micro], "cpu") for i in range(start, start + batch, micro)]
        for start in range(0, len(packs), batch)
    )
    ends = [time.time()]
    losses: list[float] = []

    def after(line: dict[str, Any]) -> None:
        ends.append(time.time())
        losses.append(line["loss"])

    train = spec.train
    rate = loop.schedule(train.schedule, train.rate("full"), steps, train.warmup)
    loop.train(engine, batches, range(steps), rate, after)
    dist.destroy_process_group()
    return {"seconds": [b - a for a, b in pairwise(ends)], "losses": losses}


# What is measured.


def step_seconds(lines: Sequence[dict[str, Any]], warm: int) -> list[float]:
    """From the end of one step to that of the next, the first `warm` left out."""
    ends = [line["time"] for line in lines]
    return [b - a for a, b in pairwise(ends)][max(0, warm - 1) :]


def steps_of(spec: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of a run with one worker, of the bare loop, and of two workers on the same batch; in turns."""
    found: dict[str, list[list[float]]] = {
        "run": [],
        "bare": [],
        "bare, memory kept": [],
        "two workers": [],
        "one, twice the rows": [],
    }
    threads = asked.threads or os.cpu_count() or 1
    for turn in range(asked.rounds):
        run = Run(spec, f"one-{turn}")
        run.finish()
        lines = run.lines()
        found["run"].append(step_seconds(lines, asked.warm))
        shutil.copy(spec, run.folder / "spec.yaml")
        for name, variables in (("bare", {}), ("bare, memory kept", KEEP_MEMORY)):
            alone = _alone(run.folder, len(lines), {**variables, "IFT_BENCHMARK_THREADS": str(threads)})
            found[name].append(alone["seconds"][asked.warm :])
            apart = max(abs(line["loss"] - loss) for line, loss in zip(lines, alone["losses"], strict=True))
            print(f"run and {name} loop: losses at most {apart:.1e} apart", file=sys.stderr)
        two = Run(spec, f"two-{turn}", "cluster.workers=2")
        two.finish()
        found["two workers"].append(step_seconds(two.lines(), asked.warm))
        twice = Run(spec, f"twice-{turn}", f"train.micro_batch={min(2, asked.batch)}")
        twice.finish()
        found["one, twice the rows"].append(step_seconds(twice.lines(), asked.warm))
    return {name: [spread(values).median for values in turns] for name, turns in found.items()}


def _alone(folder: Path, steps: int, variables: dict[str, str]) -> dict[str, Any]:
    """What `bare` gives in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--bare", str(folder), "--steps", str(steps)],
        env={**os.environ, "PYTHONPATH": str(HOUSE), **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the bare loop failed:\n\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts_of(spec: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the command to the end of the first step: with an empty cache, and with what that has left."""
    found: dict[str, Any] = {}
    cache = spec.parent / "cold-cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    for name in ("models", "packages"):  # the model is not fetched again
        if (storage.cache_dir() / name).exists():
            (cache / name).symlink_to(storage.cache_dir() / name, target_is_directory=True)
    for name in ("cold", "warm"):
        run = Run(spec, f"start-{name}", cache=cache)
        first = run.reach(1)
        run.finish()
        parts = {
            stage: (storage.read_json(run.folder / stage / "manifest.json") or {}).get("seconds")
            for stage in ("prepare", "baseline")
        }
        found[name] = {"seconds": first["time"] - run.started, "step": first["seconds"], **parts}
    return found


def restarts_of(spec: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a kill to the end of the next step that had not been done before."""
    found = {}
    for name in ("a worker", "`ift run`, started again"):
        run = Run(spec, f"kill-{name.split()[-1]}")
        # so that a checkpoint lies behind it
        last = run.reach(max(2, asked.steps // 3) + 1)["step"]
        since = time.time()
        if name == "a worker":
            workers = run.wait(run.workers, "a worker")
            workers[0].kill()
        else:
            run.end()
            run.start()
        reached = max(line["step"] for line in run.lines())
        line = run.reach(max(last, reached) + 1)
        found[name] = {"seconds": line["time"] - since, "step": line["step"]}
        run.finish()
    return found


def report(results: dict[str, Any]) -> str:
    """The tables."""
    parts = []
    if steps := results.get("steps"):
        rows = []
        for name, values in steps.items():
            beside = "" if name == "bare" else str(ratios(values, steps["bare"]))
            rows.append([name, f"{spread(values).median:.3f}", beside])
        parts.append(table(["a step", "s", "to the bare loop"], rows))
    if starts := results.get("starts"):
        rows = [
            [
                name,
                f"{of['seconds']:.1f}",
                *(f"{of[s]:.1f}" if of[s] else "" for s in ("prepare", "baseline", "step")),
            ]
            for name, of in starts.items()
        ]
        parts.append(
            table(["`ift run`", "s to its first step", "of it prepare", "baseline", "the step"], rows)
        )
    if restarts := results.get("restarts"):
        rows = [[name, f"{of['seconds']:.1f}"] for name, of in restarts.items()]
        parts.append(table(["killed", "s to the next new step"], rows))
    return "\n\n".join(parts)


_MEASURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "steps": steps_of,
    "starts": starts_of,
    "restarts": restarts_of,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(_MEASURES)}; all of them"
    )
    parser.add_argument("--model", choices=["real", "tiny"], default="real")
    parser.add_argument("--length", type=int, default=512, help="tokens of a pack (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="packs a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="of a run, about (%(default)s)")
    parser.add_argument(
        "--warm", type=int, default=2, help="of these, steps that are not counted (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="times that all of it is measured (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of torch in the bare loop; all cores by default")
    parser.add_argument("--work", type=Path, help="work folder; one that is deleted afterwards by default")
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.bare:
        print(json.dumps(bare(asked.bare, asked.steps)))
        return
    if unknown := [name for name in asked.measures if name not in _MEASURES]:
        parser.error(f"{unknown[0]} is no measure: {', '.join(_MEASURES)}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (asked.work or Path(scratch)).absolute()
        spec = prepare(folder, asked.model, length=asked.length, batch=asked.batch, steps=asked.steps)
        for name in asked.measures or _MEASURES:
            results[name] = _MEASURES[name](spec, asked)
            print(report({name: results[name]}), file=sys.stderr, flush=True)
    print(f"\n{machine_in_words(machine())}\n\n{report(results)}")
    write(
        asked.output,
        results,
        asked=vars(asked),
        packages=("ift", "torch", "transformers", "deepspeed", "ray", "mlflow"),
    )


if __name__ == "__main__":
    main()
