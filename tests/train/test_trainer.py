"""Training under Ray: a run that was interrupted is the run that was not, bit by bit."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from documents import VOCABULARY, leaking_model, random_packs, unpacked
from ray import cloudpickle

from ift.data.stream import Pack, Stream, write
from ift.errors import IftError
from ift.models import base
from ift.train import checkpoint, feed, trainer, worker
from ift.train.job import Job
from ift.train.mailbox import Mailbox

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests

PACKS, VALIDATION = 13, 3
Run = tuple["Told", dict[str, Any], Path]


class Told:
    """What a run told its driver; a step that was done again is there twice."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["kind"] == kind]

    def steps(self) -> list[int]:
        return [int(e["step"]) for e in self.of("step")]

    def losses(self) -> dict[int, float]:
        """By step. A step that was done again must have had the same loss to the bit."""
        losses: dict[int, float] = {}
        for event in self.of("step"):
            assert losses.setdefault(int(event["step"]), event["loss"]) == event["loss"]
        return losses


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    from ift import cluster

    with cluster.connect(None, workers=2):
        yield


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    write(folder / "stream", random_packs(PACKS, seed=11))
    write(folder / "validation", random_packs(VALIDATION, seed=12))
    return Job(
        model_dir=tiny_model,
        stream_dir=folder / "stream",
        validation_dir=folder / "validation",
        packs=PACKS,
        validation_packs=VALIDATION,
        epoch_ends=(7, PACKS),
        export_dir=folder / "export",
        checkpoints=str(folder / "checkpoints"),
        global_batch=3,
        learning_rate=3e-3,
        schedule="linear",
        warmup=0.2,
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=0,
        micro_batch=1,
        zero_stage=2,
        precision="fp32",
        threads=1,
        loss_weights={"films": 1.0},
        checkpoint_steps=2,
        lineage={"stream": "sha256:11"},
    )


def fit(job: Job, folder: Path, told: Callable[[dict[str, Any]], None], **options: Any) -> dict[str, Any]:
    """Train `job` with what it leaves in `folder`; two workers, no second attempt, unless `options` say otherwise."""
    job = replace(
        job,
        export_dir=folder / "export",
        checkpoints=str(folder / "checkpoints"),
        candidates_dir=folder / "candidates",
    )
    workers = options.pop("workers", 2)
    return trainer.fit(
        job,
        **{"fewest": workers, "most": workers, "gpus": 0, "max_failures": 0, **options},
        scratch=folder / "scratch",
        on_event=told,
    )


@pytest.fixture(scope="module")
def uninterrupted(ray_here: None, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, told = tmp_path_factory.mktemp("uninterrupted"), Told()
    result = fit(job, folder, told)
    return told, result, folder / "export"


@pytest.mark.slow
def test_a_run_and_what_it_tells(uninterrupted: Run, job: Job) -> None:
    told, result, export = uninterrupted
    packs = Stream(job.stream_dir).read(range(PACKS))
    batches = [packs[i : i + 3] for i in range(0, PACKS, 3)]
    steps = told.of("step")
    assert told.steps() == [1, 2, 3, 4, 5]
    assert [e["supervised_tokens"] for e in steps] == [sum(p.supervised_tokens for p in b) for b in batches]
    assert [e["tokens"] for e in steps] == [sum(len(p.tokens) for p in b) for b in batches]
    assert all(e["grad_norm"] > 0 for e in steps)
    assert [(e["step"], e["epoch"]) for e in told.of("validation")] == [(0, 0), (3, 1), (5, 2)]
    assert [e["step"] for e in told.of("checkpoint")] == [2, 3, 4]  # and none behind the last: it is exported
    (start,) = told.of("start")
    assert (start["step"], start["world"], start["attention"]) == (0, 2, "packed")
    assert (result["resumed_at"], result["world"], result["steps"]) == (0, 2, 5)
    base.verify(export, result["ids"], result["logits"], dtype=result["dtype"])


Fault = Callable[[int, int, Any], None]  # the step that is about to end, the rank, the driver's mailbox


def with_fault(fault: Fault) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What Ray Train calls instead of `worker.run`: in every step, `fault` is called on each rank.

    In the worker's own process.
    """

    def run(config: dict[str, Any]) -> dict[str, Any]:
        from ift.train import engine

        step = engine.DeepSpeedEngine.step
        done = config["found"].step if config["found"] else 0

        def faulty(self: Any, rate: float) -> float:
            nonlocal done
            done += 1
            fault(done, torch.distributed.get_rank(), config["mailbox"])
            return step(self, rate)

        engine.DeepSpeedEngine.step = faulty  # type: ignore[method-assign]
        try:
            return worker.run(config)
        finally:
            engine.DeepSpeedEngine.step = step  # type: ignore[method-assign]

    return run


def once(flag: Path) -> bool:
    """True for the first who asks."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/*/complete.json")):
        assert time.monotonic() < deadline, "no checkpoint was kept"
        time.sleep(0.05)


