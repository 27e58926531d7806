"""Attention for packs: every document alone, exact, and as fast as where it runs allows.

In:  a loaded model; where each document of a micro-batch starts.
Out: a model whose attention costs the squares of its documents' lengths, and not the square of the pack's.

    names = candidates(model, device="cpu", dtype=torch.float32, asked="auto")      # ["packed", "sdpa"]
    use(model, names[0])
    model(input_ids=ids, position_ids=positions, use_cache=False, **boundaries(model, starts, longest))

The rows of a micro-batch are laid end to end, and the padding at a row's end is a document like the others:

    row 0     9   4   4   7   2 | 9   5   7   2
    row 1     9   5 | .   .   .   .   .   .   .
    starts    0                   5             9   11  18      one more than there are documents

`packed` calls torch's attention for each document, on any device. `varlen` is one call of torch's kernel for
documents of different lengths, `flash` of the flash-attn package's; both want a GPU and 16 bits. `flex` and `sdpa`
are transformers' own: they find the documents by the positions that start again, `flex` in a block mask, `sdpa` in a
mask of the pack's length squared.

The boundaries travel as arguments of the model, so that a layer that is computed again in the backward pass
(activation checkpointing) is given them again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F

from ift.errors import IftError

OWN = "own"  # of an encoder–decoder, which is given one document a row and masks
_IMPLEMENTATIONS = {  # our names -> those that transformers knows them by
    "packed": "ift_packed",
    "varlen": "ift_varlen",
    "flash": "flash_attention_2",
    "flex": "flex_attention",
    "sdpa": "sdpa",
}
_ON_GPU, _ON_CPU = ("varlen", "flash", "flex", "sdpa"), ("packed", "sdpa")
_HALVES = (torch.bfloat16, torch.float16)
_TAKE_BOUNDARIES = {"ift_packed", "ift_varlen", "flash_attention_2"}
_OTHER = "set train.attention=sdpa"
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")  # as the families call it in their config


def check(asked: str, liger: str | bool) -> None:
    """Refuse what runs on GPUs alone, for a machine without, before anything costs time; no model is needed.

    Raises `IftError` with the words of `candidates` and `apply_liger`.
    """
    if asked in _ON_GPU and asked not in _ON_CPU:
        raise _refused(asked, "it runs on GPUs alone, and this is a CPU")
    if liger is True:
        raise _no_liger("its kernels run on GPUs alone, and this is a CPU")


def _refused(asked: str, missing: str) -> IftError:
    return IftError(
        f"`train.attention` is {asked}, and {missing}",
        hint="set train.attention=auto, which takes the fastest that is possible",
    )


def _no_liger(missing: str) -> IftError:
    return IftError(f"`train.liger` is true, and {missing}", hint="set train.liger=auto")


def candidates(
    model: Any, *, device: torch.device | str, dtype: torch.dtype, asked: str = "auto"
) -> list[str]:
    """What the model's attention can be on this device in this type, the fastest first; or what was asked for, alone.

    Raises `IftError` where that cannot be, with what is missing. `settle` finds out which of them is right.
    """
    device = torch.device(device)
    inner = transformer(model)
    if inner.config.is_encoder_decoder:
        if asked != "auto":
            raise IftError(
                f"`train.attention` is {asked}, and an encoder–decoder keeps its own attention",
                wanted="auto",
                hint="its documents are not packed, so nothing is lost",
            )
        return [OWN]
    if asked == "auto":
        names = _ON_CPU if device.type == "cpu" else _ON_GPU
        return [name for name in names if _missing(inner, name, device, dtype) is None]
    if asked not in _IMPLEMENTATIONS:
        raise IftError(f"`train.attention` is {asked}", wanted=", ".join(["auto", *_IMPLEMENTATIONS]))
    if missing := _missing(inner, asked, device, dtype):
        raise _refused(asked, missing)
    return [asked]


def _missing(model: Any, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps this model from that attention here, if anything does."""
    if name == "sdpa":
        return None
    kind, config = type(model).__name__, model.config.get_text_config()
    if not model._can_set_attn_implementation():
        return f"{kind} has an attention of its own"
    # what torch's attention cannot compute (scores that are capped, sinks), these cannot either
    if name in ("packed", "varlen") and not model._supports_sdpa:
        return f"{kind} computes its attention scores in a way of its own"
    if name in ("varlen", "flex") and any(getattr(config, key, 0.0) for key in _DROPOUTS):
        return f"it has no dropout, and {kind} has"
    if name == "packed":
        return None
    if device.type != "cuda":
        return f"it runs on GPUs alone, and this is a {device.type.upper()}"
    if name == "flex":
        return None if model._supports_flex_attn else f"{kind} does not know it"
    if dtype not in _HALVES:
        return f"it computes in 16 bits, and the model is in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs a GPU of compute capability 8.0 or more, and {torch.cuda.get_device_name(device)} has less"
    if name == "flash":
        if not model._supports_flash_attn:
            return f"{kind} does not know it"
        return None if find_spec("flash_attn") else "the package flash-attn is not installed"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width % 8 or width > 256 or hasattr(config, "v_head_dim"):
        return f"it takes heads of 8, 16, … or 256 numbers, as many of a key as of a value, and {kind} has others"
    return None if find_spec("torch.nn.attention.varlen") else f"torch {torch.__version__} does not have it"


