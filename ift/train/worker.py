"""One training worker: the only file that joins Ray Train and DeepSpeed.

In:  `Job`, the same plain values on every rank.
Out: rank 0 returns a summary; the exported model lies in `Job.export_dir`.

    TorchTrainer(run, train_loop_config={"job": job, "events": events}, ...)    # see trainer.py
"""

import math
import os
import random
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ift.data.stream import Pack, Stream
from ift.errors import IftError
from ift.models import base
from ift.train import checkpoint
from ift.train.loop import ranks_packs, schedule, train, validate
from ift.train.loss import Batch, collate, collate_pairs, isolation_tolerance, probe_isolation


@dataclass(frozen=True)
class Job:
    """What to train, in plain values."""

    model_dir: Path
    stream_dir: Path
    validation_dir: Path
    export_dir: Path
    packs: int
    validation_packs: int
    epoch_ends: tuple[int, ...]  # packs seen at the end of each epoch
    global_batch: int
    micro_batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_grad_norm: float
    zero_stage: int
    precision: str  # fp32 | bf16
    checkpoint_steps: int | None
    seed: int
    threads: int  # of torch, on CPU
    scratch: Path | None = None

    @property
    def steps(self) -> int:
        return math.ceil(self.packs / self.global_batch)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def stops(self) -> dict[int, int]:
        """The steps behind which an epoch ends, with the epoch (from 1)."""
        return {
            math.ceil(end / self.global_batch): epoch for epoch, end in enumerate(self.epoch_ends, start=1)
        }


