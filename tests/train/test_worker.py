"""One worker: DeepSpeed's gradient is the book's gradient at every ZeRO stage, and what is exported is the model."""

import gc
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from documents import VOCABULARY, leaking_model, random_pack, random_packs, unpacked

from ift.errors import IftError
from ift.models import base
from ift.train import engine as engines
from ift.train import trainer, worker
from ift.train.engine import DeepSpeedEngine
from ift.train.job import Job
from ift.train.loop import ranks_packs, train
from ift.train.loss import collate

STAGES = [0, 1, 2, 3]
ALONE = [0, 1]  # with one rank the planner has no use for the others
WORLD = 2
RATES = (3e-3, 1e-3)  # of the two steps
CASES = [(1, 1.0), (2, 0.0)]  # micro-batch, and where gradients are clipped (0: nowhere)


def job_for(model_dir: Path, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "model_dir": model_dir,
        "stream_dir": Path("stream"),
        "validation_dir": Path("validation"),
        "export_dir": Path("export"),
        "checkpoints": "checkpoints",
        "packs": 10,
        "validation_packs": 0,
        "epoch_ends": (10,),
        "global_batch": 5,  # odd: with two ranks one has a micro-batch without packs
        "micro_batch": 1,
        "learning_rate": RATES[0],
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "zero_stage": 2,
        "precision": "fp32",
        "checkpoint_steps": None,
        "seed": 0,
        "threads": 1,
        **changes,
    }
    return Job(**values)


def test_a_jobs_steps_and_where_its_epochs_end() -> None:
    job = job_for(Path("m"), packs=11, epoch_ends=(6, 11), global_batch=4)
    assert job.steps == 3
    assert job.epochs() == {2: 1, 3: 2}  # the step that holds the epoch's last pack
    assert (job.dtype, job_for(Path("m"), precision="bf16").dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(("stage", "reduced_in"), [(0, "fp32"), (1, "fp32"), (2, None), (3, None)])
def test_gradients_are_summed_in_fp32_and_at_stage_1_reduced_so(stage: int, reduced_in: str | None) -> None:
    config = engines.deepspeed_config(job_for(Path("m"), precision="bf16", zero_stage=stage), 2)
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config.get("communication_data_type") == reduced_in
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}


def test_a_buffer_to_a_disk_holds_a_workers_part_of_the_largest_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sizes(largest: int, **changes: Any) -> list[Any]:
        job = job_for(Path("m"), zero_stage=3, nvme=Path("/disk"), largest_tensor=largest, **changes)
        found = engines.deepspeed_config(job, 2)["zero_optimization"]
        return [
            found[key].get("buffer_size") for key in ("offload_optimizer", "offload_param") if key in found
        ]

    assert sizes(525_336_577, offload="parameters") == [None, 262_668_289]
    assert sizes(1000, offload="parameters") == [None, 100_000_000]  # DeepSpeed's own
    assert sizes(525_336_576, offload="optimizer") == [None]


def test_tied_weights_stay_tied_in_the_hosts_memory() -> None:
    class OnGpu:
        """A view at `place` of a flat array on a GPU."""

        def __init__(self, place: int, shape: tuple[int, ...]) -> None:
            self.place, self.shape = place, shape

        def data_ptr(self) -> int:
            return self.place

        def stride(self) -> tuple[int, ...]:
            return tuple(reversed(self.shape))

        def cpu(self) -> object:
            return object()

    state = {
        "embed": OnGpu(0, (4, 2)),
        "norm": OnGpu(32, (2,)),
        "head": OnGpu(0, (4, 2)),
        "row": OnGpu(0, (2,)),
    }
    found = engines._on_host(state)
    assert list(found) == list(state)
    assert found["embed"] is found["head"]
    assert len(set(map(id, found.values()))) == 3


@pytest.mark.parametrize(
    ("global_batch", "world", "micro_batch", "rounds"),
    [(5, 2, 1, 3), (5, 2, 2, 2), (4, 8, 1, 1), (8, 1, 3, 3)],
)
def test_deepspeed_accumulates_as_often_as_there_are_micro_batches(
    global_batch: int, world: int, micro_batch: int, rounds: int
) -> None:
    job = job_for(Path("m"), global_batch=global_batch, micro_batch=micro_batch)
    assert engines.deepspeed_config(job, world)["gradient_accumulation_steps"] == rounds
    for rank in range(world):
        mine = ranks_packs(
            0, global_batch=global_batch, packs=99, rank=rank, world=world, micro_batch=micro_batch
        )
        assert len(mine) == rounds


