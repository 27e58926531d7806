"""Adapters under every ZeRO stage: the gradient is the book's, and what is exported is the adapter that was trained."""

import gc
import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from documents import pack_of, random_packs, unpacked
from tiny_t5 import make_t5

from ift.data.stream import Pack
from ift.models import adapters, base
from ift.models.adapters import Adapter
from ift.train.job import Job
from ift.train.loop import ranks_packs, train
from ift.train.loss import collate, collate_pairs

WORLD = 2
RATES = (3e-3, 1e-3)  # of the two steps
STAGES = [0, 1, 2, 3]
# with dropout at 0 both are functions; activations are kept for one and computed again for the other
KINDS = {"lora": Adapter("lora", rank=4, alpha=8.0), "dora": Adapter("dora", rank=4, alpha=8.0)}


def job_for(model_dir: Path, adapter: Adapter, stage: int) -> Job:
    return Job(
        model_dir=model_dir,
        stream_dir=Path("stream"),
        validation_dir=Path("validation"),
        packs=10,
        validation_packs=0,
        epoch_ends=(10,),
        export_dir=Path("export"),
        checkpoints="checkpoints",
        global_batch=5,
        learning_rate=RATES[0],
        schedule="constant",
        warmup=0.0,
        weight_decay=0.1,
        max_grad_norm=0.0,
        seed=17,
        micro_batch=2,
        zero_stage=stage,
        precision="fp32",
        threads=1,
        adapter=adapter,
        activation_checkpointing=adapter.kind == "dora",
    )


def random_pairs(count: int) -> list[Pack]:
    rng = random.Random(8)
    lengths = [(rng.randrange(9, 30), rng.randrange(1, 9)) for _ in range(count)]
    return [
        pack_of(([rng.randrange(3, 100) for _ in range(read + written)], [False] * read + [True] * written))
        for read, written in lengths
    ]


# --- two gloo ranks in two processes, against a loop by the book in this one


def _rank(rank: int, causal: Path, t5: Path, folder: Path) -> None:
    """Every stage and kind in turn, for the start of a process costs more than the training."""
    import torch.distributed as dist

    from ift.train import engine

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    settings = engine.deepspeed_config

    def all_partitioned(*arguments: Any) -> dict[str, Any]:
        """ZeRO-3 leaves small weights whole, and all of a tiny model's are small."""
        config = settings(*arguments)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine.deepspeed_config = all_partitioned
    for stage in STAGES:
        for kind in KINDS:
            _train(rank, causal, folder / f"{kind}-{stage}", kind, stage)
    _train(rank, t5, folder / "t5-3", "lora", 3)
    dist.destroy_process_group()


def _train(rank: int, model_dir: Path, export: Path, kind: str, stage: int) -> None:
    from deepspeed.utils import safe_get_full_grad

    from ift.train.engine import DeepSpeedEngine

    encoder_decoder = base.is_encoder_decoder(model_dir)
    packs = random_pairs(10) if encoder_decoder else random_packs(10, seed=8)
    batch_of = collate_pairs if encoder_decoder else collate
    engine = DeepSpeedEngine(job_for(model_dir, KINDS[kind], stage), WORLD, torch.device("cpu"))
    assert all(p.numel() == 0 for p in engine.module.parameters()) == (stage == 3)
    gradients: list[dict[str, torch.Tensor]] = []
    step = engine.step

    def looked_at(rate: float, engine: Any = engine, step: Any = step) -> float:
        named = [(name, p) for name, p in engine.engine.module.named_parameters() if p.requires_grad]
        gradients.append({name: safe_get_full_grad(p).clone() for name, p in named})
        return float(step(rate))

    engine.step = looked_at  # type: ignore[method-assign]
    batches = (
        [
            batch_of([packs[n] for n in micro], "cpu")
            for micro in ranks_packs(s, global_batch=5, packs=10, rank=rank, world=WORLD, micro_batch=2)
        ]
        for s in range(2)
    )
    losses: list[float] = []
    train(engine, batches, range(2), lambda s: RATES[s], lambda told: losses.append(told["loss"]))
    ids = packs[0].tokens[:40]
    engine.module.eval()
    logits = base.reference_logits(engine.module, ids, encoder_decoder=encoder_decoder)
    engine.export(export)
    if rank == 0:
        base.load_tokenizer(model_dir).save_pretrained(export)
        seen = {"gradients": gradients, "losses": losses, "ids": ids, "logits": torch.tensor(logits)}
        torch.save(seen, export / "seen.pt")
    engine.engine.destroy()
    del engine, step, looked_at
    gc.collect()  # what ZeRO-3 patched is put back


