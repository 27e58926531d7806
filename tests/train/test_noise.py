"""Chance: the same packs draw the same, on any world size, in any micro-batch, and when computed again."""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import of_tasks, pack_of, random_packs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_t5 import make_t5

from ift.data.stream import Pack
from ift.models.base import load_model
from ift.train.loop import ranks_packs, train
from ift.train.loss import Batch, collate, collate_pairs, loss_sum
from ift.train.noise import Chance, dropout_seed, pack_noise

ALPHA = 5.0
WIDTH = 32  # of the tiny models


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is faster on one
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    return load_model(tiny_model).train()


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    return random_packs(6, seed=5)


def noisy(model: Any, seed: int = 17) -> tuple[Any, Chance]:
    model, chance = copy.deepcopy(model), Chance(seed, ALPHA)
    chance.attach(model)
    return model, chance


def added(model: Any, chance: Chance, batch: Batch, embedding: Any = None) -> torch.Tensor:
    """What a forward pass adds to the embeddings, `(m, T, d)`."""
    embedding = embedding or model.get_input_embeddings()
    outputs: list[torch.Tensor] = []
    hook = embedding.register_forward_hook(
        lambda module, inputs, output: outputs.append(output - module.weight[inputs[0]])
    )
    chance.begin(batch)
    loss_sum(model, batch)
    hook.remove()
    [output] = outputs
    return output.detach()


# --- the noise of a pack


def test_a_documents_noise_is_as_long_as_the_paper_says() -> None:
    """Uniform in ±alpha/√(Ld), so of an expected length of alpha/√3, in a pack as alone."""
    lengths = [400, 50, 7]
    noise = pack_noise(17, 3, lengths, 64, alpha=ALPHA, device="cpu")
    assert noise.shape == (457, 64)
    for part, length in zip(noise.split(lengths), lengths, strict=True):
        bound = ALPHA / math.sqrt(length * 64)
        assert 0.95 * bound < part.abs().max() <= bound
        assert float(part.norm()) == pytest.approx(ALPHA / math.sqrt(3), rel=0.1)
        assert abs(float(part.mean())) < 0.1 * bound