def deepspeed_config(job: Job, world: int) -> dict[str, Any]:
    """DeepSpeed's settings in concrete numbers. GPUs have room for large buckets, which hide latency."""
    gpu = torch.cuda.is_available()
    rounds = math.ceil(math.ceil(job.global_batch / world) / job.micro_batch)
    bucket = 200_000_000 if gpu else 50_000_000
    return {
        "train_micro_batch_size_per_gpu": job.micro_batch,
        "gradient_accumulation_steps": rounds,
        "gradient_clipping": job.max_grad_norm,
        "bf16": {"enabled": job.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": job.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": gpu,
            "contiguous_gradients": gpu,  # guards GPU memory against fragments; on a CPU one more copy
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


class DeepSpeedEngine:
    """DeepSpeed behind the loop's `Engine`: gradients are summed, never averaged."""

    def __init__(self, job: Job, world: int, device: torch.device) -> None:
        if device.type == "cpu":
            _skip_inference_kernel()
        import deepspeed

        _read_checkpoints_as_data()
        config = deepspeed_config(job, world)
        if job.zero_stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            self._born_partitioned = HfDeepSpeedConfig(config)  # alive while the model is loaded
        model = base.load_model(job.model_dir, dtype=str(job.dtype).removeprefix("torch."), device="cpu")
        model.config.use_cache = False
        model.train()
        optimizer = torch.optim.AdamW(
            _decay_groups(model, job.weight_decay), lr=job.learning_rate, betas=(0.9, 0.999), fused=True
        )
        self.engine, *_ = deepspeed.initialize(
            model=model, model_parameters=None, optimizer=optimizer, config=config
        )
        # the engine, not the model in it: only its own forward tells ZeRO-3 that another micro-batch begins, and
        # without that each micro-batch overwrites the gradient of those before
        self.module: torch.nn.Module = self.engine
        self.device = device
        self._world = world
        self._unstepped = False

    def accumulate(self, loss: torch.Tensor) -> None:
        if self._unstepped:
            self.engine.step()  # a micro-step: DeepSpeed counts it and applies nothing yet
        # DeepSpeed averages over ranks; the loss is a share of the global batch, so that mean is undone
        self.engine.backward(loss * self._world, scale_wrt_gas=False)
        self._unstepped = True

    def step(self, learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if not hasattr(self.engine.optimizer, "_global_grad_norm"):  # a plain AdamW, at stage 0 in fp32
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self.engine.step()
        self._unstepped = False
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def export(self, folder: Path) -> None:
        """Every rank calls this; rank 0 writes an ordinary Hugging Face model."""
        rank0 = dist.get_rank() == 0
        model = self.engine.module
        if self.engine.zero_optimization_stage() == 3:
            state = self.engine._zero3_consolidated_16bit_state_dict()
        else:
            state = model.state_dict() if rank0 else None
        if rank0:
            model.config.use_cache = True
            model.save_pretrained(folder, state_dict=state)
        dist.barrier()


def _skip_inference_kernel() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce (90 s, once): only its inference uses it.

    The table says which of its kernels this machine could compile; an empty one says none.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _read_checkpoints_as_data() -> None:
    """Have torch refuse to unpickle code from a checkpoint; DeepSpeed asks it not to.

    The three classes are what DeepSpeed's own checkpoints hold beside tensors and numbers.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([fragment_address, ZeroStageEnum, LossScaler])


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: norms, biases and other vectors are spared.

    Under ZeRO-3 a parameter is born empty; `ds_shape` is its true shape.
    """
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for p in model.parameters():
        if p.requires_grad:
            (matrices if len(getattr(p, "ds_shape", p.shape)) >= 2 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The function that Ray Train calls on every rank.

    A refusal on which all ranks agree is returned, not raised: a restart could not mend it.
    """
    end_with_parent()
    try:
        return _run(config)
    except Refusal as refusal:
        return {"refusal": refusal}


def end_with_parent(every: float = 1.0) -> None:
    """Make this process end when the one that started it, Ray's node process, is gone; look `every` so many seconds.

    Left to itself a worker can stay for ever: where the run ends while a checkpoint is being reported, Ray Train's
    thread waits for a controller that is gone, and Python waits for that thread before it exits.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Refusal(IftError):
    """Every rank came to the same finding, so every rank stops."""


def _run(config: dict[str, Any]) -> dict[str, Any]:
    import ray.train
    import ray.train.torch

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    events = config["events"] if rank == 0 else None

    def tell(**event: Any) -> None:
        if events is not None:
            events.put.remote(event)

    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    tell(kind="status", text="loading the model")
    engine = DeepSpeedEngine(job, world, device)
    stream = Stream(job.stream_dir)
    _refuse_leaks(engine, stream.read(range(min(64, job.packs))), job.dtype)

    done = 0
    resumed = ray.train.get_checkpoint()
    if resumed:
        tell(kind="status", text="loading the checkpoint")
        with resumed.as_directory() as folder:
            done = checkpoint.load(engine.engine, Path(folder))
    tell(kind="start", step=done)

    part = Part(job.global_batch, job.packs, rank, world, job.micro_batch)
    steps = range(done, job.steps)
    encoder_decoder = base.is_encoder_decoder(job.model_dir)
    batch_of = collate_pairs if encoder_decoder else collate
    held_out = Stream(job.validation_dir)
    validation = [
        batch_of(held_out.read(range(rank + i, min(rank + i + 1, job.validation_packs))), device)
        for i in range(0, job.validation_packs, world)
    ]
    seen = 0  # packs of this rank in this attempt

    def batches() -> Iterator[list[Batch]]:
        nonlocal seen
        packs = carried(job.stream_dir, part, steps)
        for step in steps:
            micro_batches = [[next(packs) for _ in micro] for micro in part.of(step)]
            seen += sum(map(len, micro_batches))
            torch.manual_seed(dropout_seed(job.seed, step, rank))
            yield [batch_of(micro, device) for micro in micro_batches]

    def check(step: int, epoch: int) -> None:
        if validation:
            tell(kind="validation", step=step, epoch=epoch, loss=validate(engine, validation))

    stops = job.stops()

    def on_step(metrics: dict[str, float]) -> None:
        step = int(metrics["step"])
        tell(kind="step", **metrics)
        if step in stops:
            check(step, stops[step])
        due = step in stops or (job.checkpoint_steps and step % job.checkpoint_steps == 0)
        if due and step < job.steps:  # behind the last step the export follows
            _checkpoint(engine, step, job.scratch)
            tell(kind="checkpoint", step=step)

    if done == 0:
        check(0, 0)
    rate = schedule(job.schedule, job.learning_rate, job.steps, job.warmup)
    try:
        train(engine, batches(), steps, rate, on_step)
    except FloatingPointError as error:  # the loss is the same number on every rank
        hint = "lower train.learning_rate, or look at the data"
        raise Refusal(str(error), wanted="a finite loss", hint=hint) from None
    total_seen = int(engine.sum(torch.tensor([float(seen)], dtype=torch.float64)))
    wanted = job.packs - min(done * job.global_batch, job.packs)
    if total_seen != wanted:
        raise AssertionError(
            f"{total_seen} packs were trained on since step {done}; the stream holds {wanted}"
        )

    tell(kind="status", text="exporting the model")
    engine.module.eval()
    ids = stream.read([0])[0].tokens[:256]
    expected = base.reference_logits(engine.module, ids, encoder_decoder=encoder_decoder)
    if rank == 0:
        shutil.rmtree(job.export_dir, ignore_errors=True)
    engine.export(job.export_dir)
    if rank == 0:
        base.load_tokenizer(job.model_dir).save_pretrained(job.export_dir)
    return {
        "ids": ids,
        "logits": expected,
        "dtype": str(job.dtype).removeprefix("torch."),
        "resumed_at": done,
        "world": world,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """What dropout is drawn by in a step: not by the steps before, so that a resumed run draws the same."""
    return random.Random(f"dropout/{seed}/{step}/{rank}").getrandbits(63)


def _refuse_leaks(engine: DeepSpeedEngine, packs: Sequence[Pack], dtype: torch.dtype) -> None:
    engine.module.eval()
    error = probe_isolation(engine.module, packs, engine.device)
    engine.module.train()
    tolerance = isolation_tolerance(dtype)
    if not error <= tolerance:
        raise Refusal(
            f"packed documents see each other in this model: packing changes its logits by {error:.1%}",
            wanted=f"at most {tolerance:.1%}",
            hint="set data.packing=false",
        )


def _checkpoint(engine: DeepSpeedEngine, step: int, scratch: Path | None) -> None:
    """Each rank writes its part to a folder of its own; Ray Train merges them in storage, in the background."""
    import ray.train
    from ray.train import CheckpointUploadMode

    folder = Path(tempfile.mkdtemp(prefix="ift-checkpoint-", dir=scratch))
    checkpoint.save(engine.engine, folder, step=step)
    ray.train.report(
        {"step": step},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=f"step-{step:08d}",
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


@dataclass(frozen=True)
class Part:
    """What one rank sees of the stream, as numbers: no list of packs, so that any step is as near as the first."""

    global_batch: int
    packs: int
    rank: int
    world: int
    micro_batch: int

    def of(self, step: int) -> list[list[int]]:
        """The packs of a step, as micro-batches."""
        return ranks_packs(
            step,
            global_batch=self.global_batch,
            packs=self.packs,
            rank=self.rank,
            world=self.world,
            micro_batch=self.micro_batch,
        )


_PACKS_A_READ = 64  # about what a row group holds
_BLOCKS = 512  # of Ray Data: each costs about 2 ms before the first one is read
_AHEAD = 4  # reads that wait for the training step that needs them


def carried(stream_dir: Path, part: Part, steps: range) -> Iterator[Pack]:
    """The packs of these steps in order, read ahead by Ray Data tasks on whichever node has room.

    Each rank has a data set of its own, of step numbers, and not its shard of one that all ranks share
    (`ray.train.get_dataset_shard`): there blocks go to the rank that has had the fewest rows, a restart on fewer
    workers begins anew, and nothing says where an iterator stands (ray#37633). Here a read is a function of the step,
    the rank and the number of workers, so a resumed run starts at its step at once, and no node ever holds more than
    what is read ahead.
    """
    import ray.data

    if not steps:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 2**20  # handed on as soon as it is read
    each = max(1, _PACKS_A_READ * part.world // part.global_batch)
    reads = math.ceil(len(steps) / each)
    dataset = ray.data.range(reads, override_num_blocks=min(reads, _BLOCKS)).map_batches(
        _read_packs,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"stream_dir": str(stream_dir), "part": part, "steps": steps, "each": each},
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_AHEAD):
        for row in table.to_pylist():
            yield Pack(**row)


def _read_packs(batch: Any, *, stream_dir: str, part: Part, steps: range, each: int) -> Any:
    import pyarrow as pa

    from ift.data.stream import SCHEMA

    stream = Stream(Path(stream_dir))
    numbers = [
        number
        for read in batch.column("id").to_pylist()
        for step in steps[read * each : (read + 1) * each]
        for micro in part.of(step)
        for number in micro
    ]
    names = list(Pack.__dataclass_fields__)
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return pa.Table.from_pylist([vars(pack) for pack in stream.read(numbers)], schema)
