"""Attention for packs: each document comes out as if it were alone, whichever path computes it.

No GPU has run what is shown here of `varlen` and `flash`: stand-ins for their kernels check that they are called as
their documentation wants, and compute in plain torch what it promises.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.errors import IftError
from ift.models import attention

WINDOW = 5


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


def family(name: str, **changes: Any) -> Any:
    """A random model of two layers; weights so large that attention is far from even."""
    import transformers

    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    kind, config, own = {
        "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
        "qwen2": (
            "Qwen2ForCausalLM",
            "Qwen2Config",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ),
        "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16}),
        "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": WINDOW}),
        "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": 8, "sliding_window": WINDOW}),
        "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"head_dim": 8, "sliding_window": WINDOW}),
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
        "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        "bloom": ("BloomForCausalLM", "BloomConfig", {"n_head": 4, "n_layer": 2}),
    }[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**sizes, **own, **changes})
    return getattr(transformers, kind)(made).eval()


@dataclass
class Rows:
    """Rows of random documents, laid out as a micro-batch is."""

    lengths: list[list[int]]

    def __post_init__(self) -> None:
        rows, self.length = len(self.lengths), max(map(sum, self.lengths))
        self.ids = torch.randint(3, 99, (rows, self.length), generator=torch.Generator().manual_seed(1))
        self.positions = torch.zeros(rows, self.length, dtype=torch.int64)
        self.documents: list[tuple[int, slice]] = []
        starts = []
        for row, lengths in enumerate(self.lengths):
            at = 0
            for length in lengths:
                self.documents.append((row, slice(at, at + length)))
                self.positions[row, at : at + length] = torch.arange(length)
                starts.append(row * self.length + at)
                at += length
            if at < self.length:
                starts.append(row * self.length + at)  # the padding
        starts.append(rows * self.length)
        self.starts = torch.tensor(starts, dtype=torch.int32)
        self.longest = max(b - a for a, b in pairwise(starts))

    def outcome(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All documents' logits one after the other, and the gradient of a loss over them."""
        logits = model(
            input_ids=self.ids,
            position_ids=self.positions,
            use_cache=False,
            **attention.boundaries(model, self.starts, self.longest),
        ).logits
        return self._graded(model, [logits[row, part] for row, part in self.documents])

    def alone(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, each document in a call of its own, with the attention that every model spells out itself."""
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        logits = [model(input_ids=self.ids[None, row, part]).logits[0] for row, part in self.documents]
        outcome = self._graded(model, logits)
        model.set_attn_implementation(before)
        return outcome

    def _graded(self, model: Any, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        targets = torch.cat([self.ids[row, part] for row, part in self.documents])
        F.cross_entropy(torch.cat(logits), targets.flip(0), reduction="sum").backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(logits).detach(), torch.cat(gradients)


def distance(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ones, others, strict=True))


ONE_ROW = Rows([[9, 12, 1, 4]])
THREE_ROWS = Rows([[9, 12, 1], [3], [7, 8]])
PACKABLE = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt"]


def test_how_rows_are_laid_end_to_end() -> None:
    """As in the module's own drawing."""
    rows = Rows([[5, 4], [2]])
    assert rows.starts.tolist() == [0, 5, 9, 11, 18]
    drawn = next(line for line in (attention.__doc__ or "").splitlines() if line.startswith("    starts"))
    assert drawn.split()[1:6] == [str(n) for n in rows.starts.tolist()]


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_is_each_document_alone(name: str) -> None:
    model = family(name)
    assert attention.candidates(model, device="cpu", dtype=torch.float32) == ["packed", "sdpa"]
    attention.use(model, "packed")
    for rows in (ONE_ROW, THREE_ROWS):
        assert distance(rows.outcome(model), rows.alone(model)) < 1e-5
        whole = Rows([[sum(lengths)] for lengths in rows.lengths])  # no borders: then it is something else
        assert distance(whole.outcome(model)[:1], rows.alone(model)[:1]) > 0.05


def test_soft_capped_scores_keep_to_eager_attention() -> None:
    model = family("gemma2")
    names = attention.candidates(model, device="cpu", dtype=torch.float32)
    assert names == ["sdpa"]
    attention.use(model, names[0])
    assert model.config._attn_implementation == "eager"
    assert distance(THREE_ROWS.outcome(model), THREE_ROWS.alone(model)) < 1e-5
    refused(model, "packed", "Gemma2ForCausalLM computes its attention scores in a way of its own")


@pytest.mark.parametrize("reentrant", [True, False])
def test_boundaries_reach_a_layer_that_is_computed_again(reentrant: bool) -> None:
    model = family("mistral").train()
    attention.use(model, "packed")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls: list[int] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    outcome = THREE_ROWS.outcome(model)
    assert len(calls) == 2 * len(model.model.layers)
    assert distance(outcome, THREE_ROWS.alone(model)) < 1e-5


def test_no_mask_is_made_for_packs() -> None:
    model = family("mistral")
    attention.use(model, "packed")
    masks: list[Any] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _, __, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    THREE_ROWS.outcome(model)
    assert masks == [None]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_padding_masks_and_caches_are_left_to_sdpa(name: str) -> None:
    model = family(name)
    ids = THREE_ROWS.ids
    mask = torch.ones_like(ids)
    mask[1, :10] = 0  # on the left, as for generation
    written = {}
    for path in ("sdpa", "packed"):
        attention.use(model, path)
        written[path] = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0
        ).tolist()
        written[path, "alone"] = model(input_ids=ids[:1]).logits.detach()
    assert written["sdpa"] == written["packed"]
    assert distance([written["sdpa", "alone"]], [written["packed", "alone"]]) < 1e-5


