"""The loss: a sum over supervised tokens, and only they reach the vocabulary projection.

In:  packs, and a causal language model or an encoder–decoder.
Out: the cross-entropy of the supervised tokens, in nats: their weighted sum, and each alone.

    batch = collate([pack], device="cpu")
    total, losses = loss_sum(model, batch)      # len(losses) == pack.supervised_tokens

A token counts with the weight of its task. The caller divides by the weight of all supervised tokens of the *global*
batch (see loop.py), so that accumulation, ranks, packing and the micro-batch do not change the gradient.

    tokens      9   4   4   7   2 | 9   5   7   2
    position    0   1   2   3   4 | 0   1   2   3       restarts: documents do not see each other
    supervised  .   .   .   x   x | .   .   x   x
    keep        .   .   x   x   . | .   x   x   .       a supervised token is predicted from the one before
    targets             7   2           7   2

An encoder–decoder (T5) gets one document a row. What is not supervised is read, what is supervised is written; each
part is padded to the longest of the micro-batch, and the model itself shifts what it is to write:

    read        9   4   4             written     7   2   .
                9   5   .                         7   7   2
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, compress, repeat
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ift.models import attention, base

_IGNORED = -100  # transformers' mark on a label that is none


class Packed(Protocol):
    """What a pack of the stream offers."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def supervised(self) -> list[bool]: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def tasks(self) -> list[str]: ...  # of the documents


@dataclass(frozen=True, kw_only=True)
class Batch(ABC):
    """One micro-batch: what is supervised in it, and who is in it."""

    targets: torch.Tensor  # (n,) int64; the supervised tokens, row by row
    weights: torch.Tensor  # (n,) float32; what each of them counts
    tasks: torch.Tensor  # (n,) int64; whose it is, as a place in `names`; 0 where there are none
    names: tuple[str, ...]  # of all tasks of the run, sorted; () where no weights were given
    tokens: int  # without padding
    documents: tuple[tuple[int, ...], ...]  # of each pack, the lengths of its documents
    numbers: tuple[int, ...]  # of each pack, its place in the stream; () where none was given

    @abstractmethod
    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`: what `model` predicts for each of the targets."""

    @property
    @abstractmethod
    def places(self) -> int:
        """Tokens with padding: what the model computes."""

    @property
    @abstractmethod
    def embedded(self) -> list[list[slice]]:
        """Which tokens of each pack are embedded: by the model, or by its encoder and by its decoder."""


@dataclass(frozen=True, kw_only=True)
class PackBatch(Batch):
    """`m` packs of at most `T` tokens, for a causal language model."""

    input_ids: torch.Tensor  # (m, T) int64
    position_ids: torch.Tensor  # (m, T) int64; 0 at each document's start
    keep: torch.Tensor  # (m, T) bool; positions whose next token is supervised
    starts: (
        torch.Tensor
    )  # (documents + 1,) int32; in the rows laid end to end, the padding of each a document too
    longest: int  # tokens of the longest document

    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`; no other position is projected.

        What isolates documents is the attention that the model was told to use (see ift/models/attention.py). Some go
        by `starts`, others by the restarting positions, and then only where no attention mask is given and no cache
        is used; `probe_isolation` proves it on the model at hand.
        """
        logits: torch.Tensor = model(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            use_cache=False,
            logits_to_keep=self.keep,
            **attention.boundaries(model, self.starts, self.longest),
        ).logits
        return logits.reshape(-1, logits.shape[-1])

    @property
    def places(self) -> int:
        return self.input_ids.numel()

    @property
    def embedded(self) -> list[list[slice]]:
        """All of them."""
        return [[slice(None)] * len(self.documents)]


@dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """`m` documents, each read and written apart, for an encoder–decoder."""

    input_ids: torch.Tensor  # (m, R) int64; what is read
    attention_mask: torch.Tensor  # (m, R) int64; 0 on padding
    labels: torch.Tensor  # (m, W) int64; what is written, `_IGNORED` on padding
    borders: tuple[int, ...]  # of each pack, how much of it is read

    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`. Padding at the end is projected too: such models have no way to leave positions out."""
        logits: torch.Tensor = model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(self.labels),
            use_cache=False,
        ).logits
        return logits[self.labels != _IGNORED]

    @property
    def places(self) -> int:
        return self.input_ids.numel() + self.labels.numel()

    @property
    def embedded(self) -> list[list[slice]]:
        """What is read; and what is written, for the decoder is given as many tokens as it writes."""
        return [
            [slice(0, border) for border in self.borders],
            [slice(border, None) for border in self.borders],
        ]