def test_the_seed_and_the_number_of_the_pack_decide() -> None:
    def drawn(seed: int, number: int) -> torch.Tensor:
        return pack_noise(seed, number, [5, 4], 8, alpha=1.0, device="cpu")

    torch.manual_seed(1)
    first = drawn(17, 3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(drawn(17, 3), first)
    assert torch.equal(torch.get_rng_state(), state)  # and torch's own draws are left alone
    assert not torch.isclose(drawn(17, 4), first).any()
    assert not torch.isclose(drawn(18, 3), first).any()


def test_dropout_hangs_on_the_packs_alone() -> None:
    groups = [(), (0,), (1,), (0, 1), (1, 0), (10,), (0, 1, 2)]
    assert len({dropout_seed(seed, numbers) for seed in (0, 17) for numbers in groups}) == 2 * len(groups)
    assert dropout_seed(17, (3, 4)) == dropout_seed(17, range(3, 5))


# --- in a model


@settings(max_examples=10)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_a_pack_has_the_same_noise_in_any_micro_batch(
    plain: Any, packs: list[Pack], order: list[int], cuts: set[int]
) -> None:
    model, chance = noisy(plain)
    edges = [0, *sorted(cuts), 6]
    for start, end in pairwise(edges):
        numbers = order[start:end]
        batch = collate([packs[n] for n in numbers], "cpu", None, numbers)
        for row, number in zip(added(model, chance, batch), numbers, strict=True):
            wanted = pack_noise(17, number, packs[number].lengths, WIDTH, alpha=ALPHA, device="cpu")
            assert torch.allclose(row[: len(wanted)], wanted, atol=1e-6)
            assert not row[len(wanted) :].any()  # padding


def test_a_batch_of_nothing_has_no_noise(plain: Any) -> None:
    model, chance = noisy(plain)
    assert not added(model, chance, collate([], "cpu")).any()


def test_validation_and_a_run_without_alpha_have_none(plain: Any, packs: list[Pack]) -> None:
    batch = collate(packs, "cpu", None, range(6))
    model, chance = noisy(plain)
    assert not added(model.eval(), chance, batch).any()
    model, chance = copy.deepcopy(plain), Chance(17)
    chance.attach(model)
    assert not added(model, chance, batch).any()


def test_packs_without_numbers_are_a_mistake(packs: list[Pack]) -> None:
    with pytest.raises(AssertionError, match="without their numbers"):
        Chance(17).begin(collate(packs, "cpu"))


def test_under_an_adapter(plain: Any, packs: list[Pack]) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    model, chance = get_peft_model(copy.deepcopy(plain), config), Chance(17, ALPHA)
    chance.attach(model)
    batch = collate(packs[:1], "cpu", None, [4])
    wanted = pack_noise(17, 4, packs[0].lengths, WIDTH, alpha=ALPHA, device="cpu")
    assert torch.allclose(added(model, chance, batch)[0], wanted, atol=1e-6)


def gradient(model: Any) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    model.zero_grad()
    return found


def test_what_is_computed_again_meets_the_same_noise(plain: Any, packs: list[Pack]) -> None:
    """Each layer again, as transformers does it, and the whole model with its embeddings."""
    from torch.utils.checkpoint import checkpoint

    model, chance = noisy(plain)
    batch = collate(packs, "cpu", None, range(6))

    def loss_of() -> torch.Tensor:
        return loss_sum(model, batch)[0]

    def drawn_before() -> None:
        chance.begin(batch)
        torch.rand(7)

    chance.begin(batch)
    loss_of().backward()
    wanted = gradient(model)
    chance.begin(batch)
    again: torch.Tensor = checkpoint(loss_of, use_reentrant=False)
    again.backward()
    assert torch.equal(gradient(model), wanted)
    model.activation_checkpointing_enable()
    drawn_before()
    loss_of().backward()
    assert torch.equal(gradient(model), wanted)


# --- an encoder–decoder, with dropout


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"), dropout=0.1, factor=1.0)


PAIRS = of_tasks(
    [
        pack_of((list(range(3, 3 + n)), [i >= border for i in range(n)]))
        for n, border in [(7, 4), (3, 2), (9, 5), (12, 3), (5, 4), (8, 7), (6, 1), (4, 2)]
    ],
    "films",
    "tickets",
)
WEIGHTS = {"films": 2.0, "tickets": 0.5}


def test_what_is_read_and_what_is_written_share_a_documents_noise(t5: Path) -> None:
    model, chance = noisy(load_model(t5).train())
    batch = collate_pairs(PAIRS[:2], "cpu", None, [6, 2])
    read = added(model, chance, batch, model.get_encoder().get_input_embeddings())
    written = added(model, chance, batch, model.get_decoder().get_input_embeddings())
    for i, (number, pack) in enumerate(zip([6, 2], PAIRS, strict=False)):
        wanted = pack_noise(17, number, pack.lengths, WIDTH, alpha=ALPHA, device="cpu")
        border = pack.supervised.index(True)
        assert torch.allclose(read[i, :border], wanted[:border], atol=1e-6)
        assert torch.allclose(written[i, : len(wanted) - border], wanted[border:], atol=1e-6)
    assert not read[1, 2:].any()
    assert not written[1, 1:].any()


class Plain:
    """The loop's engine in one process."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)

    def accumulate(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


STEPS, GLOBAL_BATCH, RATE = 2, 4, 1e-3


def micro_batches(rank: int, world: int, steps: Sequence[int] = range(STEPS)) -> Iterator[list[Batch]]:
    for step in steps:
        yield [
            collate_pairs([PAIRS[n] for n in numbers], "cpu", WEIGHTS, numbers)
            for numbers in ranks_packs(
                step, global_batch=GLOBAL_BATCH, packs=len(PAIRS), rank=rank, world=world, micro_batch=1
            )
        ]


def trained(engine: Any, batches: Iterator[list[Batch]], steps: range = range(STEPS)) -> list[list[float]]:
    """Losses and norms of gradients, with noise, dropout, weights and smoothing."""
    chance = Chance(17, ALPHA)
    chance.attach(engine.module)
    told: list[dict[str, Any]] = []
    train(engine, batches, steps, lambda _: RATE, told.append, smoothing=0.1, prepare=chance.begin)
    return [[t["loss"], t["grad_norm"], *t["losses"].values()] for t in told]


@pytest.fixture(scope="module")
def alone(t5: Path) -> tuple[Any, list[list[float]]]:
    engine = Plain(load_model(t5).train())
    return engine.module, trained(engine, micro_batches(0, 1))


@pytest.mark.parametrize("world", [2, 3])
def test_the_world_size_changes_no_draw(t5: Path, alone: Any, world: int) -> None:
    """All ranks' micro-batches one behind the other: another order, and some without a pack."""
    engine = Plain(load_model(t5).train())
    ranks = zip(*(micro_batches(rank, world) for rank in range(world)), strict=True)
    found = trained(engine, ([batch for rank in step for batch in rank] for step in ranks))
    assert found == [pytest.approx(step, rel=1e-5) for step in alone[1]]


def test_a_resumed_run_draws_the_same_to_the_bit(t5: Path, alone: Any) -> None:
    """Weights and moments are carried over; the generator of random numbers is not."""
    first = Plain(load_model(t5).train())
    trained(first, micro_batches(0, 1, [0]), range(1))
    second = Plain(load_model(t5).train())
    second.module.load_state_dict(first.module.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    torch.manual_seed(99)
    assert trained(second, micro_batches(0, 1, [1]), range(1, 2)) == alone[1][1:]
    assert all(map(torch.equal, second.module.parameters(), alone[0].parameters()))