def test_an_adapters_model_is_told_the_borders_too() -> None:
    from peft import LoraConfig, get_peft_model

    model = family("llama")
    adapted: Any = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    attention.use(adapted, "packed")
    packed = THREE_ROWS.outcome(adapted)
    attention.use(adapted, "sdpa")
    assert distance(packed, THREE_ROWS.outcome(adapted)) < 1e-5
    assert attention.transformer(adapted) is model


def test_the_path_is_not_saved_with_the_model() -> None:
    model = family("llama")
    attention.use(model, "packed")
    assert "ift_" not in model.config.to_json_string()


# --- the attention itself, against softmax by the book


def by_the_book(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sees: torch.Tensor, scale: float
) -> torch.Tensor:
    """`q`: (tokens, heads, width), `sees`: (tokens, tokens) -> (tokens, heads, width)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v)


def sees_within(starts: Sequence[int], left: int) -> torch.Tensor:
    """Whether token i sees token j: of the same document, not behind it, and at most `left` before it."""
    document = torch.cat([torch.full((b - a,), n) for n, (a, b) in enumerate(pairwise(starts))])
    back = torch.arange(len(document))[:, None] - torch.arange(len(document))
    return (document[:, None] == document) & (back >= 0) & (back <= left)


CALLS = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3),
        "heads": st.sampled_from([(4, 4), (4, 2), (3, 1)]),
        "window": st.sampled_from([None, 1, 3, 9, 50]),
        "scale": st.sampled_from([None, 0.7]),
        "width": st.sampled_from([4, 8]),
    }
)


@settings(max_examples=40)
@given(call=CALLS, seed=st.integers(0, 2**31))
def test_packed_attention_by_the_book(call: dict[str, Any], seed: int) -> None:
    rows, (heads, kv), width = Rows(call["lengths"]), call["heads"], call["width"]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows.lengths), rows.length)
    q, k, v = (
        torch.randn(*shape, n, width, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (heads, kv, kv)
    )
    starts = rows.starts.tolist()
    sees = sees_within(starts, (call["window"] or 99) - 1)
    scale = call["scale"] or width**-0.5
    expected = by_the_book(*(x.flatten(0, 1) for x in (q, k, v)), sees, scale)
    output, _ = attention._by_documents(attention._packed)(
        SimpleNamespace(is_causal=True),
        *(x.transpose(1, 2) for x in (q, k, v)),
        None,
        scaling=call["scale"],
        sliding_window=call["window"],
        cu_seq_lens_q=rows.starts,
        max_length_q=rows.longest,
    )
    assert output.shape == (*shape, heads, width)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((output.flatten(0, 1) * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for one, other in zip((output.flatten(0, 1), *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_drawn_as_often_as_it_says() -> None:
    """All values are one, so what comes out is the share of the weights that was kept, over what is kept on average."""
    torch.manual_seed(0)
    q, ones = torch.zeros(1, 8, 300, 4), torch.ones(1, 8, 300, 4)
    starts = torch.tensor([0, 150, 300], dtype=torch.int32)
    output, _ = attention._by_documents(attention._packed)(
        None, q, q, ones, None, dropout=0.25, cu_seq_lens_q=starts, max_length_q=150
    )
    assert float(output[:, 100:150].mean()) == pytest.approx(1.0, abs=0.02)
    assert (output[0, 0, :, 0] == 0).any()  # a first token sees itself alone, or nothing


@pytest.mark.parametrize("wanted", ["softcap", "s_aux", "position_bias"])
def test_what_it_cannot_compute_is_not_left_out(wanted: str) -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match=wanted):
        attention._by_documents(attention._packed)(None, q, q, q, None, **{wanted: 50.0})


# --- kernels that this machine does not have


def varlen_stand_in(seen: list[dict[str, Any]]) -> Callable[..., torch.Tensor]:
    """What the documentation of `torch.nn.attention.varlen.varlen_attn` promises, of what it asks for."""

    def varlen_attn(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        tokens, heads, width = query.shape
        assert key.shape == value.shape == (tokens, key.shape[1], width)
        assert enable_gqa or key.shape[1] == heads
        assert all(x.is_contiguous() for x in (query, key, value))
        assert type(max_q) is type(max_k) is int
        left, right = window_size
        assert right == 0, "not causal"
        seen.append({"dtype": query.dtype, "window_size": window_size})
        return _of_a_kernel(query, key, value, [cu_seq_q, cu_seq_k], [max_q, max_k], left, scale)

    return varlen_attn


def flash_stand_in(seen: list[dict[str, Any]]) -> Callable[..., torch.Tensor]:
    """The same of flash-attn's `flash_attn_varlen_func`."""

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert causal
        assert not softcap
        assert not dropout_p
        seen.append({"dtype": q.dtype, "window_size": window_size})
        return _of_a_kernel(
            q, k, v, [cu_seqlens_q, cu_seqlens_k], [max_seqlen_q, max_seqlen_k], window_size[0], softmax_scale
        )

    return flash_attn_varlen_func


