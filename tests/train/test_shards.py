"""Training goes on from a checkpoint on any number of ranks and under any ZeRO stage as if nothing had happened."""

import gc
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.nn.functional as F
from safetensors import safe_open

from ift.models import base
from ift.models.adapters import Adapter
from ift.train import checkpoint, shards
from ift.train.checkpoint import KINDS, Writer
from ift.train.job import Job

RATES = [3e-3, 1e-3, 2e-3, 1e-3, 3e-3, 2e-3]  # of the steps
SEQUENCES, LENGTH = 4, 24  # of a step

# A run is two steps on so many ranks under a ZeRO stage, "2-3-full"; "4-2-full>2-3-full" goes on from what the run
# before the arrow left. Each leaves a checkpoint, and then takes two steps more, to compare with.
FIRST = [
    *(f"{world}-{stage}-full" for world in (1, 2, 3, 4) for stage in (0, 1, 2, 3)),
    *(f"2-{stage}-lora" for stage in (0, 1, 2, 3)),
    "1-0-lora",
    "4-2-lora",
    "2-1-offloaded",
    "2-2-offloaded",
    "2-3-offloaded",
    "2-1-bf16",
    "2-2-bf16",
    "2-3-bf16",
]
ALIKE = [f"{run}>{run}" for run in FIRST]
OTHERWISE = [
    "4-2-full>2-2-full",
    "4-3-full>3-3-full",
    "2-2-full>3-2-full",
    "1-0-full>2-2-full",
    "2-1-full>1-0-full",
    "2-2-full>2-3-full",
    "2-3-full>2-1-full",
    "2-0-full>2-3-full",
    "3-3-full>4-0-full",
    "1-0-lora>2-3-lora",
    "4-2-lora>2-0-lora",
    "2-3-lora>1-0-lora",
    "2-3-full>2-3-offloaded",
    "2-2-offloaded>1-0-full",
    "4-2-full>2-2-full>4-2-full",
]


def job_for(model_dir: Path, stage: int, what: str) -> Job:
    packs = SEQUENCES * len(RATES)
    return Job(
        model_dir=model_dir,
        stream_dir=Path("stream"),
        validation_dir=Path("validation"),
        packs=packs,
        validation_packs=0,
        epoch_ends=(packs,),
        export_dir=Path("export"),
        checkpoints="checkpoints",
        global_batch=SEQUENCES,
        learning_rate=RATES[0],
        schedule="constant",
        warmup=0.0,
        weight_decay=0.1,
        max_grad_norm=1.0,
        seed=0,
        micro_batch=1,
        zero_stage=stage,
        precision="bf16" if what == "bf16" else "fp32",
        threads=1,
        adapter=Adapter(rank=4, alpha=8.0) if what == "lora" else None,
        offload="optimizer" if what == "offloaded" else "none",
    )


# ── on the ranks ──


def train(engine: Any, rank: int, world: int, steps: range) -> list[float]:
    """The losses of these steps. A micro-batch that a rank lacks is another's, and counts nothing."""
    losses = []
    for step in steps:
        ids = torch.randint(3, 250, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(step))
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, SEQUENCES, world):
            mine, counts = (first + rank) % SEQUENCES, float(first + rank < SEQUENCES)
            logits = engine.module(input_ids=ids[mine : mine + 1], use_cache=False).logits[0, :-1].float()
            loss = counts * F.cross_entropy(logits, ids[mine, 1:], reduction="sum")
            engine.accumulate(loss / (SEQUENCES * (LENGTH - 1)))
            total += loss.detach().double()
        engine.step(RATES[step])
        losses.append(float(engine.sum(total)) / (SEQUENCES * (LENGTH - 1)))
    return losses


