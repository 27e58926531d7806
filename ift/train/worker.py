"""One training worker: what Ray Train calls on every rank.

In:  `Job`, the same plain values on every rank; the checkpoint to go on from; the driver's mailbox.
Out: rank 0 returns a summary; the exported model lies in `Job.export_dir`.

    TorchTrainer(run, train_loop_config={"job": job, "mailbox": mailbox, "found": None, "attempt": "3f0c"}, ...)

What ends training early is the same for all ranks, because they decide it together: a notice of the driver's, a loss
that is no number, validations that no longer get better.
"""

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from ift import cluster, places, storage
from ift.data.stream import Pack, Stream
from ift.errors import IftError
from ift.models import attention, base
from ift.train import checkpoint, shards
from ift.train.best import Best, Budget
from ift.train.engine import DeepSpeedEngine
from ift.train.faults import BrokenCheckpoint
from ift.train.feed import Part, carried
from ift.train.job import Job
from ift.train.loop import Diverged, schedule, train, validate
from ift.train.loss import Batch, collate, collate_pairs, isolation_tolerance, probe_isolation
from ift.train.noise import Chance

_PAUSES = (
    "",
    "preemption",
    "growth",
    "stop",
)  # what the driver may ask for, as numbers that ranks can add up
_SCORE_EVERY_S = 0.5


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The function that Ray Train calls on every rank. An `IftError` ends training; anything else, this attempt."""
    end_with_parent()
    return Worker(**config).run()


def end_with_parent(every: float = 1.0) -> None:
    """Make this process end when the one that started it, Ray's node process, is gone; look `every` so many seconds.

    Left to itself a worker can stay for ever: a thread of Ray's may wait for something that is gone, and Python waits
    for that thread before it exits.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def tell_deepspeed(device: torch.device) -> None:
    """What DeepSpeed reads of the environment, before it is imported: the kind of device, and which one.

    It takes LOCAL_RANK for the device's number. Ray's order of a node's devices is another where there are more than
    ten, for it sorts them as text.
    """
    if device.type == "cpu":
        cluster.without_gpu()
    else:
        cluster.with_own_gpu()
        os.environ["LOCAL_RANK"] = str(device.index or 0)