def _of_a_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    borders: list[torch.Tensor],
    longest: list[int],
    left: int,
    scale: float | None,
) -> torch.Tensor:
    starts = borders[0].tolist()
    assert all(b.dtype == torch.int32 and b.tolist() == starts for b in borders)
    assert (starts[0], starts[-1]) == (0, len(q))
    lengths = [b - a for a, b in pairwise(starts)]
    assert min(lengths) > 0
    assert longest == [max(lengths)] * 2
    sees = sees_within(starts, len(q) if left < 0 else left)
    return by_the_book(q.double(), k.double(), v.double(), sees, scale or q.shape[-1] ** -0.5).to(q.dtype)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gpt_neox"])
def test_varlen_is_called_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_stand_in(seen))
    # the stand-in computes in float32 too, so that the results can be compared closely
    monkeypatch.setattr(attention, "_HALVES", (torch.float32,))
    model = family(name)
    attention.use(model, "varlen")
    for rows in (ONE_ROW, THREE_ROWS):
        assert distance(rows.outcome(model), rows.alone(model)) < 1e-5
    windows = {"llama": {(-1, 0)}, "gpt_neox": {(-1, 0)}, "mistral": {(4, 0)}, "qwen2": {(-1, 0), (4, 0)}}
    assert {call["window_size"] for call in seen} == windows[name]  # WINDOW tokens: itself and four before
    seen.clear()
    Rows([[WINDOW, 3]]).outcome(model)
    assert {call["window_size"] for call in seen} == {(-1, 0)}  # no document is longer than the window


