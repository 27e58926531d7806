"""DeepSpeed behind the loop's `Engine`.

In:  a `Job`, the number of ranks, this rank's device; a process group that exists already.
Out: an engine whose gradients are summed over micro-batches and ranks, and which exports an ordinary model.

    engine = DeepSpeedEngine(job, world=2, device=torch.device("cpu"))
    engine.accumulate(loss); engine.step(learning_rate=1e-5)
"""

import fcntl
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ift import storage
from ift.models import adapters, attention, base
from ift.models.plan import swap_buffer
from ift.train.job import Job

_MEET_EVERY_S = 0.1


def deepspeed_config(job: Job, world: int) -> dict[str, Any]:
    """DeepSpeed's settings in concrete numbers. GPUs have room for large buckets, which hide latency."""
    gpu = torch.cuda.is_available()
    rounds = math.ceil(math.ceil(job.global_batch / world) / job.micro_batch)
    bucket = 200_000_000 if gpu else 50_000_000
    return {
        "train_micro_batch_size_per_gpu": job.micro_batch,
        "gradient_accumulation_steps": rounds,
        "gradient_clipping": job.max_grad_norm,
        # a parameter's bf16 gradient goes once it is in the fp32 sum, which is what is reduced; where ZeRO reduces
        # bucket by bucket (stages 2 and 3) it is in bf16
        "bf16": {"enabled": job.precision == "bf16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        **({"communication_data_type": "fp32"} if job.zero_stage <= 1 else {}),
        "zero_optimization": {
            "stage": job.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": gpu,
            "contiguous_gradients": gpu,  # guards GPU memory against fragments; on a CPU one more copy
            "stage3_gather_16bit_weights_on_model_save": True,
            **_offload(job, world, gpu),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": gpu,  # where all is in the host's memory, torch's own is as good
        "steps_per_print": 10**9,
    }


def _offload(job: Job, world: int, gpu: bool) -> dict[str, Any]:
    """What leaves the GPU: the optimizer's state, or the parameters as well; to memory or to a disk."""
    if job.offload == "none":
        return {}
    to: dict[str, Any] = {"device": "cpu", "pin_memory": gpu}
    if job.nvme:
        to = {"device": "nvme", "nvme_path": str(job.nvme), "pin_memory": gpu}
    config = {"offload_optimizer": to}
    if job.offload == "parameters":
        room = {"buffer_size": swap_buffer(job.largest_tensor, world)} if job.nvme else {}
        config["offload_param"] = {**to, **room}
    return config


class DeepSpeedEngine:
    """DeepSpeed behind the loop's `Engine`: gradients are summed, never averaged. `engine` is DeepSpeed's own."""

    def __init__(self, job: Job, world: int, device: torch.device) -> None:
        if device.type == "cpu":
            _skip_inference_kernel()
        import deepspeed

        config = deepspeed_config(job, world)
        if job.zero_stage == 3:
            from transformers.integrations import HfDeepSpeedConfig

            self._born_partitioned = HfDeepSpeedConfig(config)  # alive while the model is loaded
        self.device = device
        self._job, self._world, self._unstepped = job, world, False
        self.engine, *_ = deepspeed.initialize(
            model=(model := self._model()),
            model_parameters=None,
            optimizer=_optimizer(job, model, device),
            config=config,
        )
        if world == 1 and job.zero_stage == 0:  # nobody to add: it would copy all gradients, twice
            self.engine.enable_backward_allreduce = False
        # the engine, not the model in it: only its own forward tells ZeRO-3 that another micro-batch begins, and
        # without that each micro-batch overwrites the gradient of those before
        self.module: torch.nn.Module = self.engine

    def _model(self) -> Any:
        job = self._job
        dtype = str(job.dtype).removeprefix("torch.")
        place, quantize = "cpu", "none"
        if job.adapter:
            adapters.check(job.adapter, zero_stage=job.zero_stage)
            quantize = job.adapter.quantize
        if quantize != "none":
            place = str(self.device)  # weights of 4 bits are made where they stay
        model = base.load_model(job.model_dir, dtype=dtype, device=place, quantize=quantize)
        model.config.use_cache = False
        self.kernels = attention.apply_liger(
            model, device=self.device, asked=job.liger
        )  # None: the model's own
        if job.activation_checkpointing:
            model.activation_checkpointing_enable()
        if job.adapter:
            self._adapted = adapters.attach(model, job.adapter, seed=job.seed)
        return model.train()  # not PEFT's wrapper, whose methods DeepSpeed does not find

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
        if norm is None or norm.isfinite():  # ZeRO looks itself
            self.engine.step()
        self._unstepped = False
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest over all ranks."""
        values = values.to(self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.cpu()

    def export(self, folder: Path) -> None:
        """Every rank calls this; rank 0 writes an ordinary Hugging Face model, or the adapter alone."""
        rank0 = dist.get_rank() == 0
        model = self.engine.module
        partitioned = self.engine.zero_optimization_stage() == 3
        if self._job.adapter:
            import deepspeed

            trained = [p for p in model.parameters() if p.requires_grad]
            with deepspeed.zero.GatheredParameters(trained, enabled=partitioned):
                if rank0:
                    adapters.save(self._adapted, folder, on=self._job.model_dir)
            dist.barrier()
            return
        if partitioned:
            state = self.engine._zero3_consolidated_16bit_state_dict()
        else:
            state = model.state_dict() if rank0 else None

        def write() -> None:
            model.config.use_cache = True
            model.save_pretrained(folder, state_dict=_on_host(state or {}), max_shard_size="5GB")
            model.config.use_cache = False  # training may go on

        self._while_all_wait(write if rank0 else None)

    def _while_all_wait(self, work: Callable[[], None] | None) -> None:
        """Rank 0 does its `work`, the others have none. Raises on rank 0 what it raised.

        All meet again and again: writing takes minutes, and in one long collective the process group would lose
        patience.
        """
        with ThreadPoolExecutor(1) as thread:
            working = thread.submit(work) if work else None
            while not self.sum(torch.tensor([float(working is not None and working.done())])).item():
                time.sleep(_MEET_EVERY_S)
            if working:
                working.result()


def _on_host(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of `state` in the host's memory: saving copies some again, for which a GPU in use has no room.

    Weights that are tied, which are one tensor under two names, stay one.
    """
    moved: dict[Any, Any] = {}
    found = {}
    for name, tensor in state.items():
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if same not in moved:
            moved[same] = tensor.cpu()
        found[name] = moved[same]
    return found


def _skip_inference_kernel() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce (90 s, once): only its inference uses it.

    The table says which of its kernels this machine could compile; an empty one says none.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def _optimizer(job: Job, model: Any, device: torch.device) -> torch.optim.Optimizer:
    """AdamW: torch's fused one, or DeepSpeed's for the host where a GPU's optimizer is offloaded to it."""
    groups = _decay_groups(model, job.weight_decay)
    if job.offload != "none" and device.type != "cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.ops.op_builder import CPUAdamBuilder

        _build_once(CPUAdamBuilder())
        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, lr=job.learning_rate, adamw_mode=True)
        return optimizer
    return torch.optim.AdamW(groups, lr=job.learning_rate, betas=(0.9, 0.999), fused=True)


def _build_once(builder: Any) -> None:
    """Compile a kernel of DeepSpeed's in one process of this machine; the others then load it.

    torch guards a build with a file that a killed build leaves behind, and then waits for it for ever. Whoever is
    here holds a lock that ends with its process, so a file that is found is such a left one.
    """
    folder = storage.cache_dir() / "torch_extensions"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    with (folder / ".one-at-a-time").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.rglob("lock"):
            left.unlink()
        builder.load(verbose=False)


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
