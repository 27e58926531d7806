"""The loss: what it sums, what it does not see, what it costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from documents import VOCABULARY, leaking_model, of_tasks, pack_of, random_pack, random_packs, unpacked
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_t5 import make_t5

from ift.data.stream import Pack
from ift.errors import IftError
from ift.models import attention
from ift.train.loss import PackBatch, collate, collate_pairs, isolation_tolerance, loss_sum, probe_isolation


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    from ift.models.base import load_model

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is faster on one
    yield load_model(tiny_model)
    torch.set_num_threads(threads)


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


Weights = Mapping[str, float]


def ours(
    model: Any,
    micro_batches: Sequence[Sequence[Pack]],
    weights: Weights | None = None,
    smoothing: float = 0.0,
    collate: Any = collate,
) -> tuple[float, torch.Tensor]:
    """The summed loss over micro-batches, and its gradient."""
    model.zero_grad()
    total = 0.0
    for packs in micro_batches:
        loss, losses = loss_sum(model, collate(packs, "cpu", weights), smoothing)
        assert len(losses) == sum(p.supervised_tokens for p in packs)
        loss.backward()
        total += float(loss.detach())
    return total, gradient(model)


def plain(
    model: Any, packs: Sequence[Pack], weights: Weights | None = None, smoothing: float = 0.0
) -> tuple[float, torch.Tensor]:
    """The same by the book: a document at a time, all logits, cross-entropy with `ignore_index`."""
    model.zero_grad()
    total = 0.0
    for document in unpacked(packs):
        if document.supervised_tokens == 0:
            continue
        ids = torch.tensor([document.tokens])
        labels = ids[0].clone()
        labels[~torch.tensor(document.supervised)] = -100
        logits = model(input_ids=ids).logits[0]
        loss = F.cross_entropy(
            logits[:-1], labels[1:], ignore_index=-100, reduction="sum", label_smoothing=smoothing
        )
        loss = loss * (weights[document.tasks[0]] if weights else 1.0)
        loss.backward()
        total += float(loss.detach())
    return total, gradient(model)


def assert_same(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert (one[1] - other[1]).norm() <= 1e-5 * other[1].norm()


# What the module's own drawing shows.
DRAWN = pack_of(
    ([9, 4, 4, 7, 2], [False, False, False, True, True]), ([9, 5, 7, 2], [False, False, True, True])
)


def test_the_drawing_in_the_docstring() -> None:
    batch = collate([DRAWN], "cpu")
    assert batch.input_ids.tolist() == [[9, 4, 4, 7, 2, 9, 5, 7, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.keep.int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 0]]
    assert batch.targets.tolist() == [7, 2, 7, 2]
    assert batch.tokens == 9
    assert DRAWN.supervised_tokens == len(batch.targets)


def test_the_docstring_draws_what_collate_makes() -> None:
    import ift.train.loss

    rows = {
        line.split()[0]: line.replace("|", " ").split()[1:]
        for line in (ift.train.loss.__doc__ or "").splitlines()
        if line.startswith("    ")
        and line.split()[0] in ("tokens", "position", "supervised", "keep", "targets")
    }
    batch = collate([DRAWN], "cpu")
    assert [int(x) for x in rows["tokens"]] == batch.input_ids[0].tolist()
    assert [int(x) for x in rows["position"][:9]] == batch.position_ids[0].tolist()
    assert [x == "x" for x in rows["supervised"]] == DRAWN.supervised
    assert [x == "x" for x in rows["keep"][:9]] == batch.keep[0].tolist()
    assert [int(x) for x in rows["targets"]] == batch.targets.tolist()


def test_shorter_packs_are_padded_with_documents_of_one_token() -> None:
    short = pack_of(([9, 5], [False, True]))
    batch = collate([DRAWN, short], "cpu")
    assert batch.input_ids.shape == (2, 9)
    assert batch.position_ids[1].tolist() == [0, 1] + [0] * 7
    assert (batch.starts.tolist(), batch.starts.dtype) == ([0, 5, 9, 11, 18], torch.int32)
    assert batch.longest == 7
    assert batch.keep[1].int().tolist() == [1] + [0] * 8
    assert batch.targets.tolist() == [7, 2, 7, 2, 5]
    assert batch.tokens == 11


def test_only_supervised_logits_give_the_loss_of_all_logits(model: Any) -> None:
    packs = random_packs(3, seed=1)
    assert_same(ours(model, [packs]), plain(model, packs))


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.2, 1.0]))
def test_packed_is_unpacked(model: Any, lengths: list[int], seed: int, share: float) -> None:
    pack = random_pack(lengths, seed, share=share)
    packed, alone = ours(model, [[pack]]), ours(model, [[p] for p in unpacked([pack])])
    if pack.supervised_tokens:
        assert_same(packed, alone)
        assert_same(packed, plain(model, [pack]))
    else:
        assert packed[0] == alone[0] == 0.0
        assert not packed[1].any()


@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, 5)), seed=st.integers(0, 2**31))
def test_how_packs_are_batched_changes_nothing(model: Any, cuts: set[int], seed: int) -> None:
    packs = random_packs(6, seed=seed)
    edges = [0, *sorted(cuts), 6]
    batched = [packs[a:b] for a, b in pairwise(edges)]
    assert_same(ours(model, batched), ours(model, [[p] for p in packs]))


def test_a_batch_of_nothing_is_zero_and_has_a_gradient_of_zeros(model: Any) -> None:
    batch = collate([], "cpu")
    assert batch.tokens == 0
    model.zero_grad()
    loss, losses = loss_sum(model, batch)
    assert (float(loss.detach()), len(losses)) == (0.0, 0)
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_only_supervised_positions_reach_the_vocabulary_projection(model: Any) -> None:
    packs = random_packs(3, seed=2)
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0][..., 0].numel()))
    try:
        loss_sum(model, collate(packs, "cpu"))
    finally:
        hook.remove()
    supervised = sum(p.supervised_tokens for p in packs)
    assert rows == [supervised]
    assert supervised < sum(len(p.tokens) for p in packs) / 2


# --- weights and smoothing --------------------------------------------------------------------------------

WEIGHTS = {"tickets": 0.25, "films": 2.0, "songs": 1.0}


def test_a_token_counts_with_its_task() -> None:
    packs = of_tasks([DRAWN, pack_of(([9, 5], [False, True]))], "tickets", "films")
    batch = collate(packs, "cpu", WEIGHTS, [7, 3])
    assert batch.targets.tolist() == [7, 2, 7, 2, 5]
    assert batch.names == ("films", "songs", "tickets")
    assert batch.tasks.tolist() == [2, 2, 0, 0, 2]
    assert batch.weights.tolist() == [0.25, 0.25, 2.0, 2.0, 0.25]
    assert batch.documents == ((5, 4), (2,))
    assert batch.numbers == (7, 3)


def test_without_weights_all_count_the_same() -> None:
    batch = collate(of_tasks([DRAWN], "tickets", "films"), "cpu")
    assert batch.names == ()
    assert batch.weights.tolist() == [1.0] * 4
    assert batch.tasks.tolist() == [0] * 4


def test_a_task_without_a_weight_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="letters"):
        collate(of_tasks([DRAWN], "letters"), "cpu", WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Given(PackBatch):
    """A batch whose logits are known."""

    given: torch.Tensor

    def logits(self, model: Any) -> torch.Tensor:
        return self.given


def test_smoothing_by_hand() -> None:
    """Three words of 1/2, 1/4 and 1/4; smoothed by 0.3 a target is itself by 0.8 and each other word by 0.1."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log() + 3.0
    batch = Given(given=logits, **vars(collate([pack_of(([5, 0, 2], [False, True, True]))], "cpu")))
    total, losses = loss_sum(None, batch, 0.3)
    bits = [0.8 * 1 + 0.1 * 2 + 0.1 * 2, 0.1 * 1 + 0.1 * 2 + 0.8 * 2]
    assert (losses / math.log(2)).tolist() == pytest.approx(bits)
    assert float(total) == pytest.approx(sum(bits) * math.log(2))
    assert (loss_sum(None, batch)[1] / math.log(2)).tolist() == pytest.approx([1, 2])


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, 5)), seed=st.integers(0, 2**31), smoothing=st.sampled_from([0.0, 0.1]))
def test_weighted_and_smoothed_by_the_book(model: Any, cuts: set[int], seed: int, smoothing: float) -> None:
    packs = of_tasks(random_packs(6, seed=seed), *WEIGHTS)
    batched = [packs[a:b] for a, b in pairwise([0, *sorted(cuts), 6])]
    book = plain(model, packs, WEIGHTS, smoothing)
    assert_same(ours(model, batched, WEIGHTS, smoothing), book)
    assert_same(ours(model, [unpacked(packs)], WEIGHTS, smoothing), book)


