"""What the planner says beside what training takes: the peak of each worker's memory, on CPU.

In:  which models, how many workers, which ZeRO stages; an hour or so for all of them on two quiet cores.
Out: a table of plan, measured peak and their ratio, and the same as JSON lines.

    .venv/bin/python benchmarks/plan.py                                     # all
    .venv/bin/python benchmarks/plan.py --model tiny --cases 1:0:full 2:3:lora --length 128 --output plan.jsonl

A case is WORKERS:STAGE:METHOD, with `:again` behind it where activations are computed again. Each worker is a process
with a gloo group that trains a few steps with the engine of ift/train/engine.py on made-up packs, without Ray. What a
process holds before it has loaded anything is measured too and given to the plan, for it depends on what is installed.
benchmarks/README.md says what is counted.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ift.models import plan as plans
from ift.models import shape as shapes
from ift.models.adapters import Adapter

os.environ["DS_ACCELERATOR"] = "cpu"

_SHARE = 0.2  # of tokens that are supervised
_ONCE = [
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "ift.train.engine",
]
_LLAMAS = {
    # 32 M parameters; its largest tensor is a quarter of it, as in many small models
    "tiny": {
        "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    # SmolLM2-135M
    "smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
}  # fmt: skip
_ALL = [
    "1:0:full", "1:0:full:again", "1:0:lora", "1:0:lora:again",
    "2:0:full", "2:1:full", "2:2:full", "2:3:full", "2:2:full:again", "2:3:full:again", "2:2:lora", "2:3:lora",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to train, on so many workers."""

    workers: int
    stage: int
    method: str
    again: bool
    length: int
    micro_batch: int = 1
    rounds: int = 2
    steps: int = 3

    @classmethod
    def of(cls, text: str, **sizes: int) -> "Case":
        """`2:3:lora:again`"""
        workers, stage, method, *again = text.split(":")
        return cls(int(workers), int(stage), method, again == ["again"], **sizes)

    @property
    def choice(self) -> plans.Choice:
        return plans.Choice(self.method, self.stage, "none", self.again, self.micro_batch)

    @property
    def global_batch(self) -> int:
        return self.workers * self.micro_batch * self.rounds