def use(model: Any, name: str) -> None:
    """Have the model compute its attention in the way of this name from now on, under PEFT and DeepSpeed too.

    `sdpa` is the plain way: eager attention where the model has no sdpa.
    """
    if name == OWN:
        return
    _register()
    inner = transformer(model)
    wanted = _plain(inner) if name == "sdpa" else _IMPLEMENTATIONS[name]
    inner.set_attn_implementation(wanted)
    assert inner.config._attn_implementation == wanted, (inner.config._attn_implementation, wanted)


def _plain(model: Any) -> str:
    return "sdpa" if model._supports_sdpa else "eager"


@contextmanager
def plain(model: Any) -> Iterator[None]:
    """The model with transformers' plain attention, for the time being."""
    inner = transformer(model)
    before = inner.config._attn_implementation
    inner.set_attn_implementation(_plain(inner))
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def boundaries(model: Any, starts: torch.Tensor, longest: int) -> dict[str, Any]:
    """The arguments that tell the model's attention where documents start; none where it goes by the positions.

    `starts`: (documents + 1,) int32, in the rows laid end to end; `longest`: tokens of the longest document.
    """
    if transformer(model).config._attn_implementation not in _TAKE_BOUNDARIES:
        return {}
    return {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def settle(
    model: Any,
    names: Sequence[str],
    probe: Callable[[], float],
    tolerance: float,
    *,
    worst: Callable[[float], float] = lambda error: error,
    partitioned: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> tuple[str, float]:
    """Use the first of `names` whose `probe` is within `tolerance`: its name and its error.

    `worst` is the largest of all ranks' errors, so that they settle on the same; what cannot be computed at all has an
    infinite one. In a `partitioned` model (ZeRO-3) a forward pass gathers weights of all ranks: one that fails within
    it may be alone, so it cannot ask the others, who wait for those weights, and ends. Raises `IftError` where none is
    exact: then packed documents see each other, whoever computes.
    """
    assert names, "an attention there must be"
    error, why = math.inf, ""
    for name in names:
        try:
            use(model, name)
            error, why = probe(), ""
        except (torch.OutOfMemoryError, torch.distributed.DistError):
            raise  # says nothing of the attention
        except (
            ImportError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as failure:  # of a kernel, or of what compiles it
            error, why = math.inf, f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
            # code that refuses a model does so on every rank; a kernel and its compiler may fail on one
            if (
                partitioned
                and isinstance(failure, RuntimeError)
                and not isinstance(failure, NotImplementedError)
            ):
                raise IftError(
                    f"{name} attention cannot be computed in this model here: {why}", hint=_OTHER
                ) from failure
        error = worst(math.inf if math.isnan(error) else error)
        if error <= tolerance:
            return name, error
        notify(f"{name} attention is not exact in this model here: {why or f'relative error {error:.1e}'}")
    if math.isinf(error):
        raise IftError(
            f"{names[-1]} attention cannot be computed in this model here: {why or 'it is not a number'}",
            hint=_OTHER,
        )
    raise IftError(
        f"packed documents see each other in this model: packing changes its logits by {error:.1%}",
        wanted=f"at most {tolerance:.1%}",
        hint="set data.packing=false",
    )


# ── what transformers calls ──


@dataclass(frozen=True)
class Documents:
    """The documents of one call, laid end to end, and how they are attended to."""

    starts: torch.Tensor  # (documents + 1,) int32
    longest: int  # tokens
    window: int  # how many tokens one sees, itself among them
    scale: float | None  # None: 1 / √width
    dropout: float


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, attend in (("ift_packed", _packed), ("ift_varlen", _varlen)):
        AttentionInterface.register(name, _by_documents(attend))
        AttentionMaskInterface.register(name, _mask)


def _mask(*, q_length: int, kv_length: int, attention_mask: Any = None, **arguments: Any) -> Any:
    """None for packs; what sdpa takes for a call with padding, with a cache, or for a pattern of the model's own."""
    from transformers.masking_utils import sdpa_mask

    own = arguments.get("use_vmap") or "allow_is_bidirectional_skip" in arguments
    chunked = getattr(arguments["config"], "attention_chunk_size", None)
    if attention_mask is None and q_length == kv_length and not own and not chunked:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **arguments)


def _by_documents(attend: Attend) -> Callable[..., Any]:
    """What transformers calls, made of what attends to documents.

    Queries `(m, heads, T, width)` -> `(m, T, heads, width)`. A call that does not say where documents start has one
    in each row; one with a mask or a cache is left to sdpa.
    """

    def function(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **named: Any,
    ) -> Any:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        for name in ("softcap", "s_aux", "position_bias"):
            if named.get(name) is not None:
                raise NotImplementedError(
                    f"{type(module).__name__} wants {name}: attention by documents has none"
                )
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        rows, _, length, _ = query.shape
        if attention_mask is not None or key.shape[2] != length or not causal:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, is_causal, **named
            )
        starts = named.get("cu_seq_lens_q")
        if starts is None:
            starts = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        longest = named.get("max_length_q") or length
        documents = Documents(starts, longest, named.get("sliding_window") or longest, scaling, dropout)
        output = attend(_end_to_end(query), _end_to_end(key), _end_to_end(value), documents)
        return output.reshape(rows, length, *output.shape[1:]), None

    return function


def _end_to_end(x: torch.Tensor) -> torch.Tensor:
    """(m, heads, T, width) -> (m · T, heads, width)"""
    return x.transpose(1, 2).flatten(0, 1)


def _packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """torch's attention for one document after the other."""
    lengths = documents.starts.diff().tolist()
    window = documents.window
    outputs = []
    # split and not sliced: its gradient is put together once, and not added up from as many full tensors as documents
    for q, k, v in zip(
        *(torch.split(x.transpose(0, 1), lengths, 1) for x in (query, key, value)), strict=True
    ):
        length = q.shape[1]
        output = F.scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            _band(length, window, q.device) if length > window else None,
            documents.dropout,
            length <= window,  # causal
            scale=documents.scale,
            enable_gqa=len(q) != len(k),
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """`(length, length)`: a token sees itself and the `window - 1` before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """One call of torch's kernel for all documents."""
    from torch.nn.attention import varlen

    if documents.dropout:
        raise NotImplementedError("varlen attention has no dropout")
    # norms that are kept in 32 bits, as beside quantised weights, make queries of 32 bits
    half = query.dtype if query.dtype in _HALVES else torch.bfloat16
    q, k, v = (x.to(half).contiguous() for x in (query, key, value))
    starts, longest = documents.starts, documents.longest
    output: Any = varlen.varlen_attn(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=documents.scale,
        # the kernel counts only the tokens to the left of a token
        window_size=(documents.window - 1, 0) if documents.window < longest else (-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast("torch.Tensor", output).to(query.dtype)


# ── Liger ──


def apply_liger(model: Any, *, device: torch.device | str, asked: str | bool = "auto") -> str | None:
    """Put Liger's kernels into the model where they are installed and a GPU is there; the word for it, if so.

    Norms, rotary positions and gated layers. Not its fused loss: only supervised positions are projected here.
    """
    if asked is False:
        return None
    inner = transformer(model)
    missing = _without_liger(inner, torch.device(device))
    if missing is None:
        _liger()._apply_liger_kernel_to_instance(
            model=inner, fused_linear_cross_entropy=False, cross_entropy=False
        )
        return "liger"
    if asked is True:
        raise _no_liger(missing)
    return None


def _without_liger(model: Any, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"its kernels run on GPUs alone, and this is a {device.type.upper()}"
    if not find_spec("liger_kernel"):
        return "the package liger-kernel is not installed"
    kind = model.config.model_type
    known = kind in _liger().MODEL_TYPE_TO_APPLY_LIGER_FN
    return None if known else f"it has no kernels for models of type {kind}"


def _liger() -> Any:
    return import_module("liger_kernel.transformers.monkey_patch")


def transformer(model: Any) -> Any:
    """transformers' own model inside of what wraps it: PEFT, DeepSpeed."""
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))