def test_weights_of_one_change_no_bit(model: Any) -> None:
    packs = of_tasks(random_packs(4, seed=3), "films", "tickets")
    batch = collate(packs, "cpu")
    model.zero_grad()
    torch_sum = F.cross_entropy(batch.logits(model), batch.targets, reduction="sum")
    torch_sum.backward()
    expected = gradient(model)
    loss, found = ours(model, [packs])
    weighted, of_weighted = ours(model, [packs], {"films": 1.0, "tickets": 1.0})
    assert torch.equal(found, expected)
    assert torch.equal(of_weighted, expected)
    assert weighted == loss == pytest.approx(float(torch_sum.detach()), rel=1e-6)


def test_an_encoder_decoder_weighted_and_smoothed_by_the_book(tmp_path: Path) -> None:
    """A document at a time, without padding; the expected loss from the probabilities themselves."""
    from ift.models.base import load_model

    t5 = load_model(
        make_t5(tmp_path)
    ).double()  # T5's attention is not scaled: rounding grows to 1e-5 in float32
    packs = of_tasks(
        [
            pack_of(([9, 4, 4, 1, 7, 2, 1], [False] * 4 + [True] * 3)),
            pack_of(([9, 1, 1], [False] * 2 + [True])),
            pack_of(([8, 5, 6, 7, 1, 9, 9, 3, 1], [False] * 5 + [True] * 4)),
        ],
        *WEIGHTS,
    )
    found = ours(t5, [packs[:2], packs[2:], []], WEIGHTS, 0.1, collate_pairs)
    t5.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for pack in packs:
        border = pack.supervised.index(True)
        written = torch.tensor(pack.tokens[border:])
        logits = t5(input_ids=torch.tensor([pack.tokens[:border]]), labels=written[None]).logits[0]
        nats = -logits.log_softmax(-1)
        smoothed = 0.9 * nats[torch.arange(len(written)), written] + 0.1 * nats.mean(-1)
        total = total + WEIGHTS[pack.tasks[0]] * smoothed.sum()
    total.backward()
    assert_same(found, (float(total.detach()), gradient(t5)))


