"""Chance in training: dropout and noise on the embeddings, as functions of the seed and the packs alone.

In:  a seed, the numbers of a micro-batch's packs in the stream, and how strong the noise is (0: none).
Out: a forward pass that draws the same for the same packs, after a resume and on any world size.

    chance = Chance(seed=17, alpha=5.0)
    chance.attach(model)
    train(engine, ..., prepare=chance.begin)       # before each micro-batch, see loop.py

Noise is NEFTune's (arXiv 2310.05914): to each element of a document's L embeddings of width d, something uniform
between plus and minus alpha / sqrt(L * d) is added, so that a document's noise is about alpha / sqrt(3) long. The paper
has one document a row; here L is the document's own length, in a pack as alone, and for an encoder–decoder what is read
and what is written together. Each pack's noise is drawn by the pack's number: nothing else in the micro-batch matters.
Dropout has one draw a micro-batch: after a resume the same; on any world size too, where a micro-batch is one pack.

One seed gives other numbers on a GPU than on a CPU.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ift.models import attention
from ift.train.loss import Batch


class Chance:
    """What is random in a forward pass."""

    def __init__(self, seed: int, alpha: float = 0.0) -> None:
        self._seed, self._alpha = seed, alpha
        self._batch: Batch | None = None

    def attach(self, model: Any) -> None:
        """Have the embeddings of `model` noisy while it trains: a causal model's, or both of an encoder–decoder.

        It may be wrapped by DeepSpeed or PEFT. The hooks look at the micro-batch alone, so a forward pass that is
        computed again, for activation checkpointing, meets the same noise.
        """
        if not self._alpha:
            return
        inner = attention.transformer(model)
        # not inner.get_input_embeddings(): T5 has that module, and embeds with others that share its weight
        stacks = [inner.get_encoder(), inner.get_decoder()] if inner.config.is_encoder_decoder else [inner]
        embeddings = [stack.get_input_embeddings() for stack in stacks]
        assert len(set(embeddings)) == len(embeddings), "one module embeds what is read and what is written"
        for place, embedding in enumerate(embeddings):
            embedding.register_forward_hook(partial(self._add, place))

    def begin(self, batch: Batch) -> None:
        """The next forward pass, and its backward pass, are of this micro-batch."""
        assert len(batch.numbers) == len(batch.documents), "packs without their numbers"
        self._batch = batch
        torch.manual_seed(dropout_seed(self._seed, batch.numbers))

    def _add(self, place: int, module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        """The hook on one of the embeddings; `output` is `(m, T, d)`, with padding."""
        if not module.training:
            return output
        assert self._batch is not None, "noise is wanted before the first micro-batch"
        noise = torch.zeros_like(output)
        packs = zip(self._batch.numbers, self._batch.documents, self._batch.embedded[place], strict=True)
        for row, (number, lengths, part) in zip(noise, packs, strict=False):
            drawn = pack_noise(
                self._seed, number, lengths, output.shape[-1], alpha=self._alpha, device=output.device
            )[part]
            row[: len(drawn)] = drawn
        return output + noise


def pack_noise(
    seed: int, number: int, lengths: Sequence[int], width: int, *, alpha: float, device: torch.device | str
) -> torch.Tensor:
    """`(sum(lengths), width)` float32: what is added to the embeddings of the pack with this number."""
    generator = torch.Generator(device).manual_seed(_drawn(f"noise/{seed}/{number}"))
    drawn = torch.rand(sum(lengths), width, generator=generator, device=device) * 2 - 1
    scales = [alpha / (length * width) ** 0.5 for length in lengths for _ in range(length)]
    return drawn * torch.tensor(scales, device=device)[:, None]


def dropout_seed(seed: int, numbers: Sequence[int]) -> int:
    """What dropout is drawn by in a micro-batch of these packs."""
    return _drawn(f"dropout/{seed}/{','.join(map(str, numbers))}")


def _drawn(key: str) -> int:
    return random.Random(key).getrandbits(63)
