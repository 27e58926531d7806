"""Ours: the engine, the packs, the attention and the loop of a run, in one process without Ray.

In:  a case as JSON: a model's folder, which lengths, how many steps.
Out: one JSON line: seconds of each step, tokens, peak memory, how the time splits.

    python ours.py '{"mode": "train", "model": "/tmp/1B", "shape": "1B", "lengths": "dialogsum", …}'

Modes: `model` writes random weights; `train` times steps, with DeepSpeed's engine (`arm: ours`) or a bare loop of
torch's (`arm: bare`); `logits` times passes with supervised positions projected alone, and with all of them.
`train.py` beside this file runs it and says what a case holds.
"""

import gc
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["DS_ACCELERATOR"] = "cpu"


def make_model(case: dict[str, Any]) -> dict[str, Any]:
    """Random weights in bf16, or fp32 where there is no GPU, as an ordinary folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**work.SHAPES[case["shape"]], max_position_embeddings=8192)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(case["model"])
    return {"parameters": sum(p.numel() for p in model.parameters())}


def packs_of(case: dict[str, Any], count: int) -> list[Any]:
    """`count` packs as the product makes them."""
    from ift.data.pack import pack
    from ift.data.stream import Pack

    length = case["length"]
    found = work.documents(
        case["lengths"],
        tokens=round(1.1 * (count + 1) * length),
        vocabulary=work.SHAPES[case["shape"]]["vocab_size"],
        longest=length,
        seed=case["seed"],
    )
    packs = []
    for places in pack([len(d.ids) for d in found], capacity=length)[:count]:
        these = [found[i] for i in places]
        packs.append(
            Pack(
                tokens=[token for d in these for token in d.ids],
                supervised=[i >= d.prompt for d in these for i in range(len(d.ids))],
                lengths=[len(d.ids) for d in these],
                examples=[str(i) for i in places],
                tasks=["made up"] * len(these),
                templates=["none"] * len(these),
            )
        )
    if len(packs) < count:
        raise AssertionError(f"{len(packs)} packs, and {count} were wanted")
    return packs


def choice_of(case: dict[str, Any], packs: Sequence[Any]) -> list[Any]:
    """What the planner would take, and what it would go on with where memory is short after all."""
    from ift import planning
    from ift.models import plan as plans
    from ift.models.adapters import Adapter
    from ift.models.plan import Asked

    share = sum(p.supervised_tokens for p in packs) / (len(packs) * case["length"])
    found, _ = planning.decide(
        case["model"],
        machine=planning.this_machine(1, case["batch"]),
        length=case["length"],
        global_batch=case["batch"],
        supervised_share=share,
        asked=Asked("full", activation_checkpointing=case.get("again"), micro_batch=case.get("micro_batch")),
        adapter=Adapter(),
        precision="bf16" if DEVICE == "cuda" else "fp32",
        checkpoints=False,
    )
    if found.choice is None:
        raise plans.refusal(found)
    choices = [found.choice]
    while choice := plans.next_choice(found, after=choices[-1]):
        choices.append(choice)
    return choices


class Split:
    """An engine that says how long each of its parts took, in turn: nothing runs beside anything else meanwhile."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.module = engine, engine.module
        self.seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        self._at = 0.0

    def begin(self, _batch: Any = None) -> None:
        work.synchronize(DEVICE)
        self._at = time.perf_counter()

    def _took(self, part: str) -> None:
        work.synchronize(DEVICE)
        now = time.perf_counter()
        self.seconds[part] += now - self._at
        self._at = now

    def accumulate(self, loss: torch.Tensor) -> None:
        self._took("forward")
        self.engine.accumulate(loss)
        self._took("backward")

    def step(self, learning_rate: float) -> float:
        self.begin()
        norm = self.engine.step(learning_rate)
        self._took("optimizer")
        return float(norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self.engine.sum(values)  # type: ignore[no-any-return]


class Bare:
    """torch alone behind the loop: the model in one type, fused AdamW, gradients summed where they are."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.module = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def accumulate(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.cpu()


def engine_of(case: dict[str, Any], choice: Any, packs: Sequence[Any]) -> tuple[Any, str]:
    """The engine of this arm with its attention settled, and the word for that."""
    from ift.models import attention, base
    from ift.train.engine import DeepSpeedEngine
    from ift.train.job import Job

    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    if case["arm"] == "bare":
        model = base.load_model(Path(case["model"]), dtype=dtype, device=DEVICE)
        model.config.use_cache = False
        kernels = attention.apply_liger(model, device=DEVICE, asked="auto")
        if choice.activation_checkpointing:
            model.activation_checkpointing_enable()
        engine: Any = Bare(model.train())
    else:
        job = Job(
            model_dir=Path(case["model"]),
            stream_dir=Path(case["model"]),
            validation_dir=Path(case["model"]),
            packs=case["batch"] * (case["steps"] + case["warm"] + 2),
            validation_packs=0,
            epoch_ends=(),
            export_dir=Path(case["model"]),
            checkpoints=case["model"],
            global_batch=case["batch"],
            learning_rate=1e-5,
            schedule="constant",
            warmup=0.0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=0,
            micro_batch=choice.micro_batch,
            zero_stage=choice.zero_stage,
            precision="bf16" if DEVICE == "cuda" else "fp32",
            threads=0,
            offload=choice.offload,
            activation_checkpointing=choice.activation_checkpointing,
        )
        engine = DeepSpeedEngine(job, 1, torch.device(DEVICE))
        kernels = engine.kernels
    from ift.train.loss import isolation_tolerance, probe_isolation

    torch_dtype = getattr(torch, dtype)
    name, _ = attention.settle(
        engine.module,
        attention.candidates(engine.module, device=DEVICE, dtype=torch_dtype),
        lambda: probe_isolation(engine.module, packs, DEVICE),
        isolation_tolerance(torch_dtype),
        notify=lambda text: print(text, file=sys.stderr),
    )
    return engine, f"{name}{f', {kernels}' if kernels else ''}"


def batches(case: dict[str, Any], packs: Sequence[Any], micro_batch: int) -> Iterator[list[Any]]:
    """The micro-batches of each step, collated when they are asked for."""
    from ift.train.loss import collate

    size = case["batch"]
    for start in range(0, len(packs), size):
        step = packs[start : start + size]
        yield [collate(step[i : i + micro_batch], DEVICE) for i in range(0, size, micro_batch)]


def train(case: dict[str, Any]) -> dict[str, Any]:
    """Steps that are not counted, steps by the clock, a step in its parts, a step under the profiler."""
    torch.set_num_threads(case.get("threads") or torch.get_num_threads())
    steps = case["warm"] + case["steps"] + 2
    packs = packs_of(case, case["batch"] * steps)
    tried = []
    for choice in choice_of(case, packs):
        found = None
        try:
            found = _timed(case, choice, packs)
        except Exception as error:
            if not work.out_of_memory(error):
                raise
        if found:
            return {**found, "micro_batch": choice.micro_batch, "short_of_memory": tried}
        # behind the `except`: within it the error's traceback holds the engine, which holds itself as well
        tried.append(str(choice))
        print(f"out of memory: {choice}", file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()
    return {"skipped": f"out of memory in every way that was tried: {'; '.join(tried)}"}


def _timed(case: dict[str, Any], choice: Any, packs: Sequence[Any]) -> dict[str, Any]:
    """The steps of one way to train."""
    from ift.train import loop

    work.forget_peak(DEVICE)
    engine, name = engine_of(case, choice, packs)
    stream = batches(case, packs, choice.micro_batch)
    lines: list[dict[str, Any]] = []
    began: list[float] = []

    def after(line: dict[str, Any]) -> None:
        work.synchronize(DEVICE)
        began.append(time.perf_counter())
        lines.append(line)

    timed = range(case["warm"] + case["steps"])
    loop.train(engine, stream, timed, lambda _: 1e-5, after)
    peak = work.peak_memory(DEVICE)
    split = Split(engine)
    parts: list[dict[str, Any]] = []
    loop.train(split, stream, range(1), lambda _: 1e-5, parts.append, prepare=split.begin)
    communication = _communication(engine, stream)
    seconds = [b - a for a, b in zip(began[case["warm"] - 1 :], began[case["warm"] :], strict=False)]
    counted = lines[case["warm"] :]
    return {
        "how": f"{choice}; attention {name}",
        "seconds": seconds,
        "tokens": [line["tokens"] for line in counted],
        "supervised": [line["supervised_tokens"] for line in counted],
        "loss": [line["loss"] for line in lines],
        "peak_bytes": peak,
        "split": {"data": parts[0]["data_seconds"], **split.seconds, "communication": communication},
    }


def _communication(engine: Any, stream: Iterator[Any]) -> float | None:
    """Seconds of a step in collectives, by the profiler; those that run beside passes count in full."""
    from torch.profiler import ProfilerActivity, profile

    from ift.train import loop

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with profile(activities=activities) as seen:
        loop.train(engine, stream, range(1), lambda _: 1e-5, lambda _: None)
        work.synchronize(DEVICE)
    total = 0.0
    for event in seen.key_averages():
        if DEVICE == "cuda" and event.key.startswith("nccl"):
            total += event.self_device_time_total
        elif DEVICE == "cpu" and event.key.startswith("gloo:"):
            total += event.cpu_time_total
    return total / 1e6


def logits(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak bytes of a forward and backward pass by the share of tokens that are supervised."""
    from types import SimpleNamespace

    from ift.models import base
    from ift.train.loss import collate, loss_sum

    torch.set_num_threads(case.get("threads") or torch.get_num_threads())
    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    model = base.load_model(Path(case["model"]), dtype=dtype, device=DEVICE)
    model.config.use_cache = False
    model.train()
    length, vocabulary = case["length"], work.SHAPES[case["shape"]]["vocab_size"]
    ids = torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for share in case["shares"]:
        first = length - max(1, round(share * length))
        row = SimpleNamespace(
            tokens=ids,
            supervised=[i >= max(1, first) for i in range(length)],
            lengths=[length],
            tasks=["made up"],
        )
        batch = collate([row], DEVICE)
        labels = torch.tensor(
            [[t if s else -100 for t, s in zip(ids, row.supervised, strict=True)]], device=DEVICE
        )

        def supervised_alone(batch: Any = batch) -> torch.Tensor:
            return loss_sum(model, batch)[0]

        def all_of_them(batch: Any = batch, labels: torch.Tensor = labels) -> torch.Tensor:
            scores = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
            flat = scores[:, :-1].float().flatten(0, 1)
            return torch.nn.functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum")

        line: dict[str, Any] = {"share": share}
        for name, loss_of in (("supervised", supervised_alone), ("all", all_of_them)):
            try:
                taken = []
                for turn in range(case["steps"] + 1):
                    model.zero_grad(set_to_none=True)
                    loss = None  # of the turn before, with all that it holds
                    work.synchronize(DEVICE)
                    work.forget_peak(DEVICE)
                    began = time.perf_counter()
                    loss = loss_of()
                    loss.backward()
                    work.synchronize(DEVICE)
                    if turn:
                        taken.append(time.perf_counter() - began)
                line[name] = {"seconds": taken, "peak_bytes": work.peak_memory(DEVICE), "loss": float(loss)}
            except Exception as error:
                if not work.out_of_memory(error):
                    raise
                line[name] = {"skipped": "out of memory"}
            loss = None
            gc.collect()
            torch.cuda.empty_cache()
        found.append(line)
    return {"shares": found}


def main(text: str) -> None:
    """Do what the case asks, and print what came."""
    import torch.distributed as dist

    case = json.loads(text)
    if case["mode"] == "peak":
        print(json.dumps({"operations": work.matrix_peak(DEVICE, size=case.get("size")), "device": DEVICE}))
        return
    if case["mode"] == "model":
        print(json.dumps(make_model(case)))
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    meeting = Path(tempfile.mkdtemp()) / uuid.uuid4().hex
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
    result = {"train": train, "logits": logits}[case["mode"]](case)
    print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
