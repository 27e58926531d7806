"""What to train, in plain values: the same on every rank.

In:  the spec's values, the plan's choice, and what `prepare` wrote.
Out: a frozen `Job`, which Ray carries to the workers.

    job = Job(model_dir=..., packs=89, global_batch=2, ...)
    job.steps     # 45
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ift.models.adapters import Adapter


@dataclass(frozen=True)
class Job:
    """What to train, in plain values."""

    # what it is made of
    model_dir: Path
    stream_dir: Path
    validation_dir: Path
    packs: int
    validation_packs: int
    epoch_ends: tuple[int, ...]  # packs seen at the end of each epoch
    # where it goes
    export_dir: Path
    checkpoints: str  # a folder that all nodes see, or s3://bucket/prefix
    # the optimizer's way
    global_batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    # how it fits
    micro_batch: int
    zero_stage: int
    precision: str  # fp32 | bf16
    threads: int  # of torch, on CPU; 0 leaves torch its own number
    adapter: Adapter | None = None  # None: all weights are trained
    offload: str = "none"  # none | optimizer | parameters
    nvme: Path | None = None
    largest_tensor: int = 0  # of the model, in elements: parts of it pass through buffers to `nvme`
    activation_checkpointing: bool = False
    attention: str = "auto"
    liger: str | bool = "auto"
    # the loss
    label_smoothing: float = 0.0
    neftune_alpha: float = 0.0
    loss_weights: Mapping[str, float] = field(default_factory=dict)  # of every task, by name
    # when to look, to keep and to stop
    validate_steps: int | None = None
    best_by: Literal["loss", "metric"] | None = None
    patience: int | None = None
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    candidates_dir: Path | None = (
        None  # exported models that wait for their score, or for a look at the probes
    )
    look_steps: int | None = None  # between looks at what is forgotten
    forgetting_budget: float | None = None  # the mean drop at which training ends; None only looks
    lineage: Mapping[str, Any] = field(default_factory=dict)  # a checkpoint of anything else is refused

    @property
    def steps(self) -> int:
        return math.ceil(self.packs / self.global_batch)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def epochs(self) -> dict[int, int]:
        """The steps behind which an epoch ends, with the epoch (from 1)."""
        return {
            math.ceil(end / self.global_batch): epoch for epoch, end in enumerate(self.epoch_ends, start=1)
        }

    def validations(self) -> set[int]:
        """The steps behind which the held-out packs are looked at; the last one always is."""
        if self.validate_steps is None:
            return set(self.epochs())
        return {*range(self.validate_steps, self.steps, self.validate_steps), self.steps}

    def looks(self) -> range:
        """The steps behind which the probes are looked at; behind the last one all of them are asked anyway."""
        return range(self.look_steps, self.steps, self.look_steps) if self.look_steps else range(0)

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint follows `step`; behind the last one the export does."""
        every = self.checkpoint_steps
        return step < self.steps and (step in self.epochs() or bool(every and step % every == 0))
