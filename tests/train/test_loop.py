"""The loop: the gradient depends on the global batch alone, and every pack has its one place."""

import copy
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import of_tasks, random_packs, unpacked
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.data.stream import Pack
from ift.train.loop import Diverged, ranks_packs, schedule, train, validate
from ift.train.loss import Batch, collate, loss_sum

RATE = 1e-3


class Plain:
    """The loop's engine in one process; `world` ranks' micro-batches are run one behind the other."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
        self.gradients: list[torch.Tensor] = []

    def accumulate(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        gradient = torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])
        self.gradients.append(gradient.double())
        if gradient.isfinite().all():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(gradient.norm())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    from ift.models.base import load_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model(tiny_model)
    torch.set_num_threads(threads)


Told = list[dict[str, Any]]


def run(
    model: Any,
    steps: Sequence[Sequence[Sequence[Pack]]],
    rate: Callable[[int], float] = lambda _: RATE,
    weights: dict[str, float] | None = None,
    smoothing: float = 0.0,
) -> tuple[Plain, Told]:
    """Train a copy of `model` on micro-batches of packs, step by step."""
    engine = Plain(copy.deepcopy(model))
    told: Told = []
    batches = ([collate(micro, "cpu", weights) for micro in step] for step in steps)
    train(engine, batches, range(len(steps)), rate, told.append, smoothing=smoothing)
    return engine, told


def dealt(
    packs: Sequence[Pack], *, global_batch: int, micro_batch: int, world: int
) -> list[list[list[Pack]]]:
    """Every rank's micro-batches of every step, one behind the other."""
    return [
        [
            [packs[n] for n in micro]
            for rank in range(world)
            for micro in ranks_packs(
                step,
                global_batch=global_batch,
                packs=len(packs),
                rank=rank,
                world=world,
                micro_batch=micro_batch,
            )
        ]
        for step in range(math.ceil(len(packs) / global_batch))
    ]