class Overriding(torch.nn.Module):
    """A model that is called with other arguments than it was given."""

    def __init__(self, model: Any, **arguments: Any) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, **arguments: Any) -> Any:
        added = {k: v(arguments) if callable(v) else v for k, v in self.arguments.items()}
        return self.model(**{**arguments, **added})


def test_the_probe_passes_a_model_that_isolates(model: Any) -> None:
    assert 0.0 < probe_isolation(model, [random_pack([9, 12], 3)], "cpu") < 1e-5


@pytest.mark.parametrize(
    "leak",
    [
        {"use_cache": True},
        {"attention_mask": lambda arguments: torch.ones_like(arguments["input_ids"])},
        {"position_ids": None},
    ],
    ids=["a cache", "a mask of ones", "running positions"],
)
def test_the_probe_finds_a_model_that_leaks(model: Any, leak: dict[str, Any]) -> None:
    error = probe_isolation(Overriding(model, **leak), [random_pack([9, 12], 3)], "cpu")
    assert error > 2 * isolation_tolerance(torch.bfloat16) > isolation_tolerance(torch.float32)


def test_the_probe_finds_a_convolution_over_the_boundary() -> None:
    """Positions tell a short convolution nothing: it mixes the last tokens of one document into the next."""
    leaking = leaking_model(VOCABULARY).eval()
    assert probe_isolation(leaking, [random_pack([9, 12], 3)], "cpu") > isolation_tolerance(torch.bfloat16)