def collate(
    packs: Sequence[Packed],
    device: torch.device | str,
    weights: Mapping[str, float] | None = None,
    numbers: Sequence[int] = (),
) -> PackBatch:
    """`(m, T)` tensors; shorter packs are padded at the end with one-token documents that nothing sees.

    `weights` says for all tasks of the run what a token of theirs counts; without it each counts 1. `numbers` are the
    packs' places in the stream. No packs give a batch of one unsupervised token: a rank without work still takes part
    in collectives.
    """
    length = max((len(p.tokens) for p in packs), default=1)
    rows = max(len(packs), 1)
    input_ids = torch.zeros(rows, length, dtype=torch.int64)
    position_ids = torch.zeros(rows, length, dtype=torch.int64)
    keep = torch.zeros(rows, length, dtype=torch.bool)
    starts = torch.tensor(_starts([p.lengths for p in packs] or [[]], length), dtype=torch.int32)
    for i, p in enumerate(packs):
        n = len(p.tokens)
        input_ids[i, :n] = torch.tensor(p.tokens)
        position_ids[i, :n] = torch.cat([torch.arange(k) for k in p.lengths])
        keep[i, : n - 1] = torch.tensor(p.supervised[1:], dtype=torch.bool)
    return PackBatch(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        keep=keep.to(device),
        starts=starts.to(device),
        longest=int(starts.diff().max()),
        **_counted(packs, device, weights, numbers),
    )


def _starts(rows: Sequence[Sequence[int]], length: int) -> list[int]:
    """Where documents of these lengths start, and where the last one ends: [[3, 2], [4]] of 5 -> [0, 3, 5, 9, 10]."""
    ends = [list(accumulate(lengths, initial=0)) for lengths in rows]
    inside = [
        row * length + end for row, ends_of_row in enumerate(ends) for end in ends_of_row if end < length
    ]
    return [*inside, len(rows) * length]


def collate_pairs(
    packs: Sequence[Packed],
    device: torch.device | str,
    weights: Mapping[str, float] | None = None,
    numbers: Sequence[int] = (),
) -> PairBatch:
    """The packs' documents, one each: what is read and what is written, padded at the end. Raises `ValueError` for two.

    `weights` and `numbers` as in `collate`. No packs give one token to read and nothing to write: a rank without work
    still takes part in collectives.
    """
    borders = [p.supervised.index(True) for p in packs]
    if not all(all(p.supervised[border:]) for p, border in zip(packs, borders, strict=True)):
        raise ValueError("an encoder–decoder takes one document a row: what is read, then what is written")
    read = [p.tokens[:border] for p, border in zip(packs, borders, strict=True)] or [[0]]
    written = [p.tokens[border:] for p, border in zip(packs, borders, strict=True)] or [[_IGNORED]]
    return PairBatch(
        input_ids=_padded(read, 0).to(device),
        attention_mask=_padded([[1] * len(row) for row in read], 0).to(device),
        labels=_padded(written, _IGNORED).to(device),
        borders=tuple(borders),
        **_counted(packs, device, weights, numbers),
    )


def _counted(
    packs: Sequence[Packed],
    device: torch.device | str,
    weights: Mapping[str, float] | None,
    numbers: Sequence[int],
) -> dict[str, Any]:
    """What every kind of batch holds of its packs."""
    assert len(numbers) in (0, len(packs)), (numbers, len(packs))
    place = {name: i for i, name in enumerate(sorted(weights or {}))}
    targets = [token for p in packs for token in compress(p.tokens, p.supervised)]
    owners = [
        owner
        for p in packs
        for name, length in zip(p.tasks, p.lengths, strict=True)
        for owner in repeat(place[name] if weights else 0, length)
    ]
    supervised = [flag for p in packs for flag in p.supervised]
    tasks = torch.tensor(list(compress(owners, supervised)), dtype=torch.int64)
    by_task = torch.tensor([weights[name] for name in place] if weights else [1.0], dtype=torch.float32)
    return {
        "targets": torch.tensor(targets, dtype=torch.int64).to(device),
        "weights": by_task[tasks].to(device),
        "tasks": tasks.to(device),
        "names": tuple(place),
        "tokens": sum(len(p.tokens) for p in packs),
        "documents": tuple(tuple(p.lengths) for p in packs),
        "numbers": tuple(numbers),
    }


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)


