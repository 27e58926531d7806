"""Training under Ray: a run that was interrupted is the run that was not, bit by bit."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import VOCABULARY, leaking_model, random_packs

from ift.data.stream import Pack, Stream, write
from ift.errors import IftError
from ift.models import base
from ift.train import trainer, worker
from ift.train.worker import Job

PACKS, VALIDATION = 13, 3


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
        export_dir=folder / "export",
        packs=PACKS,
        validation_packs=VALIDATION,
        epoch_ends=(7, PACKS),
        global_batch=3,
        micro_batch=1,
        learning_rate=3e-3,
        schedule="linear",
        warmup=0.2,
        weight_decay=0.01,
        max_grad_norm=1.0,
        zero_stage=2,
        precision="fp32",
        checkpoint_steps=2,
        seed=0,
        threads=1,
    )


@pytest.fixture(scope="module")
def uninterrupted(
    ray_here: None, job: Job, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Told, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    told = Told()
    export = folder / "export"
    result = trainer.fit(
        replace(job, export_dir=export), workers=2, gpus=0, storage=folder, max_failures=0, on_event=told
    )
    return told, result, export


@pytest.mark.slow
def test_a_run_and_what_it_tells(uninterrupted: tuple[Told, dict[str, Any], Path], job: Job) -> None:
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
    assert [e["step"] for e in told.of("start")] == [0]
    assert (result["resumed_at"], result["world"]) == (0, 2)
    base.verify(export, result["ids"], result["logits"], dtype=result["dtype"])


def dying(deaths: dict[int, Path], snapshot: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What Ray Train calls instead of `worker.run`: rank 1 is killed in each of these steps, once."""

    def run(config: dict[str, Any]) -> dict[str, Any]:
        import os
        import signal
        import time

        import torch.distributed as dist

        from ift.train import checkpoint, worker

        done = 0  # steps
        load, step = checkpoint.load, worker.DeepSpeedEngine.step

        def counting_load(*arguments: Any) -> int:
            nonlocal done
            done = load(*arguments)
            return done

        def deadly_step(self: Any, rate: float) -> float:
            nonlocal done
            done += 1
            flag = deaths.get(done)
            if flag and dist.get_rank() == 1 and not flag.exists():
                patience = time.monotonic() + 60
                while not (snapshot.exists() and "step-0" in snapshot.read_text()):
                    assert time.monotonic() < patience, "no checkpoint was kept"
                    time.sleep(0.05)
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, rate)

        checkpoint.load = counting_load
        worker.DeepSpeedEngine.step = deadly_step  # type: ignore[method-assign]
        return worker.run(config)

    return run


