"""How likely a model finds given answers: choices are ranked by it, references measured.

In:  prompts as token ids, each with one or more continuations.
Out: for every continuation the log-likelihood of each of its tokens, in nats.

    score(model, [Tree(prompt=[9, 4], continuations=[[7], [8, 8]])])    # [[[-1.2], [-0.3, -0.9]]]

The prompt is computed once for all its continuations, and what all prompts begin with once for all trees.
Continuations stand behind their prompt as the branches of a tree; a mask lets each see the prompt and itself,
and positions go on from the prompt's end:

    tokens      9  4 | 7 | 8  8
    position    0  1 | 2 | 2  3
    sees        9    9 4   9 4     9 4
                       7       8     8 8

An encoder–decoder reads each prompt once as well; its continuations are rows of the decoder, as T5 knows no positions
but those of a row. A model that takes no such tree (it counts positions itself, or has layers that are no attention),
or has layers whose window is shorter than a prompt with its continuation, reads each continuation behind its prompt in
a row of its own.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.rnn import pad_sequence

from ift.evaluate import encoder, prefix

_ROUNDED = {True: 0.01, False: 0.25}  # nats that a tree may be off by: in 32 bits, in 16


@dataclass(frozen=True)
class Tree:
    """A prompt of at least one token and the continuations that are compared, each of at least one token."""

    prompt: list[int]
    continuations: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.continuations))

    @property
    def decoder_tokens(self) -> int:
        """What it takes of an encoder–decoder: a row a continuation, each with all of the prompt to look at."""
        return len(self.continuations) * (len(self.prompt) + max(map(len, self.continuations)))


def score(model: Any, trees: Sequence[Tree]) -> list[list[list[float]]]:
    """Log-likelihoods in nats: one list a tree, in it one a continuation, in it one a token."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            found = _likelihoods(*_decoded(model, trees))
        elif _longest(trees) <= prefix.reach(model) and _takes_branches(model):
            found = _likelihoods(*_branched(model, trees))
        else:
            found = _alone(model, trees)
    each = iter(found)
    return [[list(islice(each, len(c))) for c in tree.continuations] for tree in trees]