@pytest.mark.slow
def test_resumed_is_uninterrupted(
    uninterrupted: Run, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed in step 4, and nobody goes on; run again, it is killed in step 5, and it goes on by itself."""
    expected, _, expected_export = uninterrupted
    folder = tmp_path

    def kill(step: int, rank: int, _: Any) -> None:
        if step in (4, 5) and rank == 1:
            wait_for_checkpoint(folder)
            if once(folder / f"died-in-{step}"):
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(trainer.worker, "run", with_fault(kill))
    told = Told()
    with pytest.raises(IftError, match="run again to go on from the last checkpoint"):
        fit(job, tmp_path, told)
    assert told.steps() == [1, 2, 3]
    result = fit(job, tmp_path, told, max_failures=1)
    first, second, third = (e["step"] for e in told.of("start"))
    assert first == 0
    assert 2 <= second <= third  # the last checkpoint that was whole
    assert [e["reason"] for e in told.of("restart")] == ["worker"]
    assert result["resumed_at"] == third
    assert told.steps() == [1, 2, 3, *range(second + 1, 5), *range(third + 1, 6)]
    assert told.losses() == expected.losses()
    for metric in ("lr", "grad_norm", "supervised_tokens", "tokens"):
        seen = {int(e["step"]): e[metric] for e in told.of("step")}
        assert seen == {int(e["step"]): e[metric] for e in expected.of("step")}
    last = {e["step"]: e["loss"] for e in told.of("validation")}
    assert last == {e["step"]: e["loss"] for e in expected.of("validation")}
    weights = "model.safetensors"
    assert (tmp_path / "export" / weights).read_bytes() == (expected_export / weights).read_bytes()


@pytest.mark.slow
def test_one_worker_trains_like_two(uninterrupted: Run, job: Job, tmp_path: Path) -> None:
    expected, two, _ = uninterrupted
    told = Told()
    one = fit(replace(job, micro_batch=2), tmp_path, told, workers=1)
    assert (one["world"], two["world"]) == (1, 2)
    for metric in ("loss", "grad_norm"):
        ours, theirs = ([e[metric] for e in t.of("step")] for t in (told, expected))
        assert ours == pytest.approx(theirs, rel=1e-5)
    for metric in ("supervised_tokens", "tokens"):  # the same packs in the same steps
        assert [e[metric] for e in told.of("step")] == [e[metric] for e in expected.of("step")]
    assert [e["loss"] for e in told.of("validation")] == pytest.approx(
        [e["loss"] for e in expected.of("validation")], rel=1e-5
    )
    base.verify(tmp_path / "export", two["ids"], two["logits"], dtype="float32")  # two workers' logits


@pytest.mark.slow
@pytest.mark.long
def test_a_collective_that_hangs_is_given_up_and_training_goes_on(
    uninterrupted: Run, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker stops in step 4, without a word, as behind a cable that was pulled."""
    folder = tmp_path

    def stop(step: int, rank: int, _: Any) -> None:
        if step == 4 and rank == 1:
            wait_for_checkpoint(folder)
            if once(folder / "stopped"):
                os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(trainer.worker, "run", with_fault(stop))
    told = Told()
    fit(job, tmp_path, told, max_failures=1, hang_timeout_s=150)
    assert [e["reason"] for e in told.of("restart")] == ["hang"]
    assert told.losses() == uninterrupted[0].losses()


@pytest.mark.slow
@pytest.mark.long
def test_out_of_memory_goes_on_with_less(
    uninterrupted: Run, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU says when it is full; the next choice is asked for, and does not count as a failure."""
    folder = tmp_path

    def full(step: int, rank: int, _: Any) -> None:
        if step == 2 and rank == 0 and once(folder / "full"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer.worker, "run", with_fault(full))
    told = Told()
    asked: list[int] = []

    def smaller(job: Job) -> tuple[Job, str] | None:
        asked.append(job.micro_batch)
        return replace(job, micro_batch=1), "micro_batch 1"

    fit(replace(job, micro_batch=2), tmp_path, told, smaller=smaller)
    assert asked == [2]
    assert [e["text"] for e in told.of("note")] == [
        "training ran out of memory; it goes on with micro_batch 1"
    ]
    assert told.of("restart") == []
    assert told.steps() == [1, 1, 2, 3, 4, 5]
    for step, loss in uninterrupted[0].losses().items():
        assert [e["loss"] for e in told.of("step") if e["step"] == step] == pytest.approx(
            [loss] * (1 + (step == 1)), rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.long
def test_without_a_smaller_choice_out_of_memory_is_the_end(
    ray_here: None, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(step: int, rank: int, _: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer.worker, "run", with_fault(full))
    with pytest.raises(IftError, match="ran out of memory: CUDA out of memory") as caught:
        fit(job, tmp_path, Told(), workers=1, max_failures=3)
    assert "`ift plan SPEC` shows what fits" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.long
def test_a_controller_that_is_lost_is_started_again(uninterrupted: Run, job: Job, tmp_path: Path) -> None:
    told = Told()

    def watch(event: dict[str, Any]) -> None:
        told(event)
        if event["kind"] == "checkpoint" and event["step"] == 2:
            killed.set()
            (controller,) = (
                p
                for p in psutil.Process().children(recursive=True)
                if "TrainController" in "".join(p.cmdline())
            )
            controller.kill()

    killed = threading.Event()
    fit(job, tmp_path, watch, max_failures=1)
    assert killed.is_set()
    restarts = [e["reason"] for e in told.of("restart")]
    assert restarts == ["controller"] or told.steps() == [1, 2, 3, 4, 5]  # it may have been at its end
    assert told.losses() == uninterrupted[0].losses()


@pytest.mark.slow
@pytest.mark.long
def test_the_best_validation_is_what_comes_out(ray_here: None, job: Job, tmp_path: Path) -> None:
    """The learning rate is far too high: the loss on what is held out soon rises, and patience ends it."""
    told = Told()
    job = replace(job, learning_rate=0.1, schedule="constant", validate_steps=1, best_by="loss", patience=2)
    result = fit(job, tmp_path, told)
    losses = {e["step"]: e["loss"] for e in told.of("validation") if e["step"]}
    best = min(losses, key=losses.__getitem__)
    assert result["best_step"] == best
    assert result["steps"] == best + 2 < job.steps
    model, packs = base.load_model(tmp_path / "export"), Stream(job.validation_dir).read(range(VALIDATION))
    with torch.no_grad():  # by the book: a document at a time, all logits
        logits, labels = [], []
        for document in unpacked(packs):
            ids = torch.tensor(document.tokens)
            logits.append(model(input_ids=ids[None]).logits[0, :-1])
            labels.append(torch.where(torch.tensor(document.supervised), ids, -100)[1:])
        loss = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)
    assert float(loss) == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_the_best_score_is_what_comes_out_however_late_it_comes(
    uninterrupted: Run, job: Job, tmp_path: Path
) -> None:
    """Each exported model is graded while training goes on; the grades here are made up: the third is the best."""
    graded: dict[int, float] = {}

    def score(folder: Path) -> float:
        step = int(folder.name.removeprefix("step-"))
        base.load_model(folder)
        graded[step] = -abs(step - 3.0)
        return graded[step]

    told = Told()
    result = fit(replace(job, validate_steps=1, best_by="metric"), tmp_path, told, score=score)
    assert list(graded) == [1, 2, 3, 4, 5]
    assert result["best_step"] == 3
    assert told.losses() == uninterrupted[0].losses()
    candidate = (tmp_path / "candidates" / "step-00000003" / "model.safetensors").read_bytes()
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == candidate


@pytest.mark.slow
@pytest.mark.long
def test_training_ends_where_too_much_is_forgotten_and_what_was_within_comes_out(
    uninterrupted: Run, job: Job, tmp_path: Path
) -> None:
    """A look behind each step; the drops are made up: the third is over the budget."""
    drops, looked = {1: -0.01, 2: 0.04, 3: 0.2, 4: 0.3}, dict[int, bytes]()

    def look(step: int, folder: Path) -> float:
        looked[step] = (folder / "model.safetensors").read_bytes()
        return drops[step]

    told = Told()
    looking = replace(job, look_steps=1, forgetting_budget=0.05, checkpoint_steps=None)
    result = fit(looking, tmp_path, told, look=look)
    assert list(looked) == [1, 2, 3]
    assert told.steps() == [1, 2, 3, 4]  # what the third look finds is taken in at the fourth
    assert (result["steps"], result["best_step"]) == (4, 2)
    assert [e["text"] for e in told.of("note") if "probes" in e["text"]] == [
        "behind step 3 the probes have lost 0.200 on average, more than train.early_stop.forgetting 0.05: "
        "training ends, and the weights of step 2 come out"
    ]
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == looked[2]


@pytest.mark.slow
@pytest.mark.long
def test_looks_alone_change_nothing(uninterrupted: Run, job: Job, tmp_path: Path) -> None:
    """Not even where they fail: nobody waits for them."""
    looked: list[int] = []

    def look(step: int, folder: Path) -> float:
        looked.append(step)
        raise OSError("no room")

    told = Told()
    fit(replace(job, look_steps=2), tmp_path, told, look=look)
    assert looked == [2, 4]
    assert told.losses() == uninterrupted[0].losses()
    notes = [e["text"] for e in told.of("note") if "probes" in e["text"]]
    assert notes == [f"no look at the probes behind step {n}: OSError: no room" for n in looked]


@pytest.mark.slow
@pytest.mark.long
def test_a_score_that_cannot_be_had_ends_training_with_the_reason(
    ray_here: None, job: Job, tmp_path: Path
) -> None:
    def score(folder: Path) -> float:
        raise ValueError("no items")

    with pytest.raises(IftError, match="the model behind step 1 could not be graded: ValueError: no items"):
        fit(replace(job, validate_steps=1, best_by="metric"), tmp_path, Told(), workers=1, score=score)


@pytest.mark.slow
@pytest.mark.long
def test_a_model_that_leaks_is_refused_before_the_first_step(
    ray_here: None, job: Job, tmp_path: Path
) -> None:
    """Short convolutions run over document boundaries, whatever the positions say."""
    model = tmp_path / "model"
    shutil.copytree(job.model_dir, model)
    leaking_model(2 * VOCABULARY).save_pretrained(model)
    told = Told()
    with pytest.raises(IftError) as caught:
        fit(replace(job, model_dir=model), tmp_path, told, workers=1, max_failures=3)
    assert caught.value.what.startswith(
        "packed documents see each other in this model: packing changes its logits by"
    )
    assert caught.value.wanted == "at most 0.1%"
    assert caught.value.hint == "set data.packing=false"
    assert [e["text"] for e in told.of("status")] == [
        "loading the model"
    ]  # once: a restart could not mend it
    assert told.of("start") == []
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_loss_that_is_no_number_is_refused_with_what_was_seen(
    ray_here: None, job: Job, tmp_path: Path
) -> None:
    told = Told()
    job = replace(
        job, learning_rate=1e38, warmup=0.0, validation_packs=0, checkpoint_steps=1, max_grad_norm=0.0
    )
    with pytest.raises(IftError) as caught:
        fit(job, tmp_path, told, workers=1, max_failures=3)
    what, wanted, hint = str(caught.value).splitlines()
    assert what.startswith("the loss of step 2 is ")
    numbers = [int(n) for n in what.partition(": packs ")[2].partition(", examples ")[0].split(", ")]
    assert set(numbers) <= {3, 4, 5}
    packs = Stream(job.stream_dir).read(numbers)
    assert f"examples films/{packs[0].examples[0]}" in what
    assert wanted == "  wanted: a finite number; the checkpoint of step 1 is kept"
    assert "`ift inspect RUN --step 2` shows what was seen" in hint
    assert len(told.of("start")) == 1
    assert not (tmp_path / "export").exists()
    assert checkpoint.latest(tmp_path / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ray_data_carries_each_ranks_packs_from_any_step_on(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    monkeypatch.setattr(feed, "_BLOCKS", 3)  # several reads in a task of Ray
    packs = random_packs(150, seed=3)  # more than two row groups, the last step not whole
    write(tmp_path, packs)
    for first in (0, 7) if world == 2 else (4,):
        seen: dict[int, list[Pack]] = {}
        for rank in range(min(world, 3)):
            part = feed.Part(global_batch=11, packs=len(packs), rank=rank, world=world, micro_batch=2)
            steps = range(first, 14)
            carried = feed.carried(tmp_path, part, steps)
            for step in steps:
                for micro in part.of(step):
                    seen.setdefault(step, []).extend(found := [next(carried) for _ in micro])
                    assert found == [packs[number] for number in micro]
            assert next(carried, None) is None
        if world <= 3:
            assert all(len(seen[step]) == min(11, len(packs) - 11 * step) for step in seen)
    assert list(feed.carried(tmp_path, part, range(0))) == []


def test_events_are_taken_once_and_in_order() -> None:
    mailbox = Mailbox()
    mailbox.put({"step": 1})
    mailbox.put({"step": 2})
    assert mailbox.take() == [{"step": 1}, {"step": 2}]
    assert mailbox.take() == []