def assert_same(one: tuple[Plain, Told], other: tuple[Plain, Told]) -> None:
    for a, b in zip(one[0].gradients, other[0].gradients, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    for p, q in zip(one[0].module.parameters(), other[0].module.parameters(), strict=True):
        assert (p - q).norm() <= 1e-5 * q.norm()
    for a, b in zip(one[1], other[1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["supervised_tokens"] == b["supervised_tokens"]
        assert a["tokens"] == b["tokens"]


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    return random_packs(11, seed=5)  # the last global batch of 4 is not full


@pytest.fixture(scope="module")
def reference(model: Any, packs: list[Pack]) -> tuple[Plain, Told]:
    return run(model, dealt(packs, global_batch=4, micro_batch=4, world=1))


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (8, 2)])
def test_micro_batch_accumulation_and_ranks_change_nothing(
    model: Any, packs: list[Pack], reference: Any, world: int, micro_batch: int
) -> None:
    assert_same(run(model, dealt(packs, global_batch=4, micro_batch=micro_batch, world=world)), reference)


def test_packing_changes_nothing(model: Any, packs: list[Pack], reference: Any) -> None:
    """A stream with `packing: false` holds the same documents, one a pack, so a global batch has more packs."""
    assert_same(run(model, [[unpacked(packs[i : i + 4])] for i in range(0, len(packs), 4)]), reference)


def test_what_a_step_tells(model: Any, packs: list[Pack], reference: Any) -> None:
    engine, told = reference
    assert [t["step"] for t in told] == [1, 2, 3]
    assert [t["supervised_tokens"] for t in told] == [
        sum(p.supervised_tokens for p in packs[i : i + 4]) for i in (0, 4, 8)
    ]
    assert [t["tokens"] for t in told] == [sum(len(p.tokens) for p in packs[i : i + 4]) for i in (0, 4, 8)]
    assert [t["grad_norm"] for t in told] == pytest.approx([float(g.norm()) for g in engine.gradients])
    total, losses = loss_sum(model, collate(packs[:4], "cpu"))
    assert told[0]["loss"] == pytest.approx(float(total.detach()) / len(losses))
    assert "losses" not in told[0]  # there is one task
    places = [max(len(p.tokens) for p in some) * len(some) for some in (packs[:4], packs[4:8], packs[8:])]
    assert [t["padding"] for t in told] == pytest.approx(
        [1 - t["tokens"] / n for t, n in zip(told, places, strict=True)]
    )
    assert all(0 <= t["data_seconds"] <= t["seconds"] for t in told)


# --- weights and smoothing

WEIGHTS = {"tickets": 0.25, "films": 2.0, "songs": 1.0}


@pytest.fixture(scope="module")
def mixed(packs: list[Pack]) -> list[Pack]:
    return of_tasks(packs, *WEIGHTS)


@pytest.fixture(scope="module")
def weighted(model: Any, mixed: list[Pack]) -> tuple[Plain, Told]:
    return run(model, dealt(mixed, global_batch=4, micro_batch=4, world=1), weights=WEIGHTS, smoothing=0.1)


def test_weighted_and_smoothed_by_the_book(model: Any, mixed: list[Pack], weighted: Any) -> None:
    """A document at a time: the expected losses from all logits, one mean over the whole step, AdamW."""
    book = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(book.parameters(), lr=RATE)
    engine, told = weighted
    for step, (gradient, metrics) in enumerate(zip(engine.gradients, told, strict=True)):
        sums, counts = dict.fromkeys(WEIGHTS, torch.zeros(())), dict.fromkeys(WEIGHTS, 0)
        for document in unpacked(mixed[4 * step : 4 * step + 4]):
            ids, [task] = torch.tensor(document.tokens), document.tasks
            nats = -book(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            counted = torch.tensor(document.supervised)[1:]
            losses = 0.9 * nats.gather(1, ids[1:, None])[:, 0] + 0.1 * nats.mean(-1)
            sums[task] = sums[task] + losses[counted].sum()
            counts[task] += int(counted.sum())
        weight = sum(WEIGHTS[task] * counts[task] for task in WEIGHTS)
        loss = sum(sums[task] * WEIGHTS[task] for task in WEIGHTS) / weight
        loss.backward()
        expected = torch.cat([p.grad.flatten() for p in book.parameters()]).double()
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()
        assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert metrics["losses"] == pytest.approx(
            {task: float(sums[task].detach()) / counts[task] for task in WEIGHTS}, rel=1e-5
        )
        assert metrics["supervised_tokens"] == sum(counts.values())
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 3), (3, 1)])
def test_weights_hang_on_the_global_batch_alone(
    model: Any, mixed: list[Pack], weighted: Any, world: int, micro_batch: int
) -> None:
    steps = dealt(mixed, global_batch=4, micro_batch=micro_batch, world=world)
    found = run(model, steps, weights=WEIGHTS, smoothing=0.1)
    assert_same(found, weighted)
    for ours, theirs in zip(found[1], weighted[1], strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    alone = [[unpacked(mixed[i : i + 4])] for i in range(0, len(mixed), 4)]
    assert_same(run(model, alone, weights=WEIGHTS, smoothing=0.1), weighted)


def test_weights_of_one_change_no_bit(model: Any, mixed: list[Pack], reference: Any) -> None:
    steps = dealt(mixed, global_batch=4, micro_batch=4, world=1)
    engine, told = run(model, steps, weights=dict.fromkeys(WEIGHTS, 1.0))
    assert all(map(torch.equal, engine.gradients, reference[0].gradients))
    assert all(map(torch.equal, engine.module.parameters(), reference[0].module.parameters()))
    assert [t["loss"] for t in told] == [t["loss"] for t in reference[1]]


def test_a_task_that_a_step_lacks_has_no_loss_there(model: Any, packs: list[Pack]) -> None:
    steps = [[[], of_tasks(packs[:2], "films")], [of_tasks(packs[2:4], "films", "songs")]]
    _, told = run(model, steps, weights=WEIGHTS)
    assert [sorted(t["losses"]) for t in told] == [["films"], ["films", "songs"]]


def test_the_rate_of_each_step_is_used_and_told(model: Any, packs: list[Pack]) -> None:
    steps = dealt(packs, global_batch=4, micro_batch=4, world=1)
    still, told = run(model, steps, rate=lambda step: 0.0)
    assert [t["lr"] for t in told] == [0.0] * 3
    assert all(torch.equal(p, q) for p, q in zip(still.module.parameters(), model.parameters(), strict=True))


# --- where training ends early


def test_on_step_may_end_the_training(model: Any, packs: list[Pack]) -> None:
    told: Told = []

    def enough(metrics: dict[str, Any]) -> bool:
        told.append(metrics)
        return len(told) == 2

    batches = ([collate([p], "cpu")] for p in packs)
    engine = Plain(copy.deepcopy(model))
    train(engine, batches, range(5, 10), lambda _: RATE, enough)
    assert [t["step"] for t in told] == [6, 7]
    assert len(engine.gradients) == 2
    assert len(list(batches)) == len(packs) - 2  # no more of them were taken than seen


def spoiling(model: Any, number: int, spoil: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Plain, Any]:
    """An engine and a `prepare`: the logits of the pack with this number are spoilt."""
    engine, now = Plain(copy.deepcopy(model)), [False]

    def prepare(batch: Batch) -> None:
        now[0] = number in batch.numbers

    head: Any = engine.module.lm_head
    head.register_forward_hook(lambda _, __, logits: spoil(logits) if now[0] else logits)
    return engine, prepare


def numbered(packs: list[Pack], *steps: Sequence[Sequence[int]]) -> Iterator[list[Batch]]:
    return iter([[collate([packs[n] for n in micro], "cpu", None, micro) for micro in s] for s in steps])


def all_but_the_first_word_impossible(logits: torch.Tensor) -> torch.Tensor:
    return logits + torch.tensor([0.0] + [-math.inf] * (logits.shape[-1] - 1))


@pytest.mark.parametrize(
    ("spoil", "value"),
    [(lambda logits: logits * math.nan, "nan"), (all_but_the_first_word_impossible, "inf")],
)
def test_a_loss_that_is_no_number_ends_training_before_the_update(
    model: Any, packs: list[Pack], spoil: Callable[[torch.Tensor], torch.Tensor], value: str
) -> None:
    engine, prepare = spoiling(model, 5, spoil)
    steps = [[[0, 1], [2]], [[3], [4, 5], [6]], [[7]]]
    told: Told = []
    with pytest.raises(Diverged, match=f"the loss of step 9 is {value}") as caught:
        train(engine, numbered(packs, *steps), range(7, 10), lambda _: RATE, told.append, prepare=prepare)
    assert (caught.value.step, caught.value.packs) == (
        9,
        (4, 5),
    )  # the micro-batch with the culprit, no other
    assert [t["step"] for t in told] == [8]
    before, _ = run(model, [[[packs[0], packs[1]], [packs[2]]]])
    assert all(map(torch.equal, engine.module.parameters(), before.module.parameters()))


def test_a_gradient_that_is_no_number_ends_training(model: Any, packs: list[Pack]) -> None:
    """The loss is finite, its derivative is not."""

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, logits: torch.Tensor) -> torch.Tensor:
            return logits.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.inf

    engine, prepare = spoiling(model, 2, Steep.apply)
    told: Told = []
    with pytest.raises(Diverged, match="the norm of the gradient of step 2 is nan") as caught:
        train(
            engine, numbered(packs, [[0]], [[1], [2]]), range(2), lambda _: RATE, told.append, prepare=prepare
        )
    assert (caught.value.step, caught.value.packs) == (2, (1, 2))
    assert [t["step"] for t in told] == [1]