class Worker:
    """One rank, from the model's load to its export."""

    def __init__(self, job: Job, mailbox: Any, found: checkpoint.Found | None, attempt: str) -> None:
        import ray
        import ray.train
        import ray.train.torch

        context, ours = ray.train.get_context(), ray.get_runtime_context()
        self.job, self.mailbox, self.found = job, mailbox, found
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        mailbox.join.remote(self.rank, ours.get_node_id(), ours.current_actor)
        self.device = ray.train.torch.get_device()
        tell_deepspeed(self.device)
        if self.device.type == "cpu" and job.threads:
            torch.set_num_threads(job.threads)
        torch.manual_seed(job.seed)
        self.encoder_decoder = base.is_encoder_decoder(job.model_dir)
        self.stream = Stream(job.stream_dir)
        self.best = Best(job.best_by, job.patience)
        self.budget = Budget(job.forgetting_budget)
        self.spent = False  # more was forgotten than the budget has
        self.saved: int | None = found.step if found else None  # the step of the last checkpoint
        self.saved_at = time.monotonic()
        self.seen = 0  # packs of this rank in this attempt
        self.waited = 0.0  # seconds, for checkpoints
        self.paused = ""

        places.check(job.checkpoints, rank=self.rank, gather=self._everyones)
        self.tell(kind="status", text="loading the model")
        self.engine = DeepSpeedEngine(job, self.world, self.device)
        some = self.stream.read(range(min(64, job.packs)))
        self.attention = settle_attention(
            self.engine, some, job, lambda text: self.tell(kind="note", text=text)
        )
        if self.engine.kernels:
            self.attention += f", {self.engine.kernels} kernels"
        self.chance = Chance(job.seed, job.neftune_alpha)
        self.chance.attach(self.engine.engine.module)
        self.writer = checkpoint.Writer(
            job.checkpoints,
            rank=self.rank,
            world=self.world,
            nonce=attempt,
            parameters=shards.parameters(self.engine.engine),
            keep=job.keep_checkpoints,
            on_complete=lambda step: self.tell(kind="checkpoint", step=step),
            note=lambda text: self.tell(kind="note", text=text),
        )

    def tell(self, **event: Any) -> None:
        if self.rank == 0:
            self.mailbox.put.remote(event)

    def _everyones(self, value: Any) -> list[Any]:
        """What every rank gave, in the order of ranks."""
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    # ── from start to end ──

    def run(self) -> dict[str, Any]:
        """Train what is left. Rank 0's summary, or `{"paused": why}` where the driver asked for it."""
        job = self.job
        first = self._load(self.found) if self.found else 0
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self.tell(kind="start", step=first, world=self.world, attention=self.attention, device=device)
        part = Part(job.global_batch, job.packs, self.rank, self.world, job.micro_batch)
        held_out = Stream(job.validation_dir)
        self.validation = [
            self._batch(held_out, range(i, min(i + 1, job.validation_packs)))
            for i in range(self.rank, job.validation_packs + self.rank, self.world)
        ]
        if first == 0 and self.validation:
            self.tell(kind="validation", step=0, epoch=0, loss=validate(self.engine, self.validation))
        self.done = first
        steps = range(first, first if self.best.should_stop else job.steps)
        try:
            train(
                self.engine,
                self._batches(part, steps),
                steps,
                schedule(job.schedule, job.learning_rate, job.steps, job.warmup),
                self._after,
                smoothing=job.label_smoothing,
                prepare=self.chance.begin,
            )
        except Diverged as error:
            raise self._refusal(error) from None
        if self.paused:
            self.writer.close()
            return {"paused": self.paused, "step": self.done}
        self._assert_all_seen(first)
        self._take_best()
        return self._export(first)

    def _batches(self, part: Part, steps: range) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step."""
        packs = carried(self.job.stream_dir, part, steps)
        for step in steps:
            micro_batches = [(numbers, [next(packs) for _ in numbers]) for numbers in part.of(step)]
            self.seen += sum(len(numbers) for numbers, _ in micro_batches)
            yield [self._collate(found, numbers) for numbers, found in micro_batches]

    def _batch(self, stream: Stream, numbers: range) -> Batch:
        return self._collate(stream.read(numbers), numbers)

    def _collate(self, packs: Sequence[Pack], numbers: Sequence[int]) -> Batch:
        collated = collate_pairs if self.encoder_decoder else collate
        return collated(packs, self.device, self.job.loss_weights, numbers)

    # ── behind a step ──

    def _after(self, metrics: dict[str, Any]) -> bool:
        """Tell of the step, look at the held-out packs, keep a checkpoint; True where training ends here."""
        job, step = self.job, int(metrics["step"])
        self.done = step
        self.tell(kind="step", **metrics, memory_gib=self._memory() / storage.GIB)
        keep = job.checkpoint_due(step)
        if step in job.validations() and self.validation:
            keep = self._validate(step) or keep
        if step in job.looks():
            keep = self._look(step) or keep
        pause, late = self._asked()
        self.paused = pause if step < job.steps else ""  # behind the last step comes the export
        if (keep or late or self.paused) and step < job.steps:
            self._save(step)
        return bool(self.paused) or self.best.should_stop or self.spent

    def _memory(self) -> int:
        """What this rank takes: the most of its GPU's memory so far, or its process now. Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(psutil.Process().memory_info().rss)

    def _asked(self) -> tuple[str, bool]:
        """Why the driver wants a pause ("" if it does not), and whether a checkpoint is late. Alike on all ranks."""
        import ray

        flags = torch.zeros(2, dtype=torch.float64)
        if self.rank == 0:
            asked = ray.get(self.mailbox.asked.remote())
            minutes = (time.monotonic() - self.saved_at) / 60
            flags[0] = _PAUSES.index(asked or "")
            flags[1] = bool(self.job.checkpoint_minutes and minutes >= self.job.checkpoint_minutes)
        pause, late = self.engine.sum(flags).tolist()
        return _PAUSES[int(pause)], bool(late)

    def _validate(self, step: int) -> bool:
        """Whether these weights may come to be the best, so that a checkpoint has to keep them."""
        loss = validate(self.engine, self.validation)
        self.tell(kind="validation", step=step, epoch=self.job.epochs().get(step), loss=loss)
        if self.best.by == "metric":
            self._take_score()  # of the last candidate
            self._candidate(step)
            return True
        self.best.expect(step)
        return self.best.take(step, loss)

    def _candidate(self, step: int) -> None:
        """Export these weights for the driver to grade; the score is taken in at the next validation."""
        assert self.job.candidates_dir is not None, "best_by is metric, and there is no place for candidates"
        folder = self.job.candidates_dir / f"step-{step:08d}"
        self._write_model(folder)
        self.best.expect(step)
        self.tell(kind="candidate", step=step, folder=str(folder))

    def _look(self, step: int) -> bool:
        """Have the driver ask these weights some of the probes. Whether a checkpoint may be needed to come back to."""
        assert self.job.candidates_dir is not None, (
            "probes are looked at, and there is no place for the weights"
        )
        bounded = self.budget.limit is not None
        if bounded:
            self._take_look()
        if not self.spent:
            folder = self.job.candidates_dir / f"look-{step:08d}"
            self._write_model(folder)
            self.budget.expect(step)
            self.tell(kind="look", step=step, folder=str(folder))
        return bounded and not self.spent

    def _take_look(self) -> None:
        """Wait for what the last look found, if it has not come yet."""
        step = self.budget.expects
        if step is not None and self.budget.limit is not None:
            drop = self._graded("look", step, "leave train.early_stop out")
            self.spent = self.budget.take(step, drop)
            if self.spent:
                back = (
                    f"the weights of step {self.budget.within:,}" if self.budget.within else "these weights"
                )
                self.tell(
                    kind="note",
                    text=f"behind step {step:,} the probes have lost {drop:.3f} on average, more than "
                    f"train.early_stop.forgetting {self.budget.limit:g}: training ends, and {back} come out",
                )

    def _take_score(self) -> None:
        """Wait for the score of the last candidate, if there is one without."""
        step = self.best.expects
        if step is None:
            return
        value = self._graded("candidate", step, "set train.best_by=loss")
        self.best.take(step, value)
        self.tell(kind="best", step=self.best.step, scored=step, score=value)

    def _graded(self, kind: str, step: int, hint: str) -> float:
        """What the driver says of the weights behind `step`, once it does; the same on all ranks."""
        import ray

        while (
            True
        ):  # all ranks look again and again: in one long collective the process group would lose patience
            score: Any = ray.get(self.mailbox.score.remote(f"{kind}/{step}")) if self.rank == 0 else None
            failed = isinstance(score, str)
            found = [float(score is not None), 0.0 if score is None or failed else score, float(failed)]
            ready, value, failures = self.engine.sum(torch.tensor(found, dtype=torch.float64)).tolist()
            if ready:
                break
            time.sleep(_SCORE_EVERY_S)
        if failures:
            raise IftError(
                f"the model behind step {step} could not be graded: {score or 'rank 0 knows why'}",
                hint=f"{hint}, or mend the cause; run again to go on from the last checkpoint",
            )
        return float(value)

    def _save(self, step: int) -> None:
        meta = {**self.job.lineage, "best": self.best.to_json(), "budget": self.budget.to_json()}
        needed = (self.best.step, self.best.expects, self.budget.within, self.budget.expects)
        self.writer.protect(step for step in needed if step)
        self.waited += shards.save(self.engine.engine, self.writer, step, meta)
        self.saved, self.saved_at = step, time.monotonic()

    def _load(self, found: checkpoint.Found) -> int:
        self.tell(kind="status", text="loading the checkpoint")
        found.require(self.job.lineage)
        shards.load(self.engine.engine, found)
        self.best = Best.from_json(found.meta["best"])
        if self.best.expects is not None:  # its score did not arrive before the last attempt ended
            folder = self.job.candidates_dir and self.job.candidates_dir / f"step-{self.best.expects:08d}"
            self.tell(kind="candidate", step=self.best.expects, folder=str(folder))
        kept = found.meta.get("budget", {})
        self.budget.within, self.budget.expects = kept.get("within"), kept.get("expects")
        if self.budget.expects is not None:
            folder = self.job.candidates_dir and self.job.candidates_dir / f"look-{self.budget.expects:08d}"
            self.tell(kind="look", step=self.budget.expects, folder=str(folder))
        return found.step

    # ── the end ──

    def _refusal(self, error: Diverged) -> IftError:
        """Say where it happened, what the model had seen, and what is left."""
        numbers = sorted(number for part in self._everyones(error.packs) for number in part)
        packs = self.stream.read(numbers[:3])
        examples = [
            f"{task}/{name}" for pack in packs for task, name in zip(pack.tasks, pack.examples, strict=True)
        ]
        shown = ", ".join(examples[:6]) + (f" and {len(examples) - 6} more" if len(examples) > 6 else "")
        more = " …" if len(numbers) > 8 else ""
        self.writer.close()
        kept = f"the checkpoint of step {self.saved:,} is kept" if self.saved else "there is no checkpoint"
        return IftError(
            f"{error}: packs {', '.join(map(str, numbers[:8]))}{more}, examples {shown}",
            wanted=f"a finite number; {kept}",
            hint=f"`ift inspect RUN --step {error.step}` shows what was seen; lower train.learning_rate, "
            "or look at the data",
        )

    def _assert_all_seen(self, first: int) -> None:
        """Every pack from the first step of this attempt to its last, once."""
        job = self.job
        seen = int(self.engine.sum(torch.tensor([self.seen], dtype=torch.float64)))
        begun, ended = (min(step * job.global_batch, job.packs) for step in (first, self.done))
        if seen != ended - begun:
            raise AssertionError(
                f"{seen} packs were trained on in steps {first + 1} to {self.done}; the stream has {ended - begun}"
            )

    @property
    def _chosen(self) -> int | None:
        """The step whose weights come out; None where the last ones do."""
        return self.best.step or (self.budget.within if self.spent else None)

    def _take_best(self) -> None:
        """Go back to the weights of the best validation, or of the last look within the budget, unless these are."""
        if self.best.by is None and self.budget.limit is None:
            return
        self._take_score()
        self._take_look()
        self.writer.close()
        torch.distributed.barrier()
        step = self._chosen
        self.tell(kind="best", step=step)
        if step is None or step == self.done:
            return
        found = checkpoint.latest(self.job.checkpoints, step=step)
        assert found is not None, f"the best checkpoint, of step {step}, is gone"
        try:
            shards.load(self.engine.engine, found)
        except BrokenCheckpoint as why:  # an older one has other weights, and training on makes these no more
            raise IftError(
                f"the weights of step {step:,}, which are to come out, cannot be read from their checkpoint: {why}",
                wanted="the checkpoint as it was written",
                hint="mend or empty the folder of the checkpoints; empty, the same command trains again",
            ) from None

    def _write_model(self, folder: Path) -> None:
        """An ordinary folder of the weights as they are, by all ranks together."""
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self.engine.export(folder)
        if self.rank == 0:
            base.save_tokenizer(base.load_tokenizer(self.job.model_dir), folder)
        torch.distributed.barrier()

    def _export(self, first: int) -> dict[str, Any]:
        self.tell(kind="status", text="exporting the model")
        self.engine.module.eval()
        ids = self.stream.read([0])[0].tokens[:256]
        expected = base.reference_logits(self.engine.module, ids, encoder_decoder=self.encoder_decoder)
        self._write_model(self.job.export_dir)
        self.writer.close()
        gpu = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak, peak_gpu = self.engine.largest(torch.tensor([rss, gpu], dtype=torch.float64)).tolist()
        return {
            "ids": ids,
            "logits": expected,
            "dtype": str(self.job.dtype).removeprefix("torch."),
            "resumed_at": first,
            "steps": self.done,
            "best_step": self._chosen,
            "world": self.world,
            "attention": self.attention,
            "waited_for_checkpoints_s": self.waited,
            "peak_memory_bytes": int(peak),
            "peak_gpu_bytes": int(peak_gpu),
        }


def settle_attention(
    engine: Any, packs: Sequence[Pack], job: Job, notify: Callable[[str], None] = lambda _: None
) -> str:
    """Have the model attend to packs in the fastest way that is exact for it here; its name.

    Raises `IftError` where none is: then packed documents see each other.
    """
    name, _ = attention.settle(
        engine.module,
        attention.candidates(engine.module, device=engine.device, dtype=job.dtype, asked=job.attention),
        lambda: probe_isolation(engine.module, packs, engine.device),
        isolation_tolerance(job.dtype),
        worst=lambda error: float(engine.largest(torch.tensor([error], dtype=torch.float64))),
        partitioned=job.zero_stage == 3,
        notify=notify,
    )
    return name