def test_varlen_computes_in_half_precision_and_gives_back_what_it_got(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_stand_in(seen))
    model = family("llama")
    attention.use(model, "varlen")
    assert distance(ONE_ROW.outcome(model), ONE_ROW.alone(model)) < 0.1
    assert {call["dtype"] for call in seen} == {torch.bfloat16}
    q = torch.zeros(1, 2, 3, 8)
    with pytest.raises(NotImplementedError, match="no dropout"):
        attention._by_documents(attention._varlen)(None, q, q, q, None, dropout=0.1)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flash_is_given_the_borders_at_any_micro_batch(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from transformers import modeling_flash_attention_utils as flash

    seen: list[dict[str, Any]] = []
    stand_in = flash_stand_in(seen)
    loaded = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_varlen_fn": stand_in,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(stand_in),
    }
    for key, value in loaded.items():
        monkeypatch.setattr(flash, key, value)
    model = family(name)
    for rows in (ONE_ROW, THREE_ROWS):
        model.config._attn_implementation = "flash_attention_2"  # past the question whether it is installed
        packed = rows.outcome(model)
        model.config._attn_implementation = "eager"
        assert distance(packed, rows.alone(model)) < 1e-5
    assert len(seen) == 4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_goes_by_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, as it is not on a GPU; and forward alone, for torch has no more of it on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers import masking_utils
    from transformers.integrations import flex_attention as integration

    def uncompiled(query: Any, key: Any, value: Any, training: bool = False, **options: Any) -> Any:
        return flex_attention(query, key, value, **options)

    def block_mask(**options: Any) -> Any:
        return create_block_mask(**{**options, "_compile": False})

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
    monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)
    model = family("mistral")
    attention.use(model, "flex")
    assert attention.boundaries(model, THREE_ROWS.starts, THREE_ROWS.longest) == {}
    for rows in (ONE_ROW, THREE_ROWS):
        with torch.no_grad():
            logits = model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False).logits
        packed = torch.cat([logits[row, part] for row, part in rows.documents])
        attention.use(model, "sdpa")
        assert distance([packed], rows.alone(model)[:1]) < 1e-5
        attention.use(model, "flex")


