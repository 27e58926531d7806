"""The loss: a sum over supervised tokens, and only they reach the vocabulary projection.

In:  packs, and a causal language model or an encoder–decoder.
Out: the summed cross-entropy of the supervised tokens, in nats, and how many there are.

    batch = collate([pack], device="cpu")
    total, count = loss_sum(model, batch)      # count == pack.supervised_tokens

The caller divides by the supervised tokens of the *global* batch (see loop.py), so that accumulation, ranks,
packing and the micro-batch do not change the gradient.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

_IGNORED = -100  # transformers' mark on a label that is none


class Packed(Protocol):
    """What a pack of the stream offers."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def supervised(self) -> list[bool]: ...
    @property
    def lengths(self) -> list[int]: ...


class Batch(Protocol):
    """One micro-batch, in the form that its kind of model takes."""

    @property
    def targets(self) -> torch.Tensor: ...  # (n,) int64; the supervised tokens, row by row
    @property
    def tokens(self) -> int: ...  # without padding

    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`: what `model` predicts for each of the targets."""


@dataclass(frozen=True)
class PackBatch:
    """`m` packs of at most `T` tokens, for a causal language model."""

    input_ids: torch.Tensor  # (m, T) int64
    position_ids: torch.Tensor  # (m, T) int64; 0 at each document's start
    keep: torch.Tensor  # (m, T) bool; positions whose next token is supervised
    targets: torch.Tensor  # (n,) int64; those next tokens, row by row
    tokens: int  # without padding

    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`; no other position is projected.

        transformers isolates documents by their restarting positions only where no attention mask is given and
        no cache is used; `probe_isolation` proves it on the model at hand.
        """
        logits: torch.Tensor = model(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            use_cache=False,
            logits_to_keep=self.keep,
        ).logits
        return logits.reshape(-1, logits.shape[-1])


@dataclass(frozen=True)
class PairBatch:
    """`m` documents, each read and written apart, for an encoder–decoder."""

    input_ids: torch.Tensor  # (m, R) int64; what is read
    attention_mask: torch.Tensor  # (m, R) int64; 0 on padding
    labels: torch.Tensor  # (m, W) int64; what is written, `_IGNORED` on padding
    targets: torch.Tensor  # (n,) int64; the labels without padding, row by row
    tokens: int  # without padding

    def logits(self, model: Any) -> torch.Tensor:
        """`(n, vocabulary)`. Padding at the end is projected too: such models have no way to leave positions out."""
        logits: torch.Tensor = model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(self.labels),
            use_cache=False,
        ).logits
        return logits[self.labels != _IGNORED]


def collate(packs: Sequence[Packed], device: torch.device | str) -> PackBatch:
    """`(m, T)` tensors; shorter packs are padded at the end with one-token documents that nothing sees.

    No packs give a batch of one unsupervised token: a rank without work still takes part in collectives.
    """
    length = max((len(p.tokens) for p in packs), default=1)
    rows = max(len(packs), 1)
    input_ids = torch.zeros(rows, length, dtype=torch.int64)
    position_ids = torch.zeros(rows, length, dtype=torch.int64)
    keep = torch.zeros(rows, length, dtype=torch.bool)
    targets = []
    for i, p in enumerate(packs):
        n = len(p.tokens)
        input_ids[i, :n] = torch.tensor(p.tokens)
        position_ids[i, :n] = torch.cat([torch.arange(k) for k in p.lengths])
        supervised = torch.tensor(p.supervised)
        keep[i, : n - 1] = supervised[1:]
        targets.append(input_ids[i, :n][supervised])
    return PackBatch(
        input_ids.to(device),
        position_ids.to(device),
        keep.to(device),
        (torch.cat(targets) if targets else torch.zeros(0, dtype=torch.int64)).to(device),
        sum(len(p.tokens) for p in packs),
    )


def collate_pairs(packs: Sequence[Packed], device: torch.device | str) -> PairBatch:
    """The packs' documents, one each: what is read and what is written, padded at the end. Raises `ValueError` for two.

    No packs give one token to read and nothing to write: a rank without work still takes part in collectives.
    """
    borders = [p.supervised.index(True) for p in packs]
    if not all(all(p.supervised[border:]) for p, border in zip(packs, borders, strict=True)):
        raise ValueError("an encoder–decoder takes one document a row: what is read, then what is written")
    read = [p.tokens[:border] for p, border in zip(packs, borders, strict=True)] or [[0]]
    written = [p.tokens[border:] for p, border in zip(packs, borders, strict=True)] or [[_IGNORED]]
    labels = _padded(written, _IGNORED)
    return PairBatch(
        _padded(read, 0).to(device),
        _padded([[1] * len(row) for row in read], 0).to(device),
        labels.to(device),
        labels[labels != _IGNORED].to(device),
        sum(len(p.tokens) for p in packs),
    )


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)


def loss_sum(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy in nats (a scalar with gradient, float32) and the number of supervised tokens."""
    total = F.cross_entropy(batch.logits(model).float(), batch.targets, reduction="sum")
    return total, len(batch.targets)


def probe_isolation(model: Any, packs: Sequence[Packed], device: torch.device | str) -> float:
    """The relative error of packed against unpacked logits, on two documents of a pack and this very model.

    0.0 where no pack holds two documents. Above `isolation_tolerance`, documents see each other.
    """
    pair = next((_first_two(p) for p in packs if len(p.lengths) >= 2), None)
    if pair is None:
        return 0.0
    with torch.no_grad():
        ids = torch.tensor([pair[0] + pair[1]], device=device)
        positions = torch.cat([torch.arange(len(d)) for d in pair])[None].to(device)
        packed = (
            model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, len(pair[0]) :].float()
        )
        alone = model(input_ids=torch.tensor([pair[1]], device=device), use_cache=False).logits[0].float()
    # centred: logits share a large constant that would hide a leak
    alone, packed = alone - alone.mean(-1, keepdim=True), packed - packed.mean(-1, keepdim=True)
    return float((packed - alone).norm() / alone.norm())


def isolation_tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: 1e-3 in float32; 5e-2 in bfloat16, whose eight bits give about 1e-2 here."""
    return 1e-3 if dtype == torch.float32 else 5e-2


def _first_two(p: Packed, longest: int = 256) -> tuple[list[int], list[int]]:
    a, b = p.lengths[:2]
    return p.tokens[:a][-longest:], p.tokens[a : a + b][:longest]