def test_weights_that_are_spoilt_show_in_the_next_loss(model: Any, packs: list[Pack]) -> None:
    told: Told = []
    with pytest.raises(Diverged, match="the loss of step 3 is nan") as caught:
        train(
            Plain(copy.deepcopy(model)),
            numbered(packs, [[0]], [[1]], [[2], [3]]),
            range(3),
            lambda step: math.nan if step == 1 else RATE,
            told.append,
        )
    assert caught.value.packs == (2, 3)
    assert [t["step"] for t in told] == [1, 2]


def test_what_ended_training_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Diverged("loss", 3, math.inf, [4, 5])))
    assert (str(error), error.packs) == ("the loss of step 3 is inf", (4, 5))


def test_validation_is_the_mean_over_supervised_tokens(model: Any, packs: list[Pack]) -> None:
    engine = Plain(copy.deepcopy(model))
    total, losses = loss_sum(model, collate(packs, "cpu"))
    one_by_one = [collate([p], "cpu") for p in packs] + [collate([], "cpu")]
    assert validate(engine, one_by_one) == pytest.approx(float(total.detach()) / len(losses), rel=1e-5)
    assert engine.module.training  # back in training mode
    assert all(p.grad is None for p in engine.module.parameters())
    assert math.isnan(validate(engine, [collate([], "cpu")]))