def _likelihoods(logits: torch.Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    likelihoods: list[float] = (logits[rows, tokens] - logits.logsumexp(-1)[rows]).tolist()
    return likelihoods


def _longest(trees: Sequence[Tree]) -> int:
    """Tokens of the longest prompt with one continuation."""
    return max(len(tree.prompt) + max(map(len, tree.continuations)) for tree in trees)


_BRANCHING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _takes_branches(model: Any) -> bool:
    """Whether the model's scores of a small tree are those of its continuations alone; it is asked once."""
    if model not in _BRANCHING:
        vocabulary = model.config.get_text_config().vocab_size
        numbers = [(7 * i + 3) % vocabulary for i in range(16)]
        trees = [Tree(numbers[:4], [numbers[i : i + 3] for i in (4, 7, 10, 13)]), Tree(numbers[:3], [[5]])]
        error = math.inf  # of what does not even compute
        with suppress(Exception):
            tree, alone = (
                torch.tensor(found)
                for found in (_likelihoods(*_branched(model, trees)), _alone(model, trees))
            )
            error = float((tree - alone).abs().mean())
        _BRANCHING[model] = error <= _ROUNDED[model.dtype == torch.float32]
    return _BRANCHING[model]


def _decoded(model: Any, trees: Sequence[Tree]) -> tuple[torch.Tensor, list[int], list[int]]:
    """Logits, `(positions, vocabulary)`; which of them predicts each token of each continuation; and these tokens.

    Of an encoder–decoder: all continuations of all trees go through the decoder in one pass.
    """
    source = encoder.encoded(model, [tree.prompt for tree in trees])
    source = source.rows([row for row, tree in enumerate(trees) for _ in tree.continuations])
    continuations = [torch.tensor(tokens) for tree in trees for tokens in tree.continuations]
    labels = pad_sequence(continuations, batch_first=True, padding_value=encoder.IGNORED)
    labels = labels.to(source.mask.device)
    logits = encoder.decoded(model, source, model.prepare_decoder_input_ids_from_labels(labels)).logits
    written = labels != encoder.IGNORED
    tokens = labels[written].tolist()
    return logits[written].float(), list(range(len(tokens))), tokens


def _branched(model: Any, trees: Sequence[Tree]) -> tuple[torch.Tensor, list[int], list[int]]:
    """The same of a causal model.

    Behind the prompts' shared beginning all `trees` go through the model in one pass, padded to the longest. The
    vocabulary projection is computed for the positions that predict a continuation's token and for no others.
    """
    device = next(model.parameters()).device
    length = max(map(len, trees))
    ids = torch.zeros(len(trees), length, dtype=torch.int64)
    positions = torch.zeros(len(trees), length, dtype=torch.int64)
    sees = torch.eye(length, dtype=torch.bool).repeat(
        len(trees), 1, 1
    )  # padding sees itself: no row is empty
    keep = torch.zeros(len(trees), length, dtype=torch.bool)
    for row, tree in enumerate(trees):
        p = len(tree.prompt)
        ids[row, :p] = torch.tensor(tree.prompt)
        positions[row, :p] = torch.arange(p)
        sees[row, :p, :p] = torch.ones(p, p, dtype=torch.bool).tril()
        keep[row, p - 1] = True  # predicts the first token of every continuation
        start = p
        for continuation in tree.continuations:
            n = len(continuation)
            ids[row, start : start + n] = torch.tensor(continuation)
            positions[row, start : start + n] = torch.arange(p, p + n)
            sees[row, start : start + n, :p] = True
            sees[row, start : start + n, start : start + n] = torch.ones(n, n, dtype=torch.bool).tril()
            keep[row, start : start + n - 1] = True
            start += n
    shared, past = prefix.cached(model, [tree.prompt for tree in trees], longest=_longest(trees))
    # added to the scores of the attention: eager attention would add a mask of booleans as 0 and 1
    mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)
    rows, tokens = _targets(trees, keep)
    logits = model(
        input_ids=ids[:, shared:].to(device),
        position_ids=positions[:, shared:].to(device),
        attention_mask=mask[:, None, shared:].to(device),
        past_key_values=past,
        use_cache=bool(shared),
        logits_to_keep=keep[:, shared:].to(device),
    ).logits
    return logits.reshape(-1, logits.shape[-1]).float(), rows, tokens


def _alone(model: Any, trees: Sequence[Tree]) -> list[float]:
    """The log-likelihood of every continuation's tokens, each continuation behind its prompt in a row of its own.

    As many rows go through the model in one pass as take no more tokens than the trees would.
    """
    pairs = [Tree(tree.prompt, [continuation]) for tree in trees for continuation in tree.continuations]
    at_once = max(1, len(trees) * max(map(len, trees)) // max(map(len, pairs)))
    device = next(model.parameters()).device
    found: list[float] = []
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        rows = [torch.tensor(tree.prompt + tree.continuations[0]) for tree in some]
        ids = pad_sequence(rows, batch_first=True)
        mask, keep = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, tree in enumerate(some):
            mask[row, : len(tree)] = 1
            keep[row, len(tree.prompt) - 1 : len(tree) - 1] = True
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            use_cache=False,
            logits_to_keep=keep.to(device),
        ).logits
        found += _likelihoods(logits.reshape(-1, logits.shape[-1]).float(), *_targets(some, keep))
    return found


def _targets(trees: Sequence[Tree], keep: torch.Tensor) -> tuple[list[int], list[int]]:
    """For every token of every continuation: the number of the kept position that predicts it, and the token."""
    number = keep.flatten().cumsum(0).reshape(keep.shape) - 1
    rows: list[int] = []
    tokens: list[int] = []
    for row, tree in enumerate(trees):
        start = len(tree.prompt)
        for continuation in tree.continuations:
            before = [len(tree.prompt) - 1, *range(start, start + len(continuation) - 1)]
            rows += number[row, before].tolist()
            tokens += continuation
            start += len(continuation)
    return rows, tokens