def held(engine: Any) -> dict[str, torch.Tensor]:
    """The whole weights and moments, as DeepSpeed itself puts them together."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() in (
        1,
        2,
    ):  # it links the moments too early, before the second group has any
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    seen = {}
    for name, p in engine.module.named_parameters():
        if p.requires_grad and engine.zero_optimization_stage():
            seen[f"weight {name}"] = safe_get_full_fp32_param(p)
            for kind in KINDS[1:]:
                seen[f"{kind} {name}"] = safe_get_full_optimizer_state(p, kind)
        elif p.requires_grad:
            seen[f"weight {name}"] = p.detach()
            for kind in KINDS[1:]:
                seen[f"{kind} {name}"] = engine.optimizer.state[p][kind]
    return {name: values.clone() for name, values in seen.items()}


def save(engine: Any, place: Path, rank: int, world: int, step: int) -> None:
    writer = Writer(
        place, rank=rank, world=world, nonce="a", parameters=shards.parameters(engine.engine), keep=2
    )
    shards.save(engine.engine, writer, step, {"loss": 0.25})
    writer.close()


def on_rank(rank: int, world: int, runs: list[str], model_dir: Path, folder: Path) -> None:
    """Each of `runs` in turn, for the start of a process costs more than the training."""
    for run in runs:
        seen = on_rank_one(rank, world, run, model_dir, folder)
        gc.collect()  # what ZeRO-3 patched is put back
        if rank == 0:
            torch.save(seen, folder / f"{run}.pt")


def on_rank_one(rank: int, world: int, run: str, model_dir: Path, folder: Path) -> dict[str, Any]:
    from ift.train.engine import DeepSpeedEngine

    before, _, this = run.rpartition(">")
    step = 2 * run.count(">")
    _, stage, what = this.split("-")
    engine = DeepSpeedEngine(job_for(model_dir, int(stage), what), world, torch.device("cpu"))
    if before:
        found = checkpoint.latest(folder / before)
        assert found is not None
        assert found.step == step
        shards.load(engine.engine, found)
        assert shards.steps_taken(engine.engine) == step
        save(engine, folder / f"{run} at once", rank, world, step)
    seen: dict[str, Any] = {"losses": train(engine, rank, world, range(step, step + 2))}
    save(engine, folder / run, rank, world, step + 2)
    seen["held"] = held(engine.engine)
    if not before:
        seen["straight"] = train(engine, rank, world, range(2, len(RATES) if world == 1 else 4))
    engine.engine.destroy()
    return seen


# ── and what came of it ──


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")

    def world_of(run: str) -> tuple[int, int]:
        return run.count(">"), int(run.rpartition(">")[2][0])

    for (_, world), some in groupby(sorted([*FIRST, *ALIKE, *OTHERWISE], key=world_of), world_of):
        ranks.run(on_rank, world, folder, list(some), tiny_model, folder)
    return folder


def seen(runs: Path, run: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(runs / f"{run}.pt")
    return loaded


def whole(place: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, put together by somebody else's reader of safetensors."""
    (folder,) = place.iterdir()
    shapes = json.loads((folder / "complete.json").read_text())["parameters"]
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (no dict)
                kind, start, name = key.split(".", 2)
                parts.setdefault(f"{kind} {name}", {})[int(start)] = file.get_tensor(key)
    return {
        key: torch.cat([of[start] for start in sorted(of)]).view(shapes[key.split(" ")[1]])
        for key, of in parts.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("run", FIRST)
def test_a_checkpoint_holds_what_deepspeed_holds(runs: Path, run: str) -> None:
    held = seen(runs, run)["held"]
    assert same(whole(runs / run), held)
    assert any(held[key].abs().sum() > 0 for key in held if key.startswith("exp_avg_sq"))


@pytest.mark.slow
@pytest.mark.parametrize("run", ALIKE)
def test_nobody_notices_a_stop_on_as_many_ranks_under_the_same_stage(runs: Path, run: str) -> None:
    first = run.partition(">")[0]
    assert seen(runs, run)["losses"] == seen(runs, first)["straight"][:2]  # to the bit


@pytest.mark.slow
@pytest.mark.parametrize("run", [*ALIKE, *OTHERWISE])
def test_what_is_loaded_is_what_was_saved(runs: Path, run: str) -> None:
    """And nothing is lost in a checkpoint of it, on however many ranks."""
    assert same(whole(runs / f"{run} at once"), whole(runs / run.rpartition(">")[0]))


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in [*FIRST, *OTHERWISE] if "bf16" not in run])
def test_on_other_ranks_under_another_stage_the_losses_are_the_same(runs: Path, run: str) -> None:
    """As those of one rank without DeepSpeed's optimizer, that went on and on."""
    first = "1-0-lora" if "lora" in run else "1-0-full"
    alone = seen(runs, first)
    straight = [*alone["losses"], *alone["straight"]]
    step = 2 * run.count(">")
    assert seen(runs, run)["losses"] == pytest.approx(straight[step : step + 2], rel=1e-5)
    assert straight[0] != pytest.approx(straight[2], rel=1e-3)  # it did train


@pytest.mark.slow
def test_only_what_is_trained_is_saved_and_only_once(runs: Path, tiny_model: Path) -> None:
    full, adapter = ({key.split(" ")[1] for key in whole(runs / f"2-2-{what}")} for what in ("full", "lora"))
    assert full == {name for name, _ in base.load_model(tiny_model).named_parameters()}
    assert "model.embed_tokens.weight" in full
    assert "lm_head.weight" not in full  # it is the embedding
    assert adapter
    assert all(re.search(r"\.lora_[AB]\.", name) for name in adapter)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["1-0-full", "4-0-full", "3-2-full", "4-3-full"])
def test_a_checkpoint_fits_its_estimate_and_ranks_have_like_parts(
    runs: Path, run: str, tiny_model: Path
) -> None:
    sizes = [path.stat().st_size for path in (runs / run).rglob("*.safetensors")]
    estimate = checkpoint.bytes_needed(base.parameter_count(tiny_model))
    assert (
        estimate <= sum(sizes) <= estimate + len(sizes) * 2**14
    )  # a tiny model's has relatively much around it
    assert len(sizes) == int(run[0])
    assert max(sizes) - min(sizes) < 0.2 * max(sizes) + 2**14