def test_validation_is_weighted_as_training_is(model: Any, mixed: list[Pack]) -> None:
    told = run(model, [[mixed]], weights=WEIGHTS)[1]
    one_by_one = [collate([p], "cpu", WEIGHTS) for p in mixed]
    assert validate(Plain(copy.deepcopy(model)), one_by_one) == pytest.approx(told[0]["loss"], rel=1e-5)


def deal(step: int, packs: int, global_batch: int, world: int, micro_batch: int) -> list[list[list[int]]]:
    return [
        ranks_packs(
            step, global_batch=global_batch, packs=packs, rank=rank, world=world, micro_batch=micro_batch
        )
        for rank in range(world)
    ]


@given(
    packs=st.integers(1, 100),
    global_batch=st.integers(1, 20),
    world=st.integers(1, 9),
    micro_batch=st.integers(1, 5),
)
def test_every_pack_once_and_in_its_step(packs: int, global_batch: int, world: int, micro_batch: int) -> None:
    steps = math.ceil(packs / global_batch)
    seen: Counter[int] = Counter()
    rounds = set()
    for step in range(steps):
        ranks = deal(step, packs, global_batch, world, micro_batch)
        numbers = sorted(n for rank in ranks for micro in rank for n in micro)
        # on any world size and micro-batch, the step is these packs
        assert numbers == list(range(step * global_batch, min((step + 1) * global_batch, packs)))
        seen.update(numbers)
        rounds |= {
            len(rank) for rank in ranks
        }  # ZeRO's collectives want as many of every rank, at every step
        assert all(len(micro) <= micro_batch for rank in ranks for micro in rank)
        shares = [sum(map(len, rank)) for rank in ranks]
        assert max(shares) - min(shares) <= 1
    assert seen == Counter(range(packs))
    assert len(rounds) == 1


@given(global_batch=st.integers(1, 20), micro_batch=st.integers(1, 5), world=st.integers(1, 9))
def test_one_rank_alone_sees_what_all_see_together(global_batch: int, micro_batch: int, world: int) -> None:
    (alone,) = deal(2, 50, global_batch, 1, micro_batch)
    together = deal(2, 50, global_batch, world, 1)
    assert [n for micro in alone for n in micro] == sorted(n for r in together for m in r for n in m)


def test_the_example_of_the_docstring() -> None:
    assert deal(0, 5, 5, 2, 2) == [[[0, 2], [4]], [[1, 3], []]]


@given(
    kind=st.sampled_from(["linear", "cosine", "constant"]),
    peak=st.floats(1e-7, 1.0),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 1),
)
@settings(max_examples=200)
def test_the_schedule(kind: str, peak: float, steps: int, warmup: float) -> None:
    at = schedule(kind, peak, steps, warmup)
    rates = [at(step) for step in range(steps)]
    rise = round(warmup * steps)
    assert all(0 < rate <= peak for rate in rates)
    assert rates[:rise] == sorted(rates[:rise])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    if rise < steps:
        assert rates[rise] == peak  # the peak is reached
    again = schedule(kind, peak, steps, warmup)
    assert [again(step) for step in reversed(range(steps))] == rates[::-1]  # no state: any order, any start


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [20, 400])
def test_the_schedule_ends_near_zero(kind: str, steps: int) -> None:
    at = schedule(kind, 1.0, steps, 0.05)
    assert at(steps - 1) < 1.5 / steps
    assert at(steps) == pytest.approx(0.0, abs=1e-9)
    assert schedule("constant", 1.0, steps, 0.05)(steps - 1) == 1.0