@pytest.fixture(scope="module")
def exports(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch.multiprocessing

    folder = tmp_path_factory.mktemp("adapters")
    (folder / "t5").mkdir()
    t5 = make_t5(folder / "t5", factor=0.5)
    torch.multiprocessing.spawn(_rank, args=(tiny_model, t5, folder), nprocs=WORLD)
    return folder


class ByTheBook(torch.nn.Module):
    """A linear layer with an adapter, as the papers write it: the whole weight, then one product."""

    def __init__(self, layer: Any, a: torch.Tensor, kind: str, scale: float) -> None:
        super().__init__()
        self.weight = layer.weight.detach()
        self.a = torch.nn.Parameter(a)
        self.b = torch.nn.Parameter(torch.zeros(len(self.weight), len(a)))
        self.length = torch.nn.Parameter(self.weight.norm(dim=1)) if kind == "dora" else None
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + self.scale * self.b @ self.a
        if (
            self.length is not None
        ):  # the length of what is divided by it is a constant to the gradient (section 4.3)
            weight = weight * (self.length / weight.norm(dim=1).detach())[:, None]
        return F.linear(x, weight)


@dataclass
class Reference:
    gradients: list[dict[str, torch.Tensor]]
    losses: list[float]
    model: Any


@cache
def by_the_book(model_dir: Path, kind: str) -> Reference:
    """Two steps in one process: a document at a time, all logits, one mean over all supervised tokens, AdamW."""
    torch.set_num_threads(1)
    drawn = adapters.attach(base.load_model(model_dir), KINDS[kind], seed=17).get_base_model()
    first = {name: p.detach() for name, p in drawn.named_parameters() if ".lora_A." in name}
    model, packs = base.load_model(model_dir), random_packs(10, seed=8)
    model.requires_grad_(False)
    parts: dict[str, torch.nn.Parameter] = {}  # by the names that PEFT gives them
    for name, a in first.items():
        place = name.removesuffix(".lora_A.default.weight")
        layer = ByTheBook(model.get_submodule(place), a.clone(), kind, scale=8.0 / 4)
        model.set_submodule(place, layer)
        parts |= {f"{place}.lora_A.default.weight": layer.a, f"{place}.lora_B.default.weight": layer.b}
        if layer.length is not None:
            parts[f"{place}.lora_magnitude_vector.default.weight"] = layer.length
    matrices = [p for p in parts.values() if p.dim() == 2]
    vectors = [p for p in parts.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    )
    gradients, losses = [], []
    for step, rate in enumerate(RATES):
        logits, labels = [], []
        for document in unpacked(packs[step * 5 : step * 5 + 5]):
            ids = torch.tensor(document.tokens)
            logits.append(model(input_ids=ids[None]).logits[0, :-1])
            labels.append(torch.where(torch.tensor(document.supervised), ids, -100)[1:])
        loss = F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in parts.items() if p.grad is not None})
        losses.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return Reference(gradients, losses, model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_of_zero_train_an_adapter_by_the_book(
    exports: Path, tiny_model: Path, stage: int, kind: str
) -> None:
    book = by_the_book(tiny_model, kind)
    seen = torch.load(exports / f"{kind}-{stage}" / "seen.pt")
    assert set(seen["gradients"][0]) == set(book.gradients[0])  # nothing else is trained
    errors = [
        distance(flat(one), flat(other)) for one, other in zip(seen["gradients"], book.gradients, strict=True)
    ]
    print(f"ZeRO-{stage}, {kind}: gradients {errors}")
    assert max(errors) <= 1e-5
    assert seen["losses"] == pytest.approx(book.losses, rel=1e-5)
    trained = base.reference_logits(book.model, seen["ids"])
    before = base.reference_logits(base.load_model(tiny_model), seen["ids"])
    assert distance(seen["logits"], torch.tensor(trained)) <= 1e-5
    assert distance(torch.tensor(before), torch.tensor(trained)) > 1e-3  # it did train


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"{kind}-{stage}" for kind in KINDS for stage in STAGES), "t5-3"])
def test_the_exported_adapter_is_the_one_that_was_trained(exports: Path, name: str) -> None:
    export = exports / name
    seen = torch.load(export / "seen.pt")
    verified = base.verify(export, seen["ids"], seen["logits"].numpy(), dtype="float32")
    assert verified["relative_error"] < 1e-5
    assert verified["parameters"] == sum(g.numel() for g in seen["gradients"][0].values())
    assert not list(export.glob("*.bin"))


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to `other`."""
    return float((one - other).norm() / other.norm())
