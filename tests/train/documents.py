"""Packs for the tests of training: made of random documents, or of given ones."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from ift.data.stream import Pack

VOCABULARY = 250  # fewer than the tiny tokenizer's tokens


def pack_of(*documents: tuple[Sequence[int], Sequence[bool]], name: str = "p") -> Pack:
    """One pack of (tokens, supervised) documents."""
    return Pack(
        tokens=[token for tokens, _ in documents for token in tokens],
        supervised=[bool(flag) for _, flags in documents for flag in flags],
        lengths=[len(tokens) for tokens, _ in documents],
        examples=[f"{name}-{i}" for i in range(len(documents))],
        tasks=["films"] * len(documents),
        templates=["ask"] * len(documents),
    )


def random_pack(lengths: Sequence[int], seed: int, *, share: float = 0.4) -> Pack:
    """Documents of these lengths; about `share` of their tokens are supervised, never a first one."""
    rng = random.Random(seed)
    return pack_of(
        *(
            (
                [rng.randrange(3, VOCABULARY) for _ in range(length)],
                [i > 0 and rng.random() < share for i in range(length)],
            )
            for length in lengths
        ),
        name=str(seed),
    )


def random_packs(count: int, seed: int = 0, *, capacity: int = 40) -> list[Pack]:
    """Packs of one to four documents, of uneven length; each has at least one supervised token."""
    rng = random.Random(seed)
    packs = []
    while len(packs) < count:
        lengths = [rng.randrange(2, capacity // 2) for _ in range(rng.randrange(1, 5))]
        while sum(lengths) > capacity:
            lengths.pop()
        pack = random_pack(lengths, seed=seed * 1000 + len(packs) * 7 + rng.randrange(7))
        if pack.supervised_tokens:
            packs.append(pack)
    return packs


def unpacked(packs: Sequence[Pack]) -> list[Pack]:
    """The same documents in the same order, each in a pack of its own."""
    single = []
    for pack in packs:
        start = 0
        for i, length in enumerate(pack.lengths):
            end = start + length
            single.append(
                Pack(
                    pack.tokens[start:end],
                    pack.supervised[start:end],
                    [length],
                    [pack.examples[i]],
                    [pack.tasks[i]],
                    [pack.templates[i]],
                )
            )
            start = end
    return single


def of_tasks(packs: Sequence[Pack], *names: str) -> list[Pack]:
    """The same packs; their documents belong to these tasks in turn."""
    name = cycle(names)
    return [replace(pack, tasks=list(islice(name, len(pack.lengths)))) for pack in packs]


def leaking_model(vocabulary: int) -> Any:
    """A tiny random Lfm2: its short convolutions run over document boundaries, whatever the positions say."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        initializer_range=0.2,
        pad_token_id=0,
    )
    return Lfm2ForCausalLM(config)