@pytest.mark.parametrize("path", ["sdpa", "packed"])
def test_the_probe_holds_for_bfloat16(tiny_model: Path, path: str) -> None:
    from ift.models.base import load_model

    model = load_model(tiny_model, dtype="bfloat16")
    attention.use(model, path)
    assert probe_isolation(model, [random_pack([9, 12], 3)], "cpu") < isolation_tolerance(torch.bfloat16)


def test_the_probe_takes_the_first_pack_with_two_documents(model: Any) -> None:
    leaking = Overriding(model, use_cache=True)
    alone, shared = random_pack([9], 1), random_pack([9, 12], 2)
    assert probe_isolation(leaking, [alone], "cpu") < 1e-5
    assert probe_isolation(leaking, [alone, shared], "cpu") == probe_isolation(leaking, [shared], "cpu") > 0.1


def test_the_probe_sees_across_a_boundary_in_long_documents(model: Any) -> None:
    """Only 128 tokens on either side are looked at."""
    long = random_pack([300, 300], 4)
    assert probe_isolation(model, [long], "cpu") < 1e-5
    assert probe_isolation(Overriding(model, use_cache=True), [long], "cpu") > 0.1


@pytest.fixture
def packed(model: Any) -> Iterator[Any]:
    """The model with the attention that is told where documents start."""
    attention.use(model, "packed")
    yield model
    attention.use(model, "sdpa")


def test_a_loss_by_borders_is_the_loss_by_the_book(packed: Any) -> None:
    packs = random_packs(6, seed=3)
    found = ours(packed, [packs[:3], packs[3:4], packs[4:]])
    with attention.plain(packed):
        assert_same(found, plain(packed, packs))


def test_the_probe_looks_at_the_attention_in_use(packed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = random_pack([9, 12], 3)
    assert probe_isolation(packed, [pack], "cpu") < 1e-5
    monkeypatch.setattr(attention, "boundaries", lambda *_: {})  # they get lost: each row is one document
    assert probe_isolation(packed, [pack], "cpu") > 0.1


def test_the_probe_finds_a_gradient_that_is_wrong_where_logits_are_right(model: Any) -> None:
    class Cut(torch.nn.Module):
        """The first layer's values are right and have no gradient, where a row holds several documents."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **arguments: Any) -> Any:
            def cut(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
                return output.detach() if "position_ids" in arguments else output

            hook = model.model.layers[0].self_attn.v_proj.register_forward_hook(cut)
            try:
                return model(**arguments)
            finally:
                hook.remove()

    assert probe_isolation(Cut(), [random_pack([9, 12], 3)], "cpu") > 0.05


def test_the_probe_leaves_the_model_as_it_was(packed: Any) -> None:
    packed.train()
    packed.zero_grad()
    probe_isolation(packed, [random_pack([9, 12], 3)], "cpu")
    assert packed.training
    assert all(p.grad is None for p in packed.parameters())
    assert packed.config._attn_implementation == "ift_packed"
    assert not packed.get_input_embeddings()._forward_hooks
    packed.eval()


def test_the_probe_has_nothing_to_compare(model: Any, tmp_path: Path) -> None:
    from ift.models.base import load_model

    assert probe_isolation(model, [], "cpu") == 0.0
    assert probe_isolation(model, [random_pack([1, 1], 3)], "cpu") == 0.0  # no token is predicted
    assert probe_isolation(load_model(make_t5(tmp_path)), [random_pack([9], 3)], "cpu") == 0.0


def test_no_attention_isolates_a_convolution() -> None:
    leaking = leaking_model(VOCABULARY)
    names = attention.candidates(leaking, device="cpu", dtype=torch.float32)
    said: list[str] = []

    def probe() -> float:
        return probe_isolation(leaking, [random_pack([9, 12], 3)], "cpu")

    with pytest.raises(IftError, match="packed documents see each other in this model"):
        attention.settle(leaking, names, probe, isolation_tolerance(torch.float32), notify=said.append)
    assert [line.split()[0] for line in said] == names == ["packed", "sdpa"]