def random_model(kind: str, folder: Path) -> Path:
    """A Llama of these sizes with random weights in `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_LLAMAS[kind], tie_word_embeddings=True, max_position_embeddings=4096)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def planned(folder: Path, case: Case, process_bytes: int) -> plans.Memory:
    """What the planner says of this case, for a worker that holds `process_bytes` at its start."""
    config, _ = shapes.config_of(str(folder), cache=folder)
    shape = shapes.shape_of(config, folder.name)
    way = shapes.way_of(
        config,
        shape,
        adapter=Adapter() if case.method == "lora" else None,
        precision="fp32",
        attention="packed",
        length=case.length,
        written=round(_SHARE * case.length),
    )
    found = plans.plan(
        shape,
        {case.method: way},
        length=case.length,
        global_batch=case.global_batch,
        supervised_share=_SHARE,
        machine=plans.Machine(
            workers=case.workers,
            workers_per_node=case.workers,
            nodes=1,
            gpu_bytes=None,
            host_bytes_per_node=2**50,
            cpus=case.workers,
            process_bytes=process_bytes,
        ),
        asked=plans.Asked(case.method, case.stage, "none", case.again, case.micro_batch),
        checkpoints=False,  # the engine alone is measured
    )
    memory = found.of(case.choice).memory
    assert memory is not None
    return memory


def measured(folder: Path, case: Case) -> list[dict[str, int]]:
    """The peak of each worker, and what it held at its start, in bytes."""
    import torch.multiprocessing

    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(_ONCE)
    with tempfile.TemporaryDirectory() as scratch:
        meeting = Path(scratch) / uuid.uuid4().hex
        torch.multiprocessing.start_processes(
            _worker, args=(case, folder, meeting), nprocs=case.workers, start_method="forkserver"
        )
        return [
            json.loads(meeting.with_suffix(f".{rank}").read_text(encoding="utf-8"))
            for rank in range(case.workers)
        ]


def _worker(rank: int, case: Case, folder: Path, meeting: Path) -> None:
    import torch
    import torch.distributed as dist

    from ift.models import attention
    from ift.train.engine import DeepSpeedEngine
    from ift.train.job import Job
    from ift.train.loss import collate, loss_sum

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=case.workers)
    start = _status("VmRSS")
    job = Job(
        model_dir=folder,
        stream_dir=folder,
        validation_dir=folder,
        packs=case.global_batch * case.steps,
        validation_packs=0,
        epoch_ends=(case.global_batch * case.steps,),
        export_dir=folder,
        checkpoints=str(folder),
        global_batch=case.global_batch,
        learning_rate=1e-4,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.1,
        max_grad_norm=1.0,
        seed=0,
        micro_batch=case.micro_batch,
        zero_stage=case.stage,
        precision="fp32",
        threads=1,
        adapter=Adapter() if case.method == "lora" else None,
        activation_checkpointing=case.again,
    )
    engine = DeepSpeedEngine(job, case.workers, torch.device("cpu"))
    attention.use(engine.module, "packed")
    for step in range(case.steps):
        for number in range(case.rounds):
            seed = (step * case.rounds + number) * case.workers + rank
            batch = collate([_pack(case.length, seed) for _ in range(case.micro_batch)], "cpu")
            loss, _ = loss_sum(engine.module, batch)
            engine.accumulate(loss / len(batch.targets))
            del batch, loss
        engine.step(1e-4)
    meeting.with_suffix(f".{rank}").write_text(
        json.dumps({"start": start, "peak": _status("VmHWM")}), encoding="utf-8"
    )
    dist.barrier()
    dist.destroy_process_group()


def _pack(length: int, seed: int) -> Any:
    """Two documents of made-up tokens, the end of every hundred supervised."""
    import torch

    from ift.data.stream import Pack

    tokens = torch.randint(0, 16384, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    supervised = [i % 100 >= 100 * (1 - _SHARE) for i in range(length)]
    half = length // 2
    return Pack(tokens, supervised, [half, length - half], ["a", "b"], ["t", "t"], ["x", "x"])


def _status(key: str) -> int:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise AssertionError(key)


def compare(model: str, folder: Path, case: Case) -> dict[str, Any]:
    """A line of the table."""
    started = time.monotonic()
    workers = measured(folder, case)
    memory = planned(folder, case, max(w["start"] for w in workers))
    peak = max(w["peak"] for w in workers)
    return {
        "model": model,
        "workers": case.workers,
        "stage": case.stage,
        "method": case.method,
        "again": case.again,
        "length": case.length,
        "planned": memory.worker_bytes,
        "rows": dict(memory.worker),
        "moment": memory.moment,
        "peak": peak,
        "start": max(w["start"] for w in workers),
        "ratio": memory.worker_bytes / peak,
        "seconds": time.monotonic() - started,
    }


def show(lines: Sequence[dict[str, Any]]) -> None:
    """The table for people."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("model", "workers", "ZeRO", "method", "again", "tokens", "plan", "peak", "ratio"):
        table.add_column(name, justify="left" if name in ("model", "method", "again") else "right")
    for line in lines:
        table.add_row(
            line["model"], str(line["workers"]), str(line["stage"]), line["method"], "yes" if line["again"] else "",
            str(line["length"]), f"{line['planned'] / 2**20:,.0f} MiB", f"{line['peak'] / 2**20:,.0f} MiB",
            f"{line['ratio']:.2f}",
        )  # fmt: skip
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", default=list(_LLAMAS), help="tiny, smollm2, or a model's folder"
    )
    parser.add_argument("--cases", nargs="+", default=_ALL, metavar="WORKERS:STAGE:METHOD[:again]")
    parser.add_argument("--length", type=int, default=512, help="tokens of a pack")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path, help="where the lines go as JSON")
    asked = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in asked.model:
            folder = random_model(model, Path(scratch) / model) if model in _LLAMAS else Path(model)
            for text in asked.cases:
                case = Case.of(text, length=asked.length, steps=asked.steps)
                lines.append(compare(Path(model).name, folder, case))
                last = lines[-1]
                print(
                    f"{last['model']} {text}: {last['ratio']:.2f} in {last['seconds']:.0f} s", file=sys.stderr
                )
                if asked.output:
                    with asked.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(last) + "\n")
    show(lines)


if __name__ == "__main__":
    main()