def test_a_worker_on_a_cpu_with_room_keeps_memory_and_cpu_adam_has_a_gpus_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def variables(gpus: int, **values: Any) -> dict[str, str]:
        job = job_for(Path("m"), **{"zero_stage": 0, **values})
        attempt: Any = SimpleNamespace(job=job, nodes=SimpleNamespace(gpus=gpus))
        return trainer._Attempt._environment(attempt)

    nodes = [
        SimpleNamespace(cpus=96, gpus=8),
        SimpleNamespace(cpus=32, gpus=4),
        SimpleNamespace(cpus=8, gpus=0),
    ]
    monkeypatch.setattr(trainer.cluster, "nodes_now", lambda: nodes)
    assert variables(0) == trainer.KEEP_MEMORY
    assert variables(0, zero_stage=1) == variables(0, activation_checkpointing=True) == {}  # memory is short
    assert variables(8) == {}
    assert variables(8, offload="optimizer") == {"OMP_NUM_THREADS": "8"}


def test_deepspeed_takes_the_gpu_that_ray_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")  # of "0,1,10,11,2,…", as Ray has them
    worker.tell_deepspeed(torch.device("cpu"))
    assert (os.environ["DS_ACCELERATOR"], os.environ["LOCAL_RANK"]) == ("cpu", "2")
    worker.tell_deepspeed(torch.device("cuda", 10))
    assert "DS_ACCELERATOR" not in os.environ
    assert os.environ["LOCAL_RANK"] == "10"


def test_glibc_keeps_what_is_freed_and_gives_none_of_it_back() -> None:
    code = """
import ctypes, threading, torch
class Info(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
def touch():
    tensor = torch.ones(64 << 20, dtype=torch.uint8)
    print(mallinfo2().hblks)
thread = threading.Thread(target=touch); thread.start(); thread.join()
print(mallinfo2().arena >> 20)
"""

    def heap(**variables: str) -> tuple[int, int]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**plain, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        mapped, kept = map(int, done.stdout.split())
        return mapped, kept

    mapped, kept = heap(**trainer.KEEP_MEMORY)
    assert mapped == 0  # the tensor is part of the heap
    assert kept >= 64  # MiB, when it is freed
    mapped, _ = heap()
    assert mapped > 0