def loss_sum(model: Any, batch: Batch, smoothing: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the cross-entropies in nats, a scalar with gradient; and each alone, `(n,)` without. float32.

    With `smoothing`, a target is its token with `1 - smoothing`, and the rest is spread evenly over the vocabulary.
    """
    losses = F.cross_entropy(
        batch.logits(model).float(), batch.targets, reduction="none", label_smoothing=smoothing
    )
    return (losses * batch.weights).sum(), losses.detach()


def probe_isolation(model: Any, packs: Sequence[Packed], device: torch.device | str) -> float:
    """The relative error that packing makes in this very model: in its logits, or half of that in its gradient.

    The larger of the two; half, for a gradient has been rounded on the way back too.

    Packed are the start of a pack, two documents of it, and beside it a shorter row; compared is each document alone
    with plain attention. Above `isolation_tolerance`, documents see each other, or attention is not exact. 0.0 for an
    encoder–decoder, whose documents are not packed. No gradient is left behind.
    """
    pack = next((p for p in packs if len(p.lengths) >= 2), packs[0] if packs else None)
    if pack is None or attention.transformer(model).config.is_encoder_decoder:
        return 0.0
    first, *others = _first_two(pack)
    last = [first, *others][-1]
    rows = [_Row([first, *others]), _Row([last[: (len(last) + 1) // 2]])]
    documents = [torch.tensor(document, device=device) for row in rows for document in row.documents]
    batch = collate(rows, device)
    # not DeepSpeed's engine around it, which would reduce gradients among ranks
    inner = getattr(model, "module", model)
    was_training = inner.training
    inner.eval()
    try:
        packed, of_packed = _outcome(inner, partial(batch.logits, inner), batch.targets)
        with attention.plain(inner):
            alone = [_outcome(inner, partial(_logits_alone, inner, ids), ids[1:]) for ids in documents]
    finally:
        inner.train(was_training)
    # centred: logits share a large constant that would hide a leak
    centred = [x - x.mean(-1, keepdim=True) for x in (packed, torch.cat([logits for logits, _ in alone]))]
    at_documents = torch.cat([of_packed[i, : len(row.tokens)] for i, row in enumerate(rows)])
    of_alone = torch.cat([gradient[0] for _, gradient in alone])
    errors = torch.stack([_error(*centred), _error(at_documents, of_alone) / 2])
    return float(errors.max())  # not a number if either is none


def _outcome(
    model: Any, forward: Callable[[], torch.Tensor], targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits `(n, vocabulary)`, and the loss's gradient by the embedded tokens `(m, T, width)`."""
    embedded: list[torch.Tensor] = []

    def cut(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = attention.transformer(model).get_input_embeddings().register_forward_hook(cut)
    try:
        logits = forward().float()
    finally:
        hook.remove()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, embedded)
    return logits.detach(), gradient.float()


def _logits_alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits[0, :-1]


def _error(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Relative to `other`; zero where nothing is compared."""
    error: torch.Tensor = (one - other).norm() / other.norm().clamp(min=1e-30)
    return error


def isolation_tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: 1e-3 in float32; in bfloat16 as much as between other kernels, for these are others too.

    A document that is seen by its neighbour changes logits by more (tests/train/test_loss.py).
    """
    return 1e-3 if dtype == torch.float32 else base.ROUNDED


def _first_two(p: Packed, longest: int = 128) -> list[list[int]]:
    """The tokens on both sides of a pack's first border, or of its only document."""
    a, b = (*p.lengths[:2], 0)[:2]
    return [p.tokens[:a][-longest:], p.tokens[a : a + b][:longest]][: len(p.lengths)]


@dataclass(frozen=True)
class _Row:
    """Documents of which all is supervised that can be."""

    documents: list[list[int]]

    @property
    def tokens(self) -> list[int]:
        return [token for document in self.documents for token in document]

    @property
    def supervised(self) -> list[bool]:
        return [i > 0 for document in self.documents for i in range(len(document))]

    @property
    def lengths(self) -> list[int]:
        return [len(document) for document in self.documents]

    @property
    def tasks(self) -> list[str]:
        return [""] * len(self.documents)