# --- which are possible


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def of(capability: tuple[int, int] = (9, 0), *installed: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
        monkeypatch.setattr(attention, "find_spec", {"torch.nn.attention.varlen", *installed}.__contains__)

    return of


@pytest.mark.parametrize(
    ("name", "dtype", "capability", "installed", "expected"),
    [
        ("llama", torch.bfloat16, (9, 0), (), ["varlen", "flex", "sdpa"]),
        ("llama", torch.bfloat16, (8, 0), ("flash_attn",), ["varlen", "flash", "flex", "sdpa"]),
        ("llama", torch.bfloat16, (7, 5), ("flash_attn",), ["flex", "sdpa"]),
        ("llama", torch.float32, (9, 0), ("flash_attn",), ["flex", "sdpa"]),
        ("mistral", torch.bfloat16, (9, 0), (), ["varlen", "flex", "sdpa"]),
        ("gemma2", torch.bfloat16, (9, 0), ("flash_attn",), ["flash", "flex", "sdpa"]),
        ("gpt2", torch.bfloat16, (9, 0), ("flash_attn",), ["flash", "sdpa"]),  # it has dropout, and no flex
        ("bloom", torch.bfloat16, (9, 0), ("flash_attn",), ["sdpa"]),
    ],
)
def test_what_a_gpu_can_do(
    gpu: Any, name: str, dtype: torch.dtype, capability: Any, installed: Any, expected: list[str]
) -> None:
    gpu(capability, *installed)
    model = family(name)
    assert attention.candidates(model, device="cuda", dtype=dtype) == expected
    for asked in ("varlen", "flash", "flex", "sdpa"):
        if asked in expected:
            assert attention.candidates(model, device="cuda", dtype=dtype, asked=asked) == [asked]
        else:
            with pytest.raises(IftError):
                attention.candidates(model, device="cuda", dtype=dtype, asked=asked)


def test_heads_that_the_kernel_does_not_take(gpu: Any) -> None:
    gpu()
    model = family("llama", hidden_size=48, head_dim=12)
    assert attention.candidates(model, device="cuda", dtype=torch.bfloat16) == ["flex", "sdpa"]


def refused(
    model: Any, asked: str, why: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    with pytest.raises(IftError) as caught:
        attention.candidates(model, device=device, dtype=dtype, asked=asked)
    what, hint = str(caught.value).splitlines()
    assert what == f"`train.attention` is {asked}, and {why}"
    assert hint == "  next:   set train.attention=auto, which takes the fastest that is possible"


def test_what_is_asked_for_and_missing_is_said(gpu: Any) -> None:
    llama = family("llama")
    for asked in ("varlen", "flash", "flex"):
        refused(llama, asked, "it runs on GPUs alone, and this is a CPU")
    assert attention.candidates(llama, device="cpu", dtype=torch.float32, asked="packed") == ["packed"]
    refused(family("bloom"), "packed", "BloomForCausalLM has an attention of its own")
    half = torch.bfloat16
    gpu((7, 5))
    needs = "it needs a GPU of compute capability 8.0 or more, and a card has less"
    refused(llama, "varlen", needs, "cuda", half)
    refused(llama, "varlen", "it computes in 16 bits, and the model is in float32", "cuda")
    gpu()
    refused(llama, "flash", "the package flash-attn is not installed", "cuda", half)
    refused(family("gpt2"), "flex", "it has no dropout, and GPT2LMHeadModel has", "cuda", half)
    with pytest.raises(IftError, match="wanted: auto, packed, varlen, flash, flex, sdpa"):
        attention.candidates(llama, device="cpu", dtype=torch.float32, asked="flesh")


def test_an_encoder_decoder_keeps_its_own() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    before = model.config._attn_implementation
    names = attention.candidates(model, device="cpu", dtype=torch.float32)
    assert names == [attention.OWN]
    attention.use(model, names[0])
    assert model.config._attn_implementation == before
    with pytest.raises(IftError, match="an encoder–decoder keeps its own attention"):
        attention.candidates(model, device="cpu", dtype=torch.float32, asked="packed")


# --- the first that is right


def test_the_first_exact_one_is_settled_on() -> None:
    model = family("llama")
    errors = {"ift_packed": 0.3, "sdpa": 1e-6}
    said: list[str] = []
    settled = attention.settle(
        model,
        ["packed", "sdpa"],
        lambda: errors[model.config._attn_implementation],
        1e-3,
        notify=said.append,
    )
    assert settled == ("sdpa", 1e-6)
    assert said == ["packed attention is not exact in this model here: relative error 3.0e-01"]
    assert model.config._attn_implementation == "sdpa"


def test_where_none_is_exact_the_packs_leak() -> None:
    with pytest.raises(IftError) as caught:
        attention.settle(family("llama"), ["packed", "sdpa"], lambda: 0.25, 1e-3)
    assert str(caught.value).splitlines() == [
        "packed documents see each other in this model: packing changes its logits by 25.0%",
        "  wanted: at most 0.1%",
        "  next:   set data.packing=false",
    ]


def test_a_kernel_that_fails_is_passed_over_or_named() -> None:
    model = family("llama")
    said: list[str] = []

    def probe() -> float:
        if model.config._attn_implementation == "ift_packed":
            raise RuntimeError("no kernel image\nis available")
        return 0.0

    assert attention.settle(model, ["packed", "sdpa"], probe, 1e-3, notify=said.append) == ("sdpa", 0.0)
    assert said == ["packed attention is not exact in this model here: RuntimeError: no kernel image"]
    with pytest.raises(
        IftError, match=r"packed attention cannot be computed in this model here: RuntimeError"
    ):
        attention.settle(model, ["packed"], probe, 1e-3)
    with pytest.raises(IftError, match="flash attention cannot be computed in this model here: ImportError"):
        attention.settle(model, ["flash"], probe, 1e-3)  # it is not installed
    with pytest.raises(IftError, match="it is not a number"):
        attention.settle(model, ["sdpa"], lambda: float("nan"), 1e-3)


def test_what_one_rank_alone_may_meet_is_not_voted_on() -> None:
    """Memory says nothing of the attention; and with weights divided the others wait for this rank's part."""
    asked: list[float] = []

    def settled(failure: Exception, *, partitioned: bool) -> tuple[str, float]:
        model = family("llama")

        def probe() -> float:
            if model.config._attn_implementation == "ift_packed":
                raise failure
            return 0.0

        def worst(error: float) -> float:
            asked.append(error)
            return error

        names = ["packed", "sdpa"]
        return attention.settle(model, names, probe, 1e-3, worst=worst, partitioned=partitioned)

    for partitioned in (False, True):
        with pytest.raises(torch.OutOfMemoryError):
            settled(torch.OutOfMemoryError("CUDA out of memory"), partitioned=partitioned)
    with pytest.raises(IftError, match=r"packed attention cannot be computed .*: RuntimeError: no kernel"):
        settled(RuntimeError("no kernel"), partitioned=True)
    assert asked == []
    for refusal in (NotImplementedError("softcap"), ImportError("flash_attn"), ValueError("heads")):
        assert settled(refusal, partitioned=True) == ("sdpa", 0.0)


def test_all_ranks_settle_on_what_is_exact_on_the_worst() -> None:
    model = family("llama")
    elsewhere = {"ift_packed": 0.5, "sdpa": 0.0}
    settled = attention.settle(
        model,
        ["packed", "sdpa"],
        lambda: 1e-7,
        1e-3,
        worst=lambda error: max(error, elsewhere[model.config._attn_implementation]),
    )
    assert settled == ("sdpa", 1e-7)


def test_plain_attention_is_for_the_time_being() -> None:
    model = family("llama")
    attention.use(model, "packed")
    with attention.plain(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "ift_packed"


# --- Liger: no GPU ran it; only how it is called is shown


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    module = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}  # type: ignore[attr-defined]
    module._apply_liger_kernel_to_instance = lambda **named: calls.append(named)  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(attention, "find_spec", {"liger_kernel"}.__contains__)
    assert importlib.import_module(module.__name__) is module
    return calls


def test_liger_is_put_in_without_its_loss(liger: list[dict[str, Any]]) -> None:
    model = family("llama")
    assert attention.apply_liger(torch.nn.Sequential(model), device="cuda") == "liger"
    assert liger == [{"model": model, "fused_linear_cross_entropy": False, "cross_entropy": False}]
    assert attention.apply_liger(model, device="cuda", asked=False) is None
    assert attention.apply_liger(model, device="cpu") is None
    assert attention.apply_liger(family("opt"), device="cuda") is None
    assert len(liger) == 1


def test_liger_that_is_asked_for_and_missing_is_said(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(model: Any, device: str) -> str:
        with pytest.raises(IftError) as caught:
            attention.apply_liger(model, device=device, asked=True)
        return str(caught.value).splitlines()[0]

    llama = family("llama")
    assert refusal(llama, "cpu").endswith("its kernels run on GPUs alone, and this is a CPU")
    assert refusal(family("opt"), "cuda").endswith("it has no kernels for models of type opt")
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    assert refusal(llama, "cuda") == "`train.liger` is true, and the package liger-kernel is not installed"
    assert attention.apply_liger(llama, device="cuda") is None