def test_norms_and_biases_are_spared_weight_decay(tiny_model: Path) -> None:
    model = base.load_model(tiny_model)
    matrices, vectors = engines._decay_groups(model, 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def alone(model: Any) -> Any:
    """What `settle_attention` needs of an engine, on one rank."""
    return SimpleNamespace(module=model, device="cpu", largest=lambda values: values)


def test_a_model_that_leaks_is_refused_with_the_way_out(tiny_model: Path) -> None:
    engine = alone(leaking_model(2 * VOCABULARY).train())
    with pytest.raises(IftError) as caught:
        worker.settle_attention(engine, [random_pack([9, 12], 3)], job_for(tiny_model))
    what, wanted, hint = str(caught.value).splitlines()
    assert what.startswith("packed documents see each other in this model: packing changes its logits by ")
    assert float(what.split()[-1].removesuffix("%")) > 1.0
    assert wanted == "  wanted: at most 0.1%"
    assert hint == "  next:   set data.packing=false"
    worker.settle_attention(
        engine, unpacked([random_pack([9, 12], 3)]), job_for(tiny_model)
    )  # and that it is
    assert engine.module.training


def test_a_model_that_isolates_is_not_refused(tiny_model: Path) -> None:
    engine = alone(base.load_model(tiny_model).train())
    assert worker.settle_attention(engine, random_packs(4), job_for(tiny_model)) == "packed"
    assert engine.module.training  # the probe itself is in eval mode


# --- two gloo ranks in two processes, or one alone, against a loop by the book in this one


def _rank(rank: int, world: int, stages: Sequence[int], model_dir: Path, folder: Path) -> None:
    """Every stage in turn, for the start of a process costs more than the training."""
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    packs = random_packs(10, seed=8)
    for stage in stages:
        for micro_batch, clip in CASES:
            job = job_for(
                model_dir,
                zero_stage=stage,
                micro_batch=micro_batch,
                max_grad_norm=clip,
                activation_checkpointing=micro_batch > 1,
            )
            engine = DeepSpeedEngine(job, world, torch.device("cpu"))
            # first, as in a run: it must leave no trace
            assert worker.settle_attention(engine, packs, job) == "packed"
            gradients: list[torch.Tensor] = []
            step = engine.step

            def looked_at(rate: float, engine: Any = engine, step: Any = step, to: Any = gradients) -> float:
                assert engine.engine.is_gradient_accumulation_boundary()
                to.append(
                    torch.cat([safe_get_full_grad(p).flatten().clone() for p in engine.module.parameters()])
                )
                return float(step(rate))

            engine.step = looked_at  # type: ignore[method-assign]
            batches = (
                [
                    collate([packs[n] for n in micro], "cpu")
                    for micro in ranks_packs(
                        s, global_batch=5, packs=10, rank=rank, world=world, micro_batch=micro_batch
                    )
                ]
                for s in range(2)
            )
            told: list[dict[str, float]] = []
            train(engine, batches, range(2), lambda s: RATES[s], told.append)
            ids = packs[0].tokens
            engine.module.eval()
            logits = base.reference_logits(engine.module, ids)
            export = folder / f"{stage}-{micro_batch}"
            engine.export(export)
            if rank == 0:
                base.load_tokenizer(model_dir).save_pretrained(export)
                torch.save(
                    {"gradients": gradients, "told": told, "ids": ids, "logits": torch.tensor(logits)},
                    export / "seen.pt",
                )
            engine.engine.destroy()
            del engine, step, looked_at
            gc.collect()  # what ZeRO-3 patched is put back
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def exports(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch.multiprocessing

    folder = tmp_path_factory.mktemp("zero")
    for world, stages in ((WORLD, STAGES), (1, ALONE)):
        into = folder / str(world)
        into.mkdir()
        torch.multiprocessing.spawn(_rank, args=(world, stages, tiny_model, into), nprocs=world)
    return folder


@dataclass
class Reference:
    model: Any  # as trained
    gradients: list[torch.Tensor]  # of each step, before clipping
    norms: list[float]
    losses: list[float]


@cache
def by_the_book(model_dir: Path, clip: float) -> Reference:
    """Two steps in one process: a document at a time, all logits, one mean over all supervised tokens, AdamW."""
    torch.set_num_threads(1)
    model, packs = base.load_model(model_dir), random_packs(10, seed=8)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    spared = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    gradients, norms, losses = [], [], []
    for step, rate in enumerate(RATES):
        logits, labels = [], []
        for document in unpacked(packs[step * 5 : step * 5 + 5]):
            ids = torch.tensor(document.tokens)
            logits.append(model(input_ids=ids[None]).logits[0, :-1])
            labels.append(torch.where(torch.tensor(document.supervised), ids, -100)[1:])
        loss = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)))
        losses.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return Reference(model, gradients, norms, losses)


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch", "clip"), CASES)
@pytest.mark.parametrize(
    ("world", "stage"), [(WORLD, stage) for stage in STAGES] + [(1, stage) for stage in ALONE]
)
def test_ranks_of_zero_train_by_the_book(
    exports: Path, tiny_model: Path, world: int, stage: int, micro_batch: int, clip: float
) -> None:
    book = by_the_book(tiny_model, clip)
    export = exports / str(world) / f"{stage}-{micro_batch}"
    seen, trained = torch.load(export / "seen.pt"), base.load_model(export)
    of_gradient = max(map(distance, seen["gradients"], book.gradients))
    of_weights = distance(weights(trained), weights(book.model))
    print(
        f"{world} × ZeRO-{stage}, micro-batch {micro_batch}: gradient {of_gradient:.1e}, weights {of_weights:.1e}"
    )
    assert of_gradient <= 1e-5
    assert of_weights <= 1e-5
    assert distance(weights(trained), weights(base.load_model(tiny_model))) > 1e-3  # it did train
    assert min(book.norms) > 1.0  # so clipping, where it is on, does something
    assert [t["loss"] for t in seen["told"]] == pytest.approx(book.losses, rel=1e-5)
    assert [t["grad_norm"] for t in seen["told"]] == pytest.approx(book.norms, rel=1e-5)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to `other`."""
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_exported_is_the_whole_model(exports: Path, tiny_model: Path, stage: int) -> None:
    export = exports / str(WORLD) / f"{stage}-1"
    seen = torch.load(export / "seen.pt")
    verified = base.verify(export, seen["ids"], seen["logits"].numpy(), dtype="float32")
    assert verified["relative_error"] < 1e-6
    assert verified["parameters"] == base.parameter_count(tiny_model)
    assert base.load_model(export).config.use_cache  # generation is not left slow
    with pytest.raises(Exception, match="answers differently"):  # the base model is not what was trained
        base.verify(tiny_model, seen["ids"], seen["logits"].numpy(), dtype="float32")


def test_a_worker_that_cannot_exit_ends_with_its_parent(tmp_path: Path) -> None:
    """What a report to a controller that is gone does: Python waits for a thread of a pool before it exits."""
    stuck = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from ift.train.worker import end_with_parent
end_with_parent(every=0.1)
ThreadPoolExecutor(1).submit(Event().wait)
open(sys.argv[1], "w").write(str(os.getpid()))
"""
    parent = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {stuck!r}, sys.argv[1]])
time.sleep(600)
"""
    note = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", parent, str(note)])
    try:
        deadline = time.monotonic() + 120
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        child = psutil.Process(int(note.read_text()))
        time.sleep(1)
        assert child.is_running(), "it is stuck as long as its parent lives"
    finally:
        process.kill()
        process.wait()
    child.wait(timeout=60)
