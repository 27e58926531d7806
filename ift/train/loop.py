"""The training loop, on one screen.

In:  an engine (DeepSpeed's, or anything with `accumulate` and `step`) and this rank's micro-batches, step by step.
Out: nothing; `on_step` hears of every step, sees to validation and checkpoints, and may end the training.

    train(engine, batches, steps=range(0, 40), learning_rate=schedule("linear", 3e-5, 40, 0.1), ...)

One denominator: a step's loss is the weighted sum over the supervised tokens of the *global* batch, divided by the sum
of their weights. Of a loss that is no number no update is made.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ift.train.loss import Batch, loss_sum


class Engine(Protocol):
    """What the loop needs of whatever holds the model and the optimizer on this rank."""

    module: torch.nn.Module

    def accumulate(self, loss: torch.Tensor) -> None:
        """Backward of one micro-batch; gradients are summed over micro-batches and ranks, nothing is averaged."""

    def step(self, learning_rate: float) -> float:
        """Apply and clear the accumulated gradient; return its norm before clipping.

        Where the norm is no finite number and that shows in time, apply nothing: the loop ends then.
        """

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""


class Diverged(FloatingPointError):
    """A step's loss, or the norm of its gradient, is NaN or infinite. Every rank raises it at the same step.

    `packs` are those of this rank whose loss is to blame; all of its packs in the step if only the gradient is. Of
    such a loss no update was made; of such a gradient, one was where the engine cannot look before it steps.
    """

    def __init__(self, what: str, step: int, value: float, packs: Sequence[int]) -> None:
        super().__init__(what, step, value, packs)
        self.what, self.step, self.value, self.packs = what, step, value, tuple(packs)

    def __str__(self) -> str:
        return f"the {self.what} of step {self.step} is {self.value}"


def train(
    engine: Engine,
    batches: Iterator[Sequence[Batch]],
    steps: range,
    learning_rate: Callable[[int], float],
    on_step: Callable[[dict[str, Any]], bool | None],
    *,
    smoothing: float = 0.0,
    prepare: Callable[[Batch], None] = lambda _: None,
) -> None:
    """Run `steps`, or until `on_step` returns True; `batches` yields this rank's micro-batches of each.

    `prepare` is called with each micro-batch before the model sees it. Raises `Diverged`.
    """
    for step in steps:
        started = time.monotonic()
        micro_batches = next(batches)
        waited = time.monotonic() - started
        counts = torch.stack([_counts(batch) for batch in micro_batches]).sum(0)
        shared = engine.sum(torch.cat([counts.new_tensor([1.0, waited]), counts])).tolist()
        ranks, waited, places, tokens, weight, *supervised = shared
        sums = []
        for batch in micro_batches:
            prepare(batch)
            total, losses = loss_sum(engine.module, batch, smoothing)
            engine.accumulate(total / weight)
            sums.append(_sums(batch, losses))
        whole, *of_tasks = engine.sum(torch.stack(sums).sum(0)).tolist()
        loss = whole / weight
        if not math.isfinite(loss):
            blamed = [b for b, s in zip(micro_batches, sums, strict=True) if not s.isfinite().all()]
            raise Diverged("loss", step + 1, loss, [n for b in blamed for n in b.numbers])
        lr = learning_rate(step)
        grad_norm = engine.step(lr)
        if not math.isfinite(grad_norm):
            numbers = [n for b in micro_batches for n in b.numbers]
            raise Diverged("norm of the gradient", step + 1, grad_norm, numbers)
        metrics: dict[str, Any] = {
            "step": step + 1,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "supervised_tokens": int(sum(supervised)),
            "tokens": int(tokens),
            "padding": 1 - tokens / places,
            "data_seconds": waited / ranks,
            "seconds": time.monotonic() - started,
            "time": time.time(),
        }
        if len(names := micro_batches[0].names) > 1:
            each = zip(names, of_tasks, supervised, strict=True)
            metrics["losses"] = {name: nats / count for name, nats, count in each if count}
        if on_step(metrics):
            return


def validate(engine: Engine, batches: Sequence[Batch]) -> float:
    """Mean loss, in nats a supervised token, over all ranks' `batches`; every rank gives equally many.

    Tokens are weighted as in training; nothing is smoothed.
    """
    engine.module.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            _, losses = loss_sum(engine.module, batch)
            weights = batch.weights.double()
            sums += torch.stack([losses.double() @ weights, weights.sum()]).cpu()
    engine.module.train()
    total, weight = engine.sum(sums).tolist()
    return total / weight if weight else math.nan


def _counts(batch: Batch) -> torch.Tensor:
    """Tokens with and without padding, the weight of the supervised ones, how many of these each task has. float64."""
    weights = batch.weights.double()
    whole = torch.cat([weights.new_tensor([batch.places, batch.tokens]), weights.sum()[None]])
    return torch.cat([whole, _by_task(batch, torch.ones_like(weights))])


def _sums(batch: Batch, losses: torch.Tensor) -> torch.Tensor:
    """The weighted sum of the losses, and the plain sum of each task's. float64."""
    losses = losses.double()
    whole = losses @ batch.weights.double()
    return torch.cat([whole[None], _by_task(batch, losses)])


def _by_task(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(max(1, len(batch.names))).index_add_(0, batch.tasks, values)


def schedule(kind: str, peak: float, steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate of each step (from 0): a linear rise over `warmup * steps` steps, then `kind` to zero.

    A pure function of the step, so resuming needs no state.
    """
    rise = round(warmup * steps)

    def at(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / (rise + 1)
        done = (step - rise) / max(1, steps - rise)  # 0 <= done < 1
        if kind == "linear":
            return peak * (1 - done)
        if kind == "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2
        return peak

    return at


def ranks_packs(
    step: int, *, global_batch: int, packs: int, rank: int, world: int, micro_batch: int
) -> list[list[int]]:
    """The packs of `step` that `rank` sees, as micro-batches: numbers into the stream.

    Step `s` is packs `s*B … (s+1)*B-1` on any world size; dealt round-robin, so every rank has work of like size.
    Every rank gets equally many micro-batches (the last may be empty), because ZeRO's collectives need that.

    global_batch 5, world 2, micro_batch 2, step 0:   rank 0 [[0, 2], [4]]   rank 1 [[1, 3], []]
    """
    first, last = step * global_batch, min((step + 1) * global_batch, packs)
    mine = list(range(first + rank, last, world))
    rounds = math.ceil(math.ceil(global_batch / world) / micro_batch)
    return [mine[i * micro_batch : (i + 1) * micro_batch] for i in range(rounds)]