@pytest.mark.slow
def test_resumed_is_uninterrupted(
    uninterrupted: tuple[Told, dict[str, Any], Path],
    job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker is killed in step 4, and the run goes on by itself; killed in step 5 too, it goes on when run again."""
    expected, _, expected_export = uninterrupted
    deaths = {4: tmp_path / "died-in-4", 5: tmp_path / "died-in-5"}
    snapshot = tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json"
    monkeypatch.setattr(trainer.worker, "run", dying(deaths, snapshot))
    job = replace(job, export_dir=tmp_path / "export")

    def fit(told: Told, max_failures: int) -> dict[str, Any]:
        return trainer.fit(job, workers=2, gpus=0, storage=tmp_path, max_failures=max_failures, on_event=told)

    told = Told()
    with pytest.raises(IftError, match="run again to go on from the last checkpoint"):
        fit(told, max_failures=1)
    assert all(flag.exists() for flag in deaths.values())
    first, second = (e["step"] for e in told.of("start"))
    assert first == 0
    assert second in (2, 3)  # the last checkpoint that was whole
    assert told.steps() == [1, 2, 3, *range(second + 1, 5)]
    again = Told()
    result = fit(again, max_failures=0)
    assert result["resumed_at"] == again.of("start")[0]["step"] >= second
    assert again.steps() == list(range(result["resumed_at"] + 1, 6))

    told.events += again.events
    assert told.losses() == expected.losses()
    for metric in ("lr", "grad_norm", "supervised_tokens", "tokens"):
        seen = {int(e["step"]): e[metric] for e in told.of("step")}
        assert seen == {int(e["step"]): e[metric] for e in expected.of("step")}
    last = {e["step"]: e["loss"] for e in told.of("validation")}
    assert last == {e["step"]: e["loss"] for e in expected.of("validation")}
    weights = "model.safetensors"
    assert (job.export_dir / weights).read_bytes() == (expected_export / weights).read_bytes()


@pytest.mark.slow
def test_one_worker_trains_like_two(
    uninterrupted: tuple[Told, dict[str, Any], Path], job: Job, tmp_path: Path
) -> None:
    expected, two, _ = uninterrupted
    told = Told()
    job = replace(job, export_dir=tmp_path / "export", micro_batch=2)
    one = trainer.fit(job, workers=1, gpus=0, storage=tmp_path, max_failures=0, on_event=told)
    assert (one["world"], two["world"]) == (1, 2)
    for metric in ("loss", "grad_norm"):
        ours, theirs = ([e[metric] for e in t.of("step")] for t in (told, expected))
        assert ours == pytest.approx(theirs, rel=1e-5)
    for metric in ("supervised_tokens", "tokens"):  # the same packs in the same steps
        assert [e[metric] for e in told.of("step")] == [e[metric] for e in expected.of("step")]
    assert [e["loss"] for e in told.of("validation")] == pytest.approx(
        [e["loss"] for e in expected.of("validation")], rel=1e-5
    )
    base.verify(job.export_dir, two["ids"], two["logits"], dtype="float32")  # two workers' logits


@pytest.mark.slow
def test_a_model_that_leaks_is_refused_before_the_first_step(
    ray_here: None, job: Job, tmp_path: Path
) -> None:
    """Short convolutions run over document boundaries, whatever the positions say."""
    model = tmp_path / "model"
    shutil.copytree(job.model_dir, model)
    leaking_model(2 * VOCABULARY).save_pretrained(model)
    told = Told()
    with pytest.raises(IftError) as caught:
        trainer.fit(
            replace(job, model_dir=model, export_dir=tmp_path / "export"),
            workers=1,
            gpus=0,
            storage=tmp_path,
            max_failures=3,
            on_event=told,
        )
    assert caught.value.what.startswith(
        "packed documents see each other in this model: packing changes its logits by"
    )
    assert caught.value.wanted == "at most 0.1%"
    assert caught.value.hint == "set data.packing=false"
    assert [e["kind"] for e in told.events] == [
        "status"
    ]  # "loading the model", once: a restart could not mend it
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_loss_of_nan_is_refused_and_not_tried_again(ray_here: None, job: Job, tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(IftError, match="the loss of step 2 is nan") as caught:
        trainer.fit(
            replace(
                job, learning_rate=math.inf, warmup=0.0, export_dir=tmp_path / "export", validation_packs=0
            ),
            workers=1,
            gpus=0,
            storage=tmp_path,
            max_failures=3,
            on_event=told,
        )
    assert caught.value.hint == "lower train.learning_rate, or look at the data"
    assert len(told.of("start")) == 1
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ray_data_carries_each_ranks_packs_from_any_step_on(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    monkeypatch.setattr(worker, "_BLOCKS", 3)  # several reads in a task of Ray
    packs = random_packs(150, seed=3)  # more than two row groups, the last step not whole
    write(tmp_path, packs)
    for first in (0, 7) if world == 2 else (4,):
        seen: dict[int, list[Pack]] = {}
        for rank in range(min(world, 3)):
            part = worker.Part(global_batch=11, packs=len(packs), rank=rank, world=world, micro_batch=2)
            steps = range(first, 14)
            carried = worker.carried(tmp_path, part, steps)
            for step in steps:
                for micro in part.of(step):
                    seen.setdefault(step, []).extend(found := [next(carried) for _ in micro])
                    assert found == [packs[number] for number in micro]
            assert next(carried, None) is None
        if world <= 3:
            assert all(len(seen[step]) == min(11, len(packs) - 11 * step) for step in seen)
    assert list(worker.carried(tmp_path, part, range(0))) == []


def explained(*causes: BaseException | str) -> IftError:
    """What a user reads where Ray's error names these failures of workers."""
    failures = {
        rank: SimpleNamespace(cause=cause) if isinstance(cause, BaseException) else cause
        for rank, cause in enumerate(causes)
    }
    error = RuntimeError("Ray's own text")
    error.worker_failures = failures  # type: ignore[attr-defined]
    return trainer._explain(error)


def test_a_failure_is_told_in_the_users_words() -> None:
    ours = IftError("the shelf is empty", wanted="a book", hint="buy one")
    assert explained(RuntimeError("first"), ours) is ours
    full = explained(OSError(28, "No space left on device"))
    assert str(full).startswith("the disk is full: a checkpoint could not be written")
    memory = explained(RuntimeError("line\nCUDA out of memory. Tried to allocate 2 GiB"))
    assert memory.what == "training ran out of memory: CUDA out of memory. Tried to allocate 2 GiB"
    assert "train.micro_batch" in (memory.hint or "")
    other = explained(RuntimeError("a\n\nb: the last line\n"))
    assert other.what == "training failed: b: the last line"
    assert "run again to go on from the last checkpoint" in (other.hint or "")
    assert trainer._explain(RuntimeError("")).what == "training failed: RuntimeError"


def test_a_refusal_survives_the_way_to_the_driver() -> None:
    import pickle

    refusal = worker.Refusal("what", wanted="wanted", hint="hint")
    copy = pickle.loads(pickle.dumps({"refusal": refusal}))["refusal"]
    assert type(copy) is worker.Refusal
    assert str(copy) == str(refusal)


def test_events_are_taken_once_and_in_order() -> None:
    events = trainer.Events()
    events.put({"step": 1})
    events.put({"step": 2})
    assert events.take() == [{"step": 1}, {"step": 2}]
    assert events.take() == []
